//! Making a guest: resolve the image, take the name, lay out disks and seed,
//! hand the finished plan to the driver, start it.
//!
//! Every step pushes its undo; an error or Ctrl-C runs them backwards. A
//! SIGKILL leaves a named, half-made guest that `list` shows and `destroy`
//! removes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::machine::{self, Machine, Root};
use super::origin::{Base, Content};
use super::session::{self, Life};
use super::{Env, identity, warm};
use crate::base::nic::{Mac, Network, Nic};
use crate::base::plan::{Disk, DiskFormat, Forward, Layer, Tuning};
use crate::base::poll::Laps;
use crate::base::undo::Undo;
use crate::base::{ByteSize, Error, GuestName, GuestPlan, Kind, Result, SessionId, given, interrupt};
use crate::disk;
use crate::driver::{Ability, Begin, Driver, Storage};
use crate::guest::{self, Held, Phase, Record};
use crate::pool::Turns;
use crate::seed::{self, Seed, SeedRequest};
use crate::ssh::authorized::{self, Sources};
use crate::template::Template;

pub use super::machine::MachineRequest;
pub use super::origin::{From, InPlace};

/// Most bytes read of one file that goes into the seed.
const SEED_FILE_LIMIT: u64 = 16 << 20;

/// Most bytes of a file with a password.
const PASSWORD_LIMIT: u64 = 4 << 10;

/// Where a password comes from. It is hashed before it is written anywhere.
#[derive(Clone)]
pub enum Password {
    /// It was given, itself or as crypt(3) writes it.
    Given(String),
    /// It is in this file, alone on its line.
    File(PathBuf),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Password {
    fn hashed(&self) -> Result<String> {
        let text = match self {
            Password::Given(text) => return seed::hashed(text),
            Password::File(path) => given::read_text(path, PASSWORD_LIMIT, "--password-file")?,
        };
        // The end of its line is not the password's.
        seed::hashed(text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)))
    }
}

/// What a guest is to be like. `None` means: as the settings say.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Its name.
    pub name: GuestName,
    /// Its image, memory, processors and first disk.
    pub machine: MachineRequest,
    /// Whether to start it from a template, made first if there is none.
    pub warm: bool,
    /// Further, empty disks.
    pub ephemeral_disks: Vec<ByteSize>,
    /// What its network cards are plugged into, one card each; empty: one card, as the driver likes it.
    pub networks: Vec<Network>,
    /// The cards' addresses, in their order; those that are not given are made up.
    pub macs: Vec<Mac>,
    /// Ports made reachable on the host's loopback, besides SSH.
    pub forwards: Vec<Forward>,
    /// The user's own user-data, merged with ours.
    pub user_data: Vec<PathBuf>,
    /// The user's own meta-data.
    pub meta_data: Option<PathBuf>,
    /// The user's own network-config.
    pub network_config: Option<PathBuf>,
    /// Password of the guest's user.
    pub password: Option<Password>,
    /// Packages that cloud-init installs.
    pub packages: Vec<String>,
    /// Scripts that cloud-init runs once.
    pub scripts: Vec<PathBuf>,
    /// Whether scripts that do not say what runs them are for `sh`; else they are refused.
    pub scripts_are_shell: bool,
    /// Files with the public keys that get in; empty: the agent's, else `~/.ssh/id_*.pub`, else a key of our own.
    pub ssh_public_key_files: Vec<PathBuf>,
    /// The user to log in as; `None`: the image's.
    pub user: Option<String>,
    /// What is unusual about the machine.
    pub tuning: Tuning,
    /// The machine type, in QEMU's words; `None`: the backend's newest.
    pub machine_type: Option<String>,
    /// Whether to start it.
    pub start: bool,
    /// How long it is to be there.
    pub life: Life,
}

/// A guest that was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its record, with its template if the start was a warm one.
    pub record: Record,
    /// How long each stage took.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Makes the guest and, unless told otherwise, starts it. Does not wait until
