//! The screen: a picture of it, and where it is served.

use serde_json::{Value, json};

use super::ANSWER;
use super::qmp::Qmp;
use super::session::talk;
use crate::base::{Error, GuestPlan, Kind, Result, fs};
use crate::driver::Viewer;

/// More than any screen of ours: 16 MiB of pixels hardly ever compress to less than a tenth.
const PICTURE_LIMIT: u64 = 64 << 20;

/// VNC's first port and the last one that is tried.
const PORTS: [u16; 2] = [5900, 5999];

/// A picture as PNG. QEMU writes it into the guest's private folder for sockets, from where it is taken.
///
/// # Errors
/// [`Kind::Unsupported`] for a QEMU before 7.1; else what QEMU says.
pub(super) fn picture(plan: &GuestPlan) -> Result<Vec<u8>> {
    // Made here, so that it is private whatever QEMU thinks, and each picture's own.
    let file = tempfile::Builder::new().prefix("screen-").tempfile_in(&plan.runtime);
    let file = file.map_err(|error| fs::explain(error, "making a file in", &plan.runtime))?;
    let path = file.path().to_str().ok_or_else(|| Error::failed("the path of the folder for sockets is not UTF-8"))?;
    talk(plan, ANSWER)
        .and_then(|mut qmp| qmp.command("screendump", json!({"filename": path, "format": "png"})))
        .map_err(|error| match error.causes().first() {
            Some(cause) if cause.contains("format") => Error::new(Kind::Unsupported, "this QEMU makes no PNG pictures")
                .because(error)
                .hint("screenshots need QEMU 7.1"),
            _ => error,
        })?;
    match fs::read(file.path(), PICTURE_LIMIT)? {
        nothing if nothing.is_empty() => Err(Error::failed("QEMU wrote an empty picture")),
        picture => Ok(picture),
    }
}

/// Serves the screen by VNC on the host's loopback, unless that is so already.
///
/// # Errors
/// [`Kind::Unsupported`] for a guest whose QEMU was started without VNC; else what QEMU says.
pub(super) fn serve(qmp: &mut Qmp) -> Result<Viewer> {
    if let Some(viewer) = served(qmp)? {
        return Ok(viewer);
    }
    let [first, last] = PORTS;
    let address = json!({"type": "inet", "host": "127.0.0.1", "port": first.to_string(), "to": last});
    qmp.command("display-update", json!({"type": "vnc", "addresses": [address]})).map_err(|error| {
        Error::new(Kind::Unsupported, "the guest's screen cannot be served")
            .because(error)
            .hint("a guest that an older virga started can after a restart; so can one whose QEMU knows VNC")
    })?;
    served(qmp)?.ok_or_else(|| Error::failed("QEMU does not say where it serves the screen"))
}

fn served(qmp: &mut Qmp) -> Result<Option<Viewer>> {
    let state: Value = qmp.command("query-vnc", json!({}))?;
    let (Some(host), Some(port)) = (state["host"].as_str(), state["service"].as_str()) else { return Ok(None) };
    Ok(Some(Viewer { address: format!("vnc://{host}:{port}"), host: None }))
}
