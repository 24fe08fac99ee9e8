//! QEMU processes: whose they are, whether they live, ending them.
//!
//! A pid alone is no identity: it may be another program's by now. A process
//! is a guest's when its argument list holds the guest's `-uuid`, and a held
//! pidfd makes sure that what is signalled is what was looked at.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::args;
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Result, fs};

/// Longest argument list read.
const ARGS_LIMIT: u64 = 2 << 20;

/// A process that was ours when it was looked at, held so that its pid cannot become another's.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// The guest's process: by its pid file, and where that is missing or
    /// stale by looking at every process of this user.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn of(plan: &GuestPlan) -> Result<Option<Self>> {
        Self::among(plan, || Ok(scan(|args| is_guest(args, plan))?.into_iter().map(|(pid, _)| pid).collect()))
    }

    /// As [`of`](Self::of), except that a process which started in the last
    /// moments and has no pid file yet may be missed: for looking, not for acting.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(super) fn glance(plan: &GuestPlan, census: &Census) -> Result<Option<Self>> {
        Self::among(plan, || census.with_id(plan.id.as_str()))
    }

    fn among(plan: &GuestPlan, others: impl FnOnce() -> Result<Vec<u32>>) -> Result<Option<Self>> {
        if let Some(pid) = pid_from(&RuntimeFiles::new(&plan.runtime).pid())
            && let Some(process) =
                Self::open(pid, |args| is_guest(args, plan) || (args.is_empty() && dying(pid, plan)))?
        {
            return Ok(Some(process));
        }
        for pid in others()? {
            if let Some(process) = Self::open(pid, |args| is_guest(args, plan))? {
                return Ok(Some(process));
            }
        }
        Ok(None)
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
    /// Ctrl-C, because clean-up after Ctrl-C waits as well; so `limit` is short.
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

    /// Waits for the end of one that is on its way out: memory of many gigabytes takes seconds to be freed.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when it does not get there; [`crate::base::Kind::Interrupted`].
    pub(super) fn await_end(&self) -> Result<()> {
        let ended = || Ok(self.wait(Duration::from_millis(100)).then_some(()));
        poll::until(&Deadline::after(super::state::PATIENCE), Duration::from_millis(1), ended)?
            .ok_or_else(|| Error::timed_out(format!("process {} was ended and does not go", self.pid)))
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
        if self.wait(Duration::from_secs(10)) {
            return Ok(());
        }
        Err(Error::failed(format!("process {} does not end although it was killed", self.pid))
            .hint("it hangs in the kernel, most likely on a disk that does not answer"))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(self.fd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::failed(format!("signalling process {}", self.pid)).because(error)),
        }
    }
}

/// How long a [`Census`] holds.
const FRESH: Duration = Duration::from_millis(100);

/// One look at all processes, kept for a moment: a list of many stopped
/// guests looks through them once, not once a guest.
#[derive(Debug, Default)]
pub(super) struct Census(Mutex<Option<Count>>);

#[derive(Debug)]
struct Count {
    taken: Instant,
    /// Number and `-uuid` of each.
    processes: Vec<(u32, String)>,
}

impl Census {
    /// After something was started.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The processes with this `-uuid`.
    fn with_id(&self, id: &str) -> Result<Vec<u32>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match &*last {
            Some(count) if count.taken.elapsed() < FRESH => count,
            _ => {
                let id_of = |args: &[String]| args::values(args, "-uuid").next().map(str::to_owned);
                let found = scan(|args| id_of(args).is_some())?;
                let processes = found.iter().filter_map(|(pid, args)| Some((*pid, id_of(args)?))).collect();
                last.insert(Count { taken: Instant::now(), processes })
            }
        };
        Ok(count.processes.iter().filter(|(_, theirs)| theirs == id).map(|(pid, _)| *pid).collect())
    }
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