/// it answers. Nothing is left when it fails.
///
/// # Errors
/// [`Kind::Exists`] for a name that is taken, [`Kind::NotFound`] without such
/// an image, [`Kind::Usage`] for a request that cannot be met,
/// [`Kind::Refused`] for a hostile image file, [`Kind::Unavailable`] without a backend.
pub fn create(env: Env<'_>, request: &CreateRequest) -> Result<Created> {
    let machine = Machine::of(env, &request.machine)?;
    // Kept, with what it has open, for those that are opened below.
    let driver = env.driver(machine.driver);
    machine::usable(driver.as_ref())?;
    let layout = &env.settings.layout;
    if guest::exists(layout, &request.name) {
        // Before an image file is copied for nothing; `reserve` decides for good.
        return Err(guest::taken(layout, &request.name));
    }
    let material = Material::read(env, request)?;
    let pool = env.pool()?;
    // Held until the guest's record names the blob: prune waits for that.
    let turns = pool.turns()?;
    let base = Base::find(env, &pool, &request.machine, driver.capabilities().boots)?;
    let session = session::of(env, &request.life)?;
    let job = Job { env, request, machine: &machine, base: &base, material: &material, turns: &turns, session };
    let made = job.warm_or_cold();
    if let (Err(_), Some(session)) = (&made, &job.session) {
        session::give_up(env, session)?;
    }
    if let Ok(created) = &made {
        open_to_guest(env, driver.as_ref(), &created.record.plan);
    }
    made
}

/// Says of a guest on a network of its own that it reaches its host.
fn open_to_guest(env: Env<'_>, driver: &dyn Driver, plan: &GuestPlan) {
    let closed = driver.capabilities().host_closed == Ability::Yes;
    let open = |nic: &&Nic| nic.network == Network::Full || (nic.network == Network::User && !closed);
    if let Some(nic) = plan.nics.iter().find(open) {
        env.reporter.note(&format!(
            "'{}' reaches the services of this host by its network '{}', those on 127.0.0.1 too",
            plan.name, nic.network
        ));
    }
}

/// All that is needed to make the guest.
pub(super) struct Job<'a> {
    pub env: Env<'a>,
    pub request: &'a CreateRequest,
    pub machine: &'a Machine,
    pub base: &'a Base,
    pub material: &'a Material,
    pub turns: &'a Turns,
    pub session: Option<SessionId>,
}

