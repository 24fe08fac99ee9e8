//! `virga upgrade-machine-type`.

use std::process::ExitCode;

use super::args::value;
use crate::base::{GuestName, Result};
use crate::ops::Env;
use crate::ops::upgrade::{self, Outcome};

/// `virga upgrade-machine-type`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest, which must not run
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// Go back to the machine type from before
    #[arg(long)]
    rollback: bool,
}

/// Runs `virga upgrade-machine-type`.
///
/// # Errors
/// As [`upgrade::upgrade`] and [`upgrade::rollback`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let Args { name, rollback } = args;
    let outcome = if rollback { upgrade::rollback(env, &name)? } else { upgrade::upgrade(env, &name)? };
    env.reporter.note(&match outcome {
        Outcome::Changed { from, to } => format!("the machine of '{name}' was a {from} and is a {to}"),
        Outcome::Newest(to) => format!("the machine of '{name}' is a {to}, and there is no newer one"),
        Outcome::Undecided => format!("'{name}' was never started: it gets the newest machine type then"),
    });
    Ok(ExitCode::SUCCESS)
}
