//! A hub with its clients, and the links between them.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_bots::wander::{Pursuit, Wanderer};
use shadowland_client::session::Session;
use shadowland_proto::{ConnectConfig, Time};
use shadowland_server::embed::{Hub, Inbox, Outbox};
use shadowland_wire::entity::EntityId;
use shadowland_wire::limits::DATAGRAM_BYTES;
use shadowland_world::Frame;

use super::TICK_HZ;
use super::sight::{self, Moment, Seen, Truth, Watch};
use crate::clock::{Span, measure};

/// Round trips of the clients, in ticks: 1 up to this.
pub(super) const LONGEST_ROUND_TRIP: u64 = 8;
/// Clients that start to connect in a tick.
const JOINS_PER_TICK: usize = 50;
/// Of so many clients one is watched.
const WATCHED_OF: usize = 64;
/// Slots of the outbox, as a worker's.
const SLOTS: usize = 64;

/// What a shard answers.
pub(super) struct Told {
    pub(super) span: Span,
    pub(super) seen: Seen,
    pub(super) traffic: Traffic,
    /// Who stands where, after [`Shard::settle`].
    pub(super) settled: Vec<(EntityId, [f64; 2])>,
}

/// What passed between hub and clients.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) packets_in: u64,
    pub(super) bytes_in: u64,
    pub(super) packets_out: u64,
    pub(super) bytes_out: u64,
    /// The most that left for one client in one tick, since watching began.
    pub(super) bytes_in_tick_max: u64,
}

impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            packets_in: a.packets_in + b.packets_in,
            bytes_in: a.bytes_in + b.bytes_in,
            packets_out: a.packets_out + b.packets_out,
            bytes_out: a.bytes_out + b.bytes_out,
            bytes_in_tick_max: a.bytes_in_tick_max.max(b.bytes_in_tick_max),
        })
    }
}

/// A datagram on its way, and the tick of its arrival.
type OnTheWay = (u64, Vec<u8>);

struct Client {
    player: usize,
    /// It stands in a hot spot, whatever it would like to do.
    stands: bool,
    address: SocketAddr,
    session: Session,
    walk: Wanderer,
    round_trip: u64,
    down: VecDeque<OnTheWay>,
    up: VecDeque<OnTheWay>,
    /// What it sees is watched; without that it sees nothing.
    watch: Option<Watch>,
    /// What left for it in one tick.
    sent: SentInTick,
}

#[derive(Debug, Clone, Copy, Default)]
struct SentInTick {
    tick: u64,
    bytes: u64,
}

pub(super) struct Shard {
    hub: Hub,
    clients: Vec<Client>,
    /// By port.
    client_of: Vec<u32>,
    /// Clients that have not started yet.
    waiting: VecDeque<(usize, SocketAddr)>,
    server_key: [u8; 32],
    seed: u64,
    pursuit: Pursuit,
    rng: StdRng,
    /// The last ticks, as the server had them.
    moments: VecDeque<Arc<Moment>>,
    inbox: Vec<(SocketAddr, Vec<u8>)>,
    /// Buffers of datagrams that have arrived, to be used again.
    spare: Vec<Vec<u8>>,
    /// The slots of a batch, as a worker's.
    received: Vec<Received>,
    outbox: Batch,
    traffic: Traffic,
    watching: bool,
    tick: u64,
}

/// A datagram in a slot of a batch.
#[derive(Clone)]
struct Received {
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// A batch that was received.
struct Slots<'a>(&'a mut [Received]);

impl Inbox for Slots<'_> {
    fn slots(&self) -> usize {
        self.0.len()
    }

    fn datagram(&mut self, index: usize) -> Option<(SocketAddr, &mut [u8])> {
        self.0.get_mut(index).map(|Received { from, bytes }| (*from, &mut bytes[..]))
    }
}

/// The outbox: a few slots, as a worker's, and behind them the network.
struct Batch {
    slots: Box<[[u8; DATAGRAM_BYTES]]>,
    lengths: Vec<(u16, SocketAddr)>,
    /// What left: lengths and addresses, and all bytes in one.
    left: Vec<(u16, SocketAddr)>,
    bytes: Vec<u8>,
    /// What the copying took.
    copying: Span,
}

impl Outbox for Batch {
    fn slot(&mut self) -> Option<&mut [u8; DATAGRAM_BYTES]> {
        if self.lengths.len() == SLOTS {
            self.flush();
        }
        self.slots.get_mut(self.lengths.len())
    }

    fn commit(&mut self, len: usize, to: SocketAddr) {
        self.lengths.push((len as u16, to));
    }
}

