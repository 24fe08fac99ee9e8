//! The documents of a stream that is written here.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use serde_json::{Map, Value, json};

use super::{Check, OF_VERSION, Sign};
use crate::base::name::quoted;
use crate::base::{Context as _, Error, RelPath, Result, fs};
use crate::stream::filter::Filters;
use crate::stream::product::{Item, parse_products};
use crate::stream::{IMAGE_DOWNLOADS, INDEX_FORMAT, PRODUCTS_FORMAT, wrong_content_id};

/// Where the documents are, from the stream's root.
pub(super) const FOLDER: &str = "streams/v1";
/// The plain index.
pub(super) const INDEX: &str = "streams/v1/index.json";
/// The signed index.
pub(super) const SIGNED_INDEX: &str = "streams/v1/index.sjson";
/// A top attribute that only documents have that were derived from the others.
pub(super) const EXPORT: &str = "virga_export";
/// Largest document that is read.
pub(super) const LIMIT: u64 = 256 << 20;

/// A products document of the stream, with all attributes it was found with.
#[derive(Debug)]
pub(super) struct Document {
    /// The plain form's place, from the stream's root.
    path: RelPath,
    content_id: String,
    value: Value,
}

impl Document {
    /// A document without products.
    pub(super) fn new(content_id: &str, now: Timestamp) -> Result<Self> {
        let mut document = Document::empty(content_id)?;
        document.touch(now);
        Ok(document)
    }

    /// As [`new`](Self::new), but of no time yet.
    pub(super) fn empty(content_id: &str) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format!("the content id {} {why}", quoted(content_id)));
        if let Some(why) = wrong_content_id(content_id) {
            return Err(wrong(why));
        }
        if content_id == "index" {
            return Err(wrong("is the index's own name"));
        }
        let path = format!("{FOLDER}/{content_id}.json");
        Ok(Document {
            path: path.parse().map_err(|_| wrong("cannot be a file's name"))?,
            content_id: content_id.to_owned(),
            value: json!({
                "format": PRODUCTS_FORMAT, "content_id": content_id, "datatype": IMAGE_DOWNLOADS, "products": {},
            }),
        })
    }

    pub(super) fn content_id(&self) -> &str {
        &self.content_id
    }

    /// Notes a change. Clients refuse a document that is older than the one they know.
    pub(super) fn touch(&mut self, now: Timestamp) {
        let updated = self.updated().map_or(now, |updated| updated.max(now));
        self.value["updated"] = updated.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string().into();
    }

    fn updated(&self) -> Option<Timestamp> {
        time(&self.value)
    }

    /// Whether it was derived from the others, for clients of another kind.
    pub(super) fn is_export(&self) -> bool {
        self.value.get(EXPORT).is_some()
    }

    /// The whole tree.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// Sets an attribute of the whole.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.value[key] = value;
    }

    /// Takes the newest time of `others`.
    pub(super) fn as_new_as(&mut self, others: &[Document]) {
        if let Some(updated) = newest_time(others) {
            self.value["updated"] = updated.clone();
        }
    }

    /// The value of a key that stands nearest to an item: at itself, its version, its product or the top.
    pub(super) fn nearest(&self, [product, version, item]: [&str; 3], key: &str) -> Option<&Value> {
        let product = self.value["products"].get(product);
        let version = product.and_then(|product| product.get("versions")?.get(version));
        let item = version.and_then(|version| version.get("items")?.get(item));
        [item, version, product, Some(&self.value)].into_iter().flatten().find_map(|level| level.get(key))
    }

    /// Replaces the tree by what `change` makes of it. The newer `updated` of
    /// both counts; without one, a change is of `now`.
    pub(super) fn update(&mut self, change: impl FnOnce(Value) -> Value, now: Timestamp) {
        let old = self.value.clone();
        let mut new = change(self.value.take());
        let (ours, theirs) = (time(&old), time(&new));
        if theirs.is_none() || ours > theirs {
            match old.get("updated") {
                Some(updated) if ours.is_some() => new["updated"] = updated.clone(),
                _ => drop(object(&mut new).remove("updated")),
            }
        }
        let changed = new != old;
        self.value = new;
        if changed && theirs.is_none() {
            self.touch(now);
        }
    }

    /// As clients will read it.
    pub(super) fn select(&self, filters: &Filters) -> Result<Vec<Item>> {
        let what = self.path.as_str();
        let bytes = encode(&self.value, what)?;
        parse_products(&bytes, Some(&self.content_id), what)?.select(filters, None).collect()
    }

    pub(super) fn product(&self, name: &str) -> Option<&Map<String, Value>> {
        self.value["products"].get(name)?.as_object()
    }

    pub(super) fn versions(&self, product: &str) -> impl Iterator<Item = &str> {
        let versions = self.product(product).and_then(|product| product.get("versions")?.as_object());
        versions.into_iter().flat_map(|versions| versions.keys().map(String::as_str))
    }

    pub(super) fn newest(&self, product: &str) -> Option<&str> {
        self.versions(product).max()
    }

    pub(super) fn item(&self, product: &str, version: &str, item: &str) -> Option<&Value> {
        self.product(product)?.get("versions")?.get(version)?.get("items")?.get(item)
    }

    /// Sets an item and the attributes above it; `false` when all was so already.
    pub(super) fn put(&mut self, at: [&str; 3], attributes: &BTreeMap<String, String>, item: Value) -> bool {
        let before = self.value.clone();
        let [product, version, name] = at;
        let product = object(object(&mut self.value["products"]).entry(product).or_insert(Value::Null));
        set(product, attributes.iter().filter(|(key, _)| !OF_VERSION.contains(&key.as_str())));
        let version =
            object(object(product.entry("versions").or_insert(Value::Null)).entry(version).or_insert(Value::Null));
        set(version, attributes.iter().filter(|(key, _)| OF_VERSION.contains(&key.as_str())));
        object(version.entry("items").or_insert(Value::Null)).insert(name.to_owned(), item);
        self.value != before
    }

    /// Takes an item out, and the levels above it that this leaves empty.
    pub(super) fn take(&mut self, [product, version, item]: [&str; 3]) {
        let products = object(&mut self.value["products"]);
        let Some(versions) = products.get_mut(product).and_then(|product| product.get_mut("versions")) else { return };
        let versions = object(versions);
        let Some(items) = versions.get_mut(version).and_then(|version| version.get_mut("items")) else { return };
        let items = object(items);
        items.shift_remove(item);
        if items.is_empty() {
            versions.shift_remove(version);
        }
        if versions.is_empty() {
            products.shift_remove(product);
        }
    }

    pub(super) fn write(&self, dir: &Path, sign: Option<&dyn Sign>) -> Result<()> {
        self.forms()?.write(dir, sign)
    }

    /// As [`write`](Self::write), unless all forms lie there and say this; `false` then.
    pub(super) fn write_if_changed(
        &self,
        dir: &Path,
        sign: Option<&dyn Sign>,
        check: Option<&dyn Check>,
    ) -> Result<bool> {
        self.forms()?.write_if_changed(dir, sign, check)
    }

    /// Removes all forms.
    pub(super) fn remove(&self, dir: &Path) -> Result<()> {
        [self.path.to_string(), signed_form(&self.path).to_string(), format!("{}.gpg", self.path)]
            .iter()
            .try_for_each(|form| fs::remove_file(&dir.join(form)))
    }

    fn forms(&self) -> Result<Forms> {
        let plain = encode(&self.value, self.path.as_str())?;
        Ok(Forms { path: self.path.clone(), signed: None, plain })
    }

    fn entry(&self, path: &RelPath) -> Value {
        let mut products: Vec<&String> = self.value["products"].as_object().into_iter().flat_map(Map::keys).collect();
        products.sort_unstable();
        let mut entry = json!({ "format": PRODUCTS_FORMAT, "path": path.as_str(), "products": products });
        for key in ["datatype", "updated"] {
            if let Some(value) = self.value.get(key) {
                entry[key] = value.clone();
            }
        }
        entry
    }
}

