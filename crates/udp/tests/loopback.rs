//! The public face, over real sockets on the loopback interface.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use shadowland_udp::{DATAGRAM, Options, RecvBatch, SendBatch, UdpSocket};

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap(), &Options::default()).unwrap()
}

fn commit(batch: &mut SendBatch, bytes: &[u8], to: SocketAddr) {
    batch.slot().expect("a free slot")[..bytes.len()].copy_from_slice(bytes);
    batch.commit(bytes.len(), to);
}

/// Receives until `wanted` datagrams were seen, dropped ones included, and returns those handed out.
fn receive(socket: &UdpSocket, batch: &mut RecvBatch, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let give_up = Instant::now() + Duration::from_secs(5);
    let (mut taken, mut datagrams) = (0, Vec::new());
    while taken < wanted {
        assert!(Instant::now() < give_up, "{taken} of {wanted} datagrams after five seconds");
        taken += socket.recv(batch).unwrap();
        datagrams.extend(batch.iter_mut().map(|(from, bytes)| (from, bytes.to_vec())));
    }
    datagrams
}

#[test]
fn a_batch_goes_round_and_keeps_its_order() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (here, there) = (socket(address), socket(address));
        let to = there.local_addr().unwrap();
        let mut departing = SendBatch::new(64);
        for number in 0..64_u8 {
            commit(&mut departing, &vec![number; 1 + usize::from(number) * 19], to);
        }
        assert!(departing.is_full());
        assert_eq!(here.send(&mut departing).unwrap(), 64);
        assert!(departing.is_empty());
        #[cfg(target_os = "linux")]
        assert_eq!(departing.stats().calls, 1);

        let mut arriving = RecvBatch::new(48);
        let datagrams = receive(&there, &mut arriving, 64);
        for (number, (from, bytes)) in (0..64_u8).zip(&datagrams) {
            assert_eq!(*from, here.local_addr().unwrap());
            assert_eq!(*bytes, vec![number; 1 + usize::from(number) * 19]);
        }
        assert_eq!(there.recv(&mut arriving).unwrap(), 0);
        assert_eq!(arriving.iter_mut().count(), 0, "an empty receive forgets the last batch");
        assert_eq!(arriving.stats().datagrams, 64);
        assert_eq!(arriving.stats().bytes, departing.stats().bytes);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_finds_no_room_in_the_kernel_is_told() {
    let options = Options { recv_buffer_bytes: Some(4 << 10), ..Options::default() };
    let there = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
    assert_eq!(there.kernel_drops().unwrap(), 0);
    let here = socket("127.0.0.1:0");
    let mut departing = SendBatch::new(64);
    for _ in 0..64 {
        commit(&mut departing, &[0; 1_000], there.local_addr().unwrap());
    }
    assert_eq!(here.send(&mut departing).unwrap(), 64);
    let mut arriving = RecvBatch::new(64);
    let arrived = there.recv(&mut arriving).unwrap();
    assert!(arrived < 64);
    assert_eq!(there.kernel_drops().unwrap(), 64 - arrived as u64);
}

#[test]
fn oversized_datagrams_are_dropped_and_counted_and_empty_ones_arrive() {
    let there = socket("127.0.0.1:0");
    let to = there.local_addr().unwrap();
    let plain = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in [DATAGRAM, DATAGRAM + 1, 0, 9000, 7] {
        plain.send_to(&vec![9; len], to).unwrap();
    }
    let mut arriving = RecvBatch::new(8);
    let lengths: Vec<_> = receive(&there, &mut arriving, 5).iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [DATAGRAM, 0, 7]);
    assert_eq!((arriving.stats().datagrams, arriving.stats().oversized), (3, 2));
}

