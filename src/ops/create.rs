//! Making a guest: resolve the image, take the name, lay out disks and seed,
//! hand the finished plan to the driver, start it.
//!
//! Every step pushes its undo; an error or Ctrl-C runs them backwards. A
//! SIGKILL leaves a named, half-made guest that `list` shows and `destroy`
//! removes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Env, images};
use crate::base::plan::{Accel, Disk, DiskFormat, DriverKind, Forward, InstanceId, Layer, Mac};
use crate::base::undo::Undo;
use crate::base::{Arch, ByteSize, Digest, Error, GuestName, GuestPlan, ImageId, Kind, Result, fs, interrupt};
use crate::disk;
use crate::driver::{Boots, Driver, Level, ProbeDepth};
use crate::guest::{self, Held, Origin, Phase, Record};
use crate::pool::Pool;
use crate::seed::{self, Seed, SeedRequest};
use crate::ssh::authorized::{self, Sources};
use crate::ssh::{keys, known_hosts};

/// Most bytes read of one file that goes into the seed.
const SEED_FILE_LIMIT: u64 = 16 << 20;

/// Which image a guest is made of.
#[derive(Clone, Debug)]
pub enum From {
    /// The newest in the pool that matches these filters, or the one with this id.
    Pool(Vec<String>),
    /// A file, taken into the pool by its content.
    File(PathBuf),
}

/// What a guest is to be like. `None` means: as the settings say.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Its name.
    pub name: GuestName,
    /// Its image.
    pub from: From,
    /// What runs it.
    pub driver: Option<DriverKind>,
    /// How its instructions are run.
    pub accel: Option<Accel>,
    /// Its memory.
    pub memory: Option<ByteSize>,
    /// Its processors.
    pub cpus: Option<u32>,
    /// Its first disk.
    pub disk: Option<ByteSize>,
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

/// Makes the guest and, unless told otherwise, starts it. Does not wait until
/// it answers. Nothing is left when it fails.
///
/// # Errors
/// [`Kind::Exists`] for a name that is taken, [`Kind::NotFound`] without such
/// an image, [`Kind::Usage`] for a request that cannot be met,
/// [`Kind::Refused`] for a hostile image file, [`Kind::Unavailable`] without a backend.
pub fn create(env: Env<'_>, request: &CreateRequest) -> Result<Record> {
    let kind = request.driver.unwrap_or(env.settings.defaults.driver);
    let driver = env.driver(kind);
    usable(driver.as_ref())?;
    let layout = &env.settings.layout;
    if guest::exists(layout, &request.name) {
        // Before an image file is copied for nothing; `reserve` decides for good.
        return Err(guest::taken(layout, &request.name));
    }
    let size = MachineSize::of(env, request)?;
    let material = Material::read(env, request)?;

    let pool = env.pool()?;
    // Held until the guest's record names the blob: prune waits for that.
    let pool_lock = pool.lock_shared()?;
    let base = Base::find(env, &pool, request)?;
    let plan = plan(env, request, size, &base)?;
    let origin = Origin { image: base.image.clone(), blob: base.blob.clone(), keys: base.keys.clone() };

    // In this order: what is undone is undone while the guest is still held.
    let mut held = guest::reserve(layout, Record::new(kind, origin, plan))?;
    let mut undo = Undo::new();
    drop(pool_lock);
    let (layout_, name) = (layout.clone(), request.name.clone());
    undo.push("the guest's folder", move || guest::remove_folder(&layout_, &name));

    interrupt::check()?;
    lay_out_disks(env, &held.record.plan, &base, request)?;
    write_seed(env, request, material, &mut held)?;
    interrupt::check()?;

    let (again, plan) = (env.driver(kind), held.record.plan.clone());
    undo.push("the guest at its backend", move || again.remove(&plan));
    driver.create(&held.record.plan)?;
    if request.start {
        for note in driver.start(&held.record.plan)?.notes {
            env.reporter.note(&note);
        }
    }
    interrupt::check()?;
    held.record.phase = Phase::Ready;
    held.save()?;
    undo.commit();
    Ok(held.record.clone())
}

