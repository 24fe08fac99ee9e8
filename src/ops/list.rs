//! What guests there are and how they stand, asked of their backends.

use std::path::Path;

use super::Env;
use crate::base::plan::DriverKind;
use crate::base::{Error, GuestName, Result};
use crate::driver::{Driver, Status};
use crate::guest::{self, Entry, Phase, Record};

/// How a guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Whole; this is what its backend says.
    Known(Status),
    /// Saved with its memory: `start` goes on from there.
    Saved,
    /// Being made, or left half-made by a command that was killed.
    HalfMade,
    /// Its record cannot be read.
    Broken,
    /// The backend runs it, but its folder is gone.
    Orphan,
}

impl State {
    /// The word for listings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Known(Status::Running) => "running",
            State::Known(Status::Paused) => "paused",
            State::Known(Status::Stopped) => "stopped",
            State::Known(Status::Died) => "died",
            State::Saved => "saved",
            State::HalfMade => "half-made",
            State::Broken => "broken",
            State::Orphan => "orphan",
        }
    }
}

/// One line of a listing.
#[derive(Debug)]
pub struct Listed {
    /// The guest's name.
    pub name: GuestName,
    /// How it stands.
    pub state: State,
    /// Its record, where there is a readable one.
    pub record: Option<Record>,
    /// Where its SSH is, while it runs.
    pub endpoint: Option<std::net::SocketAddr>,
}

/// All guests by name, orphans last. Touches no network and takes no lock.
///
/// # Errors
/// When the state folder cannot be read or a backend does not answer.
pub fn list(env: Env<'_>) -> Result<Vec<Listed>> {
    // Each driver is opened once: one look at all processes serves the whole list.
    let drivers = DriverKind::ALL.map(|kind| (kind, env.driver(kind)));
    let mut listed = Vec::new();
    for entry in guest::list(&env.settings.layout)? {
        listed.push(match entry {
            Entry::Known(record) => {
                let saved = env.settings.layout.guest_files(record.name()).saved();
                let driver = drivers.iter().find(|(kind, _)| *kind == record.driver);
                known(driver.map(|(_, driver)| driver.as_ref()), *record, &saved)?
            }
            Entry::Broken(name, error) => {
                let state = if error.is_some() { State::Broken } else { State::HalfMade };
                Listed { name, state, record: None, endpoint: None }
            }
        });
    }
    // What runs under our label without a folder was left by a killed command.
    for (_, driver) in &drivers {
        for owned in driver.list_owned()? {
            if !listed.iter().any(|line| line.name == owned.name) {
                listed.push(Listed { name: owned.name, state: State::Orphan, record: None, endpoint: None });
            }
        }
    }
    Ok(listed)
}

fn known(driver: Option<&dyn Driver>, record: Record, saved: &Path) -> Result<Listed> {
    let name = record.name().clone();
    let Some(driver) = driver.filter(|_| record.phase == Phase::Ready) else {
        return Ok(Listed { name, state: State::HalfMade, record: Some(record), endpoint: None });
    };
    let status = driver.status(&record.plan)?;
    // A guest that ends between the two questions has no endpoint: no reason to fail the listing.
    let endpoint = match status {
        _ if !status.is_alive() => None,
        _ => driver.endpoint(&record.plan).unwrap_or_default(),
    };
    let state = if !status.is_alive() && saved.exists() { State::Saved } else { State::Known(status) };
    Ok(Listed { name, state, record: Some(record), endpoint })
}

/// Where one running guest's SSH is.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest; [`crate::base::Kind::Failed`] when it does not run.
pub fn address(env: Env<'_>, name: &GuestName) -> Result<std::net::SocketAddr> {
    let record = guest::get(&env.settings.layout, name)?;
    let driver = env.driver(record.driver);
    if driver.status(&record.plan)? != Status::Running {
        return Err(Error::failed(format!("guest '{name}' is not running")).hint(format!("virga start {name}")));
    }
    driver
        .endpoint(&record.plan)?
        .ok_or_else(|| Error::failed(format!("guest '{name}' has no address yet")).hint(format!("virga wait {name}")))
}

/// The last lines of what a guest wrote on its console, oldest first. Works
/// on half-made and dead guests too: that is when it is wanted most.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest.
pub fn console(env: Env<'_>, name: &GuestName, lines: usize) -> Result<Vec<String>> {
    let record = match guest::load(&env.settings.layout, name)? {
        Some(record) => record,
        None => guest::get(&env.settings.layout, name)?,
    };
    env.driver(record.driver).console_tail(&record.plan, lines)
}
