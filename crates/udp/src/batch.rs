//! The slots: where datagrams lie between the kernel and the protocol.
//!
//! Both batches allocate everything in `new`. The system-call part (`sys`) works on plain slices of them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::{DATAGRAM, MAX_SLOTS, sys};

/// Slots for datagrams that arrive.
#[derive(Debug)]
pub struct RecvBatch {
    buffers: Box<[[u8; DATAGRAM]]>,
    arrivals: Box<[Arrival]>,
    scratch: sys::RecvScratch,
    /// Slots that the last receive filled, dropped ones included.
    filled: usize,
    stats: RecvStats,
}

/// What the kernel said about the datagram in the slot of the same index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) len: usize,
    /// Never handed out: it was longer than a slot, so its end is missing, or nobody wants it.
    pub(crate) passed_over: bool,
}

/// What a [`RecvBatch`] has seen since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecvStats {
    /// Datagrams handed out.
    pub datagrams: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes: u64,
    /// Datagrams dropped because they were longer than [`DATAGRAM`].
    pub oversized: u64,
    /// Errors that the socket reported for earlier sends (ICMP), such as "connection refused"; passed over.
    pub peer_errors: u64,
    /// System calls made.
    pub calls: u64,
}

impl RecvBatch {
    /// A batch of `slots` slots.
    ///
    /// # Panics
    /// If `slots` is 0 or above [`MAX_SLOTS`].
    #[must_use]
    pub fn new(slots: usize) -> Self {
        check_slots(slots);
        let nobody = Arrival { from: nobody(), len: 0, passed_over: false };
        Self {
            buffers: vec![[0; DATAGRAM]; slots].into_boxed_slice(),
            arrivals: vec![nobody; slots].into_boxed_slice(),
            scratch: sys::RecvScratch::new(slots),
            filled: 0,
            stats: RecvStats::default(),
        }
    }

    /// Most datagrams that one receive can bring.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.buffers.len()
    }

    /// The datagrams of the last receive with their senders, oldest first; those that are passed over are left out.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        self.arrivals[..self.filled]
            .iter()
            .zip(self.buffers.iter_mut())
            .filter(|(arrival, _)| !arrival.passed_over)
            .map(|(arrival, buffer)| (arrival.from, &mut buffer[..arrival.len]))
    }

    /// Slots that the last receive filled.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// What the last receive has put into a slot, and its sender; `None` where that is passed over or nothing.
    pub fn datagram(&mut self, slot: usize) -> Option<(SocketAddr, &mut [u8])> {
        let arrival = self.arrivals[..self.filled].get(slot).filter(|arrival| !arrival.passed_over)?;
        Some((arrival.from, &mut self.buffers[slot][..arrival.len]))
    }

    /// From here on passes over the datagrams of the last receive that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(SocketAddr, &mut [u8]) -> bool) {
        for (arrival, buffer) in self.arrivals[..self.filled].iter_mut().zip(self.buffers.iter_mut()) {
            let wanted = !arrival.passed_over && keep(arrival.from, &mut buffer[..arrival.len]);
            arrival.passed_over = !wanted;
        }
    }

    /// Counters since the batch was made.
    #[must_use]
    pub fn stats(&self) -> &RecvStats {
        &self.stats
    }

    /// Fills the batch by one call of `receive`; see [`crate::UdpSocket::recv`].
    pub(crate) fn fill_with(
        &mut self,
        mut receive: impl FnMut(&mut [[u8; DATAGRAM]], &mut [Arrival], &mut sys::RecvScratch) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.filled = 0;
        loop {
            self.stats.calls += 1;
            match receive(&mut self.buffers, &mut self.arrivals, &mut self.scratch) {
                Ok(filled) => {
                    self.filled = filled;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Each such call takes one pending error off the socket, so this ends.
                Err(error) if is_about_a_peer(&error) => self.stats.peer_errors += 1,
                Err(error) => return Err(error),
            }
        }
        for arrival in &self.arrivals[..self.filled] {
            if arrival.passed_over {
                self.stats.oversized += 1;
            } else {
                self.stats.datagrams += 1;
                self.stats.bytes += arrival.len as u64;
            }
        }
        Ok(self.filled)
    }
}

