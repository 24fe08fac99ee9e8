//! What is too old to be taken: older than what was verified last, than the index says, or than the source allows.

use std::time::Duration;

use jiff::Timestamp;

use super::{Catalog, Document, File, From, Reader, other_name};
use crate::base::{Error, RelPath, Result};
use crate::pool::Generation;
use crate::stream::index::IndexEntry;
use crate::stream::signed::{self, Signer};

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// Metadata older than this is spoken of.
const OLD: Duration = Duration::from_secs(45 * DAY);

impl Reader<'_> {
    /// Refuses a document that is older than the one that was verified last: a
    /// mirror that is stuck, or somebody who replays what was signed once.
    pub(super) fn refuse_older(&self, file: &File, from: From<'_>, what: &str) -> Result<()> {
        if self.allow_older {
            return Ok(());
        }
        // Under either name: else whoever holds one back could show the other one of old.
        let names = [Some(file.path.clone()), other_name(&file.path)];
        let (now, known) = (file.kept.mark(), from.known);
        let older = |path: &RelPath| {
            let then = known.metadata.get(path).filter(|known| known.sha256 != file.kept.sha256)?.mark();
            (now.is_before(&then) && self.vouched(path, known)).then_some(then)
        };
        // Copies come and go, and are replaced by runs on other terms; marks stay.
        let marked = || from.marks.later(&file.path, &self.terms.keys(), &now);
        let Some(then) = names.iter().flatten().find_map(older).or_else(marked) else { return Ok(()) };
        Err(Error::refused(format!("{what} is older than the one that was verified last ({now} after {then})"))
            .hint("the mirror may be out of date; try again later, or take it with --allow-older"))
    }

    /// Whether the keys of today vouch for the copy of a document: one that
    /// they don't says nothing about what is old.
    fn vouched(&self, path: &RelPath, known: &Generation) -> bool {
        let copy = |path: &str| {
            let kept = known.metadata.get(&path.parse().ok()?)?;
            self.pool.metadata(&self.source.store(), kept)
        };
        let Some(bytes) = copy(path.as_str()) else { return false };
        let beside = if signed::is_inline(&bytes) { None } else { copy(&format!("{path}.gpg")) };
        self.check(&bytes, beside.as_deref(), "the copy").is_ok()
    }

    /// Refuses products that are older than the index says: a mirror in the
    /// middle of an update, or somebody who holds one document back.
    pub(super) fn refuse_unlike(&self, entry: &IndexEntry, document: &Document) -> Result<()> {
        let listed = entry.updated.as_deref().and_then(time);
        if let Some((listed, found)) = listed.zip(document.file.kept.updated)
            && found < listed
            && !self.allow_older
        {
            let what = &document.file.kept.url;
            return Err(Error::refused(format!("'{what}' is of {found}, and the index speaks of one of {listed}"))
                .hint("the mirror may be in the middle of an update; try again later, or take it with --allow-older"));
        }
        Ok(())
    }

    /// Somebody who meets a source for the first time cannot know that newer metadata is held back. Where it has a rule of
    /// its own only a copy can be that old.
    pub(super) fn warn_of_age(&self, catalog: &Catalog) {
        let Some(index) = catalog.indexes.first().filter(|_| !self.allow_older) else { return };
        let Some(written) = index.file.kept.signed_at.or(index.file.kept.updated) else { return };
        let limit = self.source.max_age.unwrap_or(OLD);
        if age_of(written).is_some_and(|age| age > limit) {
            let (url, days) = (&index.file.kept.url, limit.as_secs() / DAY);
            let more = match self.source.max_age {
                None => "; max-age in a source file refuses what is too old",
                Some(_) => "",
            };
            self.env.reporter.warn(&format!(
                "'{url}' was signed at {written}, more than {days} days ago: newer metadata may be held back{more}"
            ));
        }
    }

    /// Refuses what is older than the source's own rule allows.
    pub(super) fn refuse_stale(&self, signer: Option<&Signer>, updated: Option<Timestamp>, what: &str) -> Result<()> {
        let Some(limit) = self.source.max_age.filter(|_| !self.allow_older) else { return Ok(()) };
        let rule = format!("the source '{}' says max-age = {}", self.source.name, humantime::format_duration(limit));
        let Some(written) = signer.map(|signer| signer.signed_at).or(updated) else {
            return Err(Error::refused(format!("{what} does not say when it was written")).hint(rule));
        };
        if age_of(written).is_some_and(|age| age > limit) {
            return Err(Error::refused(format!("{what} is too old: it was signed at {written}"))
                .hint(rule)
                .hint("the mirror may be stuck; take it nevertheless with --allow-older"));
        }
        Ok(())
    }
}

/// `None` for a time to come.
fn age_of(written: Timestamp) -> Option<Duration> {
    Timestamp::now().duration_since(written).try_into().ok()
}

/// When a document says that it was written.
pub(super) fn updated(document: &[u8]) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Head {
        updated: Option<String>,
    }
    time(&serde_json::from_slice::<Head>(document).ok()?.updated?)
}

fn time(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp())
}
