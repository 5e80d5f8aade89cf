//! The server as a library: the binary `shadowland` and the in-process demo start it from here.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | raw text to a validated configuration |

pub mod config;