/// Slots for datagrams that leave, used as a ring: what the kernel does not take now keeps its place in the
/// order, and there is room behind it for as long as slots are free.
#[derive(Debug)]
pub struct SendBatch {
    buffers: Box<[[u8; DATAGRAM]]>,
    departures: Box<[Departure]>,
    scratch: sys::SendScratch,
    /// Index of the oldest unsent datagram.
    head: usize,
    /// Unsent datagrams.
    count: usize,
    stats: SendStats,
}

/// Length and destination of the datagram in the slot of the same index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Departure {
    pub(crate) to: SocketAddr,
    pub(crate) len: usize,
}

/// What a [`SendBatch`] has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendStats {
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes: u64,
    /// Datagrams given up because of an error that concerns their destination: refused, unreachable,
    /// forbidden by a firewall, too large for the path.
    pub refused: u64,
    /// Times that the socket buffer was full and datagrams had to stay.
    pub blocked: u64,
    /// System calls made.
    pub calls: u64,
}

impl SendBatch {
    /// A batch of `slots` slots.
    ///
    /// # Panics
    /// If `slots` is 0 or above [`MAX_SLOTS`].
    #[must_use]
    pub fn new(slots: usize) -> Self {
        check_slots(slots);
        Self {
            buffers: vec![[0; DATAGRAM]; slots].into_boxed_slice(),
            departures: vec![Departure { to: nobody(), len: 0 }; slots].into_boxed_slice(),
            scratch: sys::SendScratch::new(slots),
            head: 0,
            count: 0,
            stats: SendStats::default(),
        }
    }

    /// As [`SendBatch::new`], for datagrams most of which have the same destination: neighbours for one destination
    /// and of one length are handed to the kernel as one, which takes them apart again as late as it can (UDP
    /// segmentation offload). Datagrams arrive as without it. Where the kernel cannot, they leave one by one.
    ///
    /// # Panics
    /// If `slots` is 0 or above [`MAX_SLOTS`].
    #[must_use]
    pub fn joining(slots: usize) -> Self {
        Self { scratch: sys::SendScratch::joining(slots), ..Self::new(slots) }
    }

    /// The next free slot, with old bytes in it; `None` when the batch is full. Nothing is queued before
    /// [`commit`](Self::commit).
    pub fn slot(&mut self) -> Option<&mut [u8; DATAGRAM]> {
        let free = self.free_index()?;
        Some(&mut self.buffers[free])
    }

    /// Queues the first `len` bytes of the slot that [`slot`](Self::slot) gave, for `to`.
    ///
    /// # Panics
    /// If the batch is full or `len` is above [`DATAGRAM`]: a mistake of the caller.
    pub fn commit(&mut self, len: usize, to: SocketAddr) {
        assert!(len <= DATAGRAM, "a datagram of {len} bytes cannot lie in a slot");
        let free = self.free_index().expect("commit without a slot");
        self.departures[free] = Departure { to, len };
        self.count += 1;
    }

    /// Unsent datagrams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether no slot is free.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.buffers.len()
    }

    /// Most datagrams that the batch holds.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.buffers.len()
    }

    /// Forgets what was not sent.
    pub fn clear(&mut self) {
        (self.head, self.count) = (0, 0);
    }

    /// Counters since the batch was made.
    #[must_use]
    pub fn stats(&self) -> &SendStats {
        &self.stats
    }

    /// Empties the batch by calls of `send`, which takes datagrams from the front of what it is given and says
    /// how many; see [`crate::UdpSocket::send`].
    pub(crate) fn drain_with(
        &mut self,
        mut send: impl FnMut(&[[u8; DATAGRAM]], &[Departure], &mut sys::SendScratch) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut sent_in_all = 0;
        while self.count > 0 {
            // Up to the end of the ring; what lies at its beginning is the next round's.
            let end = self.buffers.len().min(self.head + self.count);
            let run = self.head..end;
            self.stats.calls += 1;
            match send(&self.buffers[run.clone()], &self.departures[run], &mut self.scratch) {
                Ok(sent) => {
                    assert!(sent <= end - self.head, "the kernel sent more than it was given");
                    let bytes: usize = self.departures[self.head..self.head + sent]
                        .iter()
                        .map(|departure| departure.len)
                        .sum();
                    self.stats.datagrams += sent as u64;
                    self.stats.bytes += bytes as u64;
                    sent_in_all += sent;
                    self.release(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stats.blocked += 1;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if sys::is_about_the_socket(&error) => return Err(error),
                // The error belongs to the first datagram: the kernel stops there and reports what it sent
                // before. The others must not wait for it.
                Err(_) => {
                    self.stats.refused += 1;
                    self.release(1);
                }
            }
        }
        Ok(sent_in_all)
    }

    fn free_index(&self) -> Option<usize> {
        (!self.is_full()).then(|| (self.head + self.count) % self.buffers.len())
    }

    fn release(&mut self, sent: usize) {
        self.count -= sent;
        // An empty ring starts over at the beginning, so that the usual batch is one run.
        self.head = if self.count == 0 { 0 } else { (self.head + sent) % self.buffers.len() };
    }
}

/// Whether a receive error tells of an earlier datagram to some peer rather than of this socket.
fn is_about_a_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, PermissionDenied,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
    )
}

