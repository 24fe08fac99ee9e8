//! `uvt-simplestreams-libvirt sync`: virga's own verified sync, and then each
//! image as a volume of uvtool's pool with its metadata beside.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::images::sweep;
use super::libvirt;
use super::metadata::{self, Image, Store};
use crate::base::lock::Mode;
use crate::base::plan::DiskFormat;
use crate::base::progress::Transfer;
use crate::base::{Arch, Error, Kind, RelPath, Result, fs};
use crate::driver::libvirt::uvtool::Uvtool;
use crate::ops::sync::{FromSources, SyncRequest, SyncedImage, sync as fetch};
use crate::ops::{Env, sync};
use crate::pool::{ImageRecord, Pool};

/// Where uvtool's images come from unless the user says.
pub const DEFAULT_SOURCE: &str = "https://cloud-images.ubuntu.com/releases/";

/// What every filter of the user's is added to.
const ALWAYS: [&str; 2] = ["datatype=image-downloads", "ftype=disk1.img"];

/// What to fetch and from where.
#[derive(Clone, Debug)]
pub struct Request {
    /// The stream's root, or its index.
    pub source: String,
    /// Where the index is, from the root; `None`: as the source says.
    pub path: Option<RelPath>,
    /// The keys that may sign; `None`: Ubuntu's.
    pub keyring: Option<PathBuf>,
    /// Whether nobody need sign.
    pub unsigned: bool,
    /// Which images; none: all of this machine's architecture.
    pub filters: Vec<String>,
    /// The pool that gets them.
    pub pool: String,
}

/// What a sync does, told as it does it.
#[derive(Clone, Debug)]
pub enum Event {
    /// A folder or pool was missing and is there now.
    Made(String),
    /// An image's newest version comes in.
    Adding(String, String),
    /// A version is no longer the newest.
    Removing(String, String),
    /// The source has nothing that matches.
    Nothing,
}

/// Fetches the newest version of each product that matches into the pool. Repeatable. Other products stay as they are;
/// an old version's volume stays as long as anybody needs it.
///
/// # Errors
/// As [`crate::ops::sync::sync`], but that nothing matches is only told; [`Kind::Unsupported`] for an image that is not
/// qcow2; what libvirt said.
pub fn sync(env: Env<'_>, request: &Request, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let (libvirt, store) = (libvirt(env), Store::of(env));
    prepare(env, &libvirt, &store, &request.pool, tell)?;
    let pool = env.pool()?;
    // Held until the volumes are there: what was fetched is not to be swept meanwhile.
    let _pool_lock = pool.lock_shared()?;
    let report = fetch(env, &wanted(env, request)?)?;
    if report.images.is_empty() {
        tell(Event::Nothing);
    }
    let records = pool.records()?;
    let _lock = store.lock(env, Mode::Exclusive)?;
    let take = Take { env, libvirt: &libvirt, store: &store, pool: &pool, into: &request.pool };
    for image in &report.images {
        let record = records.iter().find(|record| record.id == image.id);
        let record = record.ok_or_else(|| Error::failed(format!("the record of image {} is gone", image.id)))?;
        take.image(record, tell)?;
    }
    retire(env, &store, &report.images, tell)?;
    sweep(&libvirt, &store, &request.pool)
}

/// Makes the pool and the folder of metadata where they are missing; uvtool's package does that when it is installed.
fn prepare(env: Env<'_>, libvirt: &Uvtool, store: &Store, pool: &str, tell: &mut dyn FnMut(Event)) -> Result<()> {
    if store.prepare()? {
        tell(Event::Made(format!("made the folder '{}'", store.folder().display())));
    }
    prepare_pool(env, libvirt, pool, tell)
}

/// Makes uvtool's pool where it is missing. Others must be there.
pub(super) fn prepare_pool(env: Env<'_>, libvirt: &Uvtool, pool: &str, tell: &mut dyn FnMut(Event)) -> Result<()> {
    if pool == super::POOL {
        let folder = env.settings.uvtool.home.join("images");
        if libvirt.make_pool(pool, &folder)? {
            tell(Event::Made(format!("made the storage pool '{pool}' in '{}'", folder.display())));
        }
    }
    // Started, if it was not.
    libvirt.existing_folder(pool).map(drop)
}

