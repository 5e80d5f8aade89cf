//! Which address a session's packets go to, and how it moves to another one.
//!
//! A player's address changes in mid-session: a mobile network, a router that gives out another port. The server
//! sees it when the newest packet comes from elsewhere; but anybody on the way could have sent a copy of it from
//! anywhere. So it asks the new address for a proof: eight random bytes, which must come back sealed and from
//! there. Until then everything goes on to the old address, and the new one gets no more bytes than came from it.
//!
//! Somebody on the way who is faster than the player can hand the question to the player and the player's answer to the
//! server, from an address of its own. So the old address is asked too, with eight other bytes, until some time after
//! the move: only a player who is still there can know them. If they come back, from wherever, the session stays at
//! the old address, or returns to it (RFC 9000, 9.3.3). Until that is settled no other address is asked: a challenge that
//! gave way to a newer one could be made to, by one packet of the player's that is let through.

use std::mem::offset_of;
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
/// After the old address has answered nobody is believed to have moved for so long.
const SETTLED: Duration = Duration::from_secs(3);
/// How many addresses besides the first may claim to be the client's before the keys are confirmed.
const CLAIMS_MAX: usize = 4;
/// Bytes of the largest packet with nothing but a challenge: header, acknowledgements, message, tag.
const CHALLENGE_BYTES: usize = 14 + 13 + 2 + PATH_TOKEN_BYTES + 16;

/// The address of the peer, on the server's side; a client has its socket for that.
///
/// What every packet needs comes first.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Paths {
    validated: Option<SocketAddr>,
    /// One at a time, so that nobody can make the server ask many.
    candidate: Option<Box<Candidate>>,
    /// Where the peer was before it seemed to move.
    old: Option<Box<Old>>,
    /// Whether the packet that is being taken has answered something.
    has_answered: bool,
    /// What it has answered then.
    answered: PathTokens,
    /// Other addresses that have brought the same request with a cookie of theirs, until the keys are confirmed.
    claimed: Vec<SocketAddr>,
    /// Until then the peer stays where it is.
    settled_until: Time,
}

/// Tokens that are to be answered, or were: of the new address, and of the old one.
pub(super) type PathTokens = [Option<[u8; PATH_TOKEN_BYTES]>; 2];

/// Adds a token; of more than two the first ones give way.
pub(super) fn add_token(tokens: &mut PathTokens, token: [u8; PATH_TOKEN_BYTES]) {
    if !tokens.contains(&Some(token)) {
        *tokens = [tokens[1], Some(token)];
    }
}

#[derive(Debug)]
struct Candidate {
    address: SocketAddr,
    token: [u8; PATH_TOKEN_BYTES],
    /// Of the address that it would take the place of, while that is not asked because an older one still is.
    token_of_old: Option<[u8; PATH_TOKEN_BYTES]>,
    received_bytes: usize,
    sent_bytes: usize,
    ask_at: Time,
    give_up_at: Time,
}

impl Candidate {
    /// Whether another challenge is no more than what came from it.
    fn may_be_asked(&self) -> bool {
        self.token_of_old.is_none() && self.sent_bytes + CHALLENGE_BYTES <= self.received_bytes
    }
}

#[derive(Debug)]
struct Old {
    address: SocketAddr,
    token: [u8; PATH_TOKEN_BYTES],
    ask_at: Time,
    /// Then it is clear that the peer is not there any more.
    give_up_at: Time,
}

impl Paths {
    /// What every packet needs comes first, in one line of the cache.
    pub(super) const HEAD_BYTES: usize = offset_of!(Self, answered);

    /// The next time at which something is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        let candidate = self.candidate.as_ref().map(|candidate| {
            // While it may get no more bytes there is nothing to wake up for but the end of patience.
            let ask_at = candidate.may_be_asked().then_some(candidate.ask_at);
            ask_at.unwrap_or(candidate.give_up_at).min(candidate.give_up_at)
        });
        let old = self.old.as_ref().map(|old| old.ask_at.min(old.give_up_at));
        candidate.into_iter().chain(old).min()
    }

    /// The first packet has opened. Of the addresses with a cookie, the one that it came from is the client's.
    pub(super) fn confirmed_from(&mut self, from: SocketAddr) {
        if std::mem::take(&mut self.claimed).contains(&from) {
            self.validated = Some(from);
        }
    }

    /// What an earlier packet answered proves nothing about where the next one comes from.
    #[inline]
    pub(super) fn begin_packet(&mut self) {
        self.has_answered = false;
    }

    /// The packet that is being taken carries a PathResponse.
    pub(super) fn response(&mut self, token: [u8; PATH_TOKEN_BYTES]) {
        if !std::mem::replace(&mut self.has_answered, true) {
            self.answered = PathTokens::default();
        }
        add_token(&mut self.answered, token);
    }
}

