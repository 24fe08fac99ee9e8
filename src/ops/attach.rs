//! Attaching disks to a guest and detaching them, as it runs or not.

use std::path::{Path, PathBuf};

use super::{Env, change};
use crate::base::container::{Container, Folder};
use crate::base::plan::{Disk, DiskFormat};
use crate::base::undo::Undo;
use crate::base::{ByteSize, Context as _, Error, GuestName, GuestPath, GuestPlan, Kind, Result, fs};
use crate::disk;
use crate::driver::{Ability, Storage};
use crate::guest::Held;

/// A disk to attach.
#[derive(Clone, Debug)]
pub enum Further {
    /// A file of the user's: used where it is, and never removed.
    File {
        /// The file.
        path: PathBuf,
        /// Its format; `None`: qcow2, an ISO image or a disk with partitions, whichever it is.
        format: Option<DiskFormat>,
        /// Whether the guest may only read it; ISO images are for reading always.
        read_only: bool,
    },
    /// A new, empty one that goes with the guest.
    New(ByteSize),
    /// A folder of the user's, for a container.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Where the container sees it.
        at: GuestPath,
        /// Whether the container may only read it.
        read_only: bool,
    },
}

/// Attaches a disk, behind those that are there. A guest that runs sees it at once. Returns its name for
/// [`detach`]. A guest that runs must have been started by this version.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest or file, [`Kind::Refused`] for a hostile image, [`Kind::Exists`] for one that is
/// attached already, [`Kind::Failed`] when the guest is saved. It has no new disk then.
pub fn attach(env: Env<'_>, name: &GuestName, further: &Further) -> Result<String> {
    let mut held = change::hold(env, name)?;
    let runs = change::runs(env, &held)?;
    let disk = match further {
        Further::Folder { path, at, read_only } => return attach_folder(env, held, runs, path, at, *read_only),
        _ if held.record.plan.container.is_some() => {
            return Err(Error::new(Kind::Unsupported, "a container has no disks").hint("--folder HOST:GUEST"));
        }
        Further::File { path, format, read_only } => of_user(path, *format, *read_only)?,
        Further::New(size) => {
            disk::check_size(*size)?;
            Disk::own(free_place(env, &held.record.plan), *size, Vec::new())
        }
    };
    if held.record.plan.disks.iter().any(|other| other.path == disk.path) {
        return Err(Error::new(Kind::Exists, format!("'{}' is attached to '{name}' already", disk.path.display())));
    }
    let mut undo = Undo::new();
    let driver = env.driver(held.record.driver);
    if !disk.kept && driver.capabilities().storage == Storage::OurPath {
        // What a killed command left has nothing in it, and nobody names it.
        fs::remove_file(&disk.path)?;
        disk::create_empty(&disk.path, disk.size)?;
        let path = disk.path.clone();
        undo.push("the new disk", move || fs::remove_file(&path));
    }
    let mut plan = held.record.plan.clone();
    plan.disks.push(disk.clone());
    change::apply_with(env, &mut held, plan, |driver, plan| if runs { driver.plug(plan, &disk) } else { Ok(()) })?;
    undo.commit();
    Ok(disk.title())
}

fn attach_folder(
    env: Env<'_>,
    mut held: Held,
    runs: bool,
    path: &Path,
    at: &GuestPath,
    read_only: bool,
) -> Result<String> {
    let name = held.record.name().clone();
    let mut plan = held.record.plan.clone();
    let container = folders(env, &held, runs, &mut plan)?;
    let host = path.canonicalize().map_err(|error| fs::explain(error, "looking for", path))?;
    if host.to_str().is_none_or(|text| text.chars().any(char::is_control)) || !host.is_dir() {
        return Err(Error::usage(format!("{path:?} is no folder with a name that a container could be given")));
    }
    let guest = at.as_str().to_owned();
    if !guest.starts_with('/') || guest == "/" {
        return Err(Error::usage(format!("'{at}' is no place for a folder: it must be absolute, and not the root")));
    }
    if container.folders.iter().any(|folder| folder.guest == guest) {
        return Err(Error::new(Kind::Exists, format!("'{name}' has a folder at '{guest}' already")));
    }
    container.folders.push(Folder { host, guest: guest.clone(), read_only });
    change::apply(env, &mut held, plan)?;
    Ok(guest)
}

