//! `virga prune`.

use std::process::ExitCode;

use crate::base::{ByteSize, Result};
use crate::ops::{Env, prune};

use super::term;

/// `virga prune`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// Runs `virga prune`.
///
/// # Errors
/// As [`prune::prune`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let pruned = prune::prune(env, args.dry_run)?;
    for (digest, size) in &pruned.pool.blobs {
        term::line(&format!("{digest} {}", ByteSize(*size)));
    }
    let mut bytes = pruned.pool.bytes;
    for (id, size) in &pruned.templates {
        term::line(&format!("template {id} {size}"));
        bytes += size.0;
    }
    for (name, size) in &pruned.copies {
        term::line(&format!("copy {name} {size}"));
        bytes += size.0;
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    env.reporter.note(&format!("{verb} {}", ByteSize(bytes)));
    Ok(ExitCode::SUCCESS)
}
