//! The documents that virga writes itself, as values until the last moment.

use serde_json::{Map, Value, json};

use super::login::Access;
use super::settings::{Config, known};
use super::{SeedRequest, yaml};
use crate::base::name::quoted;
use crate::base::{Context as _, Error, Result};

/// The lowest layer, as it is written into the seed.
pub(super) const BASE: &str = include_str!("../../cloud-init/base.yaml");
const NETWORK: &str = include_str!("../../cloud-init/network-config.yaml");

/// Our share of the user-data.
pub(super) struct Ours {
    /// Added to the user's lists and never over their values.
    pub additions: Map<String, Value>,
    /// Set whatever the user's parts say.
    pub decisions: Map<String, Value>,
}

/// Refuses options that would not arrive in the guest as they were given.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage).
pub(super) fn check(request: &SeedRequest) -> Result<()> {
    for key in &request.authorized_keys {
        // A line break would smuggle in a second line, with options of its own.
        if key.trim().is_empty() || key.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::usage(format!("{} is not one line of authorized_keys", quoted(key))));
        }
    }
    for package in &request.packages {
        if !is_package(package) {
            return Err(Error::usage(format!("{} is not a package name", quoted(package)))
                .hint("names begin with a letter or digit and have a-z, A-Z, 0-9 and any of . + - _ : ~ = /"));
        }
    }
    for script in &request.run_scripts_once {
        let what = format!("the script {}", quoted(&script.name));
        let text = std::str::from_utf8(&script.bytes).map_err(|_| {
            Error::usage(format!("{what} is not UTF-8 text")).hint("let a script fetch and run the program")
        })?;
        if !text.starts_with("#!") {
            return Err(Error::usage(format!("{what} does not begin with '#!', so the guest could not run it"))
                .hint("begin it with the line '#!/bin/sh'"));
        }
    }
    request.password.as_deref().map_or(Ok(()), check_password)
}

pub(super) fn check_password(password: &str) -> Result<()> {
    // chpasswd(8) reads lines; cloud-init reads these two words as "make one up".
    if password.is_empty() || password.chars().any(char::is_control) {
        return Err(Error::usage("the password is empty or has control characters"));
    }
    if matches!(password, "R" | "RANDOM") {
        return Err(Error::usage(format!("cloud-init would not set the password '{password}' but a random one")));
    }
    Ok(())
}

/// A name as apt, dnf or zypper know it, perhaps with version, release or architecture. Never an option.
fn is_package(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".+-_:~=/".contains(&b);
    text.len() <= 256 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(plain)
}

/// Our share of the user-data, beside the user's own configuration.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) when cloud-init could not merge it with theirs.
pub(super) fn ours(
    request: &SeedRequest,
    configs: &[Config],
    access: &Access,
    host_keys: Option<Value>,
) -> Result<Ours> {
    let (mut additions, mut decisions) = (Map::new(), Map::new());
    if access.for_default_user && !request.authorized_keys.is_empty() {
        additions.insert("ssh_authorized_keys".into(), json!(request.authorized_keys));
    }
    if !request.packages.is_empty() {
        additions.insert("packages".into(), json!(request.packages));
    }
    if let Some(password) = &request.password {
        decisions.insert("ssh_pwauth".into(), json!(true));
        if access.for_default_user {
            decisions.insert("password".into(), json!(password));
            additions.insert("chpasswd".into(), json!({ "expire": false }));
        }
    }
    if access.add_default {
        additions.insert("users".into(), json!(["default"]));
    }
    if let Some(users) = &access.users {
        decisions.insert("users".into(), users.clone());
    }
    if let Some(host_keys) = host_keys {
        decisions.insert("ssh_keys".into(), host_keys);
    }
    for (key, ours) in &additions {
        // cloud-init silently keeps only theirs when the types differ.
        let same = |theirs: &Value| theirs.is_array() == ours.is_array() && theirs.is_object() == ours.is_object();
        if known(configs, key).is_some_and(|theirs| !same(theirs)) {
            let kind = if ours.is_array() { "list" } else { "mapping" };
            return Err(Error::usage(format!("the user-data's '{key}' is not a {kind}")));
        }
    }
    Ok(Ours { additions, decisions })
}

/// The user's own network configuration as it is, or DHCP on the guest's cards.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) when the user's own cannot be one.
pub(super) fn network_config(request: &SeedRequest) -> Result<Vec<u8>> {
    if let Some(bytes) = &request.network_config {
        let document = mapping(bytes, "the network-config")?;
        if !["version", "network", "config"].iter().any(|key| document.contains_key(*key)) {
            return Err(Error::usage("the network-config has neither 'version' nor 'network'")
                .hint("begin it with the line 'version: 2'"));
        }
        return Ok(bytes.clone());
    }
    let mut document = yaml::parse(NETWORK, "the network-config of this program")?;
    let cards = document["ethernets"].as_object_mut();
    let cards = cards.ok_or_else(|| Error::failed("the network-config of this program has no cards"))?;
    let card = cards.remove("eth0").unwrap_or_default();
    for (number, mac) in request.macs.iter().enumerate() {
        let (mut card, name) = (card.clone(), format!("eth{number}"));
        if !request.cards_have_names {
            card["match"]["macaddress"] = json!(mac.to_string());
            card["set-name"] = json!(name);
        }
        if number > 0 {
            // The boot waits for the first one alone, and what leaves the guest's networks goes out there.
            card["optional"] = json!(true);
            card["dhcp4-overrides"] = json!({"use-routes": false});
        }
        cards.insert(name, card);
    }
    Ok(yaml::write(&document)?.into_bytes())
}

/// A document of the user's that must be a mapping.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) when it is none.
pub(super) fn mapping(bytes: &[u8], what: &str) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(bytes)
        .context(|| format!("{what} is not UTF-8 text"))
        .map_err(|error| error.with_kind(crate::base::Kind::Usage))?;
    match yaml::parse(text, what)? {
        Value::Object(document) => Ok(document),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::usage(format!("{what} is not a mapping of keys to values"))),
    }
}
