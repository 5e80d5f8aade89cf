//! Where those are who stand near in a crowd: pose blocks, encoded once a tick.
//!
//! The bodies of all leaves stand in the order of their rows and columns, so that what a viewer gets of a row is one
//! run of bytes:
//!
//! ```text
//! row 7   |..|##|##|##|..|      a viewer's reach, row by row: a table tells for every
//! row 6   |##|##|vv|##|##|      leaf where its bytes begin; a run is copied as it is
//! row 5   |..|##|##|##|..|
//! ```
//!
//! A viewer's **reach** follows the density: it is as long as it must be to have the nearest 40 in it, and as short
//! as it must be to fit the room that there is.

use shadowland_wire::block::slots;
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::entity::EntityDelta;
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::pose::{
    BODIES_PER_BLOCK, BODY_MAX_BYTES, LEAF_BITS, Leaf, POSES_PER_BODY, PoseContext, PoseFrame,
};

use super::Frame;
use crate::Tick;
use crate::interest::Row;

/// Who has not changed for so many ticks has no pose. Until then it is told again and again, in case one is lost.
const FRESH_TICKS: Tick = 8;
/// Poses that a reach should have in it by the density: the nearest 40 are meant to be among them, and the density
/// is not the same all around.
const WANTED: f64 = 64.0;
/// With fewer a reach grows at once.
const NEEDED: f64 = 52.0;
/// A reach grows and shrinks by so many steps.
const REACH_STEPS: u32 = 32;
/// In units of [`REACH_STEPS`].
const REACH_MAX: u16 = 128;
const REACH_AT_FIRST: u16 = 32;
/// So many empty leaves end a span. No reach is as long, so that a span more or less of a row makes no difference.
const SPAN_GAP: u32 = 2 * ((REACH_MAX as u32 * REACH_STEPS) >> LEAF_BITS) + 2;
/// Bytes of a block's header at most, where it is not the first.
const HEADER_BYTES: usize = 1 + 5 + 5 + 1;

/// The poses of all crowds in a frame.
#[derive(Debug, Default)]
pub(super) struct Poses {
    /// What follows is that of the current frame.
    encoded: bool,
    frame: Option<PoseFrame>,
    bodies: Vec<Body>,
    /// By row and column; nobody is outside of them.
    spans: Vec<Span>,
    /// Those of all spans, one behind the last leaf of each included.
    marks: Vec<Mark>,
    bytes: Vec<u8>,
    /// Everybody who has a pose; scratch.
    order: Vec<Place>,
    /// What a viewer is about to get, by row; scratch.
    runs: Vec<Run>,
}

/// Some poses of a leaf.
#[derive(Debug, Clone, Copy)]
struct Body {
    column: i32,
    /// Where it starts.
    start: u32,
}

/// A part of a row without large gaps.
#[derive(Debug, Clone, Copy)]
struct Span {
    row: i32,
    /// The first column, and one behind the last.
    first: i32,
    end: i32,
    /// Where the marks of its leaves are.
    marks: u32,
}

/// What stands before a leaf, in all leaves of all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    bodies: u32,
    bytes: u32,
    poses: u32,
}

/// Where somebody stands: on the map, and in the pages.
#[derive(Debug, Clone, Copy)]
struct Place {
    leaf: Leaf,
    page: u32,
    slot: u8,
}

/// The bodies of a row from one mark to another.
#[derive(Debug, Clone, Copy)]
struct Run {
    row: i32,
    from: Mark,
    to: Mark,
}

/// What a reach holds.
#[derive(Debug, Clone, Copy, Default)]
struct Measure {
    bytes: usize,
    poses: u32,
    /// Leaves, empty ones included.
    leaves: u32,
}

/// How far around a viewer poses reach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach(u16);

impl Default for Reach {
    fn default() -> Self {
        Self(REACH_AT_FIRST)
    }
}

impl Reach {
    fn steps(self) -> u32 {
        u32::from(self.0) * REACH_STEPS
    }
}

