//! Starting and stopping guests that exist.

use std::time::Duration;

use super::{Env, change, clock, footing, list, machine, saved, wait};
use crate::base::{Error, GuestName, Kind, Result, fs};
use crate::driver::{Autostart, Begin, Driver, SavedIn, Status, Stop};
use crate::guest::{self, Doing, Held};

/// Starts a guest; one that runs is left alone. Returns whether it had to be started.
/// With `autostart`, says before that whether it starts with its host from now on.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest, [`Kind::Unavailable`] when the backend cannot run it,
/// [`Kind::Unsupported`] for `autostart` with a driver that has none.
pub fn start(env: Env<'_>, name: &GuestName, autostart: Option<Option<Autostart>>) -> Result<bool> {
    let mut held = change::hold(env, name)?;
    if let Some(wish) = autostart {
        let driver = env.driver(held.record.driver);
        let what = || format!("the {} driver cannot start guests with the host", held.record.driver);
        driver.capabilities().autostart.demand(what)?;
        if let Some(further) = driver.set_autostart(&held.record.plan, wish)? {
            env.reporter.note(&further);
        }
    }
    start_held(env, &mut held)
}

fn start_held(env: Env<'_>, held: &mut Held) -> Result<bool> {
    let driver = env.driver(held.record.driver);
    let status = driver.status(&held.record.plan)?;
    match status {
        Status::Paused => return let_run(env, driver.as_ref(), held).map(|()| true),
        // The command that let it run was killed before it had told it the time, or could not.
        Status::Running => return clock::set_again(env, held).map(|()| false),
        Status::Saved | Status::Stopped | Status::Died => {}
    }
    footing::check(env, &held.record)?;
    if held.record.saved.is_some() {
        return saved::go_on(env, held).map(|()| true);
    }
    clock::mark(held, status == Status::Saved)?;
    wait::begun(env, held.record.name())?;
    let started = driver.start(&held.record.plan, Begin::Boot).map_err(|error| match status {
        Status::Saved => error.hint(saved::from_disk(held.record.name())),
        _ => error,
    })?;
    if machine::note_type(&mut held.record.plan, &started) {
        held.save()?;
    }
    for note in started.notes {
        env.reporter.note(&note);
    }
    clock::set(env, held)?;
    Ok(true)
}

/// Lets a guest go on that is held, and sets its clock.
fn let_run(env: Env<'_>, driver: &dyn Driver, held: &mut Held) -> Result<()> {
    clock::due(held)?;
    driver.release(&held.record.plan)?;
    clock::set(env, held)
}

/// Holds a running guest in memory; one that is held is left alone. Returns whether it had to be held.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest; [`Kind::Failed`] when it does not run.
pub fn suspend(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    match alive(driver.as_ref(), &held)? {
        Status::Paused => Ok(false),
        _ => driver.suspend(&held.record.plan).map(|()| true),
    }
}

/// Lets a guest go on that is held, and sets its clock; one that runs is left alone. Returns whether it was held.
///
/// # Errors
/// As [`suspend`].
pub fn resume(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let mut held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    match alive(driver.as_ref(), &held)? {
        Status::Paused => let_run(env, driver.as_ref(), &mut held).map(|()| true),
        _ => clock::set_again(env, &mut held).map(|()| false),
    }
}

/// How a guest stands that must run or be held.
fn alive(driver: &dyn Driver, held: &Held) -> Result<Status> {
    match driver.status(&held.record.plan)? {
        status if status.is_alive() => Ok(status),
        _ if held.record.saved.is_some() => Err(list::not_running(held.record.name(), Status::Saved)),
        status => Err(list::not_running(held.record.name(), status)),
    }
}

