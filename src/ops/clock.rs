//! The clock of a guest that was held: due from before it goes on until it was told the time.

use std::time::Duration;

use super::{Env, ssh};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Kind, Result};
use crate::guest::{Held, Record};
use crate::ssh::clock;

/// Until setting a guest's clock is given up, with a warning: one that was held may take a while to find itself.
const CLOCK: Duration = Duration::from_secs(120);

/// The same for one that runs already and was not told when it went on: there may be nobody in it to be told.
const AGAIN: Duration = Duration::from_secs(5);

/// How often a guest may refuse that, twice a second at the most: one without `sudo` is not bothered longer.
const REFUSALS: usize = 10;

/// Writes down, before a guest goes on, that it has to be told the time after that: whoever is killed in between leaves
/// that to the next command.
///
/// # Errors
/// When the record cannot be written.
pub(super) fn due(held: &mut Held) -> Result<()> {
    mark(held, true)
}

/// Writes down whether the time is due.
///
/// # Errors
/// When the record cannot be written.
pub(super) fn mark(held: &mut Held, due: bool) -> Result<()> {
    if std::mem::replace(&mut held.record.clock_due, due) != due {
        held.save()?;
    }
    Ok(())
}

/// A guest that was held has missed the time, and is told it where that is due. What stands in the way is a warning: it
/// runs, and `start` tries again.
///
/// # Errors
/// When the record cannot be written; [`Kind::Interrupted`].
pub(super) fn set(env: Env<'_>, held: &mut Held) -> Result<()> {
    set_within(env, held, CLOCK)
}

/// As [`set`], of a guest that runs already.
///
/// # Errors
/// As [`set`].
pub(super) fn set_again(env: Env<'_>, held: &mut Held) -> Result<()> {
    set_within(env, held, AGAIN)
}

fn set_within(env: Env<'_>, held: &mut Held, limit: Duration) -> Result<()> {
    if !held.record.clock_due {
        return Ok(());
    }
    if env.driver(held.record.driver).capabilities().own_clock {
        match tell(env, &held.record, limit) {
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => {
                let name = held.record.name();
                env.reporter.warn(&format!(
                    "the clock of '{name}' stands where it was saved: {error}; 'virga start {name}' tries again"
                ));
                return Ok(());
            }
            Ok(()) => {}
        }
    }
    mark(held, false)
}

/// Over SSH, as the guest's user: what was saved has no service of ours in it.
fn tell(env: Env<'_>, record: &Record, limit: Duration) -> Result<()> {
    let deadline = Deadline::after(limit);
    let driver = env.driver(record.driver);
    let waiting = env.reporter.wait(record.name().as_str());
    waiting.stage("telling it the time (Ctrl-C leaves that to the next start)");
    let login = ssh::login(env, record, None);
    let mut last = Error::timed_out("it has no address");
    let mut refusals = 0;
    let set = poll::until(&deadline, Duration::from_millis(500), || {
        let set = match driver.endpoint(&record.plan) {
            Ok(Some(address)) => clock::set(&login.at(address), &deadline),
            Ok(None) => return Ok(None),
            Err(error) => Err(error),
        };
        match set {
            // As it wakes, much fails that works a moment later: a bridge lets nothing through, a login breaks off.
            Err(error) if error.kind() == Kind::TimedOut || (error.kind() == Kind::Failed && refusals < REFUSALS) => {
                refusals += usize::from(error.kind() == Kind::Failed);
                last = error;
                Ok(None)
            }
            set => set.map(Some),
        }
    })?;
    match set {
        Some(bound) => {
            tracing::debug!(guest = %record.name(), ?bound, "set the clock");
            Ok(())
        }
        None => Err(last),
    }
}
