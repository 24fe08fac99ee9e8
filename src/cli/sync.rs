//! `virga sync`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::FormatArg;
use super::render::{self, Format};
use super::term;
use crate::base::{ByteSize, Result};
use crate::ops::sync::{Action, SyncReport, SyncRequest};
use crate::ops::{Env, sync};

/// `virga sync`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which images, as in release=noble arch=amd64 [default: arch=<this machine's>]
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// A source's name or a URL [default: ubuntu]
    #[arg(long, value_name = "NAME|URL")]
    source: Option<String>,
    /// Trust the keys in this file instead of the source's own
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// Take metadata without a signature: whoever is on the way can then replace an image
    #[arg(long, conflicts_with = "keyring")]
    unsigned: bool,
    /// Take metadata that is older than what was verified last
    #[arg(long)]
    allow_older: bool,
    /// Fetch the newest N versions of each product
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max: usize,
    /// Keep the records of older versions
    #[arg(long)]
    keep: bool,
    /// Only say what would be fetched
    #[arg(long)]
    dry_run: bool,
    /// List the sources that are known and end
    #[arg(long, exclusive = true)]
    list_sources: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `virga sync`.
///
/// # Errors
/// As [`sync::sync`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    if args.list_sources {
        return sources(env);
    }
    let format = args.format.format;
    let dry_run = args.dry_run;
    let report = sync::sync(
        env,
        &SyncRequest {
            source: args.source,
            keyring: args.keyring,
            unsigned: args.unsigned,
            allow_older: args.allow_older,
            max: args.max,
            keep: args.keep,
            dry_run,
            filters: args.filters,
        },
    )?;
    match format {
        Format::Json => render::json(&report)?,
        Format::Table => lines(env, &report, dry_run),
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(env: Env<'_>, report: &SyncReport, dry_run: bool) {
    for image in &report.images {
        let what = match image.action {
            Action::Fetched => "fetched",
            Action::Present => "present",
            Action::WouldFetch => "would fetch",
        };
        let name = format!("{} {} ({})", image.product, image.version, ByteSize(image.size));
        term::data(&format!("{what} {} {name}\n", image.id));
    }
    for id in &report.retired {
        term::data(&format!("retired {id}\n"));
    }
    if !report.retired.is_empty() && !dry_run {
        env.reporter.note("'virga prune' frees what the retired images held");
    }
}

fn sources(env: Env<'_>) -> Result<ExitCode> {
    let sources = sync::sources(env)?;
    let rows = sources.iter().map(|source| {
        let trust = if source.signed { "signed" } else { "UNSIGNED" };
        vec![source.name.clone(), trust.to_owned(), source.url.to_string(), source.description.clone()]
    });
    render::table(&["NAME", "TRUST", "URL", "DESCRIPTION"], rows.collect());
    Ok(ExitCode::SUCCESS)
}
