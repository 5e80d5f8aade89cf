//! Connects, walks in a circle, prints who is in sight once a second for five seconds, and leaves.
//!
//! ```text
//! cargo run --release                                                     # in one terminal: prints the key
//! cargo run --release -p shadowland-client --example who_is_in_sight -- 127.0.0.1:3565 KEY
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to whoever runs it")]

use std::error::Error;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use shadowland_client::{Client, Event, Input, View};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, key] = arguments.as_slice() else {
        eprintln!("usage: who_is_in_sight ADDRESS SERVER_KEY");
        return ExitCode::from(2);
    };
    match play(address, key) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn play(address: &str, key: &str) -> Result<(), Box<dyn Error>> {
    let mut client = Client::connect(address, key.parse()?)?;
    println!("connected");
    let start = Instant::now();
    for frame in 1..=300_u32 {
        for event in client.update() {
            match event {
                Event::Disconnected(end) => return Err(end.into()),
                event => println!("{event:?}"),
            }
        }
        client.set_input(Input { forward: 127, yaw: (frame * 218) as u16, ..Input::default() });
        if frame % 60 == 0 {
            print_view(client.view());
        }
        sleep((start + Duration::from_secs(1) * frame / 60).saturating_duration_since(Instant::now()));
    }
    client.disconnect();
    Ok(())
}

fn print_view(view: &View) {
    let others: Vec<_> = view.entities().filter(|entity| !entity.is_own).collect();
    let at = view.own().map_or([0.0; 3], |own| own.position_cm.map(|cm| (cm / 100.0).round()));
    println!("tick {:.1}: we are at {at:?} m; in sight are {} others", view.playback_tick(), others.len());
    for entity in others.iter().take(5) {
        let [x, y, _] = entity.position_cm.map(|cm| cm / 100.0);
        println!("  {:?} at {x:.1}, {y:.1} m, looking to {:.0} degrees", entity.kind, entity.yaw_degrees);
    }
}
