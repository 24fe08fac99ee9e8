//! The steps that a kill can come between.
//!
//! A debug build counts them. `VIRGA_TEST_AT_STEP="KILL 7"` has it die before the seventh, `"INT 7"` as if Ctrl-C were
//! pressed then: a test goes through all of them so, each once, on any machine. A release build has nothing of this.

/// Tells the program that is started nothing of it.
pub const VARIABLE: &str = "VIRGA_TEST_AT_STEP";

/// Something is about to be done that outlives this process: to the disk, to a lock, to another program.
pub fn step(what: impl FnOnce() -> String) {
    // Not left out by an attribute: what only some builds have, only some builds check.
    if cfg!(debug_assertions) {
        count(what);
    }
}

#[allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "for tests alone: they set it, and read where it died"
)]
fn count(what: impl FnOnce() -> String) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static ORDER: OnceLock<Option<(Signal, usize)>> = OnceLock::new();
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let order = ORDER.get_or_init(|| match std::env::var(VARIABLE).ok()?.split_once(' ')? {
        ("KILL", number) => Some((Signal::KILL, number.parse().ok()?)),
        ("INT", number) => Some((Signal::INT, number.parse().ok()?)),
        _ => None,
    });
    let Some((signal, number)) = *order else { return };
    if TAKEN.fetch_add(1, Ordering::SeqCst) + 1 == number {
        eprintln!("before its step {number}: {}", what());
        let _ = kill_process(getpid(), signal);
    }
}
