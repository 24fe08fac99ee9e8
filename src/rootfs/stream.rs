//! An archive as the stream of its uncompressed bytes, of which there is an end.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use crate::base::cmd::{Cmd, Reading};
use crate::base::{ByteSize, Context as _, Error, Kind, Result, fs};

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A squashfs file system.
    Squashfs,
    /// tar, compressed by xz.
    TarXz,
    /// tar, compressed by gzip.
    TarGz,
    /// tar.
    Tar,
}

impl Format {
    /// What it is called among people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Squashfs => "squashfs",
            Format::TarXz => "tar.xz",
            Format::TarGz => "tar.gz",
            Format::Tar => "tar",
        }
    }

    /// As its first bytes say. Compressed data may still be something else than a tar.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let known: [(&[u8], Format); 3] =
            [(b"hsqs", Format::Squashfs), (b"\xfd7zXZ\0", Format::TarXz), (b"\x1f\x8b", Format::TarGz)];
        let found = known.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, format)| *format);
        found.or_else(|| is_tar(head).then_some(Format::Tar))
    }
}

/// Whether a tar begins so (POSIX ustar, and GNU's older form).
pub(super) fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// How much an archive may hold: what is over it is refused before it is written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Entries, those that only describe others included.
    pub entries: u64,
}

impl Default for Limits {
    /// More than any root file system that is published: 64 GiB in four million entries.
    fn default() -> Self {
        Limits { bytes: 64 << 30, entries: 4 << 20 }
    }
}

impl Limits {
    /// All bytes of a tar within the limits: a header an entry, a block of filling, and what may follow the end.
    fn stream(self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(1024)).saturating_add(MAX_TRAILER)
    }
}

/// Most memory that unpacking xz takes: the highest preset needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// What may follow the end of a tar: it is filled up to its record size.
const MAX_TRAILER: u64 = 4 << 20;

enum Source {
    Plain(BufReader<File>),
    Gz(Box<MultiGzDecoder<BufReader<File>>>),
    Xz(Box<XzDecoder<BufReader<File>>>),
    Squashfs(Reading),
    Stream(Box<dyn Read + Send>),
}

/// The uncompressed bytes of an archive.
pub(super) struct Bytes {
    source: Source,
    left: u64,
    limits: Limits,
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bytes").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Bytes {
    /// Opens an archive; its first bytes say what it is.
    ///
    /// # Errors
    /// [`Kind::Refused`] when it is none, [`Kind::Unavailable`] when a squashfs cannot be read here.
    pub(super) fn open(path: &Path, limits: Limits) -> Result<(Self, Format)> {
        let format = Format::of(&head(path)?).ok_or_else(|| {
            Error::refused(format!("'{}' is no archive", path.display()))
                .hint("known are squashfs, and tar by itself or compressed by xz or gzip")
        })?;
        let file = || fs::open(path).map(|file| BufReader::with_capacity(1 << 16, file));
        let source = match format {
            Format::Tar => Source::Plain(file()?),
            Format::TarGz => Source::Gz(Box::new(MultiGzDecoder::new(file()?))),
            Format::TarXz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED);
                let stream = stream.context(|| "starting to unpack".into())?;
                Source::Xz(Box::new(XzDecoder::new_stream(file()?, stream)))
            }
            Format::Squashfs => Source::Squashfs(read_squashfs(path)?),
        };
        Ok((Bytes { source, left: limits.stream(), limits }, format))
    }

    /// A tar that is read as it comes.
    pub(super) fn of_stream(tar: Box<dyn Read + Send>, limits: Limits) -> Self {
        Bytes { source: Source::Stream(tar), left: limits.stream(), limits }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Fills `buffer`; `false` when the stream is at its end.
    ///
    /// # Errors
    /// [`Kind::Refused`] when it ends in the middle, is damaged, or holds more than it may.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.some(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(cut_short()),
                read => filled += read,
            }
        }
        Ok(true)
    }

    /// Reads on, at least one byte unless the stream is at its end.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub(super) fn some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let read = match &mut self.source {
                Source::Plain(source) => source.read(buffer),
                Source::Gz(source) => source.read(buffer),
                Source::Xz(source) => source.read(buffer),
                Source::Squashfs(source) => source.read(buffer),
                Source::Stream(source) => source.read(buffer),
            };
            match read {
                Ok(read) => {
                    self.left = self.left.checked_sub(read as u64).ok_or_else(|| too_much(self.limits))?;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(
                        Error::refused("the archive cannot be read: it is damaged, or cut short").because(error)
                    );
                }
            }
        }
    }

    /// Reads what fills the archive up after its last entry: only then have the checksums of all been seen.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub(super) fn finish(mut self) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        let mut trailer = 0;
        loop {
            let read = self.some(&mut buffer)?;
            trailer += read as u64;
            if trailer > MAX_TRAILER {
                return Err(Error::refused("the archive goes on after its end"));
            }
            if read == 0 {
                break;
            }
        }
        match &mut self.source {
            Source::Squashfs(program) => program.finish().map_err(|error| match error.kind() {
                Kind::Failed => error.with_kind(Kind::Refused),
                _ => error,
            }),
            _ => Ok(()),
        }
    }
}

/// The file's first bytes: enough to tell what it is.
pub(super) fn head(path: &Path) -> Result<Vec<u8>> {
    // Before opening: opening a FIFO would wait for a writer for ever.
    let meta = path.metadata().map_err(|error| fs::explain(error, "reading", path))?;
    if !meta.is_file() {
        return Err(Error::refused(format!("'{}' is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    fs::open(path)?.take(512).read_to_end(&mut bytes).map_err(|error| fs::explain(error, "reading", path))?;
    Ok(bytes)
}

/// A program that writes the file system out as a tar, attributes included. It
/// writes no file: names are checked where those of every tar are.
fn read_squashfs(path: &Path) -> Result<Reading> {
    let path = std::path::absolute(path).context(|| "finding the archive".into())?;
    // With an entry for the root itself.
    Cmd::new("sqfs2tar").args(["--root-becomes", "."]).arg(path).read().map_err(|error| {
        error.hint("squashfs is read by 'sqfs2tar' of the package squashfs-tools-ng; root.tar.xz needs no program")
    })
}

pub(super) fn cut_short() -> Error {
    Error::refused("the archive is cut short")
}

pub(super) fn too_much(limits: Limits) -> Error {
    Error::refused(format!(
        "the archive holds more than the {} in {} entries that it may",
        ByteSize(limits.bytes),
        limits.entries
    ))
}