impl Job<'_> {
    fn warm_or_cold(&self) -> Result<Created> {
        if self.request.warm
            && let Some(template) = warm::template(self)?
        {
            match self.make(Some(&template)) {
                // Nothing of it is left: what can be had is a cold start.
                Err(error) if !matches!(error.kind(), Kind::Interrupted | Kind::Exists) => {
                    warm::give_up(self.env, &error);
                }
                made => return made,
            }
        }
        self.make(None)
    }

    /// Makes it, from the template or from the image. Nothing is left when it fails.
    fn make(&self, template: Option<&Template>) -> Result<Created> {
        let Job { env, request, base, .. } = *self;
        let layout = &env.settings.layout;
        let mut laps = Laps::begin();
        self.turns.take()?;
        let plan = self.plan(template)?;
        let mut origin = base.origin();
        origin.template = template.map(|template| template.id.clone());
        // In this order: what is undone is undone while the guest is still held.
        let mut record = Record::new(self.machine.driver, origin, plan);
        record.session.clone_from(&self.session);
        let mut held = guest::reserve(layout, record)?;
        self.turns.rest();
        let mut undo = Undo::new();
        let (layout_, name) = (layout.clone(), request.name.clone());
        undo.push("the guest's folder", move || guest::remove_folder(&layout_, &name));

        interrupt::check()?;
        let driver = env.driver(self.machine.driver);
        self.lay_out_disks(driver.as_ref(), &held.record.plan, template)?;
        laps.lap("overlay");
        let seed = self.write_seed(&mut held)?;
        laps.lap("seed");
        interrupt::check()?;

        let (again, plan) = (env.driver(self.machine.driver), held.record.plan.clone());
        undo.push("the guest at its backend", move || again.remove(&plan));
        driver.create(&held.record.plan)?;
        match template {
            Some(template) => {
                let (started, user) = warm::start(self, driver.as_ref(), &held.record, template, &seed, &mut laps)?;
                machine::note_type(&mut held.record.plan, &started);
                if let Some(user) = user.filter(|_| held.record.user == template.record.key.user) {
                    user.as_str().clone_into(&mut held.record.user);
                }
            }
            None if request.start => {
                let started = driver.start(&held.record.plan, Begin::Boot)?;
                machine::note_type(&mut held.record.plan, &started);
                for note in started.notes {
                    env.reporter.note(&note);
                }
                laps.lap("start");
            }
            None => {}
        }
        interrupt::check()?;
        held.record.phase = Phase::Ready;
        held.save()?;
        undo.commit();
        Ok(Created { record: held.record.clone(), stages: laps.stages() })
    }

    fn plan(&self, template: Option<&Template>) -> Result<GuestPlan> {
        let files = self.env.settings.layout.guest_files(&self.request.name);
        let base = self.base;
        let root = match &base.content {
            Content::Root { packing, metadata, fingerprint } => {
                Root::Files(self.machine.container(base, *packing, metadata.as_deref(), fingerprint))
            }
            Content::Disk { virtual_size, .. } => {
                let mut chain = base.layers()?;
                if let Some(template) = template {
                    chain.insert(0, Layer { path: template.files.disk(), format: DiskFormat::Qcow2 });
                }
                Root::Disk(Disk::own(files.disk(), self.machine.disk(*virtual_size), chain))
            }
        };
        if matches!(root, Root::Files(_)) && !self.request.ephemeral_disks.is_empty() {
            return Err(Error::new(Kind::Unsupported, "a container has no disks"));
        }
        let mut plan = machine::plan(self.env, &self.request.name, self.machine, base.arch, root)?;
        plan.disks.extend(
            self.request
                .ephemeral_disks
                .iter()
                .enumerate()
                .map(|(number, size)| Disk::own(files.ephemeral_disk(number), *size, Vec::new())),
        );
        plan.forwards = self.request.forwards.clone();
        plan.platform.machine.clone_from(&self.request.machine_type);
        plan.tuning = Tuning { base_in_place: base.blob.is_none(), ..self.request.tuning.clone() };
        self.plug_in(&mut plan)?;
        Ok(plan)
    }

    /// The cards as they were asked for, in place of the one that the driver likes.
    fn plug_in(&self, plan: &mut GuestPlan) -> Result<()> {
        let CreateRequest { networks, macs, .. } = self.request;
        if !networks.is_empty() {
            let nic = |network: &Network| Ok(Nic { mac: Mac::generate()?, network: network.clone() });
            plan.nics = networks.iter().map(nic).collect::<Result<_>>()?;
        }
        if macs.len() > plan.nics.len() {
            return Err(Error::usage(format!("{} addresses for {} network cards", macs.len(), plan.nics.len()))
                .hint("'--network' adds a card each time it is given"));
        }
        for (nic, mac) in plan.nics.iter_mut().zip(macs) {
            nic.mac = *mac;
        }
        let all: std::collections::BTreeSet<String> = plan.nics.iter().map(|nic| nic.mac.to_string()).collect();
        if all.len() < plan.nics.len() {
            return Err(Error::usage("two network cards cannot have one address"));
        }
        Ok(())
    }

    /// Makes the disks, unless they are the backend's own affair.
    fn lay_out_disks(&self, driver: &dyn Driver, plan: &GuestPlan, template: Option<&Template>) -> Result<()> {
        if driver.capabilities().storage == Storage::BackendPool {
            return Ok(());
        }
        let [root, extra @ ..] = plan.disks.as_slice() else {
            return Err(Error::failed("a guest needs a disk"));
        };
        let backing = match template {
            None => self.base.disk()?,
            Some(template) => disk::Backing {
                path: template.files.disk(),
                format: DiskFormat::Qcow2,
                virtual_size: template.record.key.disk.0,
            },
        };
        disk::create_overlay(&root.path, &backing, root.size)?;
        extra.iter().try_for_each(|disk| disk::create_empty(&disk.path, disk.size))
    }
}

