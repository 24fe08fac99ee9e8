//! `virga create`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::args::{MachineArgs, TimeoutArg, disk, duration, user, value};
use super::{term, wait};
use crate::base::nic::{Mac, Network};
use crate::base::plan::{Forward, Tuning};
use crate::base::{ByteSize, GuestName, Kind, Result, interrupt};
use crate::ops::create::{CreateRequest, Password};
use crate::ops::session::Life;
use crate::ops::wait::Goal;
use crate::ops::{Env, create, destroy};

/// `virga create`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest's name, which is also its host name
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    #[command(flatten)]
    guest: GuestArgs,
    /// Destroy it after this time, as in 90s, 5m or 2h
    #[arg(long, value_parser = duration, value_name = "TIME")]
    ttl: Option<Duration>,
    /// Only define it
    #[arg(long, conflicts_with = "wait")]
    no_start: bool,
    /// Wait until it is ready, as 'virga wait' does
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    timeout: TimeoutArg,
}

/// What a guest is to be like: for verbs that make one.
#[derive(clap::Args, Debug)]
pub struct GuestArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Add an empty disk; may be given several times
    #[arg(long, value_parser = disk, value_name = "SIZE", help_heading = "Machine")]
    ephemeral_disk: Vec<ByteSize>,
    /// What a network card is plugged into: user (reaches the world, not this host), full (and this host), none (nothing:
    /// forwarded ports lead in), nat, network=NAME or bridge=NAME; each one adds a card [default: what suits the driver]
    #[arg(long, value_parser = value::<Network>, value_name = "NETWORK", help_heading = "Machine")]
    network: Vec<Network>,
    /// Address of a network card; may be given several times, in the cards' order [default: made up]
    #[arg(long, value_parser = value::<Mac>, value_name = "ADDRESS", help_heading = "Machine")]
    mac: Vec<Mac>,
    /// Make a port of the guest reachable on 127.0.0.1; may be given several times
    #[arg(long, visible_alias = "publish", short = 'p', value_parser = value::<Forward>, value_name = "HOST:GUEST", help_heading = "Machine")]
    port: Vec<Forward>,

    /// Your own cloud-init user-data in any of its forms, packed or not, merged with virga's; '-' reads standard
    /// input, here and with the other files below. May be given several times, and then a later file replaces the
    /// lists of an earlier one, as in cloud-init
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    user_data: Vec<PathBuf>,
    /// Your own cloud-init meta-data; what it lacks is filled in
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    meta_data: Option<PathBuf>,
    /// Your own cloud-init network-config
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    network_config: Option<PathBuf>,
    /// Set the user's password, plain or as crypt(3) writes it, and allow it over SSH (visible in the process list: for
    /// debugging)
    #[arg(long, value_name = "PASSWORD", help_heading = "First boot")]
    password: Option<String>,
    /// The same, read from a file that has it alone on its line
    #[arg(long, value_name = "FILE", conflicts_with = "password", help_heading = "First boot")]
    password_file: Option<PathBuf>,
    /// Install packages, separated by commas; may be given several times
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', help_heading = "First boot")]
    packages: Vec<String>,
    /// Run a script as root once; may be given several times
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    run_script_once: Vec<PathBuf>,
    /// Public keys that get in [default: the agent's, else ~/.ssh/id_*.pub; virga's own as well where none of them opens
    /// the guest without anybody's help]
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    ssh_public_key_file: Vec<PathBuf>,
    /// The user to log in as [default: the image's]
    #[arg(long, value_parser = user, value_name = "USER", help_heading = "First boot")]
    user: Option<String>,

    /// Start from a saved machine of this image, made first if there is none: ready within seconds
    #[arg(long)]
    warm: bool,
}

/// Runs `virga create`.
///
/// # Errors
/// As [`create::create`] and, with `--wait`, [`crate::ops::wait::wait`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    if args.guest.password.is_some() {
        env.reporter
            .warn("--password can be read in the process list meanwhile: --password-file keeps it out of there");
    }
    let name = args.name.clone();
    let timeout = args.timeout;
    let (start, wait) = (!args.no_start, args.wait);
    let life = args.ttl.map_or(Life::Kept, Life::Limited);
    let created = create::create(env, &args.guest.request(args.name, life, start))?;
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
        interrupt::shielded(|| destroy::destroy_this(env, &created.record))?;
    }
    outcome
}

impl GuestArgs {
    /// The guest that is wanted, under a name and for so long.
    #[must_use]
    pub fn request(self, name: GuestName, life: Life, start: bool) -> CreateRequest {
        CreateRequest {
            name,
            machine: self.machine.request(),
            warm: self.warm,
            ephemeral_disks: self.ephemeral_disk,
            networks: self.network,
            macs: self.mac,
            forwards: self.port,
            user_data: self.user_data,
            meta_data: self.meta_data,
            network_config: self.network_config,
            password: self.password.map(Password::Given).or(self.password_file.map(Password::File)),
            packages: self.packages,
            scripts: self.run_script_once,
            scripts_are_shell: false,
            ssh_public_key_files: self.ssh_public_key_file,
            user: self.user,
            machine_type: None,
            tuning: Tuning::default(),
            start,
            life,
        }
    }
}
