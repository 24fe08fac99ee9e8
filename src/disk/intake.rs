//! The check that every image passes before any other program opens it.
//!
//! An image is untrusted input: it may name files of the host for QEMU to
//! read (backing file, external data file), be of another format than its
//! stream says, or hold tables made to exhaust memory. So the format is
//! settled here from the bytes, by a parser of our own that reads a bounded
//! part and follows no name, and later always passed on explicitly.

mod magic;
mod qcow2;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{MAX_VIRTUAL_SIZE, SECTOR};
use crate::base::plan::DiskFormat;
use crate::base::{ByteSize, Context as _, Error, Result, fs};

/// What an accepted image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its format, to be passed to whatever opens it.
    pub format: DiskFormat,
    /// Size of the disk that a guest sees, in bytes; a multiple of 512.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
}

/// Checks the image at `path` and says what it is. `claimed` is the format
/// that its stream or the user states; an image of another format is refused.
///
/// Accepted are qcow2 images (versions 2 and 3) that depend on no other file
/// and whose tables lie inside the file, and raw disks with an MBR or GPT.
/// Reads headers and tables, never the data; writes nothing, takes no lock.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind::Refused) with the reason; not found or
/// failed when the file cannot be read.
pub fn inspect(path: &Path, claimed: Option<DiskFormat>) -> Result<ImageFacts> {
    check(path, claimed).context(|| format!("checking the image '{}'", path.display()))
}

fn check(path: &Path, claimed: Option<DiskFormat>) -> Result<ImageFacts> {
    // Before opening: opening a FIFO would wait for a writer for ever.
    let metadata = path.metadata().map_err(|error| fs::explain(error, "reading", path))?;
    if !metadata.is_file() {
        return Err(Error::refused("it is not a regular file"));
    }
    let file = fs::open(path)?;
    let file_size = file.metadata().map_err(|error| fs::explain(error, "reading", path))?.len();
    if file_size == 0 {
        return Err(Error::refused("it is empty").hint("the download was cut short or failed: get it again"));
    }
    let head = read_at_most(&file, 0, qcow2::HEAD_LIMIT)?;
    let format = if head.starts_with(&qcow2::MAGIC) { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    if format == DiskFormat::Raw {
        refuse_other_formats(&file, &head, file_size)?;
    }
    if let Some(claimed) = claimed.filter(|claimed| *claimed != format) {
        return Err(Error::refused(format!("it is said to be {}, but is {}", claimed.name(), format.name())));
    }
    let virtual_size = match format {
        DiskFormat::Qcow2 => qcow2::check(&file, &head, file_size)?,
        DiskFormat::Raw => check_raw(&head, file_size)?,
    };
    Ok(ImageFacts { format, virtual_size, file_size })
}

/// Checks the file at `path` as a further disk of a guest, which boots nothing from it: a qcow2 image as [`inspect`]
/// does, an ISO image, a raw disk with an MBR or GPT, or anything at all that is `claimed` to be raw. The
/// second value tells whether it is an ISO image.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_further(path: &Path, claimed: Option<DiskFormat>) -> Result<(ImageFacts, bool)> {
    let doing = || format!("checking the disk '{}'", path.display());
    let metadata = path.metadata().map_err(|error| fs::explain(error, "reading", path))?;
    if !metadata.is_file() {
        return Err(Error::refused("it is not a regular file")).context(doing);
    }
    let head = read_at_most(&fs::open(path)?, 0, qcow2::HEAD_LIMIT)?;
    let iso = head.get(ISO_AT..).is_some_and(|bytes| bytes.starts_with(b"CD001"));
    let raw = claimed == Some(DiskFormat::Raw) || (iso && claimed.is_none());
    if head.starts_with(&qcow2::MAGIC) || !raw {
        let checked = check(path, claimed).map(|facts| (facts, false)).context(doing);
        return match claimed {
            None => checked.map_err(|error| error.hint("'--format raw' gives it to the guest byte for byte")),
            Some(_) => checked,
        };
    }
    let file_size = metadata.len();
    check_virtual_size(file_size).context(doing)?;
    Ok((ImageFacts { format: DiskFormat::Raw, virtual_size: file_size, file_size }, iso))
}

/// Where an ISO image has its mark (ECMA-119, 8.1.2: sector 16, second byte).
const ISO_AT: usize = 0x8001;

fn refuse_other_formats(file: &File, head: &[u8], file_size: u64) -> Result<()> {
    let tail = read_at_most(file, file_size.saturating_sub(512), 512)?;
    match magic::recognise(head, &tail) {
        Some(known) => {
            Err(Error::refused(format!("it is not a qcow2 or raw disk, but looks like {}", known.what))
                .hint(known.hint))
        }
        None => Ok(()),
    }
}

/// A raw disk has no header; a partition table is the one sign that it is a disk at all.
fn check_raw(head: &[u8], file_size: u64) -> Result<u64> {
    let mbr = head.get(510..512) == Some(&[0x55, 0xaa]);
    // A GPT's header is in the second sector, of 512 or 4096 bytes (UEFI 2.10, section 5.3.2).
    let gpt = [512, 4096].iter().any(|&at| head.get(at..at + 8) == Some(b"EFI PART"));
    if !mbr && !gpt {
        return Err(Error::refused("it is neither qcow2 nor a raw disk with a partition table")
            .hint("virga boots whole disks (MBR or GPT); a bare file system or root archive is not one"));
    }
    check_virtual_size(file_size)?;
    Ok(file_size)
}

fn check_virtual_size(size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Error::refused(format!("its disk size of {size} bytes is not a whole number of 512-byte sectors")));
    }
    if size > MAX_VIRTUAL_SIZE {
        return Err(Error::refused(format!(
            "its disk size of {} is above the limit of {}",
            ByteSize(size),
            ByteSize(MAX_VIRTUAL_SIZE)
        )));
    }
    Ok(())
}

/// Reads `limit` bytes at `offset`, fewer where the file ends.
fn read_at_most(file: &File, offset: u64, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let mut filled = 0;
    while filled < limit {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::failed("reading the file").because(error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
