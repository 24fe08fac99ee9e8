//! Waiting until a guest is ready, and saying why when it is not.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::{Env, list, ssh};
use crate::base::poll::{self, Deadline};
use crate::base::progress::Stage;
use crate::base::{Error, GuestName, Kind, Result, UserName, fs};
use crate::driver::{Driver, Status};
use crate::guest::{self, Record};
use crate::ssh::ready::{self, WaitRequest};

pub use crate::ssh::cloud_init::Outcome;
pub use crate::ssh::ready::{Goal, Ready};

/// How many of the console's last lines a failed wait shows.
const CONSOLE_LINES: usize = 12;

/// A wait that is shorter than this nobody is told of who did not ask for one.
const UNSEEN: Duration = Duration::from_secs(1);

/// Waits until the guest is as far as asked for; one deadline for all stages.
/// A guest that dies ends it at once. A failure shows the console's last lines.
///
/// # Errors
/// [`Kind::TimedOut`] at the deadline, [`Kind::Failed`] when the guest died,
/// [`Kind::Refused`] when another host key answers than the one that was injected.
pub fn wait(env: Env<'_>, name: &GuestName, goal: Goal, timeout: Duration) -> Result<Ready> {
    wait_shown(env, name, goal, timeout, Duration::ZERO)
}

/// Waits until the guest lets in whoever is allowed to. One that has let somebody in since it was started is not asked.
///
/// # Errors
/// As [`wait`].
pub(super) fn until_login(env: Env<'_>, name: &GuestName, timeout: Duration) -> Result<()> {
    if env.settings.layout.guest_files(name).entered().exists() {
        return Ok(());
    }
    wait_shown(env, name, Goal::Ssh, timeout, UNSEEN).map(drop)
}

/// Makes sure that a guest which was started just now is waited for by whoever goes in.
///
/// # Errors
/// When that cannot be noted.
pub(super) fn begun(env: Env<'_>, name: &GuestName) -> Result<()> {
    fs::remove_file(&env.settings.layout.guest_files(name).entered())
}

fn wait_shown(env: Env<'_>, name: &GuestName, goal: Goal, timeout: Duration, after: Duration) -> Result<Ready> {
    let deadline = Deadline::after(timeout);
    let record = settled(env, name, &deadline)?;
    let driver = env.driver(record.driver);
    let login = ssh::login(env, &record, None);
    let outcome = {
        let stage = Later { env, name, begun: Instant::now(), after, text: Mutex::default(), shown: OnceLock::new() };
        ready::wait(&WaitRequest {
            goal,
            deadline: &deadline,
            // A backend that does not answer just now is asked again: `alive` tells when there is no use in that.
            endpoint: &|| match driver.endpoint(&record.plan) {
                Err(error) if error.kind() != Kind::Interrupted => Ok(None),
                other => other,
            },
            alive: &|| {
                stage.show();
                Ok(driver.glance(&record.plan)?.is_none_or(Status::is_alive))
            },
            login: &login,
            instance: record.instance(),
            stage: &stage,
        })
    };
    let ready = outcome.map_err(|error| explained(env, driver.as_ref(), &record, error))?;
    if let Some(user) = &ready.user {
        learn(env, &record, user);
    }
    if goal >= Goal::Ssh {
        // Without the note the next one waits once more: no harm.
        let _ = fs::write_atomic(&env.settings.layout.guest_files(name).entered(), b"", 0o600);
    }
    Ok(ready)
}

/// Keeps in the record whom the guest lets in.
fn learn(env: Env<'_>, record: &Record, user: &UserName) {
    let name = record.name();
    env.reporter.note(&format!("the user of '{name}' is '{user}', not '{}'", record.user));
    let kept = guest::hold(&env.settings.layout, name).and_then(|mut held| {
        user.as_str().clone_into(&mut held.record.user);
        held.save()
    });
    if let Err(error) = kept {
        env.reporter.warn(&format!("that could not be noted, and is found out again next time: {error}"));
    }
}

/// A wait that is shown once it has lasted so long.
struct Later<'a> {
    env: Env<'a>,
    name: &'a GuestName,
    begun: Instant,
    after: Duration,
    text: Mutex<String>,
    shown: OnceLock<Box<dyn Stage>>,
}

impl Later<'_> {
    fn show(&self) {
        if self.shown.get().is_none() && self.begun.elapsed() >= self.after {
            let shown = self.shown.get_or_init(|| self.env.reporter.wait(self.name.as_str()));
            if let Ok(text) = self.text.lock() {
                shown.stage(&text);
            }
        }
    }
}

impl Stage for Later<'_> {
    fn stage(&self, text: &str) {
        if let Ok(mut last) = self.text.lock() {
            text.clone_into(&mut last);
        }
        match self.shown.get() {
            Some(shown) => shown.stage(text),
            None => self.show(),
        }
    }
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
