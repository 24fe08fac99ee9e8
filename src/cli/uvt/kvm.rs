//! `uvt-kvm`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};

use super::listening::within;
use crate::base::cmd::Output;
use crate::base::container::ContainerWish;
use crate::base::nic::Network;
use crate::base::plan::Tuning;
use crate::base::{Arch, BackendName, ByteSize, Error, GuestName, Kind, Result, given, interrupt};
use crate::cli::args::value;
use crate::cli::term;
use crate::ops::create::{CreateRequest, From, MachineRequest, Password};
use crate::ops::session::Life;
use crate::ops::uvt::create::{Wish, create};
use crate::ops::uvt::guests::{self, Entry};
use crate::ops::uvt::{POOL, wait};

/// Most bytes of a script that is run in the guest.
const SCRIPT_LIMIT: u64 = 16 << 20;

/// Makes guests of libvirt out of the images of the storage pool 'uvtool', and enters them.
///
/// This is virga, called by the name of uvtool's command. It takes uvtool's arguments and finds
/// guests that uvtool made; /usr/share/doc/virga/uvtool.md lists what differs.
#[derive(Debug, Parser)]
#[command(name = "uvt-kvm", version, infer_long_args = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a guest and start it
    #[command(infer_long_args = true)]
    Create(Box<CreateArgs>),
    /// Stop guests and remove them with the disks that are their own
    Destroy {
        /// The guests
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// List the names of all guests of libvirt
    List,
    /// Print a guest's address
    Ip {
        /// The guest
        name: String,
    },
    /// Log in to a guest, or run a command in it
    #[command(infer_long_args = true)]
    Ssh(SshArgs),
    /// Wait until a guest can be used
    #[command(infer_long_args = true)]
    Wait(WaitArgs),
}

#[derive(clap::Args, Debug)]
struct CreateArgs {
    /// The guest's name, which is also its host name
    #[arg(value_parser = value::<GuestName>)]
    hostname: GuestName,
    /// Which image, as in release=noble arch=amd64 [default: the newest long-term release]
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,

    /// Memory
    #[arg(long, default_value_t = 512, value_name = "MIB", help_heading = "Machine")]
    memory: u64,
    /// Processors
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Machine")]
    cpu: u32,
    /// Size of the first disk [default: 8, or the image's if larger]
    #[arg(long, value_name = "GIB", help_heading = "Machine")]
    disk: Option<u64>,
    /// Add an empty disk; may be given several times
    #[arg(long, value_name = "GIB", help_heading = "Machine")]
    ephemeral_disk: Vec<u64>,
    /// A bridge of the host's for the only network card [default: libvirt's network 'default']
    #[arg(long, value_parser = value::<BackendName>, help_heading = "Machine")]
    bridge: Option<BackendName>,
    /// Do not care for the disks' content when the host fails: faster
    #[arg(long, help_heading = "Machine")]
    unsafe_caching: bool,
    /// How the disks are cached
    #[arg(long, value_name = "MODE", value_parser = ["default", "none", "writethrough", "writeback", "directsync", "unsafe"], help_heading = "Machine")]
    disk_cache: Option<String>,
    /// Give the guest the host's processor (what virga does anyway, but for a --template)
    #[arg(long, help_heading = "Machine")]
    host_passthrough: bool,
    /// Log the serial console in /var/log/libvirt/qemu, too; nobody can type on it then
    #[arg(long, help_heading = "Machine")]
    log_console_output: bool,
    /// --unsafe-caching and --log-console-output
    #[arg(short, long, help_heading = "Machine")]
    developer: bool,
    /// The machine's type in QEMU's words
    #[arg(long, value_name = "TYPE", help_heading = "Machine")]
    machine_type: Option<String>,
    /// A domain's XML in which the guest is filled in
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    template: Option<PathBuf>,
    /// The guest's architecture: x86_64 or aarch64 [default: the image's]
    #[arg(long, value_name = "ARCH", help_heading = "Machine")]
    guest_arch: Option<String>,
    /// A qcow2 file to stand on, in place of an image
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    backing_image_file: Option<PathBuf>,
    /// The pool for the guest's disks
    #[arg(long, default_value = POOL, help_heading = "Machine")]
    pool: String,
    /// The pool with the images
    #[arg(long, default_value = POOL, value_name = "POOL", help_heading = "Machine")]
    image_pool: String,

