//! `virga save`.

use std::process::ExitCode;

use super::args::value;
use super::control::each;
use crate::base::{GuestName, Result};
use crate::ops::{Env, control};

/// `virga save`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guests
    #[arg(required = true, value_parser = value::<GuestName>, value_name = "NAME")]
    names: Vec<GuestName>,
}

/// Runs `virga save`.
///
/// # Errors
/// As [`control::save`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    each(env, &args.names, |name| {
        if !control::save(env, name)? {
            env.reporter.note(&format!("guest '{name}' is saved already"));
        }
        Ok(())
    })
}
