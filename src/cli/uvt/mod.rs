//! uvtool's commands: called as `uvt-kvm` or `uvt-simplestreams-libvirt`, the
//! program speaks uvtool's language, in and out. `docs/uvtool.md` is the table
//! of what is the same, better, or left out.

#[cfg(feature = "libvirt")]
mod kvm;
#[cfg(feature = "libvirt")]
mod streams;

use std::path::Path;
use std::process::ExitCode;

use super::term;
use crate::base::{Error, Kind};

const TOOLS: [&str; 2] = ["uvt-kvm", "uvt-simplestreams-libvirt"];

/// Runs the tool by whose name the program was called; `None` when that is none of uvtool's.
#[must_use]
pub fn run() -> Option<ExitCode> {
    let called = std::env::args_os().next()?;
    let name = Path::new(&called).file_name()?.to_str()?;
    let tool = TOOLS.into_iter().find(|tool| *tool == name)?;
    Some(speak(tool))
}

#[cfg(not(feature = "libvirt"))]
fn speak(tool: &'static str) -> ExitCode {
    let without = Error::new(Kind::Unsupported, "this virga was built without its feature 'libvirt'");
    failed(tool, &without.hint("build it with: cargo build --features libvirt"))
}

#[cfg(feature = "libvirt")]
fn speak(tool: &'static str) -> ExitCode {
    let outcome = if tool == TOOLS[0] { kvm::run() } else { streams::run() };
    match outcome {
        Ok(_) if term::data_was_lost() => {
            term::talk(&format!("{tool}: error: the output could not be written"));
            ExitCode::FAILURE
        }
        Ok(code) => code,
        Err(error) => failed(tool, &error),
    }
}

/// Says what went wrong as uvtool does, and why and what to do about it as virga does.
fn failed(tool: &str, error: &Error) -> ExitCode {
    if error.kind() == Kind::Interrupted {
        term::talk("interrupted");
        return ExitCode::from(error.kind().exit_code());
    }
    // uvtool's own words have lines of their own.
    format!("{tool}: error: {error}").lines().for_each(term::talk);
    for cause in error.causes() {
        term::talk(&format!("caused by: {cause}"));
    }
    for hint in error.hints() {
        term::talk(&format!("hint: {hint}"));
    }
    ExitCode::FAILURE
}

/// The tools' command lines, for their manual pages.
#[must_use]
pub fn commands() -> Vec<clap::Command> {
    #[cfg(feature = "libvirt")]
    return vec![kvm::command(), streams::command()];
    #[cfg(not(feature = "libvirt"))]
    return Vec::new();
}

#[cfg(feature = "libvirt")]
mod listening {
    use std::io::IsTerminal as _;

    use crate::base::plan::DriverKind;
    use crate::base::progress::{Reporter, Silent, Stage, Transfer};
    use crate::base::{Result, interrupt, state};
    use crate::cli::{log, term};
    use crate::config;
    use crate::ops::Env;

    /// Progress is for people: a script's output is uvtool's and no more. What is unusual is always said.
    struct Listener {
        terminal: term::Terminal,
        people: bool,
    }

    impl Reporter for Listener {
        fn note(&self, text: &str) {
            self.terminal.note(text);
        }

        fn warn(&self, text: &str) {
            self.terminal.warn(text);
        }

        fn transfer(&self, label: &str, total: Option<u64>) -> Box<dyn Transfer> {
            if self.people { self.terminal.transfer(label, total) } else { Box::new(Silent) }
        }

        fn wait(&self, label: &str) -> Box<dyn Stage> {
            if self.people { self.terminal.wait(label) } else { Box::new(Silent) }
        }
    }

    /// Runs `work` with virga's settings turned to uvtool's daemon and to this pool.
    ///
    /// # Errors
    /// What `work` returns; for settings that make no sense.
    pub(super) fn within<T>(pool: &str, work: impl FnOnce(Env<'_>) -> Result<T>) -> Result<T> {
        log(0);
        interrupt::install()?;
        let mut settings = config::load()?;
        settings.connect = Some(settings.uvtool.connect.clone());
        settings.pool = Some(pool.to_owned());
        settings.defaults.driver = DriverKind::Libvirt.into();
        state::check(&settings.layout)?;
        let people = std::io::stderr().is_terminal();
        let listener = Listener { terminal: term::Terminal::new(false), people };
        work(Env { settings: &settings, reporter: &listener })
    }
}
