//! The pool: blobs named by their content, records that say which image a
//! blob is, and the sweep of what nothing needs.
//!
//! A blob that exists was verified. It is read-only and never changes; guests
//! stand on it.

mod generation;
mod marks;
mod record;
mod sweep;

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256, Sha512};

pub use generation::{Generation, Kept};
pub use marks::{Mark, Marks, Seen};
pub use record::{Chain, DiskFacts, ImageRecord, Link, PUBLISHED, Signature};
pub use sweep::Swept;

use crate::base::lock::{FileLock, Mode};
use crate::base::plan::random;
use crate::base::progress::{Silent, Transfer};
use crate::base::{Digest, DigestAlgorithm, Layout, Result, fs, interrupt, name};

/// How long a command waits for `prune`, and `prune` for other commands.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pool of one state folder. Holds no lock by itself.
#[derive(Clone, Debug)]
pub struct Pool {
    layout: Layout,
}

/// A download under way: its file and the right to write it.
#[derive(Debug)]
pub struct Partial {
    /// The bytes so far, named by the announced digest.
    pub path: PathBuf,
    _lock: FileLock,
}

/// The pool's shared lock for long work that needs it twice: to find a blob until a record names it, and after that to
/// hand the blob on from one record to another.
#[derive(Debug)]
pub struct Turns {
    pool: Pool,
    lock: RefCell<Option<FileLock>>,
}

impl Turns {
    /// Takes the lock, unless it is held already.
    ///
    /// # Errors
    /// As [`Pool::lock_shared`].
    pub fn take(&self) -> Result<()> {
        if self.lock.borrow().is_none() {
            let lock = self.pool.lock_shared()?;
            *self.lock.borrow_mut() = Some(lock);
        }
        Ok(())
    }

    /// Lets go of it: a record names what is used.
    pub fn rest(&self) {
        self.lock.borrow_mut().take();
    }
}

impl Partial {
    /// What the download remembers about itself.
    fn notes(path: &Path) -> PathBuf {
        path.with_extension("json")
    }

    fn lock(path: &Path) -> PathBuf {
        path.with_extension("lock")
    }
}

