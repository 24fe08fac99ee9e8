//! `virga snapshot`: a guest's earlier states.

use std::process::ExitCode;

use serde_json::json;

use super::args::{FormatArg, value};
use super::render::{self, Format};
use super::term;
use crate::base::{GuestName, Result, SnapshotName};
use crate::ops::{Env, snapshot};

/// `virga snapshot`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Keep a guest as it is now: its disks, and its memory if it runs. Prints the snapshot's name
    Create {
        /// The guest
        #[arg(value_parser = value::<GuestName>, value_name = "NAME")]
        name: GuestName,
        /// What to call it [default: the time]
        #[arg(value_parser = value::<SnapshotName>, value_name = "SNAPSHOT")]
        snapshot: Option<SnapshotName>,
    },
    /// List a guest's snapshots
    #[command(visible_alias = "ls")]
    List {
        /// The guest
        #[arg(value_parser = value::<GuestName>, value_name = "NAME")]
        name: GuestName,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Put a guest back: what it did since is lost. With memory, it runs on from there
    Restore(Chosen),
    /// Remove a snapshot; the guest stays as it is
    #[command(visible_alias = "rm")]
    Remove(Chosen),
}

#[derive(clap::Args, Debug)]
struct Chosen {
    /// The guest
    #[arg(value_parser = value::<GuestName>, value_name = "NAME")]
    name: GuestName,
    /// The snapshot
    #[arg(value_parser = value::<SnapshotName>, value_name = "SNAPSHOT")]
    snapshot: SnapshotName,
}

/// Runs `virga snapshot`.
///
/// # Errors
/// As the functions of [`snapshot`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Create { name, snapshot } => {
            let made = snapshot::create(env, &name, snapshot)?;
            term::line(&made.to_string());
        }
        Command::List { name, format } => {
            let all = snapshot::list(env, &name)?;
            match format.format {
                Format::Json => {
                    let value = |one: &crate::driver::Snapshot| json!({"name": one.name, "taken": one.taken, "memory": one.memory});
                    render::json(&all.iter().map(value).collect::<Vec<_>>())?;
                }
                Format::Table => {
                    let row = |one: crate::driver::Snapshot| {
                        let memory = if one.memory { "yes" } else { "no" };
                        vec![one.name, one.taken.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), memory.to_owned()]
                    };
                    render::table(&["NAME", "TAKEN", "MEMORY"], all.into_iter().map(row).collect());
                }
            }
        }
        Command::Restore(Chosen { name, snapshot }) => snapshot::restore(env, &name, &snapshot)?,
        Command::Remove(Chosen { name, snapshot }) => snapshot::remove(env, &name, &snapshot)?,
    }
    Ok(ExitCode::SUCCESS)
}
