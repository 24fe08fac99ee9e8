//! Publishing images as a signed stream: keys, the image's own facts, and the
//! folder that any simplestreams client reads.

pub(super) mod container;
mod gnupg;
mod keys;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use self::container::Container;
pub(super) use self::keys::{Keys, keys_for};
pub use self::keys::{RekeyRequest, SignWith, rekey};
use super::Env;
use crate::base::name::quoted;
use crate::base::{Arch, ByteSize, Error, Result};
use crate::disk;
use crate::stream::filter::Filters;
use crate::stream::key::{Fingerprint, Keyring};
use crate::stream::publish::{self, Check, DEFAULT_CONTENT_ID, DEFAULT_FTYPE, Facts, Publisher, Report};
use crate::stream::signed;

/// A stream to make.
#[derive(Clone, Debug)]
pub struct InitRequest {
    /// Its folder.
    pub dir: PathBuf,
    /// The keys that sign; a file that is absent is made.
    pub sign: SignWith,
    /// Whom a new key belongs to.
    pub user_id: String,
    /// The content id of its document.
    pub content_id: Option<String>,
}

/// An image to add.
#[derive(Clone, Debug)]
pub struct AddRequest {
    /// The stream's folder.
    pub dir: PathBuf,
    /// The image: a disk, or a container's root file system.
    pub image: PathBuf,
    /// A root file system's metadata archive; made from the keys when there is none.
    pub metadata: Option<PathBuf>,
    /// What it is: `KEY=VALUE`. `content_id`, `product_name`, `version_name`
    /// and `ftype` name its place, all else are attributes.
    pub keys: Vec<String>,
    /// The keys that sign the stream.
    pub sign: SignWith,
}

/// An image that was added.
#[derive(Clone, Debug)]
pub struct Added {
    /// The product's name.
    pub product: String,
    /// The version's name.
    pub version: String,
    /// Bytes of its file.
    pub size: u64,
    /// `false` when it was there already.
    pub new: bool,
}

/// Where a stream's own public keys lie.
#[must_use]
pub fn keyring_path(dir: &Path) -> PathBuf {
    dir.join(publish::KEYRING)
}

struct Trusted<'a>(&'a Keyring);

impl Check for Trusted<'_> {
    fn inline(&self, message: &[u8]) -> Result<Vec<u8>> {
        Ok(signed::verify_inline(message, self.0, Timestamp::now())?.payload)
    }

    fn detached(&self, document: &[u8], signature: &[u8]) -> Result<()> {
        signed::verify_detached(document, signature, self.0, Timestamp::now()).map(|_| ())
    }
}

/// Acts on the stream in `dir`.
pub(super) fn with<T>(dir: &Path, keys: &Keys, act: impl FnOnce(Publisher<'_>) -> Result<T>) -> Result<T> {
    let check = Trusted(keys.trusted());
    act(Publisher { dir, sign: Some(keys), check: Some(&check), now: Timestamp::now() })
}

/// Makes an empty signed stream, and a key where there is none. The public
/// keys go to `keyring.gpg` in the folder. Repeatable.
///
/// # Errors
/// [`Kind::Usage`] when the secret key would lie in the folder that is served.
pub fn init(env: Env<'_>, request: &InitRequest) -> Result<Vec<Fingerprint>> {
    let keys = keys_for(env, &request.dir, &request.sign, &request.user_id)?;
    with(&request.dir, &keys, |publisher| publisher.init(request.content_id.as_deref().unwrap_or(DEFAULT_CONTENT_ID)))?;
    Ok(keys.fingerprints())
}

/// Adds an image. Its format and sizes are read from it; a hostile one is
/// refused. A root file system is added as a container image, with its metadata.
///
/// # Errors
/// [`Kind::Refused`] for a hostile image, [`Kind::Usage`] for keys that make
/// no sense, [`Kind::Exists`] when the version has other content.
pub fn add(env: Env<'_>, request: &AddRequest) -> Result<Added> {
    let mut attributes = attributes(&request.keys)?;
    let container = Container::of(request, &mut attributes)?;
    if container.is_none() {
        // Before anything is copied, and by the name that the user knows. What counts is what is found in the copy.
        facts(&request.image)?;
    }
    let keys = Keys::load(&request.sign)?;
    keys.fit(&request.dir)?;
    let mut place = |key: &str| attributes.remove(key);
    let (content_id, product) = (place("content_id"), place("product_name"));
    let (version, ftype) = (place("version_name"), place("ftype"));
    attributes.entry("arch".into()).or_insert_with(|| Arch::host().to_string());
    let added = with(&request.dir, &keys, |publisher| {
        publisher.add(&publish::AddRequest {
            file: request.image.clone(),
            content_id,
            product,
            version,
            ftype: container.as_ref().map(|container| container.ftype.into()).or(ftype).unwrap_or(DEFAULT_FTYPE.into()),
            attributes,
            inspect: container.is_none().then_some(facts),
            metadata: container.as_ref().map(|container| container.metadata().to_owned()),
        })
    })?;
    if !added.new {
        env.reporter.note("the stream has this very image already");
    }
    Ok(Added {
        product: added.item.product().to_owned(),
        version: added.item.version().to_owned(),
        size: added.item.size.unwrap_or_default(),
        new: added.new,
    })
}

fn facts(image: &Path) -> Result<Facts> {
    let facts = disk::inspect(image, None)?;
    Ok(Facts { format: facts.format, virtual_size: ByteSize(facts.virtual_size) })
}

/// `KEY=VALUE` each.
///
/// # Errors
/// [`Kind::Usage`] for what is not.
pub(super) fn attributes(keys: &[String]) -> Result<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::new();
    for text in keys {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
            Error::usage(format!("{} is not KEY=VALUE", quoted(text))).hint("as in os=debian release=bookworm")
        })?;
        if attributes.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Error::usage(format!("{} is given twice", quoted(key))));
        }
    }
    Ok(attributes)
}

/// Removes the images that pass the filters. Returns a line for each.
///
/// # Errors
/// [`Kind::NotFound`] when none does.
pub fn remove(dir: &Path, sign: &SignWith, filters: &[String]) -> Result<Vec<String>> {
    let (keys, filters) = (Keys::load(sign)?, Filters::parse(filters)?);
    keys.fit(dir)?;
    let removed = with(dir, &keys, |publisher| publisher.remove(&filters))?;
    if removed.is_empty() {
        return Err(Error::not_found("the stream has no image that matches"));
    }
    Ok(removed.iter().map(|item| format!("{} {} {}", item.product(), item.version(), item.name())).collect())
}

/// Checks a stream's signatures and every file.
///
/// # Errors
/// [`Kind::Refused`] when anything is wrong, with all of it as the cause.
pub fn verify(dir: &Path, keyring: Option<&Path>) -> Result<Report> {
    let keyring = Keyring::from_file(&keyring.map_or_else(|| keyring_path(dir), Path::to_owned))?;
    let check = Trusted(&keyring);
    Publisher { dir, sign: None, check: Some(&check), now: Timestamp::now() }.verify()?.into_result()
}
