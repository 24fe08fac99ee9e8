//! Taking a guest away, whatever state it is in.

use super::{Env, control};
use crate::base::plan::{DriverKind, InstanceId};
use crate::base::{Error, GuestName, Kind, Result, interrupt};
use crate::driver::Away;
use crate::{guest, session};

/// Stops the guest by force and removes all that belongs to it: process,
/// sockets, disks, seed, record. Works on whole guests, half-made ones, ones
/// with a broken record and orphans. `false` when there was nothing.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] when another command is at work on it; else what could not be removed.
pub fn destroy(env: Env<'_>, name: &GuestName) -> Result<bool> {
    destroy_it(env, name, None)
}

/// As [`destroy`], for this very guest: another one that has its name by now stays.
///
/// # Errors
/// As [`destroy`].
pub fn destroy_this(env: Env<'_>, guest: &guest::Record) -> Result<bool> {
    destroy_it(env, guest.name(), Some(&guest.plan.id))
}

fn destroy_it(env: Env<'_>, name: &GuestName, only: Option<&InstanceId>) -> Result<bool> {
    let layout = &env.settings.layout;
    let mut found = false;
    if guest::exists(layout, name) {
        if only.is_none() {
            control::cut_short(env, name)?;
        }
        let lock = match guest::lock(layout, name) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(false),
            other => other?,
        };
        // A record that cannot be read is no reason to keep the guest: its label finds the process.
        let record = guest::load(layout, name).ok().flatten();
        if only.is_some_and(|id| record.as_ref().is_none_or(|record| record.plan.id != *id)) {
            return Ok(false);
        }
        found = true;
        if let Some(record) = &record {
            // Both plans of a change that was interrupted: one of them may name what the other does not.
            for plan in record.was.iter().chain([&record.plan]) {
                env.driver(record.driver).remove(plan)?;
            }
        }
        // Its own backend answered; what another one keeps under its label is none of it.
        remove_labelled(env, name, &mut drop)?;
        guest::remove_folder(layout, name)?;
        drop(lock);
        if let Some(id) = record.and_then(|record| record.session) {
            session::end_lease(layout, &id)?;
        }
    } else if only.is_none() {
        refuse_half_renamed(env, name)?;
        let mut unseen = None;
        if is_labelled(env, name, &mut |error| unseen = Some(error))? {
            // The name is ours meanwhile: what another command makes under it now is not what was seen.
            let Some(lock) = guest::take_name(layout, name)? else { return destroy(env, name) };
            found = remove_labelled(env, name, &mut drop)?;
            guest::remove_folder(layout, name)?;
            drop(lock);
        }
        if let Some(error) = unseen.filter(|_| !found) {
            return Err(error);
        }
    }
    // What an earlier destroy left when it was killed half-way; another one may be at it right now.
    let _ = guest::sweep(layout, false);
    Ok(found)
}

/// What bears this name may be a guest whose renaming was interrupted: it has the other name.
fn refuse_half_renamed(env: Env<'_>, name: &GuestName) -> Result<()> {
    for entry in guest::list(&env.settings.layout)? {
        if let guest::Entry::Known(record) = entry
            && record.was.as_ref().is_some_and(|was| was.name == *name)
        {
            let now = record.name();
            return Err(Error::not_found(format!("there is no guest '{name}': it is being renamed to '{now}'"))
                .hint(format!("'virga start {now}' gets done with that")));
        }
    }
    Ok(())
}

fn is_labelled(env: Env<'_>, name: &GuestName, away: Away<'_>) -> Result<bool> {
    for driver in DriverKind::ALL.iter().map(|kind| env.driver(*kind)) {
        if driver.list_owned(away)?.iter().any(|owned| owned.name == *name) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_labelled(env: Env<'_>, name: &GuestName, away: Away<'_>) -> Result<bool> {
    let mut found = false;
    for driver in DriverKind::ALL.iter().map(|kind| env.driver(*kind)) {
        for owned in driver.list_owned(away)?.iter().filter(|owned| owned.name == *name) {
            driver.remove_owned(owned)?;
            found = true;
        }
    }
    Ok(found)
}

/// Destroys each of several guests; one that fails does not keep the others.
/// Calls `done` for each that went.
///
/// # Errors
/// The first failure, after all were tried: but after Ctrl-C no further one is.
/// [`crate::base::Kind::NotFound`] for a name without a guest unless `if_exists`.
pub fn destroy_all(env: Env<'_>, names: &[GuestName], if_exists: bool, mut done: impl FnMut(&GuestName)) -> Result<()> {
    let mut first: Option<Error> = None;
    for name in names {
        interrupt::check()?;
        let outcome = match destroy(env, name) {
            Ok(false) if !if_exists => {
                Err(Error::not_found(format!("there is no guest '{name}'")).hint("'virga list' shows the guests"))
            }
            Ok(true) => {
                done(name);
                Ok(())
            }
            other => other.map(|_| ()),
        };
        if let Err(error) = outcome {
            match first {
                None => first = Some(error),
                Some(_) => env.reporter.warn(&error.to_string()),
            }
        }
    }
    first.map_or(Ok(()), Err)
}
