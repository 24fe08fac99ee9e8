//! What an Incus daemon reads of a stream: a document of its own, derived from
//! the others.
//!
//! Ubuntu's streams offer their container and machine images to LXD: a version
//! has a metadata archive `lxd.tar.xz` beside the root file systems. Incus takes
//! the same archive, but only under the name `incus.tar.xz`; it reads attributes
//! at the product alone and knows neither inheritance nor aliases of attributes.
//! An image's fingerprint is the SHA-256 of metadata and root one after the
//! other, and stands at the metadata.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::Digest as _;

use super::content;
use super::document::{Document, EXPORT};
use crate::base::name::{hex, quoted};
use crate::base::{Error, Result, fs};
use crate::stream::incus::ROOTS;
use crate::stream::product::Item;

/// The derived document's content id.
const CONTENT_ID: &str = "images";
/// The metadata as LXD knows it.
const LXD_METADATA: &str = "lxd.tar.xz";
/// The metadata as Incus knows it.
const METADATA: &str = "incus.tar.xz";
/// What makes the derived document superfluous.
const INCUS: [&str; 2] = [METADATA, "incus_combined.tar.gz"];
/// Attributes that Incus reads, all of them text.
const ATTRIBUTES: [&str; 9] =
    ["aliases", "arch", "os", "release", "release_codename", "release_title", "support_eol", "variant", "version"];

/// The derived document that a stream had.
pub(super) struct Exported {
    document: Option<Document>,
    /// Fingerprints by the SHA-256 of metadata and root: hashing a stream's images again takes minutes.
    known: HashMap<[String; 2], String>,
}

impl Exported {
    /// Takes it from among the stream's documents.
    pub(super) fn take(documents: &mut Vec<Document>) -> Self {
        let document = documents.iter().position(Document::is_export).map(|at| documents.remove(at));
        let known = document.as_ref().map(fingerprints).unwrap_or_default();
        Exported { document, known }
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.document.is_some()
    }

    /// Derives it anew from `documents`, which list `items`; `None` when they
    /// have nothing to derive, or have a document of that name themselves.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when a fingerprint is not the one that
    /// the stream announces.
    pub(super) fn again(&self, dir: &Path, documents: &[Document], items: &[Item]) -> Result<Option<Document>> {
        let mut products = Map::new();
        let version = |a: &Item, b: &Item| {
            (a.content_id(), a.product(), a.version()) == (b.content_id(), b.product(), b.version())
        };
        for items in items.chunk_by(version) {
            let Some(image) = Image::of(items) else { continue };
            let source = documents.iter().find(|document| document.content_id() == image.metadata.content_id());
            // The newest version comes first, and is the one that Incus shows.
            let product = products.entry(image.metadata.product()).or_insert_with(|| product(image.metadata, source));
            product["versions"][image.metadata.version()] = json!({ "items": image.items(dir, &self.known)? });
        }
        if products.is_empty() || documents.iter().any(|document| document.content_id() == CONTENT_ID) {
            return Ok(None);
        }
        let mut export = Document::empty(CONTENT_ID)?;
        export.set("products", products.into());
        export.set(EXPORT, true.into());
        export.as_new_as(documents);
        Ok(Some(export))
    }

    /// Removes it from the folder when none of `documents` took its place.
    pub(super) fn clear(&self, dir: &Path, documents: &[Document]) -> Result<()> {
        match &self.document {
            Some(old) if documents.iter().all(|document| document.content_id() != old.content_id()) => old.remove(dir),
            _ => Ok(()),
        }
    }
}

fn fingerprints(export: &Document) -> HashMap<[String; 2], String> {
    let below = |value: &Value, key: &str| value.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut known = HashMap::new();
    let versions = below(export.value(), "products").into_iter().flat_map(|(_, product)| below(&product, "versions"));
    for (_, version) in versions {
        let items = &version["items"];
        for (ftype, key) in ROOTS {
            let (metadata, root) = (items[METADATA]["sha256"].as_str(), items[ftype]["sha256"].as_str());
            if let (Some(metadata), Some(root), Some(sum)) = (metadata, root, items[METADATA][key].as_str()) {
                known.insert([metadata.to_owned(), root.to_owned()], sum.to_owned());
            }
        }
    }
    known
}

