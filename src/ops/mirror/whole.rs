//! Mirrors whose metadata stays as it came, byte for byte, with the
//! publisher's own signatures: for clients that trust the publisher and not
//! the mirror. It then lists more than the folder holds when filters choose a part.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::files::Files;
use super::{MirrorReport, Read, Run, report};
use crate::base::{Error, RelPath, Result, fs};
use crate::ops::sync::block_on;
use crate::stream::filter::Filters;
use crate::stream::product::{Item, parse_products};
use crate::stream::publish::{KEYRING, Plan, Publisher};
use crate::stream::signed;
use crate::stream::source::Source;

/// Most bytes of a document.
const LIMIT: u64 = 256 << 20;

impl Run<'_> {
    /// As [`super::mirror`], without signing anything.
    pub(super) fn whole(&self, sources: &[Source]) -> Result<MirrorReport> {
        if sources.len() != 1 {
            return Err(Error::usage("only one source's metadata can be kept as it came")
                .hint("mirror each into a folder of its own, or sign anew with --key FILE"));
        }
        let dir = &self.request.dir;
        if dir.join(KEYRING).exists() {
            return Err(Error::usage(format!("the stream in '{}' is signed with a key of its own", dir.display()))
                .hint("go on with --key FILE, or give another folder"));
        }
        if self.request.dry_run {
            return self.twice(sources, |read| self.keep_whole(&read[0]));
        }
        let _held = self.folder().hold()?;
        self.twice(sources, |read| self.keep_whole(&read[0]))
    }

    fn folder(&self) -> Publisher<'_> {
        Publisher { dir: &self.request.dir, sign: None, check: None, now: Timestamp::now() }
    }

    fn keep_whole(&self, read: &Read<'_>) -> Result<MirrorReport> {
        let dir = &self.request.dir;
        check_documents(read)?;
        let listed = listed(read)?;
        let plan = self.plan_whole(read, &listed);
        plan.check()?;
        let one = std::slice::from_ref(read);
        let files = Files::of(dir, &plan, one);
        let mut missing = files.missing(self.env.reporter)?;
        let left_out = listed.len() - plan.wanted.len() - plan.held.len();
        if left_out > 0 {
            self.env.reporter.warn(&format!(
                "the metadata lists {} files and the folder holds {left_out} fewer: clients that ask for those get 404",
                listed.len()
            ));
        }
        if self.request.dry_run {
            return Ok(report(&plan, &files, &missing, Vec::new()));
        }
        let gone = self.listed_before(read, &listed);
        let lost = block_on(files.fetch(&missing, self.env))?;
        missing.retain(|file| !lost.contains(file.path));
        let removed = plan.remove.iter().filter_map(|item| item.path.as_ref());
        self.folder().announce(missing.iter().map(|file| file.path).chain(&gone).chain(removed).chain(&lost))?;
        files.place(&missing)?;
        let documents = self.write_documents(read)?;
        let kept = plan.wanted.iter().chain(&plan.held).filter_map(|item| item.path.as_ref());
        let kept = kept.filter(|path| !lost.contains(*path)).collect();
        self.folder().clear_announced(&kept)?;
        files.clear()?;
        self.remember(one)?;
        Ok(report(&plan, &files, &missing, documents))
    }

    fn plan_whole(&self, read: &Read<'_>, listed: &[Item]) -> Plan {
        let chosen: BTreeSet<&RelPath> = read.chosen.iter().filter_map(|item| item.path.as_ref()).collect();
        let there = |item: &&Item| item.path.as_ref().is_some_and(|path| self.request.dir.join(path.as_str()).exists());
        let others = listed.iter().filter(|item| item.path.as_ref().is_some_and(|path| !chosen.contains(path)));
        let (remove, held): (Vec<&Item>, Vec<&Item>) =
            others.filter(there).partition(|item| !self.request.keep && read.filters.matches(&item.keys));
        let wanted = read.chosen.iter().filter(|item| item.path.is_some()).cloned().collect();
        Plan { wanted, held: held.into_iter().cloned().collect(), remove: remove.into_iter().cloned().collect() }
    }

    /// Files that the folder's documents list and the new ones do not.
    fn listed_before(&self, read: &Read<'_>, listed: &[Item]) -> BTreeSet<RelPath> {
        let now: BTreeSet<&RelPath> = listed.iter().filter_map(|item| item.path.as_ref()).collect();
        let mut before = BTreeSet::new();
        for products in &read.catalog.products {
            let path = self.request.dir.join(products.document.file.path.as_str());
            // What cannot be read says nothing about what may go.
            let Ok(text) = fs::read(&path, LIMIT).and_then(|bytes| signed::unsigned_text(&bytes)) else { continue };
            let Ok(old) = parse_products(&text, None, "the old document") else { continue };
            let paths = old.select(&read.filters, None).filter_map(|item| item.ok()?.path);
            before.extend(paths.filter(|path| !now.contains(path)));
        }
        if self.request.keep { BTreeSet::new() } else { before }
    }

    /// Signatures and products first, the index that everybody begins with last.
    fn write_documents(&self, read: &Read<'_>) -> Result<Vec<String>> {
        let files: Vec<_> = read.catalog.files().collect();
        let mut written = Vec::new();
        for file in files.into_iter().rev() {
            let path = self.request.dir.join(file.path.as_str());
            if fs::read(&path, LIMIT).is_ok_and(|old| old == file.bytes) {
                continue;
            }
            fs::create_dir(fs::folder_of(&path))?;
            fs::write_atomic(&path, &file.bytes, 0o644)?;
            written.push(file.path.to_string());
        }
        Ok(written)
    }
}

/// Documents have one place, files another: neither may overwrite the other.
fn check_documents(read: &Read<'_>) -> Result<()> {
    match read.catalog.files().find(|file| !file.path.as_str().starts_with("streams/v1/")) {
        None => Ok(()),
        Some(file) => Err(Error::refused(format!("the stream has a document at '{}'", file.path))
            .hint("documents outside of streams/v1 cannot be kept as they came: sign anew with --key FILE")),
    }
}

/// Every item with a file that the metadata lists.
fn listed(read: &Read<'_>) -> Result<Vec<Item>> {
    let every = Filters::default();
    let offers = read.catalog.select(&every, None)?.offers;
    let mut paths = BTreeSet::new();
    let items = offers.into_iter().map(|offer| offer.item);
    Ok(items.filter(|item| item.path.as_ref().is_some_and(|path| paths.insert(path.clone()))).collect())
}
