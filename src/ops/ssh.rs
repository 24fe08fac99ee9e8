//! Logging in to a guest with its pinned host keys.

use super::{Env, list};
use crate::base::{GuestName, Result};
use crate::guest::{self, Record};
use crate::ssh::known_hosts;
use crate::ssh::session::{self, Login, Tty};

/// How to get in to a guest: user, keys, the host keys to expect.
#[must_use]
pub fn login(env: Env<'_>, record: &Record, user: Option<String>) -> Login {
    Login {
        user: user.unwrap_or_else(|| record.user.clone()),
        alias: known_hosts::alias(record.name()),
        known_hosts: env.settings.layout.guest_files(record.name()).known_hosts(),
        algorithms: known_hosts::algorithms(&record.plan.host_keys),
        identities: record.identities.clone(),
        pinned: true,
    }
}

/// Runs a command, or a shell, with our own input, output and terminal.
/// Returns the exit code: the command's own, or 255 when the channel failed.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Failed`] when it does not run.
pub fn ssh(env: Env<'_>, name: &GuestName, user: Option<String>, tty: bool, command: &[String]) -> Result<u8> {
    let tty = if tty { Tty::Always } else { Tty::Auto };
    let record = guest::get(&env.settings.layout, name)?;
    let address = list::address(env, name)?;
    let code = session::interactive(&login(env, &record, user).at(address), command, tty)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
