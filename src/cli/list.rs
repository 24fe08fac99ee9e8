//! `virga list`, `virga ip`.

use std::process::ExitCode;

use serde::Serialize;

use super::args::{FormatArg, value};
use super::render::{self, Format};
use super::term;
use crate::base::plan::Disk;
use crate::base::{GuestName, Result, Trust};
use crate::ops::{Env, list};

/// `virga list`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// `virga ip`
#[derive(clap::Args, Debug)]
pub struct IpArgs {
    /// The guest
    #[arg(value_parser = value::<GuestName>)]
    name: GuestName,
    #[command(flatten)]
    format: FormatArg,
}

/// One guest as programs see it.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    state: &'static str,
    driver: Option<String>,
    image: Option<String>,
    trust: Option<Trust>,
    id: Option<&'a str>,
    created: Option<String>,
    memory: Option<u64>,
    cpus: Option<u32>,
    arch: Option<&'static str>,
    machine: Option<&'a str>,
    firmware: Option<String>,
    disks: Vec<DiskRow<'a>>,
    user: Option<&'a str>,
    ssh: Option<String>,
    location: Option<&'a str>,
}

/// One of its disks.
#[derive(Serialize)]
struct DiskRow<'a> {
    name: String,
    size: u64,
    format: &'a str,
    read_only: bool,
}

impl<'a> DiskRow<'a> {
    fn of(disk: &'a Disk) -> Self {
        let (name, format) = (disk.title(), disk.format.name());
        DiskRow { name, size: disk.size.0, format, read_only: disk.read_only }
    }
}

impl<'a> Row<'a> {
    fn of(listed: &'a list::Listed) -> Self {
        let record = listed.record.as_ref();
        Row {
            name: listed.name.as_str(),
            state: listed.state.word(),
            driver: record.map(|record| record.driver.to_string()),
            image: record.map(|record| image_of(&record.origin.keys)),
            trust: record.and_then(|record| record.origin.trust),
            id: record.map(|record| record.plan.id.as_str()),
            created: record.map(|record| record.created.to_string()),
            memory: record.map(|record| record.plan.memory.0),
            cpus: record.map(|record| record.plan.cpus),
            arch: record.map(|record| record.plan.arch.name()),
            machine: record.and_then(|record| record.plan.platform.machine.as_deref()),
            firmware: record.map(|record| record.plan.platform.firmware.to_string()),
            disks: record.map(|record| record.plan.disks.iter().map(DiskRow::of).collect()).unwrap_or_default(),
            user: record.map(|record| record.user.as_str()),
            ssh: listed.endpoint.map(|address| address.to_string()),
            location: listed.location.as_deref(),
        }
    }
}

/// An image in a few words: what a stream or a file says of it.
pub(super) fn image_of(keys: &std::collections::BTreeMap<String, String>) -> String {
    let get = |key: &str| keys.get(key).map(String::as_str).unwrap_or_default();
    if let Some(file) = keys.get("file") {
        return file.clone();
    }
    [get("os"), get("release"), get("arch"), get("version_name")]
        .iter()
        .filter(|word| !word.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `virga list`.
///
/// # Errors
/// As [`list::list`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let listed = list::list(env)?;
    let rows: Vec<Row<'_>> = listed.iter().map(Row::of).collect();
    match args.format.format {
        Format::Json => render::json(&rows)?,
        Format::Table => {
            let dash = || "-".to_owned();
            // A column for those who have a cluster.
            let clustered = rows.iter().any(|row| row.location.is_some());
            let cells = rows.into_iter().map(|row| {
                let mut cells = vec![
                    row.name.to_owned(),
                    row.state.to_owned(),
                    match (row.image.filter(|image| !image.is_empty()).unwrap_or_else(dash), row.trust) {
                        (image, Some(trust @ Trust::Unsigned)) => format!("{image} {trust}"),
                        (image, _) => image,
                    },
                    row.ssh.unwrap_or_else(dash),
                ];
                cells.extend(clustered.then(|| row.location.map_or_else(dash, str::to_owned)));
                cells
            });
            let titles = ["NAME", "STATE", "IMAGE", "SSH", "LOCATION"];
            render::table(if clustered { &titles } else { &titles[..4] }, cells.collect());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `virga ip`.
///
/// # Errors
/// As [`list::address`].
pub fn ip(env: Env<'_>, args: IpArgs) -> Result<ExitCode> {
    let address = list::address(env, &args.name)?;
    match args.format.format {
        Format::Json => render::json(&serde_json::json!({ "host": address.ip().to_string(), "port": address.port() }))?,
        Format::Table => term::line(&address.to_string()),
    }
    Ok(ExitCode::SUCCESS)
}
