//! A session over a real socket: what a game uses.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use shadowland_proto::{ConnectConfig, ConnectError, KEY_LOG_VARIABLE, KeyLog, Reliable, SendError, Time};
use shadowland_wire::limits::DATAGRAM_BYTES;
use shadowland_wire::message::client::Input;
use thiserror::Error;

use crate::session::{End, Event, Session};
use crate::view::View;

/// Inputs a second.
const INPUT_HZ: u32 = 60;
/// A game that stalls for longer than so many inputs makes up for no more.
const INPUTS_LATE: u32 = 8;
/// How long connecting sleeps between looks at the socket.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);
/// Datagrams that an update takes at most, so that a flood cannot stall the game.
const DATAGRAMS_PER_UPDATE: usize = 1_024;

/// A server's public key; as text, 64 hexadecimal digits, as the server prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerKey(pub [u8; 32]);

/// Text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a server key is 64 hexadecimal digits, as the server prints them when it starts")]
pub struct NotAKey;

impl FromStr for ServerKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let digits = text.trim().as_bytes();
        let mut key = [0; 32];
        if digits.len() != 2 * key.len() {
            return Err(NotAKey);
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(NotAKey);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(key))
    }
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The server's address is not one.
    #[error("`{address}` is no address to connect to: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What the system says.
        reason: io::Error,
    },
    /// The system gives no socket.
    #[error("no socket to connect from: {0}")]
    Socket(io::Error),
    /// The system gives no randomness for keys.
    #[error("the system has no randomness for keys")]
    Randomness,
    /// There is no session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A player's connection to a server: call [`Client::update`] once a frame.
pub struct Client {
    socket: UdpSocket,
    start: Instant,
    session: Session,
    view: View,
    input: Input,
    next_input: Time,
    events: Vec<Event>,
    buffer: Box<[u8; DATAGRAM_BYTES]>,
}

impl Client {
    /// Connects to a server, which must hold the private key of `server_key`; waits until the server has
    /// accepted, or for ten seconds.
    ///
    /// # Errors
    /// Why there is no connection; a wrong key is told with the other causes that look the same.
    pub fn connect(
        address: impl ToSocketAddrs + fmt::Display,
        server_key: ServerKey,
    ) -> Result<Self, ClientError> {
        Self::connect_with(ConnectConfig::default(), address, server_key)
    }

    /// As [`Client::connect`], with another patience, a login token, or a key of the client's own. Unless the
    /// configuration has a key log, the variable `SHADOWLAND_KEYLOGFILE` may name a file for one, for debugging; a
    /// warning then says so.
    ///
    /// # Errors
    /// Why there is no connection.
    pub fn connect_with(
        mut config: ConnectConfig,
        address: impl ToSocketAddrs + fmt::Display,
        server_key: ServerKey,
    ) -> Result<Self, ClientError> {
        let server = resolve(&address)
            .map_err(|reason| ClientError::Address { address: address.to_string(), reason })?;
        let socket = open_socket(server).map_err(ClientError::Socket)?;
        config.key_log = config.key_log.or_else(key_log_from_environment);
        let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(|_| ClientError::Randomness)?;
        let start = Instant::now();
        let session = Session::new(config, server_key.0, &mut rng, Time::default())?;
        let mut client = Self {
            socket,
            start,
            session,
            view: View::new(),
            input: Input::default(),
            next_input: Time::default(),
            events: Vec::new(),
            buffer: Box::new([0; DATAGRAM_BYTES]),
        };
        // Those events that come with the connection are left for the first update.
        while client.session.connection_id().is_none() {
            client.exchange();
            if let Some(Event::Disconnected(End::NotConnected(error))) = client.events.first() {
                return Err((*error).into());
            }
            std::thread::sleep(CONNECT_PAUSE);
        }
        Ok(client)
    }

    /// Receives, moves the view on to now, sends what is due, and tells what happened since the last update.
    pub fn update(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.exchange();
        self.events.drain(..)
    }

