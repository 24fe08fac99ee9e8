//! A guest's screen: a picture of it, and where it can be watched.

use super::{Env, list};
use crate::base::cmd::{self, Cmd};
use crate::base::{Error, GuestName, Result};
use crate::driver::{Driver, Viewer};
use crate::guest::{self, Record};

/// The program that shows a screen, where there is one.
const PROGRAM: &str = "remote-viewer";

/// A picture of the screen of a guest that runs or is held, as PNG.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest; [`crate::base::Kind::Failed`] when it does not run;
/// [`crate::base::Kind::Unsupported`] when its backend makes no such pictures.
pub fn picture(env: Env<'_>, name: &GuestName) -> Result<Vec<u8>> {
    let (record, driver) = alive(env, name)?;
    driver.screenshot(&record.plan)
}

/// Where the screen of a guest can be watched, until it ends.
///
/// # Errors
/// As [`picture`].
pub fn address(env: Env<'_>, name: &GuestName) -> Result<Viewer> {
    let (record, driver) = alive(env, name)?;
    driver.viewer(&record.plan)
}

/// Shows a screen in a window, and returns when that is closed. `false` without a display or a program for it:
/// then the reason was said.
///
/// # Errors
/// When the program cannot be started, or fails.
pub fn watch(env: Env<'_>, viewer: &Viewer) -> Result<bool> {
    if viewer.host.is_some() || !env.settings.display {
        return Ok(false);
    }
    if cmd::find(PROGRAM).is_none() {
        env.reporter.note(&format!("'{PROGRAM}' would show it: 'apt install virt-viewer' on Debian and Ubuntu"));
        return Ok(false);
    }
    let status = Cmd::new(PROGRAM).arg(&viewer.address).interactive()?;
    if status.success() { Ok(true) } else { Err(Error::failed(format!("'{PROGRAM}' failed ({status})"))) }
}

fn alive(env: Env<'_>, name: &GuestName) -> Result<(Record, Box<dyn Driver>)> {
    let record = guest::get(&env.settings.layout, name)?;
    let driver = env.driver(record.driver);
    match driver.status(&record.plan)? {
        status if !status.is_alive() => Err(list::not_running(name, status)),
        _ => Ok((record, driver)),
    }
}
