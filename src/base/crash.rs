//! The steps that a kill can come between.
//!
//! A debug build counts them and dies before the N-th when `VIRGA_TEST_DIE_AT=N` says so: a test goes through all of
//! them so, each once, on any machine. A release build has nothing of this.

/// Tells the program that is started nothing of it.
pub const VARIABLE: &str = "VIRGA_TEST_DIE_AT";

/// Something is about to be done that outlives this process: to the disk, to a lock, to another program.
#[cfg(debug_assertions)]
#[allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "for tests alone: they set it, and read where it died"
)]
pub fn step(what: impl FnOnce() -> String) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static LAST: OnceLock<Option<usize>> = OnceLock::new();
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let Some(last) = LAST.get_or_init(|| std::env::var(VARIABLE).ok()?.parse().ok()) else { return };
    let taken = TAKEN.fetch_add(1, Ordering::SeqCst) + 1;
    if taken == *last {
        eprintln!("dies before its step {taken}: {}", what());
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn step(_: impl FnOnce() -> String) {}
