//! From a plan to a running QEMU that answers on its control socket.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::args::{self, Accelerator};
use super::qmp::Qmp;
use super::{kvm, memory, network};
use crate::base::cmd::{self, Cmd, Detached};
use crate::base::layout::{RuntimeFiles, SOCKET_PATH_MAX};
use crate::base::plan::Accel;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Kind, Result, fs};
use crate::driver::{Begin, Saved};

/// The program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// What installs it.
pub(super) const INSTALL_HINT: &str = "install it: 'apt install qemu-system-x86' on Debian and Ubuntu";

/// QEMU needs some 50 ms to be there; much more only on a machine that is drowning.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where QEMU is.
///
/// # Errors
/// [`Kind::Unavailable`] with how to install it.
pub(super) fn program() -> Result<PathBuf> {
    cmd::find(PROGRAM).ok_or_else(|| Error::unavailable(format!("'{PROGRAM}' is not on the PATH")).hint(INSTALL_HINT))
}

/// Makes the folder for the sockets, with a label that says whose it is. Again is success.
///
/// # Errors
/// [`Kind::Usage`] when socket paths would be too long.
pub(super) fn prepare(plan: &GuestPlan, guest_folder: &Path) -> Result<()> {
    let files = RuntimeFiles::new(&plan.runtime);
    check_length(&files)?;
    fs::create_private_dir(&plan.runtime)?;
    fs::write_atomic(&files.label(), guest_folder.as_os_str().as_encoded_bytes(), 0o600)
}

/// Whether sockets fit in a folder of this name (`unix(7)`).
///
/// # Errors
/// [`Kind::Usage`] when not.
pub(super) fn check_length(files: &RuntimeFiles) -> Result<()> {
    // The longest of them.
    let path = files.console();
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(());
    }
    Err(Error::usage(format!("'{}' is too long for a socket: more than {SOCKET_PATH_MAX} bytes", path.display()))
        .hint("set XDG_RUNTIME_DIR to a folder with a shorter name"))
}

/// Settles `auto` by looking at KVM now; the second value says why it fell back.
///
/// # Errors
/// [`Kind::Unavailable`] when KVM is demanded and cannot be used.
pub(super) fn settle(accel: Accel) -> Result<(Accelerator, Option<String>)> {
    if accel == Accel::Tcg {
        return Ok((Accelerator::Tcg, None));
    }
    let found = kvm::look()?;
    decide(accel, &found)
}

pub(super) fn decide(accel: Accel, found: &kvm::Kvm) -> Result<(Accelerator, Option<String>)> {
    if accel == Accel::Tcg {
        return Ok((Accelerator::Tcg, None));
    }
    if found.usable() {
        return Ok((Accelerator::Kvm, None));
    }
    if accel == Accel::Auto {
        return Ok((Accelerator::Tcg, Some(format!("{}: using TCG", found.describe()))));
    }
    let error = Error::unavailable(found.describe());
    Err(match found.hint() {
        Some(hint) if hint.contains("--accel tcg") => error.hint(hint),
        Some(hint) => error.hint(hint).hint("or do without it: '--accel tcg'"),
        None => error,
    })
}

/// Starts QEMU and returns once its control socket answers, the guest runs (or
/// waits to be loaded) and every forward stands. On any failure nothing of it is left running.
///
/// # Errors
/// What QEMU said, as far as it can be told better than QEMU does.
pub(super) fn launch(program: &Path, plan: &GuestPlan, accel: Accelerator, begin: Begin<'_>) -> Result<()> {
    let files = RuntimeFiles::new(&plan.runtime);
    clear(&files)?;
    // Made here, so that what the guest says is private whatever the umask.
    drop(fs::open_or_create(&plan.console_log)?);
    let (log, said_before) = log_of(plan)?;
    let mut child = Cmd::new(program).args(args::argv(plan, accel, begin)?).spawn_detached(log)?;
    tracing::debug!(guest = %plan.name, pid = child.pid(), ?accel, "started QEMU");
    let up = answers(plan, &files, &mut child, begin);
    let Err(error) = up else { return Ok(()) };
    child.kill();
    if let Err(left) = clear(&files) {
        tracing::warn!(%left, "clearing up after a failed start");
    }
    let said = words_since(&plan.backend_log, said_before);
    Err(match error.kind() {
        Kind::Interrupted => error,
        _ => explain(plan, error, &said),
    })
}

