//! `virga wait`.

use std::process::ExitCode;

use super::args::{TimeoutArg, value};
use super::term;
use crate::base::{GuestName, Result};
use crate::ops::wait::{Goal, Outcome};
use crate::ops::{Env, wait as op};

/// `virga wait`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// What to wait for: boot (SSH answers), ssh (a login works) or cloud-init (it has ended)
    #[arg(long = "for", value_parser = value::<Goal>, value_name = "GOAL", default_value = "cloud-init")]
    goal: Goal,
    #[command(flatten)]
    timeout: TimeoutArg,
}

/// Runs `virga wait`.
///
/// # Errors
/// As [`op::wait`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    wait(env, &args.name, args.goal, args.timeout)
}

/// Waits and says how it went. Ends with 1 when cloud-init reports errors.
///
/// # Errors
/// As [`op::wait`].
pub fn wait(env: Env<'_>, name: &GuestName, goal: Goal, timeout: TimeoutArg) -> Result<ExitCode> {
    let ready = op::wait(env, name, goal, timeout.timeout.unwrap_or(env.settings.defaults.timeout))?;
    let line = format!("'{name}' is ready: {}", term::stages(&ready.stages));
    match &ready.outcome {
        None | Some(Outcome::Done) => env.reporter.note(&line),
        Some(Outcome::Degraded(details)) => {
            env.reporter.note(&line);
            for detail in details {
                env.reporter.warn(&format!("cloud-init is degraded: {detail}"));
            }
        }
        Some(Outcome::Error(details)) => {
            for detail in details {
                term::talk(&format!("error: cloud-init failed in '{name}': {detail}"));
            }
            term::talk(&format!(
                "hint: look at /var/log/cloud-init-output.log: virga ssh {name} -- sudo cat /var/log/cloud-init-output.log"
            ));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
