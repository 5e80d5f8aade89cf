//! How many sessions come from one address, over all endpoints of a server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts sessions by the address that their cookie proved: an IPv4 address, or an IPv6 /64. Where a session moves
/// later does not matter. The machine itself is not limited, unless that is asked for.
#[derive(Debug)]
pub struct AddressLimit {
    most: usize,
    limits_loopback: bool,
    /// Only addresses with a session are in it, so that it is no larger than the endpoints' tables.
    sessions: Mutex<BTreeMap<[u8; 16], usize>>,
}

impl AddressLimit {
    /// At most so many sessions from one address.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, limits_loopback: false, sessions: Mutex::default() }
    }

    /// The same for the machine's own addresses, each for itself.
    #[must_use]
    pub fn with_loopback(self) -> Self {
        Self { limits_loopback: true, ..self }
    }

    /// Counts one more session, or says that there are as many as there may be.
    pub(super) fn take(&self, address: IpAddr) -> bool {
        let Some(key) = self.key(address) else { return true };
        let mut sessions = self.sessions();
        let count = sessions.entry(key).or_default();
        let allowed = *count < self.most;
        *count += usize::from(allowed);
        allowed
    }

    /// A session that was counted is gone.
    pub(super) fn give_back(&self, address: IpAddr) {
        let Some(key) = self.key(address) else { return };
        let mut sessions = self.sessions();
        if let Some(count) = sessions.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&key);
            }
        }
    }

    fn key(&self, address: IpAddr) -> Option<[u8; 16]> {
        let address = address.to_canonical();
        if address.is_loopback() && !self.limits_loopback {
            return None;
        }
        Some(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => {
                let mut octets = address.octets();
                octets[8..].fill(0);
                octets
            }
        })
    }

    /// A thread that panicked with the lock left nothing half-done that matters.
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<[u8; 16], usize>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_sessions_and_others_have_theirs() {
        let limit = AddressLimit::new(2);
        let taken = |address: &str| limit.take(address.parse().unwrap());
        assert!(taken("192.0.2.1") && taken("::ffff:192.0.2.1") && !taken("192.0.2.1"));
        assert!(taken("192.0.2.2"));
        assert!(taken("2001:db8::1") && taken("2001:db8::2") && !taken("2001:db8::3"));
        assert!(taken("2001:db8:0:1::1"));
        assert!((0..100).all(|_| taken("127.0.0.1") && taken("::1")));
        limit.give_back("192.0.2.1".parse().unwrap());
        assert!(taken("192.0.2.1") && !taken("192.0.2.1"));
        for _ in 0..2 {
            limit.give_back("192.0.2.1".parse().unwrap());
        }
        assert_eq!(limit.sessions().len(), 3, "an address without a session is forgotten");

        let limit = AddressLimit::new(1).with_loopback();
        let taken = |address: &str| limit.take(address.parse().unwrap());
        assert!(taken("127.0.0.1") && taken("127.0.0.2") && !taken("127.0.0.1"));
    }
}
