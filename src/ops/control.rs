//! Starting and stopping guests that exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Env, change, list, machine, ssh};
use crate::base::layout::GuestFiles;
use crate::base::plan::difference;
use crate::base::poll::{self, Deadline};
use crate::base::undo::Undo;
use crate::base::{Error, GuestName, GuestPlan, Kind, Result, fs};
use crate::driver::{Autostart, Begin, Driver, Saved, SavedIn, Status, Stop};
use crate::guest::{self, Held, Record};
use crate::ssh::clock;

/// Until setting a guest's clock is given up, with a warning: one that was held may take a while to find itself.
const CLOCK: Duration = Duration::from_secs(120);

/// The same for one that runs already and was not told when it went on: there may be nobody in it to be told.
const AGAIN: Duration = Duration::from_secs(5);

/// How often a guest may refuse that, twice a second at the most: one without `sudo` is not bothered longer.
const REFUSALS: usize = 10;

/// Starts a guest; one that runs is left alone. Returns whether it had to be started.
/// With `autostart`, says before that whether it starts with its host from now on.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Unavailable`] when the backend cannot run it,
/// [`crate::base::Kind::Unsupported`] for `autostart` with a driver that has none.
pub fn start(env: Env<'_>, name: &GuestName, autostart: Option<Option<Autostart>>) -> Result<bool> {
    let mut held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    if let Some(wish) = autostart {
        let what = || format!("the {} driver cannot start guests with the host", held.record.driver);
        driver.capabilities().autostart.demand(what)?;
        if let Some(further) = driver.set_autostart(&held.record.plan, wish)? {
            env.reporter.note(&further);
        }
    }
    let files = env.settings.layout.guest_files(name);
    let file = files.saved();
    let status = status(env, driver.as_ref(), &held.record.plan)?;
    match status {
        // A command was killed while it saved or loaded this guest. It has not run since the file that is there was
        // written, whatever its backend says as it goes, so it is begun again from that.
        Status::Paused | Status::Running if file.exists() => driver.stop(&held.record.plan, Stop::Force)?,
        Status::Paused => return let_run(env, driver.as_ref(), &mut held).map(|()| true),
        Status::Running => {
            // Of a save that was killed before it held the guest.
            fs::remove_file(&files.saved_by())?;
            // The command that let it run was killed before it had told it the time, or could not.
            return right_clock_within(env, &mut held, AGAIN).map(|()| false);
        }
        Status::Saved | Status::Stopped | Status::Died => {}
    }
    fs::remove_file(&files.saving())?;
    if file.exists() {
        unchanged(driver.as_ref(), &held.record.plan, &files.saved_by())?;
        from_file(env, driver.as_ref(), &mut held, Saved { state: file, memory: None })?;
        return Ok(true);
    }
    mark_clock(&mut held, status == Status::Saved)?;
    let started = driver.start(&held.record.plan, Begin::Boot).map_err(|error| match status {
        Status::Saved => error.hint(from_disk(name)),
        _ => error,
    })?;
    if machine::note_type(&mut held.record.plan, &started) {
        held.save()?;
    }
    for note in started.notes {
        env.reporter.note(&note);
    }
    right_clock(env, &mut held)?;
    Ok(true)
}

/// How a guest of which we have the lock stands. One that a killed command began to save is held, or is about to be,
/// also while its backend is too busy with that to say so.
fn status(env: Env<'_>, driver: &dyn Driver, plan: &GuestPlan) -> Result<Status> {
    match driver.status(plan)? {
        Status::Running if env.settings.layout.guest_files(&plan.name).saving().exists() => Ok(Status::Paused),
        status => Ok(status),
    }
}

/// Lets a guest go on that is held, by the user or by a killed command, and sets its clock.
fn let_run(env: Env<'_>, driver: &dyn Driver, held: &mut Held) -> Result<()> {
    clock_is_due(held)?;
    driver.release(&held.record.plan)?;
    // What a killed save left unfinished is nothing to go on from, and has the guest's secrets in it.
    let files = env.settings.layout.guest_files(held.record.name());
    [files.saving(), files.saved_by()].iter().try_for_each(|path| fs::remove_file(path))?;
    right_clock(env, held)
}

/// Writes down, before a guest goes on, that it has to be told the time after that: whoever is killed in between leaves
/// that to the next command.
///
/// # Errors
/// When the record cannot be written.
pub(super) fn clock_is_due(held: &mut Held) -> Result<()> {
    mark_clock(held, true)
}

fn mark_clock(held: &mut Held, due: bool) -> Result<()> {
    if std::mem::replace(&mut held.record.clock_due, due) != due {
        held.save()?;
    }
    Ok(())
}

