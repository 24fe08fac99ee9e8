//! Disks as volumes of one of libvirt's pools, by libvirt's own calls: the
//! same here and elsewhere, for root and for users.
//!
//! | volume | what it is |
//! |---|---|
//! | `virga-<sha256>.qcow2`, `.raw` | an image's blob, brought once, shared by all guests made of it |
//! | `<guest>.<id>.disk.qcow2` | the overlay over it |
//! | `<guest>.<id>.ephemeral-<n>.qcow2` | a further disk |
//! | `<guest>.<id>.seed.img` | the cloud-init seed |
//! | `<guest>.<id>.firmware-vars` | a UEFI firmware's variables, by libvirt itself |
//!
//! A guest's id, of which the first eight digits stand there, is random: no
//! volume of anybody else's has these names, so none of theirs is ever taken
//! for ours. In the pool `uvtool` they have the names that uvtool gives them.

mod bring;
mod change;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{panic, thread};

use virt::enumutil::Enum;
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::sys;

use self::bring::physical;
use super::connection::{Connection, doing, explain, found};
use super::xml::{Element, element};
use crate::base::plan::{Daemon, Disk, DiskFormat, Layer};
use crate::base::platform::Firmware;
use crate::base::poll::{self, Deadline};
use crate::base::{ByteSize, Error, GuestName, GuestPlan, Kind, Result, fs};

/// For a volume that is being allocated for a command that was killed, or written to by another one.
const ALLOCATING: Duration = Duration::from_secs(60);

/// The pool that is ours unless the user names another.
pub(super) const POOL: &str = "virga";

/// uvtool's pool, in which we name volumes as it does.
pub(super) const UVTOOL: &str = "uvtool";

/// What we name blobs by: their digest comes behind it.
const BLOB: &str = "virga-";

/// A disk, as the domain names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Its file on the daemon's host, and its format.
    pub top: Layer,
    /// What is beneath it.
    pub chain: Vec<Layer>,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl Placed {
    /// A disk with nothing beneath it.
    pub(super) fn alone(path: PathBuf, format: DiskFormat) -> Self {
        Placed { top: Layer { path, format }, chain: Vec::new(), read_only: false }
    }

    /// As it is, for reading alone or not.
    pub(super) fn read_only(self, read_only: bool) -> Self {
        Placed { read_only, ..self }
    }
}

/// A guest's disks and its seed on the daemon's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub disks: Vec<Placed>,
    pub seed: Option<PathBuf>,
    /// What a UEFI firmware keeps. libvirt makes and removes it; beside the disks, because its own name for it is the
    /// guest's, which may change.
    pub variables: Option<PathBuf>,
}

/// One pool at one daemon.
pub(super) struct Storage<'a> {
    /// The connection to the daemon.
    pub connection: &'a Connection,
    daemon: &'a Daemon,
    /// The pool's folder, once it was looked at.
    folder: OnceLock<PathBuf>,
}

impl<'a> Storage<'a> {
    pub(super) fn new(connection: &'a Connection, daemon: &'a Daemon) -> Self {
        Storage { connection, daemon, folder: OnceLock::new() }
    }

    /// The pool, started; ours is made where there is none.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a pool of the user's that is not there.
    pub(super) fn pool(&self) -> Result<Arc<StoragePool>> {
        let name = &self.daemon.pool;
        if let Some(pool) = self.connection.kept(name) {
            return Ok(pool);
        }
        let pool = match self.find()? {
            Some(pool) => pool,
            None if name == POOL => self.define()?,
            None => {
                return Err(Error::not_found(format!("libvirt at '{}' has no storage pool '{name}'", self.daemon.uri))
                    .hint(format!("define it with 'virsh -c {} pool-define-as {name} dir ...'", self.daemon.uri)));
            }
        };
        if !pool.is_active().map_err(doing(format!("looking at the storage pool '{name}'")))? {
            // Another command may start it right now.
            let started = pool.create(sys::VIR_STORAGE_POOL_CREATE_WITH_BUILD);
            if let Err(error) = started
                && !pool.is_active().unwrap_or(false)
            {
                return Err(explain(&error, format!("starting the storage pool '{name}'")));
            }
        }
        Ok(self.connection.keep(name, pool))
    }

