//! The last verified metadata of a source, with what the server said to tell
//! a newer version by.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::base::{RelPath, Result, fs, name};

/// Most bytes of one file.
const LIMIT: u64 = 512 << 20;

/// A metadata file as it came, signature included.
#[derive(Clone, Debug)]
pub struct Cached {
    /// The file.
    pub bytes: Vec<u8>,
    /// The server's `ETag`.
    pub etag: Option<String>,
    /// The server's `Last-Modified`.
    pub last_modified: Option<String>,
}

/// What is written beside a file. Names the file's digest, so that a file and
/// notes of different times are found out.
#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    path: RelPath,
    sha256: String,
    etag: Option<String>,
    last_modified: Option<String>,
}

/// The folder of one source.
#[derive(Debug)]
pub struct StreamCache {
    dir: PathBuf,
}

impl StreamCache {
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        fs::create_private_dir(&dir)?;
        Ok(StreamCache { dir })
    }

    /// A stream's path never becomes a path of ours.
    fn file(&self, path: &RelPath, extension: &str) -> PathBuf {
        let hash = name::hex(&Sha256::digest(path.as_str())[..16]);
        self.dir.join(format!("{hash}.{extension}"))
    }

    /// The copy of a file; `None` when there is none that is whole.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn get(&self, path: &RelPath) -> Result<Option<Cached>> {
        let Ok(Some(notes)) = fs::read_json::<Notes>(&self.file(path, "json")) else { return Ok(None) };
        let Ok(bytes) = fs::read(&self.file(path, "data"), LIMIT) else { return Ok(None) };
        let whole = notes.path == *path && notes.sha256 == name::hex(&Sha256::digest(&bytes));
        Ok(whole.then_some(Cached { bytes, etag: notes.etag, last_modified: notes.last_modified }))
    }

    /// Keeps a file that was verified.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, path: &RelPath, bytes: &[u8], etag: Option<&str>, last_modified: Option<&str>) -> Result<()> {
        fs::write_atomic(&self.file(path, "data"), bytes, 0o600)?;
        let notes = Notes {
            path: path.clone(),
            sha256: name::hex(&Sha256::digest(bytes)),
            etag: etag.map(str::to_owned),
            last_modified: last_modified.map(str::to_owned),
        };
        fs::write_json(&self.file(path, "json"), &notes, 0o600)
    }
}
