//! Snapshots inside the guest's own qcow2 files, as QEMU keeps them.
//!
//! A guest that runs is kept with its memory, by QEMU's jobs (QEMU 6.0), which
//! hold it meanwhile; one that does not, by `qemu-img`. The memory lies in the
//! first disk. A snapshot is on every disk or it is none.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::qmp::Qmp;
use super::session::nodes;
use super::{args, memory};
use crate::base::cmd::Cmd;
use crate::base::plan::{Disk, DiskFormat};
use crate::base::poll::{self, Silence};
use crate::base::undo::Undo;
use crate::base::{Error, GuestPlan, Kind, Result, SnapshotName, interrupt};
use crate::driver::Snapshot;

/// For `qemu-img`, which writes tables and no data.
const PATIENCE: Duration = Duration::from_secs(600);

/// What works on the disks of guests that do not run.
const PROGRAM: &str = "qemu-img";

/// How often QEMU is asked how far it is; it mostly answers only when it is done.
const STEP: Duration = Duration::from_millis(10);

/// What a job of ours is called: there is one at a time.
const JOB: &str = "virga-snapshot";

/// Every disk must be one that can hold snapshots.
///
/// # Errors
/// [`Kind::Unsupported`] naming the one that cannot.
pub(super) fn check(plan: &GuestPlan) -> Result<()> {
    match written(plan).find(|disk| disk.format != DiskFormat::Qcow2) {
        None => Ok(()),
        Some(disk) => Err(Error::new(
            Kind::Unsupported,
            format!("'{}' is {} and holds no snapshots", disk.path.display(), disk.format.name()),
        )
        .hint("only guests all of whose disks are qcow2 have snapshots")),
    }
}

/// The disks that the guest writes to.
fn written(plan: &GuestPlan) -> impl DoubleEndedIterator<Item = &Disk> {
    plan.disks.iter().filter(|disk| !disk.read_only)
}

/// The snapshots of a guest that runs.
///
/// # Errors
/// What QEMU says.
pub(super) fn of_running(qmp: &mut Qmp) -> Result<Vec<Snapshot>> {
    let all = qmp.command("query-named-block-nodes", json!({"flat": true}))?;
    let disk = all.as_array().and_then(|all| all.iter().find(|node| node["node-name"] == args::ROOT));
    Ok(disk.map(|disk| read(&disk["image"])).unwrap_or_default())
}

/// The snapshots of a guest that does not run.
///
/// # Errors
/// What `qemu-img` says.
pub(super) fn of_stopped(plan: &GuestPlan) -> Result<Vec<Snapshot>> {
    let disk = plan.disks.first().filter(|disk| disk.format == DiskFormat::Qcow2);
    disk.map_or(Ok(Vec::new()), on_disk)
}

fn on_disk(disk: &Disk) -> Result<Vec<Snapshot>> {
    let image = args::image(disk)?;
    let said = Cmd::new(PROGRAM).args(["info", "--output=json"]).arg(image).run().map_err(needed)?;
    let image: Value = serde_json::from_slice(&said.stdout)
        .map_err(|error| Error::failed("reading what qemu-img said").because(error))?;
    Ok(read(&image))
}

/// From QEMU's `ImageInfo`, which is the same in both.
fn read(image: &Value) -> Vec<Snapshot> {
    let one = |one: &Value| {
        let nanos = i32::try_from(one["date-nsec"].as_i64().unwrap_or(0)).unwrap_or(0);
        Some(Snapshot {
            name: one["name"].as_str()?.to_owned(),
            taken: Timestamp::new(one["date-sec"].as_i64()?, nanos).ok()?,
            memory: one["vm-state-size"].as_u64()? > 0,
        })
    };
    let mut all: Vec<Snapshot> = image["snapshots"].as_array().into_iter().flatten().filter_map(one).collect();
    all.sort_by_key(|snapshot| snapshot.taken);
    all
}

/// A connection for the functions below: a QEMU that moves memory into a disk, or out of it, answers when it is done.
///
/// # Errors
/// When QEMU does not answer.
pub(super) fn connect(plan: &GuestPlan) -> Result<Qmp> {
    let disk = plan.disks.first().ok_or_else(|| Error::failed("the guest has no disk"))?;
    memory::connect(plan, &disk.path)
}

/// Takes one with the memory.
///
/// # Errors
/// What QEMU says.
pub(super) fn take_running(qmp: &mut Qmp, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
    plainly(qmp)?;
    let taken = job(qmp, plan, "snapshot-save", with_memory(plan, name.as_str()));
    if taken.is_err()
        && let Err(left) = remove_running(qmp, plan, name)
    {
        tracing::warn!(%left, "clearing up after a failed snapshot");
    }
    taken
}

/// Puts a guest back that runs, or is held, with its memory. When QEMU cannot, it leaves the guest held.
///
/// # Errors
/// What QEMU says.
pub(super) fn restore_running(qmp: &mut Qmp, plan: &GuestPlan, name: &str) -> Result<()> {
    plainly(qmp)?;
    job(qmp, plan, "snapshot-load", with_memory(plan, name))
}

/// Removes one from all disks.
///
/// # Errors
/// What QEMU says.
pub(super) fn remove_running(qmp: &mut Qmp, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
    job(qmp, plan, "snapshot-delete", json!({"job-id": JOB, "tag": name.as_str(), "devices": nodes(plan)}))
}

