//! Making a guest: resolve the image, take the name, lay out disks and seed,
//! hand the finished plan to the driver, start it.
//!
//! Every step pushes its undo; an error or Ctrl-C runs them backwards. A
//! SIGKILL leaves a named, half-made guest that `list` shows and `destroy`
//! removes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::machine::{self, Base, Machine};
use super::{Env, warm};
use crate::base::plan::{Disk, DiskFormat, Forward, Layer};
use crate::base::poll::Laps;
use crate::base::undo::Undo;
use crate::base::{ByteSize, Error, GuestName, GuestPlan, Kind, Result, fs, interrupt};
use crate::disk;
use crate::driver::Begin;
use crate::guest::{self, Held, Phase, Record};
use crate::seed::{self, Seed, SeedRequest};
use crate::ssh::authorized::{self, Sources};
use crate::ssh::{keys, known_hosts};
use crate::template::Template;

pub use super::machine::{From, MachineRequest};

/// Most bytes read of one file that goes into the seed.
const SEED_FILE_LIMIT: u64 = 16 << 20;

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
    /// Ports made reachable on the host's loopback, besides SSH.
    pub forwards: Vec<Forward>,
    /// The user's own user-data, merged with ours.
    pub user_data: Vec<PathBuf>,
    /// The user's own meta-data.
    pub meta_data: Option<PathBuf>,
    /// The user's own network-config.
    pub network_config: Option<PathBuf>,
    /// Password of the guest's user.
    pub password: Option<String>,
    /// Packages that cloud-init installs.
    pub packages: Vec<String>,
    /// Scripts that cloud-init runs once.
    pub scripts: Vec<PathBuf>,
    /// Files with the public keys that get in; empty: the agent's, else `~/.ssh/id_*.pub`, else a key of our own.
    pub ssh_public_key_files: Vec<PathBuf>,
    /// The user to log in as; `None`: the image's.
    pub user: Option<String>,
    /// Whether to start it.
    pub start: bool,
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
    machine::usable(env.driver(machine.driver).as_ref())?;
    let layout = &env.settings.layout;
    if guest::exists(layout, &request.name) {
        // Before an image file is copied for nothing; `reserve` decides for good.
        return Err(guest::taken(layout, &request.name));
    }
    let material = Material::read(env, request)?;
    let pool = env.pool()?;
    // Held until the guest's record names the blob: prune waits for that.
    let _pool_lock = pool.lock_shared()?;
    let base = Base::find(env, &pool, &request.machine)?;
    let job = Job { env, request, machine: &machine, base: &base, material: &material };
    if request.warm
        && let Some(template) = warm::template(&job)?
    {
        match job.make(Some(&template)) {
            // Nothing of it is left: what can be had is a cold start.
            Err(error) if !matches!(error.kind(), Kind::Interrupted | Kind::Exists) => warm::give_up(env, &error),
            made => return made,
        }
    }
    job.make(None)
}

/// All that is needed to make the guest.
pub(super) struct Job<'a> {
    pub env: Env<'a>,
    pub request: &'a CreateRequest,
    pub machine: &'a Machine,
    pub base: &'a Base,
    pub material: &'a Material,
}

