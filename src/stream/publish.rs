//! Writing a stream: a folder that any simplestreams client can read over
//! HTTP once it is served.
//!
//! ```text
//! images/<sha256>/<item>                   added files; a path's content never changes
//! <any other path>                         mirrored files, where upstream has them
//! streams/v1/<content id>.{sjson,json,json.gpg}   a products document
//! streams/v1/index.{sjson,json,json.gpg}   made anew from all products documents
//! streams/v1/images.{sjson,json,json.gpg}  of a mirror: the same for Incus, derived from the others
//! keyring.gpg                              the public keys, for clients
//! .virga-lock                              held by whoever changes the stream
//! ```
//!
//! The three forms of a document say the same: signed inline, plain, and the
//! signature of the plain one. The `.sjson` index leads to `.sjson` products.
//! Files come first, then products, the index last, each whole or absent: a
//! client that reads at any moment finds all that the index leads to. A change
//! reads the products documents and writes every document again, so what a
//! crash left half-done is put right by the next one.

mod content;
mod document;
mod incus;
mod mirror;
mod pair;
mod verify;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use self::document::Document;
use self::incus::Exported;
pub use self::mirror::{Plan, Published, Upstream};
pub use self::verify::Report;
use super::filter::Filters;
use super::product::Item;
use super::wrong_name;
use crate::base::lock::{FileLock, Mode};
use crate::base::name::{arch_name, quoted};
use crate::base::plan::DiskFormat;
use crate::base::undo::Undo;
use crate::base::{ByteSize, Error, Kind, RelPath, Result, fs};

/// The content id of a stream that was given none.
pub const DEFAULT_CONTENT_ID: &str = "local.virga:custom:download";
/// What an added file is when nothing else is said: a disk image that boots.
pub const DEFAULT_FTYPE: &str = "disk1.img";

/// The public keys for clients, in the stream's root.
pub const KEYRING: &str = "keyring.gpg";
/// What the names of files begin with that are virga's own, not the stream's.
pub const OWN_PREFIX: &str = ".virga-";

/// How long to wait for another who changes the stream: it may be copying a large file.
const PATIENCE: Duration = Duration::from_secs(300);

/// Makes signatures.
pub trait Sign: Sync {
    /// The document as a cleartext-signed message (RFC 4880 section 7).
    ///
    /// # Errors
    /// When the key cannot sign.
    fn inline(&self, document: &[u8]) -> Result<Vec<u8>>;

    /// A detached signature of the document.
    ///
    /// # Errors
    /// When the key cannot sign.
    fn detached(&self, document: &[u8]) -> Result<Vec<u8>>;
}

/// Checks the signatures that [`Sign`] makes.
pub trait Check: Sync {
    /// The signed text of a cleartext-signed message.
    ///
    /// # Errors
    /// [`Kind::Refused`] when it does not verify.
    fn inline(&self, message: &[u8]) -> Result<Vec<u8>>;

    /// Whether `signature` is one of `document`.
    ///
    /// # Errors
    /// [`Kind::Refused`] when it is not.
    fn detached(&self, document: &[u8], signature: &[u8]) -> Result<()>;
}

/// A stream's folder, and the keys that belong to it.
#[derive(Clone, Copy)]
pub struct Publisher<'a> {
    /// The stream's root.
    pub dir: &'a Path,
    /// Signs what is written; `None` for an unsigned stream.
    pub sign: Option<&'a dyn Sign>,
    /// Checks what is read before it is changed and signed again.
    pub check: Option<&'a dyn Check>,
    /// The time of `updated`. Never goes back in a document.
    pub now: Timestamp,
}

impl std::fmt::Debug for Publisher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("dir", &self.dir).field("signed", &self.sign.is_some()).finish()
    }
}

/// What to add to a stream.
#[derive(Clone, Debug)]
pub struct AddRequest {
    /// The file. It is copied; where the file system can, without using space.
    pub file: PathBuf,
    /// The document to add to. Needed only when the stream has several.
    pub content_id: Option<String>,
    /// The product; `<prefix>:server:<release>:<arch>` when absent, the prefix
    /// being the content id's first part.
    pub product: Option<String>,
    /// The version; today's date when absent, with `.1`, `.2` and so on when
    /// that is taken. Other clients want 8 digits of a date at its beginning.
    pub version: Option<String>,
    /// What the file is, which is also the item's name.
    pub ftype: String,
    /// `release` and `arch`, and as wished `os`, `version`, `aliases`,
    /// `release_title` … of the product, `label` and `pubname` of the version.
    pub attributes: BTreeMap<String, String>,
    /// For a disk image: reads what its header says, and refuses a hostile one. Called with the copy that is published.
    pub inspect: Option<fn(&Path) -> Result<Facts>>,
    /// For a container's root file system: its metadata archive (tar.xz).
    pub metadata: Option<PathBuf>,
}

