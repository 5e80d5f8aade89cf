//! Which keys open what arrives, and when new ones take over.
//!
//! ```text
//!  server                                                client
//!    | due: fresh key pair                                 |
//!    |  RekeyRequest (number, share)  ------------------>  | fresh key pair; installs the next receiving key
//!    |  <-----------------  RekeyResponse (number, share)  | still sealed with the old key
//!    | installs the next receiving key, seals with         |
//!    | the next key from here on                           |
//!    |  any packet of the next phase  ------------------>  | opens: seals with the next key from here on
//!    |  <-----------------  any packet of the next phase   |
//!    | opens: done; the next rekey after 3 PTO at the      |
//!    | earliest, so that a phase bit is never ambiguous    |
//! ```
//!
//! Both keep the old receiving key for 3 PTO after the first packet of the next phase has opened, for packets with
//! lower sequences only. The next and the previous key have the same phase bit and are never there together.

use std::mem::offset_of;
use std::time::Duration;

use shadowland_wire::handshake::KEY_BYTES;
use shadowland_wire::header::{Flags, Header};
use shadowland_wire::limits::{KEY_BYTES_MAX, KEY_SECONDS_MAX};
use shadowland_wire::message::control::{Control, DisconnectReason};
use zeroize::Zeroizing;

use super::{Connection, Controls, Role};
use crate::Time;
use crate::crypto::entropy::Entropy;
use crate::crypto::identity::KeyPair;
use crate::crypto::key_schedule::{Secret, SessionKeys};
use crate::crypto::seal::Opener;
use crate::drop_reason::DropReason;
use crate::key_log::SessionKeyLog;

/// How much earlier than configured a rekey may come, as a share of 1/256 each: up to an eighth.
const JITTER: u64 = 32;

const _: () = assert!(KEY_BYTES_MAX < u32::MAX as u64, "bytes under the same keys are counted in 32 bits");

/// When a server replaces the keys of a session. Every rekey draws its own limits from the last eighth before
/// these, so that sessions which began together do not rekey together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RekeyLimits {
    /// Bytes in either direction under the same keys.
    pub bytes: u64,
    /// Age of the keys.
    pub age: Duration,
}

impl Default for RekeyLimits {
    fn default() -> Self {
        Self { bytes: 1_000_000_000, age: Duration::from_secs(60 * 60) }
    }
}

/// What a rekey has come to.
pub(super) enum Step {
    /// Nothing changes.
    Nothing,
    /// There is a message for the peer ([`Keys::message`]).
    Send,
    /// Packets are sealed with this key from here on.
    Flip(Secret),
}

/// A peer with the keys did what no honest peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

/// The keys are used up: too old, or too much was sealed with them, and the peer did not help to replace them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

/// The receiving keys of one session, and the way to the next ones. What every packet needs comes first.
#[repr(C, align(64))]
pub(super) struct Keys {
    /// Bytes under the current keys.
    sealed_bytes: u32,
    opened_bytes: u32,
    /// This round's limit of them. Only a server acts on it.
    due_bytes: u32,
    /// Rekeys until the current receiving key; its lowest bit is the phase.
    number: u32,
    current: Opener,
    other: Other,
    role: Role,
    /// The server's request that waits for its answer.
    asked: Option<Box<Asked>>,
    chain: Secret,
    entropy: Entropy,
    key_log: Option<SessionKeyLog>,
    /// Since when the current keys are in use.
    since: Time,
    limits: RekeyLimits,
    /// When the keys are too old, this round.
    due_at: Time,
    /// One phase bit must not stand for two keys: no request before this.
    settled_at: Time,
}

enum Other {
    None,
    Next(Box<Next>),
    Previous(Box<Previous>),
}

/// Keys that both sides have, or will have, and that opened nothing yet.
struct Next {
    opener: Opener,
    chain: Secret,
    /// The client's: what it will seal with, and the exchange in case the request comes again.
    answered: Option<Answered>,
}

