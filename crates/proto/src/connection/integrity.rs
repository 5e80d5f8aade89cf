//! Integrity challenges: now and then the server asks for a proof that the client holds the keys of its version.
//!
//! ```text
//!  server                                                     client
//!    | due: draws an index and a nonce                          |
//!    |  CheckIntegrity (version, index, nonce)  ------------->  | HMAC of the nonce under the key
//!    |  <---------------  IntegrityAnswer (version, echo, proof)|
//! ```
//!
//! Both are unreliable; the server asks again after each PTO until there is an answer. Pauses in which nothing came
//! from the client do not count, so that nobody fails because of the network. What a failure leads to is for the
//! owner of the connection to decide ([`Connection::take_integrity_failure`]).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use shadowland_wire::limits::{INTEGRITY_NONCE_BYTES, INTEGRITY_PROOF_BYTES};
use shadowland_wire::message::control::{Control, INTEGRITY_ECHO_BYTES};
use thiserror::Error;

use super::{Connection, Controls, Role};
use crate::Time;
use crate::crypto::integrity::{IntegrityTable, IntegrityTables};
use crate::drop_reason::DropReason;

/// A challenge is not answered once it was asked so often, each time followed by a packet of the client within a
/// PTO: at least 8 s, and with half of all packets lost both ways one in 10,000 honest clients.
const TIMES_ASKED: u8 = 32;

/// How a server checks the integrity of its clients.
#[derive(Debug, Clone)]
pub struct IntegrityChecks {
    /// The keys of all client versions that may play.
    pub tables: Arc<IntegrityTables>,
    /// From one challenge to the next on average; each pause is drawn between half of it and one and a half.
    pub interval: Duration,
}

/// Why a client has failed a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IntegrityFailure {
    /// It was heard of, but did not answer.
    #[error("no answer")]
    NoAnswer,
    /// It says that it has a version which the server has no table of.
    #[error("version {0} has no table here")]
    UnknownVersion(u16),
    /// The proof is wrong.
    #[error("a wrong answer of version {0}")]
    Wrong(u16),
}

/// A connection's part in it.
pub(super) enum Integrity {
    Server(Asker),
    Client(Answerer),
}

/// The server's side.
pub(super) struct Asker {
    checks: IntegrityChecks,
    /// When to ask for the first time, or again, or to judge; `None` until the session is established.
    due_at: Option<Time>,
    challenge: Option<Challenge>,
    failure: Option<IntegrityFailure>,
}

/// A challenge that waits for its answer.
struct Challenge {
    index: u8,
    nonce: [u8; INTEGRITY_NONCE_BYTES],
    asked_at: Time,
    /// How often it was asked, each time followed by a packet of the client.
    unanswered: u8,
    /// The answer was wrong.
    verdict: Option<IntegrityFailure>,
}

/// The client's side.
pub(super) struct Answerer {
    table: Arc<IntegrityTable>,
    answer: Option<Control>,
}

impl Integrity {
    /// When to call [`Connection::check_integrity`].
    pub(super) fn deadline(&self) -> Option<Time> {
        match self {
            Self::Server(asker) => asker.due_at,
            Self::Client(_) => None,
        }
    }

    /// What this side has to say, if anything.
    pub(super) fn message(&self) -> Option<Control> {
        match self {
            Self::Server(Asker { checks, challenge: Some(Challenge { index, nonce, .. }), .. }) => {
                let version = checks.tables.newest().version();
                Some(Control::CheckIntegrity { version, index: *index, nonce: *nonce })
            }
            Self::Server(_) => None,
            Self::Client(answerer) => answerer.answer,
        }
    }
}

impl Asker {
    /// Asks next after a pause around the interval.
    fn schedule(&mut self, now: Time, random: u8) {
        let share = 0.5 + f64::from(random) / 256.0;
        self.challenge = None;
        self.due_at = Some(now + self.checks.interval.mul_f64(share));
    }

    fn judge(&self, version: u16, proof: &[u8; INTEGRITY_PROOF_BYTES]) -> Option<IntegrityFailure> {
        let challenge = self.challenge.as_ref()?;
        let Some(table) = self.checks.tables.of(version) else {
            return Some(IntegrityFailure::UnknownVersion(version));
        };
        let expected = table.prove(challenge.index, &challenge.nonce);
        verify_slices_are_equal(&expected, proof).is_err().then_some(IntegrityFailure::Wrong(version))
    }
}

