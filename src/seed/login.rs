//! Who can log in, given the user's own user-data.

use serde_json::{Map, Value, json};

use super::settings::{Config, Setting, known, lists_default, setting};
use crate::base::name::quoted;

/// How the access keys and the password get to a user.
#[derive(Default)]
pub(super) struct Access {
    /// The login user, where user-data decides it.
    pub login_user: Option<String>,
    /// The user-data's `users`, one of them given our keys and password, to replace the original.
    pub users: Option<Value>,
    /// Whether `default` is to be added to whatever the guest finds in `users`.
    pub add_default: bool,
    /// Whether keys and password are for the image's default user.
    pub for_default_user: bool,
    pub warnings: Vec<String>,
}

/// cloud-init gives keys and password at the top level to the default user alone,
/// and makes that user only when `users` is absent or lists `default`. So a list
/// without it would lock us out; then ours go to the first of its users that can log in.
/// Where the list is known in the guest alone, `default` is added to it.
pub(super) fn decide(configs: &[Config], keys: &[String], password: Option<&str>) -> Access {
    let mut access = Access { for_default_user: true, ..Access::default() };
    let wanted = !keys.is_empty() || password.is_some();
    let users = match setting(configs, "users") {
        Setting::Known(users) => users,
        Setting::Absent => {
            access.login_user = default_user(configs);
            access.add_default = wanted && configs.iter().any(|config| matches!(config, Config::Unseen));
            return access;
        }
        Setting::Unknown { what, text } => {
            access.login_user = default_user(configs);
            access.add_default = wanted;
            if wanted && !lists_default(text) && !lists_default_plainly(configs) {
                access.warnings.push(format!(
                    "what {what} makes of 'users' is known in the guest alone: 'default' is added to it, so that SSH \
                     keys and password get in, as the default user"
                ));
            }
            return access;
        }
    };
    let mut entries = entries(users);
    // A top-level `user` makes cloud-init add the default user to the list.
    if known(configs, "user").is_some_and(|user| !user.is_null()) || has_default(&entries) {
        access.login_user = default_user(configs);
        return access;
    }
    if users.is_null() {
        // A key without a value, as in a template that nobody filled in: cloud-init would make no user at all.
        access.login_user = default_user(configs);
        access.users = wanted.then(|| json!(["default"]));
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
    if wanted {
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

/// The name of the default user, where configuration decides it.
fn default_user(configs: &[Config]) -> Option<String> {
    let user = known(configs, "user").and_then(name_of);
    let configured = || known(configs, "system_info")?.pointer("/default_user/name")?.as_str();
    user.or_else(configured).map(str::to_owned)
}

fn has_default(entries: &[Map<String, Value>]) -> bool {
    entries.iter().any(|entry| name(entry) == "default")
}

fn lists_default_plainly(configs: &[Config]) -> bool {
    configs.iter().any(|config| match config {
        Config::Plain { document, .. } => document.get("users").is_some_and(|users| has_default(&entries(users))),
        Config::Unknown { .. } | Config::Unseen => false,
    })
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
    entry.insert(
        // Not `passwd`, which counts for users alone who are not there yet.
        if super::password::is_hashed(password) { "hashed_passwd" } else { "plain_text_passwd" }.into(),
        json!(password),
    );
    entry.insert("lock_passwd".into(), json!(false));
}

#[cfg(test)]
mod tests;
