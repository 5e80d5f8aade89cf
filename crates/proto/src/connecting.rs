//! A client on its way to a session: Connect, cookie, ConnectRequest, acceptance.

use std::sync::Arc;
use std::time::Duration;

use rand::CryptoRng;
use shadowland_wire::PROTOCOL_VERSION;
use shadowland_wire::codec::Writer;
use shadowland_wire::handshake::{
    COOKIE_BYTES, ClientHandshake, DenyReason, Echo, KEY_BYTES, REQUEST_PAYLOAD_BYTES, ServerHandshake,
    echo_of,
};
use shadowland_wire::limits::TOKEN_BYTES;
use thiserror::Error;

use crate::Time;
use crate::connection::{Connection, Role, TransportConfig};
use crate::crypto::entropy::Entropy;
use crate::crypto::handshake::Initiator;
use crate::crypto::identity::Identity;
use crate::crypto::integrity::IntegrityTable;
use crate::drop_reason::DropReason;
use crate::key_log::{KeyLog, SessionKeyLog};

/// First pause before a request is repeated; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A cookie that has brought no session for so long is given up for a new one, well before the 10 s after
/// which the server would refuse it.
const COOKIE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client still listens that was denied for a reason that asking again does not change: the denial is not
/// authenticated, and the answer that is may be under way.
const DENIED_PATIENCE: Duration = Duration::from_secs(1);

/// How a client connects.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    /// When to give up.
    pub timeout: Duration,
    /// The protocol version to claim; anything but [`PROTOCOL_VERSION`] is of use only in tests.
    pub version: u16,
    /// The login token, for a server that asks for one; at most [`TOKEN_BYTES`].
    pub token: Option<Vec<u8>>,
    /// The client's static key, which a login token may be bound to; `None` draws a new one.
    pub identity: Option<Identity>,
    /// The keys of the client's version, for a server that checks them.
    pub integrity: Option<Arc<IntegrityTable>>,
    /// Where the session's keys are logged, if at all.
    pub key_log: Option<Arc<KeyLog>>,
    /// Figures of reliable messages and congestion control.
    pub transport: TransportConfig,
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            version: PROTOCOL_VERSION,
            token: None,
            identity: None,
            integrity: None,
            key_log: None,
            transport: TransportConfig::default(),
        }
    }
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The server's public key is no key that anybody could have.
    #[error("the server's public key is not a valid X25519 key")]
    BadServerKey,
    /// The login token is too long.
    #[error("the login token is longer than {TOKEN_BYTES} bytes")]
    TokenTooLong,
    /// Nothing came back at all.
    #[error("no answer: nothing listens at the server's address, or no packets get through")]
    Unreachable,
    /// The server is there, but has not accepted.
    #[error(
        "the server answers but does not accept: its public key is not the one given, or it is too busy for \
         new players, or packets are lost (a wrong key cannot be told from silence)"
    )]
    NotAccepted,
    /// The server says that it denies. It was asked again until the timeout, unless that could not help.
    #[error("the server denies the connection: {}", deny_text(*.0))]
    Denied(DenyReason),
}

fn deny_text(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::Full => "it is full",
        DenyReason::Version => "it speaks another version of the protocol",
        DenyReason::ShuttingDown => "it is shutting down",
        DenyReason::Token => "the login token is missing, over, used, or not for this client",
        DenyReason::Address => "as many players come from this address as may",
        DenyReason::Other(_) => "for a reason that this version does not know",
    }
}

/// Whether asking again cannot change the answer.
fn is_final(reason: DenyReason) -> bool {
    matches!(reason, DenyReason::Version | DenyReason::Token)
}

/// A client's handshake in progress. Feed it datagrams until it gives a [`Connection`]; it fails only at its
/// timeout, or a second after a denial that is final, since whatever says so before is not authenticated.
pub struct Connecting {
    initiator: Initiator,
    /// For the session to come.
    entropy: Option<Entropy>,
    echo: Echo,
    version: u16,
    stage: Stage,
    /// The request goes out at this time, and again after `pause`.
    send_at: Time,
    pause: Duration,
    give_up_at: Time,
    /// Whether the server has ever answered, and what it said last.
    answered: bool,
    denied: Option<DenyReason>,
    done: bool,
    integrity: Option<Arc<IntegrityTable>>,
    key_log: Option<Arc<KeyLog>>,
    transport: Arc<TransportConfig>,
}

enum Stage {
    /// Asking for a cookie.
    Connect,
    /// Asking for a session.
    Request { cookie: [u8; COOKIE_BYTES], since: Time },
}

