//! Rates: how often something may happen, in one number per limit.

use std::net::IpAddr;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use shadowland_wire::limits::NETWORK_BUCKETS;

use crate::Time;

/// A rate and how far it may be exceeded for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Lasting rate, per second.
    pub per_second: u32,
    /// How many at once after a pause.
    pub burst: u32,
}

impl Rate {
    fn interval_us(self) -> u64 {
        1_000_000 / u64::from(self.per_second.max(1))
    }
}

/// A bucket that is full at the start. It is kept as the time at which it would be full again (the generic
/// cell rate algorithm), so that 8 bytes are all there is of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    full_at_us: u64,
}

impl Bucket {
    /// Takes one, or says that there is none.
    pub(super) fn take(&mut self, now: Time, rate: Rate) -> bool {
        let now_us = now.as_micros();
        let full_at_us = self.full_at_us.max(now_us).saturating_add(rate.interval_us());
        let allowed = full_at_us - now_us <= rate.interval_us() * u64::from(rate.burst.max(1));
        if allowed {
            self.full_at_us = full_at_us;
        }
        allowed
    }
}

/// A bucket whose last things are kept for those who have lately had little: the more somebody has had, the fuller it
/// must be. Whoever asks all the time shares what is left over with others who do; who asks rarely finds something.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FairBucket(Bucket);

impl FairBucket {
    /// Takes one for somebody who has lately had `had` of them, or says that there is none for him.
    pub(super) fn take(&mut self, now: Time, rate: Rate, had: u32) -> bool {
        let had = u64::from(had);
        let deep = u64::from(rate.burst.max(1));
        // Half of it at most, or who is alone and asks for many at once would wait for nobody.
        let kept = deep / 2 * had / (had + 1);
        self.0.take(now, Rate { burst: (deep - kept) as u32, ..rate })
    }
}

/// What is known of networks, in fixed arrays: a rate, the handshakes of late, and the half-open sessions of each.
///
/// Every network has a place in each of two rows, and what holds for it is the better of the two: who shares one
/// place with somebody noisy hardly shares both. Which networks share a place cannot be known from outside.
pub(super) struct Networks {
    key: hmac::Key,
    rate: Rate,
    limits_loopback: bool,
    rows: [Box<[Place]>; 2],
}

/// A place in each row; the machine itself has none, unless its addresses are limited too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network(Option<[u16; 2]>);

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    requests: Bucket,
    half_open: u32,
    handshakes: Recent,
}

/// How often something happened of late: halved every [`Recent::HALF_LIFE_US`].
#[derive(Debug, Clone, Copy, Default)]
struct Recent {
    count: u32,
    /// Half-lives from the beginning of time to when `count` was true.
    at: u64,
}

impl Recent {
    const HALF_LIFE_US: u64 = 4_000_000;

    fn at(self, now: Time) -> Self {
        let at = now.as_micros() / Self::HALF_LIFE_US;
        let halvings = u32::try_from(at.saturating_sub(self.at)).unwrap_or(u32::MAX);
        Self { count: self.count.checked_shr(halvings).unwrap_or(0), at }
    }

    fn count_one(&mut self, now: Time) {
        *self = self.at(now);
        self.count = self.count.saturating_add(1);
    }
}

impl Networks {
    pub(super) fn new(key: &[u8; 32], rate: Rate, limits_loopback: bool) -> Self {
        let row = || vec![Place::default(); NETWORK_BUCKETS].into_boxed_slice();
        Self { key: hmac::Key::new(HMAC_SHA256, key), rate, limits_loopback, rows: [row(), row()] }
    }

    /// The network that `address` is in: an IPv4 /24 or an IPv6 /48. The machine itself is not limited: who sends
    /// from there has no need of a flood; unless that is asked for.
    pub(super) fn of(&self, address: IpAddr) -> Network {
        let address = address.to_canonical();
        if address.is_loopback() && !self.limits_loopback {
            return Network(None);
        }
        let digest = match address {
            IpAddr::V4(address) => hmac::sign(&self.key, &address.octets()[..3]),
            IpAddr::V6(address) => hmac::sign(&self.key, &address.octets()[..6]),
        };
        let hash = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let place = |hash: u64| (hash % NETWORK_BUCKETS as u64) as u16;
        Network(Some([place(hash), place(hash >> 32)]))
    }

    /// Takes one request of those that a network may make.
    pub(super) fn take(&mut self, now: Time, network: Network) -> bool {
        let rate = self.rate;
        // In both rows, whatever the first says.
        let taken = self.places_mut(network).map(|place| place.requests.take(now, rate));
        taken.fold(None, |any: Option<bool>, taken| Some(any.unwrap_or(false) | taken)).unwrap_or(true)
    }

