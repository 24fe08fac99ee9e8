//! Logging in to a guest with its pinned host keys.

use std::time::Duration;

use super::{Env, identity, list, wait};
use crate::base::{GuestName, Kind, Result};
use crate::guest::{self, Record};
use crate::ssh::known_hosts;
use crate::ssh::session::{self, Login};

pub use crate::ssh::session::Tty;

/// How to get in to a guest: user, keys, the host keys to expect.
#[must_use]
pub fn login(env: Env<'_>, record: &Record, user: Option<String>) -> Login {
    Login {
        user: user.unwrap_or_else(|| record.user.clone()),
        alias: known_hosts::alias(record.name()),
        known_hosts: env.settings.layout.guest_files(record.name()).known_hosts(),
        algorithms: known_hosts::algorithms(&record.plan.host_keys),
        identities: identity::keys(&env.settings.layout, record),
        pinned: true,
    }
}

/// How to go in.
#[derive(Clone, Debug)]
pub struct SshRequest {
    /// As whom; `None`: as the guest's user.
    pub user: Option<String>,
    /// Whether with a terminal.
    pub tty: Tty,
    /// Options of the `ssh` program's own.
    pub options: Vec<String>,
    /// The command; empty: a shell.
    pub command: Vec<String>,
    /// How long a guest that was started just now is waited for; `None`: not at all.
    pub patience: Option<Duration>,
}

/// Runs a command, or a shell, with our own input, output and terminal.
/// Returns the exit code: the command's own, or 255 when the channel failed.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest, [`Kind::Failed`] when it does not run, [`Kind::TimedOut`] when it does not let
/// anybody in for as long as it is waited for.
pub fn ssh(env: Env<'_>, name: &GuestName, request: &SshRequest) -> Result<u8> {
    let address = list::address(env, name)?;
    if let Some(patience) = request.patience {
        wait::until_login(env, name, patience).map_err(|error| match error.kind() {
            Kind::TimedOut => error.hint("'--no-wait' tries at once, '--timeout' says how long to wait"),
            _ => error,
        })?;
    }
    // Who its user is may have been found out just now.
    let record = guest::get(&env.settings.layout, name)?;
    let target = login(env, &record, request.user.clone()).at(address);
    let code = session::interactive_with(&target, &request.options, &request.command, request.tty)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
