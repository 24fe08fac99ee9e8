//! File writes that are whole or absent, and reads that are bounded.
//!
//! Only this module may write files with `std::fs` (see `clippy.toml`).
#![allow(clippy::disallowed_methods, reason = "this is the place that the rule sends others to")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::Access;

use super::{Context as _, Error, Kind, Result};

/// Makes a folder (and its parents) that only its owner may enter. Existing is success.
///
/// # Errors
/// When it cannot be made.
pub fn create_private_dir(path: &Path) -> Result<()> {
    step("making the folder", path);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| explain(error, "making the folder", path))
}

/// As [`create_private_dir`], in a folder in which nobody else may put anything: whoever could would be in its place
/// before us. What is there already must be so as well.
///
/// # Errors
/// As [`create_private_dir`]; [`Kind::Refused`] when either is another user's, or open to others.
pub fn create_guarded_dir(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    create_private_dir(folder)?;
    ours_alone(folder, 0o022)?;
    create_private_dir(path)?;
    ours_alone(path, 0o077)
}

/// Refuses a folder that is another user's, or lets others do what `closed` says that they may not.
///
/// # Errors
/// [`Kind::Refused`] then, and for what is no folder; when it is not there.
pub fn ours_alone(path: &Path, closed: u32) -> Result<()> {
    // A link may be ours and lead anywhere: what counts is where the files will be.
    let found = fs::metadata(path).map_err(|error| explain(error, "looking at", path))?;
    let us = rustix::process::geteuid().as_raw();
    let why = match found.mode() & 0o7777 {
        _ if !found.is_dir() => "is no folder".to_owned(),
        _ if found.uid() != us => format!("belongs to another user (uid {}, not {us})", found.uid()),
        mode if mode & closed != 0 => format!("is open to other users (mode {mode:04o})"),
        _ => return Ok(()),
    };
    let error = Error::refused(format!("'{}' {why}: they could take a guest over", path.display()));
    Err(match found.is_dir() && found.uid() == us {
        true => error.hint(format!("close it: chmod go-rwx '{}'", path.display())),
        false => error.hint("set VIRGA_RUNTIME_DIR to a folder of your own, or to one that is not there yet"),
    })
}

/// Whether a file is the user's or root's, and nobody else may write to it.
#[must_use]
pub fn is_guarded(path: &Path) -> bool {
    let us = rustix::process::getuid().as_raw();
    fs::metadata(path).is_ok_and(|found| [0, us].contains(&found.uid()) && found.mode() & 0o022 == 0)
}

/// Makes a folder (and its parents) with the user's usual mode. Existing is success.
///
/// # Errors
/// When it cannot be made.
pub fn create_dir(path: &Path) -> Result<()> {
    step("making the folder", path);
    fs::create_dir_all(path).map_err(|error| explain(error, "making the folder", path))
}

/// Makes exactly one private folder; `false` when it was there already.
///
/// # Errors
/// When it cannot be made for another reason.
pub fn create_new_private_dir(path: &Path) -> Result<bool> {
    step("making the folder", path);
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(explain(error, "making the folder", path)),
    }
}

/// Replaces `path` with `bytes`: temporary file beside it, fsync, rename,
/// fsync of the folder. A reader sees the old file or the new one.
///
/// # Errors
/// When any step fails; the old file is then untouched and the temporary one gone.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write_atomic_with(path, mode, |file| file.write_all(bytes).map_err(|error| explain(error, "writing", path)))
}

/// As [`write_atomic`], the content written by `fill`.
///
/// # Errors
/// As [`write_atomic`], and what `fill` returns.
pub fn write_atomic_with(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    step("writing", path);
    let folder = folder_of(path);
    let mut temporary = temporary_in(folder, mode).map_err(|error| explain(error, "writing", path))?;
    fill(temporary.as_file_mut())?;
    temporary.as_file().sync_all().map_err(|error| explain(error, "writing", path))?;
    step("putting in its place", path);
    temporary.persist(path).map_err(|error| explain(error.error, "writing", path))?;
    sync_dir(folder)
}

/// Writes a new file durably; it is whole or not there at any time.
///
/// # Errors
/// [`Kind::Exists`] when it is there already; else why it cannot be made.
pub fn write_once(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    step("writing", path);
    let folder = folder_of(path);
    let mut temporary = temporary_in(folder, mode).map_err(|error| explain(error, "writing", path))?;
    let written = temporary.write_all(bytes).and_then(|()| temporary.as_file().sync_all());
    written.map_err(|error| explain(error, "writing", path))?;
    step("putting in its place", path);
    temporary.persist_noclobber(path).map_err(|error| explain(error.error, "making", path))?;
    sync_dir(folder)
}

