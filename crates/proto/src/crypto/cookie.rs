//! Cookies: proof that a client receives at the address that it claims, without remembering it.
//!
//! A cookie is `milliseconds u64, nonce 8 bytes, HMAC-SHA256 over (address 16, port u16, version u16, ephemeral
//! key 32, milliseconds, nonce)`. The key of the HMAC changes every minute and comes from a master secret that
//! all endpoints of a server share, so that any of them checks what another has made.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use shadowland_wire::codec::Reader;
use shadowland_wire::handshake::{COOKIE_BYTES, KEY_BYTES};

use crate::Time;
use crate::drop_reason::DropReason;

/// Oldest cookie that is accepted, in milliseconds.
const MAX_AGE_MS: u64 = 10_000;
/// How far a cookie may be ahead: endpoints read the clock once per batch.
const MAX_AHEAD_MS: u64 = 100;
/// How long the key of the HMAC is used, in milliseconds.
const EPOCH_MS: u64 = 60_000;

const NONCE_BYTES: usize = 8;
const SIGNED_BYTES: usize = 16 + 2 + 2 + KEY_BYTES + 8 + NONCE_BYTES;

/// Makes and checks cookies.
pub(crate) struct Cookies {
    master: hmac::Key,
    /// The keys of two neighbouring epochs, by the epoch's lowest bit. Which epochs are asked for is bounded by
    /// the age check, so that a client cannot make a server compute keys.
    keys: [Option<(u64, hmac::Key)>; 2],
}

/// Who a cookie is for.
#[derive(Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) version: u16,
    pub(crate) ephemeral: &'a [u8; KEY_BYTES],
}

impl Cookies {
    pub(crate) fn new(master: &[u8; 32]) -> Self {
        Self { master: hmac::Key::new(HMAC_SHA256, master), keys: [None, None] }
    }

    /// A cookie for `client`.
    pub(crate) fn make(
        &mut self,
        now: Time,
        client: Client<'_>,
        nonce: [u8; NONCE_BYTES],
    ) -> [u8; COOKIE_BYTES] {
        let ms = now.as_millis();
        let tag = hmac::sign(self.key(ms / EPOCH_MS), &signed_bytes(client, ms, nonce));
        let mut cookie = [0; COOKIE_BYTES];
        cookie[..8].copy_from_slice(&ms.to_le_bytes());
        cookie[8..16].copy_from_slice(&nonce);
        cookie[16..].copy_from_slice(tag.as_ref());
        cookie
    }

    /// Whether `cookie` was made for `client`, and lately.
    pub(crate) fn verify(
        &mut self,
        now: Time,
        client: Client<'_>,
        cookie: &[u8; COOKIE_BYTES],
    ) -> Result<(), DropReason> {
        let mut reader = Reader::new(cookie);
        let (Ok(ms), Ok(nonce)) = (reader.u64(), reader.array()) else { return Err(DropReason::BadCookie) };
        let now_ms = now.as_millis();
        if ms > now_ms.saturating_add(MAX_AHEAD_MS) || now_ms.saturating_sub(ms) > MAX_AGE_MS {
            return Err(DropReason::StaleCookie);
        }
        // In constant time.
        hmac::verify(self.key(ms / EPOCH_MS), &signed_bytes(client, ms, nonce), reader.rest())
            .map_err(|_| DropReason::BadCookie)
    }

    fn key(&mut self, epoch: u64) -> &hmac::Key {
        let kept = &mut self.keys[(epoch & 1) as usize];
        if kept.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let secret = hmac::sign(&self.master, &epoch.to_le_bytes());
            *kept = Some((epoch, hmac::Key::new(HMAC_SHA256, secret.as_ref())));
        }
        &kept.as_ref().expect("it was just put there").1
    }
}

fn signed_bytes(client: Client<'_>, ms: u64, nonce: [u8; NONCE_BYTES]) -> [u8; SIGNED_BYTES] {
    let address = match client.address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut bytes = [0; SIGNED_BYTES];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..18].copy_from_slice(&client.address.port().to_le_bytes());
    bytes[18..20].copy_from_slice(&client.version.to_le_bytes());
    bytes[20..52].copy_from_slice(client.ephemeral);
    bytes[52..60].copy_from_slice(&ms.to_le_bytes());
    bytes[60..].copy_from_slice(&nonce);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_micros(3_600_000_000);

    fn client(ephemeral: &[u8; KEY_BYTES]) -> Client<'_> {
        Client { address: "192.0.2.1:4000".parse().unwrap(), version: 1, ephemeral }
    }

    fn after(ms: i64) -> Time {
        Time::from_micros(START.as_micros().wrapping_add_signed(ms * 1_000))
    }

    #[test]
    fn a_cookie_lives_ten_seconds_and_may_be_a_little_early() {
        let mut cookies = Cookies::new(&[1; 32]);
        let cookie = cookies.make(START, client(&[2; 32]), [3; 8]);
        for (ms, expected) in [
            (0, Ok(())),
            (10_000, Ok(())),
            (10_001, Err(DropReason::StaleCookie)),
            (-100, Ok(())),
            (-101, Err(DropReason::StaleCookie)),
        ] {
            assert_eq!(cookies.verify(after(ms), client(&[2; 32]), &cookie), expected, "{ms} ms");
        }
    }

    #[test]
    fn a_cookie_is_bound_to_everything_about_its_client() {
        let mut cookies = Cookies::new(&[1; 32]);
        let (ephemeral, other_key) = ([2; 32], [4; 32]);
        let honest = client(&ephemeral);
        let cookie = cookies.make(START, honest, [3; 8]);
        let strangers = [
            Client { address: "192.0.2.2:4000".parse().unwrap(), ..honest },
            Client { address: "192.0.2.1:4001".parse().unwrap(), ..honest },
            Client { version: 2, ..honest },
            Client { ephemeral: &other_key, ..honest },
        ];
        for stranger in strangers {
            assert_eq!(cookies.verify(START, stranger, &cookie), Err(DropReason::BadCookie));
        }
        for bit in 0..COOKIE_BYTES * 8 {
            let mut forged = cookie;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(cookies.verify(START, honest, &forged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_worker_and_the_previous_epoch_are_accepted_another_server_is_not() {
        let (mut worker, mut other_worker) = (Cookies::new(&[1; 32]), Cookies::new(&[1; 32]));
        let mut other_server = Cookies::new(&[9; 32]);
        // One millisecond before the epoch ends.
        let late = Time::from_micros((EPOCH_MS * 100 - 1) * 1_000);
        let cookie = worker.make(late, client(&[2; 32]), [3; 8]);
        let next_epoch = late + std::time::Duration::from_secs(5);
        assert_eq!(worker.verify(next_epoch, client(&[2; 32]), &cookie), Ok(()));
        assert_eq!(other_worker.verify(next_epoch, client(&[2; 32]), &cookie), Ok(()));
        assert_eq!(other_server.verify(late, client(&[2; 32]), &cookie), Err(DropReason::BadCookie));
        // Both epochs are at hand at once.
        assert!(worker.verify(next_epoch, client(&[2; 32]), &[0; COOKIE_BYTES]).is_err());
        let fresh = worker.make(next_epoch, client(&[2; 32]), [4; 8]);
        assert_eq!(worker.verify(next_epoch, client(&[2; 32]), &fresh), Ok(()));
        assert_eq!(worker.verify(next_epoch, client(&[2; 32]), &cookie), Ok(()));
    }
}
