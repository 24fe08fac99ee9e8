//! Saved machines for warm starts: made, listed, checked, removed.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::Digest as _;

use super::machine::{self, Machine, MachineRequest, Root};
use super::origin::{Base, From};
use super::{Env, destroy, warm};
use crate::base::container::ContainerWish;
use crate::base::lock::{FileLock, Mode};
use crate::base::name::hex;
use crate::base::nic::Mac;
use crate::base::plan::{Disk, InstanceId};
use crate::base::poll::Deadline;
use crate::base::undo::Undo;
use crate::base::{Arch, ByteSize, Error, GuestName, GuestPlan, Kind, Result, TemplateId, Trust, fs, interrupt};
use crate::disk;
use crate::driver::{Begin, Driver, Saved, Status, Stop};
use crate::guest::{self, Entry};
use crate::pool::{ImageRecord, Turns};
use crate::seed::{self, SeedRequest};
use crate::template::renewal::{self, Facts};
use crate::template::{self as store, Key};

pub use crate::template::Template;

/// A first boot takes half a minute under emulation; a busy machine and a large image take longer.
const BOOT: Duration = Duration::from_secs(600);

/// So is the guest called that a template is made of, followed by the template's id.
const MAKING: &str = "virga-template-";

/// How many of the console's last lines a failure shows.
const CONSOLE_LINES: usize = 12;

/// For whoever waits until another command has made the same template.
const PATIENCE: Duration = Duration::from_secs(900);

/// Makes the template for this machine, or says that there is one. The second
/// value tells whether it was made now.
///
/// # Errors
/// As [`create`](super::create::create), and [`Kind::Unsupported`] for a driver or guest that cannot be saved.
pub fn create(env: Env<'_>, request: &MachineRequest) -> Result<(Template, bool)> {
    let machine = Machine::of(env, request)?;
    let driver = env.driver(machine.driver);
    machine::usable(driver.as_ref())?;
    if !driver.capabilities().memory_snapshots {
        return Err(Error::new(Kind::Unsupported, format!("the {} driver cannot save machines", machine.driver)));
    }
    if let Some(why) = machine.why_cold() {
        return Err(Error::new(Kind::Unsupported, why));
    }
    let pool = env.pool()?;
    let turns = pool.turns()?;
    let base = Base::find(env, &pool, request, driver.capabilities().boots)?;
    let key = key(env, &machine, &base, None)?;
    match store::load(&env.settings.layout, &key.id()?)? {
        Some(template) => {
            template.verify()?;
            Ok((template, false))
        }
        None => {
            fs::remove_file(&env.settings.layout.template_refusal(&key.id()?))?;
            Ok((make(env, &turns, &machine, &base, key)?, true))
        }
    }
}

/// What is known of one template.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: TemplateId,
    /// What it is, or why that cannot be told.
    pub template: Result<Template>,
    /// The guests that were resumed from it.
    pub clones: Vec<GuestName>,
    /// Who vouches for the content of its image, as far as the pool's records still say.
    pub trust: Option<Trust>,
}

/// All templates, by id.
///
/// # Errors
/// When the state folder cannot be read.
pub fn list(env: Env<'_>) -> Result<Vec<Listed>> {
    let layout = &env.settings.layout;
    let mut clones = clones(env)?;
    let records = env.pool()?.records()?;
    let listed = store::list(layout)?.into_iter().map(|(id, template)| {
        let clones = clones.remove(&id).unwrap_or_default();
        let of = |template: &Template| {
            records.iter().filter(|record| record.blob == template.record.key.image).map(ImageRecord::trust).min()
        };
        let trust = template.as_ref().ok().and_then(of);
        Listed { id, template, clones, trust }
    });
    Ok(listed.collect())
}

/// One template.
///
/// # Errors
/// [`Kind::NotFound`] without such a template.
pub fn info(env: Env<'_>, id: &TemplateId) -> Result<Listed> {
    list(env)?.into_iter().find(|line| line.id == *id).ok_or_else(|| missing(id))
}

/// Hashes the files of these templates, or of all, and calls `checked` for each with what was found.
///
/// # Errors
/// [`Kind::Refused`] after all were checked, when one is not what was saved.
pub fn verify(env: Env<'_>, ids: &[TemplateId], mut checked: impl FnMut(&TemplateId, &Result<()>)) -> Result<()> {
    let mut first = None;
    for line in chosen(env, ids)? {
        interrupt::check()?;
        let verdict = line.template.and_then(|template| template.verify());
        checked(&line.id, &verdict);
        first = first.or(verdict.err());
    }
    first.map_or(Ok(()), Err)
}

