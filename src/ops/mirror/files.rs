//! The files of a mirror: which are missing or damaged, fetching them aside,
//! and putting them all in place at once.
//!
//! ```text
//! .virga-partial/<name>   a download; its name stands for path and content, so that the next run resumes it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sha2::Digest as _;

use super::{Read, check_space};
use crate::base::progress::{Reporter, Transfer};
use crate::base::{Address, Digest, DigestAlgorithm, Error, Kind, RelPath, Result, fs, interrupt, name};
use crate::fetch::Expected;
use crate::ops::{Env, catalog};
use crate::stream::product::Item;
use crate::stream::publish::Plan;

/// Downloads under way.
const PARTIAL: &str = ".virga-partial";
/// How many files are fetched side by side.
const PARALLEL: usize = 8;
/// How many files are hashed side by side.
const HASHERS: usize = 2;
/// Bytes hashed at a time.
const BLOCK: usize = 1 << 20;

/// All files that a mirror will list, each once.
pub(super) struct Files<'a> {
    dir: &'a Path,
    listed: BTreeMap<&'a RelPath, Missing<'a>>,
}

/// A file, and where it can be had.
#[derive(Clone)]
pub(super) struct Missing<'a> {
    pub path: &'a RelPath,
    pub item: &'a Item,
    want: Expected,
    /// None when no source of this run has its document.
    pub places: Vec<Address>,
    /// An earlier run brought it: that it cannot be had any more is no reason to fail.
    held: bool,
}

