//! `virga screenshot`, `virga viewer`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::value;
use super::term;
use crate::base::{Error, GuestName, Kind, Result, fs};
use crate::ops::{Env, screen};

/// `virga screenshot`
#[derive(clap::Args, Debug)]
pub struct PictureArgs {
    /// The guest
    #[arg(value_parser = value::<GuestName>, value_name = "NAME")]
    name: GuestName,
    /// Where the picture goes; - is standard output
    #[arg(value_name = "FILE.png")]
    file: PathBuf,
}

/// `virga viewer`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The screen is served without a password until the guest ends: other users of this host can see it."
)]
pub struct ViewerArgs {
    /// The guest
    #[arg(value_parser = value::<GuestName>, value_name = "NAME")]
    name: GuestName,
    /// Print the address, and open no window
    #[arg(long)]
    print: bool,
}

/// Runs `virga screenshot`. The file is whole or is not made.
///
/// # Errors
/// As [`screen::picture`], and when the file cannot be written.
pub fn picture(env: Env<'_>, args: PictureArgs) -> Result<ExitCode> {
    let to_stdout = args.file.as_os_str() == "-";
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(
            Error::usage("a terminal shows no pictures").hint(format!("virga screenshot {} FILE.png", args.name))
        );
    }
    let png = screen::picture(env, &args.name)?;
    if to_stdout {
        term::bytes(&png);
    } else {
        fs::write_atomic(&args.file, &png, 0o600).map_err(|error| error.with_kind(Kind::Failed))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `virga viewer`.
///
/// # Errors
/// As [`screen::address`] and [`screen::watch`].
pub fn viewer(env: Env<'_>, args: ViewerArgs) -> Result<ExitCode> {
    let viewer = screen::address(env, &args.name)?;
    term::line(&viewer.address);
    if let Some(host) = &viewer.host {
        env.reporter.note(&format!("that is on the loopback of '{host}': reach it by 'ssh -L'"));
    }
    if !args.print {
        screen::watch(env, &viewer)?;
    }
    Ok(ExitCode::SUCCESS)
}