struct Answered {
    seal_key: Secret,
    server_share: [u8; KEY_BYTES],
    client_share: [u8; KEY_BYTES],
}

struct Previous {
    opener: Opener,
    /// The lowest sequence that opened with the current key: what the old one sealed lies below it.
    below: u64,
    until: Time,
}

struct Asked {
    pair: KeyPair,
    repeat_at: Time,
    repeats: u8,
}

impl Keys {
    /// What every packet needs comes first, in one line of the cache.
    pub(super) const HEAD_BYTES: usize = offset_of!(Self, role);

    pub(super) fn new(role: Role, keys: SessionKeys, entropy: Entropy, now: Time) -> Self {
        let (_, open_key, chain) = split(role, keys);
        let mut keys = Self {
            sealed_bytes: 0,
            opened_bytes: 0,
            due_bytes: 0,
            current: Opener::new(&open_key),
            other: Other::None,
            number: 0,
            role,
            asked: None,
            chain,
            entropy,
            key_log: None,
            since: now,
            limits: RekeyLimits::default(),
            due_at: now,
            settled_at: now,
        };
        keys.arm();
        keys
    }

    /// Sets when the server asks for new keys.
    pub(super) fn set_limits(&mut self, limits: RekeyLimits) {
        self.limits = limits;
        self.arm();
    }

    /// From here on new keys are logged.
    pub(super) fn set_key_log(&mut self, log: SessionKeyLog) {
        self.key_log = Some(log);
    }

