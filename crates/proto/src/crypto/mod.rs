//! The cryptography of a session, around well-kept libraries: the Noise handshake (`snow`) and everything else
//! from `aws-lc-rs`.

pub(crate) mod cookie;
pub(crate) mod entropy;
pub(crate) mod handshake;
pub(crate) mod identity;
pub(crate) mod integrity;
pub(crate) mod key_schedule;
mod resolver;
pub(crate) mod seal;
pub(crate) mod token;
