//! A filtered copy of other streams: which items it lists, and the documents
//! that list exactly those.
//!
//! A run is about what its filters choose. What earlier, narrower runs brought
//! stays, unless this run's filters cover it and choose it no longer. So the
//! folder's own documents are the record of what it holds: nothing else is kept.
//!
//! ```text
//! .virga-pending   files that may belong to nothing: an interrupted run leaves it
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use super::document::{self, Document};
use super::incus::Exported;
use super::{Publisher, content};
use crate::base::lock::FileLock;
use crate::base::name::quoted;
use crate::base::{DigestAlgorithm, Error, Kind, RelPath, Result, Trust, fs};
use crate::stream::filter::Filters;
use crate::stream::product::Item;

/// The key that says of a mirrored item whether what it was copied from was signed.
pub const UPSTREAM_TRUST: &str = "upstream_trust";
/// The key that says by whom.
pub const UPSTREAM_KEY: &str = "upstream_key";

/// Files that an interrupted run may have left, one path a line.
const PENDING: &str = ".virga-pending";

/// A products document to copy from.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// Its content id.
    pub content_id: &'a str,
    /// Its text, verified.
    pub document: &'a [u8],
    /// What the filters chose of it.
    pub chosen: &'a [Item],
    /// The filters: what they cover and did not choose is not kept.
    pub filters: &'a Filters,
    /// The key that signed it; `None` when it was taken unsigned.
    pub signer: Option<&'a str>,
}

/// What a mirror will list.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Chosen items that have a file.
    pub wanted: Vec<Item>,
    /// What earlier runs brought and stays.
    pub held: Vec<Item>,
    /// What is listed and will not be.
    pub remove: Vec<Item>,
}

impl Plan {
    /// Checks that each path is one file, and none of the stream's own.
    ///
    /// # Errors
    /// [`Kind::Refused`] otherwise.
    pub fn check(&self) -> Result<()> {
        check_paths(self)
    }

    /// Gives up what earlier runs brought and nobody has any more: these files.
    pub fn lose(&mut self, files: &BTreeSet<RelPath>) {
        let lost = |item: &mut Item| item.path.as_ref().is_some_and(|path| files.contains(path));
        self.remove.extend(self.held.extract_if(.., lost));
    }
}

/// What [`Publisher::publish`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Content ids of the documents that were written.
    pub documents: Vec<String>,
    /// Files that nothing listed any more.
    pub deleted: Vec<RelPath>,
}

