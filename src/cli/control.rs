//! `virga start`, `virga stop`, `virga restart`.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{duration, value};
use crate::base::{GuestName, Kind, Result, interrupt};
use crate::driver::Autostart;
use crate::ops::{Env, control};

/// `virga start`
#[derive(clap::Args, Debug)]
pub struct StartArgs {
    /// The guests
    #[arg(required = true, value_parser = value::<GuestName>, value_name = "NAME")]
    names: Vec<GuestName>,
    /// And whenever their host starts, from now on
    #[arg(long, conflicts_with = "no_autostart")]
    autostart: bool,
    /// Among those that start with the host, the ones with a lower number come first
    #[arg(long, requires = "autostart", value_name = "N")]
    order: Option<u32>,
    /// Seconds that the host waits after this one before it starts the next
    #[arg(long, requires = "autostart", value_name = "SECONDS")]
    delay: Option<u32>,
    /// And not by themselves any more when their host starts
    #[arg(long)]
    no_autostart: bool,
}

/// `virga stop` and `virga restart`
#[derive(clap::Args, Debug)]
pub struct StopArgs {
    /// The guests
    #[arg(required = true, value_parser = value::<GuestName>, value_name = "NAME")]
    names: Vec<GuestName>,
    /// Pull the plug instead of asking the guest to shut down
    #[arg(long, conflicts_with = "timeout")]
    force: bool,
    /// How long a guest may take to shut down, as in 90s, 5m or 2h [default: 90s]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    timeout: Option<Duration>,
}

/// Does the same to each guest; one that fails does not keep the others.
pub(super) fn each(
    env: Env<'_>,
    names: &[GuestName],
    mut act: impl FnMut(&GuestName) -> Result<()>,
) -> Result<ExitCode> {
    let mut first = None;
    for name in names {
        interrupt::check()?;
        if let Err(error) = act(name) {
            if error.kind() == Kind::Interrupted {
                return Err(error);
            }
            match &first {
                None => first = Some(error),
                Some(_) => env.reporter.warn(&error.to_string()),
            }
        }
    }
    first.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Runs `virga start`.
///
/// # Errors
/// As [`control::start`].
pub fn start(env: Env<'_>, args: StartArgs) -> Result<ExitCode> {
    let wish = Autostart { order: args.order.unwrap_or(0), delay: args.delay.unwrap_or(0) };
    let autostart = (args.autostart || args.no_autostart).then_some(args.autostart.then_some(wish));
    each(env, &args.names, |name| {
        if !control::start(env, name, autostart)? {
            env.reporter.note(&format!("guest '{name}' is running already"));
        }
        Ok(())
    })
}

/// Runs `virga stop`.
///
/// # Errors
/// As [`control::stop`].
pub fn stop(env: Env<'_>, args: StopArgs) -> Result<ExitCode> {
    each(env, &args.names, |name| {
        if !control::stop(env, name, control::how(args.force, args.timeout))? {
            env.reporter.note(&format!("guest '{name}' is not running"));
        }
        Ok(())
    })
}

/// Runs `virga restart`.
///
/// # Errors
/// As [`control::restart`].
pub fn restart(env: Env<'_>, args: StopArgs) -> Result<ExitCode> {
    each(env, &args.names, |name| control::restart(env, name, control::how(args.force, args.timeout)))
}