    /// Whether there is such a pool, running or not.
    pub(super) fn exists(&self) -> Result<bool> {
        Ok(self.connection.kept(&self.daemon.pool).is_some() || self.find()?.is_some())
    }

    fn find(&self) -> Result<Option<StoragePool>> {
        let name = &self.daemon.pool;
        found(self.connection.lookup_storage_pool_by_name(name), || format!("looking for the storage pool '{name}'"))
    }

    fn define(&self) -> Result<StoragePool> {
        let target = self.target()?;
        let permissions = element("permissions").has(element("mode").text("0711"));
        let document = element("pool")
            .with("type", "dir")
            .has(element("name").text(POOL))
            .has(element("target").has(element("path").text(target)).has(permissions))
            .document()?;
        let defined = self.connection.define_storage_pool_xml(&document, 0);
        let pool = match defined {
            Ok(pool) => pool,
            // Another command was quicker.
            Err(error) => match self.find()? {
                Some(pool) => return Ok(pool),
                None => return Err(explain(&error, format!("defining the storage pool '{POOL}'"))),
            },
        };
        pool.set_autostart(true).map_err(doing("making the storage pool start by itself"))?;
        Ok(pool)
    }

    /// Where libvirt keeps such things: beside its own default pool's, so that what confines guests lets them in.
    fn target(&self) -> Result<String> {
        match self.daemon.uri.split(['?', '#']).next().unwrap_or_default().rsplit_once('/') {
            Some((_, "system")) => Ok("/var/lib/libvirt/images/virga".into()),
            Some(("qemu://", "session")) => {
                let data = etcetera::base_strategy::choose_base_strategy()
                    .map_err(|error| Error::failed("finding the home folder").because(error))?;
                let path = etcetera::BaseStrategy::data_dir(&data).join("libvirt/images/virga");
                path.to_str().map(str::to_owned).ok_or_else(|| Error::usage("the home folder's path is not UTF-8"))
            }
            _ => Err(Error::usage(format!("where '{}' keeps disks is not known", self.daemon.uri)).hint(format!(
                "make a pool there and name it: virsh -c {} pool-define-as {POOL} dir --target FOLDER",
                self.daemon.uri
            ))),
        }
    }

