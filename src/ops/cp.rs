//! Copying files into a guest and out of it: by its driver where that can, else over SSH.

use std::io::Write;
use std::path::Path;

use super::{Env, list, ssh, wait};
use crate::base::cmd::Pipes;
use crate::base::name::quoted;
use crate::base::{Context as _, Error, GuestName, GuestPath, Kind, Result, fs};
use crate::driver::carry::{self, Load};
use crate::driver::{Ability, Driver, Status};
use crate::guest::{self, Record};
use crate::rootfs::{self, Limits, Options, Owners};
use crate::ssh::session::{self, shell_word};

/// More than anybody copies: what a guest sends has an end.
const LIMITS: Limits = Limits { bytes: 4 << 40, entries: 64 << 20 };

/// Brings a file or folder into a guest: into the folder `to` if it is one there, else under that name. Modes, but for
/// set-id bits, and times are kept; it belongs to root in a container, to the guest's user in a machine.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest, file or folder to go to; [`Kind::Exists`] where a folder would be replaced;
/// [`Kind::Failed`] when the guest does not run and that is needed.
pub fn push(env: Env<'_>, from: &Path, name: &GuestName, to: &GuestPath, folders: bool) -> Result<()> {
    let record = guest::get(&env.settings.layout, name)?;
    push_by(env, by(env, &record)?.as_deref(), &record, from, to, folders)
}

/// As [`push`], by the driver, or over SSH.
pub(super) fn push_by(
    env: Env<'_>,
    driver: Option<&dyn Driver>,
    record: &Record,
    from: &Path,
    to: &GuestPath,
    folders: bool,
) -> Result<()> {
    let load = Load::of(from, folders)?;
    match driver {
        Some(driver) => driver.push(&record.plan, &load, to),
        None => {
            let (reader, mut writer) = std::io::pipe().context(|| "making a pipe".into())?;
            let words = carry::push_words(&load.name, to.as_str());
            let run = |input| over_ssh(env, record, to, &words, Box::new(input), &mut std::io::sink());
            carry::at_once(run, reader, move || load.write(&mut writer))
        }
    }
}

/// Brings a file or folder out of a guest: into the folder `to` if it is one, else under that name. Whatever the guest
/// sends, nothing but that one name is made or replaced here, and it belongs to the caller. Modes, but for
/// set-id bits, and times are kept.
///
/// # Errors
/// As [`push`]; [`Kind::Refused`] for what leads elsewhere.
pub fn pull(env: Env<'_>, name: &GuestName, from: &GuestPath, to: &Path, folders: bool) -> Result<()> {
    let record = guest::get(&env.settings.layout, name)?;
    pull_by(env, by(env, &record)?.as_deref(), &record, from, to, folders)
}

/// As [`pull`], by the driver, or over SSH.
pub(super) fn pull_by(
    env: Env<'_>,
    driver: Option<&dyn Driver>,
    record: &Record,
    from: &GuestPath,
    to: &Path,
    folders: bool,
) -> Result<()> {
    let what = from.file_name().ok_or_else(|| Error::usage("the guest's root or home as a whole cannot be copied"))?;
    let to = std::path::absolute(to).context(|| "finding the folder that we are in".into())?;
    let target = if to.is_dir() { to.join(what) } else { to };
    if target.is_dir() {
        return Err(Error::new(Kind::Exists, format!("there is a folder '{}' already", target.display()))
            .hint("folders are not merged: remove it, or give another name"));
    }
    // Beside its place, so that it gets there in one step; closed to others until then.
    let new = tempfile::Builder::new().prefix(fs::TEMPORARY_PREFIX).tempdir_in(fs::folder_of(&target));
    let new = new.map_err(|error| fs::explain(error, "making a folder in", fs::folder_of(&target)))?;
    let (reader, writer) = std::io::pipe().context(|| "making a pipe".into())?;
    let options = Options { owners: Owners::Caller, devices: false, limits: LIMITS };
    let mut to = Watched { to: writer, closed: false };
    let (unpacked, sent) = std::thread::scope(|scope| {
        let unpack = scope.spawn(|| rootfs::unpack_stream(Box::new(reader), new.path(), &options).map(drop));
        let sent = match driver {
            Some(driver) => driver.pull(&record.plan, from, folders, &mut to),
            None => carry::pull_words(from, from.parent(), folders)
                .and_then(|words| over_ssh(env, record, from, &words, Box::new(std::io::empty()), &mut to)),
        };
        let closed = to.closed;
        // Now there is an end to what is unpacked.
        drop(to);
        let unpacked = unpack.join().unwrap_or_else(|_| Err(Error::failed("a worker thread failed")));
        (unpacked, if closed { Ok(()) } else { sent })
    });
    // What nobody took is the unpacking's affair; else whoever sent knows best what went wrong.
    sent.and(unpacked)?;
    let came = new.path().join(what);
    let kind = came.symlink_metadata().map(|meta| meta.file_type());
    let fits = kind.is_ok_and(|kind| kind.is_file() || (kind.is_dir() && folders));
    if !fits || fs::list_dir(new.path())? != [what] {
        return Err(Error::refused(format!("the guest sent something else than {}", quoted(what))));
    }
    match came.is_dir() {
        true => fs::rename_new(&came, &target),
        false => fs::rename(&came, &target),
    }
}

/// A writer that remembers whether the other end was closed.
struct Watched<W> {
    to: W,
    closed: bool,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.to.write(bytes).inspect_err(|error| self.closed |= error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// The driver that does it; `None`: over SSH.
fn by(env: Env<'_>, record: &Record) -> Result<Option<Box<dyn Driver>>> {
    let driver = env.driver(record.driver);
    let capabilities = driver.capabilities();
    match driver.status(&record.plan)? {
        Status::Running => {}
        status if status.is_alive() || capabilities.files_when_stopped != Ability::Yes => {
            return Err(list::not_running(record.name(), status));
        }
        _ => {}
    }
    Ok((capabilities.files == Ability::Yes).then_some(driver))
}

fn over_ssh(
    env: Env<'_>,
    record: &Record,
    path: &GuestPath,
    words: &[String],
    input: Box<dyn std::io::Read + Send>,
    output: &mut dyn Write,
) -> Result<()> {
    let address = list::address(env, record.name())?;
    wait::until_login(env, record.name(), env.settings.defaults.timeout)?;
    // Who its user is may have been found out just now.
    let record = &guest::get(&env.settings.layout, record.name())?;
    let target = ssh::login(env, record, None).at(address);
    let line: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    let mut said = Vec::new();
    let status = session::between(&target, &line.join(" "), Pipes { input, output, errors: &mut said })?;
    carry::ended(status.code(), path, &said)
}
