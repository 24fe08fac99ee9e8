//! A plan as LXC's settings (`lxc.container.conf(5)`).

use std::path::{Path, PathBuf};

use super::idmap::IdMap;
use crate::base::container::Container;
use crate::base::layout::LxcFiles;
use crate::base::nic::{Network, Nic};
use crate::base::{BackendName, Error, GuestPlan, Kind, Result, fs};

/// LXC's own bridge, which `lxc-net` makes.
pub(super) const BRIDGE: &str = "lxcbr0";
/// What all containers have in common, by LXC's own judgement.
pub(super) const COMMON: &str = "/usr/share/lxc/config/common.conf";
const USER_NAMESPACE: &str = "/usr/share/lxc/config/userns.conf";
const NESTING: &str = "/usr/share/lxc/config/nesting.conf";
/// Where profiles are, as `NAME.conf`.
const PROFILES: &str = "/etc/lxc";

/// Most bytes of a console's log. There may be a second one, which was full.
const CONSOLE_LOG: u64 = 1 << 20;

/// What makes a plan a container.
///
/// # Errors
/// [`Kind::Failed`] for a plan that is none.
pub(super) fn container(plan: &GuestPlan) -> Result<&Container> {
    plan.container.as_ref().ok_or_else(|| Error::failed(format!("the guest '{}' is no container", plan.name)))
}

/// What of the host the settings depend on.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Whether AppArmor confines programs here.
    pub apparmor: bool,
    /// The processors that there are.
    pub cpus: Vec<u32>,
}

impl Host {
    /// This one.
    pub fn look() -> Self {
        let read = |path: &str| fs::read_text(Path::new(path), 4096).unwrap_or_default();
        Host {
            apparmor: read("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
            cpus: list(read("/sys/devices/system/cpu/online").trim()),
        }
    }
}

/// Numbers as the kernel lists them: `0-3,6`.
fn list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// The bridge that a card is plugged into.
///
/// # Errors
/// [`Kind::Unsupported`] for a network that a container cannot be on.
pub(super) fn bridge(nic: &Nic) -> Result<&str> {
    match &nic.network {
        Network::Nat => Ok(BRIDGE),
        Network::Bridge(name) => Ok(name.as_str()),
        Network::User | Network::Full | Network::None => {
            Err(Error::new(Kind::Unsupported, "containers of the lxc driver have no network of their own")
                .hint("one of: nat, bridge=NAME"))
        }
        Network::Named(_) => Err(Error::new(Kind::Unsupported, "LXC knows bridges, and no networks by name")
            .hint("one of: nat, bridge=NAME")),
    }
}

/// The name of the container's cgroup: below it is all that LXC makes, and leaves.
pub(super) fn cgroup(id: &str) -> String {
    format!("virga-{id}")
}

/// A profile's file.
///
/// # Errors
/// [`Kind::NotFound`] when there is none.
fn profile(name: &BackendName) -> Result<PathBuf> {
    let path = Path::new(PROFILES).join(format!("{}.conf", name.as_str()));
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::not_found(format!("there is no profile '{}'", path.display()))
            .hint("a profile is a file with settings of LXC's (lxc.container.conf), hooks for example")),
    }
}