fn with_memory(plan: &GuestPlan, tag: &str) -> Value {
    json!({"job-id": JOB, "tag": tag, "vmstate": args::ROOT, "devices": nodes(plan)})
}

/// A guest that was loaded from a file or a template still has on what that needed, and would save itself in that shape.
fn plainly(qmp: &mut Qmp) -> Result<()> {
    let all = qmp.command("query-migrate-capabilities", json!({}))?;
    let ours = |one: &&Value| ["mapped-ram", "x-ignore-shared"].iter().any(|name| one["capability"] == *name);
    let on = all.as_array().into_iter().flatten().filter(ours).filter(|one| one["state"] == true);
    let off: Vec<Value> = on.map(|one| json!({"capability": one["capability"], "state": false})).collect();
    if off.is_empty() {
        return Ok(());
    }
    qmp.command("migrate-set-capabilities", json!({"capabilities": off})).map(drop)
}

/// Runs a job to its end.
fn job(qmp: &mut Qmp, plan: &GuestPlan, command: &str, arguments: Value) -> Result<()> {
    // One that was left by a command that Ctrl-C ended: QEMU saw it through.
    if find(qmp)?.is_some_and(|job| job["status"] == "concluded") {
        qmp.command("job-dismiss", json!({"id": JOB}))?;
    }
    qmp.command(command, arguments).map_err(|error| match error.causes().first() {
        Some(cause) if cause.contains("has not been found") => {
            Error::new(Kind::Unsupported, "this QEMU takes no snapshots of guests that run")
                .because(error)
                .hint("that needs QEMU 6.0")
        }
        _ => error,
    })?;
    let mut silence = Silence::new(memory::SILENCE);
    let trouble = loop {
        let job = find(qmp)?.ok_or_else(|| Error::failed(format!("QEMU has forgotten '{command}'")))?;
        if job["status"] == "concluded" {
            break job["error"].as_str().map(str::to_owned);
        }
        if plan.disks.first().is_some_and(|disk| silence.lasts(|| memory::moved(plan, &disk.path))) {
            let limit = humantime::format_duration(memory::SILENCE);
            return Err(Error::timed_out(format!("QEMU is at '{command}', and got no further for {limit}")));
        }
        interrupt::check()?;
        poll::sleep(STEP);
    };
    qmp.command("job-dismiss", json!({"id": JOB}))?;
    match trouble {
        None => Ok(()),
        Some(words) => Err(Error::failed(format!("QEMU could not do '{command}'")).because(words)),
    }
}

fn find(qmp: &mut Qmp) -> Result<Option<Value>> {
    let jobs = qmp.command("query-jobs", json!({}))?;
    Ok(jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB)).cloned())
}

/// Takes one without memory, on every disk or on none: on the first one last, as what is there counts.
///
/// # Errors
/// What `qemu-img` says.
pub(super) fn take_stopped(plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
    for disk in written(plan).skip(1) {
        // Left by a command that was killed in the midst of this. QEMU would take it for the new one.
        for _ in on_disk(disk)?.iter().filter(|one| one.name == name.as_str()) {
            qemu_img(disk, "-d", name.as_str())?;
        }
    }
    let mut undo = Undo::new();
    for disk in written(plan).rev() {
        qemu_img(disk, "-c", name.as_str())?;
        let (disk, name) = (disk.clone(), name.clone());
        undo.push("the snapshot on a disk", move || qemu_img(&disk, "-d", name.as_str()));
    }
    undo.commit();
    Ok(())
}

/// Puts every disk back, once all are known to have it.
///
/// # Errors
/// [`Kind::Failed`] when a disk does not have it; what `qemu-img` says.
pub(super) fn restore_stopped(plan: &GuestPlan, name: &str) -> Result<()> {
    for disk in written(plan) {
        if !has(disk, name)? {
            return Err(Error::failed(format!("'{}' has no snapshot '{name}'", disk.path.display()))
                .hint("a disk that was attached later can be detached: 'virga detach'"));
        }
    }
    written(plan).try_for_each(|disk| qemu_img(disk, "-a", name))
}

/// Removes one from all disks that have it; all are tried.
///
/// # Errors
/// What `qemu-img` says.
pub(super) fn remove_stopped(plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
    let disks = written(plan).filter(|disk| disk.format == DiskFormat::Qcow2);
    // The first disk last: as long as it has the snapshot, the snapshot can be seen and removed again.
    let remove = |disk| match has(disk, name.as_str())? {
        true => qemu_img(disk, "-d", name.as_str()),
        false => Ok(()),
    };
    disks.rev().map(remove).fold(Ok(()), Result::and)
}

fn has(disk: &Disk, name: &str) -> Result<bool> {
    Ok(on_disk(disk)?.iter().any(|one| one.name == name))
}

fn qemu_img(disk: &Disk, what: &str, name: &str) -> Result<()> {
    let image = args::image(disk)?;
    let done = Cmd::new(PROGRAM).args(["snapshot", what, name]).arg(image).timeout(PATIENCE).run();
    done.map(drop).map_err(needed)
}

fn needed(error: Error) -> Error {
    if error.kind() == Kind::Unavailable { error.hint("'apt install qemu-utils' on Debian and Ubuntu") } else { error }
}