impl Measure {
    /// Poses within a reach, if all leaves are as dense as those that it touches.
    fn inside(&self, reach: Reach) -> f64 {
        let edge = f64::from(1 << LEAF_BITS);
        let density = f64::from(self.poses) / (f64::from(self.leaves) * edge * edge);
        density * std::f64::consts::PI * f64::from(reach.steps()).powi(2)
    }
}

impl Poses {
    /// Forgets the frame before.
    pub(super) fn clear(&mut self) {
        self.encoded = false;
        self.frame = None;
        self.bodies.clear();
        self.spans.clear();
        self.marks.clear();
        self.bytes.clear();
    }

    /// Writes the poses around a position, in at most `room` bytes, and says how many it took. The reach is the
    /// viewer's, at most `farthest` steps.
    pub(super) fn write(
        &mut self,
        frame: &Frame,
        around: LatticePosition,
        reach: &mut Reach,
        farthest: u32,
        room: usize,
        writer: &mut Writer<'_>,
    ) -> Result<usize, Full> {
        if !self.encoded {
            self.encoded = true;
            self.encode(frame);
        }
        let Some(pose_frame) = self.frame else { return Ok(0) };
        let longest = (farthest / REACH_STEPS).min(REACH_MAX.into()) as u16;
        reach.0 = reach.0.min(longest);
        self.choose(around, reach, longest, room.min(writer.remaining()), frame.tick());
        let before = writer.remaining();
        let mut context = PoseContext::default();
        for &Run { row, from, to } in &self.runs {
            let (mut start, mut rest) = (from.bytes, from.bodies..to.bodies);
            while !rest.is_empty() {
                let count = rest.len().min(BODIES_PER_BLOCK) as u32;
                let first = Leaf { row, column: self.bodies[rest.start as usize].column };
                rest.start += count;
                let end = if rest.is_empty() { to.bytes } else { self.start(rest.start) };
                context.encode_header(&pose_frame, first, count as u8, writer)?;
                writer.bytes(&self.bytes[start as usize..end as usize])?;
                start = end;
            }
        }
        Ok(before - writer.remaining())
    }

    fn start(&self, body: u32) -> u32 {
        self.bodies.get(body as usize).map_or(self.bytes.len() as u32, |body| body.start)
    }

    /// Finds the runs of a reach that fits, and what the reach of the next tick is to be.
    fn choose(&mut self, around: LatticePosition, reach: &mut Reach, longest: u16, room: usize, now: Tick) {
        let mut measure = self.measure(around, reach.steps());
        while measure.bytes > room && reach.0 > 0 {
            reach.0 -= (reach.0 / 8).max(1);
            measure = self.measure(around, reach.steps());
        }
        if measure.bytes > room {
            return self.choose_by_turns(room, now);
        }
        // Whoever has come to where fewer stand must not wait for the nearest until the reach has grown step by step.
        // Bytes grow as the square of the reach.
        let step = |reach: Reach| (reach.0 / 8).max(1).min(longest - reach.0);
        let growth = |measure: &Measure, reach: Reach, by: u16| {
            measure.bytes * usize::from(2 * by + by * by / reach.0.max(1)) / usize::from(reach.0.max(1))
        };
        while measure.inside(*reach) < NEEDED && reach.0 < longest {
            let by = step(*reach);
            if measure.bytes + growth(&measure, *reach, by) + HEADER_BYTES > room {
                break;
            }
            reach.0 += by;
            let longer = self.measure(around, reach.steps());
            if longer.bytes > room {
                reach.0 -= by;
                measure = self.measure(around, reach.steps());
                break;
            }
            measure = longer;
        }
        let fits = measure.bytes + growth(&measure, *reach, 1) + HEADER_BYTES <= room;
        if measure.inside(*reach) < WANTED && fits {
            reach.0 += 1;
        } else if measure.inside(*reach) > 1.25 * WANTED {
            reach.0 = reach.0.saturating_sub(1);
        }
    }

