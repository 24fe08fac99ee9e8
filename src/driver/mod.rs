//! Drivers: what starts guests. One trait, capabilities as data, one folder a
//! driver.
//!
//! To add a driver, put a folder beside `qemu/`, implement [`Driver`] with
//! every method, add its [`DriverKind`] and its arm in [`open`], and let the
//! conformance suite run over it.

pub mod qemu;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::base::plan::{DriverKind, Forward};
use crate::base::{GuestName, GuestPlan, Layout, Result};

/// What a driver is opened with.
#[derive(Clone, Debug)]
pub struct DriverSettings {
    /// Where guests live.
    pub layout: Layout,
}

/// Opens a driver. Does no I/O; [`Driver::probe`] tells whether it can be used.
#[must_use]
pub fn open(kind: DriverKind, settings: &DriverSettings) -> Box<dyn Driver> {
    match kind {
        DriverKind::Qemu => Box::new(qemu::Qemu::new(settings)),
    }
}

/// Starts and stops guests on one backend.
///
/// All methods block. All are safe to repeat: defining what is defined,
/// starting what runs, stopping what is dead and removing nothing succeed.
/// Callers hold the guest's lock around methods that change it.
pub trait Driver: fmt::Debug + Send + Sync {
    /// What it can do; plain data, no I/O.
    fn capabilities(&self) -> Capabilities;

    /// Is the backend there and usable? Never fails: what is wrong is a finding.
    fn probe(&self, depth: ProbeDepth) -> Vec<Finding>;

    /// Defines the guest and labels everything as ours, without starting it.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unavailable`] without a backend, [`crate::base::Kind::Unsupported`] for a plan that this driver cannot carry out.
    fn create(&self, plan: &GuestPlan) -> Result<()>;

    /// Starts a defined guest and returns once it runs (not: once it answers).
    ///
    /// # Errors
    /// [`crate::base::Kind::Unavailable`] when the backend cannot run it; what the backend said is in the message.
    fn start(&self, plan: &GuestPlan, begin: Begin<'_>) -> Result<Started>;

    /// Reads a saved machine into a guest that was started with [`Begin::Empty`] and the same
    /// memory file. Blocks meanwhile. It is held until [`release`](Self::release).
    ///
    /// # Errors
    /// What the backend said; the guest is to be stopped then.
    fn load(&self, plan: &GuestPlan, from: &Saved) -> Result<()>;

    /// Lets a guest run that is held; one that runs is left alone. A save that goes on is given up.
    ///
    /// # Errors
    /// When the backend does not answer, or the guest does not run at all.
    fn release(&self, plan: &GuestPlan) -> Result<()>;

    /// Puts the network's cable into a guest that was loaded with a memory file of its own
    /// ([`Saved::memory`]); nobody reaches it, and it nobody, before that.
    ///
    /// # Errors
    /// When the backend does not answer, or the guest does not run at all.
    fn connect(&self, plan: &GuestPlan) -> Result<()>;

    /// Holds a running guest and writes it to a file. Blocks meanwhile. It stays held: once the
    /// file has its place, [`stop`](Self::stop) it. When it fails or is interrupted the guest runs on.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unsupported`] when the backend or its version cannot; what the backend said.
    fn save(&self, plan: &GuestPlan, to: &Saved) -> Result<()>;

    /// What a saved machine of this plan depends on besides its files: program,
    /// version, machine, processor. Loaded elsewhere than where all of it is the same, it would break.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unavailable`] without a backend.
    fn fingerprint(&self, plan: &GuestPlan) -> Result<BTreeMap<String, String>>;

    /// Connects to the channel that ends in the guest as a virtio-serial port named [`CHANNEL`].
    ///
    /// # Errors
    /// When the guest does not run.
    fn channel(&self, plan: &GuestPlan) -> Result<UnixStream>;

    /// Stops it and returns once it is dead.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when it would not go gracefully in time.
    fn stop(&self, plan: &GuestPlan, how: Stop) -> Result<()>;

    /// Stops it by force and removes everything that the backend holds of it;
    /// files in the guest's own folder are the caller's.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    fn remove(&self, plan: &GuestPlan) -> Result<()>;

    /// Asks the backend, never our own files.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn status(&self, plan: &GuestPlan) -> Result<Status>;

    /// The IPv4 address and network mask that the guest will be given by DHCP, where that is
    /// certain before it asks; no I/O. A clone takes it at once.
    fn address(&self, plan: &GuestPlan) -> Option<[Ipv4Addr; 2]>;

    /// Where its SSH is; `None` while that is not known.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn endpoint(&self, plan: &GuestPlan) -> Result<Option<SocketAddr>>;

    /// The forwards as they are now, host ports filled in.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn forwards(&self, plan: &GuestPlan) -> Result<Vec<Forward>>;

    /// The last `lines` lines of the console, escape sequences removed.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn console_tail(&self, plan: &GuestPlan, lines: usize) -> Result<Vec<String>>;

    /// Guests under our label, known to us or not: what a killed command may have left.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn list_owned(&self) -> Result<Vec<Owned>>;

    /// Stops and removes something that [`list_owned`](Self::list_owned) found.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove_owned(&self, owned: &Owned) -> Result<()>;
}

/// The name of the port in the guest: `/dev/virtio-ports/` and this.
pub const CHANNEL: &str = "virga.renewal";

/// How a guest begins to run.
#[derive(Clone, Copy, Debug)]
pub enum Begin<'a> {
    /// From its disk.
    Boot,
    /// From its disk, with its memory in this new file.
    BootInto(&'a Path),
    /// Not yet: it is made without content, for [`Driver::load`], with this memory file if it was saved with one.
    Empty(Option<&'a Path>),
}

/// A machine on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The state of processors and devices, and the memory unless that has a file of its own.
    pub state: PathBuf,
    /// The memory of a guest that began with [`Begin::BootInto`]: then it is saved without its
    /// network, to be loaded many times. Loading maps it privately: guests share its pages until
    /// they write to them, and never change it.
    pub memory: Option<PathBuf>,
}

/// How thoroughly to look at the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeDepth {
    /// Is it there at all: a few milliseconds, starts no program.
    Quick,
    /// Versions, permissions, does KVM really run code.
    Full,
}

