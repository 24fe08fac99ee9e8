//! Disks that come and go while a guest runs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args;
use super::qmp::Qmp;
use crate::base::plan::Disk;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Kind, Result};

/// A guest lets a disk go as soon as its system hears of it; one that is still booting does not hear.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plugs a disk into a running guest. One that is there is left alone.
///
/// # Errors
/// What QEMU said, as for a file that it cannot open; when no port is free.
pub(super) fn plug(socket: &Path, disk: &Disk) -> Result<()> {
    let mut qmp = Qmp::connect(socket, PATIENCE)?;
    let node = args::node_name(disk);
    if has_device(&mut qmp, &node)? {
        return Ok(());
    }
    if !has_node(&mut qmp, &node)? {
        qmp.command("blockdev-add", args::block_node(disk, &node)?)?;
    }
    let mut last = None;
    for number in 0..args::PORTS {
        let device = json!({"driver": "virtio-blk-pci", "id": node, "drive": node, "bus": args::port(number)});
        match qmp.command("device_add", device) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    // It is not the guest's: that the file stays open is the lesser trouble.
    let _ = qmp.command("blockdev-del", json!({"node-name": node}));
    let error = Error::failed(format!("the disk '{}' cannot be plugged in", disk.path.display()));
    let error = error.hint(format!("{} disks at most can be attached to a guest as it runs: stop it", args::PORTS));
    Err(last.map_or_else(|| Error::failed("there are no ports"), |last| error.because(last.causes().join(": "))))
}

/// Takes a disk out of a running guest and returns once the guest has let it go.
///
/// # Errors
/// [`Kind::Unsupported`] for one that was there when the guest was started; [`Kind::TimedOut`] when it holds on to it.
pub(super) fn unplug(socket: &Path, disk: &Disk) -> Result<()> {
    let mut qmp = Qmp::connect(socket, PATIENCE)?;
    let node = args::node_name(disk);
    if has_device(&mut qmp, &node)? {
        // Refused while the guest is asked already.
        let asked = qmp.command("device_del", json!({"id": node}));
        let gone = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(20), || {
            Ok((!has_device(&mut qmp, &node)?).then_some(()))
        })?;
        if gone.is_none() {
            let error = Error::timed_out(format!("the guest does not let go of '{}'", disk.path.display()))
                .hint("unmount it in the guest, or stop the guest");
            return Err(match asked {
                Ok(_) => error,
                Err(why) => error.because(why.causes().join(": ")),
            });
        }
    } else if has_node(&mut qmp, &node)? && in_use(&mut qmp, &node)? {
        return Err(Error::new(
            Kind::Unsupported,
            format!("'{}' was there when the guest was started", disk.path.display()),
        )
        .hint("stop the guest first: only what was attached as it ran can be taken from it so"));
    }
    if !has_node(&mut qmp, &node)? {
        return Ok(());
    }
    // Free a moment after the device is gone.
    let mut free = || Ok(qmp.command("blockdev-del", json!({"node-name": node})).ok());
    match poll::until(&Deadline::after(PATIENCE), Duration::from_millis(20), &mut free)? {
        Some(_) => Ok(()),
        None => Err(Error::timed_out(format!("QEMU does not close '{}'", disk.path.display()))),
    }
}

fn has_device(qmp: &mut Qmp, id: &str) -> Result<bool> {
    let devices = qmp.command("qom-list", json!({"path": "/machine/peripheral"}))?;
    Ok(names(&devices, "name").any(|name| name == id))
}

fn has_node(qmp: &mut Qmp, node: &str) -> Result<bool> {
    let nodes = qmp.command("query-named-block-nodes", json!({"flat": true}))?;
    Ok(names(&nodes, "node-name").any(|name| name == node))
}

/// Whether a device has it: those from the command line have no names.
fn in_use(qmp: &mut Qmp, node: &str) -> Result<bool> {
    let backends = qmp.command("query-block", json!({}))?;
    let all = backends.as_array().into_iter().flatten();
    Ok(all.into_iter().any(|backend| backend["inserted"]["node-name"] == node))
}

fn names<'a>(list: &'a Value, key: &'a str) -> impl Iterator<Item = &'a str> {
    list.as_array().into_iter().flatten().filter_map(move |item| item[key].as_str())
}
