//! New qcow2 files: overlays over an image's blob, and empty disks.
//!
//! `qcow2-rs` lays the empty image out in memory; the backing file's name and
//! format are patched in here, as it cannot write them. It never opens a file.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use qcow2_rs::meta::Qcow2Header;

use super::{MAX_VIRTUAL_SIZE, SECTOR};
use crate::base::plan::DiskFormat;
use crate::base::{ByteSize, Error, Result, fs};

/// 64 KiB, QEMU's default.
const CLUSTER_BITS: usize = 16;
/// Refcounts of 2⁴ bits, QEMU's default.
const REFCOUNT_ORDER: u8 = 4;
/// The header that `qcow2-rs` writes: all fields of version 3 up to the compression type.
const HEADER_LENGTH: usize = 112;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// The format's own limit of a backing file's name.
const MAX_BACKING_NAME: usize = 1023;

/// The image beneath an overlay, as [`inspect`](super::inspect) found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its file; absolute, because QEMU resolves relative names against the overlay's folder.
    pub path: PathBuf,
    /// Its format, written into the overlay so that nothing ever guesses it.
    pub format: DiskFormat,
    /// Size of its disk in bytes.
    pub virtual_size: u64,
}

/// Makes the new file `path` (mode 0600): a qcow2 overlay over `backing` whose disk has `size` bytes.
///
/// Not synced to disk, as the guest that owns it is not whole yet. The backing file is not touched.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) for a size below the backing's, above 16 TiB or not
/// in whole sectors, and for a backing path that is relative or too long;
/// [`Kind::Exists`](crate::base::Kind::Exists) when `path` is there already.
pub fn create_overlay(path: &Path, backing: &Backing, size: ByteSize) -> Result<()> {
    let least = ByteSize(backing.virtual_size);
    if size < least {
        return Err(Error::usage(format!("a disk of {size} is smaller than the image's disk of {least}"))
            .hint(format!("ask for at least --disk {}", least.0.div_ceil(ByteSize::MIB).to_string() + "M")));
    }
    let mut image = layout(size)?;
    set_backing(&mut image, backing)?;
    write_sparse(path, &image)
}

/// Makes the new file `path` (mode 0600): an empty qcow2 disk of `size` bytes.
///
/// # Errors
/// As [`create_overlay`].
pub fn create_empty(path: &Path, size: ByteSize) -> Result<()> {
    write_sparse(path, &layout(size)?)
}

/// The whole file of an empty disk: header, refcount table, refcount block, first-level table.
fn layout(size: ByteSize) -> Result<Vec<u8>> {
    if size.0 == 0 || size.0 > MAX_VIRTUAL_SIZE || !size.0.is_multiple_of(SECTOR) {
        return Err(Error::usage(format!("a disk of {} bytes cannot be made", size.0))
            .hint(format!("disks have whole sectors of 512 bytes and at most {}", ByteSize(MAX_VIRTUAL_SIZE))));
    }
    let block = 1 << 9;
    let (_, _, l1) = Qcow2Header::calculate_meta_params(size.0, CLUSTER_BITS, REFCOUNT_ORDER, block);
    // `format_qcow2` writes through raw pointers up to the L1 table's first
    // block without a check of its own: the buffer must hold every cluster.
    let end = l1.0 + (u64::from(l1.1) << CLUSTER_BITS);
    let length = usize::try_from(end).map_err(|_| Error::usage("the disk is too large for this machine"))?;
    let mut image = vec![0; length];
    Qcow2Header::format_qcow2(&mut image, size.0, CLUSTER_BITS, REFCOUNT_ORDER, block)
        .map_err(|error| Error::failed("laying out a qcow2 image").because(error))?;
    Ok(image)
}

/// Adds the backing format extension, the end of extensions, and the backing
/// file's name behind them; all in the first cluster, which is zero there.
fn set_backing(image: &mut [u8], backing: &Backing) -> Result<()> {
    let name = backing.path.as_os_str().as_bytes();
    if !backing.path.is_absolute() || name.len() > MAX_BACKING_NAME {
        return Err(Error::usage(format!(
            "the image's path '{}' is not absolute or longer than {MAX_BACKING_NAME} bytes",
            backing.path.display()
        ))
        .hint("set VIRGA_HOME to a folder with a shorter path"));
    }
    let format = backing.format.name().as_bytes();
    let mut tail = Vec::with_capacity(32 + name.len());
    tail.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
    tail.extend(length(format));
    tail.extend(format);
    tail.resize(tail.len().next_multiple_of(8), 0);
    tail.extend([0; 8]);
    let name_offset = (HEADER_LENGTH + tail.len()) as u64;
    tail.extend(name);

    image[8..16].copy_from_slice(&name_offset.to_be_bytes());
    image[16..20].copy_from_slice(&length(name));
    image[HEADER_LENGTH..HEADER_LENGTH + tail.len()].copy_from_slice(&tail);
    Ok(())
}

/// A length field; only for what is known to be short.
fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Writes the pages that are not all zero; nearly all of an empty image is.
fn write_sparse(path: &Path, image: &[u8]) -> Result<()> {
    let file = fs::create_new(path, 0o600)?;
    fill(&file, image).map_err(|error| {
        // The file is ours and useless; the error at hand matters more than one from removing it.
        let _ = fs::remove_file(path);
        fs::explain(error, "writing", path)
    })
}

fn fill(file: &File, image: &[u8]) -> std::io::Result<()> {
    const PAGE: usize = 4096;
    file.set_len(image.len() as u64)?;
    for (number, page) in image.chunks(PAGE).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, (number * PAGE) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
