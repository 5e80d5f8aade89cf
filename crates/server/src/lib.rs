//! The server as a library: the binary `shadowland` and the in-process demo start it from here.
//!
//! ```text
//!  network ──▶ worker: udp ─▶ Endpoint::route ─▶ Connection::handle ─▶ session::Inbound ─▶ queue ─▶ world thread
//!                                                                                         Game::tick, World::tick
//!  network ◀── worker: udp ◀─ PacketBuilder ◀─ Viewer::snapshot ◀──────────── frames, latest wins ◀── publish
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`config`] | raw text to a validated configuration |
//! | [`demo`] | server and simulated players in one process, and what came of it |
//! | [`load`] | simulated players for a server elsewhere |
//! | [`identity`] | the server's static key pair |
//! | [`game`] | what a game does in the world, once a tick |
//! | [`embed`] | the server without sockets, threads and clock |
//! | [`server`] | a running server: binds, starts the threads, stops them |
//! | `hub` | the sessions of a worker: receiving, serving |
//! | `rotation` | which of them is served next |
//! | [`sockets`] | the workers' sockets, and what the system gave them |
//! | `handover` | datagrams that reached another worker than their session's |
//! | [`cpus`] | which CPUs workers run on |
//! | `worker` | the I/O thread around a hub: socket, polling |
//! | `session` | what a worker hangs on a session, and what comes in from it |
//! | `world_side` | the world and its game, between its queues and its frames |
//! | `world_thread` | the thread around it |
//! | `queue` | what passes between the threads |
//! | `schedule` | when ticks start and how long they last |
//! | `control` | flags that all threads look at |
//! | [`mail`] | the game's own messages to and from players |
//! | [`tokens`] | the keys that may sign login tokens, and which account plays where |
//! | [`integrity`] | the keys of the client versions that may play |
//! | [`stats`] | what a running server tells about itself |

pub mod cli;
pub mod config;
mod control;
pub mod cpus;
pub mod demo;
pub mod embed;
pub mod game;
mod handover;
#[cfg(test)]
mod hot_path;
mod hub;
pub mod identity;
pub mod integrity;
pub mod load;
pub mod mail;
mod queue;
mod rotation;
mod schedule;
pub mod server;
mod session;
pub mod sockets;
pub mod stats;
pub mod tokens;
mod worker;
mod world_side;
mod world_thread;
