//! `virga exec`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use super::{args, raw, term};
use crate::base::cmd::Pipes;
use crate::base::{GuestName, Result};
use crate::driver::Exec;
use crate::ops::Env;
use crate::ops::exec::{self, Way};

/// `virga exec`
#[derive(clap::Args, Debug)]
#[command(after_help = "In a container it runs as root, without SSH; in a machine over SSH, as its user.\n\
    Ends as the program did; 255 when the channel failed.")]
pub struct Args {
    /// The guest
    #[arg(value_parser = args::value::<GuestName>)]
    name: GuestName,
    /// Add to the program's environment; may be given several times
    #[arg(short, long = "env", value_parser = args::variable, value_name = "NAME=VALUE")]
    environment: Vec<(String, String)>,
    /// Give it a terminal, also where ours is none [default: if input and output are a terminal]
    #[arg(short, long)]
    tty: bool,
    /// Give it no terminal
    #[arg(short = 'T', long, conflicts_with = "tty")]
    no_tty: bool,
    /// The program and its arguments, as they are: no shell reads them
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs `virga exec`.
///
/// # Errors
/// As [`exec::by_driver`] and [`exec::over_ssh`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let terminal = (args.tty || at_terminal) && !args.no_tty;
    let exec = Exec { command: args.command, environment: args.environment, terminal: terminal.then(term::size) };
    let code = match exec::way(env, &args.name)? {
        Way::Ssh => exec::over_ssh(env, &args.name, &exec)?,
        Way::Driver => {
            let _raw = (terminal && at_terminal).then(raw::Raw::begin).transpose()?;
            let (mut output, mut errors) = (std::io::stdout(), std::io::stderr());
            let input = Box::new(std::io::stdin());
            let streams = Pipes { input, output: &mut output, errors: &mut errors };
            exec::by_driver(env, &args.name, &exec, streams)?
        }
    };
    Ok(ExitCode::from(code))
}
