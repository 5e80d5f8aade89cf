//! A game: a server with a world in which a vehicle drives round, arrows fly, each player has a companion that nobody else
//! sees, and who says something gets a monster. It runs until Ctrl-C.
//!
//! `cargo run -p shadowland-server --example game`, and in another terminal what it prints.

#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::collections::VecDeque;
use std::error::Error;
use std::sync::mpsc::channel;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use shadowland_proto::Identity;
use shadowland_server::config::Config;
use shadowland_server::game::{EntityId, EntityType, Game, GameWorld, Input, PlayerHandle};
use shadowland_server::mail::{Mail, Mailbox};
use shadowland_server::server::Server;

struct Town {
    mailbox: Mailbox,
    car: Option<EntityId>,
    /// Those that fly, the oldest first, with the ticks in which they are gone.
    arrows: VecDeque<(EntityId, u32)>,
    companions: Vec<(PlayerHandle, EntityId)>,
}

impl Game for Town {
    fn tick(&mut self, world: &mut GameWorld<'_>) {
        let now = world.now();
        if now == 0 {
            self.car = world.spawn(EntityType::Vehicle, [0.0, -3_000.0, 0.0]).ok();
        }
        if let Some(car) = self.car {
            // 1 degree a tick is a turn in 6 s.
            let degrees = f64::from(now % 360);
            let (sin, cos) = degrees.to_radians().sin_cos();
            world.steer(car, [3_000.0 * cos, 3_000.0 * sin, 0.0], [degrees, 0.0, 0.0]);
        }
        // Once a second an arrow flies for two.
        if now.is_multiple_of(60)
            && let Ok(arrow) = world.spawn(EntityType::Projectile, [-5_000.0, 0.0, 200.0])
        {
            world.steer(arrow, [5_000.0, 0.0, 0.0], [0.0; 3]);
            self.arrows.push_back((arrow, now + 120));
        }
        while let Some((arrow, _)) = self.arrows.pop_front_if(|(_, gone_at)| *gone_at <= now) {
            world.despawn(arrow);
        }
        for &(player, companion) in &self.companions {
            if let Some([x, y, z]) = world.position_cm(player.entity) {
                world.teleport(companion, [x - 100.0, y - 100.0, z]);
            }
        }
        while let Some(mail) = self.mailbox.try_next() {
            if let Mail::Message { from, .. } = mail
                && let Some(here) = world.position_cm(from.player().entity)
                && let Ok(monster) = world.spawn(EntityType::Monster, here)
            {
                world.walk(monster, Input { forward: 40, ..Input::default() });
            }
        }
    }

    fn joined(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        world.teleport(player.entity, [0.0; 3]);
        if let Ok(companion) = world.spawn(EntityType::Npc, [0.0; 3]) {
            world.hide(companion, &[player]);
            self.companions.push((player, companion));
        }
    }

    fn left(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        for (_, companion) in self.companions.extract_if(.., |(other, _)| *other == player) {
            world.despawn(companion);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config::default();
    config.network.listen = "127.0.0.1:3565".parse()?;
    let identity = Identity::generate(&mut StdRng::try_from_rng(&mut SysRng)?);
    let game = |mailbox| Town { mailbox, car: None, arrows: VecDeque::new(), companions: Vec::new() };
    let server = Server::start_with_game(config, identity, game)?;
    let key: String = server.public_key().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo run -p shadowland-client --example who_is_in_sight -- {} {key}", server.local_addr());

    let (stop, stopped) = channel();
    ctrlc::set_handler(move || {
        let _ = stop.send(());
    })?;
    while !server.has_failed() && stopped.recv_timeout(Duration::from_secs(1)).is_err() {}
    server.shutdown();
    Ok(())
}
