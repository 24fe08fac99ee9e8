//! Giving a guest another name.

use super::{Env, change, identity};
use crate::base::undo::Undo;
use crate::base::{GuestName, Result, fs, interrupt};
use crate::guest;

/// Renames a guest that does not run: its folder, its record, its name at the backend, the name that its host
/// keys are filed under, and its host name, which it takes at its next boot. `false` when its host name stays as it
/// is, because the user gave it one.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Exists`] for a name that is taken,
/// [`crate::base::Kind::Failed`] when it runs or is saved. It has its old name then.
pub fn rename(env: Env<'_>, from: &GuestName, to: &GuestName) -> Result<bool> {
    let layout = &env.settings.layout;
    change::another_name(layout, from, to)?;
    let mut held = change::hold_stopped(env, from)?;
    if guest::exists(layout, to) {
        return Err(guest::taken(layout, to));
    }
    let before = held.record.clone();
    let mut plan = identity::named(layout, &before.plan, to);
    if before.plan.daemon.is_some() {
        plan.volumes = Some(before.plan.volumes().clone());
    }
    let follows = identity::renamed_seed(&before.plan, from, to)?.is_some();
    held.rename(plan)?;
    let mut undo = Undo::new();
    let (driver, old, new) = (env.driver(before.driver), before.clone(), held.record.plan.clone());
    let layout_ = layout.clone();
    undo.push("the guest's name", move || {
        // From here on the folder's name says again which of the two plans counts.
        fs::rename_new(&layout_.guest(&new.name), &layout_.guest(&old.plan.name))?;
        change::carry_out(&layout_, driver.as_ref(), &new, &old.plan)?;
        guest::save(&layout_, &old)
    });
    change::carry_out(layout, env.driver(before.driver).as_ref(), &before.plan, &held.record.plan)?;
    interrupt::check()?;
    held.record.was = None;
    held.save()?;
    undo.commit();
    Ok(follows)
}