    /// Makes all volumes of the guest.
    ///
    /// # Errors
    /// [`Kind::Exists`] for a volume of the guest's that is somebody else's; what libvirt said.
    pub(super) fn lay_out(&self, plan: &GuestPlan) -> Result<()> {
        let pool = self.pool()?;
        let bring = || {
            let layers = plan.disks.iter().flat_map(|disk| disk.chain.iter().rev());
            layers.filter(|_| !plan.tuning.base_in_place).try_for_each(|layer| self.bring(&pool, layer))
        };
        bring()?;
        // The daemon runs a program for each overlay: the seed goes there meanwhile.
        thread::scope(|scope| {
            let seed = scope.spawn(|| self.lay_out_seed(&pool, plan));
            let disks = self.lay_out_disks(&pool, plan, &bring);
            disks.and(seed.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
        })
    }

    fn lay_out_disks(&self, pool: &StoragePool, plan: &GuestPlan, bring: &dyn Fn() -> Result<()>) -> Result<()> {
        let places = self.places(pool, plan)?;
        for (disk, placed) in plan.disks.iter().zip(&places.disks).filter(|(disk, _)| !disk.kept) {
            let made = match self.overlay(pool, disk, placed) {
                Err(error) if error.kind() != Kind::Exists => {
                    // Another state folder's prune may have removed an image that nothing stood on yet.
                    bring()?;
                    self.overlay(pool, disk, placed)
                }
                made => made,
            };
            made?;
        }
        Ok(())
    }

    /// Makes the volume of the guest's seed; one that is there is made anew.
    ///
    /// # Errors
    /// What libvirt said.
    pub(super) fn lay_out_seed(&self, pool: &StoragePool, plan: &GuestPlan) -> Result<()> {
        let Some(seed) = &plan.seed else { return Ok(()) };
        let bytes = fs::read(seed, 1 << 30)?;
        let name = self.seed_name(plan);
        let document = volume(&name, bytes.len() as u64, DiskFormat::Raw, None);
        let volume = match self.create(pool, &document) {
            Err(error) if error.kind() == Kind::Exists => {
                self.delete(pool, &[name])?;
                self.create(pool, &document)?
            }
            made => made?,
        };
        // Also for one that undoes something because of Ctrl-C.
        self.upload(&volume, &mut bytes.as_slice(), bytes.len() as u64, || Ok(()))
    }

    /// The volumes that are the guest's disks.
    fn disk_names(&self, plan: &GuestPlan) -> Result<Vec<String>> {
        plan.disks.iter().filter(|disk| !disk.kept).map(|disk| self.disk_name(plan, disk)).collect()
    }

    fn folder(&self, pool: &StoragePool) -> Result<&Path> {
        match self.folder.get() {
            Some(folder) => Ok(folder),
            None => folder(pool).map(|folder| self.folder.get_or_init(|| folder).as_path()),
        }
    }

    /// Where the guest's disks are, or would be. Asks for the pool's folder alone.
    ///
    /// # Errors
    /// What libvirt said.
    pub(super) fn places(&self, pool: &StoragePool, plan: &GuestPlan) -> Result<Places> {
        let folder = self.folder(pool)?;
        let disk = |disk: &Disk| {
            if disk.kept {
                return Ok(Placed::alone(disk.path.clone(), disk.format).read_only(disk.read_only));
            }
            let chain = match plan.tuning.base_in_place {
                true => disk.chain.clone(),
                false => disk.chain.iter().map(|layer| self.layer(folder, layer)).collect::<Result<Vec<Layer>>>()?,
            };
            let path = folder.join(self.disk_name(plan, disk)?);
            Ok(Placed { top: Layer { path, format: disk.format }, chain, read_only: disk.read_only })
        };
        Ok(Places {
            disks: plan.disks.iter().map(disk).collect::<Result<_>>()?,
            seed: plan.seed.as_ref().map(|_| folder.join(self.seed_name(plan))),
            variables: variables_name(plan).map(|name| folder.join(name)),
        })
    }

    /// Named as its file would be: another disk that goes does not change it.
    fn disk_name(&self, plan: &GuestPlan, disk: &Disk) -> Result<String> {
        let (guest, id, file) = (plan.volumes(), plan.id.short(), file_name(&disk.path)?);
        let number = || file.strip_prefix("ephemeral-")?.split('.').next()?.parse::<usize>().ok();
        Ok(match (self.daemon.pool.as_str(), number()) {
            (UVTOOL, None) => format!("{guest}.qcow"),
            (UVTOOL, Some(number)) => format!("{guest}-ephem-{number:02}.qcow"),
            _ => format!("{guest}.{id}.{file}"),
        })
    }

    fn seed_name(&self, plan: &GuestPlan) -> String {
        match self.daemon.pool.as_str() {
            UVTOOL => format!("{}-ds.qcow", plan.volumes()),
            _ => format!("{}.{}.seed.img", plan.volumes(), plan.id.short()),
        }
    }

    /// A layer on the daemon's host: a volume that is there, or the blob that is to be brought.
    fn layer(&self, folder: &Path, layer: &Layer) -> Result<Layer> {
        if layer.path.starts_with(folder) {
            return Ok(layer.clone());
        }
        let path = folder.join(blob_name(layer)?);
        Ok(Layer { path, format: layer.format })
    }

    pub(super) fn volume(&self, pool: &StoragePool, name: &str) -> Result<Option<StorageVol>> {
        found(pool.lookup_storage_vol_by_name(name), || format!("looking for the volume '{name}'"))
    }

    pub(super) fn create(&self, pool: &StoragePool, volume: &Element) -> Result<StorageVol> {
        StorageVol::create_xml(pool, &volume.document()?, 0)
            .map_err(doing(format!("making a volume in the storage pool '{}'", self.daemon.pool)))
    }

    fn overlay(&self, pool: &StoragePool, disk: &Disk, placed: &Placed) -> Result<StorageVol> {
        let name = file_name(&placed.top.path)?;
        let made = self.create(pool, &volume(&name, disk.size.0, disk.format, placed.chain.first()));
        made.map_err(|error| match error.kind() {
            Kind::Exists => self.taken(&name),
            _ => error,
        })
    }

    /// Fails when a volume has a name that one of the guest's would get, in the pool whose names may be anybody's.
    ///
    /// # Errors
    /// [`Kind::Exists`].
    pub(super) fn names_are_free(&self, plan: &GuestPlan) -> Result<()> {
        if self.daemon.pool != UVTOOL {
            return Ok(());
        }
        let pool = self.pool()?;
        let mut names = self.disk_names(plan)?;
        names.extend(plan.seed.as_ref().map(|_| self.seed_name(plan)));
        for name in names {
            if self.volume(&pool, &name)?.is_some() {
                return Err(self.taken(&name));
            }
        }
        Ok(())
    }

    fn taken(&self, name: &str) -> Error {
        Error::new(Kind::Exists, format!("libvirt has a volume '{name}' already")).hint(format!(
            "choose another name, or remove it: virsh -c {} vol-delete {name} {}",
            self.daemon.uri, self.daemon.pool
        ))
    }

    /// Deletes the guest's volumes, in a pool whose names are nobody else's; those that are not there are no trouble.
    ///
    /// # Errors
    /// What libvirt said, after all were tried.
    pub(super) fn remove(&self, pool: &StoragePool, plan: &GuestPlan) -> Result<()> {
        let mut names = self.disk_names(plan)?;
        names.extend(plan.seed.as_ref().map(|_| self.seed_name(plan)));
        // Gone with the domain; the pool may not know that yet.
        names.extend(variables_name(plan));
        self.delete(pool, &names)
    }

    /// Deletes the volumes of this pool that a domain names, or named, and that bear this name and the domain's id.
    ///
    /// # Errors
    /// What libvirt said.
    pub(super) fn remove_named(&self, volumes: &GuestName, id: &str, domain: &str) -> Result<()> {
        if !self.exists()? {
            return Ok(());
        }
        let pool = self.pool()?;
        let folder = self.folder(&pool)?;
        let read = roxmltree::Document::parse(domain).map_err(|e| Error::failed("reading libvirt's XML").because(e))?;
        let files =
            read.descendants().filter(|node| node.has_tag_name("source")).filter_map(|node| node.attribute("file"));
        let names = files.filter_map(|file| Path::new(file).strip_prefix(folder).ok()?.to_str());
        let own = format!("{volumes}.{}.", &id[..id.len().min(8)]);
        let names: Vec<String> = names.filter(|name| name.starts_with(&own)).map(str::to_owned).collect();
        self.delete(&pool, &names)
    }

    /// Deletes these volumes; those that are not there are no trouble.
    pub(super) fn delete(&self, pool: &StoragePool, names: &[String]) -> Result<()> {
        names.iter().map(|name| self.delete_one(pool, name)).fold(Ok(()), Result::and)
    }

    /// A daemon may still be at what a killed command asked of it, and does not delete what it is allocating.
    fn delete_one(&self, pool: &StoragePool, name: &str) -> Result<()> {
        let mut last = None;
        let gone = poll::until(&Deadline::after(ALLOCATING), Duration::from_millis(50), || {
            let Some(Err(error)) = self.volume(pool, name)?.map(|volume| volume.delete(0)) else { return Ok(Some(())) };
            let busy = matches!(error.code(), Enum::Known(ErrorNumber::OperationInvalid));
            match found::<()>(Err(error), || format!("deleting the volume '{name}'")) {
                Err(error) if busy => {
                    last = Some(error);
                    Ok(None)
                }
                other => other.map(|_| Some(())),
            }
        })?;
        match (gone, last) {
            (None, Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Blobs in our pool that `needed` does not want and no volume stands on. Deletes them unless `dry_run`.
    ///
    /// # Errors
    /// What libvirt said.
    pub(super) fn sweep(&self, needed: &dyn Fn(&str) -> bool, dry_run: bool) -> Result<Vec<(String, ByteSize)>> {
        let Some(pool) = self.find()? else { return Ok(Vec::new()) };
        let what = || format!("listing the storage pool '{}'", self.daemon.pool);
        let volumes = pool.list_all_volumes(0).map_err(doing(what()))?;
        let mut blobs = Vec::new();
        let mut beneath = Vec::new();
        for volume in &volumes {
            let name = volume.name().map_err(doing(what()))?;
            let digest = name.strip_prefix(BLOB).and_then(|rest| rest.split('.').next());
            if digest.is_some_and(|digest| is_digest(digest) && !needed(digest)) {
                blobs.push((name.clone(), volume));
            }
            // One that goes while it is looked at needs nothing.
            let Some(document) = found(volume.xml_desc(0), what)? else { continue };
            beneath.extend(backing_of(&document));
        }
        let mut gone = Vec::new();
        for (name, volume) in blobs {
            let path = volume.path().map_err(doing(what()))?;
            if beneath.contains(&path) {
                continue;
            }
            gone.push((name.clone(), ByteSize(physical(volume)?.unwrap_or(0))));
            if !dry_run {
                self.delete(&pool, &[name])?;
            }
        }
        Ok(gone)
    }
}

/// The volume with what a UEFI firmware keeps, if the guest has one.
fn variables_name(plan: &GuestPlan) -> Option<String> {
    let has = plan.platform.firmware != Firmware::Bios;
    has.then(|| format!("{}.{}.firmware-vars", plan.volumes(), plan.id.short()))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

pub(super) fn backing_of(volume: &str) -> Option<String> {
    let document = roxmltree::Document::parse(volume).ok()?;
    let backing = document.root_element().children().find(|node| node.has_tag_name("backingStore"))?;
    backing.children().find(|node| node.has_tag_name("path"))?.text().map(str::to_owned)
}

/// The pool's folder on the daemon's host.
///
/// # Errors
/// [`Kind::Unsupported`] for a pool that is no folder.
pub(super) fn folder(pool: &StoragePool) -> Result<PathBuf> {
    let document = pool.xml_desc(0).map_err(doing("looking at a storage pool"))?;
    let read = roxmltree::Document::parse(&document).map_err(|e| Error::failed("reading libvirt's XML").because(e))?;
    let root = read.root_element();
    let target = root.children().find(|node| node.has_tag_name("target"));
    let path = target.and_then(|node| node.children().find(|node| node.has_tag_name("path"))?.text());
    match (root.attribute("type"), path) {
        (Some("dir" | "fs" | "netfs"), Some(path)) => Ok(PathBuf::from(path)),
        (kind, _) => Err(Error::new(
            Kind::Unsupported,
            format!("a storage pool of type '{}' cannot hold guests' disks", kind.unwrap_or("?")),
        )
        .hint("choose one of type 'dir'")),
    }
}

/// The name of a blob's volume: what is in it, and how that is to be read.
fn blob_name(layer: &Layer) -> Result<String> {
    let digest = file_name(&layer.path)?;
    if !is_digest(&digest) {
        return Err(Error::new(
            Kind::Unsupported,
            format!("'{}' is no image of the pool's: libvirt's guests stand on those alone", layer.path.display()),
        ));
    }
    Ok(format!("{BLOB}{digest}.{}", layer.format.name()))
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| Error::failed(format!("'{}' has no file name", path.display())))
}

pub(super) fn volume(name: &str, size: u64, format: DiskFormat, beneath: Option<&Layer>) -> Element {
    let format_of = |format: DiskFormat| element("format").with("type", format.name());
    let target = element("target").has(format_of(format)).has(element("permissions").has(element("mode").text("0600")));
    let volume = element("volume")
        .with("type", "file")
        .has(element("name").text(name))
        .has(element("capacity").with("unit", "bytes").text(size.to_string()))
        .has(element("allocation").text("0"))
        .has(target);
    match beneath {
        None => volume,
        Some(layer) => volume.has(
            element("backingStore")
                .has(element("path").text(layer.path.display().to_string()))
                .has(format_of(layer.format)),
        ),
    }
}