    /// Opens a packet with the key that its phase bit and its sequence stand for.
    #[inline]
    pub(super) fn open<'p>(
        &self,
        now: Time,
        header: &Header,
        datagram: &'p mut [u8],
    ) -> Result<&'p mut [u8], DropReason> {
        let opener = if self.is_current(header) {
            &self.current
        } else {
            match &self.other {
                Other::Next(next) => &next.opener,
                Other::Previous(old) if header.sequence < old.below && now < old.until => &old.opener,
                Other::Previous(_) | Other::None => return Err(DropReason::WrongPhase),
            }
        };
        opener.open(header, datagram).ok_or(DropReason::BadTag)
    }

    /// A packet has opened with the current key.
    #[inline]
    pub(super) fn opened(&mut self, sequence: u64, bytes: usize) {
        self.opened_bytes = self.opened_bytes.saturating_add(bytes as u32);
        if let Other::Previous(old) = &mut self.other {
            old.below = old.below.min(sequence);
        }
    }

    /// A packet has opened with another one. The first one of the next phase ends a rekey: then the client seals with
    /// the key that is returned. `pto` is how long a packet or its answer may be under way.
    pub(super) fn opened_other(&mut self, now: Time, sequence: u64, pto: Duration) -> Step {
        match self.other {
            Other::Next(_) => self.promote(now, sequence, 3 * pto),
            Other::Previous(_) | Other::None => Step::Nothing,
        }
    }

    /// A packet was sealed.
    #[inline]
    pub(super) fn sealed(&mut self, bytes: usize) {
        self.sealed_bytes = self.sealed_bytes.saturating_add(bytes as u32);
    }

    /// Whether so much was sealed or opened that [`Keys::deadline`] has come.
    #[inline]
    pub(super) fn are_used_up(&self) -> bool {
        self.used_bytes() >= self.due_bytes
    }

    #[inline]
    fn used_bytes(&self) -> u32 {
        self.sealed_bytes.max(self.opened_bytes)
    }

    /// When to call [`Keys::on_timeout`].
    pub(super) fn deadline(&self) -> Time {
        let mut deadline = self.expires_at();
        if let Other::Previous(old) = &self.other {
            deadline = deadline.min(old.until);
        }
        if let Some(at) = self.ask_at() {
            deadline = deadline.min(at);
        }
        deadline
    }

    /// Forgets old keys; on the server's side asks for new ones, and again as long as there is no answer.
    pub(super) fn on_timeout(&mut self, now: Time, pto: Duration) -> Result<Step, Exhausted> {
        if now >= self.expires_at() {
            return Err(Exhausted);
        }
        if matches!(&self.other, Other::Previous(old) if now >= old.until) {
            self.other = Other::None;
        }
        if self.ask_at().is_none_or(|at| now < at) {
            return Ok(Step::Nothing);
        }
        let (pair, repeats) = match self.asked.take() {
            Some(asked) => (asked.pair, asked.repeats.saturating_add(1)),
            None => (KeyPair::new(&self.entropy.draw()), 0),
        };
        let pause = pto.saturating_mul(1 << repeats.min(3));
        self.asked = Some(Box::new(Asked { pair, repeat_at: now + pause, repeats }));
        // From here on its phase bit will be that of the next keys.
        self.other = Other::None;
        Ok(Step::Send)
    }

    /// The message of this side's half of the exchange that is on.
    pub(super) fn message(&self) -> Option<Control> {
        let number = self.number.wrapping_add(1);
        match (&self.asked, &self.other) {
            (Some(asked), _) => Some(Control::RekeyRequest { number, share: *asked.pair.public() }),
            (None, Other::Next(next)) => {
                let answered = next.answered.as_ref()?;
                Some(Control::RekeyResponse { number, share: answered.client_share })
            }
            _ => None,
        }
    }

    /// The server asks for new keys: installs the next receiving key, and has the answer ready.
    pub(super) fn request(&mut self, number: u32, share: &[u8; KEY_BYTES]) -> Result<Step, Violation> {
        if self.role != Role::Client {
            return Err(Violation);
        }
        match number.wrapping_sub(self.number) {
            // Late: that exchange is over.
            0 | 0x8000_0000.. => return Ok(Step::Nothing),
            1 => {}
            _ => return Err(Violation),
        }
        if let Other::Next(next) = &self.other
            && let Some(answered) = &next.answered
        {
            let same = answered.server_share == *share;
            return if same { Ok(Step::Send) } else { Err(Violation) };
        }
        let pair = KeyPair::new(&self.entropy.draw());
        let keys = self.exchange(&pair, share, share, pair.public())?;
        let (seal_key, open_key, chain) = split(self.role, keys);
        let answered = Answered { seal_key, server_share: *share, client_share: *pair.public() };
        let opener = Opener::new(&open_key);
        self.other = Other::Next(Box::new(Next { opener, chain, answered: Some(answered) }));
        Ok(Step::Send)
    }

    /// The client has answered: installs the next receiving key; the next sealing key is returned.
    pub(super) fn response(&mut self, number: u32, share: &[u8; KEY_BYTES]) -> Result<Step, Violation> {
        if self.role != Role::Server {
            return Err(Violation);
        }
        if number != self.number.wrapping_add(1) {
            // Late: that exchange is over.
            let ahead = number.wrapping_sub(self.number);
            return if ahead == 0 || ahead >= 0x8000_0000 { Ok(Step::Nothing) } else { Err(Violation) };
        }
        let Some(asked) = self.asked.take() else {
            // Answered already, unless nobody asked.
            return if matches!(self.other, Other::Next(_)) { Ok(Step::Nothing) } else { Err(Violation) };
        };
        let keys = self.exchange(&asked.pair, share, asked.pair.public(), share)?;
        let (seal_key, open_key, chain) = split(self.role, keys);
        self.other = Other::Next(Box::new(Next { opener: Opener::new(&open_key), chain, answered: None }));
        Ok(Step::Flip(seal_key))
    }

    /// Random bytes for whatever else the session needs.
    pub(super) fn draw(&mut self) -> Secret {
        self.entropy.draw()
    }

    /// Whether a packet was sealed with the current key.
    #[inline]
    pub(super) fn is_current(&self, header: &Header) -> bool {
        header.flags.contains(Flags::KEY_PHASE) == (self.number & 1 == 1)
    }

    fn exchange(
        &self,
        pair: &KeyPair,
        theirs: &[u8; KEY_BYTES],
        server_share: &[u8; KEY_BYTES],
        client_share: &[u8; KEY_BYTES],
    ) -> Result<SessionKeys, Violation> {
        let mut shared: Secret = Zeroizing::new([0; KEY_BYTES]);
        pair.agree(theirs, &mut shared[..]).ok_or(Violation)?;
        let keys = SessionKeys::after_exchange(&self.chain, &shared, server_share, client_share);
        if let Some(log) = &self.key_log {
            log.note(self.number.wrapping_add(1), &keys);
        }
        Ok(keys)
    }

    /// The next keys become the current ones, for this packet of theirs has opened.
    fn promote(&mut self, now: Time, sequence: u64, keep: Duration) -> Step {
        let Other::Next(next) = std::mem::replace(&mut self.other, Other::None) else { return Step::Nothing };
        let Next { opener, chain, answered } = *next;
        let opener = std::mem::replace(&mut self.current, opener);
        let until = now + keep;
        self.other = Other::Previous(Box::new(Previous { opener, below: sequence, until }));
        self.chain = chain;
        self.number = self.number.wrapping_add(1);
        (self.sealed_bytes, self.opened_bytes, self.since) = (0, 0, now);
        self.settled_at = until;
        self.arm();
        answered.map_or(Step::Nothing, |answered| Step::Flip(answered.seal_key))
    }

    /// Draws the limits of the current keys.
    fn arm(&mut self) {
        let early = self.entropy.draw_u64() % (JITTER + 1);
        let due_bytes = self.limits.bytes - self.limits.bytes / 256 * early;
        // When they must not be used any more it is high time.
        self.due_bytes = due_bytes.min(KEY_BYTES_MAX) as u32;
        self.due_at = self.since + self.limits.age.mul_f64(1.0 - early as f64 / 256.0);
    }

    /// When the server asks, or asks again.
    fn ask_at(&self) -> Option<Time> {
        if let Some(asked) = &self.asked {
            return Some(asked.repeat_at);
        }
        if self.role != Role::Server || matches!(self.other, Other::Next(_)) {
            return None;
        }
        Some(if self.are_used_up() { self.settled_at } else { self.due_at.max(self.settled_at) })
    }

    /// When the current keys must not be used any more.
    fn expires_at(&self) -> Time {
        if u64::from(self.used_bytes()) >= KEY_BYTES_MAX {
            return self.since;
        }
        self.since + Duration::from_secs(KEY_SECONDS_MAX)
    }
}

