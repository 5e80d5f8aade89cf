//! What workers do with datagrams of each other's sessions, where the kernel does not steer them.
//!
//! A datagram of a session begins with the index of the worker that owns it. Without steering the kernel chooses a
//! socket by the addresses, so that a player whose address changes reaches another worker, which passes its
//! datagrams on: through a bounded ring for each pair of workers, lock-free, in memory that is allocated at the
//! start. What finds its ring full is dropped and counted, as if the network had lost it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::Waker;
use rtrb::{Consumer, Producer, RingBuffer};
use shadowland_proto::Slot;
use shadowland_udp::DATAGRAM;

/// Datagrams that wait for a worker, from all others together; a ring has its share of them.
const WAITING: usize = 1_024;
/// But no ring has fewer places than this.
const RING_MIN: usize = 16;

/// A datagram on its way to its worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel {
    from: SocketAddr,
    len: usize,
    bytes: [u8; DATAGRAM],
}

/// What a worker has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HandoverStats {
    /// Datagrams that were passed on.
    pub(crate) passed: u64,
    /// Datagrams that found the ring full.
    pub(crate) dropped: u64,
}

/// One worker's ends of the rings.
pub(crate) struct Handover {
    worker: usize,
    /// By the index of the other worker; `None` at its own.
    to: Vec<Option<Lane>>,
    from: Vec<Consumer<Parcel>>,
    stats: HandoverStats,
}

/// The way to another worker.
struct Lane {
    ring: Producer<Parcel>,
    waker: Arc<Waker>,
    /// Something was passed on and the other worker was not woken yet.
    unheard: bool,
}

/// Connects workers with each other; each is woken by its waker. One alone has nothing to pass on.
pub(crate) fn connect(wakers: &[Arc<Waker>]) -> Vec<Handover> {
    let workers = wakers.len();
    let slots = (WAITING / workers.saturating_sub(1).max(1)).max(RING_MIN);
    let mut handovers: Vec<_> = (0..workers)
        .map(|worker| Handover { worker, to: Vec::new(), from: Vec::new(), stats: HandoverStats::default() })
        .collect();
    for sender in 0..workers {
        for receiver in 0..workers {
            let lane = (sender != receiver).then(|| {
                let (ring, there) = RingBuffer::new(slots);
                handovers[receiver].from.push(there);
                Lane { ring, waker: Arc::clone(&wakers[receiver]), unheard: false }
            });
            handovers[sender].to.push(lane);
        }
    }
    handovers
}

impl Handover {
    /// Passes a datagram on if it is of another worker's session; `false` when it is this worker's to handle.
    pub(crate) fn pass_on(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(slot) = Slot::claimed_by(datagram) else { return false };
        let owner = usize::from(slot.worker());
        if owner == self.worker || datagram.len() > DATAGRAM {
            return false;
        }
        // Nobody's: it is dropped and counted where it is.
        let Some(Some(lane)) = self.to.get_mut(owner) else { return false };
        let mut parcel = Parcel { from, len: datagram.len(), bytes: [0; DATAGRAM] };
        parcel.bytes[..datagram.len()].copy_from_slice(datagram);
        if lane.ring.push(parcel).is_ok() {
            lane.unheard = true;
            self.stats.passed += 1;
        } else {
            self.stats.dropped += 1;
        }
        true
    }

    /// Wakes the workers that something was passed on to since the last call.
    pub(crate) fn wake(&mut self) -> io::Result<()> {
        for lane in self.to.iter_mut().flatten().filter(|lane| lane.unheard) {
            lane.unheard = false;
            lane.waker.wake()?;
        }
        Ok(())
    }

    /// Gives what was passed on to this worker to `handle`: as many as were there at the start.
    pub(crate) fn receive(&mut self, mut handle: impl FnMut(SocketAddr, &mut [u8])) {
        for ring in &mut self.from {
            for _ in 0..ring.slots() {
                let Ok(mut parcel) = ring.pop() else { break };
                handle(parcel.from, &mut parcel.bytes[..parcel.len]);
            }
        }
    }

    pub(crate) fn stats(&self) -> HandoverStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn workers(count: usize) -> (Vec<Poll>, Vec<Handover>) {
        let polls: Vec<_> = (0..count).map(|_| Poll::new().unwrap()).collect();
        let wakers: Vec<_> =
            polls.iter().map(|poll| Arc::new(Waker::new(poll.registry(), Token(1)).unwrap())).collect();
        let handovers = connect(&wakers);
        (polls, handovers)
    }

    fn from(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    fn received(handover: &mut Handover) -> Vec<(u16, Vec<u8>)> {
        let mut received = Vec::new();
        handover.receive(|from, datagram| received.push((from.port(), datagram.to_vec())));
        received
    }

    #[test]
    fn a_datagram_reaches_its_owner_and_wakes_it() {
        let (mut polls, mut workers) = workers(3);
        assert!(workers[0].pass_on(from(7), &[2, 9, 9, 9, 1]));
        assert!(workers[1].pass_on(from(8), &[2, 9, 9, 9, 2]));
        workers.iter_mut().for_each(|worker| worker.wake().unwrap());
        let mut events = Events::with_capacity(4);
        for (worker, woken) in [(2, true), (0, false)] {
            polls[worker].poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert_eq!(!events.is_empty(), woken);
        }
        assert_eq!(received(&mut workers[2]), [(7, vec![2, 9, 9, 9, 1]), (8, vec![2, 9, 9, 9, 2])]);
        assert_eq!(received(&mut workers[2]), []);
    }

    #[test]
    fn what_is_ones_own_or_nobodys_stays() {
        let (_polls, mut workers) = workers(2);
        for datagram in [&[1, 0, 0, 0, 5][..], &[0; 40], &[0, 0, 0], &[], &[7, 1, 1, 1, 1]] {
            assert!(!workers[1].pass_on(from(7), datagram), "{datagram:?}");
        }
        // Worker 0's sessions have ids that are not 0 but for their first byte.
        assert!(workers[1].pass_on(from(7), &[0, 0, 0, 1]));
    }

    #[test]
    fn a_full_ring_drops_and_counts() {
        let (_polls, mut workers) = workers(64);
        for _ in 0..RING_MIN + 5 {
            assert!(workers[3].pass_on(from(7), &[9, 1, 1, 1]));
        }
        assert_eq!(workers[3].stats(), HandoverStats { passed: RING_MIN as u64, dropped: 5 });
        assert_eq!(received(&mut workers[9]).len(), RING_MIN);
    }
}
