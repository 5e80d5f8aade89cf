//! The binary `shadowland`: reads the command line and does what it says.
//!
//! Exit codes: 0 it was done; 1 it failed on the way; 2 it did not start, because of the command line, the
//! configuration, the key file or the port.

mod commands;
mod progress;
mod summary;

use std::io::Write;
use std::process::ExitCode;

use shadowland_server::cli::{Cli, Command};

fn main() -> ExitCode {
    let command = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let result = match command {
        Command::Serve(config) => commands::serve(&config),
        Command::Config(args) => commands::config(&args),
        Command::Bots(args) => commands::bots(&args),
        Command::Token(command) => commands::token(&command),
        Command::Integrity(command) => commands::integrity(&command),
        Command::Demo(args) => commands::demo(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error may be closed; there is nobody else to tell.
            let _ = writeln!(std::io::stderr().lock(), "shadowland: {}", one_line(&failure.error));
            ExitCode::from(failure.exit_code)
        }
    }
}

/// The error and its causes. Most messages tell their cause themselves: it is not told again.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
