//! A guest's serial console: what it wrote, and a line to it.

use std::os::unix::net::UnixStream;

use super::{Env, change, list};
use crate::base::{GuestName, Result};
use crate::guest;

/// The last lines of what a guest wrote on its console, oldest first. Works
/// on half-made and dead guests too: that is when it is wanted most.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Unsupported`] where no log is kept.
pub fn log(env: Env<'_>, name: &GuestName, lines: usize) -> Result<Vec<String>> {
    let record = match guest::load(&env.settings.layout, name)? {
        Some(record) => record,
        None => guest::get(&env.settings.layout, name)?,
    };
    let driver = env.driver(record.driver);
    driver.console_tail(&record.plan, lines)
}

/// Connects to the console of a guest that runs or is held. One client at a time; it ends with the guest.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest; [`crate::base::Kind::Failed`] when it does not run, or another client is there.
pub fn connect(env: Env<'_>, name: &GuestName) -> Result<UnixStream> {
    // Under the lock, so that two commands at once do not both find it free; not longer than that.
    let held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    match driver.status(&held.record.plan)? {
        status if !status.is_alive() => Err(list::not_running(name, status)),
        _ => driver.console(&held.record.plan),
    }
}
