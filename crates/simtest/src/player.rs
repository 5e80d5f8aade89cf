//! A player of the simulation: a real client session behind a bad link, with a will of its own.

use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_client::{Buttons, ConnectConfig, End, Event, Input, IntegrityTable, Session};
use shadowland_proto::{DenyReason, DisconnectReason, DropReason, Time};
use shadowland_wire::codec::Reader;
use shadowland_wire::header::Header;
use shadowland_wire::limits::DATAGRAM_BYTES;

use crate::link::{Conditions, Link};
use crate::spy::{self, Side};
use crate::{TICK_US, Violation};

/// Datagrams of a session whose every byte is compared; of the later ones, one of so many.
const THOROUGH_FIRST: u64 = 32;
const THOROUGH_ONE_OF: u64 = 16;

/// A datagram on its way, with the client's address.
pub type Datagram = (SocketAddr, Vec<u8>);

/// What all players of a run have in common.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The server's public key.
    pub server_key: [u8; 32],
    /// The keys of the players' client version, where the server checks them.
    pub integrity: Option<Arc<IntegrityTable>>,
    /// The idle timeout of both sides, in microseconds.
    pub idle_timeout_us: u64,
    /// How bad the links are.
    pub conditions: Conditions,
    /// Whether they stay, and change their addresses; otherwise they come and go.
    pub steady: bool,
    /// Whether the server has room for all players, however long those who vanished stay.
    pub roomy: bool,
}

/// A player.
pub struct Player {
    setting: Setting,
    index: u16,
    random: Pcg32,
    crypto: StdRng,
    session: Option<Session>,
    sessions: u16,
    address: SocketAddr,
    up: Link<Datagram>,
    down: Link<Datagram>,
    input: Input,
    next_input_us: u64,
    /// When it does something else than walking; without a session, when it connects.
    next_whim_us: u64,
    /// Nothing gets through until then.
    dark_until_us: u64,
    /// The present session may end without anybody's wish: nothing got through for too long.
    may_end: bool,
    /// Plays at the end.
    stays: bool,
    calm: bool,
    still: bool,
    opened: u64,
    moves: u64,
    sent: u64,
    hasher: DefaultHasher,
}

impl Player {
    /// A player who will connect within three seconds.
    #[must_use]
    pub fn new(setting: Setting, index: u16, seed: u64) -> Self {
        let mut random = Pcg32::seed_from_u64(seed);
        let mut link = || Link::new(setting.conditions, Pcg32::seed_from_u64(random.next_u64()));
        let (up, down) = (link(), link());
        let next_whim_us = random.random_range(0..3_000_000);
        Self {
            index,
            crypto: StdRng::seed_from_u64(random.next_u64()),
            session: None,
            sessions: 0,
            address: address(index, 0),
            up,
            down,
            input: Input::default(),
            next_input_us: random.random_range(0..TICK_US),
            next_whim_us,
            dark_until_us: 0,
            may_end: false,
            stays: setting.steady || random.random_bool(0.8),
            setting,
            calm: false,
            still: false,
            opened: 0,
            moves: 0,
            sent: 0,
            hasher: DefaultHasher::new(),
            random,
        }
    }