/// What a driver can do, each with what the caller does about it.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Which kinds of image it boots; others are refused before any work.
    pub boots: &'static [Boots],
    /// Where the disk lives: the caller lays it out in the guest's folder, or uploads it.
    pub storage: Storage,
    /// How the guest is reached.
    pub reached: Reached,
    /// Whether the console is logged; without it a failed wait shows none.
    pub console_log: bool,
    /// Whether a running guest's memory can be saved.
    pub memory_snapshots: bool,
    /// Whether guests run again by themselves after the host was restarted.
    pub survives_host_reboot: bool,
}

/// Kinds of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boots {
    /// A whole disk with a boot loader.
    DiskImage,
    /// A root file system without a kernel.
    RootFileSystem,
}

/// Who holds the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Files at paths of ours.
    OurPath,
    /// The backend's own pool.
    BackendPool,
}

/// How a guest's SSH is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// By a port on 127.0.0.1, known as soon as the guest runs.
    LoopbackPort,
    /// By an address that is known some time after the start.
    Address,
}

/// One thing that a probe found out.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at: "qemu", "kvm", …
    pub check: String,
    /// How it stands.
    pub level: Level,
    /// One sentence.
    pub detail: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Guests cannot run.
    Error,
}

/// What a start has to say.
#[derive(Clone, Debug, Default)]
pub struct Started {
    /// One line each: a fallback taken and why.
    pub notes: Vec<String>,
}

/// How to stop a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Asked to shut down, given this long.
    Graceful(Duration),
    /// At once.
    Force,
}

/// What the backend says of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It runs.
    Running,
    /// It is held.
    Paused,
    /// It does not run: never started, or shut down.
    Stopped,
    /// It ran and ended without being shut down: killed, or its program failed.
    Died,
}

impl Status {
    /// Whether there is something to stop.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Status::Running | Status::Paused)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
            Status::Died => "died",
        })
    }
}

/// Something under our label.
#[derive(Clone, Debug)]
pub struct Owned {
    /// The guest's name on the label.
    pub name: GuestName,
    /// The process, where the backend is one.
    pub pid: Option<u32>,
    /// Its folder for sockets, where it has one.
    pub runtime: Option<PathBuf>,
}
