//! LXC's programs, and what they leave running or lying about.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::config;
use crate::base::cmd::{self, Cmd};
use crate::base::layout::LxcFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Kind, Result, fs};
use crate::driver::{Status, console};

/// How long anything takes that does not wait for the container's own programs.
const PATIENCE: Duration = Duration::from_secs(60);
/// A step of waiting for other processes.
const STEP: Duration = Duration::from_millis(10);
/// Longest argument list read.
const ARGS_LIMIT: u64 = 64 << 10;

/// One of LXC's programs, for this container.
pub(super) fn tool(program: &str, files: &LxcFiles) -> Cmd {
    Cmd::new(program).arg("-P").arg(files.parent()).args(["-n", files.name().as_str()])
}

/// How the container stands.
///
/// # Errors
/// [`Kind::Unavailable`] without LXC.
pub(super) fn status(files: &LxcFiles) -> Result<Status> {
    if !files.config().exists() {
        return Ok(Status::Stopped);
    }
    let said = tool("lxc-info", files).arg("-sH").run()?.text();
    Ok(match said.trim() {
        "FROZEN" | "FREEZING" => Status::Paused,
        "STARTING" | "RUNNING" | "THAWED" | "STOPPING" | "ABORTING" => Status::Running,
        _ => Status::Stopped,
    })
}

/// Its addresses that reach further than their own link, IPv4 first.
///
/// # Errors
/// [`Kind::Unavailable`] without LXC.
pub(super) fn addresses(files: &LxcFiles) -> Result<Vec<IpAddr>> {
    // One that does not run any more has none.
    let said = tool("lxc-info", files).arg("-iH").output()?.text();
    Ok(reaching(&said))
}

fn reaching(said: &str) -> Vec<IpAddr> {
    let reaches = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && !v6.is_unspecified(),
    };
    let mut all: Vec<IpAddr> = said.lines().filter_map(|line| line.trim().parse().ok()).filter(reaches).collect();
    all.sort_by_key(IpAddr::is_ipv6);
    all
}

/// Starts it in the background.
///
/// # Errors
/// [`Kind::Unavailable`] when LXC cannot; what it said is in the message.
pub(super) fn start(files: &LxcFiles, plan: &GuestPlan) -> Result<()> {
    // What earlier starts said would be taken for what this one says.
    fs::remove_file(&plan.backend_log)?;
    let log = ["-l", "ERROR", "-o"];
    let started =
        tool("lxc-start", files).arg("-d").args(log).arg(&plan.backend_log).timeout(PATIENCE).apart(&[]).run();
    started.map(drop).map_err(|error| {
        if error.kind() != Kind::Failed {
            return error;
        }
        let said = console::tail(&plan.backend_log, 20).unwrap_or_default();
        let why = said.iter().find(|line| line.contains(" ERROR ")).map(|line| reason(line).to_owned());
        Error::unavailable(format!("guest '{}' cannot be started", plan.name))
            .because(why.unwrap_or_else(|| error.to_string()))
            .hint(format!("all that LXC said is in '{}'", plan.backend_log.display()))
            .hint("'virga doctor' looks at what it needs")
    })
}

/// The message of a line of LXC's log: what is behind the place in its source.
pub(super) fn reason(line: &str) -> &str {
    line.rsplit_once(" - ").map_or(line, |(_, words)| words)
}

/// Holds it, or lets it go on.
///
/// # Errors
/// What LXC said.
pub(super) fn freeze(files: &LxcFiles, hold: bool) -> Result<()> {
    let program = if hold { "lxc-freeze" } else { "lxc-unfreeze" };
    tool(program, files).timeout(PATIENCE).run().map(drop)
}

/// Asks it to shut down and waits so long; whether it has is for [`status`] to say.
///
/// # Errors
/// [`Kind::Interrupted`] on Ctrl-C.
pub(super) fn shut_down(files: &LxcFiles, limit: Duration) -> Result<()> {
    let seconds = limit.as_secs().max(1);
    let asked = tool("lxc-stop", files).args(["--nokill", "--timeout", &seconds.to_string()]);
    asked.timeout(limit + PATIENCE).output().map(drop)
}

/// Ends it at once, with all that a killed command of ours may have left at work on it. One that does not run is left
/// alone.
///
/// # Errors
/// [`Kind::Failed`] when it lives on.
pub(super) fn kill(files: &LxcFiles) -> Result<()> {
    // What goes on all the same is in the way of what follows, which says so then.
    let _ = wait_for(files, "what an interrupted command began does not end", at_work);
    if !files.config().exists() {
        // Never whole, so never started.
        return ended(files);
    }
    // It may end by itself right now: what counts is whether it has.
    let said = tool("lxc-stop", files).arg("-k").timeout(PATIENCE).output()?;
    ended(files).map_err(|error| error.because(cmd::last_words(&said.stderr)))
}

/// Waits until the process that watched a stopped container has ended too, which frees its cards and its name.
///
/// # Errors
/// [`Kind::Failed`] when it does not end.
pub(super) fn ended(files: &LxcFiles) -> Result<()> {
    wait_for(files, "the container does not end although it was killed", is_monitor)
}

type Test = fn(&[String], &LxcFiles) -> bool;

