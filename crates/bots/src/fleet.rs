//! All bots together: start, watch, freeze and stop them.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::{StdRng, SysRng};
use rand::{RngExt, SeedableRng};
use shadowland_client::NetProfile;
use shadowland_client::session::{End, Session};
use shadowland_proto::{ConnectConfig, Identity, IntegrityTable, KeyLog, LoginToken, Time, TokenSigner};
use shadowland_udp::room_for_sockets;
use thiserror::Error;

use crate::driver::{Clock, Driver};
use crate::latency::Sample;

/// Inputs that a bot makes a second.
pub const INPUT_HZ: u32 = 60;
/// How often a bot may send a second: whole numbers of inputs a packet, no more than a message carries.
pub const SEND_HZ: [u32; 6] = [60, 30, 20, 15, 12, 10];
/// How long the login tokens of bots are good.
const TOKEN_SECONDS: u64 = 60;
/// Open files of a thread besides its sockets: the poll.
const DESCRIPTORS_PER_THREAD: usize = 1;
/// Bots that a thread drives by default.
const BOTS_PER_THREAD: usize = 2_500;
/// Of all bots so many at most are sampled, so that measuring does not cost more than playing.
const SAMPLED_AT_MOST: usize = 64;
/// And no more than one in so many.
const SAMPLE_ONE_IN: usize = 16;

/// What bots to start.
#[derive(Debug, Clone)]
pub struct BotsConfig {
    /// Where the server is.
    pub server: SocketAddr,
    /// Its public key.
    pub server_key: [u8; 32],
    /// How many bots.
    pub count: usize,
    /// Threads; `None` = one for every 2,500 bots, but no more than there are cores.
    pub threads: Option<usize>,
    /// Bots that share a socket at most; few bots have at least eight sockets a thread.
    pub bots_per_socket: usize,
    /// Packets a second of each bot, one of [`SEND_HZ`]; inputs are always made at 60 a second.
    pub send_hz: u32,
    /// Bots that start to connect a second, all together.
    pub connect_per_s: f64,
    /// How long a bot tries to connect.
    pub connect_timeout: Duration,
    /// Seed of the key that signs login tokens, for a server that asks for them: each bot makes its own, for an account
    /// with its number.
    pub token_key: Option<[u8; 32]>,
    /// The keys of the client version that they pose as, for a server that checks them.
    pub integrity: Option<Arc<IntegrityTable>>,
    /// Where the keys of their sessions are logged, if at all.
    pub key_log: Option<Arc<KeyLog>>,
    /// The bad network that they play over, if any.
    pub net: Option<NetProfile>,
    /// What the bots do.
    pub seed: u64,
    /// Whether some of the bots note what they apply, for [`Bots::drain_samples`].
    pub sample: bool,
    /// How nice the threads are to others on the machine, 0 to 19.
    pub nice: i32,
}

impl BotsConfig {
    /// So many bots for a server, everything else by default.
    #[must_use]
    pub fn new(server: SocketAddr, server_key: [u8; 32], count: usize) -> Self {
        Self {
            server,
            server_key,
            count,
            threads: None,
            bots_per_socket: 64,
            send_hz: INPUT_HZ,
            connect_per_s: 500.0,
            connect_timeout: Duration::from_secs(10),
            token_key: None,
            integrity: None,
            key_log: None,
            net: None,
            seed: 1,
            sample: false,
            nice: 5,
        }
    }

    /// The threads that drive them.
    #[must_use]
    pub fn threads(&self) -> usize {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let default = self.count.div_ceil(BOTS_PER_THREAD).clamp(1, cores);
        self.threads.unwrap_or(default).clamp(1, self.count.max(1))
    }

    /// Whether the bot with this number notes what it applies.
    pub(crate) fn is_sampled(&self, index: usize) -> bool {
        self.sample && index.is_multiple_of(SAMPLE_ONE_IN.max(self.count.div_ceil(SAMPLED_AT_MOST)))
    }

    /// When the bot that is next after `before` others starts to connect.
    pub(crate) fn connect_at(&self, before: usize) -> Time {
        Time::default() + Duration::from_secs_f64(before as f64 / self.connect_per_s)
    }

