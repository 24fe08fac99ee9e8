//! What people see: talk and progress on stderr, data on stdout.
//!
//! stdout carries only what a script would want; everything else goes to
//! stderr and never mixes with it. Whatever is written here is harmless text (`base::harmless`), whoever it came from,
//! but for [`bytes`]: that is what the user asked for as it is.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::progress::{Reporter, Stage, Transfer};
use crate::base::{ByteSize, Error, Kind, harmless};

/// Between two lines about one transfer where there is no terminal to draw on.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Writes lines of data to stdout, ended by whoever made them. A reader that went away (`virga list | head -1`)
/// ends the command quietly.
pub fn data(text: &str) {
    bytes(harmless::lines(text).as_bytes());
}

/// As [`data`], one line, whatever is in it.
pub fn line(text: &str) {
    bytes(format!("{}\n", harmless::line(text)).as_bytes());
}

/// As [`data`], as it is: pictures, and what a guest writes to a terminal that the user has lent it.
pub fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => DATA_LOST.store(true, Ordering::Relaxed),
        _ => {}
    }
}

static DATA_LOST: AtomicBool = AtomicBool::new(false);

/// Whether stdout did not take all data, other than because its reader left.
#[must_use]
pub fn data_was_lost() -> bool {
    DATA_LOST.load(Ordering::Relaxed)
}

/// Writes one message to stderr. Should it have several lines, the others are set in: no line of talk begins with what
/// another has written.
pub fn talk(text: &str) {
    let text = harmless::lines(text.trim_end()).replace('\n', "\n  ");
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Where the log is written to, a record at a time.
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl std::io::Write for Log {
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        talk(&String::from_utf8_lossy(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The terminal's columns and lines; where there is none, what the first ones had.
#[must_use]
pub fn size() -> [u16; 2] {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or([80, 24], |size| [size.ws_col.max(1), size.ws_row.max(1)])
}

/// Prints an error with its causes and hints.
pub fn error(error: &Error) {
    if error.kind() == Kind::Interrupted {
        talk("interrupted");
        return;
    }
    talk(&format!("error: {error}"));
    for cause in error.causes() {
        talk(&format!("caused by: {cause}"));
    }
    for hint in error.hints() {
        talk(&format!("hint: {hint}"));
    }
}

/// The reporter of the command line: bars on a terminal, lines elsewhere,
/// neither with `--quiet`.
pub struct Terminal {
    quiet: bool,
    bars: Option<MultiProgress>,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("quiet", &self.quiet).finish_non_exhaustive()
    }
}

impl Terminal {
    /// Looks at stderr to see whether bars can be drawn.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let draw = !quiet && std::io::stderr().is_terminal();
        let bars = draw.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Terminal { quiet, bars }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| talk(text)),
            None => talk(text),
        }
    }
}

impl Reporter for Terminal {
    fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    fn transfer(&self, label: &str, total: Option<u64>) -> Box<dyn Transfer> {
        match &self.bars {
            Some(bars) => Box::new(Bar(transfer_bar(bars, label, total))),
            None => Box::new(Lines {
                label: label.to_owned(),
                total,
                quiet: self.quiet,
                last: Mutex::new((Instant::now(), 0)),
            }),
        }
    }

    fn wait(&self, label: &str) -> Box<dyn Stage> {
        match &self.bars {
            Some(bars) => {
                let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})");
                let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
                // Handed to the group before anything draws it: else its first picture stays on the screen.
                let hidden = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
                let bar = bars.add(hidden.with_style(style));
                bar.set_prefix(harmless::line(label));
                bar.enable_steady_tick(Duration::from_millis(100));
                Box::new(Bar(bar))
            }
            None => Box::new(StageLines { label: label.to_owned(), quiet: self.quiet, last: Mutex::default() }),
        }
    }
}

fn transfer_bar(bars: &MultiProgress, label: &str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}",
        None => "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    // Handed to the group before anything draws it: else its first picture stays on the screen.
    let bar = bars.add(ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()).with_style(style));
    bar.set_prefix(harmless::line(label));
    bar
}

struct Bar(ProgressBar);

impl Transfer for Bar {
    fn at(&self, bytes: u64) {
        // The first report is what was already on disk: it must not count as speed.
        if self.0.position() == 0 && bytes > 0 {
            self.0.reset_eta();
        }
        self.0.set_position(bytes);
    }
}

impl Stage for Bar {
    fn stage(&self, text: &str) {
        self.0.set_message(harmless::line(text));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A transfer where nothing can be drawn: one line now and then.
struct Lines {
    label: String,
    total: Option<u64>,
    quiet: bool,
    last: Mutex<(Instant, u64)>,
}

impl Transfer for Lines {
    fn at(&self, bytes: u64) {
        let Ok(mut last) = self.last.lock() else { return };
        let since = last.0.elapsed();
        if self.quiet || since < LINE_EVERY {
            return;
        }
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (bytes.saturating_sub(last.1) as f64 / since.as_secs_f64()) as u64;
        let of = self.total.map(|total| format!(" of {}", ByteSize(total))).unwrap_or_default();
        let eta = self
            .total
            .filter(|_| rate > 0)
            .map(|total| format!(", {} left", seconds(total.saturating_sub(bytes) / rate)))
            .unwrap_or_default();
        talk(&format!("{}: {}{of}, {}/s{eta}", self.label, ByteSize(bytes), ByteSize(rate)));
        *last = (Instant::now(), bytes);
    }
}

/// A wait where nothing can be drawn: a line whenever the stage changes.
struct StageLines {
    label: String,
    quiet: bool,
    last: Mutex<String>,
}

impl Stage for StageLines {
    fn stage(&self, text: &str) {
        let Ok(mut last) = self.last.lock() else { return };
        if !self.quiet && *last != text {
            talk(&harmless::line(&format!("{}: {text}", self.label)));
            text.clone_into(&mut last);
        }
    }
}

/// Whole seconds as `12s`, `3m 5s`.
#[must_use]
pub fn seconds(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Stages and how long each took, as in `start 80 ms, load 14 ms`.
#[must_use]
pub fn stages(stages: &[(impl std::fmt::Display, Duration)]) -> String {
    let stages: Vec<String> = stages.iter().map(|(stage, took)| format!("{stage} {}", span(*took))).collect();
    stages.join(", ")
}

/// Seconds with one or two digits, as in `35.2 s`.
fn span(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{} ms", span.as_millis())
    } else {
        format!("{:.1} s", span.as_secs_f64())
    }
}
