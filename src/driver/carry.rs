//! Files on their way into a guest and out of it: as tars, by a shell and `tar` in the guest where its backend has no
//! way of its own.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::base::{BackendName, Context as _, Error, GuestPath, Kind, Result, fs, interrupt};

/// What comes and goes without SSH.
pub trait Content {
    /// Writes the file or folder at `path` of a guest as a tar into `to`; its entries lie beneath the path's last part.
    /// A link at the path itself is followed, those in a folder stay links.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when nothing is there, [`Kind::Usage`] for a folder unless `folders`,
    /// [`Kind::Unsupported`] without [`super::Capabilities::files`]; what the backend said.
    fn pull(&self, plan: &super::GuestPlan, path: &GuestPath, folders: bool, to: &mut dyn Write) -> Result<()>;

    /// Brings a file or folder into a guest: into the folder `to` if it is one, else as `to`. It belongs to root there,
    /// or to the guest's user. A file that is there is replaced.
    ///
    /// # Errors
    /// [`Kind::NotFound`] without a folder that it could go to, [`Kind::Exists`] where a folder is already,
    /// [`Kind::Unsupported`] without [`super::Capabilities::files`]; what the backend said.
    fn push(&self, plan: &super::GuestPlan, what: &Load, to: &GuestPath) -> Result<()>;

    /// Writes the root of a guest that does not run as a tar into `to`: beneath its folder `rootfs`, with owners as the
    /// guest sees them. Other entries may be there.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without [`super::Capabilities::publish`]; what the backend said.
    fn pack_root(&self, plan: &super::GuestPlan, to: &mut dyn Write) -> Result<()>;

    /// Writes a guest that does not run as its backend's own backup.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without [`super::Capabilities::export`]; what the backend said.
    fn export(&self, plan: &super::GuestPlan, to: &mut dyn Write) -> Result<()>;

    /// As [`super::Driver::create`], of such a backup: the file from where it stands to its end.
    ///
    /// # Errors
    /// As [`export`](Self::export), and [`super::Driver::create`].
    fn import(&self, plan: &super::GuestPlan, from: File) -> Result<()>;

    /// Gives the guest's daemon an image, metadata and root, to keep under a name, and returns its fingerprint.
    ///
    /// # Errors
    /// [`Kind::Exists`] for a name that is taken, [`Kind::Unsupported`] without [`super::Capabilities::daemon_images`];
    /// what the daemon said.
    fn keep_image(&self, plan: &super::GuestPlan, metadata: &Path, root: &Path, alias: &BackendName) -> Result<String>;
}

/// What an entry of a [`Load`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A folder.
    Folder,
    /// A file, with its content here.
    File(PathBuf),
    /// A link, as it stands.
    Link(String),
}

/// One entry of a [`Load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it goes beneath the load's first entry; empty for that itself.
    pub path: String,
    /// What it is.
    pub kept: Kept,
    /// Permission bits, without set-id bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

/// A file or a folder of ours on its way into a guest. A folder comes before what is in it.
#[derive(Clone, Debug)]
pub struct Load {
    /// What it is called.
    pub name: String,
    /// It, and what is in it.
    pub items: Vec<Item>,
}

impl Load {
    /// Looks at a file or folder. A link at the path itself is followed, those in a folder stay links.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a folder unless `folders`, for names that are not UTF-8, and for what is neither file, folder nor link.
    pub fn of(path: &Path, folders: bool) -> Result<Self> {
        let whole = path.canonicalize().map_err(|error| fs::explain(error, "looking for", path))?;
        let named = path.file_name().or(whole.file_name());
        let name = named.and_then(|name| name.to_str()).ok_or_else(|| unfit(path))?.to_owned();
        if whole.is_dir() && !folders {
            return Err(is_folder(&path.display().to_string()));
        }
        let mut load = Load { name, items: Vec::new() };
        load.add(&whole, String::new())?;
        Ok(load)
    }