/// A seed as it was written: what a guest that does not boot from it is told in its place.
pub(super) struct WrittenSeed {
    /// The host keys that were made for it.
    pub host_keys: Vec<seed::HostKey>,
    /// Its files, by their names.
    pub documents: Vec<(String, Vec<u8>)>,
}

/// What of the user's goes into the seed, read before anything is made.
pub(super) struct Material {
    pub user_data: Vec<seed::UserPart>,
    pub meta_data: Option<Vec<u8>>,
    pub network_config: Option<Vec<u8>>,
    pub password: Option<String>,
    pub scripts: Vec<seed::Script>,
    pub authorized: authorized::AuthorizedKeys,
}

impl Material {
    fn read(env: Env<'_>, request: &CreateRequest) -> Result<Self> {
        let mut user_data = Vec::new();
        for path in &request.user_data {
            user_data.push(seed::UserPart { name: file_name(path), bytes: read(path, "--user-data")? });
        }
        let mut scripts = Vec::new();
        for path in &request.scripts {
            let mut bytes = read(path, "--run-script-once")?;
            if request.scripts_are_shell && !bytes.starts_with(b"#!") {
                bytes.splice(0..0, *b"#!/bin/sh\n");
            }
            scripts.push(seed::Script { name: file_name(path), bytes });
        }
        let settings = env.settings;
        let authorized = authorized::collect(&Sources {
            files: &request.ssh_public_key_files,
            agent: settings.agent_socket.as_deref(),
            home: settings.user_home.as_deref(),
            own: &settings.layout.own_key(),
        })?;
        for note in &authorized.notes {
            env.reporter.warn(note);
        }
        if let authorized::Origin::Own { path, .. } = &authorized.origin
            && request.life == Life::Kept
        {
            env.reporter.note(&format!("{}: using virga's own, {}", authorized.none(), path.display()));
        }
        Ok(Material {
            user_data,
            meta_data: request.meta_data.as_deref().map(|path| read(path, "--meta-data")).transpose()?,
            network_config: request.network_config.as_deref().map(|path| read(path, "--network-config")).transpose()?,
            password: request.password.as_ref().map(Password::hashed).transpose()?,
            scripts,
            authorized,
        })
    }
}

fn read(path: &Path, option: &'static str) -> Result<Vec<u8>> {
    given::read(path, SEED_FILE_LIMIT, option)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Job<'_> {
    /// Makes the host keys and the seed, writes seed and `known_hosts`, and notes in the record how to get in.
    fn write_seed(&self, held: &mut Held) -> Result<WrittenSeed> {
        let Job { env, request, material, .. } = *self;
        let plan = &held.record.plan;
        let host_keys = identity::host_keys(&plan.name)?;
        let user = request.user.as_deref().or_else(|| machine::image_user(&held.record.origin.keys));
        let mut user_data = material.user_data.clone();
        if user.is_none() {
            // Least of all parts: what the user's own say of users wins.
            user_data.insert(0, seed::user_part(machine::GIVEN_USER));
        }
        let seed: Seed = seed::build(&SeedRequest {
            name: plan.name.clone(),
            instance_id: plan.id.clone(),
            macs: plan.nics.iter().map(|nic| nic.mac).collect(),
            cards_have_names: plan.container.is_some(),
            host_keys: host_keys.clone(),
            authorized_keys: material.authorized.keys.clone(),
            password: material.password.clone(),
            packages: request.packages.clone(),
            run_scripts_once: material.scripts.clone(),
            user_data,
            meta_data: material.meta_data.clone(),
            network_config: material.network_config.clone(),
        })?;
        for warning in &seed.warnings {
            env.reporter.warn(warning);
        }
        identity::write(&env.settings.layout, plan, &seed)?;

        let user = request.user.clone().or(seed.login_user).or_else(|| user.map(str::to_owned));
        held.record.user = user.unwrap_or_else(|| machine::GIVEN_USER.to_owned());
        held.record.instance = seed.instance;
        identity::grant(&env.settings.layout, &mut held.record, &material.authorized)?;
        held.record.plan.host_keys = seed.host_public_keys;
        Ok(WrittenSeed { host_keys, documents: seed.files })
    }
}