fn product(item: &Item, source: Option<&Document>) -> Value {
    let mut product = json!({ "versions": {} });
    for key in ATTRIBUTES.iter().filter(|key| !item.get(key).is_empty()) {
        product[key] = item.get(key).into();
    }
    if product.get("release_title").is_none() && !item.get("release").is_empty() {
        product["release_title"] = item.get("release").into();
    }
    // The one that is a JSON boolean there.
    if let Ok(supported) = item.get("supported").to_ascii_lowercase().parse::<bool>() {
        product["supported"] = supported.into();
    }
    let at = [item.product(), item.version(), item.name()];
    if let Some(requirements) = source.and_then(|source| source.nearest(at, "requirements")) {
        product["requirements"] = requirements.clone();
    }
    product
}

/// One version's metadata and root file systems.
struct Image<'a> {
    metadata: &'a Item,
    /// With the key of the fingerprint.
    roots: Vec<(&'a Item, &'static str, &'static str)>,
}

impl<'a> Image<'a> {
    fn of(version: &'a [Item]) -> Option<Self> {
        let find = |ftype: &str| {
            version.iter().find(|item| item.get("ftype") == ftype && item.path.is_some() && item.sha256.is_some())
        };
        if INCUS.iter().any(|ftype| find(ftype).is_some()) {
            return None;
        }
        let roots: Vec<_> = ROOTS.iter().filter_map(|(ftype, key)| Some((find(ftype)?, *ftype, *key))).collect();
        (!roots.is_empty()).then_some(Image { metadata: find(LXD_METADATA)?, roots })
    }

    fn items(&self, dir: &Path, known: &HashMap<[String; 2], String>) -> Result<Value> {
        let mut items = Map::new();
        let mut metadata = file(self.metadata, METADATA);
        let mut begun = None;
        for (root, ftype, key) in &self.roots {
            let sum = match known.get(&[sha256(self.metadata), sha256(root)]) {
                Some(sum) => sum.clone(),
                None => {
                    let mut hash = match &begun {
                        Some(hash) => sha2::Sha256::clone(hash),
                        None => begun.insert(append(sha2::Sha256::new(), dir, self.metadata)?).clone(),
                    };
                    hash = append(hash, dir, root)?;
                    hex(&hash.finalize())
                }
            };
            self.check(key, &sum)?;
            metadata[*key] = sum.into();
            items.insert((*ftype).to_owned(), file(root, ftype));
        }
        items.insert(METADATA.to_owned(), metadata);
        Ok(items.into())
    }

    /// Against the fingerprint that the stream announces, if it does.
    fn check(&self, key: &str, sum: &str) -> Result<()> {
        // What it was called while there was only one kind of root.
        let older = (key == "combined_rootxz_sha256").then_some("combined_sha256");
        let announced = [Some(key), older].into_iter().flatten().map(|key| self.metadata.get(key));
        let announced = announced.into_iter().find(|sum| !sum.is_empty()).unwrap_or(sum);
        if announced.eq_ignore_ascii_case(sum) {
            return Ok(());
        }
        let place = quoted(&format!("{} {}", self.metadata.product(), self.metadata.version()));
        Err(Error::refused(format!("{place}: its files do not have the {key} that the stream announces")))
    }
}

fn sha256(item: &Item) -> String {
    item.sha256.as_ref().map(crate::base::Digest::hex).unwrap_or_default()
}

fn file(item: &Item, ftype: &str) -> Value {
    let path = item.path.as_ref().map(crate::base::RelPath::as_str);
    json!({ "ftype": ftype, "path": path, "size": item.size, "sha256": sha256(item) })
}

/// Hashes an item's file after what `hash` has; it must be the file that the stream lists.
fn append(mut hash: sha2::Sha256, dir: &Path, item: &Item) -> Result<sha2::Sha256> {
    let path = dir.join(item.path.as_ref().map_or("", crate::base::RelPath::as_str));
    let (sum, _) = content::sum(&mut fs::open(&path)?, &path, |block| {
        hash.update(block);
        Ok(())
    })?;
    if sum != sha256(item) {
        return Err(Error::refused(format!("'{}' has other content than the stream says", path.display())));
    }
    Ok(hash)
}

#[cfg(test)]
mod tests;
