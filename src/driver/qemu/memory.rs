//! A guest's memory on disk: saved and loaded over the control socket, as QEMU's migration to a file.
//!
//! Two shapes. With a memory file of its own (`x-ignore-shared`, QEMU 4.0) the
//! state is a megabyte and loading copies nothing: guests map one file. Without
//! one, the memory goes into the state at fixed places (`mapped-ram`, QEMU 9.0).

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::NETDEV;
use super::qmp::Qmp;
use super::{process, state};
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Silence};
use crate::base::{Error, GuestPlan, Kind, Result, fs, interrupt};
use crate::driver::Saved;

/// For a QEMU that writes or reads nothing of a machine: the flush of a slow disk takes a part of that. How long all
/// of it takes is up to the memory's size.
pub(super) const SILENCE: Duration = Duration::from_secs(300);

/// How often QEMU is asked how far it is.
const STEP: Duration = Duration::from_millis(3);

/// Bytes a second: QEMU's own limit is for networks, and would make a disk wait.
const UNLIMITED: u64 = 1 << 40;

/// Holds the guest and writes it. The guest runs on when that fails.
///
/// # Errors
/// [`Kind::Unsupported`] for a QEMU that is too old; else what QEMU says.
pub(super) fn save(plan: &GuestPlan, to: &Saved) -> Result<()> {
    let socket = &RuntimeFiles::new(&plan.runtime).qmp();
    let mut qmp = connect(plan, &to.state)?;
    // Here, so that it is private whatever QEMU thinks.
    drop(fs::create_new(&to.state, 0o600)?);
    let written = prepare(&mut qmp, to).and_then(|()| write(&mut qmp, plan, to));
    if written.is_err() {
        // Over a connection of its own: the other one's time may be what ran out.
        drop(qmp);
        let undone = state::let_run(socket).and_then(|()| fs::remove_file(&to.state));
        if let Err(trouble) = undone {
            tracing::warn!(%trouble, "letting the guest run on");
        }
    }
    written
}

fn write(qmp: &mut Qmp, plan: &GuestPlan, to: &Saved) -> Result<()> {
    qmp.command("stop", json!({}))?;
    if to.memory.is_some() {
        // A clone's cable is out until `connect`.
        qmp.command("set_link", json!({"name": NETDEV, "up": false}))?;
    }
    qmp.command("migrate", file(&to.state)?)?;
    settled(qmp, || moved(plan, &to.state))
}

/// Loads a machine into a QEMU that waits for one, and leaves it held.
///
/// # Errors
/// What QEMU says; it usually ends after that.
pub(super) fn load(plan: &GuestPlan, from: &Saved) -> Result<()> {
    let mut qmp = connect(plan, &from.state)?;
    prepare(&mut qmp, from)?;
    qmp.command("migrate-incoming", file(&from.state)?)?;
    settled(&mut qmp, || moved(plan, &from.state))
}

/// A connection on which QEMU is waited for as long as it moves memory between itself and `file`.
pub(super) fn connect(plan: &GuestPlan, file: &Path) -> Result<Qmp> {
    let qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), SILENCE)?;
    let (plan, file) = (plan.clone(), file.to_owned());
    Ok(qmp.while_changes(move || moved(&plan, &file)))
}

/// A number that changes as memory is moved: a file that is written takes more of its disk, a QEMU that reads one takes
/// more of the host's memory, and one that has it all already has read and written more megabytes.
pub(super) fn moved(plan: &GuestPlan, file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let written = std::fs::metadata(file).map_or(0, |file| file.blocks());
    written + process::moved(&RuntimeFiles::new(&plan.runtime).pid())
}

fn prepare(qmp: &mut Qmp, saved: &Saved) -> Result<()> {
    let set = |name: &str, state: bool| json!({"capability": name, "state": state});
    let wanted = match saved.memory {
        Some(_) => json!([set("x-ignore-shared", true)]),
        // A clone was loaded with the other one.
        None => json!([set("x-ignore-shared", false), set("mapped-ram", true)]),
    };
    qmp.command("migrate-set-capabilities", json!({"capabilities": wanted})).map_err(|error| {
        Error::new(Kind::Unsupported, "this QEMU cannot save machines to files")
            .because(error)
            .hint("saving a guest needs QEMU 9.0, templates need 8.2")
    })?;
    qmp.command("migrate-set-parameters", json!({"max-bandwidth": UNLIMITED})).map(drop)
}

/// As JSON: in QEMU's `file:` addresses a comma has a meaning.
fn file(path: &Path) -> Result<Value> {
    let path = path.to_str().ok_or_else(|| Error::failed("the path of a saved machine is not UTF-8"))?;
    let address = json!({"transport": "file", "filename": path, "offset": 0});
    Ok(json!({"channels": [{"channel-type": "main", "addr": address}]}))
}

fn settled(qmp: &mut Qmp, moved: impl Fn() -> u64) -> Result<()> {
    let mut silence = Silence::new(SILENCE);
    loop {
        interrupt::check()?;
        let state = qmp.command("query-migrate", json!({}))?;
        match state["status"].as_str().unwrap_or_default() {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let words = state["error-desc"].as_str().unwrap_or("it does not say why");
                return Err(Error::failed("QEMU could not save or load the machine").because(words.to_owned()));
            }
            status if silence.lasts(|| (status.to_owned(), state["ram"]["transferred"].as_u64(), moved())) => {
                let limit = humantime::format_duration(SILENCE);
                return Err(Error::timed_out(format!(
                    "QEMU saves or loads the machine, and got no further for {limit}"
                )));
            }
            _ => poll::sleep(STEP),
        }
    }
}
