//! Running a program in a guest: by its driver where that can, else over SSH.

use super::{Env, list, ssh, wait};
use crate::base::cmd::Pipes;
use crate::base::{Error, GuestName, Result};
use crate::driver::{Ability, Exec, Status};
use crate::guest;
use crate::ssh::session::{self, Tty, shell_word};

/// How a program is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The driver runs it, as root.
    Driver,
    /// SSH does, as the guest's user.
    Ssh,
}

/// Which way leads into a running guest.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Failed`] when it does not run.
pub fn way(env: Env<'_>, name: &GuestName) -> Result<Way> {
    let record = guest::get(&env.settings.layout, name)?;
    let driver = env.driver(record.driver);
    match driver.status(&record.plan)? {
        Status::Running => {}
        status => return Err(list::not_running(name, status)),
    }
    Ok(match driver.capabilities().exec {
        Ability::Yes => Way::Driver,
        Ability::No(_) => Way::Ssh,
    })
}

/// Runs a program by the guest's driver. Returns its exit code.
///
/// # Errors
/// As [`way`]; what the driver said.
pub fn by_driver(env: Env<'_>, name: &GuestName, exec: &Exec, streams: Pipes<'_>) -> Result<u8> {
    let record = guest::get(&env.settings.layout, name)?;
    env.driver(record.driver).exec(&record.plan, exec, streams)
}

/// Runs a program over SSH, with our own input, output and terminal. Its arguments arrive as they are. Returns its
/// exit code, or 255 when the channel failed.
///
/// # Errors
/// As [`way`].
pub fn over_ssh(env: Env<'_>, name: &GuestName, exec: &Exec) -> Result<u8> {
    if exec.command.is_empty() {
        return Err(Error::usage("no command is given"));
    }
    let address = list::address(env, name)?;
    wait::until_login(env, name, env.settings.defaults.timeout)?;
    let record = guest::get(&env.settings.layout, name)?;
    let set = exec.environment.iter().map(|(name, value)| shell_word(&format!("{name}={value}")));
    let words = exec.command.iter().map(|word| shell_word(word));
    let mut line = vec!["exec".to_owned(), "env".to_owned()];
    line.extend(set.chain(words));
    let tty = if exec.terminal.is_some() { Tty::Always } else { Tty::Never };
    let code = session::interactive(&ssh::login(env, &record, None).at(address), &line, tty)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
