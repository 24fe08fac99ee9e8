//! Starting and stopping guests that exist.

use std::time::Duration;

use super::Env;
use crate::base::{GuestName, Result};
use crate::driver::Stop;
use crate::guest;

/// Starts a guest; one that runs is left alone. Returns whether it had to be started.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Unavailable`] when the backend cannot run it.
pub fn start(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    if driver.status(&held.record.plan)?.is_alive() {
        return Ok(false);
    }
    for note in driver.start(&held.record.plan)?.notes {
        env.reporter.note(&note);
    }
    Ok(true)
}

/// Stops a guest and returns once it is dead; one that does not run is left alone.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] when it would not go in time.
pub fn stop(env: Env<'_>, name: &GuestName, how: Stop) -> Result<bool> {
    let held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    if !driver.status(&held.record.plan)?.is_alive() {
        return Ok(false);
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("shutting down");
    driver.stop(&held.record.plan, how)?;
    Ok(true)
}

/// Stops a guest, if it runs, and starts it.
///
/// # Errors
/// As [`stop`] and [`start`].
pub fn restart(env: Env<'_>, name: &GuestName, how: Stop) -> Result<()> {
    stop(env, name, how)?;
    start(env, name)?;
    Ok(())
}

/// What `--force` and `--timeout` mean.
#[must_use]
pub fn how(force: bool, timeout: Option<Duration>) -> Stop {
    if force { Stop::Force } else { Stop::Graceful(timeout.unwrap_or(Duration::from_secs(90))) }
}
