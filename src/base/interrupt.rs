//! Ctrl-C and SIGTERM as a flag that long work looks at, so that every step's
//! undo runs before the process ends.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Context as _, Error, Kind, Result};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn flag() -> &'static Arc<AtomicBool> {
    FLAG.get_or_init(Arc::default)
}

/// Makes SIGINT, SIGTERM and SIGHUP set the flag instead of ending the process. SIGINT after any of them ends it at
/// once, as a way out when clean-up hangs. The others come twice without anybody's having asked twice: a terminal that
/// is closed sends SIGHUP by its shell and by the kernel, and service managers repeat themselves.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn install() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let what = || "installing the signal handlers".to_owned();
    // Order matters: the first signal finds the flag unset and only sets it.
    signal_hook::flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(flag())).context(what)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag())).context(what)?;
    }
    Ok(())
}

thread_local! {
    static SHIELDED: Cell<bool> = const { Cell::new(false) };
}

/// Does something that a signal which has come is no reason to leave half-done: taking back what was made. On this
/// thread nothing is interrupted meanwhile; a second signal ends the process as ever.
pub fn shielded<T>(work: impl FnOnce() -> T) -> T {
    let before = SHIELDED.replace(true);
    let done = work();
    SHIELDED.set(before);
    done
}

/// Whether a signal has come that this thread is to heed.
#[must_use]
pub fn requested() -> bool {
    flag().load(Ordering::Relaxed) && !SHIELDED.get()
}

/// Ends the current work when a signal has come.
///
/// # Errors
/// [`Kind::Interrupted`] then.
pub fn check() -> Result<()> {
    if requested() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
}