/// Fails before any work when the backend cannot be used at all.
fn usable(driver: &dyn Driver) -> Result<()> {
    let worst = driver.probe(ProbeDepth::Quick).into_iter().find(|finding| finding.level == Level::Error);
    if let Some(finding) = worst {
        let error = Error::unavailable(finding.detail);
        return Err(match finding.hint {
            Some(hint) => error.hint(hint),
            None => error.hint("'virga doctor' looks at everything"),
        });
    }
    if !driver.capabilities().boots.contains(&Boots::DiskImage) {
        return Err(Error::new(Kind::Unsupported, "this driver does not boot disk images"));
    }
    Ok(())
}

/// The blob that the guest's disk stands on.
struct Base {
    image: Option<ImageId>,
    blob: Digest,
    path: PathBuf,
    format: DiskFormat,
    virtual_size: u64,
    arch: Arch,
    keys: BTreeMap<String, String>,
}

impl Base {
    fn find(env: Env<'_>, pool: &Pool, request: &CreateRequest) -> Result<Self> {
        match &request.from {
            From::Pool(filters) => Self::from_pool(pool, filters),
            From::File(file) => Self::from_file(env, pool, file, request.disk),
        }
    }

    fn from_pool(pool: &Pool, filters: &[String]) -> Result<Self> {
        let record = images::resolve(pool, filters)?;
        if !pool.has_blob(&record.blob) {
            return Err(Error::not_found(format!("the content of image {} is missing from the pool", record.id))
                .hint("fetch it again with 'virga sync'"));
        }
        let Some(disk) = record.disk else {
            let ftype = crate::base::name::quoted(record.key("ftype"));
            return Err(Error::usage(format!("image {} is no disk image but {ftype}", record.id))
                .hint("'virga images' shows which images have a disk"));
        };
        let arch = record.key("arch");
        Ok(Base {
            path: pool.blob_path(&record.blob),
            arch: if arch.is_empty() { Arch::host() } else { arch.parse()? },
            image: Some(record.id),
            blob: record.blob,
            format: disk.format,
            virtual_size: disk.virtual_size,
            keys: record.keys,
        })
    }

    fn from_file(env: Env<'_>, pool: &Pool, file: &Path, disk_size: Option<ByteSize>) -> Result<Self> {
        // Looked at before it is copied, and again after: the file could have changed.
        let facts = disk::inspect(file, None)?;
        if disk_size.is_some_and(|size| size.0 < facts.virtual_size) {
            let needed = ByteSize(facts.virtual_size);
            return Err(Error::usage(format!("the disk is smaller than the image's {needed}"))
                .hint(format!("give --disk {}M or more, or leave it out", needed.0.div_ceil(ByteSize::MIB))));
        }
        let transfer = env.reporter.transfer(&file.display().to_string(), None);
        let blob = pool.import(file, transfer.as_ref())?;
        let path = pool.blob_path(&blob);
        let facts = disk::inspect(&path, None)?;
        let keys = BTreeMap::from([("file".to_owned(), file.display().to_string())]);
        Ok(Base {
            image: None,
            path,
            format: facts.format,
            virtual_size: facts.virtual_size,
            arch: Arch::host(),
            blob,
            keys,
        })
    }
}

/// Distributions whose cloud images name their user after themselves.
const NAMED_AFTER_ITSELF: [&str; 6] = ["ubuntu", "debian", "fedora", "almalinux", "rocky", "centos"];

/// The default user's name in images of which nobody says what they are: the seed gives it.
const GIVEN_USER: &str = "virga";

/// The user that the image's own cloud-init set-up makes, where the stream says which image it is.
fn image_user(keys: &BTreeMap<String, String>) -> Option<&'static str> {
    let os = keys.get("os")?;
    NAMED_AFTER_ITSELF.into_iter().find(|name| os == name)
}

/// Memory and processors, looked at before any work.
struct MachineSize {
    memory: ByteSize,
    cpus: u32,
}

impl MachineSize {
    fn of(env: Env<'_>, request: &CreateRequest) -> Result<Self> {
        let defaults = &env.settings.defaults;
        let memory = request.memory.unwrap_or(defaults.memory);
        if !memory.0.is_multiple_of(ByteSize::MIB) || memory.0 < 64 * ByteSize::MIB {
            return Err(Error::usage(format!("a guest cannot have {memory} of memory"))
                .hint("give a whole number of MiB, at least 64M"));
        }
        let cpus = request.cpus.unwrap_or(defaults.cpus);
        if !(1..=255).contains(&cpus) {
            return Err(Error::usage(format!("a guest cannot have {cpus} processors")));
        }
        Ok(MachineSize { memory, cpus })
    }
}

