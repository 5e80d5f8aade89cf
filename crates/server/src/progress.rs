//! What a command shows on a terminal while it runs, and its report in words.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use shadowland_server::{demo, load};

/// A line on standard error that is drawn anew; nothing where that is no terminal.
pub(crate) struct Line(ProgressBar);

impl Line {
    /// A line for something that is measured for so long.
    pub(crate) fn new(measured: Duration) -> Self {
        let bar = ProgressBar::new(u64::try_from(measured.as_millis()).unwrap_or(u64::MAX));
        let style = ProgressStyle::with_template("{bar:24} {msg}").expect("a template that indicatif reads");
        Self(bar.with_style(style))
    }

    pub(crate) fn show_demo(&self, progress: &demo::Progress, players: usize) {
        let phase = match progress.phase {
            demo::Phase::Joining => "joining",
            demo::Phase::WarmingUp => "warming up",
            demo::Phase::Measuring => "measuring",
            demo::Phase::Settling => "coming to rest",
            demo::Phase::Comparing => "comparing views",
        };
        let (arriving, leaving) = progress.packets_per_s;
        let traffic = format!("{arriving:.0} packets/s in, {leaving:.0} out");
        self.show(
            progress.measured,
            format!("{phase}: {} of {players} players, {traffic}", progress.playing),
        );
    }

    pub(crate) fn show_bots(&self, progress: &load::Progress, players: usize) {
        let phase = if progress.played.is_zero() { "joining" } else { "playing" };
        self.show(progress.played, format!("{phase}: {} of {players} players", progress.playing));
    }

    fn show(&self, measured: Duration, message: String) {
        self.0.set_position(u64::try_from(measured.as_millis()).unwrap_or(u64::MAX));
        self.0.set_message(message);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The demo's report in words.
pub(crate) fn print_demo(out: &mut impl Write, report: &demo::Report) -> io::Result<()> {
    let demo::Report { players, connected, converged, disconnects, errors, .. } = report;
    writeln!(
        out,
        "players         {connected} of {players} connected, {disconnects} disconnected, {errors} errors"
    )?;
    writeln!(out, "views           {converged} equal to the server's truth after a second of stillness")?;
    let (hz, overruns) = (report.tick_hz, report.tick_overruns);
    let (p50, p99) = (report.tick_p50_ms, report.tick_p99_ms);
    writeln!(out, "tick            {hz:.2} Hz, {p50:.2} ms (p99 {p99:.2} ms), {overruns} overruns")?;
    let (p50, p99) = (report.update_latency_p50_ms, report.update_latency_p99_ms);
    writeln!(out, "update latency  {p50:.2} ms (p99 {p99:.2} ms)")?;
    let (arriving, leaving) = (report.packets_in_per_s, report.packets_out_per_s);
    writeln!(out, "packets         {arriving:.0}/s in, {leaving:.0}/s out")?;
    writeln!(out, "bytes           {:.0}/s to each player", report.bytes_out_per_player_per_s)?;
    let (server, bots) = (report.server_cpu_cores, report.bots_cpu_cores);
    writeln!(out, "CPU             {server:.2} cores for the server, {bots:.2} for the players")?;
    for note in &report.notes {
        writeln!(out, "note            {note}")?;
    }
    Ok(())
}

/// The bots' report in words.
pub(crate) fn print_bots(out: &mut impl Write, report: &load::Report) -> io::Result<()> {
    let load::Report { players, connected, disconnects, errors, .. } = report;
    writeln!(
        out,
        "players  {connected} of {players} connected, {disconnects} disconnected, {errors} errors"
    )?;
    let (arriving, leaving) = (report.packets_in_per_s, report.packets_out_per_s);
    writeln!(out, "packets  {arriving:.0}/s in, {leaving:.0}/s out")?;
    writeln!(out, "bytes    {:.0}/s to each player", report.bytes_in_per_player_per_s)?;
    writeln!(out, "CPU      {:.2} cores for the players", report.bots_cpu_cores)?;
    if let Some(bots) = report.crowded_sockets {
        writeln!(out, "note     {}", demo::crowded(bots))?;
    }
    if let Some(end) = &report.last_end {
        writeln!(out, "note     the last session that ended: {end}")?;
    }
    Ok(())
}
