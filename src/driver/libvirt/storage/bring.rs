//! Bytes that go to a daemon: an image's blob, once for all commands that need
//! it, and whatever else is uploaded.

use std::time::Duration;

use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt::sys;

use super::{Storage, blob_name, volume};
use crate::base::plan::{DiskFormat, Layer};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Kind, Result, fs, interrupt};
use crate::driver::libvirt::connection::{doing, found};

/// Bytes that are sent at once: libvirt cuts larger pieces itself.
const PIECE: usize = 256 << 10;

/// For another command that brings the same image.
const PATIENCE: Duration = Duration::from_secs(900);

/// After so long a volume that does not grow is nobody's: its command was killed.
const STILL: Duration = Duration::from_secs(5);

impl Storage<'_> {
    /// Brings an image's blob into the pool, unless it is there. Two at once do it once.
    pub(super) fn bring(&self, pool: &StoragePool, layer: &Layer) -> Result<()> {
        if layer.path.starts_with(self.folder(pool)?) {
            return Ok(());
        }
        let name = blob_name(layer)?;
        let length = fs::open(&layer.path)?.metadata().map_err(|e| fs::explain(e, "reading", &layer.path))?.len();
        let mut seen: Option<(u64, Deadline)> = None;
        let brought = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(200), || {
            let there = self.volume(pool, &name)?;
            // It may go while it is looked at.
            if let Some(there) = &there
                && let Some(size) = physical(there)?
            {
                if size == length {
                    return Ok(Some(()));
                }
                // On its way, or left by a killed command: that one does not grow.
                match seen.take().filter(|(before, _)| *before == size) {
                    // libvirt does not delete what somebody writes to.
                    Some((_, patience)) if patience.passed() => drop(there.delete(0)),
                    since => seen = since.or_else(|| Some((size, Deadline::after(STILL)))),
                }
                return Ok(None);
            }
            self.send_blob(pool, &name, layer, length)
        })?;
        brought.ok_or_else(|| Error::timed_out(format!("another command did not get done with bringing '{name}'")))
    }

    /// Makes the volume of a blob; `None` when another command took its place.
    fn send_blob(&self, pool: &StoragePool, name: &str, layer: &Layer, length: u64) -> Result<Option<()>> {
        // As raw bytes: what they are shows when they are there.
        let volume = match self.create(pool, &volume(name, 0, DiskFormat::Raw, None)) {
            Err(error) if error.kind() == Kind::Exists => return Ok(None),
            made => made?,
        };
        match self.upload(&volume, &mut fs::open(&layer.path)?, length, interrupt::check) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => {
                // What went wrong first tells more.
                let _ = volume.delete(0);
                Err(error)
            }
        }
    }

    /// Sends bytes into a volume, while `go_on` finds nothing against it.
    ///
    /// # Errors
    /// What libvirt or `go_on` said.
    pub(in crate::driver::libvirt) fn upload(
        &self,
        volume: &StorageVol,
        from: &mut dyn std::io::Read,
        length: u64,
        go_on: fn() -> Result<()>,
    ) -> Result<()> {
        let what = || "sending a disk to libvirt";
        let stream = Stream::new(self.connection, 0).map_err(doing(what()))?;
        volume.upload(&stream, 0, length, 0).map_err(doing(what()))?;
        match send(&stream, from, go_on) {
            Ok(()) => stream.finish().map_err(doing(what())),
            Err(error) => {
                // What broke it is known; that the stream does not end well says nothing more.
                let _ = stream.abort();
                Err(error)
            }
        }
    }
}

fn send(stream: &Stream, from: &mut dyn std::io::Read, go_on: fn() -> Result<()>) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        go_on()?;
        let mut filled = 0;
        // Whole pieces: a short read is no reason for a short message.
        while filled < piece.len() {
            match from.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::failed("reading an image").because(error)),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        let mut rest = &piece[..filled];
        while !rest.is_empty() {
            let sent = stream.send(rest).map_err(doing("sending a disk to libvirt"))?;
            rest = &rest[usize::try_from(sent).unwrap_or(0).min(rest.len())..];
        }
    }
}

/// Bytes of the volume's file; `None` when it is gone.
pub(super) fn physical(volume: &StorageVol) -> Result<Option<u64>> {
    let info = found(volume.info_flags(sys::VIR_STORAGE_VOL_GET_PHYSICAL), || "looking at a volume".into())?;
    Ok(info.map(|info| info.allocation))
}
