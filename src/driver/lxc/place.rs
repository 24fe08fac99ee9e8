//! A container's folder: its label, its root, and what is laid into that.
//!
//! The label is made first and the settings last, so that what a killed command
//! left is known for whose it is, and for not whole.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Gid, Uid};

use super::config::{self, Host};
use super::idmap::{self, IdMap};
use crate::base::cmd::Cmd;
use crate::base::layout::LxcFiles;
use crate::base::plan::InstanceId;
use crate::base::{Error, GuestPlan, Kind, Result, fs};
use crate::driver::Autostart;
use crate::rootfs::{self, Limits, Options, Within};

/// Where cloud-init looks for a seed in its own file system.
const SEED: &str = "var/lib/cloud/seed/nocloud-net";
/// Most bytes of one document of a seed, and of settings.
const LIMIT: u64 = 64 << 20;
/// For a copy of a root that takes no more of the disk: all of it takes as long as the disk does.
const SILENCE: Duration = Duration::from_secs(600);

/// The id of the guest that a folder belongs to; `None` where there is no folder, or remains of one.
pub(super) fn label(files: &LxcFiles) -> Option<InstanceId> {
    let text = fs::read_text(&files.label(), 128).ok()?;
    InstanceId::try_from(text.trim().to_owned()).ok()
}

/// Whether the whole container is there, and is this guest.
pub(super) fn is_whole(files: &LxcFiles, plan: &GuestPlan) -> bool {
    label(files).as_ref() == Some(&plan.id) && files.config().exists()
}

/// Makes the folder with its label. What is there of an earlier try goes.
///
/// # Errors
/// [`Kind::Exists`] when another guest has it.
pub(super) fn begin(files: &LxcFiles, plan: &GuestPlan, map: Option<IdMap>) -> Result<()> {
    if label(files).is_some_and(|id| id != plan.id) {
        let name = &plan.name;
        return Err(Error::new(
            Kind::Exists,
            format!("there is a container '{name}' already: remains of another guest"),
        )
        .hint(format!("virga destroy {name}")));
    }
    fs::remove_dir_all(&files.folder())?;
    // The containers' roots, who are no users of this host, get through, and see nothing.
    fs::create_dir(files.parent())?;
    fs::set_mode(files.parent(), 0o711)?;
    fs::create_new_private_dir(&files.folder())?;
    fs::write_new(&files.label(), format!("{}\n", plan.id).as_bytes(), 0o600)?;
    if let Some(map) = map {
        // Closed to all users but this one: in the root are programs that lend their owner's rights.
        own(&files.folder(), 0, map.base)?;
        fs::set_mode(&files.folder(), 0o750)?;
    }
    Ok(())
}

/// Unpacks the image's root.
///
/// # Errors
/// As [`rootfs::unpack`].
pub(super) fn unpack(files: &LxcFiles, plan: &GuestPlan, map: Option<IdMap>) -> Result<()> {
    let container = config::container(plan)?;
    fs::create_new_private_dir(&files.root())?;
    let options = Options { owners: idmap::owners(map), devices: map.is_none(), limits: Limits::default() };
    rootfs::unpack(&container.root, &files.root(), &options)?;
    open_root(files, map)
}

/// An archive that does not say what its own folder is like leaves it as it was made.
fn open_root(files: &LxcFiles, map: Option<IdMap>) -> Result<()> {
    let base = map.map_or(0, |map| map.base);
    own(&files.root(), base, base)?;
    fs::set_mode(&files.root(), 0o755)
}

fn own(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(CWD, path, uid, gid, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| fs::explain(error.into(), "changing the owner of", path))
}

/// Copies a root with owners, modes, times and attributes; shares blocks where the file system can.
///
/// # Errors
/// When it cannot be copied; a part may be there then.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let disk = fs::folder_of(to).to_owned();
    let copy = Cmd::new("cp").args(["-a", "--reflink=auto", "--no-target-directory"]).args([from, to]);
    copy.while_changes(SILENCE, move || fs::free_space(&disk).unwrap_or_default()).run().map(drop)
}

/// Writes the root as a tar, beneath its folder `rootfs`, with owners as the container sees them.
///
/// # Errors
/// When it cannot be read, or `to` not be written.
pub(super) fn pack(files: &LxcFiles, map: Option<IdMap>, to: &mut dyn Write) -> Result<()> {
    let tar = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-cf", "-", "-C"];
    let folder = files.folder();
    let command = match map {
        None => Cmd::new(tar[0]).args(&tar[1..]),
        // In the container's range of users, where its owners and capabilities read as in it.
        Some(map) => {
            let maps = map.namespace().into_iter().flat_map(|map| ["-m".to_owned(), map]);
            Cmd::new("lxc-usernsexec").args(maps).arg("--").args(tar)
        }
    };
    let mut reading = command.arg(folder).arg("rootfs").read()?;
    let copied = std::io::copy(&mut reading, to);
    let ended = reading.finish();
    copied.map_err(|error| Error::failed("packing the container's root").because(error))?;
    ended
}

/// Lays host name and seed into a root that does not run, where cloud-init looks for them.
///
/// # Errors
/// [`Kind::Refused`] when that is not to be reached without following links; when the seed cannot be read.
pub(super) fn lay(files: &LxcFiles, plan: &GuestPlan, map: Option<IdMap>) -> Result<()> {
    let within = Within::open(&files.root(), idmap::owners(map))?;
    within.write("etc/hostname", 0o644, format!("{}\n", plan.name).as_bytes())?;
    let Some(seed) = &plan.seed else { return Ok(()) };
    for document in fs::list_dir(seed)? {
        within.write(&format!("{SEED}/{document}"), 0o600, &fs::read(&seed.join(&document), LIMIT)?)?;
    }
    Ok(())
}

/// The container's own map of users; it stays as it was made, whatever the host's files say later.
///
/// # Errors
/// When it has no settings.
pub(super) fn map(files: &LxcFiles) -> Result<Option<IdMap>> {
    fs::read_text(&files.config(), LIMIT).map(|text| IdMap::of_config(&text))
}

/// Writes the settings, as the plan and this host are now.
///
/// # Errors
/// As [`config::text`]; when they cannot be written.
pub(super) fn configure(files: &LxcFiles, plan: &GuestPlan, map: Option<IdMap>) -> Result<()> {
    let mut text = config::text(plan, files, map, &Host::look())?;
    if let Some(Autostart { order, delay }) = fs::read_json(&files.autostart())? {
        text += &format!("lxc.start.auto = 1\nlxc.start.order = {order}\nlxc.start.delay = {delay}\n");
    }
    fs::write_atomic(&files.config(), text.as_bytes(), 0o600)
}
