//! `virga resize`.

use std::process::ExitCode;

use super::args::{disk, memory, value};
use crate::base::{ByteSize, GuestName, Result};
use crate::ops::Env;
use crate::ops::resize::{self, ResizeRequest};

/// `virga resize`
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["memory", "cpus", "disk"])))]
pub struct Args {
    /// The guest, which must not run; containers of Incus may
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// Memory, as in 512M or 2G; a bare number counts MiB
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Processors
    #[arg(long, visible_alias = "cpu", value_name = "N")]
    cpus: Option<u32>,
    /// Size of the first disk, which can only grow; a bare number counts GiB
    #[arg(long, value_parser = disk, value_name = "SIZE")]
    disk: Option<ByteSize>,
}

/// Runs `virga resize`.
///
/// # Errors
/// As [`resize::resize`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let Args { name, memory, cpus, disk } = args;
    if resize::resize(env, &name, &ResizeRequest { memory, cpus, disk })? {
        env.reporter.note(&format!("resized '{name}'"));
    } else {
        env.reporter.note(&format!("guest '{name}' has that size already"));
    }
    Ok(ExitCode::SUCCESS)
}
