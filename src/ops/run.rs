//! One command in a guest of its own: sync if needed, create, wait, run it,
//! destroy. Whatever becomes of this process, the guest goes ([`super::session`]).

use std::path::PathBuf;
use std::time::Duration;

use super::create::{self, CreateRequest, From, MachineRequest};
use super::images::ASK_UNSIGNED;
use super::origin::Base;
use super::session::{self, Owned};
use super::sync::{self, FromSources, SyncRequest};
use super::wait::{self, Goal, Outcome};
use super::{Env, choose, cp, list, ssh};
use crate::base::plan::DriverChoice;
use crate::base::poll::Deadline;
use crate::base::{Error, GuestName, GuestPath, Kind, Result, fs, interrupt};
use crate::driver::Boots;
use crate::guest;
use crate::ssh::session::{self as channel, CHANNEL_FAILED, SshTarget, Tty, shell_word};
use crate::stream::filter::Filters;

/// A command, and the guest that it is to run in.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The guest; its life is the run's.
    pub guest: CreateRequest,
    /// Where its image comes from when the pool has none that matches.
    pub from: FromSources,
    /// Take no image but one that is in the pool.
    pub offline: bool,
    /// How far the guest is to be before the command starts.
    pub goal: Goal,
    /// How long it may take to come so far.
    pub boot_timeout: Duration,
    /// Files and folders of ours that are brought into the guest's home before; the command works in the last folder of
    /// them.
    pub copies: Vec<PathBuf>,
    /// What is brought back afterwards, however the command ended: from where, and to where.
    pub gets: Vec<(GuestPath, PathBuf)>,
    /// The command and its arguments, as they are.
    pub command: Vec<String>,
    /// What is added to its environment.
    pub environment: Vec<(String, String)>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// When the guest stays.
    pub keep: Keep,
}

/// When a guest stays after its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Never.
    Never,
    /// When the command did not end with 0, or could not be run.
    OnFailure,
    /// Always.
    Always,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Code(u8),
    /// Its time was over.
    TimedOut,
}

/// Makes the guest, runs the command in it with our own input, output and terminal, and removes the guest.
///
/// # Errors
/// As [`create::create`], [`wait::wait`] and [`sync::sync`]; [`Kind::Failed`] when the connection to the guest broke.
pub fn run(env: Env<'_>, request: &RunRequest) -> Result<Ended> {
    // Before any work.
    let folder = working_folder(&request.copies)?;
    for (from, to) in &request.gets {
        let target = if to.is_dir() { to.join(from.file_name().unwrap_or_default()) } else { to.clone() };
        if target.is_dir() {
            return Err(Error::new(Kind::Exists, format!("there is a folder '{}' already", target.display()))
                .hint("'--get' replaces no folder: remove it, or give another place, as in --get PATH:PLACE"));
        }
    }
    let owned = Owned::begin(env)?;
    let outcome = in_session(env, &owned, request, folder.as_ref());
    let keep = match request.keep {
        Keep::Never => false,
        Keep::OnFailure => !matches!(outcome, Ok(Ended::Code(0))),
        Keep::Always => true,
    };
    let name = &request.guest.name;
    let interrupted = outcome.as_ref().is_err_and(|error| error.kind() == Kind::Interrupted);
    if keep && !interrupted && guest::exists(&env.settings.layout, name) {
        session::release(env, name)?;
        env.reporter
            .note(&format!("'{name}' stays: 'virga ssh {name}' looks at it, 'virga destroy {name}' removes it"));
    }
    match (owned.end(env), outcome) {
        (Err(error), Ok(ended)) => {
            // The command's own end counts for whoever called us.
            env.reporter.warn(&format!("'{name}' could not be removed: {error}"));
            Ok(ended)
        }
        (_, outcome) => outcome,
    }
}

fn in_session(env: Env<'_>, owned: &Owned, request: &RunRequest, folder: Option<&GuestPath>) -> Result<Ended> {
    let machine = fetch_if_missing(env, request)?;
    let wanted = CreateRequest { machine, life: owned.life(), start: true, ..request.guest.clone() };
    create::create(env, &wanted)?;
    let name = &wanted.name;
    let ready = wait::wait(env, name, request.goal, request.boot_timeout)?;
    match ready.outcome {
        Some(Outcome::Error(details)) => {
            let error = Error::failed(format!("cloud-init failed in '{name}'"));
            return Err(details
                .iter()
                .fold(error, |error, detail| error.because(detail.to_string()))
                .hint("'--keep-on-failure' lets you look at it, '--for ssh' does not mind"));
        }
        Some(Outcome::Degraded(details)) => {
            for detail in details {
                env.reporter.warn(&format!("cloud-init is degraded: {detail}"));
            }
        }
        Some(Outcome::Done) | None => {}
    }
    let record = guest::get(&env.settings.layout, name)?;
    let target = ssh::login(env, &record, None).at(list::address(env, name)?);
    for from in &request.copies {
        // Over SSH in any case: they are to belong to whom the command is run as.
        cp::push_by(env, None, &record, from, &home()?, true)?;
    }
    let ended = command(request, folder, &target)?;
    for (from, to) in &request.gets {
        let from = match folder {
            Some(folder) => from.beneath(folder.as_str()).parse()?,
            None => from.clone(),
        };
        let got = cp::pull_by(env, None, &record, &from, to, true);
        match (got, ended) {
            (Ok(()), _) => {}
            // A command that failed is what counts; its results may well be missing.
            (Err(error), Ended::Code(1..) | Ended::TimedOut) => env.reporter.warn(&error.to_string()),
            (Err(error), _) => return Err(error),
        }
    }
    Ok(ended)
}

