//! A plan as the daemon's instance, and an instance of the daemon's read
//! (Incus documentation, "Instance configuration").

use std::net::{IpAddr, TcpListener};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::api::Api;
use crate::base::container::Container;
use crate::base::nic::{Network, Nic};
use crate::base::plan::Forward;
use crate::base::{Context as _, Error, GuestName, GuestPlan, Kind, Result, fs};
use crate::driver::Status;

/// The labels: which guest it is, and which state folder's.
pub(super) const ID: &str = "user.virga.id";
pub(super) const STATE: &str = "user.virga.state";

/// What devices that lead to ports of ours are called, with a number.
const PORT: &str = "virga-port-";

/// What devices that are folders of the host's are called, with a number.
const FOLDER: &str = "virga-folder-";

/// Most bytes of one document of a seed.
const DOCUMENT_LIMIT: u64 = 64 << 20;

/// The documents of a seed, and the daemon's keys for them.
const DOCUMENTS: [(&str, &str); 4] = [
    ("meta-data", "user.meta-data"),
    ("user-data", "cloud-init.user-data"),
    ("vendor-data", "cloud-init.vendor-data"),
    ("network-config", "cloud-init.network-config"),
];

/// Where cloud-init looks for a seed in its own file system.
const SEED: &str = "/var/lib/cloud/seed/nocloud-net";

/// What makes a plan a container.
///
/// # Errors
/// [`Kind::Failed`] for a plan that is none.
pub(super) fn container(plan: &GuestPlan) -> Result<&Container> {
    plan.container.as_ref().ok_or_else(|| Error::failed(format!("the guest '{}' is no container", plan.name)))
}

/// The seed's documents, by name.
///
/// # Errors
/// When they cannot be read.
pub(super) fn documents(plan: &GuestPlan) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let Some(folder) = &plan.seed else { return Ok(Vec::new()) };
    DOCUMENTS.iter().map(|(name, _)| Ok((*name, fs::read(&folder.join(name), DOCUMENT_LIMIT)?))).collect()
}

/// Whether the image itself lays a seed when an instance is made of it.
///
/// # Errors
/// What the daemon said.
pub(super) fn lays_seed(api: &Api, plan: &GuestPlan) -> Result<bool> {
    let described = api.get(&format!("/1.0/instances/{}/metadata", plan.name))?;
    let theirs = described["templates"].as_object();
    Ok(theirs.is_some_and(|templates| templates.contains_key(&format!("{SEED}/user-data"))))
}

/// Lays the seed where cloud-init looks for it.
///
/// # Errors
/// What the daemon said.
pub(super) fn lay_seed(api: &Api, plan: &GuestPlan) -> Result<()> {
    let name = plan.name.as_str();
    let parents = Path::new(SEED).ancestors().filter(|folder| folder.starts_with("/var/lib/cloud"));
    for folder in parents.collect::<Vec<_>>().into_iter().rev() {
        api.write_file(name, &folder.display().to_string(), "directory", Vec::new())?;
    }
    for (document, bytes) in documents(plan)? {
        api.write_file(name, &format!("{SEED}/{document}"), "0600", bytes)?;
    }
    Ok(())
}

/// Gives an instance that was renamed its host name, unless the user gave it one. cloud-init does not read a seed in the
/// file system again whose instance it knows, and leaves alone a host name that it did not write itself.
///
/// # Errors
/// What the daemon said.
pub(super) fn lay_host_name(api: &Api, plan: &GuestPlan) -> Result<()> {
    let name = plan.name.as_str();
    let follows = documents(plan)?.iter().any(|(document, bytes)| {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        *document == "meta-data" && lines.any(|line| line == format!("local-hostname: {name}").as_bytes())
    });
    match follows {
        true => api.write_file(name, "/etc/hostname", "0644", format!("{name}\n").into_bytes()),
        false => Ok(()),
    }
}

/// The instance's own settings.
///
/// # Errors
/// When the seed cannot be read.
pub(super) fn config(plan: &GuestPlan, state: &str) -> Result<Map<String, Value>> {
    let container = container(plan)?;
    let mut config = Map::new();
    let mut set = |key: &str, value: String| drop(config.insert(key.to_owned(), value.into()));
    set(ID, plan.id.to_string());
    set(STATE, state.to_owned());
    set("limits.cpu", plan.cpus.to_string());
    set("limits.memory", format!("{}B", plan.memory.0));
    set("security.privileged", container.wish.privileged.to_string());
    set("security.nesting", container.wish.nesting.to_string());
    for (number, nic) in plan.nics.iter().enumerate() {
        set(&format!("volatile.eth{number}.hwaddr"), nic.mac.to_string());
    }
    for (document, bytes) in documents(plan)? {
        let key = DOCUMENTS.iter().find(|(name, _)| *name == document).map_or(document, |(_, key)| key);
        let text = String::from_utf8(bytes).context(|| format!("the seed's {document} is not UTF-8 text"))?;
        set(key, text);
    }
    Ok(config)
}

/// An instance with other settings and devices: those of ours that it does not have any more go, those of others stay.
pub(super) fn changed(there: &Value, config: Map<String, Value>, devices: Map<String, Value>) -> Value {
    let mut changed = json!({});
    for key in ["architecture", "config", "description", "devices", "ephemeral", "profiles", "stateful"] {
        changed[key] = there[key].clone();
    }
    if let Some(all) = changed["config"].as_object_mut() {
        all.extend(config);
    }
    if let Some(all) = changed["devices"].as_object_mut() {
        all.retain(|name, _| ![PORT, FOLDER].iter().any(|ours| name.starts_with(ours)));
        all.extend(devices);
    }
    changed
}

