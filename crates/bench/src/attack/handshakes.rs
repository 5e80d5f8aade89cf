//! Attacks by those who have no session: everything before and during the handshake.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use shadowland_proto::{ConnectConfig, Connecting, Identity, Time, TokenSigner};
use shadowland_wire::codec::Writer;
use shadowland_wire::handshake::{COOKIE_BYTES, ECHO_BYTES, Echo, ServerHandshake};
use shadowland_wire::header::HEADER_BYTES;
use shadowland_wire::limits::DATAGRAM_BYTES;

use super::attacker::{Attack, NETWORKS};
use super::stage::{Stage, token};

/// Where the client's ephemeral key stands in Connect, and the cookie in ConnectRequest.
const KEY_AT: usize = HEADER_BYTES + 1 + 2;
const COOKIE_AT: usize = KEY_AT;
/// Where the tag stands in a cookie, behind milliseconds and nonce.
const TAG_AT: usize = 16;
/// A cookie is used for so long before a new one is asked for; the server takes it for 10 s.
const COOKIE_LIFE: Duration = Duration::from_secs(8);
/// From one Connect to the next one for the same cookie.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What an attacker needs to ask for a session: both requests, computed beforehand.
struct Ticket {
    connect: [u8; DATAGRAM_BYTES],
    /// With the latest cookie, or an empty one.
    request: Vec<u8>,
    echo: Echo,
    cookie_at: Option<Time>,
    asked_at: Option<Time>,
}

impl Ticket {
    fn new(config: ConnectConfig, server_key: [u8; 32], rng: &mut StdRng) -> anyhow::Result<Self> {
        let now = Time::default();
        let mut connecting = Connecting::new(config, server_key, rng, now)?;
        let mut connect = [0; DATAGRAM_BYTES];
        connecting.poll_transmit(now, &mut connect).context("no Connect")?;
        // An invented cookie makes it write its request.
        let echo = connecting.echo();
        let (mut answer, mut buffer) = ([0; 128], [0; DATAGRAM_BYTES]);
        let mut writer = Writer::new(&mut answer);
        ServerHandshake::Cookie { echo, cookie: [0; COOKIE_BYTES] }.encode(&mut writer)?;
        connecting.handle(now, writer.written()).map_err(|reason| anyhow::anyhow!("{reason}"))?;
        let len = connecting.poll_transmit(now, &mut buffer).context("no ConnectRequest")?;
        Ok(Self { connect, request: buffer[..len].to_vec(), echo, cookie_at: None, asked_at: None })
    }

    /// Whether its cookie is good for a while.
    fn has_cookie(&self, now: Time) -> bool {
        self.cookie_at.is_some_and(|at| now - at < COOKIE_LIFE)
    }

    /// Connect, when a cookie is missing and was not asked for lately.
    fn ask(&mut self, now: Time, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        if self.asked_at.is_some_and(|at| now - at < ASK_AGAIN) {
            return None;
        }
        self.asked_at = Some(now);
        *datagram = self.connect;
        Some(DATAGRAM_BYTES)
    }

    /// Takes the cookie out of an answer.
    fn answered(&mut self, now: Time, datagram: &[u8]) {
        if let Ok(ServerHandshake::Cookie { cookie, .. }) = ServerHandshake::decode(datagram) {
            self.request[COOKIE_AT..COOKIE_AT + COOKIE_BYTES].copy_from_slice(&cookie);
            self.cookie_at = Some(now);
        }
    }

    fn write_request(&self, datagram: &mut [u8; DATAGRAM_BYTES]) -> usize {
        datagram[..self.request.len()].copy_from_slice(&self.request);
        self.request.len()
    }
}

/// A ticket for every source.
fn tickets(
    stage: &Stage,
    mut config: impl FnMut(&mut StdRng) -> ConnectConfig,
) -> anyhow::Result<Vec<Ticket>> {
    let mut rng = StdRng::seed_from_u64(5);
    (0..NETWORKS).map(|_| Ticket::new(config(&mut rng), stage.server_key, &mut rng)).collect()
}

/// Connect from everywhere, with another key each time.
pub(super) struct ConnectFlood {
    connect: [u8; DATAGRAM_BYTES],
    random: Pcg64,
}

impl ConnectFlood {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let ticket = Ticket::new(ConnectConfig::default(), stage.server_key, &mut StdRng::seed_from_u64(5))?;
        Ok(Self { connect: ticket.connect, random: Pcg64::seed_from_u64(6) })
    }
}

impl Attack for ConnectFlood {
    fn next(&mut self, _now: Time, _source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        *datagram = self.connect;
        self.random.fill_bytes(&mut datagram[KEY_AT..KEY_AT + ECHO_BYTES]);
        Some(DATAGRAM_BYTES)
    }
}

/// ConnectRequest with a cookie of the right time that the server did not make.
pub(super) struct BadCookies {
    tickets: Vec<Ticket>,
    random: Pcg64,
}

impl BadCookies {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let tickets = tickets(stage, |_| ConnectConfig::default())?;
        Ok(Self { tickets, random: Pcg64::seed_from_u64(6) })
    }
}