fn home() -> Result<GuestPath> {
    ".".parse()
}

/// The last of the copies that is a folder, as it is called in the guest's home.
fn working_folder(copies: &[PathBuf]) -> Result<Option<GuestPath>> {
    let mut last = None;
    for from in copies {
        let whole = from.canonicalize().map_err(|error| fs::explain(error, "looking for", from))?;
        if whole.is_dir() {
            let name = from.file_name().or(whole.file_name()).and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::usage(format!("{from:?} has no name that a guest could be given")))?;
            last = Some(name.parse()?);
        }
    }
    Ok(last)
}

/// Brings an image into the pool when none there matches, and says how it is called there.
fn fetch_if_missing(env: Env<'_>, request: &RunRequest) -> Result<MachineRequest> {
    let wished = &request.guest.machine;
    let From::Pool(filters) = &wished.from else { return Ok(wished.clone()) };
    let found = |machine: &MachineRequest| is_there(env, machine).map(|()| machine.clone());
    let missing = match found(wished) {
        Err(error) if error.kind() == Kind::NotFound => error,
        found => return found,
    };
    // Whoever takes metadata unsigned asks for the image that comes of it, where there is no better one.
    let waived = || request.from.load(env).is_ok_and(|sources| sources.iter().any(|source| !source.is_signed()));
    let unsigned = !Filters::parse(filters)?.names("trust") && (request.from.unsigned || waived());
    let ask = unsigned.then(|| ASK_UNSIGNED.to_owned());
    let machine = &MachineRequest { from: From::Pool(filters.iter().cloned().chain(ask).collect()), ..wished.clone() };
    if unsigned && let Ok(machine) = found(machine) {
        return Ok(machine);
    }
    if request.offline {
        return Err(missing.hint("without '--offline' it is fetched"));
    }
    if filters.is_empty() {
        return Err(missing.hint("say which image, as in release=noble, and it is fetched"));
    }
    let container = match machine.driver {
        Some(DriverChoice::Kind(kind)) => !env.driver(kind).capabilities().boots.contains(&Boots::DiskImage),
        _ => false,
    };
    let fetch = SyncRequest {
        from: request.from.clone(),
        max: 1,
        keep: true,
        filters: filters.clone(),
        container,
        ..SyncRequest::default()
    };
    sync::sync(env, &fetch).map_err(|error| {
        // What is there and unsigned may be what was meant.
        let hints = missing.hints().into_iter().filter(|hint| hint.contains(ASK_UNSIGNED));
        hints.fold(error, |error, hint| error.hint(hint.to_owned()))
    })?;
    Ok(machine.clone())
}

/// Whether the pool has an image for the machine.
fn is_there(env: Env<'_>, machine: &MachineRequest) -> Result<()> {
    let boots = match machine.driver.unwrap_or(env.settings.defaults.driver) {
        DriverChoice::Kind(kind) => env.driver(kind).capabilities().boots,
        // Any image will do that is there; a disk is fetched when none is.
        DriverChoice::Auto => env.driver(choose::driver(env, machine)?).capabilities().boots,
    };
    Base::offered(&env.pool()?, machine, boots)
}

/// Left by a command that itself ended as `ssh` ends when the connection breaks.
const MARK: &str = "/tmp/.virga-ended-255";

/// Runs it, and tells its own end from that of the connection.
fn command(request: &RunRequest, folder: Option<&GuestPath>, target: &SshTarget) -> Result<Ended> {
    let deadline = request.timeout.map(Deadline::after);
    let enter = folder.map(|folder| format!("cd -- {} && ", shell_word(folder.as_str()))).unwrap_or_default();
    let script = format!("{enter}env \"$@\"; code=$?; [ $code -ne {CHANNEL_FAILED} ] || : >{MARK}; exit $code");
    let set = request.environment.iter().map(|(name, value)| format!("{name}={value}"));
    let words = set.chain(request.command.iter().cloned());
    let mut line = vec!["exec".to_owned(), "sh".to_owned(), "-c".to_owned(), shell_word(&script), "sh".to_owned()];
    line.extend(words.map(|word| shell_word(&word)));
    let tty = if request.terminal { Tty::Always } else { Tty::Never };
    let code = channel::interactive_until(target, &line, tty, deadline.as_ref())?;
    interrupt::check()?;
    match code {
        None => Ok(Ended::TimedOut),
        Some(CHANNEL_FAILED) if !marked(target)? => {
            Err(Error::failed(format!("the connection to '{}' broke", request.guest.name))
                .hint("the guest may have restarted, or ended"))
        }
        Some(code) => Ok(Ended::Code(u8::try_from(code).unwrap_or(u8::MAX))),
    }
}

fn marked(target: &SshTarget) -> Result<bool> {
    let asked = channel::run(target, &["test", "-e", MARK], b"", Duration::from_secs(30))?;
    Ok(asked.status.success())
}

/// A name for a guest whose name matters to nobody.
///
/// # Errors
/// When the system has no random numbers to give.
pub fn any_name() -> Result<GuestName> {
    format!("run-{}", &crate::base::SessionId::generate()?.as_str()[..8]).parse()
}
