//! What a program writes, read as it is written.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};

use crate::base::{Error, Result};

/// Most bytes kept of each of a program's two outputs.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// What can be in a pipe at the most without special rights (pipe(7)): all that a program said before its end.
const CAPACITY: usize = 1 << 20;

/// A pipe that is read on a thread into memory that can be looked at meanwhile.
#[derive(Debug)]
pub(super) struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Written to when the writer has ended: then what is in the pipe is all that there will be.
    over: Arc<OwnedFd>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    pub(super) fn new() -> Result<Self> {
        let over = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .map_err(|error| Error::failed("making room for a program's output").because(error))?;
        Ok(Captured { bytes: Arc::default(), over: Arc::new(over), reader: None })
    }

    pub(super) fn begin<R: Into<OwnedFd>>(&mut self, pipe: Option<R>) {
        let (bytes, over) = (Arc::clone(&self.bytes), Arc::clone(&self.over));
        self.reader = pipe.map(|pipe| {
            let pipe = pipe.into();
            std::thread::spawn(move || read_until(&pipe, &over, &bytes))
        });
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written, once the program has ended. A child that it left
    /// behind may hold the pipe open: what that says is not waited for.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.end();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        std::mem::take(&mut *self.lock())
    }

    fn end(&self) {
        // Nothing but a number of ours is in it: this does not fail.
        let _ = rustix::io::write(&*self.over, &1_u64.to_ne_bytes());
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads to the pipe's end, or to where nothing is in it once it is `over`: no child that was left behind is listened
/// to, however much it says. What is over the limit is read and dropped,
/// so that a full pipe never blocks the program.
fn read_until(pipe: &OwnedFd, over: &OwnedFd, bytes: &Mutex<Vec<u8>>) {
    let mut piece = [0; 8192];
    let mut since = 0;
    while since < CAPACITY {
        let mut both = [PollFd::new(pipe, PollFlags::IN), PollFd::new(over, PollFlags::IN)];
        match rustix::event::poll(&mut both, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if both[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        match rustix::io::read(pipe, &mut piece) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) | Ok(0) => return,
            Ok(count) => {
                since += if both[1].revents().is_empty() { 0 } else { count };
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                if (bytes.len() as u64) < OUTPUT_LIMIT {
                    bytes.extend_from_slice(&piece[..count]);
                }
            }
        }
    }
}