impl Publisher<'_> {
    /// Makes the folder where there is none, and locks it against other
    /// changes. To be held from planning until all is published.
    ///
    /// # Errors
    /// When another holds it for too long.
    pub fn hold(&self) -> Result<FileLock> {
        fs::create_dir(&self.dir.join(document::FOLDER))?;
        self.lock()
    }

    /// What the folder will list after mirroring `upstream`. Changes nothing.
    ///
    /// With `keep` nothing is removed.
    ///
    /// # Errors
    /// [`Kind::Refused`] when two items claim one path for different files,
    /// when a path is not for a stream's files, and when two documents have one content id.
    pub fn plan(&self, upstream: &[Upstream<'_>], keep: bool) -> Result<Plan> {
        plan(&listed(&self.load()?)?, upstream, keep)
    }

    /// Notes files that may belong to nothing before long: those that get their
    /// final names before anything lists them, and those that are to go.
    /// [`clear_announced`](Self::clear_announced) looks at them, in this run or the next.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn announce<'p>(&self, paths: impl Iterator<Item = &'p RelPath>) -> Result<()> {
        let mut pending = self.pending()?;
        let before = pending.len();
        pending.extend(paths.filter(|path| !is_reserved(path)).cloned());
        if pending.len() == before { Ok(()) } else { self.note_pending(&pending) }
    }

    /// Deletes the announced files that are not among `listed`, with the
    /// folders that this leaves empty; returns those that were there.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn clear_announced(&self, listed: &HashSet<&RelPath>) -> Result<Vec<RelPath>> {
        let mut deleted = Vec::new();
        for path in self.pending()?.into_iter().filter(|path| !listed.contains(path)) {
            if self.dir.join(path.as_str()).symlink_metadata().is_ok() {
                content::remove(self.dir, &path)?;
                deleted.push(path);
            }
        }
        fs::remove_file(&self.dir.join(PENDING))?;
        Ok(deleted)
    }

    /// Makes the folder's documents list what [`plan`](Self::plan) says, whose
    /// files must all be in place; then deletes the files that nothing lists
    /// any more. The caller [holds](Self::hold) the folder. A document that
    /// would say what it says already is not written again. Files that are
    /// `lost` are listed no longer, whichever document has them.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); [`Kind::Refused`] when a file is not in its place.
    pub fn publish(&self, upstream: &[Upstream<'_>], keep: bool, lost: &BTreeSet<RelPath>) -> Result<Published> {
        let mut documents = self.load()?;
        let before = listed(&documents)?;
        let mut plan = plan(&before, upstream, keep)?;
        plan.lose(lost);
        self.check_files(&plan.wanted)?;
        let exported = Exported::take(&mut documents);
        let gone = plan.remove.iter().filter(|item| item.path.as_ref().is_some_and(|path| lost.contains(path)));
        for item in gone {
            let lists = |document: &&mut Document| document.content_id() == item.content_id();
            if let Some(document) = documents.iter_mut().find(lists) {
                document.take(place(item));
                document.touch(self.now);
            }
        }
        for upstream in upstream {
            self.merge(&mut documents, upstream, &plan.held)?;
        }
        let after = listed(&documents)?;
        documents.extend(exported.again(self.dir, &documents, &after)?);

        let listed: HashSet<&RelPath> = after.iter().filter_map(|item| item.path.as_ref()).collect();
        self.announce(before.iter().filter_map(|item| item.path.as_ref()).filter(|path| !listed.contains(path)))?;
        let written = self.save_changed(&documents)?;
        exported.clear(self.dir, &documents)?;
        // Only now: until here clients may be told to fetch them.
        Ok(Published { documents: written, deleted: self.clear_announced(&listed)? })
    }

    fn merge(&self, documents: &mut Vec<Document>, upstream: &Upstream<'_>, held: &[Item]) -> Result<()> {
        let id = upstream.content_id;
        let known = documents.iter().position(|document| document.content_id() == id);
        if known.is_none() && upstream.chosen.is_empty() {
            return Ok(());
        }
        let new = serde_json::from_slice(upstream.document)
            .map_err(|error| Error::refused(format!("the document {} cannot be read", quoted(id))).because(error))?;
        let document = match known {
            Some(at) => &mut documents[at],
            None => {
                documents.push(Document::empty(id).map_err(|error| error.with_kind(Kind::Refused))?);
                documents.last_mut().ok_or_else(|| Error::failed("a list that was added to is empty"))?
            }
        };
        let held: Vec<&Item> = held.iter().filter(|item| item.content_id() == id).collect();
        let merge = Merge {
            chosen: upstream.chosen.iter().map(|item| (place(item), item)).collect(),
            held: held.iter().map(|item| place(item)).collect(),
            signer: upstream.signer,
        };
        document.update(|old| merge.root(old, new), self.now);
        let expected = upstream.chosen.iter().chain(held);
        says(&document.select(&Filters::default())?, expected)
            .map_err(|why| Error::refused(format!("the copy of {} would differ from it: {why}", quoted(id))))
    }

    /// Nothing is listed that is not there. Content was checked when it was fetched.
    fn check_files(&self, items: &[Item]) -> Result<()> {
        for (path, size) in items.iter().filter_map(|item| item.path.as_ref().zip(item.size)) {
            let full = self.dir.join(path.as_str());
            let found = full.metadata().map_err(|error| fs::explain(error, "looking at", &full))?;
            if !found.is_file() || found.len() != size {
                return Err(Error::refused(format!("'{path}' is not the file of {size} bytes that the stream lists")));
            }
        }
        Ok(())
    }

    fn save_changed(&self, documents: &[Document]) -> Result<Vec<String>> {
        let mut written = Vec::new();
        for document in documents {
            if document.write_if_changed(self.dir, self.sign, self.check)? {
                written.push(document.content_id().to_owned());
            }
        }
        document::write_index_if_changed(self.dir, documents, self.sign, self.check)?;
        Ok(written)
    }

    fn pending(&self) -> Result<BTreeSet<RelPath>> {
        let text = match fs::read_text(&self.dir.join(PENDING), document::LIMIT) {
            Err(error) if error.kind() == Kind::NotFound => String::new(),
            other => other?,
        };
        let paths = text.lines().filter_map(|line| line.parse().ok());
        Ok(paths.filter(|path| !is_reserved(path)).collect())
    }

    fn note_pending(&self, paths: &BTreeSet<RelPath>) -> Result<()> {
        let text: String = paths.iter().map(|path| format!("{path}\n")).collect();
        fs::write_atomic(&self.dir.join(PENDING), text.as_bytes(), 0o644)
    }
}

/// All that the folder lists by itself; what is derived from that is made anew each time.
pub(super) fn listed(documents: &[Document]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for document in documents.iter().filter(|document| !document.is_export()) {
        items.extend(document.select(&Filters::default())?);
    }
    Ok(items)
}