impl Pool {
    /// Makes the pool's folders, private to their owner.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(layout: &Layout) -> Result<Self> {
        for dir in [layout.blobs(), layout.partials(), layout.streams()] {
            fs::create_private_dir(&dir)?;
        }
        Ok(Pool { layout: layout.clone() })
    }

    /// Keeps blobs from being swept while it is held. Taken together with others.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when a prune does not end.
    pub fn lock_shared(&self) -> Result<FileLock> {
        FileLock::acquire(&self.layout.pool_lock(), Mode::Shared, "the pool", PATIENCE)
    }

    /// The same, to be let go of and taken again.
    ///
    /// # Errors
    /// As [`lock_shared`](Self::lock_shared).
    pub fn turns(&self) -> Result<Turns> {
        Ok(Turns { pool: self.clone(), lock: RefCell::new(Some(self.lock_shared()?)) })
    }

    /// The right to sweep: nobody else is at work on the pool.
    ///
    /// # Errors
    /// [`crate::base::Kind::TimedOut`] when another command does not end.
    pub fn lock_exclusive(&self) -> Result<FileLock> {
        FileLock::acquire(&self.layout.pool_lock(), Mode::Exclusive, "the pool", PATIENCE)
    }

    /// Whether a blob is there; then it was verified.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Where a blob is, or would be. `digest` is its SHA-256.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.layout.blob(digest)
    }

    /// The right to fetch the content with this announced digest; `None` while
    /// another one fetches it. Does not wait: the caller may be that other one.
    ///
    /// # Errors
    /// When the lock's file cannot be made.
    pub fn try_partial(&self, announced: &Digest) -> Result<Option<Partial>> {
        let path = self.layout.partial(announced);
        let lock = FileLock::try_acquire(&Partial::lock(&path), Mode::Exclusive)?;
        Ok(lock.map(|lock| Partial { path, _lock: lock }))
    }

    /// Who fetches the content with this announced digest, and how many bytes are there.
    #[must_use]
    pub fn fetcher(&self, announced: &Digest) -> (String, u64) {
        let path = self.layout.partial(announced);
        let who = FileLock::holder(&Partial::lock(&path)).unwrap_or_else(|| "it does not say which".to_owned());
        (who, std::fs::metadata(&path).map_or(0, |file| file.len()))
    }

    /// Gives a verified download its final name. The caller has checked size,
    /// digest and format, and keeps `partial` until it has written the record:
    /// whoever waits for the same download then finds it. Returns the blob's path.
    ///
    /// # Errors
    /// When it cannot be made durable or renamed; the download stays.
    pub fn adopt(&self, partial: &Partial, sha256: &Digest) -> Result<PathBuf> {
        let blob = self.blob_path(sha256);
        publish(&partial.path, &blob)?;
        // The lock's file stays until a sweep: removed now, a waiter on the old
        // file and a newcomer on a new one would both believe to be alone.
        fs::remove_file(&Partial::notes(&partial.path))?;
        Ok(blob)
    }

    /// Throws a download away that must not be continued.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, partial: &Partial) -> Result<()> {
        fs::remove_file(&partial.path)?;
        fs::remove_file(&Partial::notes(&partial.path))
    }

    /// Takes a local file into the pool by its content. A blob that is there
    /// is left alone. Shares the bytes with the original where the file system can.
    ///
    /// # Errors
    /// When it cannot be read or written; [`crate::base::Kind::Interrupted`] on Ctrl-C.
    pub fn import(&self, file: &Path, transfer: &dyn Transfer) -> Result<Digest> {
        let mut source = fs::open(file)?;
        let digest = hash(&mut source, file, transfer)?;
        let blob = self.blob_path(&digest);
        if blob.is_file() {
            return Ok(digest);
        }
        // Copied under a name that a sweep removes, hashed again on the way: the file may change meanwhile.
        let copy = self.layout.partials().join(format!("import-{}", name::hex(&random::<8>()?)));
        let copied = copy_hashed(&mut fs::open(file)?, file, &copy).and_then(|again| {
            if again == digest {
                return publish(&copy, &blob).map(|()| digest);
            }
            Err(crate::base::Error::failed(format!("'{}' changes while it is read", file.display())))
        });
        if copied.is_err() {
            let _ = fs::remove_file(&copy);
        }
        copied
    }

    /// Hashes a blob again: `false` when its content is no longer what its name says.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn verify_blob(&self, digest: &Digest, transfer: &dyn Transfer) -> Result<bool> {
        let path = self.blob_path(digest);
        Ok(hash(&mut fs::open(&path)?, &path, transfer)? == *digest)
    }

    /// A blob of this size and SHA-512. Blobs are named by their SHA-256, so
    /// those of the right size are read: rarely more than one.
    ///
    /// # Errors
    /// When one cannot be read; [`crate::base::Kind::Interrupted`] on Ctrl-C.
    pub fn find_sha512(&self, size: u64, sha512: &Digest) -> Result<Option<Digest>> {
        for name in fs::list_dir(&self.layout.blobs())? {
            let Ok(blob) = Digest::from_hex(DigestAlgorithm::Sha256, &name) else { continue };
            let path = self.blob_path(&blob);
            if !path.metadata().is_ok_and(|meta| meta.len() == size) {
                continue;
            }
            let mut hasher = Sha512::new();
            pump(&mut fs::open(&path)?, &path, &Silent, |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            if Digest::from_bytes(DigestAlgorithm::Sha512, &hasher.finalize()) == *sha512 {
                return Ok(Some(blob));
            }
        }
        Ok(None)
    }

    /// The SHA-256 of several blobs, one after the other.
    ///
    /// # Errors
    /// When one cannot be read; [`crate::base::Kind::Interrupted`] on Ctrl-C.
    pub fn hash_joined(&self, blobs: &[&Digest]) -> Result<Digest> {
        let mut hasher = Sha256::new();
        for blob in blobs {
            let path = self.blob_path(blob);
            pump(&mut fs::open(&path)?, &path, &Silent, |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
        }
        Ok(Digest::from_bytes(DigestAlgorithm::Sha256, &hasher.finalize()))
    }

    /// Removes a blob. The caller holds the pool's lock alone and knows that nothing needs it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_blob(&self, digest: &Digest) -> Result<()> {
        fs::remove_file(&self.blob_path(digest))
    }

    /// Takes a rotten blob out of use: it is moved aside, where nothing looks
    /// for it and the next sweep removes it. Returns where it is now.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn quarantine(&self, digest: &Digest) -> Result<PathBuf> {
        let folder = self.layout.quarantine();
        fs::create_private_dir(&folder)?;
        let to = folder.join(digest.hex());
        fs::rename(&self.blob_path(digest), &to)?;
        Ok(to)
    }
}

/// Makes a file durable and gives it its final name, then makes it read-only: were it that before, a download that was
/// killed in between could not be gone on with.
fn publish(from: &Path, blob: &Path) -> Result<()> {
    let file = fs::open(from)?;
    file.sync_all().map_err(|error| fs::explain(error, "writing", from))?;
    fs::rename(from, blob)?;
    fs::set_mode(blob, 0o444)
}

fn hash(file: &mut File, path: &Path, transfer: &dyn Transfer) -> Result<Digest> {
    pump(file, path, transfer, |_| Ok(()))
}

fn copy_hashed(from: &mut File, path: &Path, to: &Path) -> Result<Digest> {
    fs::remove_file(to)?;
    let mut copy = fs::create_new(to, 0o600)?;
    // A copy by reference costs nothing; where the file system has none, bytes are copied.
    let shared = rustix::fs::ioctl_ficlone(&copy, &*from).is_ok();
    if shared {
        // The original may change from now on: what counts is the copy.
        return hash(&mut copy, to, &Silent);
    }
    pump(from, path, &Silent, |bytes| copy.write_all(bytes).map_err(|error| fs::explain(error, "writing", to)))
}

fn pump(
    file: &mut File,
    path: &Path,
    transfer: &dyn Transfer,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Digest> {
    let mut buffer = vec![0; 1 << 20];
    let (mut hasher, mut done) = (Sha256::new(), 0);
    loop {
        interrupt::check()?;
        let n = file.read(&mut buffer).map_err(|error| fs::explain(error, "reading", path))?;
        if n == 0 {
            return Ok(Digest::from_bytes(DigestAlgorithm::Sha256, &hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
        each(&buffer[..n])?;
        done += n as u64;
        transfer.at(done);
    }
}

#[cfg(test)]
mod tests;
