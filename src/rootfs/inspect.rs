//! What a root file system is, without unpacking it.

use std::io::Read as _;
use std::path::Path;

use super::entry::{Entries, EntryKind};
use super::stream::{Bytes, Format, Limits, head, is_tar};
use crate::base::{Context as _, Error, Result, fs};

/// What a root file system's archive says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// How it is packed.
    pub format: Format,
    /// When the newest of it was made, in seconds since 1970: of the same
    /// archive always the same.
    pub newest: i64,
}

/// What kind of archive a file is; `None` when it is none, and so may be a
/// disk image. Reads its beginning.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] when it is absent, [`crate::base::Kind::Refused`] when it is no regular file.
pub fn recognise(path: &Path) -> Result<Option<Format>> {
    match Format::of(&head(path)?) {
        Some(format @ (Format::TarXz | Format::TarGz)) => {
            let (mut bytes, _) = Bytes::open(path, Limits { bytes: 1 << 20, entries: 1 })?;
            let mut first = [0; 512];
            // Whatever is damaged is left to whoever looks closer.
            let tar = bytes.fill(&mut first).unwrap_or(false) && is_tar(&first);
            Ok(tar.then_some(format))
        }
        other => Ok(other),
    }
}

/// Checks that a file can be a container's root file system. A tar is read
/// whole: every name in it is one that may be unpacked, and its checksums are
/// right. Of a squashfs the superblock is read.
///
/// # Errors
/// [`crate::base::Kind::Refused`] with the reason.
pub fn inspect(path: &Path, limits: Limits) -> Result<RootFacts> {
    let facts = match recognise(path)? {
        Some(Format::Squashfs) => squashfs(path),
        _ => tar(path, limits),
    };
    facts.context(|| format!("checking the root file system '{}'", path.display()))
}

fn tar(path: &Path, limits: Limits) -> Result<RootFacts> {
    let (bytes, format) = Bytes::open(path, limits)?;
    let mut entries = Entries::new(bytes);
    let (mut newest, mut has_programs) = (0, false);
    while let Some(entry) = entries.next()? {
        let name = entry.path.bytes();
        if name == b"metadata.yaml" {
            return Err(Error::refused("it is a metadata archive, or holds one")
                .hint("the root file system comes first, its metadata after --metadata"));
        }
        has_programs |= [&b"bin"[..], b"usr/bin", b"sbin", b"nix", b"usr"].contains(&name)
            && matches!(entry.kind, EntryKind::Folder | EntryKind::Symlink(_));
        newest = newest.max(entry.mtime);
    }
    entries.finish()?;
    if !has_programs {
        return Err(Error::refused("it holds no root file system: there is neither /usr nor /bin in it")
            .hint("pack it from its own root: tar -C TREE --numeric-owner -cJf root.tar.xz ."));
    }
    Ok(RootFacts { format, newest })
}

/// Fields of a superblock, all little-endian: when it was made at 8, the
/// version at 28 and 30, and the length at 40.
fn squashfs(path: &Path) -> Result<RootFacts> {
    let mut block = Vec::new();
    let mut file = fs::open(path)?;
    file.by_ref().take(96).read_to_end(&mut block).map_err(|error| fs::explain(error, "reading", path))?;
    let size = file.metadata().map_err(|error| fs::explain(error, "reading", path))?.len();
    let number = |at: usize, bytes: usize| {
        block.get(at..at + bytes).map(|field| field.iter().rev().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)))
    };
    let (Some(made), Some(version), Some(length)) = (number(8, 4), number(28, 2), number(40, 8)) else {
        return Err(Error::refused("it ends before its superblock does"));
    };
    if version != 4 || length > size {
        return Err(Error::refused("it is no whole squashfs of version 4"));
    }
    Ok(RootFacts { format: Format::Squashfs, newest: i64::try_from(made).unwrap_or(0) })
}
