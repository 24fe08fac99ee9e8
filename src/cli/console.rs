//! `virga console`.

use std::process::ExitCode;

use super::args::value;
use super::term;
use crate::base::{GuestName, Result};
use crate::ops::{Env, list};

/// `virga console`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// How many of the last lines to show
    #[arg(long, short = 'n', default_value_t = 100, value_name = "N")]
    lines: usize,
}

/// Runs `virga console`.
///
/// # Errors
/// As [`list::console`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    for line in list::console(env, &args.name, args.lines)? {
        term::data(&format!("{line}\n"));
    }
    Ok(ExitCode::SUCCESS)
}
