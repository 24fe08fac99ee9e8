//! Checking a whole stream.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::Digest as _;

use super::document::{INDEX, LIMIT, plain_documents, signed_form};
use super::{Check, KEYRING, OWN_PREFIX, content, pair};
use crate::base::name::hex;
use crate::base::{Context as _, DigestAlgorithm, Error, Kind, RelPath, Result, fs};
use crate::stream::filter::Filters;
use crate::stream::index::{IndexEntry, parse_index};
use crate::stream::product::{Item, parse_products};

/// What [`super::Publisher::verify`] found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Products documents read.
    pub documents: usize,
    /// Items whose file was read and compared.
    pub items: usize,
    /// Bytes of those files.
    pub bytes: u64,
    /// Whether the stream has signed documents.
    pub signed: bool,
    /// What is wrong, one sentence each; empty when all is well.
    pub problems: Vec<String>,
}

struct Verifier<'a> {
    dir: &'a Path,
    check: Option<&'a dyn Check>,
    report: Report,
    /// Every file that belongs here.
    known: BTreeSet<String>,
    /// Files hashed already: items may share one.
    summed: BTreeSet<RelPath>,
    /// Of these, the ones that are what the stream says.
    sound: BTreeSet<RelPath>,
    /// SHA-256 of metadata and root together, by their paths: several documents may list them.
    joined: BTreeMap<[RelPath; 2], String>,
}

pub(super) fn run(dir: &Path, check: Option<&dyn Check>) -> Result<Report> {
    let signed = dir.join(super::document::SIGNED_INDEX).exists();
    let report = Report { signed, ..Report::default() };
    let mut verifier = Verifier {
        dir,
        check,
        report,
        known: BTreeSet::new(),
        summed: BTreeSet::new(),
        sound: BTreeSet::new(),
        joined: BTreeMap::new(),
    };
    verifier.index()?;
    verifier.extra()?;
    Ok(verifier.report)
}

