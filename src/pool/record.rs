//! Image records: one small JSON file an image.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Pool;
use crate::base::plan::DiskFormat;
use crate::base::{Digest, ImageId, Result, fs};

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
    /// The blob's format, as read from it.
    pub format: DiskFormat,
    /// Bytes that a guest sees.
    pub virtual_size: u64,
    /// When it was fetched.
    pub synced_at: Timestamp,
    /// Fingerprint of the key that signed for it; `None` for an unsigned source.
    pub signer: Option<String>,
}

impl ImageRecord {
    /// One of the stream's keys; an absent one is empty, as in filters.
    #[must_use]
    pub fn key(&self, key: &str) -> &str {
        self.keys.get(key).map(String::as_str).unwrap_or_default()
    }
}

impl Pool {
    /// All records, by id. One that cannot be read is passed over with a
    /// warning: the next sync writes it anew.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn records(&self) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        for name in fs::list_dir(&self.layout.images())? {
            let Some(Ok(id)) = name.strip_suffix(".json").map(str::parse::<ImageId>) else { continue };
            match self.record(&id) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%id, cause = ?error.causes(), "the record of an image cannot be read"),
            }
        }
        Ok(records)
    }

    /// One record; `None` when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn record(&self, id: &ImageId) -> Result<Option<ImageRecord>> {
        fs::read_json(&self.layout.image(id))
    }

    /// Writes a record, atomically, over an older one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_record(&self, record: &ImageRecord) -> Result<()> {
        fs::write_json(&self.layout.image(&record.id), record, 0o644)
    }

    /// Removes a record; being absent is success. Its blob stays until a sweep.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_record(&self, id: &ImageId) -> Result<()> {
        fs::remove_file(&self.layout.image(id))
    }
}