/// One that this process holds by a lock on it: that is how it is told from what a killed one has left.
fn temporary_in(folder: &Path, mode: u32) -> io::Result<tempfile::NamedTempFile> {
    loop {
        let made = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(folder)?;
        // Where there are no locks nobody sweeps either.
        if made.as_file().lock().is_err() || made.as_file().metadata()?.nlink() > 0 {
            return Ok(made);
        }
        // Somebody swept between the two steps.
    }
}

/// Removes the temporary files of [`write_atomic`] in a folder whose process was killed; those that are being written
/// stay. An absent folder has none.
///
/// # Errors
/// When the folder cannot be read or a file not be removed.
pub fn sweep_temporary(folder: &Path) -> Result<()> {
    for name in list_dir(folder)?.iter().filter(|name| name.starts_with(TEMPORARY_PREFIX)) {
        let path = folder.join(name);
        // It may have got its name by now.
        if let Ok(left) = File::open(&path)
            && left.try_lock().is_ok()
        {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// The folder that holds `path`; the current one for a bare name.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What temporary files of [`write_atomic`] begin with; a killed process leaves them, sweeping removes them.
pub const TEMPORARY_PREFIX: &str = ".virga-tmp-";

/// Writes a new file that must not exist yet, without the cost of fsync: for
/// files that a crash may lose because the guest that owns them is not whole yet.
///
/// # Errors
/// [`Kind::Exists`] when it is there already; else what writing returns.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = create_new(path, mode)?;
    file.write_all(bytes).map_err(|error| explain(error, "writing", path))
}

/// Creates a file that must not exist yet, open for reading and writing.
///
/// # Errors
/// [`Kind::Exists`] when it is there already; else why it cannot be made.
pub fn create_new(path: &Path, mode: u32) -> Result<File> {
    step("making", path);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc_nofollow())
        .open(path)
        .map_err(|error| explain(error, "making", path))
}

/// Opens a file for reading and writing, making it (private) when absent. Never through a symbolic link.
///
/// # Errors
/// When it cannot be opened.
pub fn open_or_create(path: &Path) -> Result<File> {
    step("opening", path);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc_nofollow())
        .open(path)
        .map_err(|error| explain(error, "opening", path))
}

/// Opens a log that several programs may write to: what is written goes to its end. Makes an absent one, private.
///
/// # Errors
/// When it cannot be opened.
pub fn open_log(path: &Path) -> Result<File> {
    step("opening", path);
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc_nofollow())
        .open(path)
        .map_err(|error| explain(error, "opening", path))
}

/// Opens a file for reading.
///
/// # Errors
/// [`Kind::NotFound`] when it is absent; else why it cannot be opened.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| explain(error, "opening", path))
}

fn step(doing: &str, path: &Path) {
    super::crash::step(|| format!("{doing} '{}'", path.display()));
}

fn libc_nofollow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`Kind::NotFound`] when it is absent, [`Kind::Failed`] when it is larger.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    // A hint only: the file may grow or shrink meanwhile.
    let length = file.metadata().map_or(0, |meta| meta.len().min(limit));
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| explain(error, "reading", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::failed(format!("'{}' is larger than {}", path.display(), super::ByteSize(limit))));
    }
    Ok(bytes)
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).context(|| format!("'{}' is not UTF-8 text", path.display()))
}

/// Reads and parses a JSON file of ours; `None` when it is absent.
///
/// # Errors
/// When it is there but cannot be read as a `T`.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    const LIMIT: u64 = 64 << 20;
    let bytes = match read(path, LIMIT) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    serde_json::from_slice(&bytes).map(Some).context(|| format!("reading '{}'", path.display()))
}

/// Writes `value` as indented JSON, atomically.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T, mode: u32) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context(|| format!("encoding '{}'", path.display()))?;
    text.push(b'\n');
    write_atomic(path, &text, mode)
}

/// Removes a file; being absent is success.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_file(path: &Path) -> Result<()> {
    step("removing", path);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(explain(error, "removing", path)),
        _ => Ok(()),
    }
}

/// Removes a folder that has nothing in it.
///
/// # Errors
/// When it is not there, or there is something in it.
pub fn remove_empty_dir(path: &Path) -> Result<()> {
    step("removing", path);
    fs::remove_dir(path).map_err(|error| explain(error, "removing", path))
}

/// Removes a folder and all in it, never following links; being absent is success.
///
/// # Errors
/// When something of it cannot be removed.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    step("removing", path);
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(explain(error, "removing", path)),
        _ => Ok(()),
    }
}

/// Renames within one file system, then fsyncs the target's folder.
///
/// # Errors
/// When it cannot be renamed.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    step("renaming", from);
    fs::rename(from, to).map_err(|error| explain(error, "renaming", from))?;
    sync_dir(folder_of(to))
}

/// As [`rename`], never over something that is there.
///
/// # Errors
/// [`Kind::Exists`] when there is something; when it cannot be renamed.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    step("renaming", from);
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
        .map_err(|error| explain(error.into(), "renaming", from))?;
    sync_dir(folder_of(to))
}

