//! `virga export`, `virga import`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::value;
use crate::base::{GuestName, Result};
use crate::ops::{Env, transport};

/// `virga export`
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// The container, which must not run
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// A new file, for 'virga import'; it holds the guest's secrets
    file: PathBuf,
}

/// `virga import`
#[derive(clap::Args, Debug)]
pub struct ImportArgs {
    /// What 'virga export' wrote
    file: PathBuf,
    /// The new guest's name [default: the one that it had]
    #[arg(value_parser = value::<GuestName>)]
    name: Option<GuestName>,
    /// Let its root be the host's root, as that of the exported guest was
    #[arg(long)]
    privileged: bool,
    /// Public keys that get in [default: the agent's, else ~/.ssh/id_*.pub, else one of virga's own]
    #[arg(long, value_name = "FILE")]
    ssh_public_key_file: Vec<PathBuf>,
}

/// Runs `virga export`.
///
/// # Errors
/// As [`transport::export`].
pub fn export(env: Env<'_>, args: ExportArgs) -> Result<ExitCode> {
    transport::export(env, &args.name, &args.file)?;
    env.reporter.note(&format!("exported '{}': the file holds its secrets", args.name));
    Ok(ExitCode::SUCCESS)
}

/// Runs `virga import`.
///
/// # Errors
/// As [`transport::import`].
pub fn import(env: Env<'_>, args: ImportArgs) -> Result<ExitCode> {
    let ImportArgs { file, name, privileged, ssh_public_key_file } = args;
    let name = transport::import(env, &file, name.as_ref(), privileged, &ssh_public_key_file)?;
    env.reporter.note(&format!("imported '{name}': virga start {name}"));
    Ok(ExitCode::SUCCESS)
}
