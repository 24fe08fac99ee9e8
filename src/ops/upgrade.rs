//! Giving a guest the newest machine type that its backend has, and back.

use super::{Env, change};
use crate::base::{Error, GuestName, Result};

/// What has become of a guest's machine type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was one and is another now.
    Changed {
        /// It was this.
        from: String,
        /// It is this.
        to: String,
    },
    /// It is the newest one.
    Newest(String),
    /// It was never started: its first start decides.
    Undecided,
}

/// Gives a guest that does not run the newest machine type; its old one stays in the record, for [`rollback`].
/// To the guest it is another board: what is tied to devices by their place may have to be looked at.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Failed`] when it runs or is saved.
pub fn upgrade(env: Env<'_>, name: &GuestName) -> Result<Outcome> {
    let mut held = change::hold_stopped(env, name)?;
    let mut plan = held.record.plan.clone();
    let Some(from) = plan.platform.machine.clone() else { return Ok(Outcome::Undecided) };
    let to = env.driver(held.record.driver).newest_machine(&plan)?;
    if from == to {
        return Ok(Outcome::Newest(to));
    }
    plan.platform.machine = Some(to.clone());
    plan.platform.machine_before = Some(from.clone());
    change::apply(env, &mut held, plan)?;
    Ok(Outcome::Changed { from, to })
}

/// Gives it back the machine type that it had before it was upgraded.
///
/// # Errors
/// As [`upgrade`]; [`crate::base::Kind::Failed`] when it was not.
pub fn rollback(env: Env<'_>, name: &GuestName) -> Result<Outcome> {
    let mut held = change::hold_stopped(env, name)?;
    let mut plan = held.record.plan.clone();
    let (Some(to), Some(from)) = (plan.platform.machine_before.take(), plan.platform.machine.clone()) else {
        return Err(Error::failed(format!("the machine type of '{name}' was not upgraded")));
    };
    plan.platform.machine = Some(to.clone());
    change::apply(env, &mut held, plan)?;
    Ok(Outcome::Changed { from, to })
}
