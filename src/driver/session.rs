//! What is done with a guest once it is there: held and let go, saved,
//! put back to an earlier state, looked at.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::cmd::Pipes;
use crate::base::{Error, GuestPlan, Kind, Result, SnapshotName};

/// The verbs of a day's work. All block; callers hold the guest's lock around those that change it.
pub trait Session {
    /// Holds a running guest in memory; one that is held is left alone. [`super::Driver::release`] lets it go on.
    ///
    /// # Errors
    /// When it does not run, or what the backend said.
    fn suspend(&self, plan: &GuestPlan) -> Result<()>;

    /// Saves a running guest at its backend and ends it, for [`SavedIn::Backend`].
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for [`SavedIn::OurFile`]; what the backend said, and the guest runs on.
    fn save_there(&self, plan: &GuestPlan) -> Result<()>;

    /// Drops the memory that the backend keeps; where there is none nothing happens.
    ///
    /// # Errors
    /// What the backend said.
    fn drop_saved(&self, plan: &GuestPlan) -> Result<()>;

    /// Says whether the guest starts with its host, and when. Returns what the user has to do besides, once for all guests.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without [`super::Capabilities::autostart`], and for an order or a delay where there is none.
    fn set_autostart(&self, plan: &GuestPlan, wish: Option<Autostart>) -> Result<Option<String>>;

    /// The member of the backend's cluster that the guest is on now; `None`: it has no cluster.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn location(&self, plan: &GuestPlan) -> Result<Option<String>>;

    /// What the backend knows besides the plan.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn details(&self, plan: &GuestPlan) -> Result<Details>;

    /// The guest's snapshots, oldest first.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn snapshots(&self, plan: &GuestPlan) -> Result<Vec<Snapshot>>;

    /// Keeps the guest's disks as they are now, and its memory if it runs; it goes on as it was. The name
    /// must be free.
    ///
    /// # Errors
    /// What the backend said; nothing of the snapshot is left then.
    fn take_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()>;

    /// Puts the guest back to a snapshot: one with memory runs after that, or is held, whether it ran before or
    /// not; without memory it must not run, and does not.
    ///
    /// # Errors
    /// What the backend said; the guest is to be started anew from its disk then.
    fn restore_snapshot(&self, plan: &GuestPlan, snapshot: &Snapshot) -> Result<()>;

    /// Removes a snapshot.
    ///
    /// # Errors
    /// What the backend said.
    fn remove_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()>;

    /// Connects to the serial console of a running guest, for one client at a time. The stream ends with the guest.
    ///
    /// # Errors
    /// [`Kind::Failed`] when another client has it, or the guest does not run.
    fn console(&self, plan: &GuestPlan) -> Result<UnixStream>;

    /// Runs a program in a running guest, as root, and returns its exit code when it has ended. A
    /// terminal's errors come with its output.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without [`super::Capabilities::exec`]; what the backend said.
    fn exec(&self, plan: &GuestPlan, exec: &Exec, streams: Pipes<'_>) -> Result<u8>;

    /// A picture of the screen of a running guest, as PNG.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when the backend makes none, or another kind.
    fn screenshot(&self, plan: &GuestPlan) -> Result<Vec<u8>>;

    /// Where the screen of a running guest is served; begins to serve it where that is not so yet.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when it is not and cannot be.
    fn viewer(&self, plan: &GuestPlan) -> Result<Viewer>;
}

/// When a guest starts with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autostart {
    /// Those with a lower number come first.
    pub order: u32,
    /// Seconds until the next one after it.
    pub delay: u32,
}

/// A program to be run in a guest.
#[derive(Clone, Debug)]
pub struct Exec {
    /// It, and its arguments.
    pub command: Vec<String>,
    /// What is added to its environment.
    pub environment: Vec<(String, String)>,
    /// The columns and lines of its terminal; `None`: it has none.
    pub terminal: Option<[u16; 2]>,
}

/// Whether a driver can do something, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Yes,
    /// It cannot: the reason, as a part of a sentence.
    No(&'static str),
}

impl Ability {
    /// Success if it can.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] with the reason; `what` says what was wanted, as in "the qemu driver cannot start guests".
    pub fn demand(self, what: impl FnOnce() -> String) -> Result<()> {
        match self {
            Ability::Yes => Ok(()),
            Ability::No(reason) => Err(Error::new(Kind::Unsupported, format!("{}: {reason}", what()))),
        }
    }
}

/// Who keeps the memory of a guest that is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedIn {
    /// A file of ours: [`super::Driver::save`] and [`super::Driver::load`].
    OurFile,
    /// The backend: [`Session::save_there`], [`super::Status::Saved`], and a start goes on from there by itself.
    Backend,
    /// Nobody: the reason, as a part of a sentence.
    Nobody(&'static str),
}

/// What a backend knows of a guest besides its plan.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Whether it starts with its host, where the backend can do that.
    pub autostart: Option<bool>,
    /// Its machine type with version, as in `pc-q35-10.0`, where that is known.
    pub machine: Option<String>,
    /// The files of its disks, on the backend's host.
    pub disks: Vec<PathBuf>,
    /// Its addresses, best first, where it is reached by them.
    pub addresses: Vec<IpAddr>,
    /// How one that does not run ended, where the backend tells: one line.
    pub ending: Option<String>,
}

/// A guest's earlier state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name; one that was not made by us may have any.
    pub name: String,
    /// When it was taken.
    pub taken: Timestamp,
    /// Whether it has the memory too: then the guest ran.
    pub memory: bool,
}

/// Where a guest's screen is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Viewer {
    /// As viewers take it: `vnc://127.0.0.1:5900`.
    pub address: String,
    /// The host on whose loopback that is; `None`: this one.
    pub host: Option<String>,
}