impl Verifier<'_> {
    fn problem(&mut self, problem: impl Into<String>) {
        self.report.problems.push(problem.into());
    }

    /// What is wrong with the stream becomes a problem; what is wrong with this machine stays an error.
    fn kept<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(error) if matches!(error.kind(), Kind::Refused | Kind::NotFound) => {
                let causes = error.causes().iter().map(|cause| format!(": {cause}")).collect::<String>();
                self.problem(format!("{error}{causes}"));
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn index(&mut self) -> Result<()> {
        let path: RelPath = INDEX.parse()?;
        let plain = self.document(&path, |bytes| parse_index(bytes, INDEX).map(|index| index.entries))?;
        let signed = match self.check {
            Some(check) if self.report.signed => {
                let signed = read_signed(self.dir, &path, check).and_then(|bytes| parse_index(&bytes, "index.sjson"));
                self.kept(signed)?.map(|index| index.entries)
            }
            _ => None,
        };
        let Some(entries) = plain else { return Ok(()) };
        if let Some(signed) = signed {
            let expected: Vec<IndexEntry> =
                entries.iter().map(|entry| IndexEntry { path: signed_form(&entry.path), ..entry.clone() }).collect();
            if signed != expected {
                self.problem("index.sjson and index.json differ");
            }
        }
        for entry in &entries {
            if entry.is_products() {
                self.products(entry)?;
            } else {
                self.problem(format!("the index has '{}', which is no products document", entry.content_id));
            }
        }
        for path in plain_documents(self.dir)? {
            if !entries.iter().any(|entry| entry.path == path) {
                self.problem(format!("the index does not have '{path}'"));
            }
        }
        Ok(())
    }

    /// Reads a plain document, checking its other forms where there are any.
    fn document<T>(&mut self, path: &RelPath, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<Option<T>> {
        let signature = format!("{path}.gpg");
        self.known.insert(path.to_string());
        if self.report.signed {
            self.known.insert(signed_form(path).to_string());
            self.known.insert(signature.clone());
            for form in [signed_form(path).as_str(), &signature] {
                if !self.dir.join(form).exists() {
                    self.problem(format!("'{form}' is missing"));
                }
            }
        }
        let bytes = fs::read(&self.dir.join(path.as_str()), LIMIT);
        let Some(bytes) = self.kept(bytes)? else { return Ok(None) };
        if let Some(check) = self.check.filter(|_| self.report.signed) {
            let sound = fs::read(&self.dir.join(&signature), LIMIT)
                .and_then(|signature| check.detached(&bytes, &signature))
                .context(|| format!("checking '{signature}'"));
            self.kept(sound)?;
        }
        let parsed = parse(&bytes);
        self.kept(parsed)
    }

    fn products(&mut self, entry: &IndexEntry) -> Result<()> {
        let what = entry.path.as_str();
        let id = entry.content_id.as_str();
        let read = |bytes: &[u8]| {
            let products = parse_products(bytes, Some(id), what)?;
            let mut listed = entry.products.clone();
            listed.sort_unstable();
            let agrees = products.names().eq(listed.iter().map(String::as_str))
                && products.attribute("datatype").as_deref() == entry.datatype.as_deref();
            Ok((products.select(&Filters::default(), None).collect::<Vec<_>>(), agrees))
        };
        let Some((items, agrees)) = self.document(&entry.path, read)? else { return Ok(()) };
        self.report.documents += 1;
        if !agrees {
            self.problem(format!("the index tells other products or another datatype than '{what}'"));
        }
        let items = items.into_iter().map(|item| self.kept(item)).collect::<Result<Vec<_>>>()?;
        let items: Vec<Item> = items.into_iter().flatten().collect();
        if let Some(check) = self.check.filter(|_| self.report.signed) {
            let signed = read_signed(self.dir, &entry.path, check).and_then(|bytes| {
                parse_products(&bytes, Some(id), what)?.select(&Filters::default(), None).collect::<Result<Vec<_>>>()
            });
            if self.kept(signed)?.is_some_and(|signed| signed != items) {
                self.problem(format!("'{what}' and its signed form differ"));
            }
        }
        items.iter().try_for_each(|item| self.file(item))?;
        pair::announced(&items).try_for_each(|(metadata, root, sum)| self.pair(metadata, root, &sum))
    }

    /// That metadata and root have the fingerprint that the stream announces.
    fn pair(&mut self, metadata: &Item, root: &Item, announced: &str) -> Result<()> {
        let (Some(first), Some(second)) = (&metadata.path, &root.path) else { return Ok(()) };
        // What is wrong with a file by itself is told of already.
        if ![first, second].iter().all(|path| self.sound.contains(path)) {
            return Ok(());
        }
        let paths = [first.clone(), second.clone()];
        let sum = match self.joined.get(&paths) {
            Some(sum) => sum.clone(),
            None => {
                let sum = pair::joined([first, second].map(|path| self.dir.join(path.as_str())))?;
                self.joined.insert(paths, sum.clone());
                sum
            }
        };
        if sum != announced {
            self.problem(format!("'{first}' and '{second}' do not have the fingerprint that the stream announces"));
        }
        Ok(())
    }

    fn file(&mut self, item: &Item) -> Result<()> {
        let (Some(path), Some(size), Some(digest)) = (&item.path, item.size, &item.digest) else { return Ok(()) };
        self.known.insert(path.to_string());
        if !self.summed.insert(path.clone()) {
            self.report.items += 1;
            return Ok(());
        }
        let full = self.dir.join(path.as_str());
        let mut sha512 = (digest.algorithm() == DigestAlgorithm::Sha512).then(sha2::Sha512::new);
        let found = fs::open(&full).and_then(|mut file| {
            content::sum(&mut file, &full, |block| {
                sha512.iter_mut().for_each(|hash| hash.update(block));
                Ok(())
            })
        });
        let Some((sha256, length)) = self.kept(found)? else { return Ok(()) };
        self.report.items += 1;
        self.report.bytes += length;
        if length != size {
            self.problem(format!("'{path}' has {length} bytes, not {size}"));
        } else if item.sha256.as_ref().is_some_and(|expected| expected.hex() != sha256) {
            self.problem(format!("'{path}' has other content than its SHA-256 says"));
        } else if sha512.is_some_and(|hash| hex(&hash.finalize()) != digest.hex()) {
            self.problem(format!("'{path}' has other content than its SHA-512 says"));
        } else {
            self.sound.insert(path.clone());
        }
        Ok(())
    }

    /// What lies there and belongs to nothing.
    fn extra(&mut self) -> Result<()> {
        let mut found = Vec::new();
        for name in fs::list_dir(self.dir)?.iter().filter(|name| !is_aside(name)) {
            walk(self.dir, name.clone(), &mut found)?;
        }
        for path in found.into_iter().filter(|path| !self.known.contains(path)).collect::<Vec<_>>() {
            self.problem(format!("'{path}' belongs to nothing"));
        }
        Ok(())
    }
}

fn read_signed(dir: &Path, path: &RelPath, check: &dyn Check) -> Result<Vec<u8>> {
    let form = signed_form(path);
    fs::read(&dir.join(form.as_str()), LIMIT)
        .and_then(|bytes| check.inline(&bytes))
        .context(|| format!("checking '{form}'"))
}

/// What lies in the root and is neither a document nor an image: our own
/// files, the keys for clients, what every new file system begins with.
fn is_aside(name: &str) -> bool {
    name.starts_with(OWN_PREFIX) || name == KEYRING || name == "lost+found"
}

/// `path`, or all files below it when it is a folder, not following links.
fn walk(dir: &Path, path: String, found: &mut Vec<String>) -> Result<()> {
    let full = dir.join(&path);
    let meta = full.symlink_metadata().map_err(|error| fs::explain(error, "looking at", &full))?;
    if !meta.is_dir() {
        found.push(path);
        return Ok(());
    }
    fs::list_dir(&full)?.into_iter().try_for_each(|name| walk(dir, format!("{path}/{name}"), found))
}

impl Report {
    /// The report as a result: its problems as the causes of one refusal.
    ///
    /// # Errors
    /// [`Kind::Refused`] when there is any problem.
    pub fn into_result(self) -> Result<Self> {
        if self.problems.is_empty() {
            return Ok(self);
        }
        let count = self.problems.len();
        let message =
            if count == 1 { "the stream has a fault".into() } else { format!("the stream has {count} faults") };
        Err(Error::refused(message).because(self.problems.join("; ")))
    }
}
