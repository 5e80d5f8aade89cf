//! The bad network between a bot and its socket, when bots play over one.

use rand::SeedableRng;
use rand_pcg::Pcg32;
use shadowland_client::conditioner::{Conditioner, NetProfile};
use shadowland_proto::Time;

/// Both directions of a bot's link.
pub(crate) struct Line {
    up: Conditioner<Vec<u8>>,
    down: Conditioner<Vec<u8>>,
}

impl Line {
    /// The link of the bot with this number: the same for the same seed.
    pub(crate) fn new(profile: &NetProfile, seed: u64, bot: usize) -> Self {
        let random = |direction| Pcg32::seed_from_u64(seed ^ (2 * bot as u64 + direction) << 20);
        Self { up: Conditioner::new(profile.up, random(0)), down: Conditioner::new(profile.down, random(1)) }
    }

    /// A datagram sets out for the server.
    pub(crate) fn send(&mut self, now: Time, datagram: &[u8]) {
        self.up.send(now, datagram.len(), datagram.to_vec());
    }

    /// A datagram has come from the server, as far as the link.
    pub(crate) fn arrive(&mut self, now: Time, datagram: &[u8]) {
        self.down.send(now, datagram.len(), datagram.to_vec());
    }

    /// The next datagram that has got through to the server.
    pub(crate) fn sent(&mut self, now: Time) -> Option<Vec<u8>> {
        self.up.receive(now)
    }

    /// The next datagram that has got through to the bot.
    pub(crate) fn arrived(&mut self, now: Time) -> Option<Vec<u8>> {
        self.down.receive(now)
    }
}
