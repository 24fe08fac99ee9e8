//! QEMU processes: whose they are, whether they live, ending them.
//!
//! Whether one lives is the kernel's word: a guest's QEMU is born with its log
//! locked, and the kernel keeps that lock until the process has freed its
//! memory and closes its files. Which one it is must be known to end it. A pid
//! alone is no identity, for it may be another program's by now: a process is a
//! guest's when its argument list holds the guest's `-uuid`, and a held pidfd
//! makes sure that what is signalled is what was looked at.

use std::fs::{File, TryLockError};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::args;
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Kind, Result, crash, fs};

/// Longest argument list read.
const ARGS_LIMIT: u64 = 2 << 20;

/// For one that begins or ends: memory of hundreds of gigabytes takes many seconds to be freed.
const PATIENCE: Duration = Duration::from_secs(300);

/// A process that was ours when it was looked at, held so that its pid cannot become another's.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    fd: OwnedFd,
}

/// The right to be the one QEMU of a guest: its log, locked. Whoever inherits it has that for life.
#[derive(Debug)]
pub(super) struct Life(File);

impl Life {
    /// Takes the right, once a QEMU that is on its way out has gone; `None` when one is there to stay.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when one that was ended does not go; [`crate::base::Kind::Interrupted`].
    pub(super) fn claim(plan: &GuestPlan) -> Result<Option<Self>> {
        let log = fs::open_log(&plan.backend_log)?;
        let claimed = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(1), || match log.try_lock() {
            Ok(()) => Ok(match by_pid(plan)? {
                None => Some(true),
                // Somebody removed the log under it.
                Some(process) => (!process.leaving()).then_some(false),
            }),
            Err(TryLockError::WouldBlock) => {
                let stays = find(plan)?.is_some_and(|process| !process.leaving());
                Ok(stays.then_some(false))
            }
            Err(TryLockError::Error(error)) => Err(fs::explain(error, "locking", &plan.backend_log)),
        })?;
        match claimed {
            Some(true) => Ok(Some(Life(log))),
            Some(false) => Ok(None),
            None => Err(stays_on(plan)),
        }
    }

    /// For the process that is to have it, which writes into it. Closing this here does not give the right back.
    pub(super) fn into_log(self) -> File {
        self.0
    }
}

/// Whether a QEMU of the guest lives, in whatever state: being born and being buried are parts of that.
///
/// # Errors
/// When the log cannot be opened.
pub(super) fn lives(plan: &GuestPlan) -> Result<bool> {
    let locked = match fs::open(&plan.backend_log) {
        Ok(log) => matches!(log.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(error) if error.kind() == Kind::NotFound => false,
        Err(error) => return Err(error),
    };
    Ok(locked || by_pid(plan)?.is_some())
}

impl Process {
    /// The guest's process; `None` when it has none. One that is about to be there, or to go, is waited for.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when one that was ended does not go; [`crate::base::Kind::Interrupted`]; when the
    /// system does not say.
    pub(super) fn of(plan: &GuestPlan) -> Result<Option<Self>> {
        let found = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(1), || {
            if !lives(plan)? {
                return Ok(Some(None));
            }
            Ok(find(plan)?.map(Some))
        })?;
        found.ok_or_else(|| stays_on(plan))
    }

    /// Holds the process `pid` if it lives and its arguments are `ours`.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn open(pid: u32, ours: impl Fn(&[String]) -> bool) -> Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => fd,
            // Not there, or a thread's number.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Error::failed(format!("looking at process {pid}")).because(error)),
        };
        let process = Process { pid, fd };
        // In this order: the arguments are read while the pidfd holds the pid.
        let ours = belongs_to_us(pid) && arguments(pid).is_some_and(|args| ours(&args)) && !process.ended();
        Ok(ours.then_some(process))
    }

    /// Whether it is on its way out: see [`dying`].
    pub(super) fn leaving(&self) -> bool {
        arguments(self.pid).is_none_or(|args| args.is_empty())
    }

    /// Whether it is dead; a zombie is.
    pub(super) fn ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for its end, which frees its ports and file locks too. Blind to
    /// Ctrl-C, because clean-up after Ctrl-C waits as well.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let deadline = Deadline::after(limit);
        loop {
            let left = Timespec::try_from(deadline.left()).unwrap_or_default();
            match rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Ok(0) => return false,
                Err(rustix::io::Errno::INTR) if !deadline.passed() => {}
                Err(_) => return false,
                Ok(_) => return true,
            }
        }
    }

    /// Ends it: `gently` first asked by SIGTERM, on which QEMU closes its
    /// disks, then SIGKILL.
    ///
    /// # Errors
    /// When it may not be signalled or lives on, stuck in the kernel.
    pub(super) fn end(&self, gently: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        if self.wait(gently) {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        if self.wait(PATIENCE) {
            return Ok(());
        }
        Err(Error::failed(format!("process {} does not end although it was killed", self.pid))
            .hint("it hangs in the kernel, most likely on a disk that does not answer"))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        crash::step(|| format!("signalling process {}", self.pid));
        match pidfd_send_signal(self.fd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::failed(format!("signalling process {}", self.pid)).because(error)),
        }
    }
}