impl Job<'_> {
    /// Makes it, from the template or from the image. Nothing is left when it fails.
    fn make(&self, template: Option<&Template>) -> Result<Created> {
        let Job { env, request, base, .. } = *self;
        let layout = &env.settings.layout;
        let mut laps = Laps::begin();
        let plan = self.plan(template)?;
        let mut origin = base.origin();
        origin.template = template.map(|template| template.id.clone());
        // In this order: what is undone is undone while the guest is still held.
        let mut held = guest::reserve(layout, Record::new(self.machine.driver, origin, plan))?;
        let mut undo = Undo::new();
        let (layout_, name) = (layout.clone(), request.name.clone());
        undo.push("the guest's folder", move || guest::remove_folder(&layout_, &name));

        interrupt::check()?;
        self.lay_out_disks(&held.record.plan, template)?;
        laps.lap("overlay");
        let keys = self.write_seed(&mut held)?;
        laps.lap("seed");
        interrupt::check()?;

        let driver = env.driver(self.machine.driver);
        let (again, plan) = (env.driver(self.machine.driver), held.record.plan.clone());
        undo.push("the guest at its backend", move || again.remove(&plan));
        driver.create(&held.record.plan)?;
        match template {
            Some(template) => warm::start(self, driver.as_ref(), &held.record, template, &keys, &mut laps)?,
            None if request.start => {
                for note in driver.start(&held.record.plan, Begin::Boot)?.notes {
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
        let mut chain = self.base.layers();
        if let Some(template) = template {
            chain.insert(0, Layer { path: template.files.disk(), format: DiskFormat::Qcow2 });
        }
        let base = self.base;
        let mut plan = machine::plan(self.env, &self.request.name, self.machine, base.arch, files.disk(), chain)?;
        plan.disks.extend((0..self.request.ephemeral_disks.len()).map(|number| Disk {
            path: files.ephemeral_disk(number),
            format: DiskFormat::Qcow2,
            chain: Vec::new(),
        }));
        plan.forwards = self.request.forwards.clone();
        Ok(plan)
    }

    fn lay_out_disks(&self, plan: &GuestPlan, template: Option<&Template>) -> Result<()> {
        let [root, extra @ ..] = plan.disks.as_slice() else {
            return Err(Error::failed("a guest needs a disk"));
        };
        let size = self.machine.disk(self.base);
        let backing = match template {
            None => self.base.backing(),
            Some(template) => disk::Backing {
                path: template.files.disk(),
                format: DiskFormat::Qcow2,
                virtual_size: template.record.key.disk.0,
            },
        };
        disk::create_overlay(&root.path, &backing, size)?;
        for (disk, size) in extra.iter().zip(&self.request.ephemeral_disks) {
            disk::create_empty(&disk.path, *size)?;
        }
        Ok(())
    }
}

/// What of the user's goes into the seed, read before anything is made.
pub(super) struct Material {
    pub user_data: Vec<seed::UserPart>,
    pub meta_data: Option<Vec<u8>>,
    pub network_config: Option<Vec<u8>>,
    pub scripts: Vec<seed::Script>,
    pub authorized: authorized::AuthorizedKeys,
}

impl Material {
    fn read(env: Env<'_>, request: &CreateRequest) -> Result<Self> {
        let mut user_data = Vec::new();
        for path in &request.user_data {
            user_data.push(seed::UserPart { name: file_name(path), bytes: read(path)? });
        }
        let mut scripts = Vec::new();
        for path in &request.scripts {
            scripts.push(seed::Script { name: file_name(path), bytes: read(path)? });
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
        if let authorized::Origin::Own { path, .. } = &authorized.origin {
            env.reporter.note(&format!("no SSH key of yours was found: using virga's own, {}", path.display()));
        }
        Ok(Material {
            user_data,
            meta_data: request.meta_data.as_deref().map(read).transpose()?,
            network_config: request.network_config.as_deref().map(read).transpose()?,
            scripts,
            authorized,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path, SEED_FILE_LIMIT).map_err(|error| error.with_kind(Kind::Usage))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Job<'_> {
    /// Makes the host keys and the seed, writes seed and `known_hosts`, and notes in the record how to get in.
    fn write_seed(&self, held: &mut Held) -> Result<Vec<seed::HostKey>> {
        let Job { env, request, material, .. } = *self;
        let plan = &held.record.plan;
        let host_keys = keys::HostKeys::generate(&format!("root@{}", plan.name))?;
        let host_keys = [(seed::HostKeyKind::Ed25519, host_keys.ed25519), (seed::HostKeyKind::Ecdsa, host_keys.ecdsa)]
            .map(|(kind, pair)| seed::HostKey { kind, private_openssh: pair.private, public_openssh: pair.public })
            .to_vec();
        let user = request.user.as_deref().or_else(|| machine::image_user(&held.record.origin.keys));
        let mut user_data = material.user_data.clone();
        if user.is_none() {
            // Least of all parts: what the user's own say of users wins.
            user_data.insert(0, seed::user_part(machine::GIVEN_USER));
        }
        let seed: Seed = seed::build(&SeedRequest {
            name: plan.name.clone(),
            instance_id: plan.id.clone(),
            mac: plan.mac,
            host_keys: host_keys.clone(),
            authorized_keys: material.authorized.keys.clone(),
            password: request.password.clone(),
            packages: request.packages.clone(),
            run_scripts_once: material.scripts.clone(),
            user_data,
            meta_data: material.meta_data.clone(),
            network_config: material.network_config.clone(),
        })?;
        for warning in &seed.warnings {
            env.reporter.warn(warning);
        }
        let files = env.settings.layout.guest_files(&plan.name);
        fs::write_new(&files.seed(), &seed.to_iso()?, 0o600)?;
        let public: Vec<&str> = seed.host_public_keys.iter().map(String::as_str).collect();
        let known = known_hosts::lines(&known_hosts::alias(&plan.name), &public)?;
        fs::write_new(&files.known_hosts(), known.as_bytes(), 0o600)?;

        let user = request.user.clone().or(seed.login_user).or_else(|| user.map(str::to_owned));
        held.record.user = user.unwrap_or_else(|| machine::GIVEN_USER.to_owned());
        held.record.identities = material.authorized.identities.clone();
        held.record.host_keys = seed.host_public_keys;
        Ok(host_keys)
    }
}