    /// There are more in a single leaf than fit: they take turns.
    fn choose_by_turns(&mut self, room: usize, now: Tick) {
        self.runs.truncate(1);
        let Some(&Run { row, from, to }) = self.runs.first() else { return };
        let start = from.bodies + now % (to.bodies - from.bodies);
        let mark = |bodies| Mark { bodies, bytes: self.start(bodies), ..from };
        let from = mark(start);
        let fits = |to: &Mark| PoseContext::HEADER_MAX_BYTES + (to.bytes - from.bytes) as usize <= room;
        let last = to.bodies.min(start + BODIES_PER_BLOCK as u32);
        let to = (start + 1..=last).map(mark).take_while(fits).last();
        self.runs.clear();
        self.runs.extend(to.map(|to| Run { row, from, to }));
    }

    /// Finds the runs of a reach, and what they hold.
    fn measure(&mut self, around: LatticePosition, reach: u32) -> Measure {
        self.runs.clear();
        let mut measure = Measure { bytes: PoseFrame::BYTES, ..Measure::default() };
        // Everything from here on is counted from the leaf in which the viewer stands: a reach has 12 bits, so that its
        // square fits the 24 of a short float.
        let home = Leaf::at(around);
        let (x, y, reach) = (within_leaf(around.x), within_leaf(around.y), reach as i32);
        let (low, high) = ((y - reach) >> LEAF_BITS, (y + reach) >> LEAF_BITS);
        let before = self.spans.partition_point(|span| span.row < home.row.saturating_add(low));
        let mut spans = self.spans[before..].iter().peekable();
        for up in low..=high {
            // How far the nearest point of the row is.
            let away = match up.signum() {
                1 => (up << LEAF_BITS) - y,
                -1 => y - ((up + 1) << LEAF_BITS) + 1,
                _ => 0,
            };
            let half = ((reach * reach - away * away).max(0) as f32).sqrt() as i32;
            let (first, last) = ((x - half) >> LEAF_BITS, (x + half) >> LEAF_BITS);
            measure.leaves += (last - first) as u32 + 1;
            let row = home.row.saturating_add(up);
            while let Some(span) = spans.next_if(|span| span.row == row) {
                let marks = &self.marks[span.marks as usize..];
                let mark = |right: i32| {
                    let column = home.column.saturating_add(right).clamp(span.first, span.end);
                    marks[(column - span.first) as usize]
                };
                let (from, to) = (mark(first), mark(last + 1));
                let count = (to.bodies - from.bodies) as usize;
                if count > 0 {
                    let headers =
                        if count <= BODIES_PER_BLOCK { 1 } else { count.div_ceil(BODIES_PER_BLOCK) };
                    measure.bytes += (to.bytes - from.bytes) as usize + HEADER_BYTES * headers;
                    measure.poses += to.poses - from.poses;
                    self.runs.push(Run { row, from, to });
                }
            }
        }
        measure
    }

    /// Encodes everybody in a crowd who changed lately.
    fn encode(&mut self, frame: &Frame) {
        let now = frame.tick();
        self.order.clear();
        for (page, rows) in frame.crowd_pages() {
            for slot in slots(rows.occupied()) {
                let row = rows.row(slot);
                if row.changed.iter().any(|&changed| is_fresh(changed, now)) {
                    self.order.push(Place { leaf: Leaf::at(row.record.position), page, slot: slot as u8 });
                }
            }
        }
        // Who is where in the pages is the same for all, so this order is, too.
        self.order.sort_unstable_by_key(|place| (place.leaf, place.page, place.slot));
        let order = std::mem::take(&mut self.order);
        let row_of = |place: &Place| frame.pages().page(place.page).row(place.slot.into());
        if !order.is_empty() {
            let pose_frame = PoseFrame::covering(order.iter().map(|place| &row_of(place).record));
            self.frame = Some(pose_frame);
            let mut poses = 0;
            for leaf in order.chunk_by(|a, b| a.leaf == b.leaf) {
                let mark = Mark { bodies: self.bodies.len() as u32, bytes: self.bytes.len() as u32, poses };
                let mut skip = self.mark(leaf[0].leaf, mark);
                for places in leaf.chunks(POSES_PER_BODY) {
                    let start = self.bytes.len();
                    self.bodies.push(Body { column: leaf[0].leaf.column, start: start as u32 });
                    self.bytes.resize(start + BODY_MAX_BYTES, 0);
                    let poses = places.iter().map(row_of).map(|row| (&row.record, tells_condition(row, now)));
                    let length = pose_frame
                        .encode_body(skip, poses, &mut self.bytes[start..])
                        .expect("BODY_MAX_BYTES is computed from the largest possible body");
                    self.bytes.truncate(start + length);
                    skip = 0;
                }
                poses += leaf.len() as u32;
            }
            self.marks.push(Mark { bodies: self.bodies.len() as u32, bytes: self.bytes.len() as u32, poses });
        }
        self.order = order;
    }