    /// Its session, if it has one.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Whether it plays at the end.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Datagrams that were sent to and from it.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.sent
    }

    /// Times that its session has moved to another address.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Faults of its links.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.up.faults() + self.down.faults()
    }

    /// Fingerprint of all datagrams that were sent to and from it.
    #[must_use]
    pub fn traffic_hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// When something happens to it.
    #[must_use]
    pub fn next_us(&self) -> u64 {
        let timeout = self.session.as_ref().and_then(Session::next_timeout).map(Time::as_micros);
        let dark = (self.dark_until_us > 0).then_some(self.dark_until_us);
        let links = [self.up.next_arrival_us(), self.down.next_arrival_us()];
        let own = [Some(self.next_input_us), Some(self.next_whim_us), timeout, dark];
        links.into_iter().chain(own).flatten().min().unwrap_or(u64::MAX)
    }

    /// Does what is due, up to the next datagram for the server.
    pub fn act(&mut self, now_us: u64) -> Result<(), Violation> {
        let now = Time::from_micros(now_us);
        if self.dark_until_us > 0 && now_us >= self.dark_until_us {
            self.lighten();
        }
        if now_us >= self.next_whim_us {
            self.follow_whim(now_us)?;
        }
        while let Some((to, mut datagram)) = self.down.receive(now_us) {
            if to == self.address {
                self.read(now, &mut datagram)?;
                self.drain(now_us)?;
            }
        }
        let Some(session) = &mut self.session else {
            self.next_input_us = self.next_input_us.max(now_us + TICK_US);
            return Ok(());
        };
        if session.next_timeout().is_some_and(|at| now >= at) {
            session.on_timeout(now);
        }
        if now_us >= self.next_input_us {
            self.next_input_us += TICK_US;
            if !self.calm && self.random.random_ratio(1, 15) {
                self.input = Input {
                    forward: self.random.random(),
                    right: self.random.random(),
                    yaw: self.random.random(),
                    buttons: Buttons(self.random.random_range(0..8)),
                };
            }
            if !self.still {
                session.input(self.input);
            }
        }
        self.drain(now_us)
    }

    /// The next datagram that arrives at the server.
    pub fn arrival(&mut self, now_us: u64) -> Option<Datagram> {
        self.up.receive(now_us)
    }

    /// The server sent something to this address.
    pub fn deliver(&mut self, now_us: u64, to: SocketAddr, datagram: &[u8]) -> Result<(), Violation> {
        spy::check_sent(Side::Server, true, datagram)?;
        self.note(now_us, datagram);
        self.down.send(now_us, (to, datagram.to_vec()));
        Ok(())
    }

    /// From now on the links are good, and the player stands where it is; it connects if it is to stay, and
    /// leaves otherwise.
    pub fn calm_down(&mut self, now_us: u64) -> Result<(), Violation> {
        self.calm = true;
        self.input = Input::default();
        self.dark_until_us = 0;
        let healed =
            Conditions { loss: 0.0, jitter_us: 0, reorder: 0.0, duplicate: 0.0, ..self.setting.conditions };
        self.setting.conditions = healed;
        self.lighten();
        if !self.stays && self.session.is_some() {
            self.leave(now_us)?;
        }
        self.next_whim_us = if self.session.is_some() || !self.stays { u64::MAX } else { now_us };
        Ok(())
    }

    /// From now on the player does not even say that it stands.
    pub fn stand_still(&mut self) {
        self.still = true;
    }

    fn follow_whim(&mut self, now_us: u64) -> Result<(), Violation> {
        self.next_whim_us =
            if self.calm { u64::MAX } else { now_us + self.random.random_range(800_000..4_000_000) };
        if self.session.is_none() {
            return self.connect(now_us);
        }
        if self.setting.steady {
            self.follow_steady_whim(now_us);
            return Ok(());
        }
        let idle = self.setting.idle_timeout_us;
        match self.random.random_range(0..10) {
            0..2 => self.leave(now_us)?,
            // Gone without a word: the server finds out by itself.
            2 => {
                self.session = None;
                self.next_whim_us = now_us + self.random.random_range(100_000..idle);
            }
            // Nothing gets through, for less than anybody gives up after, or for longer.
            3..5 => self.darken(now_us, 300_000..idle / 2),
            5 => {
                self.may_end = true;
                self.darken(now_us, idle + 500_000..idle + 1_000_000);
            }
            _ => self.input = Input::default(),
        }
        Ok(())
    }

    fn follow_steady_whim(&mut self, now_us: u64) {
        // The cookie binds a handshake to its address, and who is silent gives no bytes to ask it with.
        let plays = self.session.as_ref().is_some_and(|session| session.welcome().is_some());
        match self.random.random_range(0..10) {
            0..4 if plays => {
                self.sessions += 1;
                self.moves += 1;
                self.address = address(self.index, self.sessions);
            }
            4..6 => self.darken(now_us, 50_000..700_000),
            _ => self.input = Input::default(),
        }
    }

    fn connect(&mut self, now_us: u64) -> Result<(), Violation> {
        self.sessions += 1;
        // Sometimes from the same port as before.
        if self.random.random_bool(0.7) {
            self.address = address(self.index, self.sessions);
        }
        self.may_end = self.dark_until_us > 0;
        self.opened = 0;
        let integrity = self.setting.integrity.clone();
        let config = ConnectConfig { integrity, ..ConnectConfig::default() };
        let now = Time::from_micros(now_us);
        let session = Session::new(config, self.setting.server_key, &mut self.crypto, now);
        self.session = Some(session.map_err(|error| Violation(format!("cannot connect: {error}")))?);
        self.drain(now_us)
    }

    fn leave(&mut self, now_us: u64) -> Result<(), Violation> {
        if let Some(session) = &mut self.session {
            session.disconnect(Time::from_micros(now_us));
        }
        self.may_end = true;
        self.drain(now_us)?;
        self.next_whim_us = now_us + self.random.random_range(50_000..1_500_000);
        Ok(())
    }

    fn darken(&mut self, now_us: u64, for_us: std::ops::Range<u64>) {
        // Whoever is not in the world yet has no time to lose.
        self.may_end |= self.session.as_ref().is_some_and(|session| session.welcome().is_none());
        self.dark_until_us = self.dark_until_us.max(now_us + self.random.random_range(for_us));
        // The next whim waits until it is over: two such times together would be too long for the session.
        self.next_whim_us = self.next_whim_us.max(self.dark_until_us + 1_000_000);
        let dark = Conditions { loss: 1.0, ..self.setting.conditions };
        self.up.set_conditions(dark);
        self.down.set_conditions(dark);
    }

    fn lighten(&mut self) {
        self.dark_until_us = 0;
        self.up.set_conditions(self.setting.conditions);
        self.down.set_conditions(self.setting.conditions);
    }

    fn read(&mut self, now: Time, datagram: &mut [u8]) -> Result<(), Violation> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let travelled = datagram.to_vec();
        let id = session.connection_id();
        match session.handle(now, datagram) {
            Ok(()) => {
                self.opened += 1;
                let thorough = self.opened < THOROUGH_FIRST || self.opened.is_multiple_of(THOROUGH_ONE_OF);
                if id.is_none() { Ok(()) } else { spy::check_opened(&travelled, datagram, thorough) }
            }
            // Late, or repeated by the link.
            Err(
                DropReason::Replayed
                | DropReason::BehindWindow
                | DropReason::NotEstablished
                | DropReason::Closed,
            ) => Ok(()),
            // For the session before, at the same address.
            Err(DropReason::NotSealed | DropReason::NotProtocol | DropReason::ForeignAnswer)
                if id != Some(connection_id(&travelled)) =>
            {
                Ok(())
            }
            Err(reason) => Err(Violation(format!("a datagram of the server is dropped: {reason}"))),
        }
    }

    /// Sends what is to be sent, and takes note of what happened.
    fn drain(&mut self, now_us: u64) -> Result<(), Violation> {
        let now = Time::from_micros(now_us);
        let mut buffer = [0; DATAGRAM_BYTES];
        while let Some(session) = &mut self.session
            && let Some(len) = session.poll_transmit(now, &mut buffer)
        {
            let datagram = &buffer[..len];
            spy::check_sent(Side::Client, session.connection_id().is_some(), datagram)?;
            self.note(now_us, datagram);
            self.up.send(now_us, (self.address, datagram.to_vec()));
        }
        while let Some(event) = self.session.as_mut().and_then(Session::poll_event) {
            if let Event::Disconnected(end) = event {
                self.note_end(now_us, end)?;
            }
        }
        Ok(())
    }

    fn note_end(&mut self, now_us: u64, end: End) -> Result<(), Violation> {
        let full = matches!(
            end,
            End::ByServer(DisconnectReason::Full)
                | End::NotConnected(shadowland_client::ConnectError::Denied(DenyReason::Full))
        );
        // Ten seconds without luck: at 20 % loss it happens, and is no mistake.
        let unlucky = matches!(end, End::NotConnected(_));
        let idle = matches!(
            end,
            End::Here(DisconnectReason::IdleTimeout | DisconnectReason::Leaving)
                | End::ByServer(DisconnectReason::IdleTimeout)
        );
        if !(unlucky || full && !self.setting.roomy || idle && self.may_end) {
            return Err(Violation(format!("player {} at {now_us} us: {end}", self.index)));
        }
        self.session = None;
        let pause = if self.calm { 0 } else { self.random.random_range(50_000..1_000_000) };
        self.next_whim_us = if self.calm && !self.stays { u64::MAX } else { now_us + pause };
        Ok(())
    }

    fn note(&mut self, now_us: u64, datagram: &[u8]) {
        self.sent += 1;
        self.hasher.write_u64(now_us);
        // The tag stands for all that was sealed.
        self.hasher.write(&datagram[datagram.len().saturating_sub(16)..]);
    }
}

fn connection_id(datagram: &[u8]) -> u32 {
    Header::decode(&mut Reader::new(datagram)).map_or(0, |header| header.connection_id)
}

/// The address of a player's n-th session.
fn address(index: u16, session: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, index as u8], 10_000 + session))
}