impl Connection {
    /// From here on the client has to answer challenges.
    pub(crate) fn set_integrity_checks(&mut self, checks: IntegrityChecks) {
        let asker = Asker { checks, due_at: None, challenge: None, failure: None };
        self.integrity = Some(Box::new(Integrity::Server(asker)));
    }

    /// What a client answers challenges with.
    pub(crate) fn set_integrity_table(&mut self, table: Arc<IntegrityTable>) {
        self.integrity = Some(Box::new(Integrity::Client(Answerer { table, answer: None })));
    }

    /// Why the client has failed a challenge since the last call of [`Connection::on_timeout`], at a server that
    /// makes them. The session goes on, and so do the challenges.
    pub fn take_integrity_failure(&mut self) -> Option<IntegrityFailure> {
        match self.integrity.as_deref_mut()? {
            Integrity::Server(asker) => asker.failure.take(),
            Integrity::Client(_) => None,
        }
    }

    /// The session is established: the first challenge comes after a pause, as those after it.
    pub(super) fn start_integrity(&mut self, now: Time) {
        if let Some(Integrity::Server(asker)) = self.integrity.as_deref_mut() {
            asker.schedule(now, self.keys.draw()[0]);
        }
    }

    /// Asks, asks again, or gives up.
    pub(super) fn check_integrity(&mut self, now: Time) {
        let Some(Integrity::Server(asker)) = self.integrity.as_deref_mut() else { return };
        if asker.due_at.is_none_or(|due| now < due) {
            return;
        }
        let pto = self.rtt.timeout(&self.config, 0);
        match &mut asker.challenge {
            None => {
                let random = self.keys.draw();
                let mut nonce = [0; INTEGRITY_NONCE_BYTES];
                nonce.copy_from_slice(&random[1..=INTEGRITY_NONCE_BYTES]);
                let index = random[0];
                asker.challenge =
                    Some(Challenge { index, nonce, asked_at: now, unanswered: 0, verdict: None });
            }
            Some(challenge) => {
                challenge.unanswered += u8::from(self.heard_at > challenge.asked_at);
                challenge.asked_at = now;
                let late = (challenge.unanswered >= TIMES_ASKED).then_some(IntegrityFailure::NoAnswer);
                if let Some(failure) = challenge.verdict.or(late) {
                    asker.failure = Some(failure);
                    self.stats.integrity_failed += 1;
                    return asker.schedule(now, self.keys.draw()[0]);
                }
            }
        }
        asker.due_at = Some(now + pto);
        self.pending.add(Controls::INTEGRITY);
    }

    /// A challenge or an answer has arrived.
    pub(super) fn apply_integrity(&mut self, now: Time, message: Control) -> Result<(), DropReason> {
        match message {
            Control::CheckIntegrity { index, nonce, .. } if self.role == Role::Client => {
                // Without a table there is nothing to say; the server will end the session, or not.
                if let Some(Integrity::Client(answerer)) = self.integrity.as_deref_mut() {
                    let Answerer { table, answer } = answerer;
                    let mut echo = [0; INTEGRITY_ECHO_BYTES];
                    echo.copy_from_slice(&nonce[..INTEGRITY_ECHO_BYTES]);
                    let (version, proof) = (table.version(), table.prove(index, &nonce));
                    *answer = Some(Control::IntegrityAnswer { version, echo, proof });
                    self.pending.add(Controls::INTEGRITY);
                    self.stats.integrity_answered += 1;
                }
                Ok(())
            }
            Control::IntegrityAnswer { version, echo, proof } if self.role == Role::Server => {
                self.integrity_answered(now, version, echo, &proof);
                Ok(())
            }
            _ => Err(DropReason::Malformed),
        }
    }

    fn integrity_answered(
        &mut self,
        now: Time,
        version: u16,
        echo: [u8; INTEGRITY_ECHO_BYTES],
        proof: &[u8; INTEGRITY_PROOF_BYTES],
    ) {
        let Some(Integrity::Server(asker)) = self.integrity.as_deref_mut() else { return };
        // Another one's answer is late; a second answer to the same changes nothing.
        let is_open =
            |challenge: &Challenge| challenge.nonce.starts_with(&echo) && challenge.verdict.is_none();
        if !asker.challenge.as_ref().is_some_and(is_open) {
            return;
        }
        let verdict = asker.judge(version, proof);
        if verdict.is_none() {
            self.pending.remove(Controls::INTEGRITY);
            self.stats.integrity_answered += 1;
            return asker.schedule(now, self.keys.draw()[0]);
        }
        if let Some(challenge) = &mut asker.challenge {
            challenge.verdict = verdict;
        }
        asker.due_at = Some(now);
    }
}
