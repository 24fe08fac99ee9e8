//! The command line: arguments in, printing and exit codes out. One file a
//! verb; each turns its `Args` into a plain request for `ops` and renders the
//! answer.

pub mod args;
pub mod render;
pub mod term;

mod access;
mod attach;
mod console;
mod control;
mod copy;
mod cp;
mod create;
mod destroy;
mod doctor;
mod exec;
mod gc;
mod generate;
mod images;
mod info;
mod list;
mod mirror;
mod pattern;
mod port;
mod prune;
mod publish;
mod raw;
mod resize;
mod run;
mod save;
mod screen;
mod snapshot;
mod ssh;
mod stream;
mod suspend;
mod sync;
mod template;
mod transport;
mod upgrade;
mod uvt;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::base::{Result, interrupt, state};
use crate::config;
use crate::ops::{Env, session};

/// Keeps cloud images in sync, verified, and makes machines of them.
#[derive(Debug, Parser)]
#[command(name = "virga", version, propagate_version = true, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say only warnings and errors on stderr
    #[arg(short, long, global = true)]
    quiet: bool,
    /// The daemon that keeps guests: for the libvirt driver as in qemu:///system or qemu+ssh://host/system [default:
    /// system for root, session for others], for the incus driver as in incus://REMOTE, a remote of the incus client,
    /// https://HOST:8443 or incus:///PATH/unix.socket, with ?project=NAME if need be [default: this host's]
    #[arg(long, global = true, value_name = "URI", value_parser = args::uri)]
    connect: Option<String>,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
A first guest:
  virga sync release=noble
  virga create web --wait
  virga ssh web
  virga destroy web

Exit codes: 0 done, 1 failed, 2 usage, 3 no such image or guest, 4 timed out,
5 verification refused, 6 backend not usable; 'ssh' gives the command's own.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch and verify images from a source
    Sync(sync::Args),
    /// List the images in the pool or at a source, check and remove them
    #[command(visible_alias = "query")]
    Images(images::Args),
    /// Remove what neither an image nor a guest needs
    Prune(prune::Args),
    /// Make a guest and start it
    Create(Box<create::Args>),
    /// Run a command in a guest made for it, which is gone afterwards
    Run(Box<run::Args>),
    /// Wait until a guest is ready
    Wait(wait::Args),
    /// Log in to a guest, or run a command in it
    Ssh(ssh::Args),
    /// Let plain ssh, scp, rsync and editors reach guests
    SshConfig(access::ConfigArgs),
    /// Running guests as an inventory for Ansible
    Inventory(access::InventoryArgs),
    /// Run a program in a guest: in a container without SSH
    Exec(exec::Args),
    /// Copy a file or a folder into a guest, or out of it
    Cp(cp::Args),
    /// Print where a guest's SSH is
    Ip(list::IpArgs),
    /// List the guests
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Start guests
    Start(control::StartArgs),
    /// Shut guests down
    Stop(control::StopArgs),
    /// Shut guests down and start them
    Restart(control::StopArgs),
    /// Connect to a guest's console, or show what it wrote there
    Console(console::Args),
    /// Show everything that is known of a guest
    Info(info::Args),
    /// Hold running guests in memory: 'resume' lets them go on
    Suspend(suspend::Args),
    /// Let suspended guests go on
    Resume(suspend::Args),
    /// Save running guests with their memory, and end them: 'start' goes on from there
    Save(save::Args),
    /// Keep a guest as it is, and put it back later
    Snapshot(snapshot::Args),
    /// Take a picture of a guest's screen
    Screenshot(screen::PictureArgs),
    /// Watch a guest's screen: its address on 127.0.0.1, and a window where there is a display
    Viewer(screen::ViewerArgs),
    /// Make another guest of a stopped one: a copy of its disks with an identity of its own
    Clone(copy::CloneArgs),
    /// Give a stopped guest another name
    Rename(copy::RenameArgs),
    /// Make an image of a stopped container: without its identity
    Publish(publish::Args),
    /// Write a stopped container into a file
    Export(transport::ExportArgs),
    /// Make a container of an exported one: what is on its disk with an identity of its own
    Import(transport::ImportArgs),
    /// Add and remove ports of a container
    Port(port::Args),
    /// Attach a disk or an ISO image to a guest, or a folder to a container
    Attach(attach::AttachArgs),
    /// Detach a disk or a folder from a guest
    Detach(attach::DetachArgs),
    /// Change a stopped guest's memory, processors and disk
    Resize(resize::Args),
    /// Give a stopped guest the newest machine type, or its old one back
    UpgradeMachineType(upgrade::Args),
    /// Remove guests with all that belongs to them
    #[command(visible_alias = "rm")]
    Destroy(destroy::Args),
    /// Remove what commands left that were killed: their throwaway and half-made guests
    Gc(gc::Args),
    /// Saved machines that guests start from within seconds
    Template(template::Args),
    /// Check that everything virga needs is there
    Doctor(doctor::Args),
    /// Copy what sources offer into a folder, as a signed stream
    Mirror(mirror::Args),
    /// Publish images as a signed stream
    Stream(stream::Args),
    /// Print completions for a shell
    Completions(generate::CompletionArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// Wait until a session is over, and remove its guests
    #[command(name = crate::ops::session::KEEP, hide = true)]
    Keep(gc::KeepArgs),
    /// Keep the last of what a guest writes on its console
    #[command(name = crate::driver::KEEP_CONSOLE, hide = true)]
    KeepConsole(console::KeepArgs),
}

