//! A tar, entry by entry (POSIX pax and GNU's extensions), every field checked.
//!
//! The headers of extensions are read here rather than by the library that
//! knows their fields: it takes as much memory for a name as an archive asks for.

use tar::{EntryType, Header};

use super::path::{EntryPath, LONGEST, shown};
use super::stream::{Bytes, cut_short, too_much};
use crate::base::{ByteSize, Context as _, Error, Result, interrupt};

/// Bytes of a header, and what everything is filled up to.
const BLOCK: usize = 512;
/// Largest header of an extension: attributes of a file are at most 64 KiB each.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    Folder,
    /// Its content is read from [`Entries::content`].
    File,
    /// Where it points, as it stands there.
    Symlink(Vec<u8>),
    /// Another entry of the archive.
    Hardlink(EntryPath),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// An entry; its content follows.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub path: EntryPath,
    pub kind: EntryKind,
    /// Permission bits, set-id bits included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// The entries of an archive, in its order.
#[derive(Debug)]
pub(super) struct Entries {
    bytes: Bytes,
    /// Content of the current entry that was not read yet, and what fills it up.
    content: u64,
    filling: u64,
    seen: u64,
    total: u64,
}

/// What headers of extensions say of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Entries {
    pub(super) fn new(bytes: Bytes) -> Self {
        Entries { bytes, content: 0, filling: 0, seen: 0, total: 0 }
    }

    /// Entries and bytes of content so far.
    pub(super) fn counted(&self) -> (u64, u64) {
        (self.seen, self.total)
    }

    /// The next entry. What was not read of the last one's content is passed over.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] for whatever is no sound entry, or too much.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            interrupt::check()?;
            self.pass()?;
            let mut header = Header::new_old();
            if !self.bytes.fill(header.as_mut_bytes())? {
                return Err(cut_short());
            }
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            self.count()?;
            check_sum(&header)?;
            let size = header.entry_size().map_err(damaged)?;
            match header.entry_type() {
                EntryType::GNULongName => extension.path = Some(self.text(size)?),
                EntryType::GNULongLink => extension.link = Some(self.text(size)?),
                EntryType::XHeader => extension.read(&self.extension(size)?)?,
                // Comments of whoever packed it; defaults for entries are not used by anyone who packs roots.
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                _ => return self.entry(&header, extension).map(Some),
            }
        }
    }

    /// Reads on in the current entry's content; 0 at its end.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when the archive ends before.
    pub(super) fn content(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match self.bytes.some(&mut buffer[..wanted])? {
            0 => Err(cut_short()),
            read => {
                self.content -= read as u64;
                Ok(read)
            }
        }
    }

    /// How much of the current entry's content was not read yet.
    pub(super) fn left(&self) -> u64 {
        self.content
    }

    /// The current entry's whole content.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when it is larger than `limit`.
    pub(super) fn whole(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.content > limit {
            return Err(Error::refused(format!("an entry of the archive is larger than {}", ByteSize(limit))));
        }
        let mut bytes = vec![0; usize::try_from(self.content).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.content(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    /// Reads the rest, so that all checksums have been seen.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when one is wrong.
    pub(super) fn finish(self) -> Result<()> {
        self.bytes.finish()
    }

    fn count(&mut self) -> Result<()> {
        self.seen += 1;
        if self.seen > self.bytes.limits().entries { Err(too_much(self.bytes.limits())) } else { Ok(()) }
    }

    fn pass(&mut self) -> Result<()> {
        let mut buffer = vec![0; if self.content + self.filling > 0 { 1 << 16 } else { 0 }];
        while self.content > 0 {
            interrupt::check()?;
            self.content(&mut buffer)?;
        }
        self.content = std::mem::take(&mut self.filling);
        while self.content > 0 {
            self.content(&mut buffer)?;
        }
        Ok(())
    }

    /// Says that `size` bytes of content follow.
    fn begin(&mut self, size: u64) {
        self.content = size;
        self.filling = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        self.begin(size);
        self.whole(LARGEST_EXTENSION)
    }

    /// A long name: it ends with a zero.
    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut text = self.extension(size)?;
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        Ok(text)
    }

    fn entry(&mut self, header: &Header, extension: Extension) -> Result<Entry> {
        let name = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = EntryPath::parse(&name)?;
        let link = extension.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let kind = kind(header, &path, &name, link.unwrap_or_default())?;
        let size = extension.size.map_or_else(|| header.entry_size(), Ok).map_err(damaged)?;
        if size > 0 && kind != EntryKind::File {
            // Some write the size of what a hard link leads to; nothing follows then.
            if !matches!(kind, EntryKind::Hardlink(_)) {
                return Err(Error::refused(format!("the archive's entry {path} has content, but is no file")));
            }
        } else {
            self.total = self.total.saturating_add(size);
            if self.total > self.bytes.limits().bytes {
                return Err(too_much(self.bytes.limits()));
            }
            self.begin(size);
        }
        let id = |id: u64| {
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
                Error::refused(format!("the archive's entry {path} belongs to nobody: {id} is no owner"))
            })
        };
        Ok(Entry {
            mode: header.mode().map_err(damaged)? & 0o7777,
            uid: id(extension.uid.map_or_else(|| or_none(&header.as_old().uid, header.uid()), Ok)?)?,
            gid: id(extension.gid.map_or_else(|| or_none(&header.as_old().gid, header.gid()), Ok)?)?,
            mtime: extension.mtime.unwrap_or_else(|| header.mtime().ok().and_then(|s| s.try_into().ok()).unwrap_or(0)),
            xattrs: extension.xattrs,
            path,
            kind,
        })
    }
}

