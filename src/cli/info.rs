//! `virga info`.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::args::{FormatArg, value};
use super::list::image_of;
use super::render::{self, Format};
use super::term;
use crate::base::plan::Forward;
use crate::base::{GuestName, Result, harmless};
use crate::ops::{Env, info};

/// `virga info`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest
    #[arg(value_parser = value::<GuestName>, value_name = "NAME")]
    name: GuestName,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `virga info`.
///
/// # Errors
/// As [`info::info`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let info = info::info(env, &args.name)?;
    match args.format.format {
        Format::Json => render::json(&value_of(&info))?,
        Format::Table => {
            let lines = rows(&info).into_iter().filter(|(_, value)| !value.is_empty());
            let text: String = lines.map(|(name, value)| format!("{name:10} {}\n", harmless::line(&value))).collect();
            term::data(&text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn value_of(info: &info::Info) -> Value {
    let Some(record) = &info.listed.record else { return Value::Null };
    let plan = &record.plan;
    let disks: Vec<Value> = plan
        .disks
        .iter()
        .zip(&info.details.disks)
        .map(|(disk, file)| json!({"file": file, "format": disk.format, "size": disk.size}))
        .collect();
    let nics: Vec<Value> =
        plan.nics.iter().map(|nic| json!({"mac": nic.mac, "network": nic.network.to_string()})).collect();
    json!({
        "name": plan.name,
        "state": info.listed.state.word(),
        "id": plan.id,
        "instance_id": record.instance(),
        "driver": record.driver,
        "connect": plan.daemon.as_ref().map(|daemon| &daemon.uri),
        "pool": plan.daemon.as_ref().map(|daemon| &daemon.pool),
        "location": info.listed.location,
        "image": image_of(&record.origin.keys),
        "trust": record.origin.trust,
        "image_id": record.origin.image,
        "template": record.origin.template,
        "created": record.created,
        "expires": info.expires,
        "arch": plan.arch.to_string(),
        "machine": info.details.machine,
        "accel": plan.accel,
        "memory": plan.memory,
        "cpus": plan.cpus,
        "disks": disks,
        "nics": nics,
        "addresses": info.details.addresses,
        "ssh": info.listed.endpoint.map(|address| address.to_string()),
        "user": record.user,
        "forwards": info.forwards,
        "ended": info.details.ending,
        "autostart": info.details.autostart,
        "snapshots": info.snapshots,
    })
}

fn rows(info: &info::Info) -> Vec<(&'static str, String)> {
    let Some(record) = &info.listed.record else { return Vec::new() };
    let plan = &record.plan;
    let text = |value: Option<&dyn std::fmt::Display>| value.map(ToString::to_string).unwrap_or_default();
    let mut rows = vec![
        ("name", plan.name.to_string()),
        ("state", info.listed.state.word().to_owned()),
        ("ended", info.details.ending.clone().unwrap_or_default()),
        ("id", plan.id.to_string()),
        ("instance", record.instance.clone().unwrap_or_default()),
        ("driver", record.driver.to_string()),
    ];
    if let Some(daemon) = &plan.daemon {
        rows.extend([("connect", daemon.uri.clone()), ("pool", daemon.pool.clone())]);
    }
    rows.extend([
        ("location", info.listed.location.clone().unwrap_or_default()),
        ("image", image_of(&record.origin.keys)),
        ("trust", text(record.origin.trust.as_ref().map(|trust| trust as _))),
        ("template", text(record.origin.template.as_ref().map(|id| id as _))),
        ("created", record.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        (
            "expires",
            text(
                info.expires.map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).as_ref().map(|time| time as _),
            ),
        ),
        ("arch", plan.arch.to_string()),
        ("machine", info.details.machine.clone().unwrap_or_default()),
        ("accel", plan.accel.to_string()),
        ("memory", plan.memory.to_string()),
        ("cpus", plan.cpus.to_string()),
    ]);
    rows.extend(
        plan.disks
            .iter()
            .zip(&info.details.disks)
            .map(|(disk, file)| ("disk", format!("{} {}", disk.size, file.display()))),
    );
    rows.extend(plan.nics.iter().map(|nic| ("nic", format!("{} {}", nic.mac, nic.network))));
    rows.extend(info.details.addresses.iter().map(|address| ("address", address.to_string())));
    rows.push(("ssh", text(info.listed.endpoint.as_ref().map(|address| address as _))));
    rows.push(("user", record.user.clone()));
    rows.extend(
        info.forwards.iter().map(|Forward { host, guest }| ("forward", format!("127.0.0.1:{host} to {guest}"))),
    );
    rows.push((
        "autostart",
        info.details.autostart.map(|on| if on { "yes" } else { "no" }.to_owned()).unwrap_or_default(),
    ));
    rows.push(("snapshots", info.snapshots.map(|count| count.to_string()).unwrap_or_default()));
    rows
}
