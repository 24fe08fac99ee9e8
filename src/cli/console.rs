//! `virga console`.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::value;
use super::{raw, term};
use crate::base::{GuestName, Result};
use crate::ops::{Env, console};

/// How many lines of the log are shown unless the user says.
const LINES: usize = 100;

/// `virga console`
#[derive(clap::Args, Debug)]
#[command(after_help = "At a terminal it connects: what you type goes to the guest, Ctrl-] leaves.\n\
    In a pipe, and with --log, it shows what the guest wrote so far.")]
pub struct Args {
    /// The guest
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// Show the log at a terminal too
    #[arg(long)]
    log: bool,
    /// Show the log, this many of its last lines [default: 100]
    #[arg(long, short = 'n', value_name = "N")]
    lines: Option<usize>,
}

/// Runs `virga console`.
///
/// # Errors
/// As [`console::connect`] at a terminal, else as [`console::log`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if at_terminal && !args.log && args.lines.is_none() {
        let stream = console::connect(env, &args.name)?;
        env.reporter.note(&format!("connected to the console of '{}': Ctrl-] leaves, Enter shows a prompt", args.name));
        match raw::session(stream)? {
            raw::End::Left => env.reporter.note("left the console"),
            raw::End::Gone => env.reporter.note(&format!("the console of '{}' ended", args.name)),
        }
        return Ok(ExitCode::SUCCESS);
    }
    for line in console::log(env, &args.name, args.lines.unwrap_or(LINES))? {
        term::line(&line);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the keeper of a console is started with.
#[derive(clap::Args, Debug)]
pub struct KeepArgs {
    /// The console's log
    console: PathBuf,
    /// The backend's own log
    backend: PathBuf,
    /// How many cards there are whose frames come at the socket that is standard output
    cards: Option<usize>,
}

/// Keeps the last of what comes from standard input, to its end, and judges frames for as long. Nobody hears what it could
/// say.
pub fn keep(args: &KeepArgs) -> ExitCode {
    if let Some(cards) = args.cards
        && let Ok(frames) = std::io::stdout().as_fd().try_clone_to_owned()
    {
        std::thread::spawn(move || crate::driver::judge_frames(frames, cards));
    }
    let mut input = std::io::stdin().lock();
    match crate::driver::keep_console(&mut input, &args.console, &args.backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whatever it writes is lost then; what it sends is not. QEMU's end is the input's.
            let _ = std::io::copy(&mut input, &mut std::io::sink());
            ExitCode::from(error.kind().exit_code())
        }
    }
}
