//! Guests on disk: the folder, its record `guest.json`, its phases, its lock.
//!
//! A guest's name exists from the moment its folder does, and that has its
//! record from its first moment, before anything else is made: a killed
//! command leaves a named thing that `list` shows and `destroy` removes.

mod exported;
mod shape;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::exported::Exported;
pub use self::shape::Shape;
use crate::base::layout::GuestFiles;
use crate::base::lock::{FileLock, Mode};
use crate::base::name::quoted;
use crate::base::plan::DriverKind;
use crate::base::{
    Digest, Error, GuestName, GuestPlan, ImageId, Kind, Layout, Result, SessionId, SnapshotName, TemplateId, Trust, fs,
};

/// The shape of `guest.json` that this build writes.
const RECORD_VERSION: u32 = 1;

/// Folders on their way out carry this prefix, which no guest name can have.
const REMOVING: &str = ".removing-";

/// Folders that are to be a guest's carry this prefix until their record is in them.
const MAKING: &str = ".making-";

/// How long a command waits for another one that works on the same guest.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far a guest has come in being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `create` is at work, or was killed.
    Creating,
    /// Whole: it can be started.
    Ready,
}

/// What a command is at with a guest; it stands in the record before it is begun. Whoever holds the guest next brings to
/// an end what a killed one was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Writes its memory to a file that does not count yet: it is to run on.
    Saving,
    /// Loads its memory: the file counts until the guest runs.
    Resuming,
    /// Waits for it to shut down.
    Stopping,
}

/// Where a guest's first disk came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The image's record, unless it was a file.
    pub image: Option<ImageId>,
    /// The blob under the overlay, in use as long as this guest exists; `None` for one that stands on no blob of the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
    /// What the stream said of it (`os`, `release`, `version_name` …), for listings.
    pub keys: BTreeMap<String, String>,
    /// Who vouched for the image; guests of old say nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// The saved machine that it was resumed from: its disk layer is under the overlay as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateId>,
}

/// Everything that is known of one guest: the content of `guest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// How far it has come.
    pub phase: Phase,
    /// When `create` began.
    pub created: Timestamp,
    /// Which driver runs it.
    pub driver: DriverKind,
    /// Where its disk came from.
    pub origin: Origin,
    /// The user to log in as.
    pub user: String,
    /// The keys that open it, as `ssh` is told of them: private keys' files, and public ones' in the guest's folder, these
    /// relative to it. Empty: those that `ssh` finds by itself.
    pub identities: Vec<PathBuf>,
    /// cloud-init's instance-id where it is not the plan's id: one of the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What the driver was given.
    pub plan: GuestPlan,
    /// The plan that was before, while a change to it is under way: its backend knows the one or the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<GuestPlan>,
    /// The session that it belongs to and goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// What a command is at, or was when it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doing: Option<Doing>,
    /// Its memory is in a file of ours and it goes on from there: what it was saved with (program, processor …), with
    /// which alone it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<BTreeMap<String, String>>,
    /// It was held and runs again, or is about to, and has not been told the time since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clock_due: bool,
    /// What it was like at its snapshots. One may be here that is not there any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<SnapshotName, Shape>,
}

impl Record {
    /// A new record in phase [`Phase::Creating`].
    #[must_use]
    pub fn new(driver: DriverKind, origin: Origin, plan: GuestPlan) -> Self {
        Record {
            version: RECORD_VERSION,
            phase: Phase::Creating,
            created: Timestamp::now(),
            driver,
            origin,
            user: String::new(),
            identities: Vec::new(),
            instance: None,
            plan,
            was: None,
            session: None,
            doing: None,
            saved: None,
            clock_due: false,
            snapshots: BTreeMap::new(),
        }
    }

    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &GuestName {
        &self.plan.name
    }

    /// The instance-id that cloud-init has in it.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.instance.as_deref().unwrap_or(self.plan.id.as_str())
    }
}

/// A guest held under its lock.
#[derive(Debug)]
pub struct Held {
    /// What is known of it; [`save`](Self::save) writes changes.
    pub record: Record,
    layout: Layout,
    _lock: FileLock,
}

