//! Making the metadata of a root file system that came without.
//!
//! Its templates hand a container what it is configured to be: cloud-init's
//! seed and the host name. They are in the template language of LXD and Incus
//! (pongo2), where `config_get(KEY, DEFAULT)` is a key of the instance.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::{Map, Value, json};
use tar::{EntryType, Header};

use super::metadata::{DOCUMENT, TEMPLATES, When};
use crate::base::{Context as _, Error, Result};

/// What to write.
#[derive(Clone, Debug)]
pub struct NewMetadata {
    /// The root's architecture, as Incus calls it ([`super::incus_arch`]).
    pub architecture: String,
    /// When the image was made, in seconds since 1970.
    pub creation_date: i64,
    /// What it is: `os`, `release`, `description` and others.
    pub properties: BTreeMap<String, String>,
}

/// When the files are written: a copy is a container of its own.
const WHEN: [When; 2] = [When::Create, When::Copy];
/// Where cloud-init finds its seed without looking for a disk (data source NoCloud).
const SEED: &str = "/var/lib/cloud/seed/nocloud-net";

/// The files in the container, the templates' names and their texts.
fn templates() -> [(String, &'static str, String); 5] {
    let seed = |name: &str| format!("{SEED}/{name}");
    let or = |key: &str, default: &str| {
        format!(
            "{{% if config_get(\"{key}\", \"\") != \"\" %}}{{{{ config_get(\"{key}\", \"\") }}}}{{% else %}}{default}{{% endif %}}"
        )
    };
    let meta = "instance-id: {{ instance.name }}\nlocal-hostname: {{ instance.name }}\n";
    let network = "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    dhcp6: false\n";
    let cloud_config = "#cloud-config\n{}\n";
    [
        ("/etc/hostname".into(), "hostname.tpl", "{{ instance.name }}\n".into()),
        (seed("meta-data"), "cloud-init-meta.tpl", or("user.meta-data", meta)),
        (seed("network-config"), "cloud-init-network.tpl", or("cloud-init.network-config", network)),
        (seed("user-data"), "cloud-init-user.tpl", or("cloud-init.user-data", cloud_config)),
        (seed("vendor-data"), "cloud-init-vendor.tpl", or("cloud-init.vendor-data", cloud_config)),
    ]
}

/// A metadata archive, compressed by xz: `metadata.yaml`, and the templates of
/// a host name and a seed for cloud-init. The same request makes the same bytes.
///
/// # Errors
/// When it cannot be written.
pub fn make(request: &NewMetadata) -> Result<Vec<u8>> {
    let doing = || "writing the metadata archive".to_owned();
    let seconds = u64::try_from(request.creation_date).unwrap_or(0);
    let mut archive = tar::Builder::new(liblzma::write::XzEncoder::new(Vec::new(), 6));
    let mut add = |kind: EntryType, name: &str, content: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(seconds);
        archive.append_data(&mut header, name, content).context(doing)
    };
    add(EntryType::Regular, DOCUMENT, document(request)?.as_bytes())?;
    add(EntryType::Directory, &format!("{TEMPLATES}/"), &[])?;
    for (_, name, text) in templates() {
        add(EntryType::Regular, &format!("{TEMPLATES}/{name}"), text.as_bytes())?;
    }
    let mut packed = archive.into_inner().context(doing)?;
    packed.flush().context(doing)?;
    packed.finish().context(doing)
}

fn document(request: &NewMetadata) -> Result<String> {
    let when = WHEN.map(When::name);
    let files = templates().into_iter().map(|(target, name, _)| (target, json!({ "template": name, "when": when })));
    let document = json!({
        "architecture": request.architecture,
        "creation_date": request.creation_date,
        "properties": request.properties,
        "templates": Value::Object(files.collect::<Map<_, _>>()),
    });
    serde_saphyr::to_string(&document).map_err(|error| Error::failed("writing YAML").because(error))
}