/// Fails when what the saved machine depends on is not as it was: it would break in ways that nobody can tell.
fn unchanged(driver: &dyn Driver, plan: &GuestPlan, saved_by: &Path) -> Result<()> {
    let then: BTreeMap<String, String> = fs::read_json(saved_by)?.unwrap_or_default();
    match difference(&then, &driver.fingerprint(plan)?) {
        None => Ok(()),
        Some(change) => {
            Err(Error::refused(format!("guest '{}' cannot go on: {change}", plan.name)).hint(from_disk(&plan.name)))
        }
    }
}

/// Where a guest's saved memory is, if its driver leaves that to us: nothing is there otherwise.
pub(super) fn saved_file(env: Env<'_>, name: &GuestName) -> PathBuf {
    env.settings.layout.guest_files(name).saved()
}

fn from_disk(name: &GuestName) -> String {
    format!(
        "'virga restart --force {name}' starts it from its disk, as after a power cut; what was in its memory is lost"
    )
}

/// Holds a running guest in memory; one that is held is left alone. Returns whether it had to be held.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest; [`crate::base::Kind::Failed`] when it does not run.
pub fn suspend(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    match status(env, driver.as_ref(), &held.record.plan)? {
        _ if saved_file(env, name).exists() => Err(list::not_running(name, Status::Saved)),
        status if !status.is_alive() => Err(list::not_running(name, status)),
        Status::Paused => Ok(false),
        _ => driver.suspend(&held.record.plan).map(|()| true),
    }
}

/// Lets a guest go on that is held, and sets its clock; one that runs is left alone. Returns whether it was held.
///
/// # Errors
/// As [`suspend`].
pub fn resume(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let mut held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    match status(env, driver.as_ref(), &held.record.plan)? {
        _ if saved_file(env, name).exists() => Err(list::not_running(name, Status::Saved)),
        status if !status.is_alive() => Err(list::not_running(name, status)),
        Status::Paused => let_run(env, driver.as_ref(), &mut held).map(|()| true),
        Status::Running => right_clock_within(env, &mut held, AGAIN).map(|()| false),
        _ => Ok(false),
    }
}

/// Goes on from where the guest was saved, once: what it does then to its disk, the saved memory does not know.
fn from_file(env: Env<'_>, driver: &dyn Driver, held: &mut Held, saved: Saved) -> Result<()> {
    clock_is_due(held)?;
    let plan = held.record.plan.clone();
    let started = driver.start(&plan, Begin::Empty(None))?;
    let mut undo = Undo::new();
    let (again, same) = (env.driver(held.record.driver), plan.clone());
    undo.push("the guest at its backend", move || again.stop(&same, Stop::Force));
    driver.load(&plan, &saved).map_err(|error| error.hint(from_disk(&plan.name)))?;
    undo.commit();
    for note in started.notes {
        env.reporter.note(&note);
    }
    // In this order, and durably: from here on the file is not what the guest is any more, and after a power cut it
    // must not come back and be loaded over a newer disk.
    fs::remove_file(&saved.state)?;
    fs::sync_dir(fs::folder_of(&saved.state))?;
    driver.release(&plan)?;
    fs::remove_file(&env.settings.layout.guest_files(&plan.name).saved_by())?;
    right_clock(env, held)
}

/// A guest that was held has missed the time, and is told it where that is due. What stands in the way is a warning: it
/// runs, and `start` tries again.
///
/// # Errors
/// When the record cannot be written; [`Kind::Interrupted`].
pub(super) fn right_clock(env: Env<'_>, held: &mut Held) -> Result<()> {
    right_clock_within(env, held, CLOCK)
}

