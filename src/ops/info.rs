//! Everything that is known of one guest.

use jiff::Timestamp;

use super::Env;
use super::list::{self, Listed, State};
use crate::base::plan::Forward;
use crate::base::{GuestName, Kind, Result};
use crate::driver::{Details, Status};
use crate::{guest, session};

/// One guest.
#[derive(Debug)]
pub struct Info {
    /// How it stands, with its record.
    pub listed: Listed,
    /// What its backend adds.
    pub details: Details,
    /// Its forwards, the host's ports filled in while it runs.
    pub forwards: Vec<Forward>,
    /// How many snapshots it has; `None` when the program that knows is not there.
    pub snapshots: Option<usize>,
    /// When it goes by itself.
    pub expires: Option<Timestamp>,
}

/// Looks at one guest, half-made ones too. Takes no lock.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest; when its record cannot be read or its backend does not answer.
pub fn info(env: Env<'_>, name: &GuestName) -> Result<Info> {
    let record = match guest::load(&env.settings.layout, name)? {
        Some(record) => record,
        None => guest::get(&env.settings.layout, name)?,
    };
    let driver = env.driver(record.driver);
    let listed = list::known(Some(driver.as_ref()), record)?;
    let Some(record) = listed.record.as_ref().filter(|_| listed.state != State::HalfMade) else {
        return Ok(Info { listed, details: Details::default(), forwards: Vec::new(), snapshots: None, expires: None });
    };
    let plan = &record.plan;
    let runs = matches!(listed.state, State::Known(Status::Running | Status::Paused));
    let snapshots = match driver.snapshots(plan) {
        Err(error) if error.kind() == Kind::Unavailable => None,
        found => Some(found?.len()),
    };
    let expires = record.session.as_ref().map(|id| session::until(&env.settings.layout, id)).transpose()?.flatten();
    Ok(Info {
        expires,
        details: driver.details(plan)?,
        forwards: if runs { driver.forwards(plan)? } else { plan.forwards.clone() },
        snapshots,
        listed,
    })
}
