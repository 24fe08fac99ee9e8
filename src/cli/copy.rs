//! `virga clone`, `virga rename`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::value;
use crate::base::{GuestName, Result};
use crate::ops::{Env, copy, rename};

/// `virga clone`
#[derive(clap::Args, Debug)]
pub struct CloneArgs {
    /// The guest to copy, which must not run
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// The new guest's name, which is also its host name
    #[arg(value_parser = value::<GuestName>)]
    new: GuestName,
    /// Public keys that get in, besides those that get in to the original [default: as for 'create']
    #[arg(long, value_name = "FILE")]
    ssh_public_key_file: Vec<PathBuf>,
}

/// `virga rename`
#[derive(clap::Args, Debug)]
pub struct RenameArgs {
    /// The guest, which must not run
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// Its new name
    #[arg(value_parser = value::<GuestName>)]
    new: GuestName,
}

/// Runs `virga clone`.
///
/// # Errors
/// As [`copy::clone`].
pub fn clone(env: Env<'_>, args: CloneArgs) -> Result<ExitCode> {
    let CloneArgs { name, new, ssh_public_key_file } = args;
    copy::clone(env, &name, &new, &ssh_public_key_file)?;
    env.reporter.note(&format!("cloned '{name}': 'virga start {new}' starts its copy"));
    Ok(ExitCode::SUCCESS)
}

/// Runs `virga rename`.
///
/// # Errors
/// As [`rename::rename`].
pub fn rename(env: Env<'_>, args: RenameArgs) -> Result<ExitCode> {
    let RenameArgs { name, new } = args;
    if rename::rename(env, &name, &new)? {
        env.reporter.note(&format!("renamed '{name}' to '{new}', which is its host name too from its next boot on"));
    } else {
        env.reporter.note(&format!("renamed '{name}' to '{new}'; it keeps the host name that its meta-data gave it"));
    }
    Ok(ExitCode::SUCCESS)
}
