//! A guest's memory in a file of ours: written by `save`, gone on from by `start`, once.
//!
//! The record decides, not the file: what is being done stands in it before it is done, and a file counts only with
//! the mark of what it was saved with ([`Record::saved`]). That mark is taken back, durably, before the guest runs on:
//! after a power cut no old memory is loaded over a newer disk.

use super::{Env, clock, wait};
use crate::base::plan::difference;
use crate::base::undo::Undo;
use crate::base::{Error, GuestName, Result, fs};
use crate::driver::{Begin, Driver, Saved, Stop};
use crate::guest::{Doing, Held, Record};

/// Brings a guest to where the record says it is, after a command that was killed while it saved the guest, went on
/// from its memory, or stopped it.
///
/// # Errors
/// When its backend does not let it run, or end.
pub(super) fn mend(env: Env<'_>, held: &mut Held) -> Result<()> {
    let driver = env.driver(held.record.driver);
    let plan = &held.record.plan;
    match held.record.doing {
        Some(Doing::Saving) if driver.status(plan)?.is_alive() => driver.release(plan)?,
        // It has not run since it was saved: from there it goes on once more.
        Some(Doing::Resuming) => driver.stop(plan, Stop::Force)?,
        None if held.record.saved.is_some() => driver.stop(plan, Stop::Force)?,
        Some(Doing::Saving | Doing::Stopping) | None => {}
    }
    if held.record.saved.is_none() {
        // What is not whole, or not what the guest is any more: it has the guest's secrets in it.
        fs::remove_file(&held.files().saved())?;
    }
    held.now(None)
}

/// Writes the memory of a guest that runs and ends it. The guest runs on when that fails, a while late.
///
/// # Errors
/// What its backend says; [`crate::base::Kind::Unsupported`] for one that is too old.
pub(super) fn save(driver: &dyn Driver, held: &mut Held) -> Result<()> {
    let (plan, file) = (held.record.plan.clone(), held.files().saved());
    let with = driver.fingerprint(&plan)?;
    clock::due(held)?;
    held.now(Some(Doing::Saving))?;
    let saved = driver.save(&plan, &Saved { state: file.clone(), memory: None }).and_then(|()| {
        let whole = fs::open(&file)?.sync_all();
        whole.map_err(|error| fs::explain(error, "writing", &file))?;
        fs::sync_dir(fs::folder_of(&file))?;
        held.record.saved = Some(with);
        held.now(None)
    });
    if let Err(error) = saved {
        // First: a guest that runs must not be one that is saved.
        held.record.saved = None;
        held.now(Some(Doing::Saving))?;
        driver.release(&plan)?;
        fs::remove_file(&file)?;
        held.now(None)?;
        return Err(error);
    }
    driver.stop(&plan, Stop::Force)
}

/// Goes on from where the guest was saved, once: what it does then to its disk, the saved memory does not know.
///
/// # Errors
/// [`crate::base::Kind::Refused`] when what it depends on is not as it was: it would break in ways that nobody can tell. What the
/// backend says; it is saved as before then.
pub(super) fn go_on(env: Env<'_>, held: &mut Held) -> Result<()> {
    let driver = env.driver(held.record.driver);
    let plan = held.record.plan.clone();
    let file = held.files().saved();
    unchanged(driver.as_ref(), &held.record)?;
    clock::due(held)?;
    held.now(Some(Doing::Resuming))?;
    wait::begun(env, &plan.name)?;
    let started = driver.start(&plan, Begin::Empty(None))?;
    let mut undo = Undo::new();
    let (again, same) = (env.driver(held.record.driver), plan.clone());
    undo.push("the guest at its backend", move || again.stop(&same, Stop::Force));
    driver
        .load(&plan, &Saved { state: file.clone(), memory: None })
        .map_err(|error| error.hint(from_disk(&plan.name)))?;
    held.record.saved = None;
    held.now(None)?;
    undo.commit();
    for note in started.notes {
        env.reporter.note(&note);
    }
    driver.release(&plan)?;
    fs::remove_file(&file)?;
    clock::set(env, held)
}

fn unchanged(driver: &dyn Driver, record: &Record) -> Result<()> {
    let Some(then) = &record.saved else { return Ok(()) };
    let Some(change) = difference(then, &driver.fingerprint(&record.plan)?) else { return Ok(()) };
    let name = record.name();
    Err(Error::refused(format!("guest '{name}' cannot go on: {change}")).hint(from_disk(name)))
}

/// How a guest is had back whose memory is of no use.
pub(super) fn from_disk(name: &GuestName) -> String {
    format!(
        "'virga restart --force {name}' starts it from its disk, as after a power cut; what was in its memory is lost"
    )
}
