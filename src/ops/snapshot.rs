//! Snapshots: a guest's earlier states, kept at its backend.

use jiff::Timestamp;

use super::{Env, change, clock};
use crate::base::{Error, GuestName, Kind, Result, SnapshotName};
use crate::driver::{Driver, Snapshot, Status};
use crate::guest::{self, Held, Shape};

/// Takes a snapshot, with the memory if the guest runs. It goes on as it was. Without a name it is
/// named by the time. Returns the name.
///
/// # Errors
/// [`Kind::Exists`] for a name that is taken, [`Kind::Failed`] for a guest that is saved,
/// [`Kind::Unsupported`] for one whose disks hold no snapshots.
pub fn create(env: Env<'_>, name: &GuestName, snapshot: Option<SnapshotName>) -> Result<SnapshotName> {
    let (mut held, driver) = hold(env, name)?;
    let plan = held.record.plan.clone();
    not_saved(&held, driver.status(&plan)?)?;
    let snapshot = match snapshot {
        Some(snapshot) => snapshot,
        None => Timestamp::now().strftime("s%Y%m%d-%H%M%S").to_string().parse()?,
    };
    let others = driver.snapshots(&plan)?;
    if others.iter().any(|one| one.name == snapshot.as_str()) {
        return Err(Error::new(Kind::Exists, format!("guest '{name}' has a snapshot '{snapshot}' already"))
            .hint(format!("choose another name, or remove it: virga snapshot remove {name} {snapshot}")));
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("taking the snapshot");
    // First what it is of: a snapshot that nobody knows the shape of is not looked at when it is put back.
    held.record.snapshots.retain(|name, _| others.iter().any(|one| one.name == name.as_str()));
    held.record.snapshots.insert(snapshot.clone(), Shape::of(&plan));
    held.save()?;
    driver.take_snapshot(&plan, &snapshot)?;
    Ok(snapshot)
}

/// The snapshots of a guest, oldest first.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest.
pub fn list(env: Env<'_>, name: &GuestName) -> Result<Vec<Snapshot>> {
    let record = guest::get(&env.settings.layout, name)?;
    env.driver(record.driver).snapshots(&record.plan)
}

/// Puts a guest back: one that was kept with its memory runs on from there, with its clock set; else
/// the guest must be stopped, and is. What it did since is lost. Disks have the size then that they had.
///
/// # Errors
/// [`Kind::NotFound`] without such a snapshot; [`Kind::Failed`] for a guest that is saved, or runs where the
/// snapshot has no memory, or that the snapshot does not fit any more.
pub fn restore(env: Env<'_>, name: &GuestName, snapshot: &SnapshotName) -> Result<()> {
    let (mut held, driver) = hold(env, name)?;
    let plan = held.record.plan.clone();
    let status = driver.status(&plan)?;
    not_saved(&held, status)?;
    let found = find(driver.as_ref(), &held, snapshot)?;
    if status.is_alive() && !found.memory {
        return Err(Error::failed(format!("guest '{name}' runs, and the snapshot '{snapshot}' is of its disks alone"))
            .hint(format!("virga stop {name}")));
    }
    let shape = held.record.snapshots.get(snapshot).cloned();
    if let Some(then) = shape.as_ref().and_then(|shape| shape.unlike(&plan, found.memory)) {
        return Err(Error::failed(format!("the snapshot '{snapshot}' does not fit '{name}' any more: {then}")).hint(
            "make it so again, or do without: 'virga attach', 'detach', 'resize', 'upgrade-machine-type --rollback'",
        ));
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("restoring the snapshot");
    if found.memory {
        clock::due(&mut held)?;
    }
    driver.restore_snapshot(&plan, &found)?;
    drop(waiting);
    if let Some(shape) = shape {
        shape.size(&mut held.record.plan.disks);
        held.save()?;
    }
    if found.memory {
        // It was taken of a guest that was held, or restored over one.
        if driver.status(&plan)? == Status::Paused {
            driver.release(&plan)?;
        }
        clock::set(env, &mut held)?;
    }
    Ok(())
}

/// Removes a snapshot; the guest goes on as it was.
///
/// # Errors
/// [`Kind::NotFound`] without such a snapshot.
pub fn remove(env: Env<'_>, name: &GuestName, snapshot: &SnapshotName) -> Result<()> {
    let (mut held, driver) = hold(env, name)?;
    find(driver.as_ref(), &held, snapshot)?;
    driver.remove_snapshot(&held.record.plan, snapshot)?;
    held.record.snapshots.remove(snapshot);
    held.save()
}

fn hold(env: Env<'_>, name: &GuestName) -> Result<(Held, Box<dyn Driver>)> {
    let held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    Ok((held, driver))
}

fn find(driver: &dyn Driver, held: &Held, snapshot: &SnapshotName) -> Result<Snapshot> {
    let all = driver.snapshots(&held.record.plan)?;
    all.into_iter().find(|one| one.name == snapshot.as_str()).ok_or_else(|| {
        let name = held.record.name();
        Error::not_found(format!("guest '{name}' has no snapshot '{snapshot}'"))
            .hint(format!("'virga snapshot list {name}' shows those it has"))
    })
}

/// The disks of a saved guest belong to its memory: neither can be kept or put back alone.
fn not_saved(held: &Held, status: Status) -> Result<()> {
    let name = held.record.name();
    if status != Status::Saved && held.record.saved.is_none() {
        return Ok(());
    }
    Err(Error::failed(format!("guest '{name}' is saved: its disks and its memory belong together"))
        .hint(format!("'virga start {name}' lets it go on; 'virga stop --force {name}' drops what was in its memory")))
}
