//! From a plan to a running QEMU that answers on its control socket.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use super::args;
use super::process::Life;
use super::qmp::Qmp;
use super::{keeper, memory, network};
use crate::base::cmd::{self, Cmd, Detached};
use crate::base::layout::{RuntimeFiles, SOCKET_PATH_MAX};
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Kind, Result, fs};
use crate::driver::accel::Accelerator;
use crate::driver::{Begin, Saved};

/// QEMU needs some 50 ms to be there, seconds on a machine that is drowning. After this it is given up, with an error.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the folder for the sockets, with a label that says whose it is. Again is success.
///
/// # Errors
/// [`Kind::Usage`] when socket paths would be too long.
pub(super) fn prepare(plan: &GuestPlan, guest_folder: &Path) -> Result<()> {
    let files = RuntimeFiles::new(&plan.runtime);
    check_length(&files)?;
    fs::create_guarded_dir(&plan.runtime).map_err(|error| match error.kind() {
        Kind::Refused => error,
        _ => error.hint("a login session's folder ends with it, unless 'loginctl enable-linger' keeps it; new guests' sockets go to VIRGA_RUNTIME_DIR"),
    })?;
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
        .hint("set VIRGA_RUNTIME_DIR to a folder with a shorter name"))
}

/// Starts QEMU and returns once its control socket answers, the guest runs (or
/// waits to be loaded) and every forward stands: with the type of the machine that it made. On any failure nothing of
/// it is left running.
///
/// # Errors
/// What QEMU said, as far as it can be told better than QEMU does.
pub(super) fn launch(
    program: &Path,
    plan: &GuestPlan,
    accel: Accelerator,
    begin: Begin<'_>,
    life: Life,
) -> Result<String> {
    let files = RuntimeFiles::new(&plan.runtime);
    clear(&files)?;
    // Made here, so that what the guest says is private whatever the umask.
    drop(fs::open_or_create(&plan.console_log)?);
    let said_before = said(plan)?;
    let qemu = Cmd::new(program).args(args::argv(plan, accel, begin)?);
    let console = keeper::start(plan)?;
    let mut child = qemu.spawn_detached_between(Stdio::null(), console.into(), life.into_log())?;
    tracing::debug!(guest = %plan.name, pid = child.pid(), ?accel, "started QEMU");
    let up = answers(plan, &files, &mut child, begin);
    let error = match up {
        Ok(machine) => return Ok(machine),
        Err(error) => error,
    };
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
    let said_before = said(plan)?;
    memory::load(plan, from).map_err(|error| match error.kind() {
        Kind::Interrupted => error,
        _ => explain(plan, error, &words_since(&plan.backend_log, said_before)),
    })
}

/// How much is in the log by now.
fn said(plan: &GuestPlan) -> Result<u64> {
    let found = std::fs::metadata(&plan.backend_log);
    Ok(found.map_err(|error| fs::explain(error, "opening", &plan.backend_log))?.len())
}

/// Removes what a QEMU that was killed left in its folder. Nobody may be running there.
///
/// # Errors
/// When a file cannot be removed.
pub(super) fn clear(files: &RuntimeFiles) -> Result<()> {
    [files.qmp(), files.console(), files.renewal(), files.frames(), files.pid()]
        .iter()
        .try_for_each(|path| fs::remove_file(path))
}

fn answers(plan: &GuestPlan, files: &RuntimeFiles, child: &mut Detached, begin: Begin<'_>) -> Result<String> {
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
    if network::in_user_space(plan) {
        network::assign(plan, network::parse(&qmp.monitor("info usernet")?))?;
    }
    // "pc-q35-10.0-machine", whatever alias it was asked for by.
    let machine = qmp.command("qom-get", json!({"path": "/machine", "property": "type"}))?;
    let machine = machine.as_str().unwrap_or_default().trim_end_matches("-machine").to_owned();
    if let Begin::Empty(_) = begin {
        return Ok(machine);
    }
    let state = qmp.command("query-status", json!({}))?;
    if state["running"] != true {
        return Err(Error::failed(format!("QEMU holds the guest ({})", state["status"])));
    }
    Ok(machine)
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

/// How a QEMU ended that did not end in good order.
pub(super) fn last_words(log: &Path) -> String {
    const ENOUGH: u64 = 4 << 10;
    let length = std::fs::metadata(log).map_or(0, |found| found.len());
    match plain_words(&words_since(log, length.saturating_sub(ENOUGH))) {
        said if said.is_empty() => "its QEMU was killed, and said nothing".to_owned(),
        said => format!("its QEMU was killed, or failed; its last words: {said}"),
    }
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
        return cause(Error::unavailable(message)).hint("guests that are made with '--accel tcg' do without KVM");
    }
    if said.contains("cannot set up guest memory") || said.contains("Cannot allocate memory") {
        // What there is no more of when it could not be made has nothing that could be resized.
        let hint = format!(
            "the machine has no room for {} of memory: stop other guests, or give this one less: 'virga resize {} --memory \
             SIZE' when it is there, '--memory SIZE' when it is made",
            plan.memory, plan.name
        );
        return cause(Error::unavailable(message)).hint(hint);
    }
    if said.contains("bridge helper failed") {
        let hint = "as root put 'allow NAME' for the bridge into /etc/qemu/bridge.conf; for other users the helper must have \
                    its rights too: setcap cap_net_admin+ep on qemu-bridge-helper";
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
    let plain = |line: &'_ str| -> usize {
        // "2026-11-25T17:00:00.000000Z qemu-system-x86_64: "
        let named = line.split_once("qemu-system-").and_then(|(before, rest)| Some((before.len(), rest.find(": ")?)));
        named.map_or(0, |(before, name)| before + "qemu-system-".len() + name + 2)
    };
    let lines: Vec<&str> = said.lines().map(|line| &line[plain(line)..]).collect();
    cmd::last_words(lines.join("\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_guest_without_room_is_told_how_it_takes_less() {
        let plan = plan("web", Path::new("/g"), Path::new("/r"));
        let said = "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n";
        let error = explain(&plan, Error::failed("QEMU ended at once"), said);
        assert_eq!(error.kind(), Kind::Unavailable);
        let hints = error.hints();
        assert!(hints[0].contains("'virga resize web --memory SIZE'"), "{hints:?}");
    }
}