impl Attack for BadCookies {
    fn next(&mut self, now: Time, source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        let ticket = &mut self.tickets[source];
        // A good cookie tells the server's time: one of another time is refused without looking at its tag.
        if !ticket.has_cookie(now) {
            return ticket.ask(now, datagram);
        }
        let len = ticket.write_request(datagram);
        self.random.fill_bytes(&mut datagram[COOKIE_AT + TAG_AT..COOKIE_AT + COOKIE_BYTES]);
        Some(len)
    }

    fn answered(&mut self, now: Time, source: usize, datagram: &mut [u8]) {
        self.tickets[source].answered(now, datagram);
    }
}

/// Good requests again: from elsewhere, with a cookie of long ago, and from where they are good.
pub(super) struct ReplayedCookies {
    tickets: Vec<Ticket>,
    /// The first good request of every source, kept after its cookie is over.
    old: Vec<Option<Vec<u8>>>,
    turn: usize,
}

impl ReplayedCookies {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let tickets = tickets(stage, |_| ConnectConfig::default())?;
        Ok(Self { old: vec![None; tickets.len()], tickets, turn: 0 })
    }
}

impl Attack for ReplayedCookies {
    fn next(&mut self, now: Time, source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        if !self.tickets[source].has_cookie(now) {
            return self.tickets[source].ask(now, datagram);
        }
        self.turn += 1;
        match self.turn % 3 {
            0 => Some(self.tickets[(source + 1) % NETWORKS].write_request(datagram)),
            1 => Some(self.tickets[source].write_request(datagram)),
            _ => {
                let old = self.old[source].as_ref()?;
                datagram[..old.len()].copy_from_slice(old);
                Some(old.len())
            }
        }
    }

    fn answered(&mut self, now: Time, source: usize, datagram: &mut [u8]) {
        let ticket = &mut self.tickets[source];
        ticket.answered(now, datagram);
        self.old[source].get_or_insert_with(|| ticket.request.clone());
    }
}

/// Requests with good cookies and a token that carries the name of a known key, and another one's signature.
pub(super) struct BadTokens(Vec<Ticket>);

impl BadTokens {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let known = stage.signer.as_ref().context("the server asks for no tokens")?.public_key();
        let forger = TokenSigner::generate(&mut StdRng::seed_from_u64(7));
        let tickets = tickets(stage, |rng| {
            let identity = Identity::generate(rng);
            let mut forged = forger.issue(&token(&identity, rng));
            forged[1..9].copy_from_slice(&known[..8]);
            ConnectConfig {
                identity: Some(identity),
                token: Some(forged.to_vec()),
                ..ConnectConfig::default()
            }
        })?;
        Ok(Self(tickets))
    }
}

impl Attack for BadTokens {
    fn next(&mut self, now: Time, source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        let ticket = &mut self.0[source];
        if ticket.has_cookie(now) { Some(ticket.write_request(datagram)) } else { ticket.ask(now, datagram) }
    }

    fn answered(&mut self, now: Time, source: usize, datagram: &mut [u8]) {
        self.0[source].answered(now, datagram);
    }
}

/// Sessions that are asked for from many networks, and again when they are forgotten, and never confirmed.
pub(super) struct HalfOpen {
    /// By source.
    hoards: Vec<Hoard>,
}

/// What one source asks for.
struct Hoard {
    tickets: Vec<Ticket>,
    by_echo: HashMap<Echo, usize>,
    next: usize,
    /// When each ticket's request was last sent.
    requested_at: Vec<Option<Time>>,
}

/// Sessions that a source asks for.
const HOARD: usize = 32;

impl HalfOpen {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(5);
        let mut hoard = || -> anyhow::Result<Hoard> {
            let tickets = (0..HOARD)
                .map(|_| Ticket::new(ConnectConfig::default(), stage.server_key, &mut rng))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let by_echo = tickets.iter().enumerate().map(|(index, ticket)| (ticket.echo, index)).collect();
            Ok(Hoard { requested_at: vec![None; tickets.len()], tickets, by_echo, next: 0 })
        };
        Ok(Self { hoards: (0..NETWORKS).map(|_| hoard()).collect::<anyhow::Result<_>>()? })
    }
}

impl Attack for HalfOpen {
    fn next(&mut self, now: Time, source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        let hoard = &mut self.hoards[source];
        for _ in 0..HOARD {
            let index = hoard.next;
            hoard.next = (index + 1) % HOARD;
            let (ticket, requested_at) = (&mut hoard.tickets[index], &mut hoard.requested_at[index]);
            if ticket.has_cookie(now) {
                if requested_at.is_none_or(|at| now - at >= ASK_AGAIN) {
                    *requested_at = Some(now);
                    return Some(ticket.write_request(datagram));
                }
            } else if let Some(len) = ticket.ask(now, datagram) {
                return Some(len);
            }
        }
        None
    }

    fn answered(&mut self, now: Time, source: usize, datagram: &mut [u8]) {
        let hoard = &mut self.hoards[source];
        if let Some(&index) =
            shadowland_wire::handshake::peek_echo(datagram).and_then(|echo| hoard.by_echo.get(&echo))
        {
            hoard.tickets[index].answered(now, datagram);
        }
    }
}
