//! `virga sync`.

use std::process::ExitCode;

use super::args::{self, FormatArg, FromArgs};
use super::images::chain;
use super::render::{self, Format};
use super::term;
use crate::base::{ByteSize, Result};
use crate::ops::sync::{Action, SyncReport, SyncRequest};
use crate::ops::{Env, images, sync};

/// `virga sync`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which images, as in noble, 24.04/arm64 or release=noble arch=amd64 [default: arch=<this machine's>]
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    #[command(flatten)]
    from: FromArgs,
    /// Use no network: check that what was verified last is in the pool
    #[arg(long)]
    offline: bool,
    /// Fetch container images: metadata, and one root file system (squashfs, else root.tar.xz)
    #[arg(long)]
    container: bool,
    /// Fetch the newest N versions of each product
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = args::at_least_one())]
    max: usize,
    /// Keep the records of older versions
    #[arg(long)]
    keep: bool,
    /// Only say what would be fetched
    #[arg(long)]
    dry_run: bool,
    /// Show why each image is trusted: key, signature, index, products, digest
    #[arg(long, conflicts_with = "dry_run")]
    explain: bool,
    /// List the sources that are known and end
    #[arg(long, conflicts_with_all = [
        "filters", "sources", "keyring", "unsigned", "allow_older", "offline", "container", "max", "keep", "dry_run", "explain",
    ])]
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
        return sources(env, args.format.format);
    }
    let format = args.format.format;
    let dry_run = args.dry_run;
    let report = sync::sync(
        env,
        &SyncRequest {
            from: args.from.into(),
            offline: args.offline,
            max: args.max,
            keep: args.keep,
            dry_run,
            filters: args.filters,
            every_arch: false,
            container: args.container,
            none_is_fine: false,
        },
    )?;
    match format {
        Format::Json => render::json(&report)?,
        Format::Table => lines(env, &report, dry_run),
    }
    if args.explain && format == Format::Table {
        for image in &report.images {
            images::images(env, &[image.id.to_string()])?.iter().for_each(|line| term::data(&chain(line)));
        }
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
        term::line(&format!("{what} {} {name}", image.id));
    }
    for id in &report.retired {
        term::line(&format!("retired {id}"));
    }
    if !report.retired.is_empty() && !dry_run {
        env.reporter.note("'virga prune' frees what the retired images held");
    }
}

/// A source as it is listed for programs.
#[derive(serde::Serialize)]
struct Line {
    name: String,
    signed: bool,
    url: String,
    description: String,
}

fn sources(env: Env<'_>, format: Format) -> Result<ExitCode> {
    let lines = sync::sources(env)?.into_iter().map(|source| Line {
        signed: source.is_signed(),
        url: source.url.to_string(),
        name: source.name,
        description: source.description,
    });
    match format {
        Format::Json => render::json(&lines.collect::<Vec<_>>())?,
        Format::Table => {
            let row = |line: Line| {
                let trust = if line.signed { "signed" } else { "UNSIGNED" };
                vec![line.name, trust.to_owned(), line.url, line.description]
            };
            render::table(&["NAME", "TRUST", "URL", "DESCRIPTION"], lines.map(row).collect());
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::Cli;

    #[test]
    fn sources_are_listed_for_programs_too_and_what_does_not_go_with_that_is_named() {
        let parsed = |words: &[&str]| Cli::try_parse_from([&["virga", "sync", "--list-sources"], words].concat());
        for words in [&[][..], &["--format", "json"], &["--quiet", "--format=json"], &["-v"]] {
            parsed(words).unwrap();
        }
        for (words, named) in [
            (&["--offline"][..], "--offline"),
            (&["--source", "x"], "--source"),
            (&["--max", "2"], "--max"),
            (&["release=noble"], "FILTER"),
            (&["--explain"], "--explain"),
        ] {
            let error = parsed(words).unwrap_err().to_string();
            assert!(error.contains("--list-sources") && error.contains(named), "{error}");
        }
    }
}
