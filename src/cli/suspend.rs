//! `virga suspend`, `virga resume`.

use std::process::ExitCode;

use super::args::value;
use super::control::each;
use crate::base::{GuestName, Result};
use crate::ops::{Env, control};

/// `virga suspend` and `virga resume`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guests
    #[arg(required = true, value_parser = value::<GuestName>, value_name = "NAME")]
    names: Vec<GuestName>,
}

/// Runs `virga suspend`.
///
/// # Errors
/// As [`control::suspend`].
pub fn suspend(env: Env<'_>, args: Args) -> Result<ExitCode> {
    each(env, &args.names, |name| {
        if !control::suspend(env, name)? {
            env.reporter.note(&format!("guest '{name}' is suspended already"));
        }
        Ok(())
    })
}

/// Runs `virga resume`.
///
/// # Errors
/// As [`control::resume`].
pub fn resume(env: Env<'_>, args: Args) -> Result<ExitCode> {
    each(env, &args.names, |name| {
        if !control::resume(env, name)? {
            env.reporter.note(&format!("guest '{name}' is running already"));
        }
        Ok(())
    })
}
