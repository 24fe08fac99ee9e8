//! Container images in a stream: a root file system and its metadata, two files
//! that belong together, in the flavour that LXD and Incus read.
//!
//! One metadata archive is listed under the names that either daemon looks
//! for. The fingerprint of both files, which is the image's identity there,
//! stands at the metadata.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::Digest as _;

use super::content::{self, Content};
use super::document::Document;
use super::{AddRequest, exactly};
use crate::base::name::hex;
use crate::base::{Error, RelPath, Result, fs};
use crate::stream::incus::{CONTAINER_ROOTS, METADATA, ROOTS, fingerprint};
use crate::stream::product::Item;

/// A file on its way into the stream, and the items that will list it.
pub(super) struct NewFile {
    pub content: Content,
    pub path: RelPath,
    /// With their names.
    pub items: Vec<(String, Value)>,
}

impl NewFile {
    fn new(content: Content, names: &[&str]) -> Result<Self> {
        let path: RelPath = format!("images/{}/{}", content.sha256, names[0]).parse()?;
        let item = |name: &str| {
            let item = json!({ "ftype": name, "path": path.as_str(), "sha256": content.sha256, "size": content.size });
            (name.to_owned(), item)
        };
        Ok(NewFile { items: names.iter().map(|name| item(name)).collect(), path, content })
    }

    fn set(&mut self, key: &str, value: &Value) {
        self.items.iter_mut().for_each(|(_, item)| item[key] = value.clone());
    }
}

/// The request's files, the image itself last, copied into `folder`.
pub(super) fn files(folder: &Path, request: &AddRequest) -> Result<Vec<NewFile>> {
    let mut root = NewFile::new(content::take_in(folder, &request.file)?, &[&request.ftype])?;
    if let Some(inspect) = request.inspect {
        let facts = inspect(root.content.file())?;
        root.set("disk_format", &facts.format.name().into());
        root.set("virtual_size", &facts.virtual_size.0.into());
    }
    let Some(metadata) = &request.metadata else { return Ok(vec![root]) };
    let Some((_, key)) = ROOTS.iter().find(|(ftype, _)| CONTAINER_ROOTS.contains(ftype) && *ftype == request.ftype)
    else {
        return Err(Error::usage(format!("'{}' is no container's root file system", request.ftype))
            .hint(format!("its file type is {}", CONTAINER_ROOTS.join(" or "))));
    };
    let mut metadata = NewFile::new(content::take_in(folder, metadata)?, &METADATA)?;
    let sum = joined([metadata.content.file(), root.content.file()])?;
    metadata.set(key, &sum.into());
    Ok(vec![metadata, root])
}

/// The SHA-256 (in hexadecimal) of files one after the other.
pub(super) fn joined<P: AsRef<Path>>(files: [P; 2]) -> Result<String> {
    let mut hash = sha2::Sha256::new();
    for file in &files {
        let file = file.as_ref();
        content::sum(&mut fs::open(file)?, file, |block| {
            hash.update(block);
            Ok(())
        })?;
    }
    Ok(hex(&hash.finalize()))
}

/// What a new item says beside what a listed one of the same file said: of
/// one metadata archive there may be several roots.
pub(super) fn merged(old: Option<&Value>, new: Value) -> Value {
    let Some(mut all) = old.and_then(Value::as_object).cloned() else { return new };
    all.extend(new.as_object().cloned().unwrap_or_default());
    Value::Object(all)
}

/// Attributes that the daemons show and look for, where neither the request
/// nor the product has them.
pub(super) fn defaults(
    product: Option<&Map<String, Value>>,
    given: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let get = |key: &str| given.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let names: Vec<String> = ["release", "version"]
        .iter()
        .filter_map(|key| Some(format!("{}/{}", get("os")?.to_lowercase(), get(key)?)))
        .collect();
    let all = [("aliases", names.join(",")), ("release_title", get("release").unwrap_or_default().to_owned())];
    let missing = |key: &str| get(key).is_none() && product.is_none_or(|product| !product.contains_key(key));
    all.into_iter()
        .filter(|(key, value)| missing(key) && !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// What is of no use once `items` are gone: metadata without any root, and
/// roots without their metadata.
pub(super) fn widowed(document: &Document, items: &[Item]) -> Result<Vec<Item>> {
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    for item in items {
        let version = (item.product(), item.version());
        if seen.contains(&version) {
            continue;
        }
        seen.push(version);
        let filters = exactly(&[
            ("content_id", document.content_id()),
            ("product_name", version.0),
            ("version_name", version.1),
        ])?;
        let (gone, left): (Vec<Item>, Vec<Item>) =
            document.select(&filters)?.into_iter().partition(|item| items.contains(item));
        found.extend(left.iter().filter(|item| is_widow(item, &gone, &left)).cloned());
    }
    Ok(found)
}

fn is_widow(item: &Item, gone: &[Item], left: &[Item]) -> bool {
    // An item that announces nothing usable is nobody's partner.
    let pair =
        |metadata: &Item, root: &Item| fingerprint(&metadata.keys, root.get("ftype")).is_ok_and(|sum| sum.is_some());
    let partner =
        |other: &&Item| pair(item, other) || (CONTAINER_ROOTS.contains(&item.get("ftype")) && pair(other, item));
    gone.iter().any(|other| partner(&other)) && !left.iter().any(|other| partner(&other))
}

/// The pairs among the items: metadata, root, and the fingerprint that is announced for both.
pub(super) fn announced(items: &[Item]) -> impl Iterator<Item = (&Item, &Item, String)> {
    let place = |item: &Item| (item.product().to_owned(), item.version().to_owned());
    items.chunk_by(move |a, b| place(a) == place(b)).flat_map(|version| {
        version.iter().flat_map(move |metadata| {
            version.iter().filter_map(move |root| {
                let sum = fingerprint(&metadata.keys, root.get("ftype")).ok().flatten()?;
                Some((metadata, root, sum.hex()))
            })
        })
    })
}

#[cfg(test)]
mod tests;
