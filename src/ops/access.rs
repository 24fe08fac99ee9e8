//! Guests for programs that are not virga: blocks for ssh's configuration, by
//! which scp, rsync and editors get in too, and an inventory for Ansible.
//!
//! Addresses change with each start, so nothing is written once and for all:
//! the line in the user's `~/.ssh/config` leads to a file that asks virga
//! whenever a name under `.virga` is called.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::list::{self, Listed};
use super::{Env, ssh};
use crate::base::{Error, GuestName, Kind, Result, fs, state};
use crate::ssh::session::{SshTarget, Style, options};

/// What guests are called in ssh's configuration, behind their name.
pub const DOMAIN: &str = ".virga";

/// Most bytes of a configuration of the user's.
const CONFIG_LIMIT: u64 = 4 << 20;

/// A guest that can be logged in to.
fn target(env: Env<'_>, listed: &Listed) -> Option<SshTarget> {
    let record = listed.record.as_ref()?;
    Some(ssh::login(env, record, None).at(listed.endpoint?))
}

/// The running guests, or those of them that are named.
fn running(env: Env<'_>, names: &[GuestName]) -> Result<Vec<(Listed, SshTarget)>> {
    let listed = list::list(env)?;
    for name in names {
        // In words that tell an unknown name from one that does not run.
        list::address(env, name)?;
    }
    let wanted = listed.into_iter().filter(|guest| names.is_empty() || names.contains(&guest.name));
    Ok(wanted.filter_map(|guest| target(env, &guest).map(|target| (guest, target))).collect())
}

/// One block of ssh_config(5) for each running guest, or for those that are named.
///
/// # Errors
/// As [`list::address`] for a name; as [`list::list`].
pub fn ssh_config(env: Env<'_>, names: &[GuestName]) -> Result<String> {
    let mut text = String::new();
    for (guest, target) in running(env, names)? {
        text.push_str(&format!("Host {}{DOMAIN}\n", guest.name));
        text.push_str(&format!("    User {}\n", target.login.user));
        for (key, value) in options(&target, Style::User)? {
            text.push_str(&format!("    {key} {value}\n"));
        }
    }
    Ok(text)
}

/// Writes the blocks of all running guests to where the installed configuration finds them.
///
/// # Errors
/// As [`ssh_config`]; when the file cannot be written.
pub fn refresh(env: Env<'_>) -> Result<()> {
    let text = ssh_config(env, &[])?;
    fs::write_atomic(&env.settings.layout.ssh_blocks(), text.as_bytes(), 0o600)
}

/// Has the user's `~/.ssh/config` include a file of ours, by which `ssh NAME.virga` works. Again is success.
/// Returns the user's file, and whether it was changed.
///
/// # Errors
/// [`Kind::Usage`] without a home folder; when a file cannot be written.
pub fn install(env: Env<'_>, program: &Path) -> Result<(PathBuf, bool)> {
    let layout = &env.settings.layout;
    state::prepare(layout)?;
    fs::create_private_dir(fs::folder_of(&layout.ssh_include()))?;
    refresh(env)?;
    let command = format!(
        "env {} {} --quiet ssh-config --refresh",
        word(&format!("VIRGA_HOME={}", layout.home().display()))?,
        word(&program.display().to_string())?
    );
    let include = format!(
        "# Written by 'virga ssh-config --install'. Asks virga where its guests are whenever one is called.\n\
         Match originalhost *{DOMAIN} exec \"{command}\"\n    Include {}\n",
        quoted_path(&layout.ssh_blocks())?
    );
    fs::write_atomic(&layout.ssh_include(), include.as_bytes(), 0o600)?;

    let (file, text) = users_config(env)?;
    let line = include_line(env)?;
    if text.lines().any(|found| found.trim() == line) {
        return Ok((file, false));
    }
    fs::create_private_dir(fs::folder_of(&file))?;
    // At the top: what comes first counts, and below a block it would belong to that.
    fs::write_atomic(&file, format!("{line}\n{text}").as_bytes(), 0o600)?;
    Ok((file, true))
}

/// Takes back what [`install`] wrote. Nothing is success.
///
/// # Errors
/// As [`install`].
pub fn uninstall(env: Env<'_>) -> Result<(PathBuf, bool)> {
    let (file, text) = users_config(env)?;
    let line = include_line(env)?;
    let left: String = text.split_inclusive('\n').filter(|found| found.trim() != line).collect();
    let changed = left != text;
    if changed {
        fs::write_atomic(&file, left.as_bytes(), 0o600)?;
    }
    fs::remove_file(&env.settings.layout.ssh_include())?;
    fs::remove_file(&env.settings.layout.ssh_blocks())?;
    Ok((file, changed))
}

