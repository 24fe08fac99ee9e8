//! Changing the plan of a guest that does not run.
//!
//! The record names both plans while a change is under way. When it fails, the
//! old one is put back; when the command is killed, whoever starts or changes
//! the guest next carries it through, and `destroy` removes what either names.

use super::{Env, identity, saved};
use crate::base::plan::Disk;
use crate::base::undo::Undo;
use crate::base::{Error, GuestName, GuestPlan, Kind, Layout, Result, fs, interrupt};
use crate::disk;
use crate::driver::{Driver, Status, Storage};
use crate::guest::{self, Held};

/// Holds a whole guest, and carries through what a killed command had begun.
///
/// # Errors
/// As [`guest::hold`]; what carrying it through failed with.
pub(super) fn hold(env: Env<'_>, name: &GuestName) -> Result<Held> {
    let mut held = guest::hold(&env.settings.layout, name)?;
    mend(env, &mut held)?;
    Ok(held)
}

/// Carries through what a killed command had begun.
///
/// # Errors
/// What that fails with.
pub(super) fn mend(env: Env<'_>, held: &mut Held) -> Result<()> {
    saved::mend(env, held)?;
    if let Some(was) = held.record.was.clone() {
        let driver = env.driver(held.record.driver);
        let plan = &held.record.plan;
        carry_out(&env.settings.layout, driver.as_ref(), &was, plan)?;
        if driver.status(plan)?.is_alive() {
            let titles: Vec<String> = was.disks.iter().map(Disk::title).collect();
            for disk in plan.disks.iter().filter(|disk| !titles.contains(&disk.title())) {
                driver.plug(plan, disk)?;
            }
        }
        shed(driver.as_ref(), &was, plan)?;
        held.record.was = None;
        held.save()?;
        let name = held.record.name();
        env.reporter.note(&format!("guest '{name}': settled a change that was interrupted"));
    }
    Ok(())
}

/// Refuses a guest's own name where another is wanted: that it is taken is no reason to remove the guest.
///
/// # Errors
/// [`crate::base::Kind::Exists`] when the guest is there and the two are one.
pub(super) fn another_name(layout: &Layout, from: &GuestName, to: &GuestName) -> Result<()> {
    if from != to || !guest::exists(layout, from) {
        return Ok(());
    }
    Err(Error::new(Kind::Exists, format!("'{to}' is its own name already")).hint("choose another name"))
}

/// As [`hold`], for what can be done only to a guest that does not run and is not saved.
///
/// # Errors
/// As [`hold`]; [`crate::base::Kind::Failed`] for one that runs or is saved.
pub(super) fn hold_stopped(env: Env<'_>, name: &GuestName) -> Result<Held> {
    let held = hold(env, name)?;
    stopped(env, &held)?;
    Ok(held)
}

/// Fails for a guest that runs or is saved.
///
/// # Errors
/// [`crate::base::Kind::Failed`], with what to do.
pub(super) fn stopped(env: Env<'_>, held: &Held) -> Result<()> {
    let name = held.record.name();
    let status = env.driver(held.record.driver).status(&held.record.plan)?;
    if status.is_alive() {
        return Err(Error::failed(format!("guest '{name}' is running")).hint(format!("virga stop {name}")));
    }
    if status == Status::Saved || held.record.saved.is_some() {
        return Err(Error::failed(format!("guest '{name}' is saved, and goes on as the machine that it was"))
            .hint(format!("shut it down: virga start {name}; virga stop {name}"))
            .hint(format!("or give up what is in its memory: virga stop --force {name}")));
    }
    Ok(())
}

/// Whether a held guest runs.
///
/// # Errors
/// [`crate::base::Kind::Failed`] for one that is saved, with what to do.
pub(super) fn runs(env: Env<'_>, held: &Held) -> Result<bool> {
    let alive = env.driver(held.record.driver).status(&held.record.plan)?.is_alive();
    if !alive {
        stopped(env, held)?;
    }
    Ok(alive)
}

/// Gives a held guest that does not run this plan, and its backend too. When that fails it has its old one.
///
/// # Errors
/// What the driver could not do.
pub(super) fn apply(env: Env<'_>, held: &mut Held, plan: GuestPlan) -> Result<()> {
    apply_with(env, held, plan, |_, _| Ok(()))
}

/// As [`apply`], with a last step that undoes itself when it fails.
///
/// # Errors
/// As [`apply`], and what the last step failed with.
pub(super) fn apply_with(
    env: Env<'_>,
    held: &mut Held,
    plan: GuestPlan,
    last: impl FnOnce(&dyn Driver, &GuestPlan) -> Result<()>,
) -> Result<()> {
    let before = held.record.clone();
    held.record.was = Some(std::mem::replace(&mut held.record.plan, plan.clone()));
    held.save()?;
    let mut undo = Undo::new();
    let (driver, layout, old) = (env.driver(held.record.driver), env.settings.layout.clone(), before.clone());
    undo.push("the guest's plan", move || {
        driver.reconfigure(&plan, &old.plan)?;
        shed(driver.as_ref(), &plan, &old.plan)?;
        guest::save(&layout, &old)
    });
    let driver = env.driver(held.record.driver);
    let layout = &env.settings.layout;
    let new = &held.record.plan;
    let outcome = carry_out(layout, driver.as_ref(), &before.plan, new)
        .and_then(|()| interrupt::check())
        .and_then(|()| last(driver.as_ref(), new));
    if let Err(error) = outcome {
        held.record = before;
        return Err(error);
    }
    undo.commit();
    // Last: what is gone does not come back. When this fails, whoever holds the guest next does it.
    shed(driver.as_ref(), &before.plan, new)?;
    held.record.was = None;
    held.save()
}

/// Does all that follows from a guest's new plan, once it is in the record. Again is success.
///
/// # Errors
/// What the driver could not do.
pub(super) fn carry_out(layout: &Layout, driver: &dyn Driver, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
    if old.name != new.name {
        identity::rename(layout, new, &old.name)?;
    }
    driver.reconfigure(old, new)?;
    if driver.capabilities().storage == Storage::OurPath {
        // Last: what has grown does not shrink again.
        for disk in new.disks.iter().filter(|disk| !disk.kept) {
            disk::grow(&disk.path, disk.format, disk.size)?;
        }
    }
    Ok(())
}

/// Deletes the disks of virga's that `old` has and `new` has not.
fn shed(driver: &dyn Driver, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
    if driver.capabilities().storage == Storage::BackendPool {
        return driver.shed(old, new);
    }
    let stay: Vec<String> = new.disks.iter().map(Disk::title).collect();
    let gone = old.disks.iter().filter(|disk| !disk.kept && !stay.contains(&disk.title()));
    gone.map(|disk| fs::remove_file(&disk.path)).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_own_name_is_no_reason_to_remove_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("home"), folder.path().join("run")).unwrap();
        let [one, other] = ["u2", "u3"].map(|name| name.parse::<GuestName>().unwrap());
        // Without such a guest it is that what is told.
        another_name(&layout, &one, &one).unwrap();
        fs::create_private_dir(&layout.guest(&one)).unwrap();
        another_name(&layout, &one, &other).unwrap();
        let error = another_name(&layout, &one, &one).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Exists, "'u2' is its own name already"));
        assert_eq!(error.hints(), ["choose another name"]);
    }
}