/// What a disk image's header says.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its format.
    pub format: DiskFormat,
    /// The size of the disk that a guest sees.
    pub virtual_size: ByteSize,
}

/// What [`Publisher::add`] did.
#[derive(Clone, Debug)]
pub struct Added {
    /// The item as clients see it.
    pub item: Item,
    /// `false` when the stream had this very file in the product's newest version.
    pub new: bool,
}

/// Attributes that belong to a version; all others belong to the product.
const OF_VERSION: [&str; 2] = ["label", "pubname"];
/// Attributes that say what a product is: changing one would relabel its old versions.
const FIXED: [&str; 3] = ["arch", "os", "release"];
/// Attributes that are not for the user to set.
const RESERVED: [&str; 19] = [
    "_aliases",
    "content_id",
    "datatype",
    "disk_format",
    "format",
    "ftype",
    "item_name",
    "items",
    "md5",
    "mirrors",
    "path",
    "product_name",
    "products",
    "sha256",
    "sha512",
    "size",
    "updated",
    "version_name",
    "versions",
];

impl Publisher<'_> {
    /// Makes the folder a stream with a products document of this content id.
    /// Doing it again changes nothing (but signs anew).
    ///
    /// # Errors
    /// [`Kind::Usage`] for a content id that cannot be a file's name.
    pub fn init(&self, content_id: &str) -> Result<()> {
        fs::create_dir(&self.dir.join("images"))?;
        fs::create_dir(&self.dir.join("streams/v1"))?;
        let _lock = self.lock()?;
        let mut documents = self.load()?;
        if !documents.iter().any(|document| document.content_id() == content_id) {
            documents.push(Document::new(content_id, self.now)?);
        }
        self.save(&documents)
    }

    /// Signs every document again, as it is. Takes the stream's lock. Repeatable.
    ///
    /// # Errors
    /// [`Kind::Refused`] when a document does not verify.
    pub fn sign_again(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.save(&self.load()?)
    }

    /// Whether every document verifies, as it must before anything is changed. Takes the stream's lock.
    ///
    /// # Errors
    /// [`Kind::Refused`] when one does not.
    pub fn check_whole(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.load().map(drop)
    }

    /// Adds a file to the stream. Takes the stream's lock.
    ///
    /// When neither version nor content is new, only the product's attributes
    /// are brought up to date.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a request that makes no sense, [`Kind::NotFound`]
    /// when there is no such file or document, [`Kind::Exists`] when the
    /// version has the item with another content.
    pub fn add(&self, request: &AddRequest) -> Result<Added> {
        check_request(request)?;
        let _lock = self.lock()?;
        let mut documents = self.load()?;
        let exported = Exported::take(&mut documents);
        let document = pick(&mut documents, request.content_id.as_deref(), self.dir)?;
        let attribute = |key: &str| request.attributes.get(key).map_or("", String::as_str);
        let prefix = document.content_id().split(':').next().unwrap_or_default();
        let default = || format!("{prefix}:server:{}:{}", attribute("release"), attribute("arch"));
        let product = request.product.clone().unwrap_or_else(default);
        check_fixed(document.product(&product), &product, request)?;

        let files = pair::files(&self.dir.join("images"), request)?;
        let has = |document: &Document, version: &str, (name, item): &(String, Value)| {
            document.item(&product, version, name).map(|old| old["sha256"] == item["sha256"])
        };
        let items = || files.iter().flat_map(|file| &file.items);
        let newest =
            document.newest(&product).filter(|version| items().all(|item| has(document, version, item) == Some(true)));
        let version = match (&request.version, newest) {
            (Some(version), _) => version.clone(),
            (None, Some(newest)) => newest.to_owned(),
            (None, None) => next_version(document.versions(&product), self.now),
        };
        if let Some((name, _)) = items().find(|item| has(document, &version, item) == Some(false)) {
            let message = format!("version {} of {} has another '{name}'", quoted(&version), quoted(&product));
            return Err(Error::new(Kind::Exists, message)
                .hint("what is published never changes: give another version name, or remove that version first"));
        }
        let new = items().any(|item| has(document, &version, item).is_none());
        let mut attributes = request.attributes.clone();
        if request.metadata.is_some() {
            attributes.extend(pair::defaults(document.product(&product), &attributes));
        }
        let mut undo = Undo::new();
        for file in files {
            for (name, item) in file.items {
                let item = pair::merged(document.item(&product, &version, &name), item);
                if document.put([&product, &version, &name], &attributes, item) {
                    document.touch(self.now);
                }
            }
            if file.content.keep(self.dir, &file.path)? {
                let (dir, path) = (self.dir.to_owned(), file.path);
                undo.push("the file taken into the stream", move || content::remove(&dir, &path));
            }
        }
        let filters = exactly(&[
            ("content_id", document.content_id()),
            ("product_name", &product),
            ("version_name", &version),
            ("item_name", &request.ftype),
        ])?;
        let item = document.select(&filters)?.pop().ok_or_else(|| Error::failed("the added item is not there"))?;
        self.save_with(documents, &exported)?;
        undo.commit();
        Ok(Added { item, new })
    }

    /// Removes the items that pass the filters, with them what belongs to a
    /// container image that is not whole any more, and then the files that no other item names. Takes the stream's lock. Returns what was removed.
    ///
    /// # Errors
    /// [`Kind::Usage`] without any filter: that would empty the stream.
    pub fn remove(&self, filters: &Filters) -> Result<Vec<Item>> {
        if filters.is_empty() {
            return Err(Error::usage("nothing says what to remove")
                .hint("give filters, for example: version_name=20260101; 'arch~' takes everything"));
        }
        let _lock = self.lock()?;
        let mut documents = self.load()?;
        let exported = Exported::take(&mut documents);
        let mut removed = Vec::new();
        for document in &mut documents {
            let mut items = document.select(filters)?;
            items.extend(pair::widowed(document, &items)?);
            for item in &items {
                document.take([item.product(), item.version(), item.name()]);
            }
            if !items.is_empty() {
                document.touch(self.now);
            }
            removed.extend(items);
        }
        if removed.is_empty() {
            return Ok(removed);
        }
        let listed = self.save_with(documents, &exported)?;
        let kept: HashSet<&RelPath> = listed.iter().filter_map(|item| item.path.as_ref()).collect();
        // Only now: until here clients may be told to fetch them.
        for path in removed.iter().filter_map(|item| item.path.as_ref()).filter(|path| !kept.contains(path)) {
            content::remove(self.dir, path)?;
        }
        Ok(removed)
    }

    /// Checks that the index, the documents, their forms and signatures (when
    /// keys are known) and every file agree, and that nothing else lies there.
    /// Changes nothing; waits for no lock. Reads every file whole.
    ///
    /// # Errors
    /// When something cannot be read at all; what is wrong with the stream is
    /// in the report.
    pub fn verify(&self) -> Result<Report> {
        if !self.dir.join(document::INDEX).exists() {
            return Err(no_stream(self.dir));
        }
        verify::run(self.dir, self.check)
    }

    fn lock(&self) -> Result<FileLock> {
        if !self.dir.join("streams/v1").is_dir() {
            return Err(no_stream(self.dir));
        }
        let what = format!("the stream in '{}'", self.dir.display());
        let lock = FileLock::acquire(&self.dir.join(".virga-lock"), Mode::Exclusive, &what, PATIENCE)?;
        // We hold the lock: whoever left these is gone.
        for folder in ["", "images", "streams/v1"].map(|folder| self.dir.join(folder)) {
            for name in fs::list_dir(&folder)?.iter().filter(|name| name.starts_with(fs::TEMPORARY_PREFIX)) {
                fs::remove_file(&folder.join(name))?;
            }
        }
        Ok(lock)
    }

    fn load(&self) -> Result<Vec<Document>> {
        if self.sign.is_none() && self.dir.join(document::SIGNED_INDEX).exists() {
            return Err(Error::usage(format!("the stream in '{}' is signed", self.dir.display()))
                .hint("give its key: without it, clients would go on reading the old documents"));
        }
        document::load(self.dir, self.check)
    }

    /// As [`save`](Self::save), with the derived document where there was one. Returns all that is listed.
    fn save_with(&self, mut documents: Vec<Document>, exported: &Exported) -> Result<Vec<Item>> {
        let listed = mirror::listed(&documents)?;
        if exported.exists() {
            documents.extend(exported.again(self.dir, &documents, &listed)?);
        }
        self.save(&documents)?;
        exported.clear(self.dir, &documents)?;
        Ok(listed)
    }

    fn save(&self, documents: &[Document]) -> Result<()> {
        documents.iter().try_for_each(|document| document.write(self.dir, self.sign))?;
        document::write_index(self.dir, documents, self.sign)
    }
}

