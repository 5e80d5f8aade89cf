//! The client SDK: connect, and see the world.

#![forbid(unsafe_code)]

pub mod replica;
