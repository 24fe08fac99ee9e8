//! Drivers: what starts guests. One trait, capabilities as data, one folder a
//! driver.
//!
//! To add a driver, put a folder beside `qemu/`, implement [`Driver`] with
//! every method, add its [`DriverKind`] and its arm in [`open`], and let the
//! conformance suite run over it.

mod accel;
pub mod carry;
mod console;
pub mod incus;
mod known;
pub mod kvm;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod lxc;
pub mod qemu;
mod session;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use self::carry::Content;
pub use self::qemu::egress::may_pass as frame_may_pass;
pub use self::qemu::keeper::{VERB as KEEP_CONSOLE, judge as judge_frames, keep as keep_console};
pub use self::session::{Ability, Autostart, Details, Exec, SavedIn, Session, Snapshot, Viewer};
use crate::base::nic::Network;
use crate::base::plan::{Daemon, Disk, DriverKind, Forward};
use crate::base::{ByteSize, Error, GuestName, GuestPlan, Kind, Layout, Result};

/// What a driver is opened with.
#[derive(Clone, Debug)]
pub struct DriverSettings {
    /// Where guests live.
    pub layout: Layout,
    /// The daemon to talk to, as in `qemu:///system`; `None`: the usual one.
    pub connect: Option<String>,
    /// The daemon's storage pool for disks; `None`: one of our own.
    pub pool: Option<String>,
    /// The socket of the Incus or LXD daemon; `None`: the usual one.
    pub incus: Option<PathBuf>,
    /// Folders in which clients of Incus and LXD keep their remotes, the first one first.
    pub incus_clients: Vec<PathBuf>,
    /// That daemon's storage pool; `None`: the one that its profiles name.
    pub incus_pool: Option<String>,
    /// Where containers of classic LXC lie.
    pub lxc: PathBuf,
}

/// Opens a driver. Does no I/O; [`Driver::probe`] tells whether it can be used.
#[must_use]
pub fn open(kind: DriverKind, settings: &DriverSettings) -> Box<dyn Driver> {
    match kind {
        DriverKind::Qemu => Box::new(qemu::Qemu::new(settings)),
        #[cfg(feature = "libvirt")]
        DriverKind::Libvirt => Box::new(libvirt::Libvirt::new(settings)),
        DriverKind::Incus => Box::new(incus::Incus::new(settings)),
        DriverKind::Lxc => Box::new(lxc::Lxc::new(settings)),
    }
}

/// Starts and stops guests on one backend.
///
/// All methods block. All are safe to repeat: defining what is defined,
/// starting what runs, stopping what is dead and removing nothing succeed.
/// Callers hold the guest's lock around methods that change it.
///
/// What is done with a guest that is there is in [`Session`], what comes and goes in [`Content`].
pub trait Driver: Session + Content + fmt::Debug + Send + Sync {
    /// What it can do; plain data, no I/O.
    fn capabilities(&self) -> Capabilities;

    /// The daemon that keeps new guests, for their plans; `None` for a driver without one. No I/O.
    fn daemon(&self) -> Option<Daemon>;

    /// Is the backend there and usable? Never fails: what is wrong is a finding.
    fn probe(&self, depth: ProbeDepth) -> Vec<Finding>;

    /// Fills in what a new guest's plan leaves to the backend and what then stays the same in the guest's life: the
    /// firmware's files. Starts no program.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unavailable`] without such a firmware, [`crate::base::Kind::Unsupported`] for one that
    /// guests of this architecture cannot have.
    fn complete(&self, plan: &mut GuestPlan) -> Result<()>;

    /// Defines the guest and labels everything as ours, without starting it.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unavailable`] without a backend, [`crate::base::Kind::Unsupported`] for a plan that this driver cannot carry out.
    fn create(&self, plan: &GuestPlan) -> Result<()>;

    /// The newest machine type that the backend has for this guest, as in `pc-q35-10.0`.
    ///
    /// # Errors
    /// When the backend does not say.
    fn newest_machine(&self, plan: &GuestPlan) -> Result<String>;

    /// As [`create`](Self::create), with disks that have the content of those of `from`, a guest that does not run:
    /// where the backend holds the disks it copies them, else the caller has.
    ///
    /// # Errors
    /// As [`create`](Self::create); what could not be copied.
    fn duplicate(&self, from: &GuestPlan, to: &GuestPlan) -> Result<()>;

