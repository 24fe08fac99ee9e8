//! `virga attach`, `virga detach`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{disk, value};
use crate::base::plan::DiskFormat;
use crate::base::{ByteSize, GuestName, GuestPath, Result};
use crate::ops::Env;
use crate::ops::attach::{self, Further};

/// `virga attach`
#[derive(clap::Args, Debug)]
pub struct AttachArgs {
    /// The guest; one that runs sees the disk at once
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// A qcow2, raw or ISO image, which is used where it is and never removed
    #[arg(value_name = "FILE", required_unless_present_any = ["size", "folder"], conflicts_with_all = ["size", "folder"])]
    file: Option<PathBuf>,
    /// A folder here, and where a container sees it
    #[arg(long, value_parser = folder, value_name = "HOST:GUEST", conflicts_with_all = ["size", "format"])]
    folder: Option<(PathBuf, GuestPath)>,
    /// Make a new, empty disk, which goes with the guest; a bare number counts GiB
    #[arg(long, value_parser = disk, value_name = "SIZE")]
    size: Option<ByteSize>,
    /// qcow2 or raw; raw gives any file to the guest, byte for byte [default: as the file begins]
    #[arg(long, value_parser = value::<DiskFormat>, value_name = "FORMAT", conflicts_with = "size")]
    format: Option<DiskFormat>,
    /// The guest may only read it; always so for ISO images
    #[arg(long, conflicts_with = "size")]
    read_only: bool,
}

/// A folder here and a place in a guest; the last colon is between them.
fn folder(text: &str) -> std::result::Result<(PathBuf, GuestPath), String> {
    match text.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() && !guest.is_empty() => Ok((host.into(), value(guest)?)),
        _ => Err("write it as HOST:GUEST, as in ./site:/srv/www".into()),
    }
}

/// `virga detach`
#[derive(clap::Args, Debug)]
pub struct DetachArgs {
    /// The guest
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    /// The file, or the name that 'attach' printed: a folder's place in the container
    #[arg(value_name = "DISK")]
    disk: String,
    /// Delete a disk that virga made
    #[arg(long)]
    delete: bool,
}

/// Runs `virga attach`.
///
/// # Errors
/// As [`attach::attach`].
pub fn attach(env: Env<'_>, args: AttachArgs) -> Result<ExitCode> {
    let AttachArgs { name, file, folder, size, format, read_only } = args;
    let further = match (folder, size, file) {
        (Some((path, at)), ..) => Further::Folder { path, at, read_only },
        (None, Some(size), _) => Further::New(size),
        (None, None, path) => Further::File { path: path.unwrap_or_default(), format, read_only },
    };
    let disk = attach::attach(env, &name, &further)?;
    super::term::line(&disk);
    Ok(ExitCode::SUCCESS)
}

/// Runs `virga detach`.
///
/// # Errors
/// As [`attach::detach`].
pub fn detach(env: Env<'_>, args: DetachArgs) -> Result<ExitCode> {
    let DetachArgs { name, disk, delete } = args;
    attach::detach(env, &name, &disk, delete)?;
    env.reporter.note(&format!("detached '{disk}' from '{name}'"));
    Ok(ExitCode::SUCCESS)
}