    /// How the bot with this number logs in.
    pub(crate) fn login(&self, index: usize, rng: &mut StdRng) -> ConnectConfig {
        let mut config = ConnectConfig {
            timeout: self.connect_timeout,
            integrity: self.integrity.clone(),
            key_log: self.key_log.clone(),
            ..ConnectConfig::default()
        };
        if let Some(seed) = &self.token_key {
            let identity = Identity::generate(rng);
            let issued_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let token = LoginToken {
                id: rng.random(),
                account: index as u64,
                issued_s,
                expires_s: issued_s + TOKEN_SECONDS,
                client_key: identity.public_key(),
            };
            config.token = Some(TokenSigner::from_seed(seed).issue(&token).to_vec());
            config.identity = Some(identity);
        }
        config
    }

    /// Bots of the thread with this number, and the number of its first.
    pub(crate) fn share(&self, thread: usize) -> (usize, usize) {
        let threads = self.threads();
        let first = self.count * thread / threads;
        (first, self.count * (thread + 1) / threads - first)
    }

    /// Sockets of that thread.
    pub(crate) fn sockets(&self, thread: usize) -> usize {
        self.share(thread).1.div_ceil(self.bots_per_socket)
    }

    /// Few bots have at least eight sockets a thread. Returns all sockets together.
    fn spread(&mut self) -> usize {
        let of_thread = self.count.div_ceil(self.threads());
        self.bots_per_socket = self.bots_per_socket.clamp(1, of_thread.div_ceil(8));
        (0..self.threads()).map(|thread| self.sockets(thread)).sum()
    }

    /// The same for as many open files as the process may have: if they are too few, more bots share a socket.
    fn fit_into(&mut self, room: usize) -> Result<Fit, BotsError> {
        let threads = self.threads();
        let wanted = self.spread();
        let most = room.saturating_sub(threads * DESCRIPTORS_PER_THREAD);
        if wanted <= most {
            return Ok(Fit::Whole);
        }
        let per_thread = most / threads;
        if per_thread == 0 {
            return Err(BotsError::OpenFiles { needed: threads * (DESCRIPTORS_PER_THREAD + 1), room });
        }
        self.bots_per_socket = self.count.div_ceil(threads).div_ceil(per_thread);
        Ok(Fit::Crowded)
    }

    fn check(&self) -> Result<(), BotsError> {
        if self.count == 0 {
            return Err(BotsError::Nobody);
        }
        if !SEND_HZ.contains(&self.send_hz) {
            return Err(BotsError::SendRate(self.send_hz));
        }
        if !(self.connect_per_s.is_finite() && self.connect_per_s > 0.0) {
            return Err(BotsError::ConnectRate(self.connect_per_s));
        }
        Ok(())
    }
}

/// Whether the bots have as many sockets as they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Whole,
    Crowded,
}

/// Why no bots were started.
#[derive(Debug, Error)]
pub enum BotsError {
    /// No bots were asked for.
    #[error("at least one bot is needed")]
    Nobody,
    /// Not one of [`SEND_HZ`].
    #[error("bots cannot send {0} packets a second; allowed: 60, 30, 20, 15, 12 or 10")]
    SendRate(u32),
    /// Not a rate.
    #[error("bots cannot connect at {0} a second; a number above 0 is needed")]
    ConnectRate(f64),
    /// Not even one socket for each thread.
    #[error(
        "bots need {needed} open files at least and this process may have {room} more: raise the limit (`ulimit -n`, \
         or LimitNOFILE of a service)"
    )]
    OpenFiles {
        /// How many more.
        needed: usize,
        /// How many there may be.
        room: usize,
    },
    /// The system gives no socket or thread.
    #[error("cannot start bots: {0}")]
    System(#[from] io::Error),
}

/// What bots have counted since they were started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BotsStats {
    /// Bots that have a player in the world now.
    pub playing: usize,
    /// Bots that never got a session.
    pub failed: usize,
    /// Bots whose session ended before they were stopped.
    pub lost: usize,
    /// Datagrams received.
    pub packets_in: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes_in: u64,
    /// Datagrams sent.
    pub packets_out: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes_out: u64,
    /// Datagrams that their session dropped.
    pub dropped: u64,
    /// Datagrams that were for nobody.
    pub strays: u64,
    /// Datagrams that the kernel had no room for.
    pub unsent: u64,
    /// Times that a bot was not served because its thread was behind by a whole interval.
    pub turns_missed: u64,
    /// Samples that nobody drained in time.
    pub samples_dropped: u64,
    /// Messages that could not be read, and errors of the sockets.
    pub errors: u64,
    /// CPU time of all threads.
    pub cpu: Duration,
}

/// A thread's part of the counters.
pub(crate) type ThreadStats = BotsStats;

