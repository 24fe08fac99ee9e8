//! Writing beneath one folder, wherever an archive would like to write.
//!
//! Every parent is opened by the kernel beneath the folder and through no
//! symbolic link (openat2(2)); every new name is made in it, never opened
//! through. So what lies outside cannot be reached, whatever lies inside.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::path::EntryPath;
use crate::base::{Error, Kind, Result};

/// What is set at an entry once it is there.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    /// `None`: it stays the caller's.
    pub owner: Option<(u32, u32)>,
    pub mode: u32,
    pub mtime: i64,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// A folder that is being filled.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The folder that was used last: entries come folder by folder.
    last: Option<(EntryPath, OwnedFd)>,
    /// What folders get at the end: until then we write into them.
    folders: BTreeMap<EntryPath, Attributes>,
    /// For folders that the archive does not mention.
    implied: Attributes,
    /// How many names may still be made: the archive's own, and those of folders that it does not mention.
    left: u64,
    /// Bytes that may still be kept of folders' paths.
    memory: usize,
}

/// Most bytes kept of folders' paths: a hundred times what large trees have.
const MEMORY: usize = 256 << 20;

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Tree {
    /// A tree of at most so many names, whose folders, the root among them, are as `implied` where an archive does not mention them.
    ///
    /// # Errors
    /// [`Kind::Exists`] unless `root` is an empty folder.
    pub(super) fn new(root: &Path, implied: Attributes, limit: u64) -> Result<Self> {
        let wrong = |error: Errno| crate::base::fs::explain(error.into(), "opening the folder", root);
        let fd = openat(CWD, root, FOLDER | OFlags::RDONLY, Mode::empty()).map_err(wrong)?;
        let names = std::fs::read_dir(root).map_err(|error| crate::base::fs::explain(error, "reading", root))?.count();
        if names > 0 {
            return Err(Error::new(Kind::Exists, format!("the folder '{}' is not empty", root.display())));
        }
        let folders = BTreeMap::from([(EntryPath::default(), implied.clone())]);
        Ok(Tree { root: fd, last: None, folders, implied, left: limit, memory: MEMORY })
    }

    /// Makes a folder, or says more of one that is there. Its extended
    /// attributes are left: they would have to be remembered, and capabilities are those of programs.
    pub(super) fn folder(&mut self, path: &EntryPath, attributes: Attributes) -> Result<()> {
        if !path.is_root() {
            let parent = self.parent(path)?;
            match mkdirat(parent, path.name(), Mode::RWXU) {
                Err(Errno::EXIST) if is_folder(parent, path.name()) => {}
                made => made.map_err(|error| failed(path, error))?,
            }
        }
        let attributes = Attributes { xattrs: Vec::new(), ..attributes };
        if self.folders.insert(path.clone(), attributes).is_none() {
            self.memory = self.memory.checked_sub(path.bytes().len()).ok_or_else(too_many)?;
        }
        Ok(())
    }

    /// Makes a file, whose content `fill` writes.
    pub(super) fn file(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        fill: impl FnOnce(&mut File) -> Result<()>,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.parent(path)?, path.name(), flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(fd.map_err(|error| failed(path, error))?);
        fill(&mut file)?;
        set(&file, attributes).map_err(|error| failed(path, error))
    }

    /// Makes a symbolic link; where it leads to is not looked at.
    pub(super) fn symlink(&mut self, path: &EntryPath, target: &[u8], attributes: &Attributes) -> Result<()> {
        let parent = self.parent(path)?;
        symlinkat(target, parent, path.name()).map_err(|error| failed(path, error))?;
        set_name(parent, path.name(), attributes, false).map_err(|error| failed(path, error))
    }

    /// Gives a file of the tree another name.
    pub(super) fn hardlink(&mut self, path: &EntryPath, target: &EntryPath) -> Result<()> {
        let absent = || {
            Error::refused(format!("the archive's hard link {path} leads to {target}, which is no file of it so far"))
        };
        if target.is_root() {
            return Err(absent());
        }
        let from = self.open(&target.parent()).map_err(|error| absent().because(error))?;
        match statat(&from, target.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => {}
            _ => return Err(absent()),
        }
        let parent = self.parent(path)?;
        // Without flags a symbolic link is linked itself, not what it leads to (linkat(2)).
        linkat(from, target.name(), parent, path.name(), AtFlags::empty()).map_err(|error| failed(path, error))
    }

    /// Makes a FIFO, or a device node with these numbers.
    pub(super) fn node(&mut self, path: &EntryPath, kind: FileType, at: (u32, u32), own: &Attributes) -> Result<()> {
        let parent = self.parent(path)?;
        mknodat(parent, path.name(), kind, Mode::RUSR | Mode::WUSR, makedev(at.0, at.1))
            .and_then(|()| set_name(parent, path.name(), own, true))
            .map_err(|error| failed(path, error))
    }

    /// Gives the folders what they were said to have, the innermost first.
    pub(super) fn finish(mut self) -> Result<()> {
        self.last = None;
        while let Some((path, attributes)) = self.folders.pop_last() {
            let fd = self.open(&path).map_err(|error| failed(&path, error))?;
            set(&fd, &attributes).map_err(|error| failed(&path, error))?;
        }
        Ok(())
    }

    /// A folder of the tree.
    fn open(&self, path: &EntryPath) -> Result<OwnedFd, Errno> {
        let name = if path.is_root() { b"." } else { path.bytes() };
        loop {
            match openat2(&self.root, name, FOLDER | OFlags::RDONLY, Mode::empty(), BENEATH) {
                // Somebody renamed something elsewhere meanwhile: ask again (openat2(2)).
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// The folder that an entry goes into, made where the archive did not mention it.
    fn parent(&mut self, path: &EntryPath) -> Result<&OwnedFd> {
        if path.is_root() {
            return Err(Error::refused("the archive's root is no folder"));
        }
        self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        let parent = path.parent();
        if self.last.as_ref().is_none_or(|(last, _)| *last != parent) {
            let fd = match self.open(&parent) {
                Err(Errno::NOENT) => {
                    self.folder(&parent, self.implied.clone())?;
                    self.open(&parent)
                }
                other => other,
            };
            self.last = Some((parent, fd.map_err(|error| through(path, error))?));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd),
            None => Err(Error::failed("a folder that was opened is not there")),
        }
    }
}

fn too_many() -> Error {
    Error::refused("the archive holds more folders and files than it may")
}

fn is_folder(parent: impl AsFd, name: &[u8]) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// The owner first: changing it takes set-id bits and capabilities away (chown(2)).
fn set(fd: impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    if let Some((uid, gid)) = attributes.owner {
        fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    fchmod(&fd, Mode::from_raw_mode(attributes.mode))?;
    for (name, value) in &attributes.xattrs {
        match fsetxattr(&fd, name.as_str(), value, XattrFlags::empty()) {
            // A file system without them: what only describes is not missed, a capability is.
            Err(Errno::OPNOTSUPP) if name.starts_with("user.") => {}
            set => set?,
        }
    }
    futimens(&fd, &times(attributes))
}

/// As [`set`], for what cannot be opened.
fn set_name(parent: impl AsFd, name: &[u8], attributes: &Attributes, has_mode: bool) -> Result<(), Errno> {
    if let Some((uid, gid)) = attributes.owner {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if has_mode {
        // The name is one that was made just now, as something that is no link.
        rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
    }
    utimensat(&parent, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(attributes: &Attributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn failed(path: &EntryPath, error: Errno) -> Error {
    if error == Errno::EXIST {
        return Error::refused(format!("the archive has {path} twice"));
    }
    let ours = Error::failed(format!("unpacking {path}")).because(std::io::Error::from(error));
    match error {
        Errno::PERM | Errno::ACCESS => ours.hint("owners and device nodes are set by root only"),
        Errno::NOSPC | Errno::DQUOT => ours.hint("the disk is full"),
        _ => ours,
    }
}

fn through(path: &EntryPath, error: Errno) -> Error {
    match error {
        Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
            Error::refused(format!("the archive's entry {path} would go through something that is no folder of it"))
        }
        Errno::NOSYS => Error::new(Kind::Unsupported, "this kernel cannot keep an archive in its place")
            .hint("openat2(2) is in Linux 5.6 and newer"),
        other => failed(path, other),
    }
}
