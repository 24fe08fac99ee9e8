//! What guests there are and how they stand, asked of their backends.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Env;
use crate::base::plan::DriverKind;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestName, Kind, Result};
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
    /// It lives, and its backend is too busy to say more at once: it is being saved, or the machine has no time for it.
    Busy,
    /// Its backend does not answer.
    Unknown,
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
            State::Saved | State::Known(Status::Saved) => "saved",
            State::HalfMade => "half-made",
            State::Broken => "broken",
            State::Orphan => "orphan",
            State::Busy => "busy",
            State::Unknown => "unknown",
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
    /// The member of its backend's cluster that it is on, where there is one.
    pub location: Option<String>,
}

/// One whose address is known already may be without one for a moment: libvirt does not name a neighbour while the host's
/// kernel makes sure of it, which takes five seconds of waiting and three of asking.
const ADDRESS: Duration = Duration::from_secs(30);

/// All guests by name, orphans last. Takes no lock, and touches no network but for guests at daemons elsewhere. Of a
/// backend that does not answer it warns, and lists what it can.
///
/// # Errors
/// When the state folder cannot be read.
pub fn list(env: Env<'_>) -> Result<Vec<Listed>> {
    // Each is opened once: a connection serves the whole list.
    let drivers: Vec<_> = DriverKind::ALL.iter().map(|kind| (*kind, env.driver(*kind))).collect();
    let mut away = BTreeSet::new();
    let mut listed = Vec::new();
    for entry in guest::list(&env.settings.layout)? {
        listed.push(match entry {
            Entry::Known(record) => {
                let driver = drivers.iter().find(|(kind, _)| *kind == record.driver);
                match known(driver.map(|(_, driver)| driver.as_ref()), (*record).clone()) {
                    Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Refused) => {
                        away.insert(error.to_string());
                        let name = record.name().clone();
                        Listed { name, state: State::Unknown, record: Some(*record), endpoint: None, location: None }
                    }
                    known => known?,
                }
            }
            Entry::Broken(name, error) => {
                let state = if error.is_some() { State::Broken } else { State::HalfMade };
                Listed { name, state, record: None, endpoint: None, location: None }
            }
        });
    }
    // What runs under our label without a folder was left by a killed command.
    for (_, driver) in &drivers {
        let mut unseen = Vec::new();
        let owned = driver.list_owned(&mut |error| unseen.push(error.to_string()))?;
        away.extend(unseen);
        for owned in owned {
            // What is being renamed bears either name.
            let was = |line: &Listed| line.record.as_ref()?.was.as_ref().map(|was| was.name.clone());
            let known = |line: &Listed| line.name == owned.name || was(line).as_ref() == Some(&owned.name);
            // One that was made since the folders were looked at has one now.
            if !listed.iter().any(known) && !guest::exists(&env.settings.layout, &owned.name) {
                listed.push(Listed {
                    name: owned.name,
                    state: State::Orphan,
                    record: None,
                    endpoint: None,
                    location: None,
                });
            }
        }
    }
    away.iter().for_each(|error| env.reporter.warn(error));
    Ok(listed)
}

/// How a guest with a readable record stands.
///
/// # Errors
/// When its backend does not answer.
pub(super) fn known(driver: Option<&dyn Driver>, record: Record) -> Result<Listed> {
    let name = record.name().clone();
    let Some(driver) = driver.filter(|_| record.phase == Phase::Ready) else {
        return Ok(Listed { name, state: State::HalfMade, record: Some(record), endpoint: None, location: None });
    };
    let status = driver.glance(&record.plan)?;
    // A guest that ends between the two questions has no endpoint: no reason to fail the listing.
    let endpoint = match status {
        Some(status) if status.is_alive() => driver.endpoint(&record.plan).unwrap_or_default(),
        _ => None,
    };
    let saved = record.saved.is_some();
    let state = match status {
        None => State::Busy,
        Some(status) if !status.is_alive() && saved => State::Saved,
        Some(status) => State::Known(status),
    };
    let location = driver.location(&record.plan)?;
    Ok(Listed { name, state, record: Some(record), endpoint, location })
}

/// Where one running guest's SSH is. One that has no address is asked for it for a while.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest; [`crate::base::Kind::Failed`] when it does not run.
pub fn address(env: Env<'_>, name: &GuestName) -> Result<std::net::SocketAddr> {
    let record = guest::get(&env.settings.layout, name)?;
    let driver = env.driver(record.driver);
    match driver.status(&record.plan)? {
        Status::Running => {}
        status => return Err(not_running(name, status)),
    }
    let mut waiting = None;
    let found = poll::until(&Deadline::after(ADDRESS), Duration::from_millis(100), || {
        let found = driver.endpoint(&record.plan)?;
        if let (None, Some(status)) = (found, driver.glance(&record.plan)?)
            && status != Status::Running
        {
            return Err(not_running(name, status));
        }
        if found.is_none() && waiting.is_none() {
            waiting = Some(env.reporter.wait(name.as_str()));
            waiting.iter().for_each(|waiting| waiting.stage("the guest's address"));
        }
        Ok(found)
    })?;
    found.ok_or_else(|| Error::failed(format!("guest '{name}' has no address yet")).hint(format!("virga wait {name}")))
}

/// Why something cannot be done with a guest that does not run, and how it runs again.
pub(super) fn not_running(name: &GuestName, status: Status) -> Error {
    match status {
        Status::Paused => Error::failed(format!("guest '{name}' is suspended")).hint(format!("virga resume {name}")),
        _ => Error::failed(format!("guest '{name}' is not running")).hint(format!("virga start {name}")),
    }
}
