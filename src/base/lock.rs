//! Advisory locks on files of their own (`flock(2)`): released by the kernel
//! when the process ends, however it ends.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use super::poll::{self, Deadline};
use super::{Error, Kind, Result, fs};

/// A lock held until it is dropped. Never rename or remove the file under it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    mode: Mode,
}

/// Whether others may hold the same lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

impl FileLock {
    /// Takes the lock, waiting up to `patience` for other holders. Makes the
    /// file when it is absent; its folder must exist.
    ///
    /// `what` names the locked thing in messages, as in "guest 'web'".
    ///
    /// # Errors
    /// [`super::Kind::TimedOut`], saying who holds it; [`super::Kind::Interrupted`] on Ctrl-C.
    pub fn acquire(path: &Path, mode: Mode, what: &str, patience: Duration) -> Result<Self> {
        let deadline = Deadline::after(patience);
        let mut told = false;
        poll::until(&deadline, Duration::from_millis(20), || {
            let got = Self::try_acquire(path, mode)?;
            if got.is_none() && !told {
                told = true;
                tracing::debug!(what, "waiting for the lock");
            }
            Ok(got)
        })?
        .ok_or_else(|| {
            let holder = Self::holder(path).map(|who| format!(" ({who})")).unwrap_or_default();
            Error::timed_out(format!("{what} is in use by another virga{holder}"))
                .hint("wait until that command is done, then try again")
        })
    }

    /// Takes the lock if it is free now.
    ///
    /// # Errors
    /// When the file cannot be opened or locked at all.
    pub fn try_acquire(path: &Path, mode: Mode) -> Result<Option<Self>> {
        let mut file = fs::open_or_create(path)?;
        let got = match mode {
            Mode::Shared => file.try_lock_shared(),
            Mode::Exclusive => file.try_lock(),
        };
        match got {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(fs::explain(error, "locking", path)),
        }
        if !is_at(&file, path) {
            // Locked what has just been moved away or removed: whoever comes next locks another file.
            return Ok(None);
        }
        if mode == Mode::Exclusive {
            // Only for the message that another process prints; a failure is no reason to stop.
            // The verb and no more: arguments may be secret.
            let verb = std::env::args_os().nth(1).unwrap_or_default();
            let note = format!("pid {}: virga {}\n", std::process::id(), verb.to_string_lossy());
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(note.as_bytes()));
        }
        Ok(Some(FileLock { file, mode }))
    }

    /// What the exclusive holder of a lock says of itself: its number and its verb.
    #[must_use]
    pub fn holder(path: &Path) -> Option<String> {
        let mut text = String::new();
        fs::open(path).ok()?.take(200).read_to_string(&mut text).ok()?;
        let line = text.lines().next()?.trim().to_owned();
        (!line.is_empty()).then_some(line)
    }

    /// Blocks until nobody holds the lock, or its file is gone. Takes no processor's time, and is not interrupted.
    ///
    /// # Errors
    /// When the file cannot be opened or locked at all.
    pub fn wait_free(path: &Path) -> Result<()> {
        let file = match fs::open(path) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            other => other?,
        };
        file.lock().map_err(|error| fs::explain(error, "locking", path))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.mode == Mode::Exclusive {
            let _ = self.file.set_len(0);
        }
        // Closing unlocks as well; a child that inherited the handle must not keep it.
        let _ = self.file.unlock();
    }
}

/// Whether `path` still leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    matches!((file.metadata(), std::fs::symlink_metadata(path)), (Ok(a), Ok(b)) if same(&a, &b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_excludes_and_says_who() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = FileLock::acquire(&path, Mode::Exclusive, "x", Duration::ZERO).unwrap();
        let refused = FileLock::acquire(&path, Mode::Shared, "guest 'x'", Duration::from_millis(30)).unwrap_err();
        assert_eq!(refused.kind(), crate::base::Kind::TimedOut);
        assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(held);
        let one = FileLock::try_acquire(&path, Mode::Shared).unwrap();
        let two = FileLock::try_acquire(&path, Mode::Shared).unwrap();
        assert!(one.is_some() && two.is_some());
        assert!(FileLock::try_acquire(&path, Mode::Exclusive).unwrap().is_none());
    }
}