    /// Half-open sessions of a network.
    pub(super) fn half_open_of(&self, network: Network) -> usize {
        self.places(network).map(|place| place.half_open).min().unwrap_or(0) as usize
    }

    /// One more of them.
    pub(super) fn half_open(&mut self, network: Network) {
        self.places_mut(network).for_each(|place| place.half_open += 1);
    }

    /// One less.
    pub(super) fn not_half_open(&mut self, network: Network) {
        self.places_mut(network).for_each(|place| place.half_open -= 1);
    }

    /// Handshakes that were computed of late for a network.
    pub(super) fn handshakes_of(&self, now: Time, network: Network) -> u32 {
        self.places(network).map(|place| place.handshakes.at(now).count).min().unwrap_or(0)
    }

    /// One more of them.
    pub(super) fn handshake(&mut self, now: Time, network: Network) {
        self.places_mut(network).for_each(|place| place.handshakes.count_one(now));
    }

    fn places(&self, network: Network) -> impl Iterator<Item = &Place> {
        let places = network.0.into_iter().flatten();
        self.rows.iter().zip(places).map(|(row, place)| &row[usize::from(place)])
    }

    fn places_mut(&mut self, network: Network) -> impl Iterator<Item = &mut Place> {
        let places = network.0.into_iter().flatten();
        self.rows.iter_mut().zip(places).map(|(row, place)| &mut row[usize::from(place)])
    }
}

const _: () = assert!(NETWORK_BUCKETS <= 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::default();
        let start = Time::from_micros(5_000_000);
        let taken = (0..10).filter(|_| bucket.take(start, RATE)).count();
        assert_eq!(taken, 3);
        assert!(!bucket.take(start + Duration::from_millis(99), RATE));
        assert!(bucket.take(start + Duration::from_millis(100), RATE));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| bucket.take(later, RATE)).count(), 3);
    }

    #[test]
    fn who_has_had_little_finds_something_where_others_wait() {
        let rate = Rate { per_second: 1_000, burst: 32 };
        let mut bucket = FairBucket::default();
        let mut now = Time::from_micros(5_000_000);
        // Somebody asks all the time and has had much; he gets the rate, and no more.
        let mut greedy = 0;
        for _ in 0..10_000 {
            now = now + Duration::from_micros(100);
            greedy += u32::from(bucket.take(now, rate, 40));
        }
        assert!((1_000..1_032).contains(&greedy), "{greedy} in a second");
        assert!(!bucket.take(now, rate, 40));
        assert_eq!((0..100).filter(|_| bucket.take(now, rate, 0)).count(), 15);
    }

    #[test]
    fn handshakes_of_late_are_forgotten() {
        let mut recent = Recent::default();
        let at = |s: u64| Time::from_micros(s * 1_000_000);
        (0..100).for_each(|_| recent.count_one(at(40)));
        assert_eq!([40, 44, 48, 72, 4_000].map(|s| recent.at(at(s)).count), [100, 50, 25, 0, 0]);
    }

    #[test]
    fn who_shares_a_place_with_somebody_noisy_has_another_one() {
        let mut networks = Networks::new(&[1; 32], RATE, false);
        let of = |networks: &Networks, index: u32| {
            networks.of(IpAddr::from((0x0a00_0000 + (index << 8)).to_be_bytes()))
        };
        for noisy in 0..256 {
            let noisy = of(&networks, noisy);
            assert!((0..10).filter(|_| networks.take(Time::default(), noisy)).count() <= 6);
        }
        let quiet: Vec<_> = (1_000..3_000).map(|index| of(&networks, index)).collect();
        let refused = quiet.into_iter().filter(|&quiet| !networks.take(Time::default(), quiet)).count();
        // Of 2,000, one in sixteen shares a place in either row with one of the 256, and one in 256 in both; and
        // they share with each other too.
        assert!(refused < 100, "{refused}");
    }

    #[test]
    fn a_network_is_limited_as_a_whole_and_the_machine_itself_is_not() {
        let mut networks = Networks::new(&[1; 32], RATE, false);
        let mut taken = |address: fn(u8) -> String| {
            let networks = &mut networks;
            let of = |networks: &Networks, host| networks.of(address(host).parse().unwrap());
            (0..50).filter(|&host| networks.take(Time::default(), of(networks, host))).count()
        };
        assert_eq!(taken(|host| format!("192.0.2.{host}")), 3);
        assert_eq!(taken(|host| format!("::ffff:192.0.2.{host}")), 0);
        assert_eq!(taken(|host| format!("2001:db8:1:{host}::1")), 3);
        assert_eq!(taken(|host| format!("127.0.0.{host}")), 50);
    }
}