/// Blind to Ctrl-C: clean-up after it waits as well.
fn wait_for(files: &LxcFiles, otherwise: &str, test: Test) -> Result<()> {
    let gone = poll::to_the_end(&Deadline::after(PATIENCE), STEP, || Ok((!any(files, test)?).then_some(())))?;
    gone.ok_or_else(|| Error::failed(format!("guest '{}': {otherwise}", files.name())))
}

fn any(files: &LxcFiles, test: Test) -> Result<bool> {
    let pids = fs::list_dir(Path::new("/proc"))?;
    let mut pids = pids.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    Ok(pids.any(|pid| arguments(pid).is_some_and(|args| test(&args, files))))
}

fn arguments(pid: &str) -> Option<Vec<String>> {
    let bytes = fs::read(Path::new(&format!("/proc/{pid}/cmdline")), ARGS_LIMIT).ok()?;
    Some(String::from_utf8_lossy(&bytes).split_terminator('\0').map(str::to_owned).collect())
}

/// LXC gives the process that watches a container this for a command line (`lxccontainer.c`).
fn is_monitor(args: &[String], files: &LxcFiles) -> bool {
    args.first().map(|args| args.trim_end())
        == Some(&format!("[lxc monitor] {} {}", files.parent().display(), files.name()))
}

/// A program that we start for this container, and that a SIGKILL of ours leaves running.
fn at_work(args: &[String], files: &LxcFiles) -> bool {
    let program = args.first().map(|program| program.rsplit('/').next().unwrap_or(program));
    let has = |value: &str| args.iter().any(|arg| arg == value);
    let folder = format!("{}/", files.folder().display());
    match program {
        Some("lxc-start") => has(&files.parent().display().to_string()) && has(files.name().as_str()),
        Some("cp") => args.iter().any(|arg| arg.starts_with(&folder)),
        _ => false,
    }
}

/// Removes the cgroups of a container that has ended: LXC leaves one that its watcher moved itself into. Those that are
/// in use stay.
pub(super) fn sweep_cgroups(id: &str) {
    for place in hierarchies() {
        remove_empty(&place.join(config::cgroup(id)));
    }
}

/// Where LXC makes cgroups: at the top of each hierarchy, or where this host's first process is in it.
fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let mut tops: Vec<PathBuf> = fs::list_dir(top).unwrap_or_default().iter().map(|name| top.join(name)).collect();
    tops.push(top.to_owned());
    let text = |file: &str| fs::read_text(Path::new(file), 64 << 10).unwrap_or_default();
    let said = text("/proc/1/cgroup") + &text("/proc/self/cgroup");
    let mut below: Vec<&str> = said.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    below.push("/");
    below.sort_unstable();
    below.dedup();
    tops.iter().flat_map(|top| below.iter().map(|below| top.join(below.trim_start_matches('/')))).collect()
}

/// A cgroup has files that cannot be removed, and goes with them.
fn remove_empty(cgroup: &Path) {
    let Ok(names) = fs::list_dir(cgroup) else { return };
    for name in names {
        let below = cgroup.join(name);
        if below.is_dir() {
            remove_empty(&below);
        }
    }
    let _ = fs::remove_empty_dir(cgroup);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &[&str]) -> Vec<String> {
        text.iter().map(|&arg| arg.to_owned()).collect()
    }

    #[test]
    fn processes_are_told_by_folder_and_name() {
        let files = LxcFiles::new(Path::new("/lxc"), &"web".parse().unwrap());
        assert!(is_monitor(&args(&["[lxc monitor] /lxc web"]), &files));
        for other in ["[lxc monitor] /lxc web2", "[lxc monitor] /var/lib/lxc web", "lxc-start -P /lxc -n web", ""] {
            assert!(!is_monitor(&args(&[other]), &files), "{other}");
        }
        assert!(at_work(&args(&["/usr/bin/lxc-start", "-P", "/lxc", "-n", "web", "-d"]), &files));
        assert!(at_work(&args(&["cp", "-a", "/lxc/web/rootfs", "/lxc/other/rootfs"]), &files));
        assert!(!at_work(&args(&["cp", "-a", "/lxc/web2/rootfs", "/lxc/other/rootfs"]), &files));
        assert!(!at_work(&args(&["lxc-start", "-n", "web"]), &files));
        assert!(!at_work(&args(&["tail", "-f", "/lxc/web/config"]), &files));
        assert!(!at_work(&[], &files));
    }

    #[test]
    fn addresses_that_reach_come_first_ipv4() {
        let said = "fe80::1\nfd00::5\n127.0.0.1\n10.0.3.7\n169.254.0.1\nnonsense\n10.0.3.8\n";
        let said: Vec<String> = reaching(said).iter().map(ToString::to_string).collect();
        assert_eq!(said, ["10.0.3.7", "10.0.3.8", "fd00::5"]);
    }

    #[test]
    fn of_lxc_s_log_the_words_are_shown() {
        let line =
            "lxc-start web 20260101000000.123 ERROR    network - ../src/lxc/network.c:f:1 - No such device - Failed";
        assert_eq!(reason(line), "Failed");
        assert_eq!(reason("plain"), "plain");
    }
}