impl Held {
    /// Writes the record, atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<()> {
        save(&self.layout, &self.record)
    }

    /// Writes the record with what is begun, or with `None` that it is done. Not when that stands there already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn now(&mut self, doing: Option<Doing>) -> Result<()> {
        match std::mem::replace(&mut self.record.doing, doing) == doing {
            true => Ok(()),
            false => self.save(),
        }
    }

    /// Where its files are.
    #[must_use]
    pub fn files(&self) -> GuestFiles {
        self.layout.guest_files(self.record.name())
    }

    /// Gives the guest a plan with another name, the old one in [`Record::was`]: writes that into the folder, and
    /// renames the folder. Whenever this is killed, the folder's name says which plan counts. Held under the new
    /// name afterwards.
    ///
    /// # Errors
    /// [`Kind::Exists`] when the name is taken; the guest has its old one then, and its old record.
    pub fn rename(&mut self, plan: GuestPlan) -> Result<()> {
        let record = Record { plan, was: Some(self.record.plan.clone()), ..self.record.clone() };
        let (from, to) = (self.layout.guest_files(self.record.name()), self.layout.guest_files(record.name()));
        if exists(&self.layout, record.name()) {
            return Err(taken(&self.layout, record.name()));
        }
        fs::write_json(&from.record(), &record, 0o600)?;
        if let Err(error) = fs::rename_new(from.folder(), to.folder()) {
            self.save()?;
            return Err(match error.kind() {
                Kind::Exists => taken(&self.layout, record.name()),
                _ => error,
            });
        }
        self.record = record;
        Ok(())
    }
}

/// Writes a record into its guest's folder, atomically. The caller holds the guest.
///
/// # Errors
/// When it cannot be written.
pub fn save(layout: &Layout, record: &Record) -> Result<()> {
    fs::write_json(&layout.guest_files(record.name()).record(), record, 0o600)
}

/// Takes the name: a folder with its record appears under it at once, held by us. The name is taken from then on;
/// [`remove_folder`] gives it back. Killed at whatever moment it leaves a guest that says whose it is, or a folder
/// that [`sweep`] removes.
///
/// # Errors
/// [`Kind::Exists`] when a guest, whole or half-made, has the name.
pub fn reserve(layout: &Layout, record: Record) -> Result<Held> {
    let name = record.name().clone();
    fs::create_private_dir(&layout.guests())?;
    if exists(layout, &name) {
        return Err(taken(layout, &name));
    }
    let (aside, lock) = make_aside(layout, &name)?;
    let named = fs::write_json(&aside.record(), &record, 0o600).and_then(|()| {
        // A folder goes over no other that has anything in it.
        fs::rename(aside.folder(), &layout.guest(&name))
    });
    match named {
        Ok(()) => Ok(Held { record, layout: layout.clone(), _lock: lock }),
        Err(error) => {
            let _ = fs::remove_dir_all(aside.folder());
            Err(if exists(layout, &name) { taken(layout, &name) } else { error })
        }
    }
}

