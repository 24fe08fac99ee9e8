//! `virga images`.

use std::process::ExitCode;

use super::args::FormatArg;
use super::render::{self, Format};
use crate::base::{ByteSize, Result};
use crate::ops::{Env, images};

/// `virga images`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only images that match, as in release=noble arch!=arm64 or version~^2026
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `virga images`.
///
/// # Errors
/// As [`images::images`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let listed = images::images(env, &args.filters)?;
    match args.format.format {
        Format::Json => {
            let values: Vec<serde_json::Value> = listed
                .iter()
                .map(|line| {
                    serde_json::json!({
                        "id": line.record.id, "source": line.record.source, "blob": line.record.blob,
                        "size": line.record.size, "virtual_size": line.record.virtual_size,
                        "format": line.record.format, "synced_at": line.record.synced_at,
                        "signer": line.record.signer, "guests": line.guests, "keys": line.record.keys,
                    })
                })
                .collect();
            render::json(&values)?;
        }
        Format::Table => {
            let rows = listed.iter().map(|line| {
                let record = &line.record;
                vec![
                    record.id.to_string(),
                    record.key("os").to_owned(),
                    record.key("release").to_owned(),
                    record.key("arch").to_owned(),
                    record.key("label").to_owned(),
                    record.key("version_name").to_owned(),
                    ByteSize(record.size).to_string(),
                    record.source.clone(),
                    if record.signer.is_some() { "signed" } else { "UNSIGNED" }.to_owned(),
                    line.guests.to_string(),
                ]
            });
            let header = ["ID", "OS", "RELEASE", "ARCH", "LABEL", "VERSION", "SIZE", "SOURCE", "TRUST", "GUESTS"];
            render::table(&header, rows.collect());
        }
    }
    Ok(ExitCode::SUCCESS)
}
