//! `virga ssh`.

use std::process::ExitCode;

use crate::base::{Error, GuestName, Result};
use crate::ops::{Env, ssh};

/// `virga ssh`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The guest, with another user's name before it if wanted: USER@NAME
    #[arg(value_name = "[USER@]NAME")]
    target: String,
    /// Log in as this user
    #[arg(short, long, value_name = "USER")]
    login_name: Option<String>,
    /// Ask for a terminal in the guest, also for a command
    #[arg(short, long)]
    tty: bool,
    /// A command to run instead of a shell; its words are joined by blanks and read by the guest's shell, as ssh does
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs `virga ssh`. Ends as the remote command did; 255 when the channel failed.
///
/// # Errors
/// As [`ssh::ssh`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let (user, name) = match args.target.rsplit_once('@') {
        Some((user, name)) => (Some(user.to_owned()), name),
        None => (None, args.target.as_str()),
    };
    if user.is_some() && args.login_name.is_some() {
        return Err(Error::usage("the user is named twice: USER@ and --login-name"));
    }
    let name: GuestName = name.parse()?;
    let code = ssh::ssh(env, &name, args.login_name.or(user), args.tty, &args.command)?;
    Ok(ExitCode::from(code))
}
