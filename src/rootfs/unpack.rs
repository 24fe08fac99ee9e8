//! Unpacking a root file system.

use std::io::{Read, Write as _};
use std::path::Path;

use rustix::fs::FileType;

use super::capability;
use super::entry::{Entries, Entry, EntryKind};
use super::stream::{Bytes, Limits};
use super::tree::{Attributes, Tree};
use crate::base::{Context as _, Error, Kind, Result, interrupt};

/// Bytes written at a time.
const BLOCK: usize = 1 << 18;
/// Bits of a mode that lend a program its owner's rights.
const SET_ID: u32 = 0o6000;

/// Whom the files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Whom the archive says, by number. For a container whose root is the host's. Takes root.
    Kept,
    /// Numbers from 0 to `count`, moved up by `base`: for a container in a
    /// user namespace of that range. Takes root.
    Shifted {
        /// The host's number of the container's root.
        base: u32,
        /// How many there are.
        count: u32,
    },
    /// Whoever unpacks. Set-id bits and capabilities are left out, which would lend the caller's rights.
    Caller,
}

impl Owners {
    /// The host's number of one within; `None` when it is out of the range.
    pub(super) fn of(self, id: u32) -> Option<u32> {
        match self {
            Owners::Shifted { base, count } => (id < count).then(|| base.checked_add(id)).flatten(),
            Owners::Kept | Owners::Caller => Some(id),
        }
    }
}

/// How to unpack.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whom the files belong to.
    pub owners: Owners,
    /// Whether device nodes are made. A container's are made by whoever runs
    /// it, and one on the host's disk opens the host's device to whom its mode
    /// allows. Without this flag, nodes directly in `dev` are passed over:
    /// archives made by debootstrap have `null`, `zero` and the like there,
    /// and every runtime lays its own `dev` over them. All others are refused.
    pub devices: bool,
    /// How much it may hold.
    pub limits: Limits,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Device nodes that were passed over.
    pub passed_over: u64,
}

/// Unpacks the root file system `archive` (squashfs, or tar by itself or
/// compressed by xz or gzip) into the empty folder `into`.
///
/// Names, types, modes, times, owners and the attributes that matter are kept.
/// Nothing outside of the folder is read, written or changed; symbolic links
/// are made as they stand and never followed. The folder's parent must be
/// closed to other users (mode 0700): set-id programs lie in it. Nothing is
/// synced. Ctrl-C ends it between two blocks.
///
/// # Errors
/// [`Kind::Refused`] for an archive that is hostile or damaged, [`Kind::Exists`]
/// when the folder is not empty. The folder then holds a part: remove it.
pub fn unpack(archive: &Path, into: &Path, options: &Options) -> Result<Unpacked> {
    let doing = || format!("unpacking '{}'", archive.display());
    let (bytes, _) = Bytes::open(archive, options.limits).context(doing)?;
    run(bytes, into, options).context(doing)
}

/// As [`unpack`], of a tar that is read as it comes.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_stream(tar: Box<dyn Read + Send>, into: &Path, options: &Options) -> Result<Unpacked> {
    run(Bytes::of_stream(tar, options.limits), into, options)
}

fn run(bytes: Bytes, into: &Path, options: &Options) -> Result<Unpacked> {
    let implied = Attributes { owner: owner(options, (0, 0))?, mode: 0o755, mtime: 0, xattrs: Vec::new() };
    let mut tree = Tree::new(into, implied, options.limits.entries)?;
    let mut entries = Entries::new(bytes);
    let (mut unpacked, mut buffer) = (Unpacked::default(), vec![0; BLOCK]);
    while let Some(entry) = entries.next()? {
        if !one(&mut tree, &mut entries, entry, options, &mut buffer)? {
            unpacked.passed_over += 1;
        }
    }
    (unpacked.entries, unpacked.bytes) = entries.counted();
    // Last: a checksum may still be wrong.
    entries.finish()?;
    tree.finish()?;
    Ok(unpacked)
}

/// `false` when the entry was passed over.
fn one(tree: &mut Tree, entries: &mut Entries, entry: Entry, options: &Options, buffer: &mut [u8]) -> Result<bool> {
    let path = &entry.path;
    let attributes = Attributes {
        owner: owner(options, (entry.uid, entry.gid)).context(|| format!("unpacking {path}"))?,
        mode: if options.owners == Owners::Caller { entry.mode & !SET_ID } else { entry.mode },
        mtime: entry.mtime,
        xattrs: capability::kept(entry.xattrs, options.owners),
    };
    match entry.kind {
        EntryKind::Folder => tree.folder(path, attributes)?,
        EntryKind::Symlink(target) => tree.symlink(path, &target, &attributes)?,
        EntryKind::Hardlink(target) => tree.hardlink(path, &target)?,
        EntryKind::Fifo => tree.node(path, FileType::Fifo, (0, 0), &attributes)?,
        EntryKind::Device { block, major, minor } if options.devices => {
            let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
            tree.node(path, kind, (major, minor), &attributes)?;
        }
        EntryKind::Device { .. } if path.is_in_dev() => return Ok(false),
        EntryKind::Device { .. } => {
            return Err(Error::refused(format!("the archive has the device node {path}"))
                .hint("device nodes are no part of a container's image; those in /dev are passed over"));
        }
        EntryKind::File => tree.file(path, &attributes, |file| {
            loop {
                interrupt::check()?;
                let read = entries.content(buffer)?;
                if read == 0 {
                    return Ok(());
                }
                let written = file.write_all(&buffer[..read]);
                written.map_err(|error| Error::failed(format!("writing {path}")).because(error))?;
            }
        })?,
    }
    Ok(true)
}

fn owner(options: &Options, (uid, gid): (u32, u32)) -> Result<Option<(u32, u32)>> {
    if options.owners == Owners::Caller {
        return Ok(None);
    }
    match (options.owners.of(uid), options.owners.of(gid)) {
        (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
        _ => Err(Error::new(Kind::Refused, format!("its owner {uid}:{gid} is out of the container's range"))
            .hint("give the container a larger range of users")),
    }
}