fn no_stream(dir: &Path) -> Error {
    Error::not_found(format!("there is no stream in '{}'", dir.display())).hint("'virga stream init DIR' makes one")
}

fn pick<'d>(documents: &'d mut [Document], content_id: Option<&str>, dir: &Path) -> Result<&'d mut Document> {
    let known = documents.iter().map(|document| quoted(document.content_id())).collect::<Vec<_>>().join(", ");
    let one = documents.len() == 1;
    let found = documents.iter_mut().find(|document| content_id.map_or(one, |id| document.content_id() == id));
    found.ok_or_else(|| match content_id {
        Some(id) => Error::not_found(format!("the stream in '{}' has no content id {}", dir.display(), quoted(id)))
            .hint(format!("it has {known}; 'virga stream init' adds another")),
        None if known.is_empty() => no_stream(dir),
        None => Error::usage("the stream has several content ids, and none is said").hint(format!("one of {known}")),
    })
}

fn check_request(request: &AddRequest) -> Result<()> {
    for name in [request.product.as_ref(), request.version.as_ref(), Some(&request.ftype)].into_iter().flatten() {
        let blank = (name.trim() != name).then_some("begins or ends with a blank");
        if let Some(wrong) = wrong_name(name).or(blank) {
            return Err(Error::usage(format!("the name {} {wrong}", quoted(name))));
        }
    }
    if request.ftype.parse::<RelPath>().is_err() || request.ftype.contains('/') {
        return Err(Error::usage(format!(
            "{} cannot be an item's name, which is a file's too",
            quoted(&request.ftype)
        ))
        .hint(format!("a disk image is '{DEFAULT_FTYPE}'")));
    }
    for (key, value) in &request.attributes {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if key.is_empty() || !key.bytes().all(word) || RESERVED.contains(&key.as_str()) || key.starts_with("combined_")
        {
            return Err(Error::usage(format!("{} cannot be set", quoted(key))));
        }
        if value.chars().any(char::is_control) {
            return Err(Error::usage(format!("the value of '{key}' holds a control character")));
        }
    }
    for key in ["release", "arch"] {
        if request.attributes.get(key).is_none_or(String::is_empty) {
            return Err(Error::usage(format!("nothing says the '{key}' of '{}'", request.file.display()))
                .hint(format!("add {key}=VALUE: clients choose images by it")));
        }
    }
    Ok(())
}