impl Connection {
    /// From here on the server replaces the keys at these limits. A client does what its server asks.
    pub(crate) fn set_rekey_limits(&mut self, limits: RekeyLimits) {
        self.keys.set_limits(limits);
    }

    /// Does what a rekey has come to.
    pub(super) fn apply_step(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Send => self.pending.add(Controls::REKEY),
            Step::Flip(key) => {
                self.sealer.rekey(&key);
                self.stats.rekeys += 1;
                self.pending.remove(Controls::REKEY);
                // The first packet of the new phase, and one that has to be answered: so that the client flips
                // at once, and the server hears of it, also when nobody has anything to say.
                if self.role == Role::Server {
                    self.pending.add(Controls::PING);
                }
            }
        }
    }

    /// A message of a rekey has arrived.
    pub(super) fn apply_rekey(
        &mut self,
        now: Time,
        result: Result<Step, Violation>,
    ) -> Result<(), DropReason> {
        let step = result.map_err(|Violation| {
            self.close(now, DisconnectReason::ProtocolViolation);
            DropReason::Malformed
        })?;
        self.apply_step(step);
        Ok(())
    }
}

/// The keys as one side sees them: to seal with, to open with, and the chain.
fn split(role: Role, keys: SessionKeys) -> (Secret, Secret, Secret) {
    let SessionKeys { client_to_server, server_to_client, chain } = keys;
    match role {
        Role::Client => (client_to_server, server_to_client, chain),
        Role::Server => (server_to_client, client_to_server, chain),
    }
}

#[cfg(test)]
#[path = "rekey_tests.rs"]
mod tests;