/// Loads a machine into a QEMU that waits for one.
///
/// # Errors
/// As [`launch`]; QEMU may live on.
pub(super) fn load(plan: &GuestPlan, from: &Saved) -> Result<()> {
    let (_, said_before) = log_of(plan)?;
    memory::load(&RuntimeFiles::new(&plan.runtime).qmp(), from).map_err(|error| match error.kind() {
        Kind::Interrupted => error,
        _ => explain(plan, error, &words_since(&plan.backend_log, said_before)),
    })
}

/// QEMU's log, at its end, and where that is.
fn log_of(plan: &GuestPlan) -> Result<(File, u64)> {
    let mut log = fs::open_or_create(&plan.backend_log)?;
    let end = log.seek(SeekFrom::End(0)).map_err(|e| fs::explain(e, "opening", &plan.backend_log))?;
    Ok((log, end))
}

/// Removes what a QEMU that was killed left in its folder. Nobody may be running there.
///
/// # Errors
/// When a file cannot be removed.
pub(super) fn clear(files: &RuntimeFiles) -> Result<()> {
    [files.qmp(), files.console(), files.renewal(), files.pid()].iter().try_for_each(|path| fs::remove_file(path))
}

fn answers(plan: &GuestPlan, files: &RuntimeFiles, child: &mut Detached, begin: Begin<'_>) -> Result<()> {
    let deadline = Deadline::after(PATIENCE);
    let connected = poll::until(&deadline, Duration::from_millis(2), || {
        if let Some(status) = child.ended()? {
            return Err(Error::failed(format!("QEMU ended at once ({status})")));
        }
        // QEMU makes the socket, and listens a moment later.
        if !files.qmp().exists() {
            return Ok(None);
        }
        Ok(Qmp::connect(&files.qmp(), deadline.left().min(Duration::from_secs(10))).ok())
    })?;
    let mut qmp = connected.ok_or_else(|| {
        Error::timed_out(format!("QEMU did not come up within {}", humantime::format_duration(PATIENCE)))
    })?;
    network::assign(plan, network::parse(&qmp.monitor("info usernet")?))?;
    if let Begin::Empty(_) = begin {
        return Ok(());
    }
    let state = qmp.command("query-status", json!({}))?;
    if state["running"] != true {
        return Err(Error::failed(format!("QEMU holds the guest ({})", state["status"])));
    }
    Ok(())
}

/// What QEMU wrote into its log since `offset`.
fn words_since(log: &Path, offset: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(64 << 10).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

fn explain(plan: &GuestPlan, error: Error, said: &str) -> Error {
    let cause = |error: Error| error.because(plain_words(said));
    if said.contains("host forwarding rule") {
        return match network::why_not(plan) {
            Some(better) => better,
            None => cause(Error::failed("QEMU could not forward a port")),
        };
    }
    let message = format!("guest '{}' cannot be started: {error}", plan.name);
    if said.contains("Could not access KVM") || said.contains("failed to initialize kvm") {
        return cause(Error::unavailable(message)).hint("do without KVM: '--accel tcg'");
    }
    if said.contains("cannot set up guest memory") || said.contains("Cannot allocate memory") {
        let hint =
            format!("the machine has no room for {} of memory: give the guest less with '--memory'", plan.memory);
        return cause(Error::unavailable(message)).hint(hint);
    }
    if said.contains("lock") && said.contains("Failed to get") {
        return cause(Error::failed(message)).hint("another program has the disk open");
    }
    let hint = format!("all that QEMU said is in '{}'", plan.backend_log.display());
    if said.is_empty() { error } else { cause(Error::new(error.kind(), message)).hint(hint) }
}

/// QEMU's last words without time and program name, which stand before each line.
pub(super) fn plain_words(said: &str) -> String {
    let lines: Vec<&str> =
        said.lines().map(|line| line.split_once(&format!("{PROGRAM}: ")).map_or(line, |l| l.1)).collect();
    cmd::last_words(lines.join("\n").as_bytes())
}
