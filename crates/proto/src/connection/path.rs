//! Which address a session's packets go to, and how it moves to another one.
//!
//! A player's address changes in mid-session: a mobile network, a router that gives out another port. The server
//! sees it when the newest packet comes from elsewhere; but anybody on the way could have sent a copy of it from
//! anywhere. So it asks the new address for a proof: eight random bytes, which must come back sealed and from
//! there. Until then everything goes on to the old address, and the new one gets no more bytes than came from it.

use std::net::SocketAddr;
use std::time::Duration;

use shadowland_wire::limits::PATH_TOKEN_BYTES;
use shadowland_wire::message::control::Control;

use super::flow::Flow;
use super::rtt::Rtt;
use super::{Connection, PacketBuilder, State};
use crate::Time;

/// How long a new address has for its proof, in PTO. Then another one may be tried: whoever moves on before the proof
/// is done must not wait for long.
const PATIENCE_PTO: u32 = 3;
/// The same at least, while no round trip has been measured.
const PATIENCE_UNMEASURED: Duration = Duration::from_secs(1);
/// How many addresses besides the first may claim to be the client's before the keys are confirmed.
const CLAIMS_MAX: usize = 4;
/// Bytes of the largest packet with nothing but a challenge: header, acknowledgements, message, tag.
const CHALLENGE_BYTES: usize = 14 + 13 + 2 + PATH_TOKEN_BYTES + 16;

/// The address of the peer, on the server's side; a client has its socket for that.
#[derive(Debug, Default)]
pub(super) struct Paths {
    validated: Option<SocketAddr>,
    /// Other addresses that have brought the same request with a cookie of theirs, until the keys are confirmed.
    claimed: Vec<SocketAddr>,
    /// One at a time, so that nobody can make the server ask many.
    candidate: Option<Box<Candidate>>,
    /// What the packet that is being taken has answered.
    answered: Option<[u8; PATH_TOKEN_BYTES]>,
}

#[derive(Debug)]
struct Candidate {
    address: SocketAddr,
    token: [u8; PATH_TOKEN_BYTES],
    received_bytes: usize,
    sent_bytes: usize,
    ask_at: Time,
    give_up_at: Time,
}

impl Candidate {
    /// Whether another challenge is no more than what came from it.
    fn may_be_asked(&self) -> bool {
        self.sent_bytes + CHALLENGE_BYTES <= self.received_bytes
    }
}

impl Paths {
    /// The next time at which something is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.candidate.as_ref().map(|candidate| {
            // While it may get no more bytes there is nothing to wake up for but the end of patience.
            let ask_at = candidate.may_be_asked().then_some(candidate.ask_at);
            ask_at.unwrap_or(candidate.give_up_at).min(candidate.give_up_at)
        })
    }

    /// Gives up on an address that did not answer.
    pub(super) fn on_timeout(&mut self, now: Time) {
        self.candidate.take_if(|candidate| now >= candidate.give_up_at);
    }

    /// The first packet has opened. Of the addresses with a cookie, the one that it came from is the client's.
    pub(super) fn confirmed_from(&mut self, from: SocketAddr) {
        if std::mem::take(&mut self.claimed).contains(&from) {
            self.validated = Some(from);
        }
    }

    /// What an earlier packet answered proves nothing about where the next one comes from.
    pub(super) fn begin_packet(&mut self) {
        self.answered = None;
    }

    /// The packet that is being taken carries a PathResponse.
    pub(super) fn response(&mut self, token: [u8; PATH_TOKEN_BYTES]) {
        self.answered = Some(token);
    }
}

impl Connection {
    /// Where the peer's packets go; `None` at a client, whose socket knows.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.paths.validated
    }

    pub(crate) fn set_address(&mut self, address: SocketAddr) {
        self.paths.validated = Some(address);
    }

    /// The request that this session came of has come from `address` too, with a cookie.
    pub(crate) fn may_be_at(&mut self, address: SocketAddr) {
        let Paths { validated, claimed, .. } = &mut self.paths;
        let known = *validated == Some(address) || claimed.contains(&address);
        if !self.confirmed && !known && claimed.len() < CLAIMS_MAX {
            claimed.push(address);
        }
    }

    /// A packet has opened that came from `from`. `newest`: none with a higher sequence has.
    #[inline]
    pub(super) fn arrived(&mut self, now: Time, from: SocketAddr, bytes: usize, newest: bool) {
        let answered = self.paths.answered.take();
        if self.paths.validated == Some(from) {
            return;
        }
        self.arrived_from_elsewhere(now, from, bytes, newest, answered);
    }

    fn arrived_from_elsewhere(
        &mut self,
        now: Time,
        from: SocketAddr,
        bytes: usize,
        newest: bool,
        answered: Option<[u8; PATH_TOKEN_BYTES]>,
    ) {
        let mut patience = PATIENCE_PTO * self.rtt.timeout(&self.config, 0);
        if self.rtt.smoothed().is_zero() {
            patience = patience.max(PATIENCE_UNMEASURED);
        }
        match &mut self.paths.candidate {
            Some(candidate) if candidate.address == from => {
                candidate.received_bytes += bytes;
                if answered == Some(candidate.token) {
                    self.paths.candidate = None;
                    self.paths.validated = Some(from);
                    self.stats.migrations += 1;
                    // Nothing that was measured is true of another path.
                    self.rtt = Rtt::default();
                    self.flow = Flow::new(&self.config, now);
                }
            }
            None if newest && self.state == State::Established => {
                let mut token = [0; PATH_TOKEN_BYTES];
                token.copy_from_slice(&self.keys.draw()[..PATH_TOKEN_BYTES]);
                self.paths.candidate = Some(Box::new(Candidate {
                    address: from,
                    token,
                    received_bytes: bytes,
                    sent_bytes: 0,
                    ask_at: now,
                    give_up_at: now + patience,
                }));
            }
            _ => {}
        }
    }

    /// Writes a packet that must leave now for an address that is not proved yet into `buffer`, which must hold
    /// 1200 bytes; returns its length and the address. To be called with [`Connection::poll_transmit`].
    pub fn poll_probe(&mut self, now: Time, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let pause = self.rtt.timeout(&self.config, 0);
        let candidate = self.paths.candidate.as_mut()?;
        if now < candidate.ask_at || !candidate.may_be_asked() || self.state != State::Established {
            return None;
        }
        candidate.ask_at = now + pause;
        let (token, address) = (candidate.token, candidate.address);
        let len = PacketBuilder::bare(self, now, buffer, Control::PathChallenge { token })?.len;
        debug_assert!(len <= CHALLENGE_BYTES);
        self.paths.candidate.as_mut()?.sent_bytes += len;
        Some((len, address))
    }
}

const _: () = {
    // The bound above is that of the parts.
    assert!(
        CHALLENGE_BYTES
            == shadowland_wire::header::HEADER_BYTES + 13 + 10 + shadowland_wire::limits::TAG_BYTES
    );
};
