//! Measures what the server costs and what it holds. Every bench prints one JSON object a line with `--json`.

mod attack;
mod capacity;
mod clock;
mod handshake;
mod instructions;
mod plot;
mod reliable;
mod transport;

use clap::{Parser, Subcommand};

/// Measures what the server costs and what it holds.
#[derive(Debug, Parser)]
#[command(name = "shadowland-bench", version)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// What a tick costs, without sockets: open, simulate, publish, and a sealed snapshot for everybody.
    Capacity(capacity::Arguments),
    /// Draws what `capacity` measured: players against CPU per tick.
    Plot(plot::Arguments),
    /// What a packet costs on real sockets, beside the kernel alone and beside other libraries.
    Transport(transport::Arguments),
    /// What reliable messages get through a bad link, and how soon, beside other libraries.
    Reliable(reliable::Arguments),
    /// What a login costs the server, and how long a player waits for it.
    Handshake(handshake::Arguments),
    /// How many instructions the hot paths take, beside the limits of what they may.
    Instructions(instructions::Arguments),
    /// What attackers can do to a running server: fails when one of them does harm.
    Attack(attack::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().bench {
        Bench::Capacity(arguments) => capacity::run(&arguments),
        Bench::Plot(arguments) => plot::run(&arguments),
        Bench::Transport(arguments) => transport::run(&arguments),
        Bench::Reliable(arguments) => reliable::run(&arguments),
        Bench::Handshake(arguments) => handshake::run(&arguments),
        Bench::Instructions(arguments) => instructions::run(&arguments),
        Bench::Attack(arguments) => attack::run(&arguments),
    }
}
