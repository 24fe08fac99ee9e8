//! Waiting until a guest is ready, and saying why when it is not.

use std::time::Duration;

use super::{Env, list, ssh};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestName, Kind, Result};
use crate::driver::{Driver, Status};
use crate::guest::{self, Record};
use crate::ssh::ready::{self, WaitRequest};

pub use crate::ssh::cloud_init::Outcome;
pub use crate::ssh::ready::{Goal, Ready};

/// How many of the console's last lines a failed wait shows.
const CONSOLE_LINES: usize = 12;

/// Waits until the guest is as far as asked for; one deadline for all stages.
/// A guest that dies ends it at once. A failure shows the console's last lines.
///
/// # Errors
/// [`Kind::TimedOut`] at the deadline, [`Kind::Failed`] when the guest died,
/// [`Kind::Refused`] when another host key answers than the one that was injected.
pub fn wait(env: Env<'_>, name: &GuestName, goal: Goal, timeout: Duration) -> Result<Ready> {
    let deadline = Deadline::after(timeout);
    let record = settled(env, name, &deadline)?;
    let driver = env.driver(record.driver);
    let login = ssh::login(env, &record, None);
    let outcome = {
        let stage = env.reporter.wait(name.as_str());
        ready::wait(&WaitRequest {
            goal,
            deadline: &deadline,
            // A backend that does not answer just now is asked again: `alive` tells when there is no use in that.
            endpoint: &|| match driver.endpoint(&record.plan) {
                Err(error) if error.kind() != Kind::Interrupted => Ok(None),
                other => other,
            },
            alive: &|| Ok(driver.glance(&record.plan)?.is_none_or(Status::is_alive)),
            login: &login,
            instance: record.instance(),
            stage: stage.as_ref(),
        })
    };
    outcome.map_err(|error| explained(env, driver.as_ref(), &record, error))
}

/// The record of a guest that runs. One that another command makes or starts just now is none yet, and may become one.
fn settled(env: Env<'_>, name: &GuestName, deadline: &Deadline) -> Result<Record> {
    let layout = &env.settings.layout;
    let look = || {
        let record = guest::get(layout, name)?;
        match env.driver(record.driver).status(&record.plan)? {
            Status::Running => Ok(record),
            status => Err(list::not_running(name, status)),
        }
    };
    let found = poll::until(deadline, Duration::from_millis(100), || {
        // In this order: one that gets done in between is seen done.
        let busy = !guest::is_free(layout, name)?;
        match look() {
            Err(error) if error.kind() == Kind::Failed && busy => Ok(None),
            looked => looked.map(Some),
        }
    })?;
    found.ok_or_else(|| {
        let limit = humantime::format_duration(deadline.limit());
        Error::timed_out(format!("guest '{name}' is not running within {limit}, and another virga is at work on it"))
    })
}

/// Shows the console's last lines and adds what can be done.
fn explained(env: Env<'_>, driver: &dyn Driver, record: &Record, error: Error) -> Error {
    let name = record.name();
    let evident = matches!(error.kind(), Kind::Interrupted | Kind::Refused | Kind::Unavailable);
    if !evident {
        match driver.console_tail(&record.plan, CONSOLE_LINES) {
            Ok(lines) if lines.is_empty() => env.reporter.note(&format!("'{name}' wrote nothing on its console")),
            Ok(lines) => {
                env.reporter.note(&format!("the last lines of the console of '{name}':\n  {}", lines.join("\n  ")))
            }
            Err(error) => env.reporter.warn(&format!("the console of '{name}' cannot be read: {error}")),
        }
    }
    match error.kind() {
        Kind::TimedOut => error.hint(format!("'virga console --log {name}' shows more")),
        Kind::Refused => error.hint(format!("something else answers at this guest's port, or its keys were changed inside; if in doubt: virga destroy {name}")),
        Kind::Failed => {
            let ending = driver.details(&record.plan).ok().and_then(|details| details.ending);
            let error = ending.into_iter().fold(error, Error::because);
            error.hint(format!("'virga console --log {name}' shows more"))
        }
        _ => error,
    }
}
