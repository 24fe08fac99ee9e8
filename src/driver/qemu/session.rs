//! What is done with a guest that runs: see [`crate::driver::Session`].

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::process::Process;
use super::qmp::Qmp;
use super::{ANSWER, Qemu, args, launch, screen, serial, snapshot};
use crate::base::cmd::Pipes;
use crate::base::layout::RuntimeFiles;
use crate::base::{BackendName, Error, GuestPath, GuestPlan, Kind, Result, SnapshotName};
use crate::driver::carry::Load;
use crate::driver::{Autostart, Begin, Content, Details, Driver as _, Exec, Session, Snapshot, Status, Viewer};

/// A guest's control socket.
///
/// # Errors
/// When the guest does not run, or QEMU does not answer.
pub(super) fn talk(plan: &GuestPlan, limit: Duration) -> Result<Qmp> {
    if Process::of(plan)?.is_none() {
        return Err(Error::failed(format!("guest '{}' is not running", plan.name)));
    }
    Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), limit)
}

impl Session for Qemu {
    fn suspend(&self, plan: &GuestPlan) -> Result<()> {
        talk(plan, ANSWER)?.command("stop", json!({})).map(drop)
    }

    fn save_there(&self, _plan: &GuestPlan) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "the qemu driver keeps no saved memory itself"))
    }

    fn drop_saved(&self, _plan: &GuestPlan) -> Result<()> {
        Ok(())
    }

    fn set_autostart(&self, _plan: &GuestPlan, _wish: Option<Autostart>) -> Result<Option<String>> {
        let what = || "the qemu driver cannot start guests with the host".into();
        self.capabilities().autostart.demand(what).map(|()| None)
    }

    fn location(&self, _plan: &GuestPlan) -> Result<Option<String>> {
        Ok(None)
    }

    fn details(&self, plan: &GuestPlan) -> Result<Details> {
        let disks = plan.disks.iter().map(|disk| disk.path.clone()).collect();
        let mut details = Details { disks, ..Details::default() };
        if Process::of(plan)?.is_none() {
            details.ending = (self.status(plan)? == Status::Died).then(|| launch::last_words(&plan.backend_log));
        } else {
            let question = json!({"path": "/machine", "property": "type"});
            let answer = talk(plan, ANSWER)?.command("qom-get", question)?;
            details.machine = answer.as_str().map(|name| name.trim_end_matches("-machine").to_owned());
        }
        Ok(details)
    }

    fn snapshots(&self, plan: &GuestPlan) -> Result<Vec<Snapshot>> {
        match Process::of(plan)? {
            Some(_) => snapshot::of_running(&mut talk(plan, ANSWER)?),
            None => snapshot::of_stopped(plan),
        }
    }

    fn take_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        snapshot::check(plan)?;
        match Process::of(plan)? {
            Some(_) => snapshot::take_running(&mut snapshot::connect(plan)?, plan, name),
            None => snapshot::take_stopped(plan, name),
        }
    }

    fn restore_snapshot(&self, plan: &GuestPlan, snapshot: &Snapshot) -> Result<()> {
        snapshot::check(plan)?;
        if !snapshot.memory {
            return snapshot::restore_stopped(plan, &snapshot.name);
        }
        let runs = Process::of(plan)?.is_some();
        // What it does to its disk in the moment before it is put back is gone with the rest.
        self.start(plan, Begin::Boot)?;
        let restore = || snapshot::restore_running(&mut snapshot::connect(plan)?, plan, &snapshot.name);
        restore().map_err(|error| {
            if runs {
                return error.hint(format!(
                    "it is held now; 'virga restart --force {}' starts it from its disk, as after a power cut",
                    plan.name
                ));
            }
            if let Err(left) = Self::force_off(plan) {
                tracing::warn!(%left, "ending a guest that was not restored");
            }
            error
        })
    }

    fn remove_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        match Process::of(plan)? {
            Some(_) => snapshot::remove_running(&mut snapshot::connect(plan)?, plan, name),
            None => snapshot::remove_stopped(plan, name),
        }
    }

    fn console(&self, plan: &GuestPlan) -> Result<UnixStream> {
        serial::connect(plan)
    }

    fn exec(&self, _plan: &GuestPlan, _exec: &Exec, _streams: Pipes<'_>) -> Result<u8> {
        Err(Error::new(Kind::Unsupported, "a machine is entered over SSH"))
    }

    fn screenshot(&self, plan: &GuestPlan) -> Result<Vec<u8>> {
        screen::picture(plan)
    }

    fn viewer(&self, plan: &GuestPlan) -> Result<Viewer> {
        screen::serve(&mut talk(plan, ANSWER)?)
    }
}

impl Content for Qemu {
    fn pull(&self, _plan: &GuestPlan, _path: &GuestPath, _folders: bool, _to: &mut dyn Write) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a machine is entered over SSH"))
    }

    fn push(&self, _plan: &GuestPlan, _what: &Load, _to: &GuestPath) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a machine is entered over SSH"))
    }

    fn pack_root(&self, _plan: &GuestPlan, _to: &mut dyn Write) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a machine's root is on a disk of its own"))
    }

    fn export(&self, _plan: &GuestPlan, _to: &mut dyn Write) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "machines are not exported"))
    }

    fn import(&self, _plan: &GuestPlan, _from: File) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "machines are not imported"))
    }

    fn keep_image(&self, _plan: &GuestPlan, _metadata: &Path, _root: &Path, _alias: &BackendName) -> Result<String> {
        Err(Error::new(Kind::Unsupported, "no daemon keeps images here"))
    }
}

/// The node names of all disks that the guest writes to.
pub(super) fn nodes(plan: &GuestPlan) -> Vec<String> {
    let disks = plan.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
    disks.map(|(number, disk)| args::node(number, disk)).collect()
}

#[cfg(test)]
mod tests;