/// Removes templates. Those with clones are kept unless `force`: their clones could not start again.
///
/// # Errors
/// [`Kind::NotFound`] for an id without a template, [`Kind::Failed`] for one with clones; nothing is removed then.
pub fn remove(env: Env<'_>, ids: &[TemplateId], force: bool) -> Result<()> {
    let pool = env.pool()?;
    // No clone is being made of them now.
    let _lock = pool.lock_exclusive()?;
    if !force {
        // Whose records nobody can read may be anybody's clones.
        guest::blobs_in_use(&env.settings.layout)?;
    }
    let chosen = chosen(env, ids)?;
    if let Some(line) = chosen.iter().find(|line| !line.clones.is_empty() && !force) {
        let names: Vec<String> = line.clones.iter().map(ToString::to_string).collect();
        return Err(Error::failed(format!("template {} has clones: {}", line.id, names.join(", ")))
            .hint(format!("destroy them first: virga destroy {}", names.join(" ")))
            .hint("'--force' removes it all the same: its clones are lost then"));
    }
    chosen.iter().try_for_each(|line| {
        store::remove(&env.settings.layout, &line.id)?;
        // Unless another command is about to make it, or has just made it.
        let path = env.settings.layout.template_lock(&line.id);
        match FileLock::try_acquire(&path, Mode::Exclusive)? {
            Some(_nobody) => fs::remove_file(&path),
            None => Ok(()),
        }
    })
}

fn chosen(env: Env<'_>, ids: &[TemplateId]) -> Result<Vec<Listed>> {
    let listed = list(env)?;
    if let Some(id) = ids.iter().find(|id| !listed.iter().any(|line| line.id == **id)) {
        return Err(missing(id));
    }
    Ok(listed.into_iter().filter(|line| ids.is_empty() || ids.contains(&line.id)).collect())
}

fn missing(id: &TemplateId) -> Error {
    Error::not_found(format!("there is no template {id}")).hint("'virga template list' shows the templates")
}

fn clones(env: Env<'_>) -> Result<BTreeMap<TemplateId, Vec<GuestName>>> {
    let mut clones: BTreeMap<TemplateId, Vec<GuestName>> = BTreeMap::new();
    for entry in guest::list(&env.settings.layout)? {
        if let Entry::Known(record) = entry
            && let Some(id) = &record.origin.template
        {
            clones.entry(id.clone()).or_default().push(record.name().clone());
        }
    }
    Ok(clones)
}

/// The templates that prune may remove: no clone stands on them, and no guest
/// would be made of them any more, since their image is gone from the pool's records, or
/// the program that saved them is another now.
///
/// # Errors
/// When guests or templates cannot be listed.
pub(super) fn outdated(
    env: Env<'_>,
    named: &std::collections::BTreeSet<crate::base::Digest>,
) -> Result<Vec<(TemplateId, ByteSize)>> {
    let idle = list(env)?.into_iter().filter(|line| line.clones.is_empty());
    let outdated = idle.filter(|line| match &line.template {
        Err(_) => true,
        Ok(template) => {
            !named.contains(&template.record.key.image)
                || changed(env, &template.record.key).is_ok_and(|what| what.is_some())
        }
    });
    let size = |template: Result<Template>| template.map_or(ByteSize(0), |template| template.on_disk());
    Ok(outdated.map(|line| (line.id, size(line.template))).collect())
}

/// The half-made guests that killed commands left as they made templates. For whoever holds the pool's lock alone.
///
/// # Errors
/// When guests cannot be listed.
pub(super) fn unfinished(env: Env<'_>) -> Result<Vec<GuestName>> {
    let layout = &env.settings.layout;
    let names = guest::list(layout)?.into_iter().map(|entry| entry.name().clone()).filter(|name| {
        let id = name.as_str().strip_prefix(MAKING).map(str::parse::<TemplateId>);
        matches!(id, Some(Ok(_))) && guest::get(layout, name).is_err()
    });
    // One that a command is at work on is no remains.
    names.map(|name| Ok(guest::is_free(layout, &name)?.then_some(name))).filter_map(Result::transpose).collect()
}

