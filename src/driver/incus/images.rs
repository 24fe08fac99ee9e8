//! The daemon's copies of images of our pool.

use std::io::Write;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use super::api::Api;
use super::{doing, instance};
use crate::base::{BackendName, ByteSize, Error, GuestPlan, Kind, Result, interrupt};

/// The properties that say which blob of a pool the root file system is, and which state folder's pool that is.
const BLOB: &str = "virga.blob";
const STATE: &str = "virga.state";

/// Has the daemon know the guest's image, and returns its fingerprint. It is pushed once: the daemon finds it by content,
/// whoever gave it; the members of a cluster pass it on to each other. `state`: this state folder's id.
///
/// # Errors
/// [`Kind::Refused`] when the daemon has other bytes than we gave it; what the daemon said.
pub(super) fn give(api: &Api, plan: &GuestPlan, state: &str) -> Result<String> {
    let container = instance::container(plan)?;
    let expected = container.fingerprint.hex();
    if api.find(&format!("/1.0/images/{expected}"))?.is_some() {
        return Ok(expected);
    }
    let metadata = container.metadata.as_ref().ok_or_else(|| Error::failed("the image has no metadata"))?;
    let blob = container.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found = match api.push_image(metadata, &container.root, &format!("{BLOB}={blob}&{STATE}={state}")) {
        // Another command was quicker.
        Err(error) if error.kind() == Kind::Exists => return Ok(expected),
        found => found.map_err(|error| doing(error, "giving the daemon the image".into()))?,
    };
    if found != expected {
        let _ = api.change(Method::DELETE, &format!("/1.0/images/{found}"), &json!({}));
        return Err(Error::refused(format!("the daemon took another image: {found} instead of {expected}")));
    }
    Ok(found)
}

/// What stands for a blob at an image that is there only to be read once: no pool has it, so a sweep removes what a
/// killed command leaves.
const PASSING: &str = "none";

/// Writes the root of an instance that does not run as a tar: the daemon makes an image of it, which goes again.
/// `state`: this state folder's id.
///
/// # Errors
/// What the daemon said.
pub(super) fn pack(api: &Api, plan: &GuestPlan, state: &str, to: &mut dyn Write) -> Result<()> {
    let source = json!({"type": "instance", "name": plan.name});
    let wish = json!({"source": source, "compression_algorithm": "none", "properties": {BLOB: PASSING, STATE: state}});
    let what = || format!("packing the guest '{}'", plan.name);
    let made = api.change(Method::POST, "/1.0/images", &wish).map_err(|error| doing(error, what()))?;
    let fingerprint = made["fingerprint"].as_str();
    let fingerprint = fingerprint.ok_or_else(|| Error::failed("the daemon does not say which image it made"))?;
    let image = format!("/1.0/images/{fingerprint}");
    let read = api.download(&format!("{image}/export"), to);
    let removed = interrupt::shielded(|| api.change(Method::DELETE, &image, &json!({})));
    read.and(removed.map(drop)).map_err(|error| doing(error, what()))
}

/// Has the daemon keep an image under a name.
///
/// # Errors
/// [`Kind::Exists`] when it has the name already; what the daemon said.
pub(super) fn keep(api: &Api, metadata: &Path, root: &Path, alias: &BackendName) -> Result<String> {
    let alias = alias.as_str();
    if api.find(&format!("/1.0/images/aliases/{alias}"))?.is_some() {
        return Err(Error::new(Kind::Exists, format!("the daemon has an image '{alias}' already"))
            .hint("--alias gives it another name"));
    }
    let fingerprint =
        api.push_image(metadata, root, "").map_err(|error| doing(error, "giving the daemon the image".into()))?;
    api.change(Method::POST, "/1.0/images/aliases", &json!({"name": alias, "target": fingerprint}))?;
    Ok(fingerprint)
}

/// Removes images that came from this state folder's pool and are not needed any more. Returns what goes.
///
/// # Errors
/// What the daemon said.
pub(super) fn sweep(
    api: &Api,
    state: &str,
    needed: &dyn Fn(&str) -> bool,
    dry_run: bool,
) -> Result<Vec<(String, ByteSize)>> {
    let all = api.get("/1.0/images?recursion=1")?;
    let ours = |image: &Value| {
        // A daemon may serve several folders, and hosts.
        let properties = Some(&image["properties"]).filter(|properties| properties[STATE] == state)?;
        let blob = properties[BLOB].as_str()?;
        let gone = !needed(blob);
        Some((image["fingerprint"].as_str()?.to_owned(), ByteSize(image["size"].as_u64().unwrap_or(0))))
            .filter(|_| gone)
    };
    let swept: Vec<(String, ByteSize)> = all.as_array().into_iter().flatten().filter_map(ours).collect();
    for (fingerprint, _) in swept.iter().filter(|_| !dry_run) {
        match api.change(Method::DELETE, &format!("/1.0/images/{fingerprint}"), &json!({})) {
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(swept)
}