/// Looks at the sessions of a thread.
pub(crate) type Inspection = Box<dyn for<'a> FnOnce(&mut dyn Iterator<Item = (usize, &'a Session)>) + Send>;

/// What all threads share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    frozen: AtomicBool,
    stats: Mutex<Vec<ThreadStats>>,
    samples: Mutex<Vec<Sample>>,
    last_end: Mutex<Option<End>>,
}

impl Shared {
    pub(crate) fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(crate) fn tell(&self, thread: usize, stats: ThreadStats) {
        lock(&self.stats)[thread] = stats;
    }

    /// Adds as many samples as there is room for below `limit`; returns that room.
    pub(crate) fn add_samples(&self, fresh: &[Sample], limit: usize) -> usize {
        let mut samples = lock(&self.samples);
        let room = limit.saturating_sub(samples.len());
        samples.extend(fresh.iter().take(room));
        room
    }

    pub(crate) fn note_end(&self, end: End) {
        *lock(&self.last_end) = Some(end);
    }
}

/// What a thread that panicked left is still what it counted.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Running bots. Dropping them stops them.
#[derive(Debug)]
pub struct Bots {
    shared: Arc<Shared>,
    clock: Clock,
    threads: Vec<JoinHandle<()>>,
    inspections: Vec<Sender<Inspection>>,
    bots_per_socket: Option<usize>,
}

impl Bots {
    /// Starts the bots' threads; the bots connect one after the other from now on.
    ///
    /// # Errors
    /// When the configuration cannot be, or the system lacks something.
    pub fn start(mut config: BotsConfig) -> Result<Self, BotsError> {
        config.check()?;
        let count = config.threads();
        let wanted = config.spread() + count * DESCRIPTORS_PER_THREAD;
        let fit = config.fit_into(room_for_sockets(wanted))?;
        let bots_per_socket = (fit == Fit::Crowded).then_some(config.bots_per_socket);
        let config = Arc::new(config);
        let shared = Arc::new(Shared::default());
        lock(&shared.stats).resize(count, ThreadStats::default());
        let mut bots = Self {
            shared,
            clock: Clock(Instant::now()),
            threads: Vec::new(),
            inspections: Vec::new(),
            bots_per_socket,
        };
        for number in 0..count {
            let rng = StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?;
            let (sender, inspections) = channel();
            let driver = Driver::new(
                Arc::clone(&config),
                Arc::clone(&bots.shared),
                number,
                inspections,
                bots.clock,
                rng,
            )?;
            bots.inspections.push(sender);
            let builder = thread::Builder::new().name(format!("bots-{number}"));
            bots.threads.push(builder.spawn(move || driver.run())?);
        }
        Ok(bots)
    }

    /// What the bots have counted, at most some 20 ms old.
    #[must_use]
    pub fn stats(&self) -> BotsStats {
        lock(&self.shared.stats).iter().fold(BotsStats::default(), |sum, part| BotsStats {
            playing: sum.playing + part.playing,
            failed: sum.failed + part.failed,
            lost: sum.lost + part.lost,
            packets_in: sum.packets_in + part.packets_in,
            bytes_in: sum.bytes_in + part.bytes_in,
            packets_out: sum.packets_out + part.packets_out,
            bytes_out: sum.bytes_out + part.bytes_out,
            dropped: sum.dropped + part.dropped,
            strays: sum.strays + part.strays,
            unsent: sum.unsent + part.unsent,
            turns_missed: sum.turns_missed + part.turns_missed,
            samples_dropped: sum.samples_dropped + part.samples_dropped,
            errors: sum.errors + part.errors,
            cpu: sum.cpu + part.cpu,
        })
    }

    /// How many bots share a socket, if the limit on open files made them more than was asked for.
    #[must_use]
    pub fn crowded_sockets(&self) -> Option<usize> {
        self.bots_per_socket
    }

    /// Why the last session that ended did, if one has.
    #[must_use]
    pub fn last_end(&self) -> Option<End> {
        *lock(&self.shared.last_end)
    }

