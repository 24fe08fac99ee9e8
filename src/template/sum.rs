//! Digests of large files with holes, by all processors at once.
//!
//! The digest of a file is the SHA-256 of its length and of the SHA-256 of each
//! piece of 128 KiB. Holes count as the zeros that they are, and are neither read nor hashed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use sha2::{Digest as _, Sha256};

use crate::base::name::hex;
use crate::base::{Error, Result, fs};

const PIECE: u64 = 128 << 10;
const PAGE: usize = 4096;

/// The digest of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sum(path: &Path) -> Result<String> {
    let (file, length) = open(path)?;
    let empty = Sha256::digest([0; PIECE as usize]);
    let pieces = each_piece(length, |at, bytes| {
        if has_data(&file, at, bytes.len() as u64) {
            file.read_exact_at(bytes, at).map_err(|error| fs::explain(error, "reading", path))?;
        } else if bytes.len() as u64 == PIECE {
            return Ok(empty);
        } else {
            bytes.fill(0);
        }
        Ok(Sha256::digest(&bytes))
    })?;
    let mut whole = Sha256::new_with_prefix(length.to_be_bytes());
    for piece in pieces {
        whole.update(piece);
    }
    Ok(hex(&whole.finalize()))
}

/// Gives back the space of pages that are zero. The content stays the same.
///
/// # Errors
/// When the file cannot be read or written.
pub fn dig_holes(path: &Path) -> Result<()> {
    let (_, length) = open(path)?;
    let file = File::options().read(true).write(true).open(path).map_err(|e| fs::explain(e, "opening", path))?;
    each_piece(length, |at, bytes| {
        if !has_data(&file, at, bytes.len() as u64) {
            return Ok(());
        }
        file.read_exact_at(bytes, at).map_err(|error| fs::explain(error, "reading", path))?;
        for (from, to) in zeros(bytes) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A file system that cannot: then it stays as it is.
            if fallocate(&file, flags, at + from as u64, (to - from) as u64).is_err() {
                return Ok(());
            }
        }
        Ok(())
    })
    .map(drop)
}

fn open(path: &Path) -> Result<(File, u64)> {
    let file = fs::open(path)?;
    let length = file.metadata().map_err(|error| fs::explain(error, "reading", path))?.len();
    Ok((file, length))
}

/// Runs of whole pages that are zero.
fn zeros(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, page) in bytes.chunks_exact(PAGE).enumerate() {
        if page.iter().all(|&byte| byte == 0) {
            let at = number * PAGE;
            match runs.last_mut() {
                Some(run) if run.1 == at => run.1 += PAGE,
                _ => runs.push((at, at + PAGE)),
            }
        }
    }
    runs
}

fn has_data(file: &File, at: u64, size: u64) -> bool {
    // Whatever goes wrong here comes up again when the piece is read.
    seek(file, SeekFrom::Data(at)).map_or_else(|error| error != rustix::io::Errno::NXIO, |data| data < at + size)
}

fn each_piece<T: Send>(length: u64, work: impl Fn(u64, &mut [u8]) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicU64::new(0);
    let worker = || -> Result<Vec<(u64, T)>> {
        let (mut done, mut room) = (Vec::new(), vec![0; PIECE as usize]);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed) * PIECE;
            if at >= length {
                return Ok(done);
            }
            let size = PIECE.min(length - at) as usize;
            done.push((at, work(at, &mut room[..size])?));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut pieces = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut pieces = Vec::new();
        for worker in workers {
            pieces.extend(worker.join().map_err(|_| Error::failed("a thread of ours ended badly"))??);
        }
        Ok::<_, Error>(pieces)
    })?;
    pieces.sort_by_key(|(at, _)| *at);
    Ok(pieces.into_iter().map(|(_, piece)| piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeros_and_every_byte_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![0; 9 << 20];
        bytes[5 << 20] = 7;
        fs::write_new(&path, &bytes, 0o600).unwrap();
        let before = sum(&path).unwrap();
        dig_holes(&path).unwrap();
        assert_eq!(sum(&path).unwrap(), before, "digging changed the content");
        assert_eq!(fs::read(&path, 10 << 20).unwrap(), bytes);
        use std::os::unix::fs::MetadataExt as _;
        assert!(path.metadata().unwrap().blocks() * 512 < 1 << 20, "no hole was dug");
        for at in [0, (5 << 20) + 1, bytes.len() - 1] {
            bytes[at] ^= 1;
            fs::write_atomic(&other, &bytes, 0o600).unwrap();
            assert_ne!(sum(&other).unwrap(), before, "byte {at}");
            bytes[at] ^= 1;
        }
        bytes.push(0);
        fs::write_atomic(&other, &bytes, 0o600).unwrap();
        assert_ne!(sum(&other).unwrap(), before, "the length");
    }
}
