//! `virga destroy`.

use std::process::ExitCode;

use super::args::value;
use crate::base::{GuestName, Result};
use crate::ops::{Env, destroy};

/// `virga destroy`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guests
    #[arg(required = true, value_parser = value::<GuestName>, value_name = "NAME")]
    names: Vec<GuestName>,
    /// Do not mind a guest that is not there
    #[arg(long)]
    if_exists: bool,
}

/// Runs `virga destroy`.
///
/// # Errors
/// As [`destroy::destroy_all`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    destroy::destroy_all(env, &args.names, args.if_exists, |name| env.reporter.note(&format!("destroyed '{name}'")))?;
    Ok(ExitCode::SUCCESS)
}