/// By its pid file, and where that is missing or stale by looking at every process of this user.
fn find(plan: &GuestPlan) -> Result<Option<Process>> {
    if let Some(process) = by_pid(plan)? {
        return Ok(Some(process));
    }
    for (pid, _) in scan(|args| is_guest(args, plan))? {
        if let Some(process) = Process::open(pid, |args| is_guest(args, plan))? {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

fn by_pid(plan: &GuestPlan) -> Result<Option<Process>> {
    let ours = |pid: u32| move |args: &[String]| is_guest(args, plan) || (args.is_empty() && dying(pid, plan));
    match pid_from(&RuntimeFiles::new(&plan.runtime).pid()) {
        Some(pid) => Process::open(pid, ours(pid)),
        None => Ok(None),
    }
}

fn stays_on(plan: &GuestPlan) -> Error {
    let limit = humantime::format_duration(PATIENCE);
    Error::timed_out(format!("guest '{}' has a QEMU that cannot be seen, and is still there after {limit}", plan.name))
        .hint(
            "it is another user's, or it has ended and hangs in the kernel, most likely on a disk that does not answer",
        )
}

/// Every live process of this user whose arguments are `wanted`.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn scan(wanted: impl Fn(&[String]) -> bool) -> Result<Vec<(u32, Vec<String>)>> {
    let mut found = Vec::new();
    for pid in fs::list_dir(Path::new("/proc"))?.iter().filter_map(|name| name.parse().ok()) {
        if !belongs_to_us(pid) {
            continue;
        }
        if let Some(args) = arguments(pid).filter(|args| wanted(args)) {
            found.push((pid, args));
        }
    }
    Ok(found)
}

fn is_guest(args: &[String], plan: &GuestPlan) -> bool {
    args::values(args, "-uuid").any(|id| id == plan.id.as_str())
}

/// A process that is on its way out loses its arguments first, and its ports
/// and file locks only once its memory is freed: until then it is not dead.
fn dying(pid: u32, plan: &GuestPlan) -> bool {
    fs::read_text(Path::new(&format!("/proc/{pid}/comm")), 64)
        .is_ok_and(|name| name.trim_end() == args::process_name(&plan.name))
}

/// A number that changes as the process of a pid file takes memory of the host, reads or writes.
pub(super) fn moved(pid: &Path) -> u64 {
    let Some(pid) = pid_from(pid) else { return 0 };
    let read = |file: &str| fs::read_text(Path::new(&format!("/proc/{pid}/{file}")), 4096).unwrap_or_default();
    let resident: u64 = read("statm").split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    let io = read("io");
    let bytes = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let moved = bytes("rchar:").unwrap_or_default() + bytes("wchar:").unwrap_or_default();
    // In pieces of 16 MiB: what it writes to wake its own threads is no progress.
    resident + (moved >> 24)
}

fn pid_from(file: &Path) -> Option<u32> {
    fs::read_text(file, 32).ok()?.trim().parse().ok()
}

fn belongs_to_us(pid: u32) -> bool {
    let us = rustix::process::geteuid();
    // Root may work on another user's state folder, whose guests run as that user.
    us.is_root() || std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == us.as_raw())
}

/// Empty for a zombie and for the kernel's own threads; `None` when the process is gone.
fn arguments(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(Path::new(&format!("/proc/{pid}/cmdline")), ARGS_LIMIT).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}