/// What of a template's surroundings is not as it was; `None` when it could be used now.
fn changed(env: Env<'_>, key: &Key) -> Result<Option<String>> {
    let accel = match key.backend.get("accelerator").map(String::as_str) {
        Some("kvm") => crate::base::plan::Accel::Kvm,
        _ => crate::base::plan::Accel::Tcg,
    };
    let request = MachineRequest {
        from: From::Pool(Vec::new()),
        driver: Some(key.driver.into()),
        accel: Some(accel),
        memory: Some(key.memory),
        cpus: Some(key.cpus),
        disk: Some(key.disk),
        arch: Some(key.arch),
        firmware: None,
        tpm: false,
        container: ContainerWish::default(),
    };
    let machine = Machine::of(env, &request)?;
    let plan = bare_plan(env, &machine, key.arch, key.disk)?;
    let backend = env.driver(key.driver).fingerprint(&plan)?;
    Ok(key.difference(&Key { backend, recipe: recipe(&key.user)?, ..key.clone() }))
}

/// Fails when there is a template of this image for this machine, but saved under other circumstances.
///
/// # Errors
/// [`Kind::Refused`] with what has changed.
pub(super) fn refuse_outdated(env: Env<'_>, key: &Key) -> Result<()> {
    for (id, template) in store::list(&env.settings.layout)? {
        let Ok(template) = template else { continue };
        let other = &template.record.key;
        let same = other.image == key.image
            && (other.memory, other.cpus, other.disk, other.driver) == (key.memory, key.cpus, key.disk, key.driver)
            && (other.backend.get("accelerator"), &other.user) == (key.backend.get("accelerator"), &key.user);
        if same && let Some(change) = other.difference(key) {
            return Err(Error::refused(format!("template {id} cannot be used: {change}"))
                .hint(format!("make a new one: virga template remove {id}; virga template create ...")));
        }
    }
    Ok(())
}

/// The key of the template for such a machine over such an image, as things are now.
///
/// # Errors
/// [`Kind::Unavailable`] without a backend.
pub(super) fn key(env: Env<'_>, machine: &Machine, base: &Base, user: Option<&str>) -> Result<Key> {
    let user = warm::default_user(base, user);
    let size = machine.disk(base.disk()?.virtual_size);
    let plan = bare_plan(env, machine, base.arch, size)?;
    Ok(Key {
        image: base
            .blob
            .clone()
            .ok_or_else(|| Error::new(Kind::Unsupported, "templates are made of images in the pool"))?,
        arch: base.arch,
        memory: machine.memory,
        cpus: machine.cpus,
        disk: size,
        driver: machine.driver,
        backend: env.driver(machine.driver).fingerprint(&plan)?,
        recipe: recipe(&user)?,
        user,
    })
}

/// A plan with the right machine and made-up files.
fn bare_plan(env: Env<'_>, machine: &Machine, arch: Arch, size: ByteSize) -> Result<GuestPlan> {
    let root = Disk::own("/disk".into(), size, Vec::new());
    machine::plan(env, &"anyone".parse()?, machine, arch, Root::Disk(root))
}

/// The hash of the seed that a template with this default user boots with.
fn recipe(user: &str) -> Result<String> {
    let id = InstanceId::try_from("00000000-0000-4000-8000-000000000000".to_owned())?;
    let seed = seed("template".parse()?, id, "52:54:00:00:00:00".parse()?, user)?;
    let mut hash = sha2::Sha256::new();
    for (name, bytes) in &seed.files {
        hash.update(name);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()[..8]))
}

/// A template's seed: no keys, no password, nobody's user-data.
fn seed(name: GuestName, instance_id: InstanceId, mac: Mac, user: &str) -> Result<seed::Seed> {
    let mut user_data = vec![seed::renewal_part()?];
    if user == machine::GIVEN_USER {
        user_data.insert(0, seed::user_part(user));
    }
    seed::build(&SeedRequest {
        name,
        instance_id,
        macs: vec![mac],
        cards_have_names: false,
        host_keys: Vec::new(),
        authorized_keys: Vec::new(),
        password: None,
        packages: Vec::new(),
        run_scripts_once: Vec::new(),
        user_data,
        meta_data: None,
        network_config: None,
    })
}