fn check_fixed(product: Option<&Map<String, Value>>, name: &str, request: &AddRequest) -> Result<()> {
    for key in FIXED {
        let old = product.and_then(|product| product.get(key)).and_then(Value::as_str);
        let new = request.attributes.get(key).map(String::as_str);
        if let (Some(old), Some(new)) = (old, new)
            && old != new
            && !(key == "arch" && arch_name(old) == arch_name(new))
        {
            let message = format!("the product {} has {key} {}, not {}", quoted(name), quoted(old), quoted(new));
            return Err(Error::usage(message).hint("give another product name"));
        }
    }
    Ok(())
}

/// The date of `now` (UTC), or that with the first suffix that sorts after all
/// versions of the day: `.1` to `.9`, then `.91` to `.99`, `.991` …, because
/// clients compare bytewise, and `.10` would be older than `.9`.
fn next_version<'v>(versions: impl Iterator<Item = &'v str>, now: Timestamp) -> String {
    let date = now.strftime("%Y%m%d").to_string();
    let taken = versions.filter(|version| version.starts_with(&date)).max().map(str::to_owned);
    let names =
        std::iter::once(date.clone()).chain((0usize..).map(|n| format!("{date}.{}{}", "9".repeat(n / 9), n % 9 + 1)));
    // None is free after a suffix of the user's own that sorts after all digits.
    let free = names.take(180).find(|name| taken.as_ref().is_none_or(|taken| name > taken));
    free.unwrap_or_else(|| format!("{}~", taken.unwrap_or(date)))
}

fn exactly(keys: &[(&str, &str)]) -> Result<Filters> {
    Filters::parse(&keys.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