fn detach_folder(env: Env<'_>, mut held: Held, runs: bool, which: &str) -> Result<()> {
    let mut plan = held.record.plan.clone();
    let container = folders(env, &held, runs, &mut plan)?;
    let there: Vec<String> = container.folders.iter().map(|folder| folder.guest.clone()).collect();
    container.folders.retain(|folder| folder.guest != which);
    if container.folders.len() == there.len() {
        let error = Error::not_found(format!("guest '{}' has no folder '{which}'", held.record.name()));
        return Err(if there.is_empty() { error } else { error.hint(format!("it has: {}", there.join(", "))) });
    }
    change::apply(env, &mut held, plan)
}

/// The container whose folders may be changed now.
fn folders<'a>(env: Env<'_>, held: &Held, runs: bool, plan: &'a mut GuestPlan) -> Result<&'a mut Container> {
    let capabilities = env.driver(held.record.driver).capabilities();
    let (name, driver) = (held.record.name(), held.record.driver);
    capabilities.folders.demand(|| format!("the {driver} driver cannot share folders with its guests"))?;
    if runs && let Ability::No(reason) = capabilities.folders_when_running {
        return Err(Error::failed(format!("guest '{name}' is running: {reason}")).hint(format!("virga stop {name}")));
    }
    plan.container.as_mut().ok_or_else(|| Error::new(Kind::Unsupported, "a machine shares no folders"))
}

/// A file of the user's as a disk, looked at before any other program opens it.
fn of_user(path: &Path, format: Option<DiskFormat>, read_only: bool) -> Result<Disk> {
    let path = path.canonicalize().map_err(|error| fs::explain(error, "looking for", path))?;
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(Error::usage(format!("the path {path:?} has control or non-UTF-8 characters")));
    }
    let (facts, iso) = disk::inspect_further(&path, format)?;
    Ok(Disk {
        format: facts.format,
        size: ByteSize(facts.virtual_size),
        chain: Vec::new(),
        read_only: read_only || iso,
        kept: true,
        path,
    })
}

/// Where the guest's next disk is; its number is no other's.
fn free_place(env: Env<'_>, plan: &GuestPlan) -> PathBuf {
    let files = env.settings.layout.guest_files(&plan.name);
    let taken = |path: &PathBuf| plan.disks.iter().any(|disk| disk.path == *path);
    let place = (0..).map(|number| files.ephemeral_disk(number)).find(|path| !taken(path));
    place.unwrap_or_else(|| files.ephemeral_disk(0))
}

/// Detaches a disk, which the guest must have let go of. One that virga made is deleted, if `delete` says that it may.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest or disk, [`Kind::Usage`] for the first disk and for one that would be
/// deleted, [`Kind::TimedOut`] when a guest that runs holds on to it. The disk is still attached then.
pub fn detach(env: Env<'_>, name: &GuestName, which: &str, delete: bool) -> Result<()> {
    let mut held = change::hold(env, name)?;
    let runs = change::runs(env, &held)?;
    if held.record.plan.container.is_some() {
        return detach_folder(env, held, runs, which);
    }
    let disk = find(&held, which)?;
    if !disk.kept && !delete {
        return Err(Error::usage(format!("'{which}' was made for '{name}' and goes with it"))
            .hint("'--delete' detaches and deletes it, with all that is on it"));
    }
    let driver = env.driver(held.record.driver);
    if runs {
        driver.unplug(&held.record.plan, &disk)?;
    }
    let mut plan = held.record.plan.clone();
    plan.disks.retain(|other| other.path != disk.path);
    let taken_out = change::apply_with(env, &mut held, plan, |_, _| Ok(()));
    if let Err(error) = taken_out {
        return match runs.then(|| driver.plug(&held.record.plan, &disk)) {
            Some(Err(worse)) => Err(error).context(|| format!("and it is out of the running guest ({worse})")),
            _ => Err(error),
        };
    }
    Ok(())
}

fn find(held: &Held, which: &str) -> Result<Disk> {
    let name = held.record.name();
    let (first, further) = held.record.plan.disks.split_first().ok_or_else(|| Error::failed("it has no disk"))?;
    let path = Path::new(which).canonicalize().ok();
    let is = |disk: &&Disk| disk.title() == which || (disk.kept && Some(&disk.path) == path.as_ref());
    if is(&first) {
        return Err(Error::usage(format!("'{name}' boots from '{which}'")).hint(format!("virga destroy {name}")));
    }
    further.iter().find(is).cloned().ok_or_else(|| {
        let error = Error::not_found(format!("guest '{name}' has no disk '{which}'"));
        match further.iter().map(Disk::title).collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => error.hint("it has the disk alone that it boots from"),
            others => error.hint(format!("it has: {others}")),
        }
    })
}