impl Batch {
    fn new() -> Self {
        Self {
            slots: vec![[0; DATAGRAM_BYTES]; SLOTS].into(),
            lengths: Vec::with_capacity(SLOTS),
            left: Vec::new(),
            bytes: Vec::new(),
            copying: Span::default(),
        }
    }

    /// What the kernel would do: copy the bytes away. That is no work of the server's own.
    fn flush(&mut self) {
        let Self { slots, lengths, left, bytes, .. } = self;
        self.copying += measure(|| {
            for (slot, &(len, to)) in slots.iter().zip(&*lengths) {
                bytes.extend_from_slice(&slot[..usize::from(len)]);
                left.push((len, to));
            }
            lengths.clear();
        });
    }

    /// Work without what of it was copying.
    fn without_copying(&mut self, work: impl FnOnce(&mut Self) -> Span) -> Span {
        self.copying = Span::default();
        work(self) - self.copying
    }

    /// Makes room for a tick of so many packets, so that nothing is allocated while they are made.
    fn make_room(&mut self, packets: usize) {
        self.left.reserve(packets);
        self.bytes.reserve(packets * DATAGRAM_BYTES);
    }
}

impl Shard {
    pub(super) fn new(
        hub: Hub,
        clients: impl Iterator<Item = (usize, SocketAddr)>,
        server_key: [u8; 32],
        seed: u64,
        pursuit: Pursuit,
    ) -> Self {
        Self {
            hub,
            clients: Vec::new(),
            client_of: vec![u32::MAX; usize::from(u16::MAX) + 1],
            waiting: clients.collect(),
            server_key,
            seed,
            pursuit,
            moments: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed ^ 0x5eed),
            inbox: Vec::new(),
            spare: Vec::new(),
            received: vec![
                Received {
                    from: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    bytes: Vec::with_capacity(DATAGRAM_BYTES)
                };
                SLOTS
            ],
            outbox: Batch::new(),
            traffic: Traffic::default(),
            watching: false,
            tick: 0,
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Clients receive what has arrived, act and send; some more of them start.
    pub(super) fn clients_turn(&mut self, tick: u64, still: bool) {
        self.tick = tick;
        self.deliver();
        let now = Time::from_micros(tick * 1_000_000 / TICK_HZ);
        for _ in 0..JOINS_PER_TICK {
            let Some((player, address)) = self.waiting.pop_front() else { break };
            self.client_of[usize::from(address.port())] = self.clients.len() as u32;
            let mut session = Session::new(ConnectConfig::default(), self.server_key, &mut self.rng, now)
                .expect("the server's key is a key");
            let watch = player.is_multiple_of(WATCHED_OF).then(Watch::default);
            if watch.is_none() {
                session.close_eyes();
            }
            self.clients.push(Client {
                player,
                stands: false,
                address,
                session,
                walk: Wanderer::new(self.seed, player, self.pursuit),
                round_trip: 1 + player as u64 % LONGEST_ROUND_TRIP,
                down: VecDeque::new(),
                up: VecDeque::new(),
                watch,
                sent: SentInTick::default(),
            });
        }
        let moments = self.watching.then_some(&self.moments);
        let spare = &mut self.spare;
        self.clients.iter_mut().for_each(|client| client.turn(now, tick, still, moments, spare));
        // What arrives at the server in this tick.
        for client in &mut self.clients {
            while let Some((_, datagram)) = client.up.pop_front_if(|(arrival, _)| *arrival <= tick) {
                self.traffic.packets_in += 1;
                self.traffic.bytes_in += datagram.len() as u64;
                self.inbox.push((client.address, datagram));
            }
        }
        let packets = 2 * (self.clients.len() + self.inbox.len());
        self.outbox.make_room(packets);
    }

    /// Puts what the hub sent on its way to the clients.
    fn deliver(&mut self) {
        let Self { outbox, clients, client_of, traffic, tick, watching, spare, .. } = self;
        outbox.flush();
        let mut rest = &outbox.bytes[..];
        for &(len, to) in &outbox.left {
            let (datagram, behind) = rest.split_at(len.into());
            rest = behind;
            traffic.packets_out += 1;
            traffic.bytes_out += u64::from(len);
            let client = &mut clients[client_of[usize::from(to.port())] as usize];
            if client.sent.tick != *tick {
                client.sent = SentInTick { tick: *tick, bytes: 0 };
            }
            client.sent.bytes += u64::from(len);
            if *watching {
                traffic.bytes_in_tick_max = traffic.bytes_in_tick_max.max(client.sent.bytes);
            }
            // It was sent in the tick before this one.
            let arrival = *tick - 1 + client.down_ticks();
            client.down.push_back((arrival, copied(datagram, spare)));
        }
        outbox.left.clear();
        outbox.bytes.clear();
    }

    pub(super) fn receive(&mut self, now: Time) -> Span {
        let Self { hub, inbox, received, outbox, spare, .. } = self;
        let mut span = Span::default();
        for batch in inbox.chunks(SLOTS) {
            // As from a socket: the kernel copies the datagrams into the same buffers again and again.
            for (slot, (from, datagram)) in received.iter_mut().zip(batch) {
                slot.from = *from;
                slot.bytes.clear();
                slot.bytes.extend_from_slice(datagram);
            }
            let mut slots = Slots(&mut received[..batch.len()]);
            span += measure(|| hub.receive_batch(now, &mut slots, outbox));
        }
        spare.extend(inbox.drain(..).map(|(_, datagram)| datagram));
        span
    }

    pub(super) fn serve(&mut self, now: Time, frame: Arc<Frame>, players: usize) -> Span {
        let Self { hub, outbox, .. } = self;
        outbox.without_copying(|outbox| {
            measure(|| {
                hub.hear_world(now);
                hub.start_round(now, frame, players);
                while hub.has_unserved() {
                    hub.serve_next(now, outbox);
                }
                hub.end_round(now);
            })
        })
    }

    /// Has some of the players stand where they are put; gives their entities and places.
    pub(super) fn settle(&mut self, place: impl Fn(usize) -> Option<[f64; 2]>) -> Vec<(EntityId, [f64; 2])> {
        let settled = self.clients.iter_mut().filter_map(|client| {
            let place = place(client.player)?;
            client.stands = true;
            Some((client.session.welcome()?.entity, place))
        });
        settled.collect()
    }

    /// Remembers how the server has a tick, for as long as its snapshots can be on their way.
    pub(super) fn remember(&mut self, moment: Arc<Moment>) {
        self.moments.truncate(LONGEST_ROUND_TRIP as usize + 1);
        self.moments.push_front(moment);
    }

    pub(super) fn watch(&mut self) {
        self.watching = true;
        for client in &mut self.clients {
            if let Some(watch) = &mut client.watch {
                watch.restart(self.tick as u32);
            }
        }
    }

    pub(super) fn look(&self, _frame: &Frame, truth: &Truth) -> Seen {
        let watched = self.clients.iter().filter_map(|client| {
            let own = client.session.welcome()?.entity;
            let watch = client.watch.as_ref()?;
            Some(sight::look(&client.session, own, watch, truth))
        });
        watched.fold(Seen::default(), Seen::and)
    }
}

/// A copy in one of the spare buffers.
fn copied(datagram: &[u8], spare: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let mut copy = spare.pop().unwrap_or_default();
    copy.clear();
    copy.extend_from_slice(datagram);
    copy
}

impl Client {
    /// Ticks that a datagram takes from the server to it.
    fn down_ticks(&self) -> u64 {
        self.round_trip.div_ceil(2)
    }