/// The whole file. LXC reads a value to the end of its line: every one here is a number, typed, or a path without
/// control characters.
///
/// # Errors
/// [`Kind::Unsupported`] for a network that it cannot be on; [`Kind::NotFound`] without a profile that is asked for.
pub(super) fn text(plan: &GuestPlan, files: &LxcFiles, map: Option<IdMap>, host: &Host) -> Result<String> {
    let wish = &container(plan)?.wish;
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: String| lines.push((key.to_owned(), value));
    set("lxc.include", COMMON.into());
    if map.is_some() {
        set("lxc.include", USER_NAMESPACE.into());
    }
    if wish.nesting {
        set("lxc.include", NESTING.into());
    }
    for name in &wish.profiles {
        set("lxc.include", profile(name)?.display().to_string());
    }
    // From here on ours: of a setting that is there twice the last one counts.
    set("lxc.uts.name", plan.name.to_string());
    set("lxc.arch", plan.arch.to_string());
    set("lxc.rootfs.path", format!("dir:{}", files.root().display()));
    set("lxc.console.logfile", plan.console_log.display().to_string());
    // A full one becomes the one before, of which there is one.
    set("lxc.console.size", CONSOLE_LOG.to_string());
    set("lxc.console.rotate", "1".to_owned());
    set("lxc.cgroup.dir", cgroup(plan.id.as_str()));
    for (key, value) in map.map(IdMap::lines).into_iter().flatten() {
        set(key, value);
    }
    for (key, value) in confinement(host) {
        set(key, (*value).to_owned());
    }
    // Of these the one that the host's hierarchy knows counts; LXC passes over the other.
    set("lxc.cgroup.memory.limit_in_bytes", plan.memory.0.to_string());
    set("lxc.cgroup2.memory.max", plan.memory.0.to_string());
    if let Some(cpus) = processors(plan, &host.cpus) {
        set("lxc.cgroup.cpuset.cpus", cpus.clone());
        set("lxc.cgroup2.cpuset.cpus", cpus);
    }
    for (number, nic) in plan.nics.iter().enumerate() {
        let card = [
            ("type", "veth".to_owned()),
            ("link", bridge(nic)?.to_owned()),
            ("flags", "up".to_owned()),
            ("name", format!("eth{number}")),
            ("hwaddr", nic.mac.to_string()),
        ];
        card.into_iter().for_each(|(key, value)| set(&format!("lxc.net.{number}.{key}"), value));
    }
    for folder in &container(plan)?.folders {
        let (host, guest) =
            (escaped(&folder.host.display().to_string()), escaped(folder.guest.trim_start_matches('/')));
        let read_only = if folder.read_only { ",ro" } else { "" };
        let users = if map.is_some() { ",idmap=container" } else { "" };
        set("lxc.mount.entry", format!("{host} {guest} none bind,create=dir{read_only}{users} 0 0"));
    }
    let head = "# Written by virga at each start: settings of your own go into a profile.\n";
    Ok(lines.into_iter().fold(head.to_owned(), |text, (key, value)| text + &key + " = " + &value + "\n"))
}

/// A path as fstab(5) has it, which a blank would end.
fn escaped(path: &str) -> String {
    let special = |byte: char| matches!(byte, ' ' | '\\' | '#');
    path.chars().map(|c| if special(c) { format!("\\{:03o}", c as u32) } else { c.to_string() }).collect()
}

/// systemd in a container mounts, which the generated profile allows only with nesting: Debian's own default too.
fn confinement(host: &Host) -> &'static [(&'static str, &'static str)] {
    match host.apparmor {
        true => &[("lxc.apparmor.profile", "generated"), ("lxc.apparmor.allow_nesting", "1")],
        false => &[("lxc.apparmor.profile", "unconfined")],
    }
}

