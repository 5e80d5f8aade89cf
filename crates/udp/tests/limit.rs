//! The limit on open files, in a process of its own: it is changed for good.
#![cfg(target_os = "linux")]

use std::net::UdpSocket;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shadowland_udp::room_for_sockets;

#[test]
fn the_soft_limit_is_raised_as_far_as_the_hard_one_allows() {
    let set = |current, maximum| {
        let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
        setrlimit(Resource::Nofile, limit).unwrap();
    };
    set(64, 256);
    let room = room_for_sockets(10);
    assert!((10..64).contains(&room), "room for {room}");
    assert_eq!(getrlimit(Resource::Nofile).current, Some(64), "there was no need to raise it");

    assert!(room_for_sockets(100) >= 100);
    let raised = getrlimit(Resource::Nofile).current.unwrap();
    assert!((100..256).contains(&raised), "no farther than needed: {raised}");

    let room = room_for_sockets(1_000);
    assert_eq!(getrlimit(Resource::Nofile).current, Some(256));
    assert!((200..256).contains(&room), "room for {room}");
    let open: Vec<_> = (0..room).map_while(|_| UdpSocket::bind("127.0.0.1:0").ok()).collect();
    // The count of what was open has counted itself.
    assert!((room..=room + 1).contains(&open.len()), "{} of {room}", open.len());
}