fn right_clock_within(env: Env<'_>, held: &mut Held, limit: Duration) -> Result<()> {
    if !held.record.clock_due {
        return Ok(());
    }
    if env.driver(held.record.driver).capabilities().own_clock {
        match set_clock(env, &held.record, limit) {
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
    mark_clock(held, false)
}

/// Over SSH, as the guest's user: what was saved has no service of ours in it.
fn set_clock(env: Env<'_>, record: &Record, limit: Duration) -> Result<()> {
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

/// Saves a running guest with its memory and ends it; one that is saved is left
/// alone. It starts again with [`start`].
///
/// # Errors
/// [`crate::base::Kind::Unsupported`] when its driver cannot; [`crate::base::Kind::Failed`] when it does not run.
pub fn save(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let mut held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    let plan = &held.record.plan.clone();
    let file = saved_file(env, name);
    match status(env, driver.as_ref(), plan)? {
        Status::Saved => return Ok(false),
        // A command was killed between the two last steps: the file is whole, and the guest has not run since.
        status if status.is_alive() && file.exists() => return driver.stop(plan, Stop::Force).map(|()| true),
        status if !status.is_alive() && file.exists() => return Ok(false),
        status if !status.is_alive() => return Err(list::not_running(name, status)),
        // Held by a save that was killed, perhaps: from there it cannot be saved once more.
        Status::Paused => {
            clock_is_due(&mut held)?;
            driver.release(plan)?;
        }
        _ => {}
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("saving");
    match driver.capabilities().saved_in {
        SavedIn::Backend => driver.save_there(plan)?,
        SavedIn::OurFile => {
            // It is held for as long as the writing takes, and goes on without it when that fails.
            clock_is_due(&mut held)?;
            if let Err(error) = into_file(driver.as_ref(), plan, &env.settings.layout.guest_files(name)) {
                drop(waiting);
                missed_time(env, &mut held, &error);
                return Err(error);
            }
        }
        SavedIn::Nobody(reason) => {
            return Err(Error::new(Kind::Unsupported, format!("guest '{name}' cannot be saved: {reason}"))
                .hint(format!("'virga suspend {name}' holds it as long as the host runs")));
        }
    }
    Ok(true)
}

/// A guest that was not saved after all runs on, a while late. Why is what the user waits to hear, so it is told in
/// passing; after Ctrl-C not at all.
fn missed_time(env: Env<'_>, held: &mut Held, why: &Error) {
    let late = match why.kind() {
        Kind::Interrupted => Err(Error::failed("it was held meanwhile")),
        _ => right_clock_within(env, held, AGAIN),
    };
    if let Err(error) = late {
        let name = held.record.name();
        env.reporter.warn(&format!("the clock of '{name}' may be late: {error}; 'virga start {name}' sets it"));
    }
}

fn into_file(driver: &dyn Driver, plan: &GuestPlan, files: &GuestFiles) -> Result<()> {
    fs::write_json(&files.saved_by(), &driver.fingerprint(plan)?, 0o600)?;
    // Written under another name: a file of this one is whole.
    let unfinished = files.saving();
    fs::remove_file(&unfinished)?;
    driver.save(plan, &Saved { state: unfinished.clone(), memory: None })?;
    let kept = || {
        let whole = fs::open(&unfinished)?.sync_all();
        whole.map_err(|error| fs::explain(error, "writing", &unfinished))?;
        fs::rename(&unfinished, &files.saved())
    };
    if let Err(error) = kept() {
        // First: a guest that runs must not have a file to go on from.
        [files.saved(), unfinished.clone()].iter().try_for_each(|path| fs::remove_file(path))?;
        driver.release(plan)?;
        return Err(error);
    }
    driver.stop(plan, Stop::Force)
}

/// Stops a guest and returns once it is dead; one that does not run is left alone, but that
/// force takes from a saved one what was in its memory. Returns whether there was something to do.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] when it would not go in time.
pub fn stop(env: Env<'_>, name: &GuestName, how: Stop) -> Result<bool> {
    let mut held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    let plan = &held.record.plan.clone();
    let files = env.settings.layout.guest_files(name);
    let file = files.saved();
    let saved = file.exists();
    if how == Stop::Force {
        [&file, &files.saved_by()].into_iter().try_for_each(|path| fs::remove_file(path))?;
        if saved {
            // Durably: after a power cut it must not come back and be loaded over a newer disk.
            fs::sync_dir(files.folder())?;
        }
    }
    let status = match how {
        // A backend that does not answer is one of the reasons to end a guest by force.
        Stop::Force => driver.glance(plan)?.unwrap_or(Status::Running),
        Stop::Graceful(_) => status(env, driver.as_ref(), plan)?,
    };
    fs::remove_file(&files.saving())?;
    let how = match status {
        Status::Saved if how == Stop::Force => return driver.drop_saved(plan).map(|()| true),
        // What one left that was killed goes too.
        Status::Died if how == Stop::Force => return driver.stop(plan, how).map(|()| saved),
        Status::Stopped | Status::Died | Status::Saved => return Ok(saved && how == Stop::Force),
        // As in `start`: the command that saved it was killed before it ended its process.
        _ if saved => Stop::Force,
        // One that is held is deaf to the power button.
        Status::Paused if how != Stop::Force => {
            clock_is_due(&mut held)?;
            driver.release(plan)?;
            how
        }
        Status::Paused | Status::Running => how,
    };
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("shutting down");
    driver.stop(plan, how)?;
    Ok(true)
}

/// Stops a guest, if it runs, and starts it.
///
/// # Errors
/// As [`stop`] and [`start`].
pub fn restart(env: Env<'_>, name: &GuestName, how: Stop) -> Result<()> {
    stop(env, name, how)?;
    start(env, name, None)?;
    Ok(())
}

/// What `--force` and `--timeout` mean.
#[must_use]
pub fn how(force: bool, timeout: Option<Duration>) -> Stop {
    if force { Stop::Force } else { Stop::Graceful(timeout.unwrap_or(Duration::from_secs(90))) }
}