fn check_slots(slots: usize) {
    assert!((1..=MAX_SLOTS).contains(&slots), "a batch has 1 to {MAX_SLOTS} slots, not {slots}");
}

fn nobody() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch_of(numbers: impl IntoIterator<Item = u8>, batch: &mut SendBatch) {
        for number in numbers {
            batch.slot().expect("a free slot")[0] = number;
            batch.commit(1, SocketAddr::from(([127, 0, 0, 1], 1)));
        }
    }

    #[test]
    fn a_full_socket_buffer_keeps_the_rest_in_order() {
        let mut batch = SendBatch::new(4);
        batch_of(0..4, &mut batch);
        assert!(batch.is_full() && batch.slot().is_none());

        let mut answers = [Ok(3), Err(io::ErrorKind::WouldBlock.into())].into_iter();
        let sent = batch.drain_with(|_, _, _| answers.next().expect("no call after WouldBlock")).unwrap();
        assert_eq!((sent, batch.len(), batch.stats().blocked), (3, 1, 1));

        // Three more wrap around the ring; all leave in the order in which they were committed.
        batch_of(4..7, &mut batch);
        let mut order = Vec::new();
        let sent = batch
            .drain_with(|buffers, departures, _| {
                assert_eq!(buffers.len(), departures.len());
                order.extend(buffers.iter().map(|buffer| buffer[0]));
                Ok(buffers.len())
            })
            .unwrap();
        assert_eq!((sent, order), (4, vec![3, 4, 5, 6]));
        assert!(batch.is_empty());
        assert_eq!(batch.stats().datagrams, 7);
    }

    #[test]
    fn an_error_for_one_destination_is_counted_and_the_others_leave() {
        let mut batch = SendBatch::new(8);
        batch_of(0..5, &mut batch);
        let mut order = Vec::new();
        let sent = batch
            .drain_with(|buffers, _, _| match buffers[0][0] {
                1 => Err(io::ErrorKind::ConnectionRefused.into()),
                3 => Err(io::ErrorKind::NetworkUnreachable.into()),
                number => {
                    order.push(number);
                    Ok(1)
                }
            })
            .unwrap();
        assert_eq!((sent, order), (3, vec![0, 2, 4]));
        assert_eq!((batch.len(), batch.stats().refused, batch.stats().blocked), (0, 2, 0));
    }

    #[test]
    fn an_interrupted_call_is_repeated() {
        let mut batch = SendBatch::new(2);
        batch_of(0..1, &mut batch);
        let mut answers = [Err(io::ErrorKind::Interrupted.into()), Ok(1)].into_iter();
        assert_eq!(batch.drain_with(|_, _, _| answers.next().unwrap()).unwrap(), 1);

        let mut batch = RecvBatch::new(2);
        let mut answers =
            [Err(io::ErrorKind::Interrupted.into()), Err(io::ErrorKind::ConnectionRefused.into()), Ok(0)]
                .into_iter();
        assert_eq!(batch.fill_with(|_, _, _| answers.next().unwrap()).unwrap(), 0);
        assert_eq!((batch.stats().peer_errors, batch.stats().calls), (1, 3));
    }

    #[test]
    #[should_panic(expected = "commit without a slot")]
    fn commit_into_a_full_batch_is_a_mistake() {
        let mut batch = SendBatch::new(1);
        batch_of(0..1, &mut batch);
        batch.commit(0, nobody());
    }
}