/// The object that `value` is; what is none becomes an empty one.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

fn set<'k>(level: &mut Map<String, Value>, attributes: impl Iterator<Item = (&'k String, &'k String)>) {
    for (key, value) in attributes {
        // The one attribute that other clients read as a JSON boolean.
        let typed = match (key.as_str(), value.as_str()) {
            ("supported", "true" | "True") => Value::Bool(true),
            ("supported", "false" | "False") => Value::Bool(false),
            _ => Value::String(value.clone()),
        };
        level.insert(key.clone(), typed);
    }
}

/// Reads every products document of the stream, from the signed form when
/// signatures can be checked: unlike the plain form and its detached signature,
/// which are two files, it is never torn. What is not signed is then refused:
/// it would be signed anew with all that somebody put into it.
pub(super) fn load(dir: &Path, check: Option<&dyn Check>) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in plain_documents(dir)? {
        let signed = dir.join(signed_form(&path).as_str());
        let bytes = match check {
            Some(check) if signed.exists() => check
                .inline(&fs::read(&signed, LIMIT)?)
                .context(|| format!("checking the signature of '{}'", signed.display()))?,
            Some(check) => {
                let (plain, signature) = (dir.join(path.as_str()), dir.join(format!("{path}.gpg")));
                let bytes = fs::read(&plain, LIMIT)?;
                fs::read(&signature, LIMIT)
                    .and_then(|signature| check.detached(&bytes, &signature))
                    .context(|| format!("checking the signature of '{}'", plain.display()))
                    .map_err(|error| error.with_kind(crate::base::Kind::Refused))?;
                bytes
            }
            None => fs::read(&dir.join(path.as_str()), LIMIT)?,
        };
        let content_id = parse_products(&bytes, None, path.as_str())?.content_id().to_owned();
        if documents.iter().any(|other: &Document| other.content_id == content_id) {
            return Err(Error::refused(format!("two documents have the content id {}", quoted(&content_id))));
        }
        let value = serde_json::from_slice(&bytes).context(|| format!("reading '{path}'"))?;
        documents.push(Document { path, content_id, value });
    }
    Ok(documents)
}

