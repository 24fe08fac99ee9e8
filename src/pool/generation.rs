//! What one sync left of a source: the metadata that was verified and the
//! records of its images, in one file that is replaced as a whole. So index,
//! products and items fit together, or the old state stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ImageRecord, Mark, PATIENCE, Pool};
use crate::base::lock::{FileLock, Mode};
use crate::base::{ImageId, RelPath, Result, fs, name};

/// Most bytes of one metadata file.
const LIMIT: u64 = 512 << 20;

/// The state of one source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The metadata files by their path in the stream.
    pub metadata: BTreeMap<RelPath, Kept>,
    /// The images by their id.
    pub images: BTreeMap<ImageId, ImageRecord>,
}

/// A metadata file that was verified. Its bytes lie beside the generation,
/// named by their digest, as they came, signature included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
    /// Where it came from, without credentials: validators belong to one URL.
    pub url: String,
    /// The server's `ETag`.
    pub etag: Option<String>,
    /// The server's `Last-Modified`.
    pub last_modified: Option<String>,
    /// When the document says that it was written.
    pub updated: Option<Timestamp>,
    /// When it was signed, by the newest of its signatures.
    #[serde(default)]
    pub signed_at: Option<Timestamp>,
}

impl Kept {
    /// What is to be remembered of a file.
    #[must_use]
    pub fn new(bytes: &[u8], url: String, updated: Option<Timestamp>) -> Self {
        let sha256 = name::hex(&Sha256::digest(bytes));
        Kept { sha256, url, etag: None, last_modified: None, updated, signed_at: None }
    }

    /// How new it is.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { updated: self.updated, signed_at: self.signed_at }
    }
}

/// Files that a commit leaves alone though no generation names them.
const GENERATION: &str = "generation.json";
const LOCK: &str = "lock";

impl Pool {
    /// The state of a source; an empty one when nothing was synced from it.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn generation(&self, source: &str) -> Result<Generation> {
        Ok(fs::read_json(&self.layout.stream(source).join(GENERATION))?.unwrap_or_default())
    }

    /// The bytes of a metadata file; `None` when they are not whole any more.
    #[must_use]
    pub fn metadata(&self, source: &str, kept: &Kept) -> Option<Vec<u8>> {
        let bytes = fs::read(&self.metadata_path(source, &kept.sha256).ok()?, LIMIT).ok()?;
        (name::hex(&Sha256::digest(&bytes)) == kept.sha256).then_some(bytes)
    }

    /// Only hexadecimal digits become a file's name.
    fn metadata_path(&self, source: &str, sha256: &str) -> Result<PathBuf> {
        let digest = crate::base::Digest::from_hex(crate::base::DigestAlgorithm::Sha256, sha256)?;
        Ok(self.layout.stream(source).join(digest.hex()))
    }

    /// Changes the state of a source: all of `change` becomes visible at once,
    /// or nothing. `files` are the bytes of metadata files that `change` names.
    /// Waits for others who change the same source, and then calls `change`
    /// once more; neither locks nor writes when it changes nothing.
    ///
    /// # Errors
    /// What `change` returns; when something cannot be written, with the old state in place.
    pub fn commit(
        &self,
        source: &str,
        files: &[&[u8]],
        mut change: impl FnMut(&mut Generation) -> Result<()>,
    ) -> Result<()> {
        let folder = self.layout.stream(source);
        let mut changed = |old: &Generation| {
            let mut new = old.clone();
            change(&mut new)?;
            Result::Ok(if new == *old { None } else { Some(new) })
        };
        if changed(&self.generation(source)?)?.is_none() {
            return Ok(());
        }
        fs::create_private_dir(&folder)?;
        let _lock =
            FileLock::acquire(&folder.join(LOCK), Mode::Exclusive, &format!("the records of '{source}'"), PATIENCE)?;
        let Some(new) = changed(&self.generation(source)?)? else { return Ok(()) };
        for bytes in files {
            let path = self.metadata_path(source, &name::hex(&Sha256::digest(bytes)))?;
            fs::write_atomic(&path, bytes, 0o600)?;
        }
        fs::write_json(&folder.join(GENERATION), &new, 0o600)?;
        remove_unnamed(&folder, &new)
    }

    /// The sources of which there is a state.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn sources(&self) -> Result<Vec<String>> {
        let streams = self.layout.streams();
        let mut names = fs::list_dir(&streams)?;
        names.retain(|name| streams.join(name).join(GENERATION).is_file());
        names.sort();
        Ok(names)
    }
}

fn remove_unnamed(folder: &Path, generation: &Generation) -> Result<()> {
    let named: BTreeSet<&str> = generation.metadata.values().map(|kept| kept.sha256.as_str()).collect();
    for file in fs::list_dir(folder)? {
        if file != GENERATION && file != LOCK && !named.contains(file.as_str()) {
            fs::remove_file(&folder.join(file))?;
        }
    }
    Ok(())
}
