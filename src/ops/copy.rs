//! `clone`: another guest with a copy of a stopped one's disks, and an identity of its own.

use std::path::PathBuf;

use super::{Env, change, identity};
use crate::base::nic::{Mac, Nic};
use crate::base::plan::{Disk, Forward, InstanceId};
use crate::base::undo::Undo;
use crate::base::{Error, GuestName, GuestPlan, Result, interrupt};
use crate::disk;
use crate::driver::Storage;
use crate::guest::{self, Held, Phase, Record};
use crate::seed::{self, SeedRequest};
use crate::ssh::authorized::{self, AuthorizedKeys, Sources};

/// Makes the guest `name` of the guest `source`, which does not run; leaves it stopped. Its disks are copies that stand
/// on the same image. It is a machine of its own when it has booted: name, instance, addresses of its
/// cards, machine-id, host keys. Its seed holds that and the user's access keys; what the user-data of `source` has
/// done is on the disk, and is not done again.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without `source`, [`crate::base::Kind::Exists`] for a name that is taken,
/// [`crate::base::Kind::Failed`] when `source` runs, is saved or has snapshots. Nothing is left of it then.
pub fn clone(env: Env<'_>, source: &GuestName, name: &GuestName, key_files: &[PathBuf]) -> Result<()> {
    let layout = &env.settings.layout;
    change::another_name(layout, source, name)?;
    if guest::exists(layout, name) {
        return Err(guest::taken(layout, name));
    }
    let access = access(env, key_files)?;
    let pool = env.pool()?;
    // As in `create`: until the record names the blob, nobody may think that it is not needed.
    let _pool_lock = pool.lock_shared()?;
    let source = change::hold_stopped(env, source)?;
    without_snapshots(env, &source.record)?;
    let plan = plan(env, &source.record.plan, name)?;
    let mut held = guest::reserve(layout, Record::new(source.record.driver, source.record.origin.clone(), plan))?;
    let mut undo = Undo::new();
    let (layout_, name_) = (layout.clone(), name.clone());
    undo.push("the guest's folder", move || guest::remove_folder(&layout_, &name_));

    write_seed(env, (source.record.name(), &source.record.user), &mut held, &access)?;
    let driver = env.driver(held.record.driver);
    if driver.capabilities().storage == Storage::OurPath {
        copy_files(&source.record.plan, &held.record.plan)?;
    }
    interrupt::check()?;
    let (again, plan) = (env.driver(held.record.driver), held.record.plan.clone());
    undo.push("the guest at its backend", move || again.remove(&plan));
    driver.duplicate(&source.record.plan, &held.record.plan)?;
    interrupt::check()?;
    held.record.phase = Phase::Ready;
    held.save()?;
    undo.commit();
    Ok(())
}

/// In its snapshots a guest is who it was, with its keys: a copy of them would make another that guest again.
fn without_snapshots(env: Env<'_>, source: &Record) -> Result<()> {
    let snapshots = env.driver(source.driver).snapshots(&source.plan)?;
    let Some(first) = snapshots.first() else { return Ok(()) };
    let name = source.name();
    Err(Error::failed(format!("guest '{name}' has snapshots ({}), in which it is '{name}'", snapshots.len()))
        .hint(format!("a guest without any can be cloned: virga snapshot remove {name} {}", first.name)))
}

/// The keys that get into a copy.
///
/// # Errors
/// When they cannot be read.
pub(super) fn access(env: Env<'_>, files: &[PathBuf]) -> Result<AuthorizedKeys> {
    let settings = env.settings;
    let own = settings.layout.own_key();
    let (agent, home) = (settings.agent_socket.as_deref(), settings.user_home.as_deref());
    let access = authorized::collect(&Sources { files, agent, home, own: &own })?;
    for note in &access.notes {
        env.reporter.warn(note);
    }
    Ok(access)
}

/// The same machine as somebody else.
fn plan(env: Env<'_>, source: &GuestPlan, name: &GuestName) -> Result<GuestPlan> {
    let layout = &env.settings.layout;
    let id = InstanceId::generate()?;
    let mut plan = identity::named(layout, source, name);
    let nic = |nic: &Nic| Ok(Nic { mac: Mac::generate()?, network: nic.network.clone() });
    plan.nics = source.nics.iter().map(nic).collect::<Result<_>>()?;
    plan.runtime = layout.runtime(id.short());
    plan.id = id;
    plan.volumes = None;
    plan.disks.retain(|disk| {
        let stays = disk.kept && !disk.read_only;
        if stays {
            // Two guests cannot write to one.
            env.reporter.note(&format!("'{}' stays with '{}' alone", disk.path.display(), source.name));
        }
        !stays
    });
    for forward in plan.forwards.iter_mut().filter(|forward| forward.host != 0) {
        env.reporter
            .note(&format!("port {} leads to '{}': another one is chosen for '{name}'", forward.host, source.name));
        *forward = Forward { host: 0, guest: forward.guest };
    }
    Ok(plan)
}

/// Nothing of the source's seed: the user-data in it was for the first boot of that guest.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write_seed(
    env: Env<'_>,
    (source, user): (&GuestName, &str),
    held: &mut Held,
    access: &AuthorizedKeys,
) -> Result<()> {
    let plan = &held.record.plan;
    let seed = seed::build(&SeedRequest {
        name: plan.name.clone(),
        instance_id: plan.id.clone(),
        macs: plan.nics.iter().map(|nic| nic.mac).collect(),
        cards_have_names: plan.container.is_some(),
        host_keys: identity::host_keys(&plan.name)?,
        authorized_keys: access.keys.clone(),
        password: None,
        packages: Vec::new(),
        run_scripts_once: Vec::new(),
        user_data: vec![seed::copy_part(source, user)?],
        meta_data: None,
        network_config: None,
    })?;
    for warning in &seed.warnings {
        env.reporter.warn(warning);
    }
    identity::write(&env.settings.layout, plan, &seed)?;
    held.record.user = user.to_owned();
    identity::grant(&env.settings.layout, &mut held.record, access)?;
    held.record.plan.host_keys = seed.host_public_keys;
    Ok(())
}

/// Disks, and what the firmware keeps: what it boots is said there.
fn copy_files(from: &GuestPlan, to: &GuestPlan) -> Result<()> {
    for target in to.disks.iter().filter(|disk| !disk.kept) {
        let same = |disk: &&Disk| !disk.kept && disk.path.file_name() == target.path.file_name();
        let source = from.disks.iter().find(same).ok_or_else(|| Error::failed("the guest has no such disk"))?;
        disk::copy(&source.path, &target.path)?;
        interrupt::check()?;
    }
    if let (Some(source), Some(target)) = (&from.platform.flash, &to.platform.flash)
        && source.vars.exists()
    {
        disk::copy(&source.vars, &target.vars)?;
    }
    Ok(())
}
