//! The command line: arguments in, printing and exit codes out. One file a
//! verb; each turns its `Args` into a plain request for `ops` and renders the
//! answer.

pub mod args;
pub mod render;
pub mod term;

mod console;
mod control;
mod create;
mod destroy;
mod doctor;
mod generate;
mod images;
mod list;
mod mirror;
mod pattern;
mod prune;
mod save;
mod ssh;
mod stream;
mod sync;
mod template;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::base::{Result, interrupt, state};
use crate::config;
use crate::ops::Env;

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
    /// Wait until a guest is ready
    Wait(wait::Args),
    /// Log in to a guest, or run a command in it
    Ssh(ssh::Args),
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
    /// Show what a guest wrote on its console
    Console(console::Args),
    /// Save running guests with their memory, and end them: 'start' goes on from there
    Save(save::Args),
    /// Remove guests with all that belongs to them
    #[command(visible_alias = "rm")]
    Destroy(destroy::Args),
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
}

/// Parses the command line, runs the verb, and returns the exit code.
#[must_use]
pub fn run() -> ExitCode {
    // Exits by itself on --help and on usage errors, with code 2 as documented.
    let cli = Cli::parse();
    log(cli.verbose);
    let terminal = term::Terminal::new(cli.quiet);
    let outcome = interrupt::install().and_then(|()| config::load()).and_then(|settings| {
        let env = Env { settings: &settings, reporter: &terminal };
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

fn dispatch(env: Env<'_>, command: Command) -> Result<ExitCode> {
    let stateless =
        matches!(command, Command::Doctor(_) | Command::Stream(_) | Command::Completions(_) | Command::Man(_));
    if !stateless {
        state::check(&env.settings.layout)?;
    }
    match command {
        Command::Sync(args) => sync::run(env, args),
        Command::Images(args) => images::run(env, args),
        Command::Prune(args) => prune::run(env, args),
        Command::Create(args) => create::run(env, *args),
        Command::Wait(args) => wait::run(env, args),
        Command::Ssh(args) => ssh::run(env, args),
        Command::Ip(args) => list::ip(env, args),
        Command::List(args) => list::run(env, args),
        Command::Start(args) => control::start(env, args),
        Command::Stop(args) => control::stop(env, args),
        Command::Restart(args) => control::restart(env, args),
        Command::Console(args) => console::run(env, args),
        Command::Save(args) => save::run(env, args),
        Command::Template(args) => template::run(env, args),
        Command::Destroy(args) => destroy::run(env, args),
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
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}
