//! `virga publish`.

use std::process::ExitCode;

use clap::ValueEnum;

use super::{args, term};
use crate::base::{BackendName, Error, GuestName, Result};
use crate::ops::Env;
use crate::ops::to_image::{self, To};

/// `virga publish`
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The image is without what makes it that guest: machine-id, host keys, cloud-init's state, leases, logs,
the keys that let people in. Prints its id.

  virga publish web role=frontend
  virga create front1 published=web")]
pub struct Args {
    /// The container, which must not run
    #[arg(value_parser = args::value::<GuestName>)]
    name: GuestName,
    /// What the image is; os, release and version are those of the guest's own image unless they are given
    #[arg(value_name = "KEY=VALUE")]
    keys: Vec<String>,
    /// Where it goes: into virga's pool, or into the store of the guest's daemon
    #[arg(long, value_enum, default_value_t = Target::Pool, value_name = "WHERE")]
    to: Target,
    /// Its name at the daemon [default: the guest's]
    #[arg(long, value_parser = args::value::<BackendName>, value_name = "NAME")]
    alias: Option<BackendName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    Pool,
    Daemon,
}

/// Runs `virga publish`.
///
/// # Errors
/// As [`to_image::publish`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let Args { name, keys, to, alias } = args;
    let to = match (to, alias) {
        (Target::Daemon, Some(alias)) => To::Daemon(alias),
        (Target::Daemon, None) => To::Daemon(name.as_str().parse()?),
        (Target::Pool, None) => To::Pool,
        (Target::Pool, Some(_)) => {
            return Err(Error::usage("only images at a daemon have an alias").hint("--to daemon"));
        }
    };
    term::line(&to_image::publish(env, &name, &keys, &to)?.to_string());
    Ok(ExitCode::SUCCESS)
}