    /// What the player wants from now on; the server is told 60 times a second.
    pub fn set_input(&mut self, input: Input) {
        self.input = input;
    }

    /// Sends a message of the game's own, such as a line of chat; the answer comes as [`Event::Message`].
    ///
    /// # Errors
    /// Why it was not taken, as of [`Session::send`].
    pub fn send(&mut self, way: Reliable, kind: u8, body: &[u8]) -> Result<(), SendError> {
        self.session.send(way, kind, body)
    }

    /// What to show.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The session, for its counters, the round-trip time and the quantized state.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Leaves the server, which is told three times at once.
    pub fn disconnect(mut self) {
        let now = self.now();
        self.session.disconnect(now);
        self.transmit(now);
    }

    fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn exchange(&mut self) {
        self.receive();
        let now = self.now();
        if self.session.next_timeout().is_some_and(|due| now >= due) {
            self.session.on_timeout(now);
        }
        self.make_inputs(now);
        self.transmit(now);
        while let Some(event) = self.session.poll_event() {
            if let Event::Welcomed(welcome) = &event {
                self.view.welcomed(welcome);
                self.next_input = now;
            }
            self.events.push(event);
        }
        self.view.advance(now);
    }

    fn receive(&mut self) {
        for _ in 0..DATAGRAMS_PER_UPDATE {
            // An error is about a datagram that was sent before; whether the server is there, time will tell.
            let Ok(length) = self.socket.recv(&mut self.buffer[..]) else { return };
            let now = self.now();
            // What is dropped is counted by the connection.
            let _ = self.session.handle_watched(now, &mut self.buffer[..length], &mut self.view);
            self.view.snapshot_arrived(now, self.session.replica());
        }
    }

    fn make_inputs(&mut self, now: Time) {
        let period = Duration::from_secs(1) / INPUT_HZ;
        if self.session.welcome().is_none() || now - self.next_input > period * INPUTS_LATE {
            self.next_input = now;
        }
        while now >= self.next_input {
            self.session.input(self.input);
            self.next_input = self.next_input + period;
        }
    }

    fn transmit(&mut self, now: Time) {
        while let Some(length) = self.session.poll_transmit(now, &mut self.buffer[..]) {
            // A datagram that the system does not take is as good as lost, and loss is provided for.
            let _ = self.socket.send(&self.buffer[..length]);
        }
    }
}

/// The key log that the environment asks for. Without one that can be written to, a game is played all the same.
fn key_log_from_environment() -> Option<Arc<KeyLog>> {
    let path = std::env::var_os(KEY_LOG_VARIABLE).filter(|path| !path.is_empty())?;
    let file = Path::new(&path).display();
    match KeyLog::append(Path::new(&path)) {
        Ok(log) => {
            tracing::warn!(%file, "session keys are logged ({KEY_LOG_VARIABLE}): whoever reads this file can decrypt \
                the sessions");
            Some(Arc::new(log))
        }
        Err(error) => {
            tracing::warn!(%file, %error, "session keys cannot be logged ({KEY_LOG_VARIABLE})");
            None
        }
    }
}

fn resolve(address: &impl ToSocketAddrs) -> io::Result<SocketAddr> {
    address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))
}

fn open_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_64_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        let key: ServerKey = format!(" {text}\n").parse().unwrap();
        assert_eq!(key.0[..4], [0, 255, 0, 255]);
        for bad in ["", "00ff", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<ServerKey>(), Err(NotAKey), "{bad}");
        }
    }

    #[test]
    fn nobody_there_is_a_clear_error() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = ConnectConfig { timeout: Duration::from_millis(50), ..ConnectConfig::default() };
        let address = silent.local_addr().unwrap();
        let error = Client::connect_with(config, address, ServerKey([9; 32])).err().unwrap();
        assert!(error.to_string().starts_with("no answer"), "{error}");
        let error = Client::connect("not an address", ServerKey([9; 32])).err().unwrap();
        assert!(matches!(error, ClientError::Address { .. }), "{error}");
    }
}