impl Connection {
    /// Where the peer's packets go; `None` at a client, whose socket knows.
    #[must_use]
    #[inline]
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
        if self.paths.has_answered {
            self.rouse();
            self.answered(now, from);
        }
        if self.paths.validated != Some(from) {
            self.rouse();
            self.arrived_from_elsewhere(now, from, bytes, newest);
        }
    }

    /// The packet has brought answers to challenges.
    fn answered(&mut self, now: Time, from: SocketAddr) {
        let answers = self.paths.answered;
        if let Some(old) = self.paths.old.take_if(|old| answers.contains(&Some(old.token))) {
            self.paths.candidate = None;
            self.paths.settled_until = now + SETTLED;
            self.stats.moves_refused += 1;
            self.move_to(now, old.address);
            return;
        }
        let proved = |candidate: &mut Box<Candidate>| {
            candidate.address == from && answers.contains(&Some(candidate.token))
        };
        if self.paths.candidate.take_if(proved).is_some() {
            let patience = self.patience();
            if let Some(old) = &mut self.paths.old {
                old.give_up_at = now + patience;
            }
            self.stats.migrations += 1;
            self.move_to(now, from);
        }
    }

    fn move_to(&mut self, now: Time, address: SocketAddr) {
        if self.paths.validated.replace(address) != Some(address) {
            // Nothing that was measured is true of another path.
            self.rtt = Rtt::default();
            self.flow = Flow::new(&self.config, now);
        }
    }

    fn patience(&self) -> Duration {
        let patience = PATIENCE_PTO * self.rtt.timeout(&self.config, 0);
        if self.rtt.smoothed().is_zero() { patience.max(PATIENCE_UNMEASURED) } else { patience }
    }

    fn arrived_from_elsewhere(&mut self, now: Time, from: SocketAddr, bytes: usize, newest: bool) {
        if let Some(candidate) = &mut self.paths.candidate
            && (candidate.address == from || candidate.token_of_old.is_none())
        {
            if candidate.address == from {
                candidate.received_bytes += bytes;
            }
            return;
        }
        if !newest || self.state != State::Established || now < self.paths.settled_until {
            return;
        }
        let mut tokens = [[0; PATH_TOKEN_BYTES]; 2];
        tokens.as_flattened_mut().copy_from_slice(&self.keys.draw()[..2 * PATH_TOKEN_BYTES]);
        // Of those that have to wait for the old address the newest stays: whoever moves on is not there any more. When
        // the old one is given up, the timeout that is due then has it asked.
        let begin_at = self.paths.old.as_ref().map_or(now, |old| old.give_up_at);
        self.paths.candidate = Some(Box::new(Candidate {
            address: from,
            token: tokens[0],
            token_of_old: Some(tokens[1]),
            received_bytes: bytes,
            sent_bytes: 0,
            ask_at: begin_at,
            give_up_at: begin_at + self.patience(),
        }));
        self.paths_on_timeout(now);
    }

    /// Gives up on addresses that did not answer, and begins to ask the one that had to wait for that.
    pub(super) fn paths_on_timeout(&mut self, now: Time) {
        if self.paths.candidate.is_none() && self.paths.old.is_none() {
            return;
        }
        let give_up_at = now + self.patience();
        let Paths { validated, candidate, old, .. } = &mut self.paths;
        candidate.take_if(|candidate| now >= candidate.give_up_at);
        old.take_if(|old| now >= old.give_up_at);
        if let (None, Some(address), Some(candidate)) = (&old, *validated, candidate)
            && let Some(token) = candidate.token_of_old.take()
        {
            (candidate.ask_at, candidate.give_up_at) = (now, give_up_at);
            *old = Some(Box::new(Old { address, token, ask_at: now, give_up_at }));
        }
    }

    /// Writes a packet that must leave now for an address that is not proved yet, or not any more, into `buffer`, which
    /// must hold 1200 bytes; returns its length and the address. To be called with [`Connection::poll_transmit`].
    #[inline]
    pub fn poll_probe(&mut self, now: Time, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        if self.paths.candidate.is_none() && self.paths.old.is_none() {
            return None;
        }
        self.probe(now, buffer)
    }

    fn probe(&mut self, now: Time, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        if self.state != State::Established {
            return None;
        }
        let ask_again_at = now + self.rtt.timeout(&self.config, 0);
        if let Some(candidate) = self.paths.candidate.as_mut()
            && now >= candidate.ask_at
            && candidate.may_be_asked()
        {
            candidate.ask_at = ask_again_at;
            let (token, address) = (candidate.token, candidate.address);
            let len = PacketBuilder::bare(self, now, buffer, Control::PathChallenge { token })?.len;
            debug_assert!(len <= CHALLENGE_BYTES);
            self.paths.candidate.as_mut()?.sent_bytes += len;
            return Some((len, address));
        }
        let old = self.paths.old.as_mut().filter(|old| now >= old.ask_at)?;
        old.ask_at = ask_again_at;
        let (token, address) = (old.token, old.address);
        let len = PacketBuilder::bare(self, now, buffer, Control::PathChallenge { token })?.len;
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
