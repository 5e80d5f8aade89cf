//! Messages of the game's own, between its code and players on real sockets.

mod common;

use std::time::{Duration, Instant};

use common::config;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_client::{Client, Event, Reliable, SendError, ServerKey};
use shadowland_proto::Identity;
use shadowland_server::mail::{Mail, MailError, Mailbox, Recipient};
use shadowland_server::server::Server;

const SAY: u8 = 0x30;
const LINE: u8 = 0x60;
const CHAT: Reliable = Reliable::Ordered(1);
const COMBAT: Reliable = Reliable::Ordered(2);

fn start(workers: usize) -> (Server, Mailbox) {
    let identity = Identity::generate(&mut StdRng::seed_from_u64(7));
    let mut ours = None;
    let server =
        Server::start_with_game(config(workers, 100), identity, |mailbox| ours = Some(mailbox)).unwrap();
    (server, ours.unwrap())
}

fn join(server: &Server) -> Client {
    Client::connect(server.local_addr(), ServerKey(server.public_key())).unwrap()
}

/// Lets time pass until `done`, for twenty seconds at most; returns the messages that the clients got meanwhile.
fn until(
    clients: &mut [Client],
    what: &str,
    mut done: impl FnMut(&mut [Client]) -> bool,
) -> Vec<Vec<Box<[u8]>>> {
    let give_up = Instant::now() + Duration::from_secs(20);
    let mut heard = vec![Vec::new(); clients.len()];
    loop {
        for (client, heard) in clients.iter_mut().zip(&mut heard) {
            for event in client.update() {
                match event {
                    Event::Message { kind, body } => {
                        assert_eq!(kind, LINE);
                        heard.push(body);
                    }
                    Event::Disconnected(end) => panic!("{end}"),
                    Event::Connected | Event::Welcomed(_) => {}
                }
            }
        }
        if done(clients) {
            return heard;
        }
        assert!(Instant::now() < give_up, "not within twenty seconds: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn joined(mailbox: &Mailbox, clients: &mut [Client]) -> Vec<Recipient> {
    let (mut players, count) = (Vec::new(), clients.len());
    until(clients, "all have joined", |_| {
        while let Some(mail) = mailbox.try_next() {
            let Mail::Joined(player) = mail else { panic!("{mail:?}") };
            players.push(player);
        }
        players.len() == count
    });
    players
}

#[test]
fn every_message_arrives_once_and_in_order_on_both_ways() {
    let (server, mailbox) = start(2);
    let mut clients = [join(&server), join(&server), join(&server)];
    let players = joined(&mailbox, &mut clients);
    const COUNT: u32 = 300;

    // From the players, as fast as they are taken.
    let (mut said, mut heard) = ([0; 3], vec![Vec::new(); 3]);
    until(&mut clients, "all was said and heard", |clients| {
        for (client, said) in clients.iter_mut().zip(&mut said) {
            while *said < COUNT && client.send(CHAT, SAY, &said.to_le_bytes()).is_ok() {
                *said += 1;
            }
        }
        while let Some(mail) = mailbox.try_next() {
            let Mail::Message { from, kind: SAY, body } = mail else { panic!("{mail:?}") };
            let player = players.iter().position(|player| *player == from).unwrap();
            heard[player].push(u32::from_le_bytes((*body).try_into().unwrap()));
        }
        heard.iter().all(|heard| heard.len() == COUNT as usize)
    });
    assert!(heard.iter().all(|heard| heard.iter().copied().eq(0..COUNT)));

    // To the players; a large one among them.
    let large = vec![7; 100_000];
    let mut sent = [0; 3];
    let mut lines = vec![Vec::new(); 3];
    let give_up = Instant::now() + Duration::from_secs(20);
    while lines.iter().any(|lines: &Vec<_>| lines.len() < COUNT as usize) {
        for (player, sent) in players.iter().zip(&mut sent) {
            while *sent < COUNT {
                let body = if *sent == 100 { &large[..] } else { &sent.to_le_bytes()[..] };
                match mailbox.send(player, COMBAT, LINE, body) {
                    Ok(()) => *sent += 1,
                    Err(error) => {
                        assert_eq!(error, MailError::Full);
                        break;
                    }
                }
            }
        }
        let more = until(&mut clients, "a look", |_| true);
        lines.iter_mut().zip(more).for_each(|(lines, more)| lines.extend(more));
        std::thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < give_up, "{:?}", lines.iter().map(Vec::len).collect::<Vec<_>>());
    }
    // What is told of a connection is at most a second old.
    until(&mut clients, "figures", |_| {
        players.iter().all(|player| {
            let (stats, path) = player.connection();
            stats.body_bytes_sent[1] > 1_000 && path.rtt > Duration::ZERO
        })
    });
    for lines in lines {
        assert_eq!(lines.len(), COUNT as usize);
        for (number, line) in lines.iter().enumerate() {
            let expected = if number == 100 { &large[..] } else { &(number as u32).to_le_bytes()[..] };
            assert!(**line == *expected, "line {number}");
        }
    }
}

#[test]
fn what_is_said_before_the_player_is_in_the_world_arrives() {
    let (server, mailbox) = start(1);
    for word in 0..20_u8 {
        let mut clients = [join(&server)];
        clients[0].send(CHAT, SAY, &[word]).unwrap();
        let mut heard = None;
        until(&mut clients, "it is heard", |_| {
            while let Some(mail) = mailbox.try_next() {
                if let Mail::Message { body, .. } = mail {
                    heard = Some(body);
                }
            }
            heard.is_some()
        });
        assert_eq!(*heard.unwrap(), [word]);
    }
}

#[test]
fn what_cannot_be_sent_is_refused_by_name_and_who_leaves_is_told() {
    let (server, mailbox) = start(1);
    let mut clients = [join(&server)];
    assert_eq!(clients[0].send(CHAT, 0x20, &[]), Err(SendError::BadType));
    let player = joined(&mailbox, &mut clients).remove(0);
    assert_eq!(mailbox.send(&player, CHAT, 0x41, &[]), Err(MailError::BadType));
    assert_eq!(mailbox.send(&player, CHAT, LINE, &vec![0; 1 << 20]), Err(MailError::TooLarge));

    // Who does not read makes the game wait, and the server no larger.
    let (mut taken, mut taken_at) = (0, Instant::now());
    while taken_at.elapsed() < Duration::from_millis(500) {
        match mailbox.send(&player, CHAT, LINE, &noise(taken)) {
            Ok(()) => (taken, taken_at) = (taken + 1, Instant::now()),
            Err(MailError::Full) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
    // 256 KiB in its connection and 64 KiB before it, in messages of 1000 bytes.
    assert!((300..=340).contains(&taken), "{taken} messages were taken");

    let [client] = clients;
    client.disconnect();
    let give_up = Instant::now() + Duration::from_secs(5);
    let left = loop {
        if let Some(mail) = mailbox.try_next() {
            break mail;
        }
        assert!(Instant::now() < give_up);
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(matches!(left, Mail::Left(other) if other == player));
    assert!(player.is_gone());
    assert_eq!(mailbox.send(&player, CHAT, LINE, &[]), Err(MailError::Gone));
}

/// Bytes without a pattern.
fn noise(seed: u64) -> Vec<u8> {
    use rand::Rng;
    let mut bytes = vec![0; 1_000];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn where_nobody_reads_players_are_refused_and_play_on() {
    let (server, mailbox) = start(1);
    drop(mailbox);
    let mut clients = [join(&server)];
    clients[0].send(CHAT, SAY, b"is anybody there?").unwrap();
    until(&mut clients, "the message was refused", |_| server.stats().sum(|worker| worker.bad_messages) == 1);
}
