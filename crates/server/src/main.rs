//! The `shadowland` server.
fn main() {}
