//! Looking after the pool: hashing everything again, and forgetting images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::{Env, images};
use crate::base::{Digest, Error, ImageId, Kind, Result, interrupt};
use crate::guest;
use crate::pool::{ImageRecord, Pool};

/// What a check of the pool found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// Blobs that were hashed and are what their name says.
    pub sound: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Images whose blob has rotted; it was moved aside.
    pub rotten: Vec<Rotten>,
    /// Images whose blob is not there.
    pub missing: Vec<ImageId>,
}

/// A blob that is not what its name says any more.
#[derive(Clone, Debug, Serialize)]
pub struct Rotten {
    /// What it should be.
    pub blob: Digest,
    /// Where it lies now.
    pub moved_to: PathBuf,
    /// The images that it was.
    pub images: Vec<ImageId>,
    /// The guests that stand on it: they cannot start until it is fetched again.
    pub guests: Vec<String>,
}

/// Hashes the blobs of all images that match again. One that has rotted is
/// moved aside, so that nothing is made of it any more and the next sync fetches
/// it anew. Holds the pool's lock together with others, and alone as it moves; may take long.
///
/// # Errors
/// When something cannot be read or moved; what rotted is in the answer.
pub fn verify(env: Env<'_>, filters: &[String]) -> Result<Checked> {
    let listed = images::images(env, filters)?;
    let pool = env.pool()?;
    let lock = pool.lock_shared()?;
    let mut by_blob: BTreeMap<Digest, Vec<&ImageRecord>> = BTreeMap::new();
    for line in &listed {
        by_blob.entry(line.record.blob.clone()).or_default().push(&line.record);
    }
    if filters.is_empty() {
        // What no image is any more, or never was: guests stand on it.
        for blob in guest::blobs_in_use(&env.settings.layout)? {
            by_blob.entry(blob).or_default();
        }
    }
    let (mut checked, mut suspects) = (Checked::default(), Vec::new());
    for (blob, records) in by_blob {
        interrupt::check()?;
        let ids: Vec<ImageId> = records.iter().map(|record| record.id.clone()).collect();
        if !pool.has_blob(&blob) {
            if ids.is_empty() {
                let guests = guests_on(env, &blob)?.join(", ");
                env.reporter.warn(&format!("the image of {guests} is not in the pool: {blob}"));
            }
            checked.missing.extend(ids);
            continue;
        }
        let label = records.first().map_or_else(
            || blob.hex()[..12].to_owned(),
            |record| format!("{} {}", record.key("product_name"), record.key("version_name")),
        );
        let size = crate::base::fs::open(&pool.blob_path(&blob))?.metadata().map_or(0, |meta| meta.len());
        let transfer = env.reporter.transfer(&label, Some(size));
        let file = inode(&pool, &blob);
        if pool.verify_blob(&blob, transfer.as_ref())? {
            checked.sound += 1;
            checked.bytes += size;
            continue;
        }
        suspects.push((blob, ids, file));
    }
    if suspects.is_empty() {
        return Ok(checked);
    }
    // Alone, so that nobody makes a guest of one as it goes. A sync that takes hours is not waited for.
    drop(lock);
    let _lock = match pool.lock_exclusive() {
        Err(error) if error.kind() == Kind::TimedOut => pool.lock_shared()?,
        lock => lock?,
    };
    for (blob, images, file) in suspects {
        if inode(&pool, &blob) != file {
            // It has been healed since.
            continue;
        }
        let guests = guests_on(env, &blob)?;
        checked.rotten.push(Rotten { moved_to: pool.quarantine(&blob)?, blob, images, guests });
    }
    Ok(checked)
}

fn inode(pool: &Pool, blob: &Digest) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(pool.blob_path(blob)).ok().map(|file| file.ino())
}

fn guests_on(env: Env<'_>, blob: &Digest) -> Result<Vec<String>> {
    let guests = guest::list(&env.settings.layout)?;
    let name = |entry: guest::Entry| match entry {
        guest::Entry::Known(record) if record.origin.blob.as_ref() == Some(blob) => Some(record.name().to_string()),
        _ => None,
    };
    Ok(guests.into_iter().filter_map(name).collect())
}

/// What removing images did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Removed {
    /// The images that are gone.
    pub images: Vec<ImageId>,
    /// Bytes that are free again.
    pub bytes: u64,
    /// Images whose bytes stay because guests stand on them.
    pub in_use: BTreeSet<ImageId>,
}

/// Forgets images, by id or by filters, and frees the bytes that neither
/// another image nor a guest needs. Takes the pool's lock alone.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] when none matches, [`crate::base::Kind::Usage`] without any filter.
pub fn remove(env: Env<'_>, filters: &[String]) -> Result<Removed> {
    if filters.is_empty() {
        return Err(Error::usage("nothing says which images").hint("give an image's id, or filters"));
    }
    let pool = env.pool()?;
    let _lock = pool.lock_exclusive()?;
    let gone = images::images(env, filters)?;
    if gone.is_empty() {
        return Err(Error::not_found("there is no image in the pool that matches")
            .hint("'virga images' shows the images in the pool"));
    }
    let ids: Vec<ImageId> = gone.iter().map(|line| line.record.id.clone()).collect();
    let used = guest::blobs_in_use(&env.settings.layout)?;
    // Before anything is forgotten: a record that cannot be read may name what would go.
    pool.blobs_named()?;
    pool.forget(&ids)?;
    let named = pool.blobs_named()?;
    let mut removed = Removed { images: ids, ..Removed::default() };
    for line in gone {
        let record = line.record;
        if used.contains(&record.blob) {
            removed.in_use.insert(record.id);
        } else if !named.contains(&record.blob) && pool.has_blob(&record.blob) {
            pool.remove_blob(&record.blob)?;
            removed.bytes += record.size;
        }
    }
    Ok(removed)
}