    /// Gives a guest another plan with the same id: what `old` and `new` differ in is changed at the backend, for its
    /// next start. A guest that runs may differ in its disks alone ([`plug`](Self::plug), [`unplug`](Self::unplug)).
    /// Files at paths of ours are the caller's affair.
    ///
    /// # Errors
    /// As [`create`](Self::create); `reconfigure` the other way round puts back what was changed by then.
    fn reconfigure(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()>;

    /// Where the backend holds the disks: deletes those that `old` has and `new` has not, once nothing puts `old` back
    /// any more. Again is success.
    ///
    /// # Errors
    /// What could not be deleted, after all were tried.
    fn shed(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()>;

    /// Plugs a disk of a running guest's new plan into it, after [`reconfigure`](Self::reconfigure). One that is
    /// plugged in is left alone.
    ///
    /// # Errors
    /// What the backend said; the disk is not there then.
    fn plug(&self, plan: &GuestPlan, disk: &Disk) -> Result<()>;

    /// Takes a disk out of a running guest, before [`reconfigure`](Self::reconfigure), and returns once the guest has
    /// let it go. None is success.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unsupported`] for one that can go only while the guest is stopped,
    /// [`crate::base::Kind::TimedOut`] when the guest holds on to it.
    fn unplug(&self, plan: &GuestPlan, disk: &Disk) -> Result<()>;

    /// Starts a defined guest and returns once it runs (not: once it answers). One that the backend keeps the
    /// memory of ([`Status::Saved`]) goes on from there.
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

    /// Lets a guest run that is held; one that runs is left alone. A save that goes on is given up. Returns once the
    /// backend says that the guest runs.
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

    /// Asks the backend, never our own files, and waits for its answer: whoever acts on it can rely on it.
    ///
    /// # Errors
    /// When the backend does not answer in minutes.
    fn status(&self, plan: &GuestPlan) -> Result<Status>;

    /// As [`status`](Self::status) for who only looks, at many guests perhaps: `None` for one that lives and is too
    /// busy to say more at once.
    ///
    /// # Errors
    /// When the backend is not there.
    fn glance(&self, plan: &GuestPlan) -> Result<Option<Status>>;

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

    /// Removes the copies of images that the backend keeps for guests and that `needed` does not
    /// want and no guest stands on. Returns what goes; with `dry_run`, would go. `away` is told of daemons
    /// that do not answer: theirs stay.
    ///
    /// # Errors
    /// What the backend said.
    fn sweep_images(
        &self,
        needed: &dyn Fn(&str) -> bool,
        dry_run: bool,
        away: Away<'_>,
    ) -> Result<Vec<(String, ByteSize)>>;

    /// Guests under our label, known to us or not, wherever guests of this state folder ever were: what a killed
    /// command may have left. `away` is told of daemons that do not answer: what they keep is not seen.
    ///
    /// # Errors
    /// What the backend said.
    fn list_owned(&self, away: Away<'_>) -> Result<Vec<Owned>>;

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
    /// How the seed gets to it.
    pub seed: SeedIn,
    /// How the guest is reached.
    pub reached: Reached,
    /// What a guest's card is plugged into unless the user says.
    pub default_network: Network,
    /// Whether a guest on the network `user` is kept from its host.
    pub host_closed: Ability,
    /// Whether the console is logged; without it a failed wait shows none.
    pub console_log: bool,
    /// Whether a running guest's memory can be saved into files of ours: templates are made of those.
    pub memory_snapshots: bool,
    /// Who keeps the memory of a guest that is saved.
    pub saved_in: SavedIn,
    /// Whether a guest has a clock of its own, which stands while it is held.
    pub own_clock: bool,
    /// Whether programs can be run in a guest without SSH.
    pub exec: Ability,
    /// Whether files can be brought into a running guest, and out of it, without SSH.
    pub files: Ability,
    /// Whether they can while it does not run.
    pub files_when_stopped: Ability,
    /// Whether a guest's root can be had as a tar: images are made of those.
    pub publish: Ability,
    /// Whether a guest can be written into a file, and made of one.
    pub export: Ability,
    /// Whether folders of the host's can be attached.
    pub folders: Ability,
    /// Whether they can to a guest that runs.
    pub folders_when_running: Ability,
    /// Whether ports can be made reachable, and taken away, once a guest is there.
    pub ports: Ability,
    /// Whether a guest can be resized as it runs.
    pub resize_when_running: Ability,
    /// Whether there is a daemon that keeps images of its own.
    pub daemon_images: Ability,
    /// Whether guests can be made to run again by themselves after the host was restarted.
    pub autostart: Ability,
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

/// How a guest gets its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedIn {
    /// As an image with a file system: a disk of the guest's.
    Image,
    /// As a folder with the documents: the driver lays them where the guest looks.
    Folder,
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
    /// What kind of error it is to whoever cannot go on because of it.
    #[serde(skip)]
    pub kind: Kind,
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
    /// The concrete type of the machine that was made, as in `pc-q35-10.0`, where the backend says.
    pub machine: Option<String>,
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
    /// It does not run, and the backend keeps what was in its memory ([`SavedIn::Backend`]).
    Saved,
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
            Status::Saved => "saved",
            Status::Died => "died",
        })
    }
}

/// Is told of each daemon that does not answer.
pub type Away<'a> = &'a mut dyn FnMut(Error);

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
