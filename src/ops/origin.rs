//! Which image a guest is made of, and what of it the guest stands on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::images::Wanted;
use super::machine::MachineRequest;
use super::{Env, images};
use crate::base::container::Packing;
use crate::base::name::quoted;
use crate::base::plan::{DiskFormat, Layer};
use crate::base::{Arch, ByteSize, Digest, Error, ImageId, Result, Trust};
use crate::disk;
use crate::driver::Boots;
use crate::guest::Origin;
use crate::pool::{ImageRecord, Pool};
use crate::stream::incus;

/// Which image a guest is made of.
#[derive(Clone, Debug)]
pub enum From {
    /// The newest in the pool that matches these filters, or the one with this id.
    Pool(Vec<String>),
    /// A file, taken into the pool by its content.
    File(PathBuf),
    /// A file on the backend's host that is taken as it is, where it is.
    InPlace(InPlace),
}

/// An image that is not virga's to keep.
#[derive(Clone, Debug)]
pub struct InPlace {
    /// The file on the backend's host.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Bytes that a guest sees.
    pub virtual_size: u64,
    /// Whose machines boot it.
    pub arch: Arch,
    /// What is known of it, in the words of streams.
    pub keys: BTreeMap<String, String>,
    /// Who vouched for it.
    pub trust: Trust,
}

/// The blob that the guest stands on.
pub(super) struct Base {
    pub image: Option<ImageId>,
    /// `None` for what is not in the pool.
    pub blob: Option<Digest>,
    pub path: PathBuf,
    pub content: Content,
    pub arch: Arch,
    pub keys: BTreeMap<String, String>,
    pub trust: Trust,
}

/// What is in the blob.
pub(super) enum Content {
    /// A whole disk.
    Disk { format: DiskFormat, virtual_size: u64 },
    /// A root file system, and what belongs to it.
    Root { packing: Packing, metadata: Option<PathBuf>, fingerprint: Digest },
}

impl Base {
    pub fn origin(&self) -> Origin {
        let (image, blob, keys) = (self.image.clone(), self.blob.clone(), self.keys.clone());
        Origin { image, blob, keys, trust: Some(self.trust), template: None }
    }

    /// What a disk over it wants to know of it.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] when it is no disk.
    pub fn disk(&self) -> Result<disk::Backing> {
        match self.content {
            Content::Disk { format, virtual_size } => {
                Ok(disk::Backing { path: self.path.clone(), format, virtual_size })
            }
            Content::Root { .. } => Err(Error::usage("the image is a root file system, which no machine boots")),
        }
    }

