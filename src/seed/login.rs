//! Who can log in, and by which host keys the guest is known, given the user's
//! own user-data.

use serde_json::{Map, Value, json};
use ssh_key::{PrivateKey, PublicKey};

use super::HostKey;
use super::part::setting;
use crate::base::name::quoted;
use crate::base::{Error, Result};

/// How the access keys and the password get to a user.
#[derive(Default)]
pub(super) struct Access {
    /// The login user, where user-data decides it.
    pub login_user: Option<String>,
    /// The user-data's `users`, one of them given our keys and password, to replace the original.
    pub users: Option<Value>,
    /// Whether keys and password are for the image's default user.
    pub for_default_user: bool,
    pub warnings: Vec<String>,
}

/// cloud-init gives keys and password at the top level to the default user alone,
/// and makes that user only when `users` is absent or lists `default`. So a list
/// without it would lock us out; then ours go to the first of its users that can log in.
pub(super) fn decide(documents: &[&Value], keys: &[String], password: Option<&str>) -> Access {
    let mut access = Access { for_default_user: true, ..Access::default() };
    let user = setting(documents, "user").and_then(name_of).map(str::to_owned);
    let configured = || {
        let name = setting(documents, "system_info")?.pointer("/default_user/name")?;
        Some(name.as_str()?.to_owned())
    };
    let Some(users) = setting(documents, "users").filter(|users| !users.is_null()) else {
        access.login_user = user.or_else(configured);
        return access;
    };
    let mut entries = entries(users);
    // A top-level `user` makes cloud-init add the default user to the list.
    let has_default = setting(documents, "user").is_some_and(|user| !user.is_null());
    if has_default || entries.iter().any(|entry| name(entry) == "default") {
        access.login_user = user.or_else(configured);
        return access;
    }
    let able: Vec<usize> = (0..entries.len()).filter(|&at| can_log_in(&entries[at])).collect();
    // Root last: most images refuse root's logins over SSH.
    let Some(&at) = able.iter().find(|&&at| name(&entries[at]) != "root").or(able.first()) else {
        access.warnings.push(
            "the user-data's 'users' has neither 'default' nor a user that can log in: SSH will not let anyone in"
                .into(),
        );
        return access;
    };
    let chosen = name(&entries[at]).to_owned();
    if !keys.is_empty() || password.is_some() {
        access.warnings.push(format!(
            "the user-data's 'users' does not list 'default', so the image's own user is not made: \
             SSH keys and password go to {}",
            quoted(&chosen)
        ));
        add_keys(&mut entries[at], keys);
        if let Some(password) = password {
            set_password(&mut entries[at], password);
        }
        access.users = Some(json!(entries));
        access.for_default_user = false;
    }
    access.login_user = Some(chosen);
    access
}

/// The entries of `users` in the form of a list of mappings; cloud-init also
/// takes names, comma-separated names, and a mapping by name.
fn entries(users: &Value) -> Vec<Map<String, Value>> {
    let named = |name: &str| Map::from_iter([("name".to_owned(), json!(name))]);
    let names = |text: &str| text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(named).collect::<Vec<_>>();
    match users {
        Value::String(text) => names(text),
        Value::Array(items) => items.iter().flat_map(entries_of_item).collect(),
        Value::Object(by_name) => {
            let entry = |(name, value): (&String, &Value)| match value {
                Value::Object(entry) => {
                    let mut entry = entry.clone();
                    entry.insert("name".into(), json!(name));
                    Some(entry)
                }
                value => is_true(Some(value)).then(|| named(name)),
            };
            by_name.iter().filter_map(entry).collect()
        }
        _ => Vec::new(),
    }
}

fn entries_of_item(item: &Value) -> Vec<Map<String, Value>> {
    match item {
        Value::Object(entry) => {
            let mut entry = entry.clone();
            // An entry without a name is about the default user.
            entry.entry("name").or_insert_with(|| json!("default"));
            vec![entry]
        }
        Value::String(_) | Value::Array(_) => entries(item),
        _ => Vec::new(),
    }
}

fn name(entry: &Map<String, Value>) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn name_of(user: &Value) -> Option<&str> {
    user.as_str().or_else(|| user.get("name")?.as_str())
}

fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(text)) => matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1"),
        Some(Value::Number(number)) => number.as_i64() == Some(1),
        _ => false,
    }
}

/// Whether SSH keys of this user can lead to a login.
fn can_log_in(entry: &Map<String, Value>) -> bool {
    // cloud-init takes hyphens for underscores here.
    let get = |key: &str| entry.get(key).or_else(|| entry.get(&key.replace('_', "-")));
    let shell = get("shell").and_then(Value::as_str).unwrap_or_default();
    let barred = ["system", "inactive", "no_create_home"].iter().any(|key| is_true(get(key)));
    let named = !matches!(name(entry), "" | "default");
    named && !barred && get("snapuser").is_none() && !shell.ends_with("/nologin") && !shell.ends_with("/false")
}