/// Which processors it runs on; `None`: on all, for there are no more than it wants. Containers begin at different
/// ones, so that they do not all share the first.
fn processors(plan: &GuestPlan, all: &[u32]) -> Option<String> {
    let wanted = usize::try_from(plan.cpus).ok().filter(|wanted| *wanted < all.len())?;
    let first = usize::from_str_radix(plan.id.short(), 16).unwrap_or(0) % all.len();
    let chosen: Vec<String> = all.iter().cycle().skip(first).take(wanted).map(u32::to_string).collect();
    Some(chosen.join(","))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::{ByteSize, Layout};

    /// A plan as `create` makes it.
    pub(in super::super) fn plan() -> GuestPlan {
        let layout = Layout::new("/home/virga".into(), "/run/virga".into()).unwrap();
        let files = layout.guest_files(&"web".parse().unwrap());
        serde_json::from_value(serde_json::json!({
            "name": "web", "id": "0000000a-0000-4000-8000-000000000000", "arch": "amd64",
            "memory": ByteSize(512 << 20), "cpus": 2, "accel": "auto", "disks": [],
            "seed": files.seed_folder(), "forwards": [],
            "nics": [{"mac": "52:54:00:00:00:01", "network": "nat"}, {"mac": "52:54:00:00:00:02", "network": "bridge=br1"}],
            "console_log": files.console_log(), "backend_log": files.backend_log(), "runtime": "/run/virga/0000000a",
            "container": {
                "root": "/blob", "packing": "tar-xz",
                "fingerprint": format!("sha256:{}", "0".repeat(64)), "nesting": true,
            },
        }))
        .unwrap()
    }

    fn files() -> LxcFiles {
        LxcFiles::new(Path::new("/lxc"), &"web".parse().unwrap())
    }

    #[test]
    fn a_plan_becomes_settings() {
        let host = Host { apparmor: false, cpus: (0..4).collect() };
        let text = text(&plan(), &files(), Some(IdMap { base: 1_000_000 }), &host).unwrap();
        let expected = "\
# Written by virga at each start: settings of your own go into a profile.
lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/userns.conf
lxc.include = /usr/share/lxc/config/nesting.conf
lxc.uts.name = web
lxc.arch = amd64
lxc.rootfs.path = dir:/lxc/web/rootfs
lxc.console.logfile = /home/virga/guests/web/console.log
lxc.console.size = 1048576
lxc.console.rotate = 1
lxc.cgroup.dir = virga-0000000a-0000-4000-8000-000000000000
lxc.idmap = u 0 1000000 65536
lxc.idmap = g 0 1000000 65536
lxc.apparmor.profile = unconfined
lxc.cgroup.memory.limit_in_bytes = 536870912
lxc.cgroup2.memory.max = 536870912
lxc.cgroup.cpuset.cpus = 2,3
lxc.cgroup2.cpuset.cpus = 2,3
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.net.0.name = eth0
lxc.net.0.hwaddr = 52:54:00:00:00:01
lxc.net.1.type = veth
lxc.net.1.link = br1
lxc.net.1.flags = up
lxc.net.1.name = eth1
lxc.net.1.hwaddr = 52:54:00:00:00:02
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_privileged_one_has_no_map_and_apparmor_where_there_is_one() {
        let host = Host { apparmor: true, cpus: vec![0, 1] };
        let text = text(&plan(), &files(), None, &host).unwrap();
        assert!(!text.contains("idmap") && !text.contains("userns") && !text.contains("cpuset"), "{text}");
        assert!(text.contains("\nlxc.apparmor.profile = generated\nlxc.apparmor.allow_nesting = 1\n"), "{text}");
    }

    #[test]
    fn networks_that_lxc_has_not_and_profiles_that_are_missing_are_refused() {
        let host = Host { apparmor: false, cpus: vec![0] };
        for network in ["user", "network=default"] {
            let mut plan = plan();
            plan.nics[0].network = network.parse().unwrap();
            assert_eq!(text(&plan, &files(), None, &host).unwrap_err().kind(), Kind::Unsupported);
        }
        let mut plan = plan();
        plan.container.as_mut().unwrap().wish.profiles = vec!["virga-has-no-such".parse().unwrap()];
        assert_eq!(text(&plan, &files(), None, &host).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn processors_are_chosen_from_those_there_are() {
        let mut plan = plan();
        assert_eq!(processors(&plan, &list("0-2,5,7")).as_deref(), Some("0,1"));
        plan.cpus = 4;
        assert_eq!(processors(&plan, &[0, 2, 4, 6, 8]).as_deref(), Some("0,2,4,6"));
        plan.cpus = 5;
        assert_eq!(processors(&plan, &[0, 2, 4, 6, 8]), None);
        assert_eq!(list(""), Vec::<u32>::new());
    }
}
