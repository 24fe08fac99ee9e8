//! `meta-data`: who the guest is.

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::mapping;
use super::login::Access;
use super::{SeedRequest, yaml};
use crate::base::name::quoted;
use crate::base::{Error, Result};

/// In the guest it is the name of a folder.
const ID_LIMIT: usize = 255;

pub(super) struct MetaData {
    pub bytes: Vec<u8>,
    /// The user's own instance id.
    pub instance: Option<String>,
    pub warnings: Vec<String>,
}

/// Identity, and the access keys once more: what user-data of any form does to
/// its own lists cannot touch them here.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) when the user's own meta-data is not a YAML mapping, or has an instance id that
/// cannot be one.
pub(super) fn meta_data(request: &SeedRequest, access: &Access) -> Result<MetaData> {
    let theirs = request.meta_data.as_deref().unwrap_or_default();
    let mut document = mapping(theirs, "the meta-data")?;
    let instance = own_instance(theirs)?;
    let mut warnings = Vec::new();
    if instance.is_none() && document.contains_key("instance_id") {
        warnings
            .push("the meta-data has 'instance_id', which cloud-init calls 'instance-id': it does not count".into());
    }
    if document.contains_key("seedfrom") {
        warnings.push(
            "the meta-data has 'seedfrom': cloud-init takes user-data from there, and virga's, with its SSH host keys, is lost"
                .into(),
        );
    }
    // As text whatever it looks like, so that what is waited for is what the guest has.
    document.insert("instance-id".into(), json!(instance.as_deref().unwrap_or(request.instance_id.as_str())));
    if !document.contains_key("hostname") {
        document.entry("local-hostname").or_insert_with(|| json!(request.name.as_str()));
    }
    if access.for_default_user && !request.authorized_keys.is_empty() {
        let mut keys = match document.remove("public-keys") {
            Some(Value::String(text)) => text.lines().map(|line| json!(line)).collect(),
            Some(Value::Array(keys)) => keys,
            // By name, each one key or a list of keys.
            Some(Value::Object(named)) => named
                .into_iter()
                .flat_map(|(_, keys)| match keys {
                    Value::Array(keys) => keys,
                    key => vec![key],
                })
                .collect(),
            _ => Vec::new(),
        };
        keys.extend(request.authorized_keys.iter().map(|key| json!(key)));
        document.insert("public-keys".into(), Value::Array(keys));
    }
    Ok(MetaData { bytes: yaml::write(&document)?.into_bytes(), instance, warnings })
}

#[derive(Deserialize)]
struct Identity {
    /// As it is written: a number is as good a name as any.
    #[serde(rename = "instance-id", default)]
    instance: Option<String>,
}

/// The user's own instance id; `None` for none, and for one that is empty.
fn own_instance(meta_data: &[u8]) -> Result<Option<String>> {
    let text = String::from_utf8_lossy(meta_data);
    // It was parsed before: what is wrong with it now is this.
    let identity: Option<Identity> = yaml::parse_as(&text, "the meta-data").map_err(|_| {
        Error::usage("the meta-data's 'instance-id' is a list or a mapping").hint("write it as in 'instance-id: web-1'")
    })?;
    let Some(id) = identity.and_then(|identity| identity.instance).filter(|id| !id.trim().is_empty()) else {
        return Ok(None);
    };
    if id.len() > ID_LIMIT || id.chars().any(char::is_control) || matches!(id.as_str(), "." | "..") {
        return Err(Error::usage(format!("the meta-data's 'instance-id' {} cannot be one", quoted(&id)))
            .hint("it names a folder in the guest: one line, shorter than 256 bytes"));
    }
    Ok(Some(id))
}