fn add_keys(entry: &mut Map<String, Value>, keys: &[String]) {
    let mut all: Vec<Value> = Vec::new();
    for spelling in ["ssh-authorized-keys", "ssh_authorized_keys"] {
        match entry.remove(spelling) {
            Some(Value::Array(theirs)) => all.extend(theirs),
            Some(Value::String(text)) => all.extend(text.lines().map(|line| json!(line))),
            _ => {}
        }
    }
    for key in keys {
        if !all.iter().any(|known| known.as_str() == Some(key)) {
            all.push(json!(key));
        }
    }
    entry.insert("ssh_authorized_keys".into(), Value::Array(all));
}

/// As `password` does for the default user: cloud-init locks the others' unless told not to.
fn set_password(entry: &mut Map<String, Value>, password: &str) {
    for key in ["lock_passwd", "lock-passwd", "passwd", "hashed_passwd", "plain_text_passwd"] {
        entry.remove(key);
    }
    // crypt(5): $id$salt$hash.
    let hashed = password.starts_with('$') && password.matches('$').count() >= 3;
    entry.insert(if hashed { "passwd" } else { "plain_text_passwd" }.into(), json!(password));
    entry.insert("lock_passwd".into(), json!(false));
}

/// The host keys of the guest.
pub(super) struct HostKeys {
    /// `ssh_keys` for cloud-init; `None` when the user's own are used.
    pub inject: Option<Value>,
    /// Each as `type base64`.
    pub public: Vec<String>,
    pub warnings: Vec<String>,
}

/// Ours, unless plain cloud-config of the user brings its own: then theirs are what the guest will show.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) when theirs cannot be recognised: the guest could then not be verified.
pub(super) fn host_keys(documents: &[&Value], ours: &[HostKey]) -> Result<HostKeys> {
    if let Some(theirs) = setting(documents, "ssh_keys").filter(|value| !value.is_null()) {
        let theirs = theirs.as_object().ok_or_else(|| Error::usage("the user-data's 'ssh_keys' is not a mapping"))?;
        let mut public = Vec::new();
        for (key, value) in theirs {
            if let Some(kind) = key.strip_suffix("_private") {
                public.push(public_of(kind, value, theirs.get(&format!("{kind}_public")))?);
            }
        }
        if !public.is_empty() {
            let warning = "the user-data brings SSH host keys of its own: they are used, none is made";
            return Ok(HostKeys { inject: None, public, warnings: vec![warning.into()] });
        }
    }
    let mut inject = Map::new();
    let mut public = Vec::new();
    for key in ours {
        inject.insert(format!("{}_private", key.kind.name()), json!(key.private_openssh));
        inject.insert(format!("{}_public", key.kind.name()), json!(key.public_openssh));
        public.push(plain_public(&key.public_openssh).map_err(|e| e.with_kind(crate::base::Kind::Failed))?);
    }
    Ok(HostKeys { inject: (!ours.is_empty()).then_some(Value::Object(inject)), public, warnings: Vec::new() })
}

fn public_of(kind: &str, private: &Value, public: Option<&Value>) -> Result<String> {
    let stated = public.and_then(Value::as_str).map(plain_public).transpose()?;
    // Older PEM forms cannot be read here; for them the stated public key is all there is.
    let derived = private.as_str().and_then(|text| PrivateKey::from_openssh(text).ok()).and_then(|key| {
        let text = key.public_key().to_openssh().ok()?;
        plain_public(&text).ok()
    });
    match (stated, derived) {
        (Some(stated), Some(derived)) if stated != derived => {
            Err(Error::usage(format!("in the user-data's 'ssh_keys', {kind}_public does not belong to {kind}_private")))
        }
        (Some(public), _) | (None, Some(public)) => Ok(public),
        (None, None) => Err(Error::usage(format!("the user-data's 'ssh_keys' has {kind}_private that cannot be read"))
            .hint(format!("add {kind}_public, so that the guest can be recognised"))),
    }
}

/// A public key's line without its comment.
fn plain_public(line: &str) -> Result<String> {
    let mut key = PublicKey::from_openssh(line.trim())
        .map_err(|error| Error::usage(format!("{} is not an SSH public key", quoted(line))).because(error))?;
    key.set_comment("");
    let text = key.to_openssh().map_err(|error| Error::failed("writing an SSH public key").because(error))?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests;
