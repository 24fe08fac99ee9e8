//! Network task → hash thread → write thread → flush thread, joined by bounded channels.
//!
//! Hashing and writing each keep a processor busy for a while at a gigabyte a
//! second; side by side they cost no more than the slower of them. The disk
//! works on what is written already while the rest still comes: whoever syncs
//! the file at the end has little to wait for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc as channel;
use std::thread::JoinHandle;

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};
use tokio::sync::mpsc;

use crate::base::{Digest, DigestAlgorithm};

/// Chunks between two stages. The client's chunks are at most 400 KiB, so the
/// whole pipeline holds less than 30 MiB.
const DEPTH: usize = 32;
/// Shorter chunks are gathered up to this length before they are written.
/// Small enough to be in the processor's cache still when the kernel copies it.
const BATCH: usize = 256 << 10;
/// What is written is flushed to the disk whenever that much more has come.
const FLUSH: u64 = 64 << 20;

/// The digests of the bytes so far: SHA-256 always, for it names the blob, and
/// SHA-512 when that is what was announced.
#[derive(Clone, Debug)]
pub(super) struct Hashes {
    sha256: Sha256,
    sha512: Option<Sha512>,
}

impl Hashes {
    pub fn new(announced: DigestAlgorithm) -> Self {
        Hashes { sha256: Sha256::new(), sha512: (announced == DigestAlgorithm::Sha512).then(Sha512::new) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// The SHA-256 and the digest of the announced algorithm.
    pub fn digests(&self) -> (Digest, Digest) {
        let sha256 = Digest::from_bytes(DigestAlgorithm::Sha256, &self.sha256.clone().finalize());
        let announced = match &self.sha512 {
            Some(sha512) => Digest::from_bytes(DigestAlgorithm::Sha512, &sha512.clone().finalize()),
            None => sha256.clone(),
        };
        (sha256, announced)
    }
}

/// Takes bytes in order, hashes them and writes them to a file. Dropping it
/// waits until all threads have ended: nobody writes after that.
#[derive(Debug)]
pub(super) struct Sink {
    chunks: Option<mpsc::Sender<Bytes>>,
    threads: Option<Threads>,
}

#[derive(Debug)]
struct Threads {
    hash: JoinHandle<Hashes>,
    write: JoinHandle<io::Result<()>>,
    flush: JoinHandle<io::Result<()>>,
}

impl Sink {
    /// Starts the threads. The first byte goes to offset `at` of `file`.
    pub fn start(file: Arc<File>, at: u64, hashes: Hashes) -> io::Result<Self> {
        let (chunks, to_hash) = mpsc::channel(DEPTH);
        let (hashed, to_write) = channel::sync_channel(DEPTH);
        let (written, to_flush) = channel::sync_channel(1);
        let spawn = |name: &str| std::thread::Builder::new().name(format!("fetch-{name}"));
        // When a later one fails, its end of the channel is dropped with the closure and those before end by themselves.
        let flushed = Arc::clone(&file);
        let flush = spawn("flush").spawn(move || flush(&flushed, &to_flush))?;
        let write = spawn("write").spawn(move || write(&file, at, &to_write, &written))?;
        let hash = spawn("hash").spawn(move || hash(hashes, to_hash, &hashed))?;
        Ok(Sink { chunks: Some(chunks), threads: Some(Threads { hash, write, flush }) })
    }

    /// Hands over the next bytes, waiting while the stages behind are busy.
    /// `false` when writing has failed: [`finish`](Self::finish) tells why.
    pub async fn send(&self, chunk: Bytes) -> bool {
        match &self.chunks {
            Some(chunks) => chunks.send(chunk).await.is_ok(),
            None => false,
        }
    }

    /// Waits until everything is hashed and written.
    pub async fn finish(mut self) -> io::Result<Hashes> {
        self.chunks = None;
        let threads = self.threads.take();
        let joined = tokio::task::spawn_blocking(move || threads.map(Threads::join)).await;
        joined.ok().flatten().unwrap_or_else(|| Err(io::Error::other("a thread of the download failed")))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.chunks = None;
        if let Some(threads) = self.threads.take() {
            let _ = threads.join();
        }
    }
}

impl Threads {
    /// All are waited for, whatever the first one says.
    fn join(self) -> io::Result<Hashes> {
        let failed = |_| io::Error::other("a thread of the download failed");
        let hashes = self.hash.join().map_err(failed);
        let written = self.write.join().map_err(failed);
        // The kernel tells of bytes that it could not keep once only: here, or to the last sync.
        self.flush.join().map_err(failed)??;
        written??;
        hashes
    }
}

fn hash(mut hashes: Hashes, mut chunks: mpsc::Receiver<Bytes>, hashed: &channel::SyncSender<Bytes>) -> Hashes {
    while let Some(chunk) = chunks.blocking_recv() {
        hashes.update(&chunk);
        if hashed.send(chunk).is_err() {
            break;
        }
    }
    hashes
}

fn write(
    file: &File,
    mut at: u64,
    chunks: &channel::Receiver<Bytes>,
    written: &channel::SyncSender<()>,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut flush_at = at + FLUSH;
    let mut put = |bytes: &[u8]| {
        file.write_all_at(bytes, at)?;
        at += bytes.len() as u64;
        if at >= flush_at {
            match written.try_send(()) {
                Ok(()) => flush_at = at + FLUSH,
                // The disk is busy with what came before: go on meanwhile.
                Err(channel::TrySendError::Full(())) => {}
                Err(channel::TrySendError::Disconnected(())) => return Err(io::Error::other("the flush failed")),
            }
        }
        Ok(())
    };
    while let Ok(chunk) = chunks.recv() {
        if batch.len() + chunk.len() > BATCH {
            put(&batch)?;
            batch.clear();
        }
        if chunk.len() > BATCH {
            put(&chunk)?;
        } else {
            batch.extend_from_slice(&chunk);
        }
    }
    put(&batch)
}

fn flush(file: &File, written: &channel::Receiver<()>) -> io::Result<()> {
    while let Ok(()) = written.recv() {
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writes_and_hashes_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"head").unwrap();
        let file = Arc::new(file);
        let mut hashes = Hashes::new(DigestAlgorithm::Sha512);
        hashes.update(b"head");
        let sink = Sink::start(Arc::clone(&file), 4, hashes).unwrap();
        let mut whole = b"head".to_vec();
        // More than the batch, in pieces that do not divide it.
        for n in 0..70u8 {
            let chunk = vec![n; 100_003];
            whole.extend_from_slice(&chunk);
            assert!(sink.send(chunk.into()).await);
        }
        let hashes = sink.finish().await.unwrap();
        let mut found = vec![0; whole.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == whole && file.metadata().unwrap().len() == whole.len() as u64);
        let (sha256, sha512) = hashes.digests();
        assert_eq!(sha256, Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(&whole)));
        assert_eq!(sha512, Digest::from_bytes(DigestAlgorithm::Sha512, &Sha512::digest(&whole)));
    }

    #[tokio::test]
    async fn a_full_disk_stops_the_sender_and_is_told() {
        let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let sink = Sink::start(full, 0, Hashes::new(DigestAlgorithm::Sha256)).unwrap();
        let chunk = Bytes::from(vec![1; 1 << 20]);
        let mut sent = 0;
        while sink.send(chunk.clone()).await {
            sent += 1;
            assert!(sent < 200, "the writer's end was never noticed");
        }
        assert_eq!(sink.finish().await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn a_disk_that_loses_bytes_on_the_way_is_told_of() {
        // Takes every write, and cannot be synced.
        let null = Arc::new(File::options().write(true).open("/dev/null").unwrap());
        let sink = Sink::start(null, 0, Hashes::new(DigestAlgorithm::Sha256)).unwrap();
        let chunk = Bytes::from(vec![1; 8 << 20]);
        for _ in 0..FLUSH / (4 << 20) {
            sink.send(chunk.clone()).await;
        }
        assert_eq!(sink.finish().await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