fn plan(env: Env<'_>, request: &CreateRequest, size: MachineSize, base: &Base) -> Result<GuestPlan> {
    let defaults = &env.settings.defaults;
    let files = env.settings.layout.guest_files(&request.name);
    let id = InstanceId::generate()?;
    let root = Disk {
        path: files.disk(),
        format: DiskFormat::Qcow2,
        chain: vec![Layer { path: base.path.clone(), format: base.format }],
    };
    let extra = (0..request.ephemeral_disks.len()).map(|number| Disk {
        path: files.ephemeral_disk(number),
        format: DiskFormat::Qcow2,
        chain: Vec::new(),
    });
    Ok(GuestPlan {
        name: request.name.clone(),
        arch: base.arch,
        memory: size.memory,
        cpus: size.cpus,
        accel: request.accel.unwrap_or(defaults.accel),
        disks: std::iter::once(root).chain(extra).collect(),
        seed: Some(files.seed()),
        mac: Mac::generate()?,
        forwards: request.forwards.clone(),
        console_log: files.console_log(),
        backend_log: files.backend_log(),
        runtime: env.settings.layout.runtime(id.short()),
        id,
    })
}

fn lay_out_disks(env: Env<'_>, plan: &GuestPlan, base: &Base, request: &CreateRequest) -> Result<()> {
    let [root, extra @ ..] = plan.disks.as_slice() else {
        return Err(Error::failed("a guest needs a disk"));
    };
    // Without a wish of the user's, an image that is larger than the default keeps its size.
    let size = request.disk.map_or(base.virtual_size.max(env.settings.defaults.disk.0), |size| size.0);
    let backing = disk::Backing { path: base.path.clone(), format: base.format, virtual_size: base.virtual_size };
    disk::create_overlay(&root.path, &backing, ByteSize(size))?;
    for (disk, size) in extra.iter().zip(&request.ephemeral_disks) {
        disk::create_empty(&disk.path, *size)?;
    }
    Ok(())
}

/// What of the user's goes into the seed, read before anything is made.
struct Material {
    user_data: Vec<seed::UserPart>,
    meta_data: Option<Vec<u8>>,
    network_config: Option<Vec<u8>>,
    scripts: Vec<seed::Script>,
    authorized: authorized::AuthorizedKeys,
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

/// Makes the host keys and the seed, writes seed and `known_hosts`, and notes in the record how to get in.
fn write_seed(env: Env<'_>, request: &CreateRequest, material: Material, held: &mut Held) -> Result<()> {
    let plan = &held.record.plan;
    let host_keys = keys::HostKeys::generate(&format!("root@{}", plan.name))?;
    let user = request.user.as_deref().or_else(|| image_user(&held.record.origin.keys));
    let mut user_data = material.user_data;
    if user.is_none() {
        // Least of all parts: what the user's own say of users wins.
        let text = format!("#cloud-config\nuser:\n  name: {GIVEN_USER}\n");
        user_data.insert(0, seed::UserPart { name: "user".into(), bytes: text.into_bytes() });
    }
    let seed: Seed = seed::build(&SeedRequest {
        name: plan.name.clone(),
        instance_id: plan.id.clone(),
        mac: plan.mac,
        host_keys: [(seed::HostKeyKind::Ed25519, host_keys.ed25519), (seed::HostKeyKind::Ecdsa, host_keys.ecdsa)]
            .map(|(kind, pair)| seed::HostKey { kind, private_openssh: pair.private, public_openssh: pair.public })
            .to_vec(),
        authorized_keys: material.authorized.keys,
        password: request.password.clone(),
        packages: request.packages.clone(),
        run_scripts_once: material.scripts,
        user_data,
        meta_data: material.meta_data,
        network_config: material.network_config,
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
    held.record.user = user.unwrap_or_else(|| GIVEN_USER.to_owned());
    held.record.identities = material.authorized.identities;
    held.record.host_keys = seed.host_public_keys;
    Ok(())
}
