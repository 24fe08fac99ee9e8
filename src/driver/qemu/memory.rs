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
use super::state;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Kind, Result, fs, interrupt};
use crate::driver::Saved;

/// Longest time for writing or reading a machine: a disk that manages 10 MB a second takes 100 s for a gigabyte.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often QEMU is asked how far it is.
const STEP: Duration = Duration::from_millis(3);

/// Bytes a second: QEMU's own limit is for networks, and would make a disk wait.
const UNLIMITED: u64 = 1 << 40;

/// Holds the guest and writes it. The guest runs on when that fails.
///
/// # Errors
/// [`Kind::Unsupported`] for a QEMU that is too old; else what QEMU says.
pub(super) fn save(socket: &Path, to: &Saved) -> Result<()> {
    let mut qmp = Qmp::connect(socket, PATIENCE)?;
    // Here, so that it is private whatever QEMU thinks.
    drop(fs::create_new(&to.state, 0o600)?);
    let written = prepare(&mut qmp, to).and_then(|()| write(&mut qmp, to));
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

fn write(qmp: &mut Qmp, to: &Saved) -> Result<()> {
    qmp.command("stop", json!({}))?;
    if to.memory.is_some() {
        // A clone's cable is out until `connect`.
        qmp.command("set_link", json!({"name": NETDEV, "up": false}))?;
    }
    qmp.command("migrate", file(&to.state)?)?;
    settled(qmp)
}

/// Loads a machine into a QEMU that waits for one, and leaves it held.
///
/// # Errors
/// What QEMU says; it usually ends after that.
pub(super) fn load(socket: &Path, from: &Saved) -> Result<()> {
    let mut qmp = Qmp::connect(socket, PATIENCE)?;
    prepare(&mut qmp, from)?;
    qmp.command("migrate-incoming", file(&from.state)?)?;
    settled(&mut qmp)
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

fn settled(qmp: &mut Qmp) -> Result<()> {
    let deadline = Deadline::after(PATIENCE);
    let done = poll::until(&deadline, STEP, || {
        interrupt::check()?;
        let state = qmp.command("query-migrate", json!({}))?;
        match state["status"].as_str().unwrap_or_default() {
            "completed" => Ok(Some(())),
            "failed" | "cancelled" => {
                let words = state["error-desc"].as_str().unwrap_or("it does not say why");
                Err(Error::failed("QEMU could not save or load the machine").because(words.to_owned()))
            }
            _ => Ok(None),
        }
    })?;
    done.ok_or_else(|| Error::timed_out("QEMU was not done with saving or loading the machine in ten minutes"))
}