    /// Your own cloud-init user-data, merged with what gets you in; '-' reads standard input, here and with the other
    /// files below
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    user_data: Option<PathBuf>,
    /// Your own cloud-init meta-data
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    meta_data: Option<PathBuf>,
    /// Your own cloud-init network-config
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    network_config: Option<PathBuf>,
    /// Set the user's password and allow it over SSH (visible in the process list: for debugging)
    #[arg(long, conflicts_with = "user_data", help_heading = "First boot")]
    password: Option<String>,
    /// Run a script as root once; may be given several times
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    run_script_once: Vec<PathBuf>,
    /// Install packages, separated by commas; may be given several times
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', help_heading = "First boot")]
    packages: Vec<String>,
    /// Public keys that get in [default: the agent's, else ~/.ssh/id_*.pub; virga's own as well where none of them opens
    /// the guest without anybody's help]
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    ssh_public_key_file: Option<PathBuf>,
    /// Only define it
    #[arg(long)]
    no_start: bool,
}

#[derive(clap::Args, Debug)]
struct SshArgs {
    /// Go in even if the guest's host keys are not known
    #[arg(long)]
    insecure: bool,
    /// Log in as this user [default: the image's, else ubuntu]
    #[arg(short, long, value_name = "USER")]
    login_name: Option<String>,
    /// The guest, with another user's name before it if wanted
    #[arg(value_name = "[USER@]NAME")]
    name: String,
    /// A command to run instead of a shell, behind options of ssh's own if wanted: NAME -- -t CMD
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(clap::Args, Debug)]
struct WaitArgs {
    /// Give up after so many seconds in all
    #[arg(long, default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    timeout: f64,
    /// What the script is told of pauses; virga looks more often by itself
    #[arg(long, default_value = "8", value_parser = seconds, value_name = "SECONDS")]
    interval: f64,
    /// A script for the guest's sh that ends when the guest is ready [default: waits for cloud-init]
    #[arg(long, value_name = "FILE")]
    remote_wait_script: Option<PathBuf>,
    /// Log in as this user [default: the image's, else ubuntu]
    #[arg(long, value_name = "USER")]
    remote_wait_user: Option<String>,
    /// It is enough that the SSH server answers
    #[arg(long)]
    without_ssh: bool,
    /// The key to log in with
    #[arg(long, value_name = "FILE")]
    ssh_private_key_file: Option<PathBuf>,
    /// Go in even if the guest's host keys are not known
    #[arg(long)]
    insecure: bool,
    /// The guest
    name: String,
}

/// A number of seconds that a deadline can have.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if Duration::try_from_secs_f64(number).is_ok() => Ok(number),
        _ => Err("not a number of seconds".into()),
    }
}

/// Its command line.
pub(super) fn command() -> clap::Command {
    Cli::command()
}

