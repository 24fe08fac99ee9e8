//! Guests that are to go by themselves: with the command that needed them, or
//! when their time is over.
//!
//! Each session has a keeper: a process of ours that waits until the session
//! is over and then removes its guests. Where the keeper is gone too, the next
//! command does that.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;

use super::{Env, destroy};
use crate::base::cmd::{Cmd, Detached};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestName, Result, SessionId, fs, interrupt, state};
use crate::config;
use crate::guest::{self, Entry};
use crate::session::{self, Session};

/// The verb that a keeper is started with; the session's id follows.
pub const KEEP: &str = "__keep";

/// A keeper ends within this time when its session is cleared away.
const CLOSING: Duration = Duration::from_secs(2);

/// How long a guest is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Until it is destroyed.
    Kept,
    /// As long as this session.
    Session(SessionId),
    /// So long, or until it is destroyed.
    Limited(Duration),
}

/// A session of this process: its guests go when it is ended, and when this process dies.
#[derive(Debug)]
pub struct Owned {
    session: Session,
    keeper: Detached,
}

impl Owned {
    /// Begins one.
    ///
    /// # Errors
    /// When its files cannot be written, or the keeper cannot be started.
    pub fn begin(env: Env<'_>) -> Result<Self> {
        state::prepare(&env.settings.layout)?;
        let session = Session::begin(&env.settings.layout)?;
        match keeper(&session.id) {
            Ok(keeper) => Ok(Owned { session, keeper }),
            Err(error) => {
                session.remove()?;
                Err(error)
            }
        }
    }

    /// What its guests are made with.
    #[must_use]
    pub fn life(&self) -> Life {
        Life::Session(self.session.id.clone())
    }

    /// Removes its guests, whatever was interrupted, and then itself.
    ///
    /// # Errors
    /// What could not be removed; the keeper tries again.
    pub fn end(mut self, env: Env<'_>) -> Result<()> {
        interrupt::shielded(|| {
            clear(env, &self.session.id, false)?;
            self.session.remove()?;
            let gone = || self.keeper.ended().map(|ended| ended.map(drop));
            poll::to_the_end(&Deadline::after(CLOSING), Duration::from_millis(2), gone).map(drop)
        })
    }
}

/// Lets a guest stay when its session ends.
///
/// # Errors
/// As [`guest::hold`].
pub fn release(env: Env<'_>, name: &GuestName) -> Result<()> {
    let mut held = guest::hold(&env.settings.layout, name)?;
    held.record.session = None;
    held.save()
}

/// The session that a new guest is to belong to. One made for it alone gets its keeper.
///
/// # Errors
/// When it cannot be made.
pub(super) fn of(env: Env<'_>, life: &Life) -> Result<Option<SessionId>> {
    match life {
        Life::Kept => Ok(None),
        Life::Session(id) => Ok(Some(id.clone())),
        Life::Limited(time) => {
            let id = session::lease(&env.settings.layout, session::after(*time)?)?;
            // It ends by itself when the session is cleared away.
            keeper(&id).map(drop)?;
            Ok(Some(id))
        }
    }
}

/// Takes back what [`of`] made for a guest that was not made.
///
/// # Errors
/// When its files cannot be removed.
pub(super) fn give_up(env: Env<'_>, id: &SessionId) -> Result<()> {
    session::end_lease(&env.settings.layout, id)
}

/// Starts the process that outlives a session.
fn keeper(id: &SessionId) -> Result<Detached> {
    // What it could say nobody would hear: what it cannot remove, the next command tries again, and says so.
    let nowhere = fs::open_or_create(Path::new("/dev/null"))?;
    Cmd::new("/proc/self/exe").args([KEEP, id.as_str()]).spawn_knowing(
        &config::VARIABLES,
        Stdio::null(),
        Stdio::null(),
        nowhere,
    )
}

/// What a keeper does: blocks until the session is over, then removes its guests.
///
/// # Errors
/// What could not be removed.
pub fn keep(env: Env<'_>, id: &SessionId) -> Result<()> {
    interrupt::shielded(|| match session::outlive(&env.settings.layout, id)? {
        Some(over) => finish(env, over, false).map(drop),
        None => Ok(()),
    })
}

/// Removes the guests of every session that is over, and says so. Where there is none this is one look into a folder.
/// What cannot be removed is a warning.
pub fn sweep(env: Env<'_>) {
    let over = session::over(&env.settings.layout, Timestamp::now()).unwrap_or_default();
    for session in over {
        match finish(env, session, false) {
            Ok(names) => {
                for name in names {
                    env.reporter.note(&format!("removed '{name}': what it was made for is over"));
                }
            }
            Err(error) => env.reporter.warn(&format!("a throwaway guest cannot be removed: {error}")),
        }
    }
}

/// Something that a dead command left.
#[derive(Clone, Debug)]
pub struct Left {
    /// The guest.
    pub name: GuestName,
    /// Why it goes, as a part of a sentence.
    pub why: &'static str,
}

/// Removes what dead commands left: guests of sessions that are over, guests that were never finished, machines at
/// their backends whose folder is gone. With `dry_run` only tells. Calls `done` for each.
///
/// # Errors
/// The first that could not be removed, after all were tried.
pub fn collect_garbage(env: Env<'_>, dry_run: bool, mut done: impl FnMut(&Left)) -> Result<()> {
    let layout = &env.settings.layout;
    let mut first = None;
    for session in session::over(layout, Timestamp::now())? {
        match finish(env, session, dry_run) {
            Ok(names) => {
                names.into_iter().for_each(|name| done(&Left { name, why: "what it was made for is over" }));
            }
            Err(error) => first = first.or(Some(error)),
        }
    }
    for left in abandoned(env)? {
        let removed = if dry_run { Ok(true) } else { destroy::destroy(env, &left.name) };
        match removed {
            Ok(_) => done(&left),
            Err(error) => first = first.or(Some(error)),
        }
    }
    guest::sweep(layout, dry_run)?;
    first.map_or(Ok(()), Err)
}

/// Half-made guests that nobody is at work on, and machines without a folder.
fn abandoned(env: Env<'_>) -> Result<Vec<Left>> {
    let mut left = Vec::new();
    for listed in super::list::list(env)? {
        let why = match listed.state {
            super::list::State::HalfMade => "the command that made it was killed",
            super::list::State::Orphan => "nothing but its machine is left",
            _ => continue,
        };
        // One that is being made right now is held.
        if guest::is_free(&env.settings.layout, &listed.name)? {
            left.push(Left { name: listed.name, why });
        }
    }
    Ok(left)
}

fn finish(env: Env<'_>, session: Session, dry_run: bool) -> Result<Vec<GuestName>> {
    let names = clear(env, &session.id, dry_run)?;
    if !dry_run {
        session.remove()?;
    }
    Ok(names)
}

/// Removes a session's guests; all are tried.
fn clear(env: Env<'_>, id: &SessionId, dry_run: bool) -> Result<Vec<GuestName>> {
    let mut names = Vec::new();
    let mut first: Option<Error> = None;
    for entry in guest::list(&env.settings.layout)? {
        let Entry::Known(record) = entry else { continue };
        if record.session.as_ref() != Some(id) {
            continue;
        }
        let name = record.name().clone();
        match if dry_run { Ok(true) } else { destroy::destroy(env, &name) } {
            Ok(_) => names.push(name),
            Err(error) => first = first.or(Some(error)),
        }
    }
    if !dry_run {
        // The one that was about to get its name.
        guest::sweep(&env.settings.layout, false)?;
    }
    first.map_or(Ok(names), Err)
}