/// The plain products documents that lie in the folder.
pub(super) fn plain_documents(dir: &Path) -> Result<Vec<RelPath>> {
    let names = fs::list_dir(&dir.join(FOLDER))?;
    let documents = names.iter().filter(|name| name.ends_with(".json") && *name != "index.json");
    documents.map(|name| format!("{FOLDER}/{name}").parse()).collect()
}

/// The place of the signed form of a plain document.
pub(super) fn signed_form(path: &RelPath) -> RelPath {
    let stem = path.as_str().strip_suffix(".json").unwrap_or(path.as_str());
    // One letter more can only break the limit on the length; then the plain one stays.
    format!("{stem}.sjson").parse().unwrap_or_else(|_| path.clone())
}

/// Makes the index from the documents and writes it in all forms.
pub(super) fn write_index(dir: &Path, documents: &[Document], sign: Option<&dyn Sign>) -> Result<()> {
    index(documents)?.write(dir, sign)
}

/// As [`write_index`], unless it lies there and says this.
pub(super) fn write_index_if_changed(
    dir: &Path,
    documents: &[Document],
    sign: Option<&dyn Sign>,
    check: Option<&dyn Check>,
) -> Result<bool> {
    index(documents)?.write_if_changed(dir, sign, check)
}

fn index(documents: &[Document]) -> Result<Forms> {
    let index = |place: fn(&RelPath) -> RelPath| {
        let entries =
            documents.iter().map(|document| (document.content_id.clone(), document.entry(&place(&document.path))));
        let mut value = json!({ "format": INDEX_FORMAT, "index": entries.collect::<Map<_, _>>() });
        if let Some(updated) = newest_time(documents) {
            value["updated"] = updated.clone();
        }
        encode(&value, INDEX)
    };
    Ok(Forms { path: INDEX.parse()?, plain: index(Clone::clone)?, signed: Some(index(signed_form)?) })
}

/// A document's forms, encoded.
struct Forms {
    path: RelPath,
    plain: Vec<u8>,
    /// The text of the signed form, where it is another.
    signed: Option<Vec<u8>>,
}

impl Forms {
    fn signed(&self) -> &[u8] {
        self.signed.as_ref().unwrap_or(&self.plain)
    }

    fn signature(&self) -> String {
        format!("{}.gpg", self.path)
    }

    /// The signed form first, because it is the one that a later change starts from.
    fn write(&self, dir: &Path, sign: Option<&dyn Sign>) -> Result<()> {
        let write = |path: &str, bytes: &[u8]| fs::write_atomic(&dir.join(path), bytes, 0o644);
        if let Some(sign) = sign {
            write(signed_form(&self.path).as_str(), &sign.inline(self.signed())?)?;
            write(&self.signature(), &sign.detached(&self.plain)?)?;
        }
        write(self.path.as_str(), &self.plain)
    }

    fn write_if_changed(&self, dir: &Path, sign: Option<&dyn Sign>, check: Option<&dyn Check>) -> Result<bool> {
        let is_there = self.is_written(dir, sign.is_some(), check);
        if !is_there {
            self.write(dir, sign)?;
        }
        Ok(!is_there)
    }

    /// Anything wrong counts as not written: it is put right by writing.
    fn is_written(&self, dir: &Path, signed: bool, check: Option<&dyn Check>) -> bool {
        let read = |path: &str| fs::read(&dir.join(path), LIMIT);
        let plain = read(self.path.as_str()).is_ok_and(|bytes| bytes == self.plain);
        let sound = |check: &dyn Check| -> Result<bool> {
            check.detached(&self.plain, &read(&self.signature())?)?;
            Ok(check.inline(&read(signed_form(&self.path).as_str())?)? == self.signed())
        };
        plain && (!signed || check.is_some_and(|check| sound(check).unwrap_or(false)))
    }
}

fn newest_time(documents: &[Document]) -> Option<&Value> {
    documents.iter().max_by_key(|document| document.updated())?.value.get("updated")
}

fn time(document: &Value) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(document.get("updated")?.as_str()?).ok()
}

fn encode(value: &Value, what: &str) -> Result<Vec<u8>> {
    let mut sorted = value.clone();
    // The same stream is the same bytes, in whatever order it was built.
    sorted.sort_all_objects();
    let mut bytes = serde_json::to_vec_pretty(&sorted).context(|| format!("encoding '{what}'"))?;
    bytes.push(b'\n');
    Ok(bytes)
}