    /// Notes what stands before the next leaf in order, and before the empty ones between it and the last in its span.
    /// Tells how far it is behind that one; 0 if it is the first.
    fn mark(&mut self, Leaf { row, column }: Leaf, mark: Mark) -> u32 {
        let continued = |span: &&mut Span| span.row == row && column.abs_diff(span.end) < SPAN_GAP;
        let Some(span) = self.spans.last_mut().filter(continued) else {
            // Behind the last leaf of the span before.
            if !self.spans.is_empty() {
                self.marks.push(mark);
            }
            let marks = self.marks.len() as u32;
            self.spans.push(Span { row, first: column, end: column + 1, marks });
            self.marks.push(mark);
            return 0;
        };
        let skip = column.abs_diff(span.end) + 1;
        self.marks.extend((0..skip).map(|_| mark));
        span.end = column + 1;
        skip
    }
}

/// How far a coordinate is behind the low edge of its leaf.
fn within_leaf(value: i32) -> i32 {
    value & ((1 << LEAF_BITS) - 1)
}

fn is_fresh(changed: Tick, now: Tick) -> bool {
    now - changed < FRESH_TICKS
}

/// Whether flags or vitals changed lately.
fn tells_condition(row: &Row, now: Tick) -> bool {
    let changed = |group: EntityDelta| row.changed[group.to_bits().trailing_zeros() as usize];
    is_fresh(changed(EntityDelta::FLAGS), now) || is_fresh(changed(EntityDelta::VITALS), now)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shadowland_wire::codec::Reader;
    use shadowland_wire::entity::EntityId;
    use shadowland_wire::pose::Pose;

    use super::*;
    use crate::config::MapConfig;
    use crate::{World, WorldConfig};

    /// So many npcs in a square of 30 m, after a second.
    fn crowd(npcs: usize) -> (World, Frame) {
        let config = WorldConfig {
            npcs,
            crowd_entities: 100,
            map: MapConfig { size_cm: 3_000.0, height_cm: 3_000.0 },
            ..WorldConfig::default()
        };
        let mut frame = Frame::new(&config);
        let mut world = World::new(config);
        (0..60).for_each(|_| world.tick());
        world.publish(&mut frame);
        (world, frame)
    }

    fn written(poses: &mut Poses, frame: &Frame, reach: &mut Reach, room: usize) -> BTreeMap<EntityId, Pose> {
        let mut buffer = [0; 2_000];
        let mut writer = Writer::new(&mut buffer);
        let around = LatticePosition { x: 300, y: -200, z: 0 };
        let used = poses.write(frame, around, reach, 10_000, room, &mut writer).unwrap();
        assert!(used <= room && used == writer.written().len(), "{used} of {room}");
        let (mut context, mut block, mut all) = (PoseContext::default(), Vec::new(), BTreeMap::new());
        let mut reader = Reader::new(writer.written());
        while !reader.is_empty() {
            context.decode(&mut reader, &mut block).unwrap();
            for pose in &block {
                assert!(all.insert(pose.id, *pose).is_none(), "{pose:?} twice");
            }
        }
        all
    }

    #[test]
    fn everybody_in_reach_who_moves_has_a_pose() {
        let (_, frame) = crowd(400);
        let (mut poses, mut reach) = (Poses::default(), Reach::default());
        // The reach finds its length.
        (0..100).for_each(|_| drop(written(&mut poses, &frame, &mut reach, 600)));
        let steps = i64::from(reach.steps());
        let all = written(&mut poses, &frame, &mut reach, 600);
        let mut inside = 0;
        for row in frame.all_pages().flat_map(|page| page.rows().collect::<Vec<_>>()) {
            let record = &row.record;
            let far =
                (i64::from(record.position.x) - 300).pow(2) + (i64::from(record.position.y) + 200).pow(2);
            let fresh = row.changed.iter().any(|&changed| is_fresh(changed, frame.tick()));
            inside += usize::from(fresh && far <= steps * steps);
            match all.get(&record.id) {
                Some(pose) => {
                    assert!(fresh);
                    assert_eq!((pose.position, pose.rotation), (record.position, record.rotation));
                    assert_eq!(pose.animation, record.animation);
                }
                None => assert!(!fresh || far > steps * steps, "{record:?} is within {steps} steps"),
            }
        }
        assert!((40..100).contains(&inside), "{inside}");
    }

    #[test]
    fn a_reach_is_long_enough_at_once() {
        let (_, frame) = crowd(400);
        let (mut poses, mut short) = (Poses::default(), Reach(1));
        let seen = written(&mut poses, &frame, &mut short, 600).len();
        assert!(seen as f64 >= NEEDED, "{seen}");
        // However little room there is, what does not fit is not taken.
        let mut reach = Reach(1);
        assert!(written(&mut poses, &frame, &mut reach, 150).len() < seen);
    }

    #[test]
    fn marks_tell_what_stands_before_every_leaf() {
        let mut poses = Poses::default();
        let before = |bodies: u32| Mark { bodies, bytes: 10 * bodies, poses: 3 * bodies };
        let leaves = [(-2, 5), (-2, 6), (-2, 9), (-2, 9 + SPAN_GAP as i32 + 1), (4, -3), (4, -1)];
        let skips: Vec<u32> = (0..)
            .zip(leaves)
            .map(|(nth, (row, column))| poses.mark(Leaf { row, column }, before(nth)))
            .collect();
        poses.marks.push(before(6));
        assert_eq!(skips, [0, 1, 3, 0, 0, 2]);
        let marks_of = |span: usize| {
            let Span { first, end, marks, .. } = poses.spans[span];
            let marks = &poses.marks[marks as usize..][..(end - first) as usize + 1];
            marks.iter().map(|mark| mark.bodies).collect::<Vec<_>>()
        };
        assert_eq!([0, 1, 2].map(marks_of), [vec![0, 1, 2, 2, 2, 3], vec![3, 4], vec![4, 5, 5, 6]]);
    }

    #[test]
    fn where_no_crowd_is_nobody_has_a_pose() {
        let (_, frame) = crowd(99);
        assert!(written(&mut Poses::default(), &frame, &mut Reach::default(), 600).is_empty());
    }

    #[test]
    fn those_in_one_place_take_turns() {
        let (mut world, mut frame) = crowd(400);
        let everybody: Vec<EntityId> = world.entities().map(|(id, _)| id).collect();
        let (mut poses, mut reach) = (Poses::default(), Reach::default());
        let mut seen = BTreeMap::new();
        for _ in 0..200 {
            everybody.iter().for_each(|&id| assert!(world.teleport(id, [300.0, -200.0, 0.0])));
            world.tick();
            world.publish(&mut frame);
            poses.clear();
            seen.extend(written(&mut poses, &frame, &mut reach, 300));
        }
        // A quarter of them rests at a time.
        assert!(seen.len() > 250, "{}", seen.len());
    }
}