    fn add(&mut self, from: &Path, path: String) -> Result<()> {
        interrupt::check()?;
        let reading = |error| fs::explain(error, "reading", from);
        let meta = from.symlink_metadata().map_err(reading)?;
        let kept = match meta.file_type() {
            kind if kind.is_dir() => Kept::Folder,
            kind if kind.is_file() => Kept::File(from.to_owned()),
            kind if kind.is_symlink() => {
                let target = from.read_link().map_err(reading)?;
                Kept::Link(target.to_str().ok_or_else(|| unfit(from))?.to_owned())
            }
            _ => {
                return Err(Error::usage(format!("'{}' is neither file nor folder nor link", from.display())));
            }
        };
        let is_folder = kept == Kept::Folder;
        let mtime = u64::try_from(meta.mtime()).unwrap_or(0);
        self.items.push(Item { path: path.clone(), kept, mode: meta.permissions().mode() & 0o1777, mtime });
        if is_folder {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(from).map_err(reading)? {
                let name = entry.map_err(reading)?.file_name().into_string();
                names.push(name.map_err(|name| unfit(&from.join(name)))?);
            }
            names.sort();
            for name in names {
                let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                self.add(&from.join(&name), below)?;
            }
        }
        Ok(())
    }

    /// Writes it as a tar, in which all belongs to root.
    ///
    /// # Errors
    /// When a file cannot be read, or `to` not be written.
    pub fn write(&self, to: &mut dyn Write) -> Result<()> {
        let mut archive = Builder::new(to);
        let filled = self.fill(&mut archive).and_then(|()| archive.finish().context(|| "packing files".into()));
        if filled.is_err() {
            // It would end as if it were whole.
            std::mem::forget(archive);
        }
        filled
    }

    fn fill(&self, archive: &mut Builder<&mut dyn Write>) -> Result<()> {
        for item in &self.items {
            interrupt::check()?;
            let path = if item.path.is_empty() { self.name.clone() } else { format!("{}/{}", self.name, item.path) };
            let mut header = header(&item.kept, item.mode, item.mtime);
            let added = match &item.kept {
                Kept::Folder => archive.append_data(&mut header, format!("{path}/"), std::io::empty()),
                Kept::Link(target) => archive.append_link(&mut header, path, target),
                Kept::File(from) => {
                    let file = fs::open(from)?;
                    let length = file.metadata().map_err(|error| fs::explain(error, "reading", from))?.len();
                    header.set_size(length);
                    archive.append_data(&mut header, path, Exactly { file, left: length })
                }
            };
            added.context(|| "packing files".into())?;
        }
        Ok(())
    }
}

/// The head of an entry; a file's size is still to be set.
pub(super) fn header(kept: &Kept, mode: u32, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(match kept {
        Kept::Folder => EntryType::Directory,
        Kept::File(_) => EntryType::Regular,
        Kept::Link(_) => EntryType::Symlink,
    });
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// As much of a file as was announced: one that grows meanwhile is cut, one that shrinks is an error.
struct Exactly {
    file: File,
    left: u64,
}

impl std::io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(std::io::Error::other("a file became shorter while it was read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn unfit(path: &Path) -> Error {
    Error::usage(format!("{path:?} has no name that a guest could be given: it is not UTF-8"))
}

/// A folder, where a file was expected.
#[must_use]
pub fn is_folder(what: &str) -> Error {
    Error::usage(format!("'{what}' is a folder")).hint("'-r' copies folders")
}

/// What the scripts end with.
const NOT_FOUND: i32 = 44;
const IS_FOLDER: i32 = 45;
const EXISTS: i32 = 46;

/// Writes `$1`/`$2` as a tar; a link is followed. With `$3` also a folder.
const PULL: &str = r#"
cd "$1" 2>/dev/null && [ -e "./$2" ] || exit 44
[ ! -d "./$2" ] || [ -n "$3" ] || exit 45
if [ -d "./$2" ]; then exec tar -cf - "./$2/."; fi
exec tar -chf - "./$2"
"#;

/// Lays what the tar has under the name `$2` into the folder `$1`, or as `$1`.
const PUSH: &str = r#"
if [ -d "$1" ]; then into=$1 name=$2; else
    case $1 in
        */*) into=${1%/*}/ name=${1##*/};;
        *) into=. name=$1;;
    esac
fi
[ -d "$into" ] || exit 44
[ ! -d "$into/$name" ] || exit 46
new=$(mktemp -d -p "$into") || exit 1
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
(cd "$new" && tar -xpf -) && mv -f "$new/$2" "$into/$name"
"#;

/// The words by which a guest writes what is at `path`.
///
/// # Errors
/// [`Kind::Usage`] for a path without a name.
pub fn pull_words(path: &GuestPath, parent: &str, folders: bool) -> Result<Vec<String>> {
    let name = path.file_name().ok_or_else(|| Error::usage("the guest's root or home as a whole cannot be copied"))?;
    let folders = if folders { "folders" } else { "" };
    Ok(["sh", "-c", PULL, "virga", parent, name, folders].map(str::to_owned).to_vec())
}

