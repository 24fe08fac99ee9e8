//! What a guest is made of: the image, the machine, and the plan of both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Env, images};
use crate::base::plan::{Accel, Disk, DiskFormat, DriverKind, InstanceId, Layer, Mac};
use crate::base::{Arch, ByteSize, Digest, Error, GuestName, GuestPlan, ImageId, Kind, Result};
use crate::disk;
use crate::driver::{Boots, Driver, Level, ProbeDepth};
use crate::guest::Origin;
use crate::pool::Pool;

/// Which image a guest is made of.
#[derive(Clone, Debug)]
pub enum From {
    /// The newest in the pool that matches these filters, or the one with this id.
    Pool(Vec<String>),
    /// A file, taken into the pool by its content.
    File(PathBuf),
}

/// The machine that is wanted. `None` means: as the settings say.
#[derive(Clone, Debug)]
pub struct MachineRequest {
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
}

/// Fails before any work when the backend cannot be used at all.
pub(super) fn usable(driver: &dyn Driver) -> Result<()> {
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
pub(super) struct Base {
    pub image: Option<ImageId>,
    pub blob: Digest,
    pub path: PathBuf,
    pub format: DiskFormat,
    pub virtual_size: u64,
    pub arch: Arch,
    pub keys: BTreeMap<String, String>,
}

impl Base {
    pub fn origin(&self) -> Origin {
        Origin { image: self.image.clone(), blob: self.blob.clone(), keys: self.keys.clone(), template: None }
    }

    /// It as the lowest layer of a disk.
    pub fn layers(&self) -> Vec<Layer> {
        vec![Layer { path: self.path.clone(), format: self.format }]
    }

    /// As a qcow2 file wants to know it.
    pub fn backing(&self) -> disk::Backing {
        disk::Backing { path: self.path.clone(), format: self.format, virtual_size: self.virtual_size }
    }

    pub fn find(env: Env<'_>, pool: &Pool, request: &MachineRequest) -> Result<Self> {
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
pub(super) const GIVEN_USER: &str = "virga";

/// The user that the image's own cloud-init set-up makes, where the stream says which image it is.
pub(super) fn image_user(keys: &BTreeMap<String, String>) -> Option<&'static str> {
    let os = keys.get("os")?;
    NAMED_AFTER_ITSELF.into_iter().find(|name| os == name)
}

/// The machine with every default filled in, looked at before any work.
pub(super) struct Machine {
    pub driver: DriverKind,
    pub accel: Accel,
    pub memory: ByteSize,
    pub cpus: u32,
    disk: Option<ByteSize>,
    least_disk: ByteSize,
}

impl Machine {
    /// # Errors
    /// [`Kind::Usage`] for a machine that cannot be.
    pub fn of(env: Env<'_>, request: &MachineRequest) -> Result<Self> {
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
        Ok(Machine {
            driver: request.driver.unwrap_or(defaults.driver),
            accel: request.accel.unwrap_or(defaults.accel),
            memory,
            cpus,
            disk: request.disk,
            least_disk: defaults.disk,
        })
    }

    /// The size of the first disk. Without a wish of the user's, an image that is larger than the default keeps its size.
    pub fn disk(&self, base: &Base) -> ByteSize {
        self.disk.unwrap_or(ByteSize(base.virtual_size.max(self.least_disk.0)))
    }
}

/// The plan of a guest with one disk, which is at `path` over `chain`.
///
/// # Errors
/// When the system has no random numbers to give.
pub(super) fn plan(
    env: Env<'_>,
    name: &GuestName,
    machine: &Machine,
    arch: Arch,
    path: PathBuf,
    chain: Vec<Layer>,
) -> Result<GuestPlan> {
    let files = env.settings.layout.guest_files(name);
    let id = InstanceId::generate()?;
    let root = Disk { path, format: DiskFormat::Qcow2, chain };
    Ok(GuestPlan {
        name: name.clone(),
        arch,
        memory: machine.memory,
        cpus: machine.cpus,
        accel: machine.accel,
        disks: vec![root],
        seed: Some(files.seed()),
        mac: Mac::generate()?,
        forwards: Vec::new(),
        console_log: files.console_log(),
        backend_log: files.backend_log(),
        runtime: env.settings.layout.runtime(id.short()),
        id,
    })
}
