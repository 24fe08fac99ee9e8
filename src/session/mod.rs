//! Sessions: what throwaway guests belong to, so that they go when nobody
//! needs them any more, however that comes.
//!
//! A session is two files. Its lock is held by the command that owns it: the
//! kernel lets go of it when that process ends, also by SIGKILL, and then the
//! session is over. A session with a time limit is held by nobody and is over
//! when the time has come. A guest's record names its session; whoever finds
//! one that is over removes its guests, and then the session.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::layout::SessionFiles;
use crate::base::lock::{FileLock, Mode};
use crate::base::{Error, Layout, Result, SessionId, fs};

/// The content of a session's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// When it is over; `None`: when its owner has ended.
    until: Option<Timestamp>,
}

/// A session whose lock is held here: our own, or one that is over and is being cleared away.
#[derive(Debug)]
pub struct Session {
    /// Its id, which the records of its guests carry.
    pub id: SessionId,
    files: SessionFiles,
    _lock: FileLock,
}

impl Session {
    /// Begins one that is over when this is dropped, or this process has ended.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn begin(layout: &Layout) -> Result<Self> {
        Self::make(layout, None)
    }

    /// Ends it: its files go. Its guests are the caller's affair, before this.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.files.record())?;
        // While it is held: whoever waits for the lock finds that the file is gone.
        fs::remove_file(&self.files.lock())
    }

    fn make(layout: &Layout, until: Option<Timestamp>) -> Result<Self> {
        fs::create_private_dir(&layout.sessions())?;
        let id = SessionId::generate()?;
        let files = layout.session(&id);
        // Somebody who clears away may look at the new file before it is ours; not for long.
        let lock = FileLock::acquire(&files.lock(), Mode::Exclusive, "the new session", Duration::from_secs(2))?;
        fs::write_json(&files.record(), &Record { until }, 0o600)?;
        Ok(Session { id, files, _lock: lock })
    }
}

/// Makes one that is over at a time, whoever lives.
///
/// # Errors
/// When its files cannot be written.
pub fn lease(layout: &Layout, until: Timestamp) -> Result<SessionId> {
    Session::make(layout, Some(until)).map(|session| session.id)
}

/// Ends a session with a time limit, whose guest is gone; any other is left alone.
///
/// # Errors
/// When its files cannot be removed.
pub fn end_lease(layout: &Layout, id: &SessionId) -> Result<()> {
    if until(layout, id)?.is_none() {
        return Ok(());
    }
    let files = layout.session(id);
    fs::remove_file(&files.record())?;
    fs::remove_file(&files.lock())
}

/// The sessions that are over, each held, so that nobody else clears it away.
///
/// # Errors
/// When the folder of sessions cannot be read.
pub fn over(layout: &Layout, now: Timestamp) -> Result<Vec<Session>> {
    fs::sweep_temporary(&layout.sessions())?;
    let names = fs::list_dir(&layout.sessions())?;
    let ids = names.iter().filter_map(|name| name.strip_suffix(SessionFiles::LOCK)?.parse::<SessionId>().ok());
    let mut over = Vec::new();
    for id in ids {
        over.extend(claim(layout, id, now)?);
    }
    Ok(over)
}

/// Takes a session that is over; `None` when it is not, or somebody else clears it away.
fn claim(layout: &Layout, id: SessionId, now: Timestamp) -> Result<Option<Session>> {
    let files = layout.session(&id);
    if !files.lock().exists() {
        return Ok(None);
    }
    let Some(lock) = FileLock::try_acquire(&files.lock(), Mode::Exclusive)? else { return Ok(None) };
    // One without a record was never begun: its owner ended before.
    let until = fs::read_json::<Record>(&files.record())?.and_then(|record| record.until);
    let over = until.is_none_or(|until| until <= now);
    Ok(over.then_some(Session { id, files, _lock: lock }))
}

/// When a session is over by the clock; `None` when its owner decides, or it is gone.
///
/// # Errors
/// When its record cannot be read.
pub fn until(layout: &Layout, id: &SessionId) -> Result<Option<Timestamp>> {
    Ok(fs::read_json::<Record>(&layout.session(id).record())?.and_then(|record| record.until))
}

/// Blocks until a session is over, and takes it; `None` when somebody else has cleared it away.
///
/// # Errors
/// When its files cannot be read.
pub fn outlive(layout: &Layout, id: &SessionId) -> Result<Option<Session>> {
    let files = layout.session(id);
    loop {
        if !files.record().exists() {
            return Ok(None);
        }
        match until(layout, id)? {
            None => FileLock::wait_free(&files.lock())?,
            Some(until) => nap(until),
        }
        if let Some(session) = claim(layout, id.clone(), Timestamp::now())? {
            return Ok(Some(session));
        }
    }
}

/// Sleeps towards a time, and looks up now and then: the clock may be set, and the guest destroyed before.
fn nap(until: Timestamp) {
    const LONGEST: Duration = Duration::from_secs(1);
    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    crate::base::poll::sleep(left.min(LONGEST).max(Duration::from_millis(10)));
}

/// The time after which something that may live this long is over.
///
/// # Errors
/// [`crate::base::Kind::Usage`] for a time beyond the calendar.
pub fn after(ttl: Duration) -> Result<Timestamp> {
    let far = |_| Error::usage("that is too long a time to live");
    Timestamp::now().checked_add(jiff::SignedDuration::try_from(ttl).map_err(far)?).map_err(far)
}

#[cfg(test)]
mod tests;