fn users_config(env: Env<'_>) -> Result<(PathBuf, String)> {
    let home = env.settings.user_home.as_deref();
    let home = home.ok_or_else(|| Error::usage("there is no home folder with a configuration of ssh's"))?;
    let file = home.join(".ssh/config");
    // One that leads elsewhere is written there, and stays a link.
    let file = file.canonicalize().unwrap_or(file);
    match fs::read_text(&file, CONFIG_LIMIT) {
        Err(error) if error.kind() == Kind::NotFound => Ok((file, String::new())),
        text => Ok((file, text?)),
    }
}

fn include_line(env: Env<'_>) -> Result<String> {
    Ok(format!("Include {}", quoted_path(&env.settings.layout.ssh_include())?))
}

/// A path for a place where ssh takes quotes but no way to write one.
fn quoted_path(path: &Path) -> Result<String> {
    plain(&path.display().to_string()).map(|text| format!("\"{text}\""))
}

/// A word of a shell's within ssh's double quotes.
fn word(text: &str) -> Result<String> {
    plain(text).map(|text| format!("'{}'", text.replace('%', "%%")))
}

fn plain(text: &str) -> Result<&str> {
    if text.contains(['"', '\'', '\\', '*', '?', '[', '$']) || text.chars().any(char::is_control) {
        return Err(Error::usage(format!("ssh's configuration cannot name the path {text:?}")));
    }
    Ok(text)
}

/// The running guests as Ansible's inventory scripts tell them (Ansible's "Developing dynamic inventory"): groups by
/// what the guests are made of, and all variables under `_meta`.
///
/// # Errors
/// As [`list::list`].
pub fn inventory(env: Env<'_>) -> Result<Value> {
    let (mut hosts, mut groups) = (Map::new(), Map::new());
    for (guest, target) in running(env, &[])? {
        let name = guest.name.to_string();
        for group in groups_of(&guest) {
            let members = groups.entry(group).or_insert_with(|| json!({"hosts": []}));
            members["hosts"].as_array_mut().expect("made above").push(json!(name));
        }
        hosts.insert(name, variables(&target)?);
    }
    let names: Vec<&String> = hosts.keys().collect();
    let mut inventory = Map::from_iter([("virga".to_owned(), json!({"hosts": names}))]);
    inventory.extend(groups);
    inventory.insert("_meta".into(), json!({"hostvars": hosts}));
    Ok(Value::Object(inventory))
}

/// The same as a file that Ansible reads: JSON, which its YAML reader takes.
///
/// # Errors
/// As [`list::list`].
pub fn inventory_file(env: Env<'_>) -> Result<Value> {
    let Value::Object(mut groups) = inventory(env)? else { return Ok(Value::Null) };
    let hosts = groups.remove("_meta").map(|mut meta| meta["hostvars"].take()).unwrap_or_default();
    for group in groups.values_mut() {
        let names: Vec<Value> = group["hosts"].as_array().cloned().unwrap_or_default();
        let members = names.iter().filter_map(Value::as_str).map(|name| (name.to_owned(), json!({})));
        group["hosts"] = Value::Object(members.collect());
    }
    Ok(json!({"all": {"hosts": hosts, "children": groups}}))
}

/// One guest's variables.
///
/// # Errors
/// As [`list::address`].
pub fn inventory_host(env: Env<'_>, name: &GuestName) -> Result<Value> {
    match running(env, std::slice::from_ref(name))?.first() {
        Some((_, target)) => variables(target),
        None => Err(Error::failed(format!("guest '{name}' has no address"))),
    }
}

fn variables(target: &SshTarget) -> Result<Value> {
    let mut words = Vec::new();
    for (key, value) in options(target, Style::User)? {
        if !matches!(key, "HostName" | "Port" | "ControlMaster" | "ControlPath") {
            // Ansible splits them as a shell does.
            words.push(format!("-o {}", crate::ssh::session::shell_word(&format!("{key}={value}"))));
        }
    }
    Ok(json!({
        "ansible_host": target.addr.ip().to_string(),
        "ansible_port": target.addr.port(),
        "ansible_user": target.login.user,
        "ansible_ssh_common_args": words.join(" "),
    }))
}

/// Ansible's groups have plain names.
fn groups_of(guest: &Listed) -> Vec<String> {
    let Some(record) = &guest.record else { return Vec::new() };
    let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let keys = ["os", "release", "arch"].into_iter();
    let of_keys = keys.filter_map(|key| Some(format!("{key}_{}", plain(record.origin.keys.get(key)?))));
    of_keys.chain([format!("driver_{}", record.driver)]).collect()
}
