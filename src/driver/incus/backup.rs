//! Instances as files (Incus documentation, "Instances: backups").

use std::fs::File;
use std::io::Write;

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::api::Api;
use super::{doing, path};
use crate::base::{GuestPlan, Kind, Result, interrupt};

/// The backup's name while it is read.
const NAME: &str = "virga-export";

/// Writes an instance, without its snapshots.
///
/// # Errors
/// What the daemon said; when `to` cannot be written.
pub(super) fn export(api: &Api, plan: &GuestPlan, to: &mut dyn Write) -> Result<()> {
    let backups = format!("{}/backups", path(plan.name.as_str()));
    let backup = format!("{backups}/{NAME}");
    let what = || format!("exporting the guest '{}'", plan.name);
    let remove = || match api.change(Method::DELETE, &backup, &json!({})) {
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => Ok(()),
    };
    // A killed command's.
    remove()?;
    let wish =
        json!({"name": NAME, "instance_only": true, "optimized_storage": false, "compression_algorithm": "none"});
    let made = api.change(Method::POST, &backups, &wish).map(drop);
    let read = made.and_then(|()| api.download(&format!("{backup}/export"), to));
    let removed = interrupt::shielded(remove);
    read.and(removed).map_err(|error| doing(error, what()))
}

/// Makes an instance of this name out of a backup.
///
/// # Errors
/// What the daemon said.
pub(super) fn import(api: &Api, plan: &GuestPlan, from: File) -> Result<()> {
    let pool = plan.daemon.as_ref().map(|daemon| daemon.pool.as_str()).filter(|pool| !pool.is_empty());
    api.upload_instance(plan.name.as_str(), pool, from)
        .map_err(|error| doing(error, format!("importing the guest '{}'", plan.name)))
}

/// An instance whose settings and devices are `config` and `devices` alone: of what it came with stays what the daemon
/// itself notes, and nothing that reaches the host.
pub(super) fn stripped(
    there: &Value,
    mut config: Map<String, Value>,
    devices: &Map<String, Value>,
    profiles: &[&str],
) -> Value {
    let kept = there["config"].as_object().into_iter().flatten();
    let kept = kept.filter(|(key, _)| key.starts_with("volatile.") || key.starts_with("image."));
    for (key, value) in kept {
        config.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let profiles = if profiles.is_empty() { &["default"][..] } else { profiles };
    json!({
        "architecture": there["architecture"], "config": config, "devices": devices, "profiles": profiles,
        "ephemeral": false, "description": "",
    })
}