impl<'a> Files<'a> {
    pub(super) fn of(dir: &'a Path, plan: &'a Plan, read: &[Read<'_>]) -> Self {
        let mut roots = BTreeMap::new();
        for read in read {
            roots.extend(read.catalog.products.iter().map(|listed| (listed.entry.content_id.as_str(), read.source)));
        }
        let mut listed = BTreeMap::new();
        for (item, held) in
            plan.held.iter().map(|item| (item, true)).chain(plan.wanted.iter().map(|item| (item, false)))
        {
            let (Some(path), Some(size), Some(digest)) = (&item.path, item.size, &item.digest) else { continue };
            let places = roots.get(item.content_id()).map(|source| source.places(path, &item.mirrors));
            let places = places.unwrap_or_default();
            let want = Expected { size, digest: digest.clone() };
            listed.insert(path, Missing { path, item, want, places, held });
        }
        Files { dir, listed }
    }

    pub(super) fn count(&self) -> usize {
        self.listed.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.listed.values().map(|file| file.want.size).sum()
    }

    /// The files that are not there, or not what they should be. Reads all that is there.
    ///
    /// # Errors
    /// When a file cannot be read, or on Ctrl-C.
    pub(super) fn missing(&self, reporter: &dyn Reporter) -> Result<Vec<Missing<'a>>> {
        let files: Vec<&Missing<'_>> = self.listed.values().collect();
        let there = |file: &Missing<'_>| {
            self.dir
                .join(file.path.as_str())
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.len() == file.want.size)
        };
        let (present, mut missing): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| there(file));
        let total = present.iter().map(|file| file.want.size).sum();
        let sum = Sum::new(reporter.transfer("checking", Some(total)));
        let (next, bad) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || -> Result<()> {
            while let Some(file) = present.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.digest(file, &sum.part())? != file.want.digest {
                    bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(*file);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..HASHERS).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let joined = others.into_iter().map(|other| other.join());
            let failed = |_| Err(Error::failed("a worker thread failed"));
            joined.fold(mine, |all, other| all.and(other.unwrap_or_else(failed)))
        })?;
        missing.extend(bad.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        missing.sort_by_key(|file| file.path);
        Ok(missing.into_iter().cloned().collect())
    }

    fn digest(&self, file: &Missing<'_>, transfer: &dyn Transfer) -> Result<Digest> {
        let path = self.dir.join(file.path.as_str());
        match file.want.digest.algorithm() {
            DigestAlgorithm::Sha256 => {
                hash(sha2::Sha256::new(), &path, transfer).map(|sum| Digest::from_bytes(DigestAlgorithm::Sha256, &sum))
            }
            DigestAlgorithm::Sha512 => {
                hash(sha2::Sha512::new(), &path, transfer).map(|sum| Digest::from_bytes(DigestAlgorithm::Sha512, &sum))
            }
        }
    }

    fn partial(&self, file: &Missing<'_>) -> PathBuf {
        let key = format!("{} {}", file.want.digest, file.path);
        self.dir.join(PARTIAL).join(name::hex(&sha2::Sha256::digest(key)))
    }

    /// Fetches them aside, continuing what an earlier run began. Returns the
    /// places of those that an earlier run brought and nobody has any more.
    ///
    /// # Errors
    /// [`Kind::Refused`] when one is not what was announced; [`Kind::Failed`] when the disk is too small.
    pub(super) async fn fetch(&self, missing: &[Missing<'_>], env: Env<'_>) -> Result<BTreeSet<RelPath>> {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        if missing.is_empty() {
            return Ok(BTreeSet::new());
        }
        fs::create_private_dir(&self.dir.join(PARTIAL))?;
        let (fetcher, reporter) = (env.fetcher()?, env.reporter);
        let there: u64 =
            missing.iter().filter_map(|file| self.partial(file).metadata().ok()).map(|meta| meta.len()).sum();
        let total: u64 = missing.iter().map(|file| file.want.size).sum();
        check_space(self.dir, total.saturating_sub(there))?;
        let sum = Sum::new(reporter.transfer("fetching", Some(total)));
        let fetches = missing.iter().map(|file| async {
            if file.places.is_empty() {
                reporter.warn(&format!("'{}' is missing or damaged, and none of these sources has it", file.path));
                return Ok(Some(file.path.clone()));
            }
            let places = file.places.iter().map(catalog::parse).collect::<Result<Vec<_>>>()?;
            match fetcher.item(&places, &file.want, &self.partial(file), &sum.part()).await {
                Err(error) if file.held && matches!(error.kind(), Kind::NotFound | Kind::Refused) => {
                    reporter.warn(&format!("'{}' is missing or damaged, and cannot be fetched: {error}", file.path));
                    Ok(Some(file.path.clone()))
                }
                done => done.map(|_| None),
            }
        });
        let fetched: Vec<_> =
            futures_util::stream::iter(fetches).buffer_unordered(PARALLEL).try_collect::<Vec<_>>().await?;
        Ok(fetched.into_iter().flatten().collect())
    }

    /// Gives those that were fetched their final names, durably: one sync for all instead of one
    /// for each. A crash before it can leave a name without its bytes, and
    /// harms nobody: only then do documents list it, and each run hashes all files.
    ///
    /// # Errors
    /// When one cannot be renamed.
    pub(super) fn place(&self, missing: &[Missing<'_>]) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        for file in missing {
            let (partial, target) = (self.partial(file), self.dir.join(file.path.as_str()));
            fs::set_mode(&partial, 0o644)?;
            fs::create_dir(fs::folder_of(&target))?;
            fs::rename_unsynced(&partial, &target)?;
        }
        fs::sync_file_system(self.dir)
    }

    /// Removes what is left of downloads that nobody wants any more.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub(super) fn clear(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir.join(PARTIAL))
    }
}

fn hash<H: sha2::Digest>(mut hash: H, path: &Path, transfer: &dyn Transfer) -> Result<Vec<u8>> {
    let mut file = fs::open(path)?;
    let (mut block, mut at) = (vec![0; BLOCK], 0);
    loop {
        interrupt::check()?;
        let read = file.read(&mut block).map_err(|error| fs::explain(error, "reading", path))?;
        if read == 0 {
            return Ok(hash.finalize().to_vec());
        }
        hash.update(&block[..read]);
        at += read as u64;
        transfer.at(at);
    }
}

/// Shows many transfers as one.
struct Sum {
    shown: Box<dyn Transfer>,
    done: AtomicU64,
}

impl Sum {
    fn new(shown: Box<dyn Transfer>) -> Self {
        Sum { shown, done: AtomicU64::new(0) }
    }

    fn part(&self) -> Part<'_> {
        Part { sum: self, at: AtomicU64::new(0) }
    }
}

struct Part<'a> {
    sum: &'a Sum,
    at: AtomicU64,
}

impl Transfer for Part<'_> {
    fn at(&self, bytes: u64) {
        // May go back: a download that starts over.
        let more = bytes.wrapping_sub(self.at.swap(bytes, Ordering::Relaxed));
        let done = self.sum.done.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        self.sum.shown.at(done);
    }
}
