//! `virga port`.

use std::process::ExitCode;

use clap::Subcommand;

use super::args::value;
use super::term;
use crate::base::plan::Forward;
use crate::base::{GuestName, Result};
use crate::ops::{Env, port};

/// `virga port`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a port of a container reachable on 127.0.0.1
    Add(PortArgs),
    /// Take it away again
    Remove(PortArgs),
}

#[derive(clap::Args, Debug)]
struct PortArgs {
    /// The guest, which may run
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// The host's port, 0 for one that is free, and the guest's
    #[arg(value_parser = value::<Forward>, value_name = "HOST:GUEST")]
    port: Forward,
}

/// Runs `virga port`.
///
/// # Errors
/// As [`port::add`] and [`port::remove`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Add(PortArgs { name, port }) => {
            let Forward { host, guest } = port::add(env, &name, port)?;
            term::line(&format!("{host}:{guest}"));
        }
        Command::Remove(PortArgs { name, port }) => port::remove(env, &name, port)?,
    }
    Ok(ExitCode::SUCCESS)
}
