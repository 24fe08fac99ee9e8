//! The serial console as a stream.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use super::ANSWER;
use super::qmp::Qmp;
use super::session::talk;
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Result, fs};

/// Connects. QEMU takes one client at a time and lets others wait in silence, so it is asked first whether there
/// is one, and afterwards until it has taken us: under the guest's lock nobody of ours comes in between.
///
/// # Errors
/// When another client has the console, or the guest does not run.
pub(super) fn connect(plan: &GuestPlan) -> Result<UnixStream> {
    let mut qmp = talk(plan, ANSWER)?;
    if taken(&mut qmp)? {
        return Err(Error::failed(format!("the console of guest '{}' is taken by another client", plan.name))
            .hint(format!("what it shows is in its log: virga console --log {}", plan.name)));
    }
    let path = RuntimeFiles::new(&plan.runtime).console();
    let stream = UnixStream::connect(&path).map_err(|error| fs::explain(error, "connecting to the console", &path))?;
    let served =
        poll::until(&Deadline::after(ANSWER), Duration::from_millis(2), || Ok(taken(&mut qmp)?.then_some(())))?;
    served.ok_or_else(|| Error::timed_out("QEMU does not serve the console"))?;
    Ok(stream)
}

/// QEMU's word for it (`char-socket.c`): "disconnected:unix:…" until there is a client.
fn taken(qmp: &mut Qmp) -> Result<bool> {
    let all = qmp.command("query-chardev", json!({}))?;
    let ours = all.as_array().and_then(|all| all.iter().find(|one| one["label"] == "console"));
    Ok(ours.and_then(|one| one["filename"].as_str()).is_some_and(|name| !name.starts_with("disconnected:")))
}
