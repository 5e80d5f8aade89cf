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

/// One bucket per network, in a fixed array. Networks that fall on the same bucket share it; which do so cannot
/// be known from outside.
pub(super) struct NetworkBuckets {
    key: hmac::Key,
    rate: Rate,
    limits_loopback: bool,
    buckets: Box<[Bucket]>,
    /// Half-open sessions by bucket.
    half_open: Box<[u16]>,
}

/// The bucket of a network; the machine itself has none, unless its addresses are limited too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network(Option<usize>);

impl NetworkBuckets {
    pub(super) fn new(key: &[u8; 32], rate: Rate, limits_loopback: bool) -> Self {
        Self {
            key: hmac::Key::new(HMAC_SHA256, key),
            rate,
            limits_loopback,
            buckets: vec![Bucket::default(); NETWORK_BUCKETS].into_boxed_slice(),
            half_open: vec![0; NETWORK_BUCKETS].into_boxed_slice(),
        }
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
        Network(Some((hash % NETWORK_BUCKETS as u64) as usize))
    }

    /// Takes one from the bucket of a network.
    pub(super) fn take(&mut self, now: Time, network: Network) -> bool {
        network.0.is_none_or(|index| self.buckets[index].take(now, self.rate))
    }

    /// Half-open sessions of a network.
    pub(super) fn half_open_of(&self, network: Network) -> usize {
        network.0.map_or(0, |index| usize::from(self.half_open[index]))
    }

    /// One more of them.
    pub(super) fn half_open(&mut self, network: Network) {
        if let Some(index) = network.0 {
            self.half_open[index] += 1;
        }
    }

    /// One less.
    pub(super) fn not_half_open(&mut self, network: Network) {
        if let Some(index) = network.0 {
            self.half_open[index] -= 1;
        }
    }
}

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
    fn a_network_is_limited_as_a_whole_and_the_machine_itself_is_not() {
        let mut networks = NetworkBuckets::new(&[1; 32], RATE, false);
        let mut taken = |address: fn(u8) -> String| {
            let networks = &mut networks;
            let of = |networks: &NetworkBuckets, host| networks.of(address(host).parse().unwrap());
            (0..50).filter(|&host| networks.take(Time::default(), of(networks, host))).count()
        };
        assert_eq!(taken(|host| format!("192.0.2.{host}")), 3);
        assert_eq!(taken(|host| format!("::ffff:192.0.2.{host}")), 0);
        assert_eq!(taken(|host| format!("2001:db8:1:{host}::1")), 3);
        assert_eq!(taken(|host| format!("127.0.0.{host}")), 50);
    }
}