/// Gives each of two paths what is at the other one, at once.
///
/// # Errors
/// When the file system cannot.
pub fn exchange(one: &Path, other: &Path) -> Result<()> {
    step("exchanging", one);
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|error| explain(error.into(), "exchanging", one))?;
    sync_dir(folder_of(one))
}

/// As [`rename`], without the cost of fsync: for many files, with
/// [`sync_file_system`] before and after all of them.
///
/// # Errors
/// When it cannot be renamed.
pub fn rename_unsynced(from: &Path, to: &Path) -> Result<()> {
    step("renaming", from);
    fs::rename(from, to).map_err(|error| explain(error, "renaming", from))
}

/// Makes all that was written to the file system of `folder` durable (syncfs(2)).
///
/// # Errors
/// When it cannot.
pub fn sync_file_system(folder: &Path) -> Result<()> {
    step("syncing", folder);
    let dir = open(folder)?;
    rustix::fs::syncfs(dir).map_err(|error| explain(error.into(), "syncing the file system of", folder))
}

/// Sets a file's permission bits.
///
/// # Errors
/// When they cannot be set.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    step("setting the mode of", path);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| explain(error, "setting the mode of", path))
}

/// Names in a folder, sorted; an absent folder is an empty one. Names that are not UTF-8 are left out: none of ours is.
///
/// # Errors
/// When the folder cannot be read.
pub fn list_dir(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| explain(error, "reading the folder", path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| explain(error, "reading the folder", path))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Bytes free for an ordinary user on the file system of `path`.
///
/// # Errors
/// When the file system does not answer.
pub fn free_space(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(|error| explain(error.into(), "asking the free space of", path))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes a rename or a removal in `folder` durable.
///
/// # Errors
/// When fsync fails.
pub fn sync_dir(folder: &Path) -> Result<()> {
    step("syncing", folder);
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(|error| explain(error, "syncing the folder", folder))
}

/// An I/O error with its path, kind and hint.
#[must_use]
pub fn explain(error: io::Error, doing: &str, path: &Path) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::Exists,
        _ => Kind::Failed,
    };
    let full = error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded;
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let read_only = error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    let mut ours = Error::new(kind, format!("{doing} '{}'", path.display())).because(error);
    if full {
        ours = ours.hint("the disk is full: 'virga prune' frees images that no guest uses, VIRGA_HOME moves the state");
    } else if denied {
        ours = ours.hint(why_denied(path));
    } else if read_only {
        ours = ours.hint("the file system is read-only: VIRGA_HOME=FOLDER keeps virga's state in another folder");
    }
    ours
}

/// Why this user can put nothing into a folder, or where it is not there yet, into the nearest one above it that is;
/// `None` when that can be done.
#[must_use]
pub fn unwritable(folder: &Path) -> Option<Error> {
    let there = nearest(folder);
    let tried = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK);
    tried.err().map(|errno| explain(errno.into(), "writing to", there))
}

/// A path, or where it is not there, the nearest folder above it that is.
fn nearest(path: &Path) -> &Path {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    there.unwrap_or(Path::new(if path.is_absolute() { "/" } else { "." }))
}

/// Which folder on the way to a path this user may not enter, and why: the path's own, if it is one.
#[must_use]
pub fn barred(path: &Path) -> Option<String> {
    barrier(path).map(whose)
}

fn barrier(path: &Path) -> Option<&Path> {
    let closed = |folder: &&Path| folder.is_dir() && rustix::fs::access(*folder, Access::EXEC_OK).is_err();
    let mut folders: Vec<&Path> = path.ancestors().collect();
    folders.reverse();
    folders.into_iter().find(closed)
}

/// What stands in the way of whoever may not do something with a path.
fn why_denied(path: &Path) -> String {
    if let Some(barrier) = barrier(path) {
        return whose(barrier);
    }
    let writable = |path: &Path| rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).is_ok();
    let folder = folder_of(path);
    // A folder that was to be made with those above it is not there itself.
    whose(nearest(if (path.exists() && !writable(path)) || writable(folder) { path } else { folder }))
}

fn whose(path: &Path) -> String {
    let (us, shown) = (rustix::process::geteuid(), path.display());
    match path.metadata() {
        Ok(found) if !us.is_root() && found.uid() != us.as_raw() => {
            format!(
                "'{shown}' belongs to another user (uid {}): run as that user, or have it opened for yours",
                found.uid()
            )
        }
        _ if us.is_root() => {
            format!("the file system does not let even root: 'ls -ld {shown}' and 'findmnt -T {shown}'")
        }
        _ => format!("its mode does not allow it: see 'ls -ld {shown}'"),
    }
}

#[cfg(test)]
mod tests;
