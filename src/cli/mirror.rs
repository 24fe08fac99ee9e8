//! `virga mirror`.

use std::process::ExitCode;

use super::args::{FormatArg, SignArgs, TrustArgs, at_least_one};
use super::render::{self, Format};
use super::term;
use crate::base::{ByteSize, Result};
use crate::ops::Env;
use crate::ops::mirror::{self, MirrorReport, MirrorRequest, MirroredFile};

/// `virga mirror`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Sources (names or URLs), the folder, and then filters, as in: ubuntu ./mirror release=noble arch=amd64
    #[arg(required = true, value_name = "SOURCE… DIR [FILTER…]")]
    places: Vec<String>,
    #[command(flatten)]
    sign: SignArgs,
    /// Keep the metadata and its signatures as they came, whole; it may then list more than is there
    #[arg(long, conflicts_with_all = ["key", "sign_with"])]
    as_is: bool,
    #[command(flatten)]
    trust: TrustArgs,
    /// Copy the newest N versions of each product [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    max: Option<usize>,
    /// Keep what the filters cover and do not choose any more
    #[arg(long)]
    keep: bool,
    /// Only say what would be fetched and removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `virga mirror`.
///
/// # Errors
/// As [`mirror::mirror`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let places = mirror::places(env, &args.places)?;
    let request = MirrorRequest {
        from: args.trust.with(places.sources),
        dir: places.dir,
        sign: (!args.as_is).then(|| args.sign.into()),
        max: args.max,
        keep: args.keep,
        dry_run: args.dry_run,
        filters: places.filters,
    };
    let report = mirror::mirror(env, &request)?;
    match args.format.format {
        Format::Json => render::json(&report)?,
        Format::Table => lines(env, &report, request.dry_run),
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(env: Env<'_>, report: &MirrorReport, dry_run: bool) {
    let print = |sign: char, file: &MirroredFile| {
        let MirroredFile { product, version, item, path, size } = file;
        term::line(&format!("{sign} {product} {version} {item} {path} {size}"));
    };
    report.fetched.iter().for_each(|file| print('+', file));
    report.removed.iter().for_each(|file| print('-', file));
    let change: u64 = report.fetched.iter().map(|file| file.size).sum();
    let verb = if dry_run { "would fetch" } else { "fetched" };
    let (change, all) = (ByteSize(change), ByteSize(report.bytes));
    env.reporter.note(&format!(
        "{verb} {change} in {} files; {} files in all, {all}",
        report.fetched.len(),
        report.files
    ));
}
