//! A chat: what one player says, all players hear. The server is embedded, and two players connect over loopback.
//!
//! `cargo run -p shadowland-server --example chat`

#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use shadowland_client::{Client, Event, Reliable, ServerKey};
use shadowland_proto::Identity;
use shadowland_server::config::Config;
use shadowland_server::game::{Game, GameWorld};
use shadowland_server::mail::{Mail, MailError, Mailbox, Recipient};
use shadowland_server::server::Server;

/// Types of this game's messages: 0x30 to 0x3f from players, 0x60 to 0x7f to them.
const SAY: u8 = 0x30;
const LINE: u8 = 0x60;
/// Chat has a stream of its own, so that it holds up nothing else.
const CHAT: Reliable = Reliable::Ordered(1);

/// The game's side.
struct Chat {
    mailbox: Mailbox,
    players: Vec<Recipient>,
}

impl Game for Chat {
    fn tick(&mut self, _world: &mut GameWorld<'_>) {
        let Self { mailbox, players } = self;
        while let Some(mail) = mailbox.try_next() {
            match mail {
                Mail::Joined(player) => players.push(player),
                Mail::Left(player) => players.retain(|other| *other != player),
                Mail::Message { from, kind: SAY, body } => {
                    // It may be any bytes.
                    let line = format!("{:?}: {}", from.player().entity, String::from_utf8_lossy(&body));
                    for player in &*players {
                        match mailbox.send(player, CHAT, LINE, line.as_bytes()) {
                            Ok(()) | Err(MailError::Gone) => {}
                            // Who reads too slowly misses a line, and nobody else does.
                            Err(error) => println!("{player:?}: {error}"),
                        }
                    }
                }
                Mail::Message { .. } => {}
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.network.listen = "127.0.0.1:0".parse()?;
    let identity = Identity::generate(&mut StdRng::try_from_rng(&mut SysRng)?);
    let game = |mailbox| Chat { mailbox, players: Vec::new() };
    let server = Server::start_with_game(config, identity, game)?;
    let connect = || Client::connect(server.local_addr(), ServerKey(server.public_key()));
    let mut clients = [connect()?, connect()?];

    let (end, mut heard) = (Instant::now() + Duration::from_secs(5), 0);
    // Who comes later than a line does not hear it.
    let (mut in_world, mut has_said) = ([false; 2], [false; 2]);
    while heard < 4 && Instant::now() < end {
        for (number, client) in clients.iter_mut().enumerate() {
            for event in client.update() {
                match event {
                    Event::Welcomed(_) => in_world[number] = true,
                    Event::Message { kind: LINE, body } => {
                        heard += 1;
                        println!("player {number} hears {}", String::from_utf8_lossy(&body));
                    }
                    Event::Disconnected(end) => return Err(end.into()),
                    _ => {}
                }
            }
            if in_world == [true; 2] && !std::mem::replace(&mut has_said[number], true) {
                client.send(CHAT, SAY, format!("greetings from player {number}").as_bytes())?;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