    /// It as the lowest layer of a disk.
    ///
    /// # Errors
    /// As [`disk`](Self::disk).
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let disk = self.disk()?;
        Ok(vec![Layer { path: disk.path, format: disk.format }])
    }

    /// Finds what is asked for, of a kind that the driver boots, and says so when nobody vouched for it.
    ///
    /// # Errors
    /// [`crate::base::Kind::NotFound`] without such an image; [`crate::base::Kind::Usage`] when several are meant, or one of another kind.
    pub fn find(env: Env<'_>, pool: &Pool, request: &MachineRequest, boots: &[Boots]) -> Result<Self> {
        let disks = boots.contains(&Boots::DiskImage);
        let base = match &request.from {
            From::Pool(filters) if disks => Self::from_pool(pool, filters, request.arch),
            From::Pool(filters) => Self::root(pool, filters, request.arch),
            From::File(file) if disks => Self::from_file(env, pool, file, request),
            From::File(_) => Err(Error::usage("a container is made of an image in the pool, not of a file")
                .hint("'virga stream add' publishes a root file system, 'virga sync' takes it from there")),
            From::InPlace(image) => Self::in_place(image, request.disk),
        }?;
        if base.trust.must_be_asked_for() {
            let name = base.image.as_ref().map_or_else(|| base.path.display().to_string(), ToString::to_string);
            env.reporter.warn(&format!("the image {name} is unsigned: whoever was on the way could have replaced it"));
        }
        Ok(base)
    }

    /// Whether there is what is asked for, of a kind that is booted.
    ///
    /// # Errors
    /// [`crate::base::Kind::NotFound`] when not; [`crate::base::Kind::Usage`] when several are meant.
    pub fn offered(pool: &Pool, request: &MachineRequest, boots: &[Boots]) -> Result<()> {
        let disks = boots.contains(&Boots::DiskImage);
        let fits = |record: &ImageRecord| match disks {
            true => record.disk.is_some(),
            false => Packing::of_ftype(record.key("ftype")).is_some(),
        };
        let found = match &request.from {
            From::Pool(filters) => {
                let wanted = if disks { Wanted::Disk } else { Wanted::Container };
                fits(&images::resolve(pool, &with_arch(filters, request.arch), wanted, fits)?)
            }
            From::File(_) | From::InPlace(_) => disks,
        };
        match found {
            true => Ok(()),
            false => Err(Error::not_found(if disks { "the image is no disk" } else { "the image is a disk" })),
        }
    }

    fn from_pool(pool: &Pool, filters: &[String], arch: Option<Arch>) -> Result<Self> {
        let record = images::resolve(pool, &with_arch(filters, arch), Wanted::Disk, |record| record.disk.is_some())?;
        let arch = found(pool, &record, arch)?;
        let Some(disk) = record.disk else {
            let ftype = quoted(record.key("ftype"));
            return Err(Error::usage(format!("image {} is no disk image but {ftype}", record.id))
                .hint("'virga images' shows which images have a disk"));
        };
        Ok(Base {
            path: pool.blob_path(&record.blob),
            arch,
            image: Some(record.id.clone()),
            blob: Some(record.blob.clone()),
            content: Content::Disk { format: disk.format, virtual_size: disk.virtual_size },
            trust: record.trust(),
            keys: record.keys,
        })
    }

    /// A root file system, and the metadata of the same version.
    fn root(pool: &Pool, filters: &[String], arch: Option<Arch>) -> Result<Self> {
        let packing = |record: &ImageRecord| Packing::of_ftype(record.key("ftype"));
        let is_root = |record: &ImageRecord| packing(record).is_some();
        let record = images::resolve(pool, &with_arch(filters, arch), Wanted::Container, is_root)?;
        let arch = found(pool, &record, arch)?;
        let Some(packing) = packing(&record) else {
            let ftype = quoted(record.key("ftype"));
            return Err(Error::usage(format!("image {} is no root file system but {ftype}", record.id))
                .hint("containers are made of images with the file type squashfs or root.tar.xz"));
        };
        let metadata = metadata_of(pool, &record)?;
        let announced = match &metadata {
            Some(metadata) => incus::fingerprint(&metadata.keys, record.key("ftype"))?,
            None => None,
        };
        let fingerprint = match (announced, &metadata) {
            // It was checked when the two came.
            (Some(announced), _) => announced,
            (None, Some(metadata)) => pool.hash_joined(&[&metadata.blob, &record.blob])?,
            (None, None) => record.blob.clone(),
        };
        Ok(Base {
            path: pool.blob_path(&record.blob),
            arch,
            image: Some(record.id.clone()),
            blob: Some(record.blob.clone()),
            content: Content::Root {
                packing,
                metadata: metadata.map(|metadata| pool.blob_path(&metadata.blob)),
                fingerprint,
            },
            trust: record.trust(),
            keys: record.keys,
        })
    }

    fn from_file(env: Env<'_>, pool: &Pool, file: &Path, request: &MachineRequest) -> Result<Self> {
        // Looked at before it is copied, and again after: the file could have changed.
        let facts = disk::inspect(file, None)?;
        holds(request.disk, facts.virtual_size)?;
        let transfer = env.reporter.transfer(&file.display().to_string(), None);
        let blob = pool.import(file, transfer.as_ref())?;
        let path = pool.blob_path(&blob);
        let facts = disk::inspect(&path, None)?;
        Ok(Base {
            image: None,
            path,
            content: Content::Disk { format: facts.format, virtual_size: facts.virtual_size },
            arch: request.arch.unwrap_or(Arch::host()),
            blob: Some(blob),
            keys: BTreeMap::from([("file".to_owned(), file.display().to_string())]),
            trust: Trust::Own,
        })
    }

    fn in_place(image: &InPlace, disk_size: Option<ByteSize>) -> Result<Self> {
        let InPlace { path, format, virtual_size, arch, keys, trust } = image.clone();
        holds(disk_size, virtual_size)?;
        Ok(Base { image: None, blob: None, path, content: Content::Disk { format, virtual_size }, arch, keys, trust })
    }
}

/// The filters, and the architecture unless they are one image's id.
fn with_arch(filters: &[String], arch: Option<Arch>) -> Vec<String> {
    let by_id = matches!(filters, [only] if only.parse::<ImageId>().is_ok());
    let arch = arch.filter(|_| !by_id).map(|arch| format!("arch={arch}"));
    filters.iter().cloned().chain(arch).collect()
}

/// The architecture of an image whose bytes are there.
fn found(pool: &Pool, record: &ImageRecord, wanted: Option<Arch>) -> Result<Arch> {
    if !pool.has_blob(&record.blob) {
        return Err(Error::not_found(format!("the content of image {} is missing from the pool", record.id))
            .hint("fetch it again with 'virga sync'"));
    }
    let named = match record.key("arch") {
        "" => None,
        name => Some(name.parse::<Arch>()?),
    };
    if let (Some(named), Some(wanted)) = (named, wanted)
        && named != wanted
    {
        return Err(Error::usage(format!("image {} is for {named}, not for {wanted}", record.id)));
    }
    Ok(named.or(wanted).unwrap_or(Arch::host()))
}

/// The metadata that belongs to a root file system: of the same version, in the form that Incus takes first.
fn metadata_of(pool: &Pool, root: &ImageRecord) -> Result<Option<ImageRecord>> {
    let same = |record: &ImageRecord| {
        let keys = ["content_id", "product_name", "version_name"];
        record.source == root.source && keys.iter().all(|key| record.key(key) == root.key(key))
    };
    let rank = |record: &ImageRecord| incus::METADATA.iter().position(|ftype| *ftype == record.key("ftype"));
    let all = pool.records()?.into_iter().filter(|record| same(record) && pool.has_blob(&record.blob));
    Ok(all.filter_map(|record| Some((rank(&record)?, record))).min_by_key(|(rank, _)| *rank).map(|(_, record)| record))
}

fn holds(disk: Option<ByteSize>, image: u64) -> Result<()> {
    if disk.is_some_and(|size| size.0 < image) {
        let needed = ByteSize(image);
        return Err(Error::usage(format!("the disk is smaller than the image's {needed}"))
            .hint("left out, '--disk' is as large as the image"));
    }
    Ok(())
}
