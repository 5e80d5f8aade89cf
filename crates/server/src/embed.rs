//! The parts of a server that are neither socket nor thread nor clock, for those who bring their own: simulations
//! under virtual time, benchmarks, and the threads of [`crate::server`], which are built of the same parts.
//!
//! ```text
//! datagrams ──▶ Hub::receive ──▶ queues ──▶ WorldSide::tick ──▶ WorldSide::publish ──▶ frame
//! outbox    ◀── Hub::serve_next ◀── Hub::start_round ◀───────────────────────────────────┘
//! ```
//!
//! Bytes, time and randomness are arguments. With the same ones, everything goes the same way.

use std::sync::Arc;
use std::time::Duration;

use rand::CryptoRng;
use shadowland_proto::{
    AddressLimit, Endpoint, EndpointConfig, HeldLimit, Identity, IntegrityChecks, IntegrityTables, KeyLog,
    Playing, Rate, SESSIONS_MAX, SessionParameters, TokenVerifier, TransportConfig,
};
use zeroize::Zeroizing;

use crate::config::{Auth, Config, TICK_HZ};
use crate::hub::OWN_BYTES;
use crate::mail::{Mailbox, mailbox};
use crate::queue::queues;
use crate::tokens::Accounts;

pub use crate::hub::{Hub, Inbox, Outbox};
pub use crate::world_side::WorldSide;

/// A server, connected inside and at rest.
pub struct Assembly {
    /// One hub per worker. The low byte of a connection id is the index of its hub; what has no connection id may
    /// go to any of them.
    pub hubs: Vec<Hub>,
    /// The world that all hubs serve.
    pub world: WorldSide,
    /// The game's own messages to and from players. Dropped, such messages of players are refused.
    pub mailbox: Mailbox,
}

/// What a server needs besides its configuration and its key pair: the contents of files that the configuration names.
#[derive(Debug, Clone, Default)]
pub struct Guards {
    /// Who checks login tokens, where `security.auth` asks for them.
    pub tokens: Option<Arc<TokenVerifier>>,
    /// The keys of client versions, where `security.integrity` checks them.
    pub integrity: Option<Arc<IntegrityTables>>,
    /// Where the keys of sessions are logged, if at all.
    pub key_log: Option<Arc<KeyLog>>,
}

/// Assembles a server with so many workers, at most 64. `rng` is where all randomness of its handshakes comes
/// from.
///
/// # Panics
/// When the configuration is none that [`crate::config`] accepts, or asks for guards ([`assemble_guarded`]).
pub fn assemble(config: &Config, workers: usize, identity: &Identity, rng: &mut dyn CryptoRng) -> Assembly {
    assemble_guarded(config, workers, identity, &Guards::default(), rng)
}

/// As [`assemble`], for a server that asks for login tokens or checks the integrity of clients: what stands in the
/// configuration is only where the keys for that are.
///
/// # Panics
/// When the configuration is none that [`crate::config`] accepts, or when it asks for a guard that is not there, or
/// the other way round.
pub fn assemble_guarded(
    config: &Config,
    workers: usize,
    identity: &Identity,
    guards: &Guards,
    rng: &mut dyn CryptoRng,
) -> Assembly {
    let guarded = matches!(config.security.auth, Auth::Token { .. });
    assert_eq!(
        guarded,
        guards.tokens.is_some(),
        "security.auth = \"token\" and a verifier of tokens go together"
    );
    let checks = config.security.integrity.as_ref().map(|integrity| integrity.interval);
    assert_eq!(
        checks.is_some(),
        guards.integrity.is_some(),
        "security.integrity and tables of keys go together"
    );
    let integrity =
        checks.zip(guards.integrity.clone()).map(|(interval, tables)| IntegrityChecks { tables, interval });
    let accounts = Accounts::new(workers);
    let addresses = AddressLimit::new(config.security.sessions_per_address);
    let addresses =
        Arc::new(if config.security.limit_loopback { addresses.with_loopback() } else { addresses });
    let held = Arc::new(HeldLimit::new(config.held_bytes, sessions_of(config)));
    let mut cookie_master = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *cookie_master);
    let (mailbox, posts) = mailbox(workers, config.transport.message_bytes);
    let mut to_workers = Vec::new();
    let hubs = posts
        .into_iter()
        .enumerate()
        .map(|(worker, post)| {
            let (worker_queues, world_queues) = queues(config.session.max_players, post);
            to_workers.push(world_queues);
            let endpoint_config = EndpointConfig {
                tokens: guards.tokens.clone(),
                playing: guards.tokens.as_ref().map(|_| Arc::clone(&accounts) as Arc<dyn Playing>),
                integrity: integrity.clone(),
                key_log: guards.key_log.clone(),
                addresses: Arc::clone(&addresses),
                held: Arc::clone(&held),
                ..endpoint_config(config, worker)
            };
            let endpoint = Endpoint::new(endpoint_config, identity.clone(), &cookie_master, rng);
            Hub::new(config, endpoint, worker_queues, worker, Arc::clone(&accounts))
        })
        .collect();
    Assembly { hubs, world: WorldSide::new(config.world.clone(), to_workers), mailbox }
}

fn endpoint_config(config: &Config, worker: usize) -> EndpointConfig {
    let default = EndpointConfig::default();
    EndpointConfig {
        worker: u8::try_from(worker).expect("there are at most 64 workers"),
        max_sessions: sessions_of(config).min(SESSIONS_MAX),
        parameters: SessionParameters {
            tick_rate_hz: TICK_HZ as u16,
            idle_timeout_ms: u32::try_from(config.session.idle_timeout.as_millis()).unwrap_or(u32::MAX),
            ..SessionParameters::default()
        },
        transport: TransportConfig {
            // A packet leaves when it is the player's turn, and some of the ticks are late.
            burst: Duration::from_micros(1_250_000 / u64::from(config.session.send_hz)),
            budget_floor_bytes: OWN_BYTES,
            ..config.transport.clone()
        },
        limits_loopback: config.security.limit_loopback,
        network_rate: Rate {
            per_second: config.security.network_logins_per_s,
            burst: config.security.network_logins_per_s.saturating_mul(4),
        },
        handshake_rate: Rate { per_second: config.security.logins_per_s, ..default.handshake_rate },
        max_half_open_of_network: config.security.network_half_open,
        rekey: config.security.rekey,
        client_bytes_per_s: config.security.client_bytes_per_s,
        ..default
    }
}

/// Some more than play: half-open sessions, and those that say goodbye.
fn sessions_of(config: &Config) -> usize {
    config.session.max_players + 1_024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Consequence, IntegrityConfig};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    #[should_panic(expected = "a verifier of tokens go together")]
    fn a_configuration_that_asks_for_tokens_never_makes_an_open_server() {
        let mut config = Config::default();
        config.security.auth = Auth::Token { keys: "token_keys".into() };
        let mut rng = StdRng::seed_from_u64(1);
        let identity = Identity::generate(&mut rng);
        assemble(&config, 1, &identity, &mut rng);
    }

    #[test]
    #[should_panic(expected = "tables of keys go together")]
    fn nor_does_one_that_checks_integrity_make_a_server_that_does_not() {
        let mut config = Config::default();
        config.security.integrity = Some(IntegrityConfig {
            tables: "tables".into(),
            interval: Duration::from_secs(60),
            consequence: Consequence::Log,
        });
        let mut rng = StdRng::seed_from_u64(1);
        let identity = Identity::generate(&mut rng);
        assemble(&config, 1, &identity, &mut rng);
    }
}
