//! Image records: what is known of one image.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Pool;
use crate::base::plan::DiskFormat;
use crate::base::{Digest, ImageId, Result, Trust};

/// The source of images that were made of guests here; the key that names the guest, too.
pub const PUBLISHED: &str = "published";

/// What is known of one image: what its stream said, and which blob it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its id.
    pub id: ImageId,
    /// The source that it came from.
    pub source: String,
    /// The stream's flattened keys.
    pub keys: BTreeMap<String, String>,
    /// The digest that the stream announced.
    pub announced: Digest,
    /// The blob: its SHA-256.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// What a guest sees of it; `None` for a file that is no disk image.
    pub disk: Option<DiskFacts>,
    /// When it was fetched.
    pub synced_at: Timestamp,
    /// Since when the source no longer offers it, or a newer version replaced it.
    pub retired_at: Option<Timestamp>,
    /// Why it is trusted.
    pub chain: Chain,
    /// Who vouched for it, in a word; records of old have none, see [`trust`](Self::trust).
    #[serde(default)]
    pub trust: Option<Trust>,
}

/// What the header of a disk image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// The format, as read from the blob.
    pub format: DiskFormat,
    /// Bytes that a guest sees.
    pub virtual_size: u64,
}

/// The chain of trust from a key to an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The index that led to the products document.
    pub index: Link,
    /// The products document that announced the image's digest.
    pub products: Link,
    /// Where the bytes lie, from the stream's root.
    pub path: String,
}

impl Chain {
    /// Who vouched for it: a chain is as strong as its weakest link.
    #[must_use]
    pub fn trust(&self) -> Trust {
        let signed = [&self.index, &self.products].iter().all(|link| link.signature.is_some());
        if signed { Trust::Signed } else { Trust::Unsigned }
    }
}

/// One document of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Where it came from, without credentials.
    pub url: String,
    /// SHA-256 of the verified text, hexadecimal.
    pub sha256: String,
    /// Who signed it; `None` when it was taken unsigned.
    pub signature: Option<Signature>,
}

/// A signature that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The primary key: what is pinned.
    pub fingerprint: String,
    /// The key that signed: the primary or a sub-key.
    pub signing_key: String,
    /// The key's name for its owner.
    pub user_id: String,
    /// When the signature says that it was made.
    pub signed_at: Timestamp,
    /// The hash that was signed, as in `SHA512`.
    pub hash: String,
}

impl ImageRecord {
    /// One of the stream's keys; an absent one is empty, as in filters.
    #[must_use]
    pub fn key(&self, key: &str) -> &str {
        self.keys.get(key).map(String::as_str).unwrap_or_default()
    }

    /// Whether it was made of a guest here.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.source == PUBLISHED
    }

    /// Who vouched for it.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.trust.unwrap_or_else(|| if self.is_own() { Trust::Own } else { self.chain.trust() })
    }

    /// The stream's keys, and `source` and `trust` as they are known here: what filters look at.
    #[must_use]
    pub fn described(&self) -> BTreeMap<String, String> {
        let mut keys = self.keys.clone();
        keys.extend([("source".into(), self.source.clone()), ("trust".into(), self.trust().word().into())]);
        keys
    }

    /// Fingerprint of the key that signed for it; `None` for an unsigned source.
    #[must_use]
    pub fn signer(&self) -> Option<&str> {
        self.chain.products.signature.as_ref().map(|signature| signature.fingerprint.as_str())
    }
}

impl Pool {
    /// All records, retired ones too, by source and id. A source whose records
    /// cannot be read is passed over with a warning.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn records(&self) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        for source in self.sources()? {
            match self.generation(&source) {
                Ok(generation) => records.extend(generation.images.into_values()),
                Err(error) => {
                    tracing::warn!(source, cause = ?error.causes(), "the records of a source cannot be read");
                }
            }
        }
        Ok(records)
    }

    /// All records, each of them readable. Anything else makes this fail:
    /// nobody knows then which blobs they name.
    ///
    /// # Errors
    /// When a source's records cannot be read.
    pub(super) fn every_record(&self) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        for source in self.sources()? {
            let generation = self.generation(&source).map_err(|error| {
                error.hint(format!("remove it, and sync again: {}", self.layout.stream(&source).display()))
            })?;
            records.extend(generation.images.into_values());
        }
        Ok(records)
    }

    /// The blobs that records name.
    ///
    /// # Errors
    /// When a source's records cannot be read: nobody knows then what they name.
    pub fn blobs_named(&self) -> Result<BTreeSet<Digest>> {
        Ok(self.every_record()?.into_iter().map(|record| record.blob).collect())
    }

    /// One record; `None` when there is none.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn record(&self, id: &ImageId) -> Result<Option<ImageRecord>> {
        Ok(self.records()?.into_iter().find(|record| record.id == *id))
    }

    /// Forgets images. Their blobs stay until a sweep. Those that are not there are passed over.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub fn forget(&self, ids: &[ImageId]) -> Result<()> {
        for source in self.sources()? {
            self.commit(&source, &[], |generation| {
                generation.images.retain(|id, _| !ids.contains(id));
                Ok(())
            })?;
        }
        Ok(())
    }
}