/// Boots a guest of this image, lets it be stripped of identity, saves it. The pool is nobody's meanwhile.
/// Until it is whole it is a half-made guest, which `list` shows and `destroy`
/// removes; what a killed command left is removed first.
///
/// # Errors
/// What the boot or the save failed with. Nothing is left of it.
pub(super) fn make(env: Env<'_>, turns: &Turns, machine: &Machine, base: &Base, key: Key) -> Result<Template> {
    let layout = &env.settings.layout;
    let id = key.id()?;
    fs::create_private_dir(&layout.templates())?;
    let title = format!("template {id}");
    let path = layout.template_lock(&id);
    let _lock = match FileLock::try_acquire(&path, Mode::Exclusive)? {
        Some(lock) => lock,
        None => {
            env.reporter.note(&format!("another command makes {title}: waiting for it"));
            // Its guest names the same image.
            turns.rest();
            let lock = FileLock::acquire(&path, Mode::Exclusive, &title, PATIENCE)?;
            turns.take()?;
            lock
        }
    };
    if let Some(made) = store::load(layout, &id)? {
        return Ok(made);
    }
    let name: GuestName = format!("{MAKING}{id}").parse()?;
    destroy::destroy(env, &name)?;

    env.reporter.note(&format!("making template {id}: one boot, for all guests like this one"));
    let staged = layout.guest_files(&name).template();
    let backing = base.disk()?;
    let size = machine.disk(backing.virtual_size);
    let root = Disk::own(staged.disk(), size, base.layers()?);
    let plan = machine::plan(env, &name, machine, base.arch, Root::Disk(root))?;
    let held = guest::reserve(layout, guest::Record::new(machine.driver, base.origin(), plan))?;
    turns.rest();
    let mut undo = Undo::new();
    let (layout_, name_) = (layout.clone(), name.clone());
    undo.push("the template's folder", move || guest::remove_folder(&layout_, &name_));
    let plan = &held.record.plan;
    fs::create_private_dir(staged.folder())?;
    disk::create_overlay(&staged.disk(), &backing, size)?;
    let mac = plan.nics.first().map_or_else(Mac::generate, |nic| Ok(nic.mac))?;
    let seed = seed(name, plan.id.clone(), mac, &key.user)?;
    let files = layout.guest_files(&plan.name);
    fs::write_new(&files.seed(), &seed.to_iso()?, 0o600)?;

    let driver = env.driver(machine.driver);
    let (again, plan_) = (env.driver(machine.driver), plan.clone());
    undo.push("the guest at its backend", move || again.remove(&plan_));
    driver.create(plan)?;
    let saved = Saved { state: staged.state(), memory: Some(staged.memory()) };
    drop(fs::create_new(&staged.memory(), 0o600)?);
    let facts =
        boot(env, driver.as_ref(), plan, &saved).inspect_err(|error| evidence(env, driver.as_ref(), plan, error))?;
    let template = store::publish(layout, &staged, key, facts)?;
    // Until whoever wants the template has a record of its own.
    turns.take()?;
    // Dropped uncommitted: the guest that it was made of goes, in any case.
    drop(undo);
    Ok(template)
}

/// What a guest that goes with all its files wrote last: nobody can look later.
pub(super) fn evidence(env: Env<'_>, driver: &dyn Driver, plan: &GuestPlan, error: &Error) {
    if error.kind() == Kind::Interrupted {
        return;
    }
    if let Ok(lines) = driver.console_tail(plan, CONSOLE_LINES)
        && !lines.is_empty()
    {
        env.reporter.note(&format!("the last lines of its console:\n  {}", lines.join("\n  ")));
    }
}

fn boot(env: Env<'_>, driver: &dyn Driver, plan: &GuestPlan, saved: &Saved) -> Result<Facts> {
    let deadline = Deadline::after(BOOT);
    let stage = env.reporter.wait("template");
    stage.stage("its first boot");
    let memory = saved.memory.as_deref().unwrap_or(&saved.state);
    for note in driver.start(plan, Begin::BootInto(memory))?.notes {
        env.reporter.note(&note);
    }
    let alive = || match driver.glance(plan)?.is_none_or(Status::is_alive) {
        true => Ok(()),
        false => Err(Error::failed("the guest ended before it could be saved")),
    };
    let facts = {
        let mut channel = driver.channel(plan)?;
        renewal::await_ready(&mut channel, &deadline, &alive)?
    };
    stage.stage("saving it");
    driver.save(plan, saved)?;
    // Its files are whole only once it is gone.
    driver.stop(plan, Stop::Force)?;
    if facts.tcp > 0 {
        let warning = format!(
            "this image makes TCP connections while it boots ({}): the sequence numbers of its clones come from one secret",
            facts.tcp
        );
        env.reporter.warn(&warning);
    }
    Ok(facts)
}
