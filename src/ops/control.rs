//! Starting and stopping guests that exist.

use std::time::{Duration, SystemTime};

use super::{Env, ssh};
use crate::base::poll::{self, Deadline};
use crate::base::undo::Undo;
use crate::base::{Context as _, Error, GuestName, Kind, Result, fs};
use crate::driver::{Begin, Driver, Saved, Status, Stop};
use crate::guest::{self, Record};
use crate::ssh::session;

/// For setting a resumed guest's clock: it answers at once, or something is wrong.
const CLOCK: Duration = Duration::from_secs(20);

/// Starts a guest; one that runs is left alone. Returns whether it had to be started.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Unavailable`] when the backend cannot run it.
pub fn start(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    let plan = &held.record.plan;
    let state = env.settings.layout.guest_files(name).saved();
    match driver.status(plan)? {
        // A command was killed while it saved or loaded this guest. It has not run since the file that is there was
        // written, whatever its backend says as it goes, so it is begun again from that.
        Status::Paused | Status::Running if state.exists() => driver.stop(plan, Stop::Force)?,
        Status::Paused => {
            driver.release(plan)?;
            right_clock(env, &held.record);
            return Ok(true);
        }
        Status::Running => return Ok(false),
        Status::Stopped | Status::Died => {}
    }
    if state.exists() {
        resume(env, driver.as_ref(), &held.record, Saved { state, memory: None })?;
        return Ok(true);
    }
    for note in driver.start(plan, Begin::Boot)?.notes {
        env.reporter.note(&note);
    }
    Ok(true)
}

/// Goes on from where the guest was saved, once: what it does then to its disk, the saved memory does not know.
fn resume(env: Env<'_>, driver: &dyn Driver, record: &Record, saved: Saved) -> Result<()> {
    let plan = &record.plan;
    let started = driver.start(plan, Begin::Empty(None))?;
    let mut undo = Undo::new();
    let (again, plan_) = (env.driver(record.driver), plan.clone());
    undo.push("the guest at its backend", move || again.stop(&plan_, Stop::Force));
    driver.load(plan, &saved).map_err(|error| {
        error.hint(format!(
            "'virga restart --force {0}' starts it from its disk, as after a power cut; what was in its memory is lost",
            plan.name
        ))
    })?;
    undo.commit();
    for note in started.notes {
        env.reporter.note(&note);
    }
    // In this order: from here on the file is not what the guest is any more.
    fs::remove_file(&saved.state)?;
    driver.release(plan)?;
    right_clock(env, record);
    Ok(())
}

/// A guest that was held has missed the time. What stands in the way is a warning: it runs.
fn right_clock(env: Env<'_>, record: &Record) {
    if let Err(error) = set_clock(env, record) {
        env.reporter.warn(&format!("the clock of '{}' stands where it was saved: {error}", record.name()));
    }
}

/// Over SSH, as the guest's user: what was saved has no service of ours in it.
fn set_clock(env: Env<'_>, record: &Record) -> Result<()> {
    let deadline = Deadline::after(CLOCK);
    let driver = env.driver(record.driver);
    let login = ssh::login(env, record, None);
    let address = poll::until(&deadline, Duration::from_millis(50), || driver.endpoint(&record.plan))?;
    let address = address.ok_or_else(|| Error::timed_out("it has no address"))?;
    let target = login.at(address);
    let now = SystemTime::UNIX_EPOCH.elapsed().context(|| "reading the clock".into())?.as_secs_f64();
    let command = format!("sudo -n date --utc --set=@{now:.3}");
    let output = session::run(&target, &[command.as_str()], &[], deadline.left())?;
    if output.status.success() { Ok(()) } else { Err(Error::failed("it refused the command 'sudo date'")) }
}

/// Saves a running guest with its memory and ends it; one that is saved is left
/// alone. It starts again with [`start`].
///
/// # Errors
/// [`Kind::Unsupported`] when its driver cannot; [`Kind::Failed`] when it does not run.
pub fn save(env: Env<'_>, name: &GuestName) -> Result<bool> {
    let held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    if !driver.capabilities().memory_snapshots {
        return Err(Error::new(Kind::Unsupported, format!("the {} driver cannot save guests", held.record.driver)));
    }
    let state = env.settings.layout.guest_files(name).saved();
    if !driver.status(&held.record.plan)?.is_alive() {
        if state.exists() {
            return Ok(false);
        }
        return Err(Error::failed(format!("guest '{name}' is not running")).hint(format!("virga start {name}")));
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("saving");
    // Written under another name: a file of this one is whole.
    let unfinished = state.with_extension("new");
    fs::remove_file(&unfinished)?;
    driver.save(&held.record.plan, &Saved { state: unfinished.clone(), memory: None })?;
    let kept = || {
        let whole = fs::open(&unfinished)?.sync_all();
        whole.map_err(|error| fs::explain(error, "writing", &unfinished))?;
        fs::rename(&unfinished, &state)
    };
    if let Err(error) = kept() {
        driver.release(&held.record.plan)?;
        return Err(error);
    }
    driver.stop(&held.record.plan, Stop::Force)?;
    Ok(true)
}

/// Stops a guest and returns once it is dead; one that does not run is left alone, but that
/// force takes from a saved one what was in its memory.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] when it would not go in time.
pub fn stop(env: Env<'_>, name: &GuestName, how: Stop) -> Result<bool> {
    let held = guest::hold(&env.settings.layout, name)?;
    let driver = env.driver(held.record.driver);
    let plan = &held.record.plan;
    let state = env.settings.layout.guest_files(name).saved();
    if how == Stop::Force {
        fs::remove_file(&state)?;
    }
    let how = match driver.status(plan)? {
        Status::Stopped | Status::Died => return Ok(false),
        // As in `start`: the command that saved it was killed before it ended its process.
        _ if state.exists() => Stop::Force,
        // One that is held is deaf to the power button.
        Status::Paused if how != Stop::Force => {
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
    start(env, name)?;
    Ok(())
}

/// What `--force` and `--timeout` mean.
#[must_use]
pub fn how(force: bool, timeout: Option<Duration>) -> Stop {
    if force { Stop::Force } else { Stop::Graceful(timeout.unwrap_or(Duration::from_secs(90))) }
}