fn plan(listed: &[Item], upstream: &[Upstream<'_>], keep: bool) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut runs: HashMap<&str, &Upstream<'_>> = HashMap::new();
    let mut chosen = HashSet::new();
    for one in upstream {
        if runs.insert(one.content_id, one).is_some() {
            return Err(Error::refused(format!("two documents have the content id {}", quoted(one.content_id)))
                .hint("mirror them into folders of their own"));
        }
        chosen.extend(one.chosen.iter().map(|item| (one.content_id, place(item))));
        plan.wanted.extend(one.chosen.iter().filter(|item| item.path.is_some()).cloned());
    }
    for item in listed.iter().filter(|item| !chosen.contains(&(item.content_id(), place(item)))) {
        let covered = runs.get(item.content_id()).is_some_and(|run| run.filters.matches(&item.keys));
        let list = if covered && !keep { &mut plan.remove } else { &mut plan.held };
        list.push(item.clone());
    }
    check_paths(&plan)?;
    Ok(plan)
}

/// Product, version and item.
type Place<'a> = [&'a str; 3];

fn place(item: &Item) -> Place<'_> {
    [item.product(), item.version(), item.name()]
}

/// A path is one file, and no file lies where the stream has its own.
fn check_paths(plan: &Plan) -> Result<()> {
    let mut files: HashMap<&str, &Item> = HashMap::new();
    for item in plan.held.iter().chain(&plan.wanted) {
        let Some(path) = &item.path else { continue };
        if is_reserved(path) {
            return Err(Error::refused(format!(
                "an item of {} has the path '{path}', which is for the stream's own files",
                quoted(item.product())
            )));
        }
        let first = *files.entry(path.as_str()).or_insert(item);
        if !agree(first, item) {
            let of = |item: &Item| quoted(&place(item).join(" "));
            return Err(Error::refused(format!("'{path}' would be two files: of {} and of {}", of(first), of(item)))
                .hint(
                    "mirror them into folders of their own, or remove the one that is there with 'virga stream remove'",
                ));
        }
    }
    for path in files.keys() {
        let folder = path.match_indices('/').map(|(end, _)| &path[..end]).find(|folder| files.contains_key(folder));
        if let Some(folder) = folder {
            return Err(Error::refused(format!("'{folder}' would be a file and the folder of '{path}'")));
        }
    }
    Ok(())
}

fn is_reserved(path: &RelPath) -> bool {
    let path = path.as_str();
    let mut segments = path.split('/');
    let own = [document::FOLDER, "streams", super::KEYRING].contains(&path)
        || path.strip_prefix(document::FOLDER).is_some_and(|rest| rest.starts_with('/'));
    own || segments.any(|segment| segment.starts_with(super::OWN_PREFIX))
}

/// Whether two items give the same file: by at least one digest, and without contradiction.
fn agree(a: &Item, b: &Item) -> bool {
    let sha512 = |item: &Item| item.digest.clone().filter(|digest| digest.algorithm() == DigestAlgorithm::Sha512);
    let pairs = [a.sha256.clone().zip(b.sha256.clone()), sha512(a).zip(sha512(b))];
    let mut common = pairs.iter().flatten().peekable();
    a.size == b.size && common.peek().is_some() && common.all(|(a, b)| a == b)
}

/// Whether `found` are the `expected` items with the same files. The guard
/// against aliases and inheritance that would give a held item another file.
fn says<'i>(found: &[Item], expected: impl Iterator<Item = &'i Item>) -> Result<(), String> {
    let mut found: HashMap<Place<'_>, &Item> = found.iter().map(|item| (place(item), item)).collect();
    for item in expected {
        let same = found.remove(&place(item)).is_some_and(|found| {
            (&found.path, found.size, &found.digest, &found.sha256)
                == (&item.path, item.size, &item.digest, &item.sha256)
        });
        if !same {
            return Err(format!("in {}", quoted(&place(item).join(" "))));
        }
    }
    found.keys().next().map_or(Ok(()), |extra| Err(format!("it has {}", quoted(&extra.join(" ")))))
}

/// What each level calls the next one.
const CHILDREN: [&str; 3] = ["products", "versions", "items"];

type Level = Map<String, Value>;

/// Two trees made one.
struct Merge<'a> {
    chosen: HashMap<Place<'a>, &'a Item>,
    held: HashSet<Place<'a>>,
    signer: Option<&'a str>,
}

