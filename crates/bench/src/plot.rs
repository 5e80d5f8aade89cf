//! Draws what `capacity` measured: players against CPU time per tick, a line per contender and workload, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Deserialize;

/// Draws players against CPU per tick from lines that `capacity --json` printed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The JSON lines; later lines replace earlier ones of the same contender, workload and players.
    #[arg(long, default_value = "docs/capacity.jsonl")]
    from: PathBuf,
    /// Where to write the plot.
    #[arg(long, default_value = "docs/capacity.svg")]
    to: PathBuf,
}

/// What matters of a line; the server's own have no contender.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default = "own")]
    contender: String,
    workload: String,
    players: u32,
    tick_cpu_ms_p50: f64,
}

fn own() -> String {
    "shadowland".to_owned()
}

/// Contender and workload; players and milliseconds.
type Curves = BTreeMap<(String, String), BTreeMap<u32, f64>>;

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let from = arguments.from.display();
    let text = std::fs::read_to_string(&arguments.from)
        .with_context(|| format!("{from} cannot be read; `capacity --json` prints what belongs into it"))?;
    let curves = read(&text).with_context(|| from.to_string())?;
    let to = &arguments.to;
    std::fs::write(to, draw(&curves)).with_context(|| format!("{} cannot be written", to.display()))
}

fn read(text: &str) -> anyhow::Result<Curves> {
    let mut curves = Curves::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).with_context(|| format!("line {number}"))?;
        let curve = curves.entry((line.contender, line.workload)).or_default();
        curve.insert(line.players, line.tick_cpu_ms_p50);
    }
    if curves.is_empty() {
        bail!("no measurement in it");
    }
    Ok(curves)
}

/// Size of the picture, and the margins around the axes: left, top, right, bottom.
const SIZE: [f64; 2] = [720.0, 400.0];
const MARGINS: [f64; 4] = [60.0, 20.0, 190.0, 45.0];
/// By contender; dashes by workload.
const COLOURS: [&str; 4] = ["#d1495b", "#1d6fa5", "#66a182", "#8d6a9f"];
const DASHES: [&str; 3] = ["6 4", "none", "2 3"];

fn draw(curves: &Curves) -> String {
    let axes = Axes::new(curves);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE[0], SIZE[1]
    );
    axes.draw(&mut svg);
    let mut labels: Vec<f64> = Vec::new();
    for ((contender, workload), points) in curves {
        let colour = COLOURS[rank(curves, |(other, _)| other, contender) % COLOURS.len()];
        let dash = DASHES[rank(curves, |(_, other)| other, workload) % DASHES.len()];
        let mut line = String::new();
        for (players, ms) in points {
            let [x, y] = axes.place(*players, *ms);
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
            line.trim_end()
        );
        let Some((players, ms)) = points.last_key_value() else { continue };
        // Labels stand beside the last points, and not on each other.
        let [x, y] = axes.place(*players, *ms);
        let mut at = y + 4.0;
        while labels.iter().any(|other| (other - at).abs() < 14.0) {
            at -= 14.0;
        }
        labels.push(at);
        let label = format!("{contender}, {workload}: {ms:.0} ms");
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{label}</text>", x + 8.0);
    }
    svg + "</svg>\n"
}

/// From players and milliseconds to places in the picture. Both axes begin at 0.
struct Axes {
    /// Between two lines of the grid.
    steps: [f64; 2],
    ends: [f64; 2],
}

impl Axes {
    fn new(curves: &Curves) -> Self {
        let points = || curves.values().flatten();
        let most = [
            points().map(|(players, _)| f64::from(*players)).fold(0.0, f64::max),
            points().map(|(_, ms)| *ms).fold(0.0, f64::max),
        ];
        let steps = most.map(nice_step);
        Self { steps, ends: [0, 1].map(|axis| (most[axis] / steps[axis]).ceil().max(1.0) * steps[axis]) }
    }

    fn place(&self, players: u32, ms: f64) -> [f64; 2] {
        let [left, top, right, bottom] = MARGINS;
        let x = left + (SIZE[0] - left - right) * f64::from(players) / self.ends[0];
        let y = top + (SIZE[1] - top - bottom) * (1.0 - ms / self.ends[1]);
        [x, y]
    }

    fn draw(&self, svg: &mut String) {
        let [left, top] = self.place(0, self.ends[1]);
        let [right, bottom] = self.place(self.ends[0] as u32, 0.0);
        for value in self.grid(0) {
            let [x, _] = self.place(value as u32, 0.0);
            let _ = writeln!(svg, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/>");
            let below = bottom + 18.0;
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{value}</text>");
        }
        for value in self.grid(1) {
            let [_, y] = self.place(0, value);
            let _ = writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
            let (beside, y) = (left - 8.0, y + 4.0);
            let _ = writeln!(svg, "<text x=\"{beside}\" y=\"{y:.1}\" text-anchor=\"end\">{value}</text>");
        }
        let (middle, below) = ((left + right) / 2.0, SIZE[1] - 8.0);
        let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{below}\" text-anchor=\"middle\">players</text>");
        let middle = (top + bottom) / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"16\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {middle})\">CPU per tick, ms</text>"
        );
    }

    fn grid(&self, axis: usize) -> impl Iterator<Item = f64> {
        let (step, end) = (self.steps[axis], self.ends[axis]);
        (0..=(end / step).round() as u32).map(move |count| f64::from(count) * step)
    }
}

/// Which of the different names of the curves this is.
fn rank(curves: &Curves, name: impl Fn(&(String, String)) -> &String, wanted: &str) -> usize {
    let names: std::collections::BTreeSet<&String> = curves.keys().map(name).collect();
    names.into_iter().position(|name| name == wanted).unwrap_or(0)
}

/// A step of 1, 2 or 5 times a power of ten that divides what is shown into about five.
fn nice_step(most: f64) -> f64 {
    let raw = (most / 5.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= raw).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_contender_and_workload() {
        let text = "{\"workload\":\"wander\",\"players\":1000,\"tick_cpu_ms_p50\":1.0}\n\
                    {\"workload\":\"wander\",\"players\":10000,\"tick_cpu_ms_p50\":99.0}\n\
                    {\"workload\":\"wander\",\"players\":10000,\"tick_cpu_ms_p50\":10.0}\n\
                    {\"contender\":\"per-viewer\",\"workload\":\"wander\",\"players\":10000,\"tick_cpu_ms_p50\":20.0}\n";
        let svg = draw(&read(text).unwrap());
        assert_eq!(svg.matches("<polyline").count(), 2);
        // The later of two measurements counts, and the highest value is at the top.
        assert!(svg.contains("shadowland, wander: 10 ms") && svg.contains(">20</text>"));
        assert!(svg.contains("<circle cx=\"530.0\" cy=\"20.0\""), "{svg}");
        assert!(read("").is_err() && read("{}").is_err());
    }

    #[test]
    fn steps_are_round_numbers() {
        assert_eq!(
            [9_999.0, 10.0, 74.0, 0.3].map(nice_step).map(|step| (step * 100.0).round() / 100.0),
            [2_000.0, 2.0, 20.0, 0.1]
        );
    }
}