/// The instance's own devices: what the profiles do not give it. `root`: the profiles' root device; `there`: the
/// instance as it is, whose ports stay where they were chosen before.
///
/// # Errors
/// [`Kind::Unsupported`] for a network that it cannot be on; when no port is free.
pub(super) fn devices(plan: &GuestPlan, root: Option<&Value>, there: &Value) -> Result<Map<String, Value>> {
    let container = container(plan)?;
    let mut devices = Map::new();
    let pool = plan.daemon.as_ref().map(|daemon| daemon.pool.as_str()).filter(|pool| !pool.is_empty());
    if pool.is_some() || container.wish.size.is_some() || root.is_none() {
        let pool = pool.map(Value::from).or_else(|| Some(root?["pool"].clone()));
        let Some(pool) = pool else {
            return Err(Error::unavailable("the daemon's profile has no root disk, and so no storage pool")
                .hint("'incus admin init' sets that up; 'incus storage list' shows the pools there are"));
        };
        let mut device = json!({"type": "disk", "path": "/", "pool": pool});
        if let Some(size) = container.wish.size {
            device["size"] = format!("{}B", size.0).into();
        }
        devices.insert("root".into(), device);
    }
    for (number, nic) in plan.nics.iter().enumerate() {
        if let Some(device) = card(nic, number)? {
            devices.insert(format!("eth{number}"), device);
        }
    }
    let mut held = Vec::new();
    for (number, folder) in container.folders.iter().enumerate() {
        let mut device = json!({"type": "disk", "source": folder.host, "path": folder.guest});
        device["readonly"] = folder.read_only.to_string().into();
        if !container.wish.privileged {
            // Its users see the owners that the host's users see.
            device["shift"] = "true".into();
        }
        devices.insert(format!("{FOLDER}{number}"), device);
    }
    for (number, forward) in forwards(there, plan).into_iter().enumerate() {
        let host = match forward.host {
            0 => free_port(&mut held)?,
            port => port,
        };
        let guest = forward.guest;
        devices.insert(
            format!("{PORT}{number}"),
            json!({"type": "proxy", "listen": format!("tcp:127.0.0.1:{host}"), "connect": format!("tcp:127.0.0.1:{guest}")}),
        );
    }
    Ok(devices)
}

/// A card; `None`: the first one of the profile, which is on the daemon's default network.
fn card(nic: &Nic, number: usize) -> Result<Option<Value>> {
    let name = format!("eth{number}");
    match &nic.network {
        Network::Nat if number == 0 => Ok(None),
        Network::Nat => Err(Error::usage("a container has one card on the daemon's default network")
            .hint("'--network network=NAME' puts a further one on a network that is named")),
        Network::Named(network) => Ok(Some(json!({"type": "nic", "name": name, "network": network.as_str()}))),
        Network::Bridge(bridge) => {
            Ok(Some(json!({"type": "nic", "name": name, "nictype": "bridged", "parent": bridge.as_str()})))
        }
        Network::User | Network::Full | Network::None => {
            Err(Error::new(Kind::Unsupported, "containers of the incus driver have no network of their own")
                .hint("one of: nat, network=NAME, bridge=NAME"))
        }
    }
}

/// Held until all are chosen, so that they differ.
fn free_port(held: &mut Vec<TcpListener>) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context(|| "finding a free port".into())?;
    let port = listener.local_addr().context(|| "finding a free port".into())?.port();
    held.push(listener);
    Ok(port)
}

/// The plan's forwards with the host's ports, as the instance has them.
pub(super) fn forwards(instance: &Value, plan: &GuestPlan) -> Vec<Forward> {
    let host = |number: usize| {
        let listen = instance["devices"][format!("{PORT}{number}")]["listen"].as_str()?;
        listen.rsplit(':').next()?.parse().ok()
    };
    // A port that was asked for is the one that is meant, whatever the instance has yet.
    let filled = |(number, forward): (usize, &Forward)| match forward.host {
        0 => Forward { host: host(number).unwrap_or(0), ..*forward },
        _ => *forward,
    };
    plan.forwards.iter().enumerate().map(filled).collect()
}

/// How an instance stands (Incus documentation, "Instance states" and "Status codes").
pub(super) fn status(instance: &Value) -> Status {
    match instance["status_code"].as_u64() {
        // Running, starting, stopping, aborting, freezing, thawed, ready.
        Some(103 | 106 | 107 | 108 | 109 | 111 | 113) => Status::Running,
        Some(110) => Status::Paused,
        Some(112) => Status::Died,
        _ => Status::Stopped,
    }
}

/// The guest that an instance is, if it is one of this state folder's.
pub(super) fn label(instance: &Value, state: &str) -> Option<GuestName> {
    let ours = instance["config"][STATE] == state;
    instance["name"].as_str().filter(|_| ours)?.parse().ok()
}

/// The addresses of the cards that reach further than their own link, IPv4 first; the plan's cards in their order.
pub(super) fn addresses(state: &Value, plan: &GuestPlan) -> Vec<IpAddr> {
    let Some(cards) = state["network"].as_object() else { return Vec::new() };
    let of = |nic: &Nic| {
        let mac = nic.mac.to_string();
        let card =
            cards.values().find(|card| card["hwaddr"].as_str().is_some_and(|found| found.eq_ignore_ascii_case(&mac)));
        let all = card.and_then(|card| card["addresses"].as_array()).into_iter().flatten();
        let all = all.filter(|address| address["scope"] == "global");
        let mut all: Vec<IpAddr> = all.filter_map(|address| address["address"].as_str()?.parse().ok()).collect();
        all.sort_by_key(|address| !address.is_ipv4());
        all
    };
    plan.nics.iter().flat_map(of).collect()
}