    /// Stops all movement, or lets it go on: frozen bots stay connected and want nothing.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.store(frozen, Ordering::Relaxed);
    }

    /// What the clock showed by which samples are stamped.
    #[must_use]
    pub fn time_of(&self, instant: Instant) -> Time {
        self.clock.at(instant)
    }

    /// Moves the samples of the sampled bots to `into`.
    pub fn drain_samples(&self, into: &mut Vec<Sample>) {
        into.append(&mut lock(&self.shared.samples));
    }

    /// Looks at every bot that has started to connect, on the bots' own threads, and returns what `look` says,
    /// with the bot's number, in no particular order. The bots neither receive nor send meanwhile.
    pub fn inspect<T: Send + 'static>(
        &self,
        look: impl Fn(&Session) -> T + Send + Sync + 'static,
    ) -> Vec<(usize, T)> {
        let look = Arc::new(look);
        let (sender, results) = channel();
        for thread in &self.inspections {
            let (look, sender) = (Arc::clone(&look), sender.clone());
            // A thread that is gone has no bots to look at.
            let _ = thread.send(Box::new(move |sessions: &mut dyn Iterator<Item = (usize, &Session)>| {
                for (index, session) in sessions {
                    // Nobody waits for the result of a process that ends.
                    let _ = sender.send((index, look(session)));
                }
            }));
        }
        drop(sender);
        results.iter().collect()
    }

    /// Lets all bots leave the server and returns what they counted.
    #[must_use]
    pub fn stop(mut self) -> BotsStats {
        self.join();
        self.stats()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Bots {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(count: usize) -> BotsConfig {
        BotsConfig::new("127.0.0.1:9".parse().unwrap(), [9; 32], count)
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(matches!(Bots::start(config(0)), Err(BotsError::Nobody)));
        let bad = BotsConfig { send_hz: 25, ..config(1) };
        assert!(matches!(Bots::start(bad), Err(BotsError::SendRate(25))));
        let bad = BotsConfig { connect_per_s: 0.0, ..config(1) };
        assert!(matches!(Bots::start(bad), Err(BotsError::ConnectRate(_))));
    }

    #[test]
    fn where_few_files_may_be_open_more_bots_share_a_socket() {
        let thousand = BotsConfig { threads: Some(2), ..config(1_000) };
        let sockets = |config: &BotsConfig| (0..2).map(|thread| config.sockets(thread)).sum::<usize>();
        let mut whole = thousand.clone();
        assert_eq!(whole.fit_into(1_000).unwrap(), Fit::Whole);
        assert_eq!((whole.bots_per_socket, sockets(&whole)), (63, 16));
        for room in [17, 10, 4] {
            let mut crowded = thousand.clone();
            assert_eq!(crowded.fit_into(room).unwrap(), Fit::Crowded);
            assert!(sockets(&crowded) + 2 <= room, "{} sockets in {room}", sockets(&crowded));
        }
        let error = thousand.clone().fit_into(3).unwrap_err().to_string();
        assert!(
            error.starts_with("bots need 4 open files at least and this process may have 3 more"),
            "{error}"
        );
    }

    #[test]
    fn some_of_the_bots_are_sampled_but_not_too_many() {
        let sampled =
            |config: &BotsConfig| (0..config.count).filter(|&index| config.is_sampled(index)).count();
        assert_eq!(sampled(&config(200)), 0, "nobody asked for samples");
        for (count, expected) in [(10, 1), (200, 13), (1_024, 64), (10_000, 64)] {
            assert_eq!(sampled(&BotsConfig { sample: true, ..config(count) }), expected, "of {count}");
        }
    }

    #[test]
    fn each_bot_has_a_login_token_of_its_own_if_the_server_asks_for_them() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(config(2).login(1, &mut rng).token, None);
        let config = BotsConfig { token_key: Some([5; 32]), ..config(2) };
        for index in 0..2_usize {
            let login = config.login(index, &mut rng);
            let (token, key) = (login.token.unwrap(), login.identity.unwrap().public_key());
            // Where a token has its account, and the key of the client that it is for.
            assert_eq!(token[25..33], (index as u64).to_le_bytes());
            assert_eq!(token[49..81], key);
        }
    }

    #[test]
    fn bots_without_a_server_fail_and_say_why() {
        let config =
            BotsConfig { connect_timeout: Duration::from_millis(100), threads: Some(2), ..config(5) };
        let bots = Bots::start(config).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while bots.stats().failed < 5 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let mut seen = bots.inspect(|session| session.is_over());
        seen.sort_unstable();
        assert_eq!(seen, [(0, true), (1, true), (2, true), (3, true), (4, true)]);
        assert!(matches!(bots.last_end(), Some(End::NotConnected(_))));
        let stats = bots.stop();
        assert_eq!((stats.failed, stats.lost, stats.playing), (5, 0, 0));
        assert!(stats.packets_out >= 5);
    }
}
