//! What the benches share: medians, foreign tools, rows of a table.
#![allow(dead_code, reason = "each bench uses its own part of this")]

use std::process::Command;
use std::time::{Duration, Instant};

/// The median time of `rounds` calls, after one that warms up.
pub fn median(rounds: usize, mut work: impl FnMut()) -> Duration {
    work();
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// The median times of two pieces of work, done in turn: what else the machine
/// does slows both down, and their ratio stays.
pub fn in_turn(rounds: usize, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> (Duration, Duration) {
    let (mut left, mut right): (Vec<_>, Vec<_>) =
        (0..rounds).map(|_| (median(4, &mut ours), median(1, &mut theirs))).unzip();
    left.sort();
    right.sort();
    (left[rounds / 2], right[rounds / 2])
}

/// Runs a foreign tool that must succeed.
pub fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One comparison.
pub struct Row {
    what: &'static str,
    ours: Duration,
    theirs: Option<(&'static str, Duration)>,
    target: String,
    met: bool,
}

impl Row {
    /// Against a named tool: `factor` times faster is the target.
    pub fn against(what: &'static str, ours: Duration, tool: &'static str, theirs: Duration, factor: f64) -> Self {
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        Row { what, ours, theirs: Some((tool, theirs)), target: format!("{factor}x"), met: ratio >= factor }
    }

    /// Against a limit of time.
    pub fn under(what: &'static str, ours: Duration, limit: Duration) -> Self {
        Row { what, ours, theirs: None, target: format!("{limit:?}"), met: ours <= limit }
    }

    /// Prints it.
    pub fn print(&self) {
        let (tool, theirs, ratio) = match self.theirs {
            Some((tool, theirs)) => {
                (tool, format!("{theirs:.2?}"), format!("{:.1}x", theirs.as_secs_f64() / self.ours.as_secs_f64()))
            }
            None => ("-", "-".into(), "-".into()),
        };
        let met = if self.met { "met" } else { "MISSED" };
        let ours = format!("{:.2?}", self.ours);
        println!(
            "| {:<34} | {ours:>9} | {tool:<15} | {theirs:>9} | {ratio:>7} | {:>6} | {met} |",
            self.what, self.target
        );
    }
}

/// Prints the head of the table.
pub fn head() {
    println!(
        "| what                               |      ours | tool            |      tool |   ratio | target |     |"
    );
    println!("|---|---|---|---|---|---|---|");
}
