//! `virga create`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{MachineArgs, TimeoutArg, disk, user, value};
use super::{term, wait};
use crate::base::plan::Forward;
use crate::base::{ByteSize, GuestName, Kind, Result};
use crate::ops::create::CreateRequest;
use crate::ops::wait::Goal;
use crate::ops::{Env, create, destroy};

/// `virga create`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest's name, which is also its host name
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    #[command(flatten)]
    machine: MachineArgs,
    /// Add an empty disk; may be given several times
    #[arg(long, value_parser = disk, value_name = "SIZE", help_heading = "Machine")]
    ephemeral_disk: Vec<ByteSize>,
    /// Make a port of the guest reachable on 127.0.0.1; may be given several times
    #[arg(long, visible_alias = "publish", short = 'p', value_parser = value::<Forward>, value_name = "HOST:GUEST", help_heading = "Machine")]
    port: Vec<Forward>,

    /// Your own cloud-init user-data, merged with virga's; may be given several times, and then a
    /// later file replaces the lists of an earlier one, as in cloud-init
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    user_data: Vec<PathBuf>,
    /// Your own cloud-init meta-data
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    meta_data: Option<PathBuf>,
    /// Your own cloud-init network-config
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    network_config: Option<PathBuf>,
    /// Set the user's password and allow it over SSH (visible in the process list: for debugging)
    #[arg(long, value_name = "PASSWORD", help_heading = "First boot")]
    password: Option<String>,
    /// Install packages, separated by commas; may be given several times
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', help_heading = "First boot")]
    packages: Vec<String>,
    /// Run a script as root once; may be given several times
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    run_script_once: Vec<PathBuf>,
    /// Public keys that get in [default: the agent's, else ~/.ssh/id_*.pub, else one of virga's own]
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    ssh_public_key_file: Vec<PathBuf>,
    /// The user to log in as [default: the image's]
    #[arg(long, value_parser = user, value_name = "USER", help_heading = "First boot")]
    user: Option<String>,

    /// Start from a saved machine of this image, made first if there is none: ready within seconds
    #[arg(long)]
    warm: bool,
    /// Only define it
    #[arg(long, conflicts_with = "wait")]
    no_start: bool,
    /// Wait until it is ready, as 'virga wait' does
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    timeout: TimeoutArg,
}

/// Runs `virga create`.
///
/// # Errors
/// As [`create::create`] and, with `--wait`, [`crate::ops::wait::wait`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    if args.password.is_some() {
        env.reporter.warn("--password can be read in the process list and in the seed: for debugging only");
    }
    let name = args.name.clone();
    let timeout = args.timeout;
    let (start, wait) = (!args.no_start, args.wait);
    let created = create::create(env, &request(args))?;
    if created.record.origin.template.is_some() {
        let stages = term::stages(&created.stages);
        env.reporter.note(&format!("started '{name}' warm: {stages}"));
    } else if !wait {
        let what = if start { "started" } else { "created" };
        env.reporter.note(&format!("{what} '{name}'"));
    }
    if !wait {
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = wait::wait(env, &name, Goal::CloudInit, timeout);
    if let Err(error) = &outcome
        && error.kind() == Kind::Interrupted
    {
        // Ctrl-C takes back what the command made. A guest that was not ready in time stays, to be looked at.
        term::talk(&format!("interrupted: removing '{name}'"));
        destroy::destroy(env, &name)?;
    }
    outcome
}

fn request(args: Args) -> CreateRequest {
    CreateRequest {
        name: args.name,
        machine: args.machine.request(),
        warm: args.warm,
        ephemeral_disks: args.ephemeral_disk,
        forwards: args.port,
        user_data: args.user_data,
        meta_data: args.meta_data,
        network_config: args.network_config,
        password: args.password,
        packages: args.packages,
        scripts: args.run_script_once,
        ssh_public_key_files: args.ssh_public_key_file,
        user: args.user,
        start: !args.no_start,
    }
}
