//! `virga doctor`.

use std::process::ExitCode;

use super::args::FormatArg;
use super::render::{self, Format};
use super::term;
use crate::base::Result;
use crate::driver::Level;
use crate::ops::{Env, doctor};

/// `virga doctor`
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `virga doctor`. Ends with 6 when guests cannot run.
///
/// # Errors
/// When the findings cannot be printed.
pub fn run(env: Env<'_>, args: Args) -> Result<ExitCode> {
    let findings = doctor::doctor(env);
    match args.format.format {
        Format::Json => render::json(&findings)?,
        Format::Table => {
            for finding in &findings {
                let mark = match finding.level {
                    Level::Ok => "ok",
                    Level::Warning => "warning",
                    Level::Error => "error",
                };
                term::line(&format!("{mark:8} {:8} {}", finding.check, finding.detail));
                if let Some(hint) = &finding.hint {
                    term::line(&format!("{:17} hint: {hint}", ""));
                }
            }
        }
    }
    let bad = findings.iter().any(|finding| finding.level == Level::Error);
    Ok(if bad { ExitCode::from(6) } else { ExitCode::SUCCESS })
}
