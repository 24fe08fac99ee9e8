//! Sweeping: removing what neither a record nor a guest needs.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Partial, Pool};
use crate::base::lock::{FileLock, Mode};
use crate::base::{Digest, DigestAlgorithm, ImageId, Result, fs};

/// What a sweep removed, or would remove.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// Blobs and their sizes.
    pub blobs: Vec<(Digest, u64)>,
    /// Records of images that were retired and that no guest needs.
    pub retired: Vec<ImageId>,
    /// Rotten blobs that had been moved aside.
    pub quarantined: usize,
    /// Unfinished downloads.
    pub partials: usize,
    /// Files that killed commands were writing.
    pub temporaries: usize,
    /// Bytes freed on disk by all of them.
    pub bytes: u64,
}

impl Pool {
    /// Removes retired records whose blob is not in `in_use`, blobs that then
    /// no record and none of `in_use` names, unfinished downloads, rotten blobs
    /// and temporary files. `_alone` proves that nobody else is at work.
    ///
    /// # Errors
    /// When a folder cannot be read or something cannot be removed.
    pub fn sweep(&self, _alone: &FileLock, in_use: &BTreeSet<Digest>, dry_run: bool) -> Result<Swept> {
        let mut swept = Swept::default();
        let needed = self.sweep_records(in_use, &mut swept, dry_run)?;
        for name in fs::list_dir(&self.layout.blobs())? {
            let Ok(digest) = Digest::from_hex(DigestAlgorithm::Sha256, &name) else { continue };
            if !needed.contains(&digest) && !in_use.contains(&digest) {
                let path = self.blob_path(&digest);
                let size = on_disk(&path);
                swept.bytes += size;
                swept.blobs.push((digest, size));
                if !dry_run {
                    fs::remove_file(&path)?;
                }
            }
        }
        self.sweep_partials(&mut swept, dry_run)?;
        let streams = self.layout.streams();
        let sources = fs::list_dir(&streams)?.into_iter().map(|name| streams.join(name)).filter(|dir| dir.is_dir());
        let ours = [self.layout.home().to_owned(), self.layout.blobs(), self.layout.pool()];
        for dir in ours.into_iter().chain(sources) {
            for name in fs::list_dir(&dir)? {
                if name.starts_with(fs::TEMPORARY_PREFIX) {
                    swept.temporaries += 1;
                    swept.bytes += remove(&dir.join(name), dry_run)?;
                }
            }
        }
        for name in fs::list_dir(&self.layout.quarantine())? {
            swept.quarantined += 1;
            swept.bytes += remove(&self.layout.quarantine().join(name), dry_run)?;
        }
        Ok(swept)
    }

    /// Removes records that are retired and unused. Returns the blobs that the others name.
    /// Records that cannot be read make this fail: nobody knows then what they name.
    fn sweep_records(&self, in_use: &BTreeSet<Digest>, swept: &mut Swept, dry_run: bool) -> Result<BTreeSet<Digest>> {
        let (gone, stays): (Vec<_>, Vec<_>) = self
            .every_record()?
            .into_iter()
            .partition(|record| record.retired_at.is_some() && !in_use.contains(&record.blob));
        swept.retired.extend(gone.into_iter().map(|record| record.id));
        if !dry_run {
            self.forget(&swept.retired)?;
        }
        Ok(stays.into_iter().map(|record| record.blob).collect())
    }

    /// The exclusive lock keeps syncs away; a download's own lock is looked at
    /// all the same, for it costs nothing.
    fn sweep_partials(&self, swept: &mut Swept, dry_run: bool) -> Result<()> {
        let dir = self.layout.partials();
        for name in fs::list_dir(&dir)? {
            let path = dir.join(&name);
            let is_note = path.extension().is_some_and(|ext| ext == "json" || ext == "lock");
            let lock = Partial::lock(&path.with_extension(""));
            let held = if lock.exists() { FileLock::try_acquire(&lock, Mode::Exclusive)? } else { None };
            if lock.exists() && held.is_none() {
                continue;
            }
            swept.partials += usize::from(!is_note);
            swept.bytes += remove(&path, dry_run)?;
        }
        Ok(())
    }
}

fn remove(path: &Path, dry_run: bool) -> Result<u64> {
    let size = on_disk(path);
    if !dry_run {
        fs::remove_file(path)?;
    }
    Ok(size)
}

/// Bytes that a file takes up: sparse files take less than their length.
fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}