fn kind(header: &Header, path: &EntryPath, name: &[u8], link: Vec<u8>) -> Result<EntryKind> {
    Ok(match header.entry_type() {
        EntryType::Directory => EntryKind::Folder,
        // How folders were written before there was a type for them.
        EntryType::Regular if name.ends_with(b"/") => EntryKind::Folder,
        EntryType::Regular | EntryType::Continuous => EntryKind::File,
        EntryType::Symlink => {
            if link.is_empty() || link.len() > LONGEST || link.contains(&0) {
                return Err(Error::refused(format!("the archive's symbolic link {path} leads nowhere")));
            }
            EntryKind::Symlink(link)
        }
        EntryType::Link => EntryKind::Hardlink(
            EntryPath::parse(&link).context(|| format!("the archive's hard link {path} leads out of it"))?,
        ),
        EntryType::Fifo => EntryKind::Fifo,
        device @ (EntryType::Char | EntryType::Block) => {
            // Where POSIX and GNU have them.
            let (major, minor) = (&header.as_bytes()[329..337], &header.as_bytes()[337..345]);
            EntryKind::Device {
                block: device == EntryType::Block,
                major: or_none(major, header.device_major().map(Option::unwrap_or_default))?,
                minor: or_none(minor, header.device_minor().map(Option::unwrap_or_default))?,
            }
        }
        other => {
            let (letter, error) = (shown(&[other.as_byte()]), "which is not known in a root file system");
            return Err(Error::refused(format!("the archive's entry {path} is of type {letter}, {error}"))
                .hint("pack it anew with 'tar --format=pax', without --sparse"));
        }
    })
}

impl Extension {
    /// Records of the form `LENGTH KEY=VALUE\n`; values may hold anything (POSIX, pax).
    fn read(&mut self, mut bytes: &[u8]) -> Result<()> {
        let wrong = || Error::refused("the archive has an extended header that makes no sense");
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length: usize =
                std::str::from_utf8(&bytes[..blank]).ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            let record =
                bytes.get(blank + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (std::str::from_utf8(&record[..equals]).map_err(|_| wrong())?, &record[equals + 1..]);
            self.set(key, value).ok_or_else(wrong)??;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// `None` when the value is none of its kind.
    fn set(&mut self, key: &str, value: &[u8]) -> Option<Result<()>> {
        let text = || std::str::from_utf8(value).ok();
        match key {
            "path" => self.path = Some(value.to_owned()),
            "linkpath" => self.link = Some(value.to_owned()),
            "size" => self.size = Some(text()?.parse().ok()?),
            "uid" => self.uid = Some(text()?.parse().ok()?),
            "gid" => self.gid = Some(text()?.parse().ok()?),
            "mtime" => self.mtime = Some(text()?.split('.').next()?.parse().ok()?),
            _ if key.starts_with("GNU.sparse.") => {
                return Some(Err(
                    Error::refused("the archive has sparse files").hint("pack it anew with tar, without --sparse")
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    self.xattrs.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        Some(Ok(()))
    }
}

/// The sum over a header's bytes, its own field taken as blanks (POSIX, ustar).
fn check_sum(header: &Header) -> Result<()> {
    let bytes = header.as_bytes();
    let sum = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    if header.cksum().is_ok_and(|said| said == sum) {
        return Ok(());
    }
    Err(Error::refused("the archive is no tar, or is damaged: a header's checksum is wrong"))
}

/// A number of a header; some leave the field empty for none.
fn or_none<T: Default>(field: &[u8], number: std::io::Result<T>) -> Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { number.map_err(damaged) }
}

fn damaged(error: std::io::Error) -> Error {
    Error::refused("the archive has a header that makes no sense").because(error)
}