impl Merge<'_> {
    fn root(&self, old: Value, new: Value) -> Value {
        let (mut old, mut new) = (into_level(old), into_level(new));
        let products = self.children(take_children(&mut old, 0), take_children(&mut new, 0), &mut Vec::new());
        if !self.held.is_empty() {
            // Held items may use an alias that is gone.
            let known = old.remove("_aliases").map(into_level).unwrap_or_default();
            if !known.is_empty() {
                keep_aliases(new.entry("_aliases").or_insert_with(|| Level::new().into()), known);
            }
        }
        new.remove(document::EXPORT);
        new.insert("products".into(), products.into());
        Value::Object(new)
    }

    /// The next level of both, merged. `at` names the level.
    fn children(&self, mut olds: Level, news: Level, at: &mut Vec<String>) -> Level {
        let mut merged = Level::new();
        for (name, new) in news {
            let old = olds.remove(&name);
            merged.extend(self.child(old, Some(new), name, at));
        }
        for (name, old) in olds {
            merged.extend(self.child(Some(old), None, name, at));
        }
        merged
    }

    /// One product, version or item; `None` when nothing of it is listed.
    fn child(
        &self,
        old: Option<Value>,
        new: Option<Value>,
        name: String,
        at: &mut Vec<String>,
    ) -> Option<(String, Value)> {
        at.push(name);
        let depth = at.len();
        let child = if let [product, version, item] = at.as_slice() {
            self.item(old, new, [product, version, item])
        } else {
            let offered = new.is_some();
            let (mut old, mut new) = (old.map(into_level).unwrap_or_default(), new.map(into_level).unwrap_or_default());
            let (mut olds, news) = (take_children(&mut old, depth), take_children(&mut new, depth));
            if offered {
                push_down(&old, &new, &mut olds);
            }
            let children = self.children(olds, news, at);
            let listed = !children.is_empty();
            let mut level = if offered { new } else { old };
            level.insert(CHILDREN[depth].into(), children.into());
            listed.then_some(Value::Object(level))
        };
        at.pop().zip(child)
    }

    fn item(&self, old: Option<Value>, new: Option<Value>, place: Place<'_>) -> Option<Value> {
        let Some(item) = self.chosen.get(&place) else { return old.filter(|_| self.held.contains(&place)) };
        let mut level = into_level(new?);
        if let (Some(path), Some(size)) = (&item.path, item.size) {
            // Said by the item itself, so that no level above can give it another file.
            level.insert("path".into(), path.as_str().into());
            level.insert("size".into(), size.into());
            for digest in [&item.sha256, &item.digest].into_iter().flatten() {
                level.insert(digest.algorithm().name().into(), digest.hex().into());
            }
        }
        self.note_upstream(item, &mut level);
        Some(Value::Object(level))
    }

    /// Says at the item itself who vouched for it: once it is signed here, it looks signed to everybody. What was unsigned
    /// somewhere on its way stays so, whatever else is said.
    fn note_upstream(&self, item: &Item, level: &mut Level) {
        let unsigned_before = item.keys.get(UPSTREAM_TRUST).is_some_and(|trust| *trust == Trust::Unsigned.word());
        level.remove(UPSTREAM_KEY);
        let trust = match self.signer.filter(|_| !unsigned_before) {
            Some(signer) => {
                level.insert(UPSTREAM_KEY.into(), signer.into());
                Trust::Signed
            }
            None => {
                // Said of the product, it would be said of the item.
                if item.keys.contains_key(UPSTREAM_KEY) {
                    level.insert(UPSTREAM_KEY.into(), "".into());
                }
                Trust::Unsigned
            }
        };
        level.insert(UPSTREAM_TRUST.into(), trust.word().into());
    }
}

fn take_children(level: &mut Level, depth: usize) -> Level {
    level.remove(CHILDREN[depth]).map(into_level).unwrap_or_default()
}

/// What a level no longer says stays true of the children that it was said of.
fn push_down(old: &Level, new: &Level, children: &mut Level) {
    let gone: Vec<_> = old.iter().filter(|(key, _)| !new.contains_key(*key)).collect();
    for child in children.values_mut().filter_map(Value::as_object_mut) {
        for (key, value) in &gone {
            child.entry(key.as_str()).or_insert_with(|| (*value).clone());
        }
    }
}

/// Adds to `aliases` what they lack of `old`.
fn keep_aliases(aliases: &mut Value, old: Level) {
    let Some(aliases) = aliases.as_object_mut() else { return };
    for (key, values) in old {
        let Some(known) = aliases.entry(key).or_insert_with(|| Level::new().into()).as_object_mut() else { continue };
        for (value, meaning) in into_level(values) {
            known.entry(value).or_insert(meaning);
        }
    }
}

fn into_level(value: Value) -> Level {
    match value {
        Value::Object(level) => level,
        _ => Level::new(),
    }
}

#[cfg(test)]
pub(super) mod tests;
