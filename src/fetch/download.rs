//! The file of a download under way, and the note beside it.
//!
//! The file's length is the truth about how far the download is: space is
//! reserved beyond its end, never within. The note (`<file>.json`) says what
//! the bytes came from, so that a server can be asked to continue only if it
//! still has the same thing.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::item::Expected;
use super::pipeline::{Hashes, Sink};
use super::{Stop, Target, Validators};
use crate::base::{ByteSize, Digest, Error, Result, fs};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Without credentials.
    url: String,
    #[serde(flatten)]
    validators: Validators,
}

/// A download under way. Its caller has made sure that it is the only writer.
#[derive(Debug)]
pub(super) struct Download {
    path: PathBuf,
    file: Arc<File>,
    want: Expected,
    hashes: Hashes,
    at: u64,
    note: Option<Note>,
}

impl Download {
    /// Opens or makes the file, hashes what an earlier attempt left in it, and
    /// reserves the space for the rest. Blocks.
    pub fn open(path: &Path, want: &Expected, stop: Stop) -> Result<Self> {
        let file = fs::open_or_create(path)?;
        // A note that cannot be read is as good as none.
        let note: Option<Note> = fs::read_json(&beside(path)).unwrap_or_default();
        let hashes = Hashes::new(want.digest.algorithm());
        let mut download =
            Download { path: path.to_owned(), file: Arc::new(file), want: want.clone(), hashes, at: 0, note };
        let found = download.metadata()?.len();
        if found > want.size || (found > 0 && download.note.is_none()) {
            download.restart()?;
        } else {
            download.hash_up_to(found, stop)?;
            download.reserve()?;
        }
        Ok(download)
    }

    /// Bytes that are there and hashed.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether nothing is missing.
    pub fn complete(&self) -> bool {
        self.at == self.want.size
    }

    /// The SHA-256 and the digest of the announced algorithm.
    pub fn digests(&self) -> (Digest, Digest) {
        self.hashes.digests()
    }

    /// What recognises the bytes that are there, if they came from this URL.
    pub fn validators(&self, target: &Target) -> Option<&Validators> {
        self.note.as_ref().filter(|note| note.url == target.shown).map(|note| &note.validators)
    }

    /// Throws the bytes away and reserves the space anew.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| fs::explain(error, "emptying", &self.path))?;
        self.hashes = Hashes::new(self.want.digest.algorithm());
        self.at = 0;
        self.reserve()
    }

    /// Notes where the bytes come from that are about to be written at the start.
    pub fn note(&mut self, target: &Target, validators: Validators) -> Result<()> {
        let note = Note { url: target.shown.clone(), validators };
        if self.note.as_ref() != Some(&note) {
            fs::write_json(&beside(&self.path), &note, 0o600)?;
            self.note = Some(note);
        }
        Ok(())
    }

    /// Begins appending.
    pub fn sink(&self) -> Result<Sink> {
        Sink::start(Arc::clone(&self.file), self.at, self.hashes.clone())
            .map_err(|error| Error::failed("starting the threads of the download").because(error))
    }

    /// Ends appending: waits for the threads and takes over how far they came.
    pub async fn absorb(&mut self, sink: Sink) -> Result<()> {
        self.hashes = sink.finish().await.map_err(|error| {
            fs::explain(error, "writing", &self.path).hint("what was downloaded is kept, to be continued from")
        })?;
        self.at = self.metadata()?.len();
        Ok(())
    }

    /// Removes the file and its note.
    pub fn discard(self) -> Result<()> {
        fs::remove_file(&self.path)?;
        fs::remove_file(&beside(&self.path))
    }

    fn metadata(&self) -> Result<std::fs::Metadata> {
        self.file.metadata().map_err(|error| fs::explain(error, "reading", &self.path))
    }

    fn hash_up_to(&mut self, end: u64, stop: Stop) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        while self.at < end {
            stop.check()?;
            let room = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(buffer.len());
            self.file
                .read_exact_at(&mut buffer[..room], self.at)
                .map_err(|error| fs::explain(error, "reading", &self.path))?;
            self.hashes.update(&buffer[..room]);
            self.at += room as u64;
        }
        Ok(())
    }

    /// Makes sure that the rest fits, before minutes are spent on it.
    fn reserve(&self) -> Result<()> {
        // `blocks` counts units of 512 bytes, those reserved by an earlier attempt too.
        let have = self.metadata()?.blocks().saturating_mul(512);
        let need = self.want.size.saturating_sub(have);
        let free = fs::free_space(self.path.parent().unwrap_or(Path::new("/")))?;
        if need > free {
            return Err(self.too_full(need, free));
        }
        if need == 0 {
            return Ok(());
        }
        // KEEP_SIZE: the file must not look longer than what was written. It
        // also saves the file system from growing the file bit by bit.
        match fallocate(&*self.file, FallocateFlags::KEEP_SIZE, 0, self.want.size) {
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Err(self.too_full(need, free)),
            // Not every file system can; the check above has to do there.
            _ => Ok(()),
        }
    }

    fn too_full(&self, need: u64, free: u64) -> Error {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let (need, free) = (ByteSize(need), ByteSize(free));
        Error::failed(format!("the download needs {need} and '{}' has {free} free", folder.display()))
            .hint("'virga prune' frees images that no guest uses, VIRGA_HOME moves the state")
    }
}

/// The note's path: the file's, with `.json` added.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}