/// Runs it.
///
/// # Errors
/// As the operations of [`crate::ops::uvt`].
pub(super) fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Create(args) => make(*args)?,
        Command::Destroy { names } => return destroy(&names),
        Command::List => {
            let names = within(POOL, guests::list)?;
            names.iter().for_each(|name| term::line(name));
        }
        Command::Ip { name } => ip(&name)?,
        Command::Ssh(args) => return ssh(args),
        Command::Wait(args) => wait(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn make(args: CreateArgs) -> Result<()> {
    if args.password.is_some() {
        term::talk(
            "Warning: using --password from the command line is not secure and should be used for debugging only.",
        );
    }
    let arch = guest_arch(&args)?;
    let log_console = args.log_console_output || args.developer;
    if log_console {
        term::talk("Warning: with --log-console-output 'virsh console' cannot be used with this guest.");
    }
    let pool = args.pool.clone();
    let cache = if args.unsafe_caching || args.developer { Some("unsafe".to_owned()) } else { args.disk_cache };
    let gib = |size: u64| ByteSize(size.saturating_mul(ByteSize::GIB));
    let wish = Wish {
        filters: args.filters,
        backing_image_file: args.backing_image_file,
        image_pool: args.image_pool,
        pool: args.pool,
        arch,
        template: args.template,
    };
    let request = CreateRequest {
        name: args.hostname,
        machine: MachineRequest {
            from: From::Pool(Vec::new()),
            driver: None,
            accel: None,
            memory: Some(ByteSize(args.memory.saturating_mul(ByteSize::MIB))),
            cpus: Some(args.cpu),
            disk: args.disk.map(gib),
            arch: None,
            firmware: None,
            tpm: false,
            container: ContainerWish::default(),
        },
        warm: false,
        ephemeral_disks: args.ephemeral_disk.into_iter().map(gib).collect(),
        networks: args.bridge.map(Network::Bridge).into_iter().collect(),
        macs: Vec::new(),
        forwards: Vec::new(),
        user_data: args.user_data.into_iter().collect(),
        meta_data: args.meta_data,
        network_config: args.network_config,
        password: args.password.map(Password::Given),
        packages: args.packages.into_iter().filter(|package| !package.is_empty()).collect(),
        scripts: args.run_script_once,
        scripts_are_shell: true,
        ssh_public_key_files: args.ssh_public_key_file.into_iter().collect(),
        user: None,
        machine_type: args.machine_type,
        tuning: Tuning { disk_cache: cache, host_cpu: args.host_passthrough, log_console, ..Tuning::default() },
        start: !args.no_start,
        life: Life::Kept,
    };
    within(&pool, |env| create(env, &wish, request)).map(drop)
}

/// The architecture that is asked for; a template decides it by itself.
fn guest_arch(args: &CreateArgs) -> Result<Option<Arch>> {
    let Some(name) = args.guest_arch.as_deref() else { return Ok(None) };
    match name {
        "aarch64" => {
            if args.host_passthrough {
                term::talk("Info: on aarch64 a host type cpu is the default");
            }
            Ok(Some(Arch::Arm64))
        }
        "x86_64" | "i686" => Ok(Some(Arch::Amd64)),
        _ if args.template.is_some() => Ok(None),
        "ppc64le" | "s390x" => Err(Error::new(Kind::Unsupported, format!("virga makes no guests of {name} by itself"))
            .hint("--template FILE with a domain of that architecture does")),
        _ => {
            term::talk(&format!("Warning: unknown architecture '{name}' using defaults"));
            Ok(None)
        }
    }
}

/// Each is tried; the first that fails does not keep the others.
fn destroy(names: &[String]) -> Result<ExitCode> {
    within(POOL, |env| {
        let mut code = ExitCode::SUCCESS;
        for name in names {
            interrupt::check()?;
            if let Err(error) = guests::destroy(env, name) {
                code = super::failed(super::TOOLS[0], &error);
            }
        }
        Ok(code)
    })
}

fn ip(name: &str) -> Result<()> {
    let addresses = within(POOL, |env| guests::addresses(env, name))?;
    if addresses.iter().filter(|address| address.is_ipv4()).count() > 1 {
        term::talk(&format!("Warning: libvirt machine '{name}' has several IP addresses; this is the first."));
    }
    addresses.first().into_iter().for_each(|address| term::line(&address.to_string()));
    Ok(())
}

fn ssh(args: SshArgs) -> Result<ExitCode> {
    let (user, name) = match (args.login_name, args.name.split_once('@')) {
        (None, Some((user, name))) => (Some(user.to_owned()), name.to_owned()),
        // uvtool takes the '@' for a part of the name then.
        (user, _) => (user, args.name),
    };
    let entry = Entry { user, key: None, insecure: args.insecure };
    let code = within(POOL, |env| guests::ssh(env, &name, &entry, &args.command))?;
    Ok(ExitCode::from(code))
}

fn wait(args: WaitArgs) -> Result<()> {
    let script = args.remote_wait_script;
    let script = script.map(|file| given::read(&file, SCRIPT_LIMIT, "--remote-wait-script")).transpose()?;
    let entry = Entry { user: args.remote_wait_user, key: args.ssh_private_key_file, insecure: args.insecure };
    let request = wait::Request {
        name: args.name,
        timeout: Duration::try_from_secs_f64(args.timeout).unwrap_or(Duration::MAX),
        // As Python writes them: 8.0
        told: [args.interval, args.timeout].map(|number| format!("{number:?}")),
        script,
        entry: (!args.without_ssh).then_some(entry),
    };
    let said = |output: &Output| {
        term::data(&String::from_utf8_lossy(&output.stdout));
        let stderr = String::from_utf8_lossy(&output.stderr);
        stderr.lines().for_each(term::talk);
    };
    within(POOL, |env| wait::wait(env, &request, said))
}