impl Connecting {
    /// Starts towards the server that holds the private key of `server_key`.
    pub fn new(
        config: ConnectConfig,
        server_key: [u8; KEY_BYTES],
        rng: &mut dyn CryptoRng,
        now: Time,
    ) -> Result<Self, ConnectError> {
        let token = config.token.as_deref().unwrap_or_default();
        if token.len() > TOKEN_BYTES {
            return Err(ConnectError::TokenTooLong);
        }
        let mut payload = [0; REQUEST_PAYLOAD_BYTES];
        let mut writer = Writer::new(&mut payload);
        writer.length_prefixed(|writer| writer.bytes(token)).map_err(|_| ConnectError::TokenTooLong)?;

        let identity = config.identity.unwrap_or_else(|| Identity::generate(rng));
        // The first Noise message is made before Connect, which shows its ephemeral key.
        let initiator = Initiator::new(&identity, &server_key, writer.written(), rng)
            .map_err(|_| ConnectError::BadServerKey)?;
        Ok(Self {
            echo: echo_of(&initiator.ephemeral()),
            initiator,
            entropy: Some(Entropy::new(rng)),
            version: config.version,
            stage: Stage::Connect,
            send_at: now,
            pause: PAUSE,
            give_up_at: now + config.timeout,
            answered: false,
            denied: None,
            done: false,
            integrity: config.integrity,
            key_log: config.key_log,
            transport: Arc::new(config.transport.within_bounds()),
        })
    }

    /// What every answer to this client repeats, for sockets that several clients share.
    #[must_use]
    pub fn echo(&self) -> Echo {
        self.echo
    }

    /// Takes a datagram. `Ok(Some(..))` is the session, and then this value has done its work.
    pub fn handle(&mut self, now: Time, datagram: &[u8]) -> Result<Option<Connection>, DropReason> {
        if self.done {
            return Err(DropReason::Closed);
        }
        let message = ServerHandshake::decode(datagram).map_err(|_| DropReason::NotProtocol)?;
        let (ServerHandshake::Cookie { echo, .. }
        | ServerHandshake::ConnectionAccepted { echo, .. }
        | ServerHandshake::ConnectionDenied { echo, .. }) = message;
        if echo != self.echo {
            return Err(DropReason::ForeignAnswer);
        }
        match message {
            ServerHandshake::Cookie { cookie, .. } => {
                self.answered = true;
                if matches!(self.stage, Stage::Connect) {
                    self.stage = Stage::Request { cookie, since: now };
                    self.send_at = now;
                    self.pause = PAUSE;
                }
            }
            ServerHandshake::ConnectionDenied { reason, .. } => {
                if self.denied.is_some_and(is_final) {
                    return Ok(None);
                }
                if is_final(reason) {
                    self.give_up_at = self.give_up_at.min(now + DENIED_PATIENCE);
                }
                self.denied = Some(reason);
            }
            ServerHandshake::ConnectionAccepted { noise, .. } => {
                let (acceptance, keys) =
                    self.initiator.finish(noise).map_err(|_| DropReason::HandshakeFailed)?;
                self.done = true;
                let entropy = self.entropy.take().ok_or(DropReason::Closed)?;
                let config = Arc::clone(&self.transport);
                let id = acceptance.connection_id;
                let log = self.key_log.take().map(|log| SessionKeyLog::new(&log, id));
                log.iter().for_each(|log| log.note(0, &keys));
                let mut connection = Connection::new(Role::Client, &acceptance, keys, entropy, config, now);
                if let Some(log) = log {
                    connection.set_key_log(log);
                }
                if let Some(table) = self.integrity.take() {
                    connection.set_integrity_table(table);
                }
                connection.on_timeout(now);
                return Ok(Some(connection));
            }
        }
        Ok(None)
    }

    /// Writes a datagram that must leave now into `buffer`, which must hold 1200 bytes, and returns its length.
    pub fn poll_transmit(&mut self, now: Time, buffer: &mut [u8]) -> Option<usize> {
        if self.done || now < self.send_at || self.denied.is_some_and(is_final) {
            return None;
        }
        if let Stage::Request { since, .. } = self.stage
            && now - since >= COOKIE_PATIENCE
        {
            self.stage = Stage::Connect;
            self.pause = PAUSE;
        }
        let version = self.version;
        let message = match &self.stage {
            Stage::Connect => ClientHandshake::Connect { version, ephemeral: self.initiator.ephemeral() },
            Stage::Request { cookie, .. } => {
                ClientHandshake::ConnectRequest { version, cookie, noise: self.initiator.request() }
            }
        };
        let mut writer = Writer::new(buffer);
        message.encode(&mut writer).ok()?;
        self.send_at = now + self.pause;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        Some(writer.len())
    }

    /// When to call [`Connecting::on_timeout`] and then [`Connecting::poll_transmit`].
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        let send_at = (!self.denied.is_some_and(is_final)).then_some(self.send_at);
        (!self.done).then(|| send_at.map_or(self.give_up_at, |at| at.min(self.give_up_at)))
    }

    /// Fails once the time is up, with the likeliest cause.
    pub fn on_timeout(&mut self, now: Time) -> Result<(), ConnectError> {
        if self.done || now < self.give_up_at {
            return Ok(());
        }
        self.done = true;
        Err(match (self.denied, self.answered) {
            (Some(reason), _) => ConnectError::Denied(reason),
            (None, true) => ConnectError::NotAccepted,
            (None, false) => ConnectError::Unreachable,
        })
    }
}