/// Parses the command line, runs the verb, and returns the exit code.
#[must_use]
pub fn run() -> ExitCode {
    if let Some(code) = uvt::run() {
        return code;
    }
    // Exits by itself on --help and on usage errors, with code 2 as documented.
    let cli = Cli::parse_from(words());
    if let Command::KeepConsole(args) = &cli.command {
        // It needs no settings, and nothing that is wrong with them may keep it from its work.
        return console::keep(args);
    }
    log(cli.verbose);
    let terminal = term::Terminal::new(cli.quiet);
    let outcome = interrupt::install().and_then(|()| config::load()).and_then(|mut settings| {
        settings.connect = cli.connect.or(settings.connect);
        let env = Env { settings: &settings, reporter: &terminal };
        settings.notes.iter().for_each(|note| env.reporter.note(note));
        dispatch(env, cli.command)
    });
    match outcome {
        Ok(code) if term::data_was_lost() => {
            term::talk("error: the output could not be written");
            if code == ExitCode::SUCCESS { ExitCode::FAILURE } else { code }
        }
        Ok(code) => code,
        Err(error) => {
            term::error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// The command line; called as `virga-inventory` it is that of a verb, for Ansible gives scripts no arguments of ours.
fn words() -> Vec<std::ffi::OsString> {
    let mut words: Vec<_> = std::env::args_os().collect();
    let called = words.first().and_then(|word| std::path::Path::new(word).file_name()?.to_str());
    if called == Some("virga-inventory") {
        words.insert(1, "inventory".into());
    }
    words
}

fn dispatch(env: Env<'_>, command: Command) -> Result<ExitCode> {
    let stateless =
        matches!(command, Command::Doctor(_) | Command::Stream(_) | Command::Completions(_) | Command::Man(_));
    if !stateless {
        state::check(&env.settings.layout)?;
        if !matches!(command, Command::Keep(_) | Command::Gc(_)) {
            session::sweep(env);
        }
    }
    match command {
        Command::Sync(args) => sync::run(env, args),
        Command::Images(args) => images::run(env, args),
        Command::Prune(args) => prune::run(env, args),
        Command::Create(args) => create::run(env, *args),
        Command::Run(args) => run::run(env, *args),
        Command::Wait(args) => wait::run(env, args),
        Command::Ssh(args) => ssh::run(env, args),
        Command::SshConfig(args) => access::ssh_config(env, args),
        Command::Inventory(args) => access::inventory(env, args),
        Command::Exec(args) => exec::run(env, args),
        Command::Cp(args) => cp::run(env, args),
        Command::Ip(args) => list::ip(env, args),
        Command::List(args) => list::run(env, args),
        Command::Start(args) => control::start(env, args),
        Command::Stop(args) => control::stop(env, args),
        Command::Restart(args) => control::restart(env, args),
        Command::Console(args) => console::run(env, args),
        Command::Info(args) => info::run(env, args),
        Command::Suspend(args) => suspend::suspend(env, args),
        Command::Resume(args) => suspend::resume(env, args),
        Command::Save(args) => save::run(env, args),
        Command::Snapshot(args) => snapshot::run(env, args),
        Command::Screenshot(args) => screen::picture(env, args),
        Command::Viewer(args) => screen::viewer(env, args),
        Command::Clone(args) => copy::clone(env, args),
        Command::Rename(args) => copy::rename(env, args),
        Command::Publish(args) => publish::run(env, args),
        Command::Export(args) => transport::export(env, args),
        Command::Import(args) => transport::import(env, args),
        Command::Port(args) => port::run(env, args),
        Command::Attach(args) => attach::attach(env, args),
        Command::Detach(args) => attach::detach(env, args),
        Command::Resize(args) => resize::run(env, args),
        Command::UpgradeMachineType(args) => upgrade::run(env, args),
        Command::Template(args) => template::run(env, args),
        Command::Destroy(args) => destroy::run(env, args),
        Command::Gc(args) => gc::run(env, args),
        Command::Keep(args) => gc::keep(env, &args),
        Command::KeepConsole(args) => Ok(console::keep(&args)),
        Command::Doctor(args) => doctor::run(env, args),
        Command::Mirror(args) => mirror::run(env, args),
        Command::Stream(args) => stream::run(env, args),
        Command::Completions(args) => generate::completions(args, &mut Cli::command()),
        Command::Man(args) => generate::man(&args, Cli::command()),
    }
}

fn log(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "virga=debug",
        _ => "trace",
    };
    let filter = config::log_filter().unwrap_or_else(|| default.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new(default)))
        .with_writer(|| term::Log)
        .with_target(false)
        .without_time()
        .init();
}
