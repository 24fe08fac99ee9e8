//! `export` and `import`: a guest as a file, and a guest made of one.

use std::path::{Path, PathBuf};

use super::create::From;
use super::machine::{self, Machine, MachineRequest, Root};
use super::{Env, change, copy};
use crate::base::container::{Container, Packing};
use crate::base::nic::{Mac, Nic};
use crate::base::undo::Undo;
use crate::base::{Context as _, Error, GuestName, GuestPlan, Kind, Result, fs, interrupt};
use crate::driver::Driver;
use crate::guest::{self, Exported, Origin, Phase, Record};

/// Writes a guest that does not run into a new file: all that is on its disk, and what it was here. Its snapshots stay
/// behind. The file holds the guest's secrets: it is for its owner alone.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest, [`Kind::Unsupported`] when its driver cannot, [`Kind::Exists`] when the file
/// is there already, [`Kind::Failed`] when it runs. Nothing of the file is left then.
pub fn export(env: Env<'_>, name: &GuestName, file: &Path) -> Result<()> {
    let held = change::hold_stopped(env, name)?;
    let (record, driver) = (&held.record, env.driver(held.record.driver));
    let what = || format!("guest '{name}' cannot be exported");
    driver.capabilities().export.demand(what)?;
    let about = Exported::of(record).ok_or_else(|| Error::new(Kind::Unsupported, what()))?;
    let file = std::path::absolute(file).context(|| "finding the folder that we are in".into())?;
    if file.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::Exists, format!("'{}' is there already", file.display())));
    }
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("exporting");
    fs::write_atomic_with(&file, 0o600, |to| about.write(to, |to| driver.export(&record.plan, to)))
}

/// Makes a guest of an exported one, and leaves it stopped. It is a guest of its own, as a clone is: its name, or the one
/// that it had, its addresses, machine-id and host keys are new, its disk is what it was. Of the file nothing
/// reaches the host but what virga itself gives a guest of these wishes.
///
/// # Errors
/// [`Kind::Refused`] for a file that is none, and for a privileged guest unless `privileged`; [`Kind::Exists`] for a name
/// that is taken. Nothing is left of it then.
pub fn import(
    env: Env<'_>,
    path: &Path,
    name: Option<&GuestName>,
    privileged: bool,
    key_files: &[PathBuf],
) -> Result<GuestName> {
    let layout = &env.settings.layout;
    let mut file = fs::open(path)?;
    let about = Exported::read(&mut file)?;
    let name = name.unwrap_or(&about.name).clone();
    if guest::exists(layout, &name) {
        return Err(guest::taken(layout, &name));
    }
    if about.wish.privileged && !privileged {
        return Err(Error::refused(format!("'{}' was privileged: its root would be this host's root", about.name))
            .hint("--privileged makes it so"));
    }
    let driver = env.driver(about.driver);
    driver.capabilities().export.demand(|| format!("the {} driver cannot import guests", about.driver))?;
    machine::usable(driver.as_ref())?;
    let access = copy::access(env, key_files)?;
    let plan = plan(env, &about, &name)?;
    let origin = Origin { image: None, blob: None, keys: about.keys.clone(), trust: about.trust, template: None };
    let mut held = guest::reserve(layout, Record::new(about.driver, origin, plan))?;
    let mut undo = Undo::new();
    let (layout_, name_) = (layout.clone(), name.clone());
    undo.push("the guest's folder", move || guest::remove_folder(&layout_, &name_));
    copy::write_seed(env, (&about.name, &about.user), &mut held, &access)?;
    interrupt::check()?;
    let (again, plan): (Box<dyn Driver>, GuestPlan) = (env.driver(about.driver), held.record.plan.clone());
    undo.push("the guest at its backend", move || again.remove(&plan));
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("importing");
    driver.import(&held.record.plan, file)?;
    interrupt::check()?;
    held.record.phase = Phase::Ready;
    held.save()?;
    undo.commit();
    Ok(name)
}

fn plan(env: Env<'_>, about: &Exported, name: &GuestName) -> Result<GuestPlan> {
    let machine = Machine::of(
        env,
        &MachineRequest {
            from: From::Pool(Vec::new()),
            driver: Some(about.driver.into()),
            accel: None,
            memory: Some(about.memory),
            cpus: Some(about.cpus),
            disk: about.wish.size,
            arch: Some(about.arch),
            firmware: None,
            tpm: false,
            container: about.wish.clone(),
        },
    )?;
    // The image's files are not needed any more: what was made of them comes with the file.
    let container = Container {
        root: PathBuf::new(),
        packing: Packing::TarXz,
        metadata: Some(PathBuf::new()),
        fingerprint: about.fingerprint.clone(),
        folders: Vec::new(),
        wish: about.wish.clone(),
    };
    let mut plan = machine::plan(env, name, &machine, about.arch, Root::Files(container))?;
    let nic = |network: &crate::base::nic::Network| Ok(Nic { mac: Mac::generate()?, network: network.clone() });
    plan.nics = about.networks.iter().map(nic).collect::<Result<_>>()?;
    Ok(plan)
}