#[test]
fn a_bad_destination_does_not_hold_up_the_others() {
    let (here, there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let to = there.local_addr().unwrap();
    let mut departing = SendBatch::new(8);
    commit(&mut departing, b"a", to);
    commit(&mut departing, b"port zero", "127.0.0.1:0".parse().unwrap());
    commit(&mut departing, b"b", to);
    commit(&mut departing, b"wrong family", "[::1]:9".parse().unwrap());
    commit(&mut departing, b"broadcast without permission", "255.255.255.255:9".parse().unwrap());
    commit(&mut departing, b"c", to);
    assert_eq!(here.send(&mut departing).unwrap(), 3);
    assert_eq!((departing.len(), departing.stats().refused), (0, 3));

    let datagrams = receive(&there, &mut RecvBatch::new(8), 3);
    let bytes: Vec<_> = datagrams.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    assert_eq!(bytes, [b"a", b"b", b"c"]);
}

#[test]
fn a_dual_stack_socket_serves_both_families() {
    let there = socket("[::]:0");
    let port = there.local_addr().unwrap().port();
    for (from, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        let here = socket(from);
        let mut departing = SendBatch::new(1);
        commit(&mut departing, b"question", format!("{to}:{port}").parse().unwrap());
        here.send(&mut departing).unwrap();
        let (peer, _) = receive(&there, &mut RecvBatch::new(4), 1).remove(0);
        commit(&mut departing, b"answer", peer);
        assert_eq!(there.send(&mut departing).unwrap(), 1, "to {peer}");
        assert_eq!(receive(&here, &mut RecvBatch::new(4), 1)[0].1, b"answer");
    }
}

#[test]
fn readiness_is_reported_through_mio() {
    let (here, mut there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut there, Token(7), Interest::READABLE).unwrap();
    let mut departing = SendBatch::new(1);
    commit(&mut departing, b"wake up", there.local_addr().unwrap());
    here.send(&mut departing).unwrap();
    let mut events = Events::with_capacity(4);
    poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
    assert!(events.iter().any(|event| event.token() == Token(7) && event.is_readable()));
    poll.registry().deregister(&mut there).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn buffers_are_asked_for_and_what_was_granted_is_told() {
    let options =
        Options { recv_buffer_bytes: Some(100_000), send_buffer_bytes: Some(50_000), ..Options::default() };
    let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
    assert_eq!(socket.granted_recv_buffer_bytes().unwrap(), 100_000);
    assert_eq!(socket.granted_send_buffer_bytes().unwrap(), 50_000);
}

#[test]
fn an_address_in_use_is_an_error() {
    let first = socket("127.0.0.1:0");
    let again = UdpSocket::bind(first.local_addr().unwrap(), &Options::default());
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

#[cfg(target_os = "linux")]
#[test]
fn datagrams_reach_the_worker_that_owns_their_connection() {
    let options = Options { reuse_port: true, ..Options::default() };
    let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
    let to = first.local_addr().unwrap();
    let second = UdpSocket::bind(to, &options).unwrap();
    first.steer_by_connection_id().unwrap();

    // From many ports, so that the kernel's own hash would spread them at random.
    let mut departing = SendBatch::new(8);
    for _ in 0..32 {
        let here = socket("127.0.0.1:0");
        commit(&mut departing, &[0, 1, 0, 0, 0xaa], to);
        commit(&mut departing, &[1, 0, 0, 0, 0xbb], to);
        here.send(&mut departing).unwrap();
    }
    for (worker, tag, socket) in [(0, 0xaa, &first), (1, 0xbb, &second)] {
        let datagrams = receive(socket, &mut RecvBatch::new(64), 32);
        assert!(datagrams.iter().all(|(_, bytes)| bytes[0] == worker && bytes[4] == tag));
        assert_eq!(datagrams.len(), 32);
    }

    // No session yet, an index without a socket, too short: all go by hash, to both.
    for payload in [&[0, 0, 0, 0, 1][..], &[9, 0, 0, 0], &[1]] {
        for _ in 0..64 {
            let here = socket("127.0.0.1:0");
            commit(&mut departing, payload, to);
            here.send(&mut departing).unwrap();
        }
        let mut batch = RecvBatch::new(128);
        let spread = [&first, &second].map(|socket| {
            socket.recv(&mut batch).unwrap();
            batch.iter_mut().count()
        });
        assert_eq!(spread.iter().sum::<usize>(), 64, "{payload:?}");
        assert!(spread.iter().all(|&count| count > 8), "{payload:?} spread {spread:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn steering_needs_a_shared_address() {
    assert!(socket("127.0.0.1:0").steer_by_connection_id().is_err());
}
