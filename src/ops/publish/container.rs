//! A root file system on its way into a stream: what it is, and its metadata.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::AddRequest;
use crate::base::name::{arch_name, quoted};
use crate::base::{Arch, Context as _, Error, Result};
use crate::rootfs::{self, Format, Limits, Metadata, NewMetadata};

/// Keys that are about the place in the stream, not about the image.
const OF_STREAM: [&str; 6] = ["aliases", "label", "pubname", "supported", "support_eol", "arch"];
/// What metadata may say of an image that the user did not.
const FROM_METADATA: [&str; 5] = ["os", "release", "version", "variant", "release_title"];

/// A container image.
pub(super) struct Container {
    /// What the root is in the stream.
    pub ftype: &'static str,
    metadata: Archive,
}

enum Archive {
    Given(PathBuf),
    Made(NamedTempFile),
}

impl Container {
    /// Its metadata archive.
    pub(super) fn metadata(&self) -> &Path {
        match &self.metadata {
            Archive::Given(path) => path,
            Archive::Made(file) => file.path(),
        }
    }

    /// The container image that the request is about; `None` for a disk image.
    /// Keys that its metadata knows are filled in.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] for a hostile archive, [`crate::base::Kind::Usage`] for one
    /// that streams do not have.
    pub(super) fn of(request: &AddRequest, keys: &mut BTreeMap<String, String>) -> Result<Option<Self>> {
        let Some(format) = rootfs::recognise(&request.image)? else {
            return match request.metadata {
                None => Ok(None),
                Some(_) => Err(Error::usage(format!("'{}' is no root file system", request.image.display()))
                    .hint("--metadata belongs to a container's root (squashfs, root.tar.xz), not to a disk image")),
            };
        };
        let ftype = ftype(format, request, keys)?;
        let facts = rootfs::inspect(&request.image, Limits::default())?;
        let metadata = match &request.metadata {
            Some(path) => Archive::Given(given(path, keys)?),
            None => Archive::Made(made(facts.newest, keys)?),
        };
        Ok(Some(Container { ftype, metadata }))
    }
}

fn ftype(format: Format, request: &AddRequest, keys: &BTreeMap<String, String>) -> Result<&'static str> {
    let image = request.image.display();
    let ftype = match format {
        Format::Squashfs => "squashfs",
        Format::TarXz => "root.tar.xz",
        Format::TarGz | Format::Tar => {
            let unpack = if format == Format::TarGz { "gzip -dc" } else { "cat" };
            return Err(Error::usage(format!("'{image}' is a root file system in a {}", format.name()))
                .hint("streams have squashfs and root.tar.xz, and clients look for nothing else")
                .hint(format!("pack it anew: {unpack} '{image}' | xz -T0 >root.tar.xz")));
        }
    };
    match keys.get("ftype").filter(|given| *given != ftype) {
        Some(given) => Err(Error::usage(format!("'{image}' is a {ftype}, not {}", quoted(given)))),
        None => Ok(ftype),
    }
}

/// The user's metadata: it must be some, and of the same image.
fn given(path: &Path, keys: &mut BTreeMap<String, String>) -> Result<PathBuf> {
    let metadata = Metadata::read(path)?;
    if rootfs::recognise(path)? != Some(Format::TarXz) {
        return Err(Error::usage(format!("'{}' is not compressed by xz", path.display()))
            .hint("streams have incus.tar.xz: pack it anew with xz"));
    }
    let said = quoted(&metadata.architecture);
    let arch = rootfs::stream_arch(&metadata.architecture)
        .ok_or_else(|| Error::usage(format!("the metadata is of the architecture {said}, which no stream has")))?;
    if let Some(key) = keys.get("arch").filter(|key| arch_name(key) != arch) {
        return Err(Error::usage(format!("the metadata is of the architecture {said}, not {}", quoted(key)))
            .hint("give the metadata that belongs to this root file system"));
    }
    keys.insert("arch".into(), arch.into());
    for key in FROM_METADATA {
        if let Some(value) = metadata.properties.get(key).filter(|value| !value.is_empty()) {
            keys.entry(key.into()).or_insert_with(|| value.clone());
        }
    }
    Ok(path.to_owned())
}

/// Metadata made from the keys. Its date is the root's own, so that the same
/// root with the same keys is the same image.
///
/// # Errors
/// [`crate::base::Kind::Usage`] for an architecture that containers do not have.
pub(in crate::ops) fn made(date: i64, keys: &mut BTreeMap<String, String>) -> Result<NamedTempFile> {
    let arch = keys.entry("arch".into()).or_insert_with(|| Arch::host().to_string()).clone();
    let architecture = rootfs::incus_arch(arch_name(&arch))
        .ok_or_else(|| Error::usage(format!("there are no containers of the architecture {}", quoted(&arch))))?;
    let place = ["content_id", "product_name", "version_name", "ftype"];
    let about = |key: &str| !OF_STREAM.contains(&key) && !place.contains(&key);
    let own = keys.iter().filter(|(key, _)| about(key));
    let mut properties: BTreeMap<String, String> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    let words = ["os", "release"].iter().filter_map(|key| keys.get(*key)).cloned().collect::<Vec<_>>().join(" ");
    properties.entry("description".into()).or_insert_with(|| format!("{words} {arch}").trim().to_owned());
    properties.insert("architecture".into(), arch);
    let bytes = rootfs::make(&NewMetadata { architecture: architecture.into(), creation_date: date, properties })?;
    let doing = || "writing the metadata archive".to_owned();
    let mut file = NamedTempFile::new().context(doing)?;
    file.write_all(&bytes).context(doing)?;
    Ok(file)
}
