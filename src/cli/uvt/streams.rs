//! `uvt-simplestreams-libvirt`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use super::listening::within;
use crate::base::{Error, RelPath, Result};
use crate::cli::args::value;
use crate::cli::term;
use crate::ops::uvt::sync::{self, DEFAULT_SOURCE, Event, Request};
use crate::ops::uvt::{POOL, images};

/// Keeps cloud images in libvirt's storage pool 'uvtool', from simplestreams sources.
///
/// This is virga, called by the name of uvtool's command. It takes uvtool's arguments and keeps
/// its images where uvtool does; /usr/share/doc/virga/uvtool.md lists what differs.
#[derive(Debug, Parser)]
#[command(name = "uvt-simplestreams-libvirt", version, infer_long_args = true, max_term_width = 100)]
struct Cli {
    /// Say which images come and go
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch the newest version of each product that matches
    #[command(infer_long_args = true)]
    Sync(SyncArgs),
    /// List the images that can be used
    #[command(infer_long_args = true)]
    Query(QueryArgs),
    /// Remove all images that no guest stands on
    Purge,
}

#[derive(clap::Args, Debug)]
struct SyncArgs {
    /// Where the index is, from the source's root [default: streams/v1/index.sjson]
    #[arg(long, value_parser = value::<RelPath>)]
    path: Option<RelPath>,
    /// The keys that may sign [default: those of Ubuntu's cloud images]
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// The stream's root, or its index
    #[arg(long, value_name = "URL", default_value = DEFAULT_SOURCE)]
    source: String,
    /// Take metadata without a signature: whoever is on the way can then replace an image
    #[arg(long)]
    no_authentication: bool,
    /// The pool that gets the images
    #[arg(long, default_value = POOL)]
    pool: String,
    /// Which images, as in release=noble arch=amd64 [default: arch=<this machine's>]
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

#[derive(clap::Args, Debug)]
struct QueryArgs {
    /// The pool with the images
    #[arg(long, default_value = POOL)]
    pool: String,
    /// Which images, as in release=noble arch=amd64 [default: all]
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Its command line.
pub(super) fn command() -> clap::Command {
    Cli::command()
}

/// Runs it.
///
/// # Errors
/// As the operations of [`crate::ops::uvt`].
pub(super) fn run() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Command::Sync(args) => sync(args, cli.verbose)?,
        Command::Query(args) => {
            let lines = within(&args.pool, |env| images::query(env, &args.pool, &args.filters))?;
            lines.iter().for_each(|line| term::line(line));
        }
        Command::Purge => within(POOL, images::purge)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn sync(args: SyncArgs, verbose: bool) -> Result<(), Error> {
    let SyncArgs { path, keyring, source, no_authentication, pool, filters } = args;
    let asked = filters.join(" ");
    let mut tell = |event| match event {
        Event::Made(what) => term::talk(&what),
        Event::Adding(product, version) if verbose => {
            term::line(&format!("Adding: {product} {version}"));
        }
        Event::Removing(product, version) if verbose => {
            term::line(&format!("Removing: {product} {version}"));
        }
        Event::Nothing => term::talk(&format!("Warning: the source has no image that matches {asked}")),
        Event::Adding(..) | Event::Removing(..) => {}
    };
    let request = Request { source, path, keyring, unsigned: no_authentication, filters, pool: pool.clone() };
    within(&pool, |env| sync::sync(env, &request, &mut tell))
}
