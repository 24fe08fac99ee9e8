//! Can containers be run here.

use std::path::Path;

use super::config::{self, BRIDGE, Host};
use super::idmap::IdMap;
use crate::base::cmd::{self, Cmd};
use crate::base::{Error, Kind, Result};
use crate::driver::{Finding, Level, ProbeDepth};

/// The programs that are used.
const TOOLS: [&str; 6] = ["lxc-start", "lxc-stop", "lxc-info", "lxc-freeze", "lxc-unfreeze", "lxc-console"];
/// Where distributions keep what makes the bridge.
const LXC_NET: [&str; 3] =
    ["/usr/libexec/lxc/lxc-net", "/usr/lib/x86_64-linux-gnu/lxc/lxc-net", "/usr/lib/aarch64-linux-gnu/lxc/lxc-net"];

/// What there is to say of this host and of the folder for containers. Nobody has to have LXC: only whoever wants a
/// container now is told of an error.
pub(super) fn findings(path: &Path, depth: ProbeDepth) -> Vec<Finding> {
    let level = if depth == ProbeDepth::Quick { Level::Error } else { Level::Warning };
    if let Err(error) = programs() {
        return vec![wrong(level, &error)];
    }
    if !rustix::process::geteuid().is_root() {
        return vec![said(
            level,
            "only root's containers are made with this driver".into(),
            Some(
                "run virga with sudo; containers are unprivileged all the same. The incus driver serves ordinary users",
            ),
        )];
    }
    if depth == ProbeDepth::Quick {
        return Vec::new();
    }
    let mut all = Vec::new();
    all.push(match Cmd::new("lxc-start").arg("--version").run() {
        Ok(output) => said(Level::Ok, format!("LXC {}", output.text().trim()), None),
        Err(error) => wrong(level, &error),
    });
    all.push(match IdMap::of_root() {
        Ok(map) => said(Level::Ok, format!("containers' users are those from {} up", map.base), None),
        Err(error) => wrong(level, &error),
    });
    all.push(match bridge(BRIDGE) {
        Ok(()) => said(Level::Ok, format!("the bridge {BRIDGE} is there"), None),
        Err(error) => wrong(level, &error),
    });
    all.extend(closed(path).map(|folder| {
        let hint = format!("chmod o+x {folder}, or set VIRGA_LXC_PATH to a folder elsewhere");
        said(Level::Warning, format!("containers' roots cannot pass '{folder}'"), Some(&hint))
    }));
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && !Path::new("/sys/fs/cgroup/memory").exists() {
        let hint = "mount cgroups below /sys/fs/cgroup, as systemd does";
        all.push(said(Level::Warning, "there is no cgroup that limits memory".into(), Some(hint)));
    }
    if !Host::look().apparmor {
        all.push(said(Level::Ok, "AppArmor is not there: containers go without".into(), None));
    }
    all
}

fn programs() -> Result<()> {
    let missing = TOOLS.iter().find(|tool| cmd::find(tool).is_none());
    let hint = "install the package lxc (Fedora: lxc and lxc-templates)";
    match missing {
        Some(tool) => Err(Error::unavailable(format!("the program {tool} is not there")).hint(hint)),
        None if !Path::new(config::COMMON).exists() => {
            Err(Error::unavailable(format!("LXC's own settings are not at '{}'", config::COMMON)).hint(hint))
        }
        None => Ok(()),
    }
}

/// Whether the host has this bridge.
///
/// # Errors
/// [`crate::base::Kind::Unavailable`] with how it is made.
pub(super) fn bridge(name: &str) -> Result<()> {
    if Path::new("/sys/class/net").join(name).join("bridge").exists() {
        return Ok(());
    }
    let error = Error::unavailable(format!("this host has no bridge '{name}'"));
    if name != BRIDGE {
        return Err(error.hint("'ip link show type bridge' lists those it has"));
    }
    let script = LXC_NET.into_iter().find(|script| Path::new(script).exists()).unwrap_or(LXC_NET[0]);
    Err(match Path::new("/run/systemd/system").exists() {
        true => error.hint("systemctl start lxc-net"),
        false => error.hint(format!("{script} start")),
    })
}

/// The first folder on the way that only its owner may pass.
pub(super) fn closed(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let passable =
        |folder: &&Path| folder.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0 && meta.is_dir());
    path.ancestors().filter(passable).last().map(|folder| folder.display().to_string())
}

fn wrong(level: Level, error: &Error) -> Finding {
    said(level, error.to_string(), error.hints().first().copied())
}

fn said(level: Level, detail: String, hint: Option<&str>) -> Finding {
    Finding { check: "lxc".into(), level, detail, hint: hint.map(str::to_owned), kind: Kind::Unavailable }
}
