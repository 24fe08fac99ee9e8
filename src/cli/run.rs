//! `virga run`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::args::{FromArgs, duration, value, variable};
use super::create::GuestArgs;
use super::term;
use crate::base::{GuestName, GuestPath, Kind, Result};
use crate::ops::Env;
use crate::ops::run::{self, Ended, Keep, RunRequest};
use crate::ops::session::Life;
use crate::ops::wait::Goal;

/// The command's time was over, as with timeout(1).
const TIMED_OUT: u8 = 124;
/// The machine failed, not the command, as with docker-run(1).
const NO_MACHINE: u8 = 125;

/// `virga run`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Ends as the command did; 124 when its time was over, 125 when the machine failed and not the\n\
    command, 130 after Ctrl-C. The guest goes in any case, also when virga itself is killed.\n\n\
    virga run release=noble -- uname -a\n\
    virga run noble --copy . --get build/report.xml --timeout 10m --env CI=1 -- make test"
)]
pub struct Args {
    #[command(flatten)]
    guest: GuestArgs,
    /// The guest's name [default: made up]
    #[arg(long, value_parser = value::<GuestName>, value_name = "NAME")]
    name: Option<GuestName>,
    /// Bring a file or folder into the guest's home before; the command works in the last folder of them
    #[arg(long = "copy", value_name = "PATH", help_heading = "Command")]
    copies: Vec<PathBuf>,
    /// Bring a file or folder back, however the command ended; from where the command works, and to the folder that
    /// we are in unless a place is given
    #[arg(long = "get", value_parser = get, value_name = "PATH[:PLACE]", help_heading = "Command")]
    gets: Vec<(GuestPath, PathBuf)>,
    /// Add to the command's environment; may be given several times
    #[arg(short, long = "env", value_parser = variable, value_name = "NAME=VALUE", help_heading = "Command")]
    environment: Vec<(String, String)>,
    /// End the command after this time, as in 90s, 5m or 2h [default: none]
    #[arg(long, value_parser = duration, value_name = "TIME", help_heading = "Command")]
    timeout: Option<Duration>,
    /// Give it a terminal, also where ours is none [default: if input and output are a terminal]
    #[arg(short, long, help_heading = "Command")]
    tty: bool,
    /// Give it no terminal
    #[arg(short = 'T', long, conflicts_with = "tty", help_heading = "Command")]
    no_tty: bool,
    /// How far the guest is to be before: boot, ssh or cloud-init
    #[arg(long = "for", value_parser = value::<Goal>, value_name = "GOAL", default_value = "cloud-init")]
    goal: Goal,
    /// Give the guest up when it is not ready after this time, as in 90s, 5m or 2h [default: 5m]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    boot_timeout: Option<Duration>,
    /// Remove the guest afterwards: so it is without being said
    #[arg(long, conflicts_with_all = ["keep", "keep_on_failure"])]
    rm: bool,
    /// Let the guest stay
    #[arg(long)]
    keep: bool,
    /// Let the guest stay when the command fails
    #[arg(long)]
    keep_on_failure: bool,
    /// Take no image but one that is in the pool
    #[arg(long, help_heading = "Image")]
    offline: bool,
    #[command(flatten, next_help_heading = "Image")]
    from: FromArgs,
    /// The command and its arguments, as they are: no shell reads them
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs `virga run`.
///
/// # Errors
/// None: what failed is said, and the exit code is 125.
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match request(env, args).and_then(|request| run::run(env, &request)) {
        Ok(Ended::Code(code)) => Ok(ExitCode::from(code)),
        Ok(Ended::TimedOut) => {
            term::talk("error: the command's time was over");
            Ok(ExitCode::from(TIMED_OUT))
        }
        Err(error) if error.kind() == Kind::Interrupted => Err(error),
        Err(error) => {
            term::error(&error);
            Ok(ExitCode::from(NO_MACHINE))
        }
    }
}

fn get(text: &str) -> Result<(GuestPath, PathBuf), String> {
    let (from, to) = text.rsplit_once(':').unwrap_or((text, "."));
    let from: GuestPath = value(from)?;
    match from.file_name() {
        Some(_) if !to.is_empty() => Ok((from, to.into())),
        _ => Err("write it as PATH or PATH:PLACE".into()),
    }
}

fn request(env: Env<'_>, args: Args) -> Result<RunRequest> {
    let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let keep = match (args.keep, args.keep_on_failure) {
        (true, _) => Keep::Always,
        (_, true) => Keep::OnFailure,
        _ => Keep::Never,
    };
    let name = args.name.map_or_else(run::any_name, Ok)?;
    Ok(RunRequest {
        guest: args.guest.request(name, Life::Kept, true),
        from: args.from.into(),
        offline: args.offline,
        goal: args.goal,
        boot_timeout: args.boot_timeout.unwrap_or(env.settings.defaults.timeout),
        copies: args.copies,
        gets: args.gets,
        command: args.command,
        environment: args.environment,
        terminal: (args.tty || at_terminal) && !args.no_tty,
        timeout: args.timeout,
        keep,
    })
}