/// The words by which a guest reads something of this name.
#[must_use]
pub fn push_words(name: &str, to: &str) -> Vec<String> {
    ["sh", "-c", PUSH, "virga", to, name].map(str::to_owned).to_vec()
}

/// Runs what reads a pipe on a thread of its own while `write` fills it; where both fail, the reader knows why.
///
/// # Errors
/// What either failed with.
pub fn at_once<R: Send>(
    read: impl FnOnce(R) -> Result<()> + Send,
    pipe: R,
    write: impl FnOnce() -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(pipe));
        let written = write();
        let read = reader.join().unwrap_or_else(|_| Err(Error::failed("a worker thread failed")));
        read.and(written)
    })
}

/// What a script's end means.
///
/// # Errors
/// Unless it ended with 0; `said` is what it wrote on its standard error.
pub fn ended(code: Option<i32>, path: &GuestPath, said: &[u8]) -> Result<()> {
    match code {
        Some(0) => Ok(()),
        Some(NOT_FOUND) => Err(not_found(path)),
        Some(IS_FOLDER) => Err(is_folder(path.as_str())),
        Some(EXISTS) => Err(exists(path)),
        _ => Err(Error::failed("the guest could not do it").because(crate::base::cmd::last_words(said))),
    }
}

/// Nothing is at the path, or no folder for it.
#[must_use]
pub fn not_found(path: &GuestPath) -> Error {
    Error::not_found(format!("the guest has no '{path}'"))
}

/// A folder is where something was to go.
#[must_use]
pub fn exists(path: &GuestPath) -> Error {
    Error::new(Kind::Exists, format!("in the guest's '{path}' there is a folder of this name already"))
        .hint("folders are not merged: remove it there, or give another name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cmd::{Cmd, Pipes};

    /// The scripts, here instead of in a guest.
    fn run(words: &[String], input: Vec<u8>) -> (Option<i32>, Vec<u8>) {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let pipes = Pipes { input: Box::new(std::io::Cursor::new(input)), output: &mut output, errors: &mut errors };
        let status = Cmd::new(&words[0]).args(&words[1..]).pump(pipes, |_| ()).unwrap();
        (status.code(), output)
    }

    #[test]
    fn the_scripts_carry_files_and_folders_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| at(name).display().to_string();
        fs::create_dir(&at("from/-r sub")).unwrap();
        fs::create_dir(&at("guest")).unwrap();
        fs::write_new(&at("from/-r sub/it's"), b"one", 0o640).unwrap();
        std::os::unix::fs::symlink("/nowhere", at("from/link")).unwrap();
        std::os::unix::fs::symlink("from/-r sub/it's", at("to file")).unwrap();

        let push = |from: &str, to: &str| {
            let load = Load::of(&at(from), true).unwrap();
            let mut packed = Vec::new();
            load.write(&mut packed).unwrap();
            run(&push_words(&load.name, &text(to)), packed).0
        };
        assert_eq!(push("from", "guest"), Some(0));
        assert_eq!(push("from", "guest"), Some(EXISTS));
        assert_eq!(push("from", "guest/other"), Some(0));
        assert_eq!(push("to file", "guest/-r"), Some(0));
        assert_eq!(push("to file", "nowhere/file"), Some(NOT_FOUND));
        assert_eq!(fs::list_dir(&at("guest")).unwrap(), ["-r", "from", "other"]);
        assert_eq!(at("guest/other/link").read_link().unwrap(), Path::new("/nowhere"));
        let laid = at("guest/from/-r sub/it's");
        assert_eq!((fs::read(&laid, 9).unwrap(), laid.metadata().unwrap().mode() & 0o7777), (b"one".to_vec(), 0o640));

        let pull = |path: &str, folders: bool| {
            let path: GuestPath = path.parse().unwrap();
            run(&pull_words(&path, path.parent(), folders).unwrap(), Vec::new())
        };
        let list = |packed: Vec<u8>| {
            let mut archive = tar::Archive::new(packed.as_slice());
            let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(list(pull(&text("guest/-r"), false).1), ["./-r"]);
        assert_eq!(pull(&text("guest/from"), false).0, Some(IS_FOLDER));
        assert_eq!(pull(&text("guest/none"), false).0, Some(NOT_FOUND));
        assert!(list(pull(&text("guest/from"), true).1).contains(&"./from/./-r sub/it's".to_owned()));
        assert!(pull_words(&"/".parse().unwrap(), "/", true).is_err());
        assert_eq!(Load::of(&at("from"), false).unwrap_err().kind(), Kind::Usage);
    }
}