/// Saves a running guest with its memory and ends it; one that is saved is left
/// alone. It starts again with [`start`].
///
/// # Errors
/// [`Kind::Unsupported`] when its driver cannot; [`Kind::Failed`] when it does not run.
pub fn save(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let mut held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    let plan = &held.record.plan.clone();
    if held.record.saved.is_some() {
        return Ok(false);
    }
    match driver.status(plan)? {
        Status::Saved => return Ok(false),
        Status::Paused => {
            // One that is on its way out of a save cannot be saved once more.
            clock::due(&mut held)?;
            driver.release(plan)?;
        }
        Status::Running => {}
        status @ (Status::Stopped | Status::Died) => return Err(list::not_running(name, status)),
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("saving");
    match driver.capabilities().saved_in {
        SavedIn::Backend => driver.save_there(plan)?,
        SavedIn::OurFile => {
            if let Err(error) = saved::save(driver.as_ref(), &mut held) {
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
        _ => clock::set_again(env, held),
    };
    if let Err(error) = late {
        let name = held.record.name();
        env.reporter.warn(&format!("the clock of '{name}' may be late: {error}; 'virga start {name}' sets it"));
    }
}

/// Stops a guest and returns once it is dead; one that does not run is left alone, but that
/// force takes from a saved one what was in its memory. Returns whether there was something to do.
///
/// # Errors
/// [`Kind::TimedOut`] when it would not go in time.
pub fn stop(env: Env<'_>, name: &GuestName, how: Stop) -> Result<bool> {
    let mut held = hold_to_stop(env, name, how)?;
    stop_held(env, &mut held, how)
}

/// Stops a guest, if it runs, and starts it, with no other command in between.
///
/// # Errors
/// As [`stop`] and [`start`].
pub fn restart(env: Env<'_>, name: &GuestName, how: Stop) -> Result<()> {
    let mut held = hold_to_stop(env, name, how)?;
    stop_held(env, &mut held, how)?;
    change::mend(env, &mut held)?;
    start_held(env, &mut held).map(drop)
}

/// A backend that does not answer is one of the reasons to end a guest by force: nothing is mended before that.
fn hold_to_stop(env: Env<'_>, name: &GuestName, how: Stop) -> Result<Held> {
    match how {
        Stop::Force => {
            cut_short(env, name)?;
            guest::hold(&env.settings.layout, name)
        }
        Stop::Graceful(_) => change::hold(env, name),
    }
}

/// Ends a guest by force that another command holds only because it waits for it to shut down: that may take minutes,
/// and ends with this.
///
/// # Errors
/// When it cannot be ended.
pub(super) fn cut_short(env: Env<'_>, name: &GuestName) -> Result<()> {
    let layout = &env.settings.layout;
    match guest::load(layout, name) {
        Ok(Some(record)) if record.doing == Some(Doing::Stopping) && !guest::is_free(layout, name)? => {
            env.driver(record.driver).stop(&record.plan, Stop::Force)
        }
        // Whoever holds it next says what is wrong with it.
        _ => Ok(()),
    }
}

fn stop_held(env: Env<'_>, held: &mut Held, how: Stop) -> Result<bool> {
    if how == Stop::Force {
        return end(env, held);
    }
    let driver = env.driver(held.record.driver);
    let plan = held.record.plan.clone();
    match driver.status(&plan)? {
        Status::Stopped | Status::Died | Status::Saved => return Ok(false),
        Status::Paused => {
            // One that is held is deaf to the power button.
            clock::due(held)?;
            driver.release(&plan)?;
        }
        Status::Running => {}
    }
    let waiting = env.reporter.wait(plan.name.as_str());
    waiting.stage("shutting down");
    held.now(Some(Doing::Stopping))?;
    let stopped = driver.stop(&plan, how);
    held.now(None)?;
    stopped.map(|()| true)
}

/// Ends it as if the power were cut, and with it what was saved of it.
fn end(env: Env<'_>, held: &mut Held) -> Result<bool> {
    let driver = env.driver(held.record.driver);
    let plan = held.record.plan.clone();
    // Durably, and first: after a power cut it must not be loaded over a newer disk.
    let saved = held.record.saved.take().is_some();
    if saved {
        held.save()?;
    }
    let ended = match driver.glance(&plan)?.unwrap_or(Status::Running) {
        Status::Stopped => Ok(saved),
        Status::Saved => driver.drop_saved(&plan).map(|()| true),
        // What one left that was killed goes too.
        Status::Died => driver.stop(&plan, Stop::Force).map(|()| saved),
        Status::Paused | Status::Running => {
            let waiting = env.reporter.wait(plan.name.as_str());
            waiting.stage("shutting down");
            driver.stop(&plan, Stop::Force).map(|()| true)
        }
    };
    // Of a command that was killed, too.
    fs::remove_file(&held.files().saved())?;
    held.now(None)?;
    ended
}

/// What `--force` and `--timeout` mean.
#[must_use]
pub fn how(force: bool, timeout: Option<Duration>) -> Stop {
    if force { Stop::Force } else { Stop::Graceful(timeout.unwrap_or(Duration::from_secs(90))) }
}