/// The same wish in virga's words.
fn wanted(env: Env<'_>, request: &Request) -> Result<SyncRequest> {
    let own = match request.filters.as_slice() {
        [] => vec![format!("arch={}", Arch::host())],
        filters => filters.to_vec(),
    };
    // A source that virga knows by name has its state in common with `virga sync`.
    let url = format!("{}/", request.source.trim_end_matches('/'));
    let known = sync::sources(env)?.into_iter().find(|source| source.url.reveal() == url).map(|source| source.name);
    Ok(SyncRequest {
        from: FromSources {
            sources: vec![known.unwrap_or_else(|| request.source.clone())],
            keyring: request.keyring.clone(),
            path: request.path.clone(),
            unsigned: request.unsigned,
            allow_older: false,
        },
        max: 1,
        filters: ALWAYS.iter().map(|filter| (*filter).to_owned()).chain(own).collect(),
        every_arch: true,
        none_is_fine: true,
        ..SyncRequest::default()
    })
}

struct Take<'a> {
    env: Env<'a>,
    libvirt: &'a Uvtool,
    store: &'a Store,
    pool: &'a Pool,
    into: &'a str,
}

impl Take<'_> {
    /// Brings one image into the pool unless it is there.
    fn image(&self, record: &ImageRecord, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let (product, version) = (record.key("product_name"), record.key("version_name"));
        let name = metadata::volume_name(product, version);
        if record.disk.is_none_or(|disk| disk.format != DiskFormat::Qcow2) {
            return Err(Error::new(Kind::Unsupported, format!("{product} {version} is no qcow2 image"))
                .hint("uvtool's guests stand on nothing else; 'virga sync' takes it"));
        }
        let blob = self.pool.blob_path(&record.blob);
        let there = self.libvirt.named_volumes(self.into, &[&name])?.pop();
        let listed = self.store.images(self.env)?.into_iter().find(|image| image.volume == name);
        // What was taken unsigned is not the image of that name; what is signed is not replaced by what is not.
        let as_good = |listed: &Image| !listed.trust().must_be_asked_for() || record.trust().must_be_asked_for();
        if there.is_some() && listed.as_ref().is_some_and(as_good) {
            return Ok(());
        }
        // One without metadata may have been left by a killed command; one that something stands on is whole.
        let whole = match &there {
            None => false,
            Some(volume) => self.libvirt.used()?.by(&volume.path).is_some(),
        };
        if whole && listed.is_some() {
            return Err(Error::failed(format!(
                "{product} {version} was taken unsigned, and a guest stands on that volume"
            ))
            .hint("it may be another image than the signed one: destroy that guest, and sync again"));
        }
        tell(Event::Adding(product.to_owned(), version.to_owned()));
        if !whole {
            // First its metadata: a volume that has some is whole, whenever this is killed.
            self.store.remove(&name)?;
            self.libvirt.delete(self.into, std::slice::from_ref(&name))?;
            self.upload(&blob, &name, &format!("{product} {version}"), record.size)?;
        }
        let mut keys = record.keys.clone();
        // Whatever the stream says of itself.
        keys.remove(metadata::TRUST);
        if record.trust().must_be_asked_for() {
            keys.insert(metadata::TRUST.into(), record.trust().word().into());
        }
        self.store.write(&Image { volume: name, keys })
    }

    fn upload(&self, blob: &Path, name: &str, label: &str, size: u64) -> Result<()> {
        let transfer = self.env.reporter.transfer(&format!("{label} into the pool"), Some(size));
        let mut from = Watched { from: fs::open(blob)?, read: 0, transfer: transfer.as_ref() };
        self.libvirt.upload(self.into, name, &mut from, size)
    }
}

/// A file whose reading is shown.
struct Watched<'a> {
    from: std::fs::File,
    read: u64,
    transfer: &'a dyn Transfer,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.read += read as u64;
        self.transfer.at(self.read);
        Ok(read)
    }
}

/// Forgets other versions of the products that were synced.
fn retire(env: Env<'_>, store: &Store, synced: &[SyncedImage], tell: &mut dyn FnMut(Event)) -> Result<()> {
    let mut newest: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for image in synced {
        newest.entry(&image.product).or_default().insert(&image.version);
    }
    let images = store.images(env)?;
    let is_newest = |image: &Image| {
        newest.get(image.key("product_name")).is_some_and(|versions| versions.contains(image.key("version_name")))
    };
    // Only a signed one puts a signed one out of its place.
    let verified: BTreeSet<String> = images
        .iter()
        .filter(|image| is_newest(image) && !image.trust().must_be_asked_for())
        .map(|image| image.key("product_name").to_owned())
        .collect();
    for image in images {
        let (product, version) = (image.key("product_name"), image.key("version_name"));
        if !image.trust().must_be_asked_for() && !verified.contains(product) {
            continue;
        }
        if newest.get(product).is_some_and(|versions| !versions.contains(version)) {
            tell(Event::Removing(product.to_owned(), version.to_owned()));
            store.remove(&image.volume)?;
        }
    }
    Ok(())
}