    /// Receives, acts and sends. `moments` are given while what it sees is watched.
    fn turn(
        &mut self,
        now: Time,
        tick: u64,
        still: bool,
        moments: Option<&VecDeque<Arc<Moment>>>,
        spare: &mut Vec<Vec<u8>>,
    ) {
        while let Some((_, mut datagram)) = self.down.pop_front_if(|(arrival, _)| *arrival <= tick) {
            // A dropped datagram is the session's own business.
            let _ = match &mut self.watch {
                Some(watch) if moments.is_some() => self.session.handle_watched(now, &mut datagram, watch),
                _ => self.session.handle(now, &mut datagram),
            };
            spare.push(datagram);
        }
        // World and bench have the same ticks. Of a tick whose snapshot has not come by now nothing was learnt.
        let arrived = tick.saturating_sub(self.down_ticks());
        if let (Some(watch), Some(moments), Some(welcome)) =
            (&mut self.watch, moments, self.session.welcome())
        {
            for moment in moments.iter().rev().filter(|moment| u64::from(moment.tick()) <= arrived) {
                watch.judge(welcome.entity, moment);
            }
        }
        if self.session.next_timeout().is_some_and(|at| now >= at) {
            self.session.on_timeout(now);
        }
        let input = if still || self.stands { self.walk.still() } else { self.walk.next_input() };
        self.session.input(input);
        let mut buffer = [0; DATAGRAM_BYTES];
        while let Some(len) = self.session.poll_transmit(now, &mut buffer) {
            self.up.push_back((tick + self.round_trip / 2, copied(&buffer[..len], spare)));
        }
    }
}
