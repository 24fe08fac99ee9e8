//! How new the metadata was that was verified last. It is kept apart from the copies: they are replaced, swept, or never
//! there, and whoever replays what was signed once must not gain from that.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{PATIENCE, Pool};
use crate::base::lock::{FileLock, Mode};
use crate::base::{RelPath, Result, fs};

/// How new a document is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When it says that it was written.
    pub updated: Option<Timestamp>,
    /// When it was signed, by the newest of its signatures.
    pub signed_at: Option<Timestamp>,
}

impl Mark {
    /// By the time that the documents say; where one says none, by that of the signatures.
    #[must_use]
    pub fn is_before(&self, other: &Mark) -> bool {
        match (self.updated, other.updated) {
            (Some(now), Some(then)) => now < then,
            _ => self.signed_at.zip(other.signed_at).is_some_and(|(now, then)| now < then),
        }
    }

    fn raise(&mut self, other: Mark) {
        self.updated = self.updated.max(other.updated);
        self.signed_at = self.signed_at.max(other.signed_at);
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.updated.or(self.signed_at) {
            Some(time) => time.fmt(f),
            None => f.write_str("no time"),
        }
    }
}

/// The marks of one source: by document and by the key that signed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks(BTreeMap<String, BTreeMap<String, Mark>>);

/// A document that was verified just now.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Where it is in the stream.
    pub path: &'a RelPath,
    /// The primary keys that signed it.
    pub signers: &'a [String],
    /// How new it is.
    pub mark: Mark,
}

impl Marks {
    /// A mark of the document that `now` is before, set by one of `keys`. What other keys signed says nothing to whoever
    /// does not trust them.
    #[must_use]
    pub fn later(&self, path: &RelPath, keys: &[String], now: &Mark) -> Option<Mark> {
        let marks = self.0.get(&document(path))?;
        marks.iter().filter(|(key, mark)| keys.contains(key) && now.is_before(mark)).map(|(_, mark)| *mark).next()
    }

    fn raise(&mut self, seen: &Seen<'_>) {
        let marks = self.0.entry(document(seen.path)).or_default();
        for signer in seen.signers {
            marks.entry(signer.clone()).or_default().raise(seen.mark);
        }
    }

    fn lower(&mut self, seen: &Seen<'_>, keys: &[String]) {
        if let Some(marks) = self.0.get_mut(&document(seen.path)) {
            marks.retain(|key, mark| !keys.contains(key) || !seen.mark.is_before(mark));
        }
    }
}

/// A document has one mark under both of its names.
fn document(path: &RelPath) -> String {
    let path = path.as_str();
    path.strip_suffix(".sjson").map_or_else(|| path.to_owned(), |stem| format!("{stem}.json"))
}

impl Pool {
    /// The marks of a source; none when nothing of it was verified.
    ///
    /// # Errors
    /// When they are there and cannot be read: then nobody knows what is old.
    pub fn marks(&self, source: &str) -> Result<Marks> {
        let path = self.layout.verified(source);
        let marks = fs::read_json(&path).map_err(|error| {
            error.hint(format!("without '{}' the next sync is as the first one: metadata of any age", path.display()))
        })?;
        Ok(marks.unwrap_or_default())
    }

    /// Raises the marks of a source to what was seen. `false`, with nothing written, when a document is before a mark
    /// that one of `keys` set meanwhile, unless `lower`: then such marks give way.
    ///
    /// # Errors
    /// As [`marks`](Self::marks), and when they cannot be written.
    pub fn remember(&self, source: &str, seen: &[Seen<'_>], keys: &[String], lower: bool) -> Result<bool> {
        if seen.is_empty() {
            return Ok(true);
        }
        let path = self.layout.verified(source);
        fs::create_private_dir(fs::folder_of(&path))?;
        let lock = self.layout.verified_lock();
        let _lock = FileLock::acquire(&lock, Mode::Exclusive, "what was verified last", PATIENCE)?;
        let old = self.marks(source)?;
        let mut marks = old.clone();
        for one in seen {
            if lower {
                marks.lower(one, keys);
            } else if marks.later(one.path, keys, &one.mark).is_some() {
                return Ok(false);
            }
            marks.raise(one);
        }
        if marks != old {
            fs::write_json(&path, &marks, 0o600)?;
        }
        Ok(true)
    }
}
