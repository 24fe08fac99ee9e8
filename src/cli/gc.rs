//! `virga gc`.

use std::process::ExitCode;

use super::args::{FormatArg, value};
use super::render::{self, Format};
use super::term;
use crate::base::{Result, SessionId};
use crate::ops::{Env, session};

/// `virga gc`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// What a keeper is started with.
#[derive(clap::Args, Debug)]
pub struct KeepArgs {
    #[arg(value_parser = value::<SessionId>)]
    session: SessionId,
}

/// Runs `virga gc`: one line for each guest that went.
///
/// # Errors
/// As [`session::collect_garbage`].
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let mut all = Vec::new();
    let outcome = session::collect_garbage(env, args.dry_run, |left| {
        match args.format.format {
            Format::Table => term::line(&format!("{}: {}", left.name, left.why)),
            Format::Json => all.push(serde_json::json!({"name": left.name, "why": left.why})),
        };
    });
    if let Format::Json = args.format.format {
        render::json(&all)?;
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Keeps a session until it is over.
///
/// # Errors
/// As [`session::keep`].
pub fn keep(env: Env<'_>, args: &KeepArgs) -> Result<ExitCode> {
    session::keep(env, &args.session).map(|()| ExitCode::SUCCESS)
}