/// A folder that no listing shows, and its lock: [`sweep`] lets it alone while that is held.
fn make_aside(layout: &Layout, name: &GuestName) -> Result<(GuestFiles, FileLock)> {
    let mut number = 0_u32;
    loop {
        // One that was killed may have had our number.
        let aside =
            GuestFiles::in_folder(layout.guests().join(format!("{MAKING}{name}-{}-{number}", std::process::id())));
        number += 1;
        if !fs::create_new_private_dir(aside.folder())? {
            continue;
        }
        match FileLock::try_acquire(&aside.lock(), Mode::Exclusive) {
            Ok(Some(lock)) => return Ok((aside, lock)),
            // It is being swept, or was, before it was locked.
            Ok(None) => {}
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes a name that no guest has, without a record, for whoever clears up what bears it; `None` when one has it.
/// [`remove_folder`] gives it back.
///
/// # Errors
/// When the folder cannot be made or locked.
pub fn take_name(layout: &Layout, name: &GuestName) -> Result<Option<FileLock>> {
    fs::create_private_dir(&layout.guests())?;
    if !fs::create_new_private_dir(layout.guest_files(name).folder())? {
        return Ok(None);
    }
    match FileLock::try_acquire(&layout.guest_files(name).lock(), Mode::Exclusive) {
        Ok(Some(lock)) if matches!(load(layout, name), Ok(None)) => Ok(Some(lock)),
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        // Another command has removed the folder, or uses it by now.
        _ => Ok(None),
    }
}

/// Why a name cannot be had: a whole guest has it, or a half-made one.
#[must_use]
pub fn taken(layout: &Layout, name: &GuestName) -> Error {
    let exists = Error::new(Kind::Exists, format!("there is already a guest '{name}'"));
    match load(layout, name) {
        Ok(Some(record)) if record.phase == Phase::Ready => {
            exists.hint(format!("choose another name, or remove it: virga destroy {name}"))
        }
        _ => exists.hint(format!("it is half-made; if no other virga is at work on it: virga destroy {name}")),
    }
}

/// Reads a guest's record without its lock; `None` when there is no record.
///
/// # Errors
/// When the record cannot be read, or was written by a newer virga.
pub fn load(layout: &Layout, name: &GuestName) -> Result<Option<Record>> {
    let path = layout.guest_files(name).record();
    let read = fs::read_json::<Record>(&path).map_err(|error| {
        let is_json = std::error::Error::source(&error).is_some_and(|cause| cause.is::<serde_json::Error>());
        // What this user may not read is whole for another one.
        if is_json { error.hint(format!("repair it, or remove the guest: virga destroy {name}")) } else { error }
    });
    let Some(record) = read? else { return Ok(None) };
    if record.version > RECORD_VERSION {
        return Err(Error::failed(format!("guest '{name}' was made by a newer virga")).hint("update virga"));
    }
    let mut record = record;
    if let Some(was) = record.was.as_mut().filter(|was| was.name == *name && record.plan.name != *name) {
        // Being renamed: the folder's name says which way it is.
        std::mem::swap(&mut record.plan, was);
    }
    if record.name() != name {
        return Err(Error::failed(format!("the record of guest '{name}' is that of '{}'", record.name())));
    }
    Ok(Some(record))
}

/// Reads the record of a guest that must be whole.
///
/// # Errors
/// [`Kind::NotFound`] when there is none; [`Kind::Failed`] when it is half-made.
pub fn get(layout: &Layout, name: &GuestName) -> Result<Record> {
    match load(layout, name)? {
        Some(record) if record.phase == Phase::Ready => Ok(record),
        Some(_) => Err(half_made(name)),
        None if exists(layout, name) => Err(half_made(name)),
        None => Err(missing(name)),
    }
}

fn half_made(name: &GuestName) -> Error {
    Error::failed(format!("guest '{name}' is half-made: 'create' was interrupted or is at work"))
        .hint(format!("remove it: virga destroy {name}"))
}

fn missing(name: &GuestName) -> Error {
    Error::not_found(format!("there is no guest '{name}'")).hint("'virga list' shows the guests")
}

/// Locks a whole guest and reads its record.
///
/// # Errors
/// As [`get`], and [`Kind::TimedOut`] when another command holds it.
pub fn hold(layout: &Layout, name: &GuestName) -> Result<Held> {
    // First: one that is being made is whole when its maker lets go of it, and it may go while it is waited for.
    let lock = lock(layout, name)?;
    let record = get(layout, name)?;
    // What a killed command was about to write may have secrets in it.
    fs::sweep_temporary(&layout.guest(name))?;
    Ok(Held { record, layout: layout.clone(), _lock: lock })
}

/// Locks a guest's folder whatever state it is in, for `destroy`.
///
/// # Errors
/// [`Kind::NotFound`] when there is no such folder, [`Kind::TimedOut`] when another command holds it.
pub fn lock(layout: &Layout, name: &GuestName) -> Result<FileLock> {
    if !exists(layout, name) {
        return Err(missing(name));
    }
    let lock = FileLock::acquire(&layout.guest_files(name).lock(), Mode::Exclusive, &title(name), PATIENCE);
    // The folder went while we waited for whoever removed it.
    lock.map_err(|error| if error.kind() == Kind::NotFound { missing(name) } else { error })
}

/// Whether no command is at work on the guest right now; so when it has no folder.
///
/// # Errors
/// When its lock cannot be tried.
pub fn is_free(layout: &Layout, name: &GuestName) -> Result<bool> {
    if !exists(layout, name) {
        return Ok(true);
    }
    // Together with others who look: whoever wants it alone waits a moment longer.
    match FileLock::try_acquire(&layout.guest_files(name).lock(), Mode::Shared) {
        Err(error) if error.kind() == Kind::NotFound => Ok(true),
        lock => Ok(lock?.is_some()),
    }
}

/// Whether the name is taken, by a whole guest or by a half-made one.
#[must_use]
pub fn exists(layout: &Layout, name: &GuestName) -> bool {
    layout.guest(name).is_dir()
}

fn title(name: &GuestName) -> String {
    format!("guest '{name}'")
}

/// Gives the name back and removes the folder with all in it. Repeatable.
/// The caller holds the lock, or knows that nobody does.
///
/// # Errors
/// When something cannot be removed; the name is free all the same.
pub fn remove_folder(layout: &Layout, name: &GuestName) -> Result<()> {
    // One that was killed in the midst of this may have had our number.
    for try_ in 0_u32.. {
        let aside = layout.guests().join(format!("{REMOVING}{name}-{}-{try_}", std::process::id()));
        if aside.exists() {
            continue;
        }
        return match fs::rename(&layout.guest(name), &aside) {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => fs::remove_dir_all(&aside),
        };
    }
    Ok(())
}

/// One line of a listing.
#[derive(Debug)]
pub enum Entry {
    /// A guest with a readable record, in whatever phase.
    Known(Box<Record>),
    /// A folder whose record is absent or cannot be read, and why.
    Broken(GuestName, Option<Error>),
}

impl Entry {
    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &GuestName {
        match self {
            Entry::Known(record) => record.name(),
            Entry::Broken(name, _) => name,
        }
    }
}

/// All guests, by name. Takes no lock.
///
/// # Errors
/// When the folder of guests cannot be read.
pub fn list(layout: &Layout) -> Result<Vec<Entry>> {
    let names = fs::list_dir(&layout.guests())?;
    let names = names.iter().filter_map(|name| name.parse::<GuestName>().ok());
    Ok(names
        .map(|name| match load(layout, &name) {
            Ok(Some(record)) => Entry::Known(Box::new(record)),
            Ok(None) => Entry::Broken(name, None),
            Err(error) => Entry::Broken(name, Some(error)),
        })
        // One that was removed since the names were read is none.
        .filter(|entry| matches!(entry, Entry::Known(_)) || exists(layout, entry.name()))
        .collect())
}

/// Removes what a killed [`remove_folder`] or [`reserve`] left. Returns how many folders went.
///
/// # Errors
/// When something cannot be removed.
pub fn sweep(layout: &Layout, dry_run: bool) -> Result<usize> {
    let mut swept = 0;
    for name in fs::list_dir(&layout.guests())? {
        let path = layout.guests().join(&name);
        // Held by whoever makes it, until it is renamed or it is left.
        let _lock = if name.starts_with(MAKING) {
            match FileLock::try_acquire(&GuestFiles::in_folder(path.clone()).lock(), Mode::Exclusive) {
                Ok(Some(lock)) => Some(lock),
                Ok(None) => continue,
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            }
        } else if name.starts_with(REMOVING) {
            None
        } else {
            continue;
        };
        swept += 1;
        if !dry_run {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(swept)
}

/// The blobs that guests need. A record that cannot be read makes this fail:
/// nobody knows then what is in use.
///
/// # Errors
/// When a record cannot be read.
pub fn blobs_in_use(layout: &Layout) -> Result<std::collections::BTreeSet<Digest>> {
    let mut used = std::collections::BTreeSet::new();
    for entry in list(layout)? {
        match entry {
            Entry::Known(record) => {
                used.extend(record.origin.blob);
            }
            // The record is written before any disk: without one there is no disk.
            Entry::Broken(_, None) => {}
            Entry::Broken(name, Some(error)) => {
                // It has the hint, where there is one.
                return Err(Error::failed(format!("cannot tell which image guest {} uses", quoted(name.as_str())))
                    .because(error));
            }
        }
    }
    Ok(used)
}

#[cfg(test)]
pub(crate) mod tests;
