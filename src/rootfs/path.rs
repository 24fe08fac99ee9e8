//! The name of an entry: where it goes beneath the root, and nowhere else.

use std::fmt;

use crate::base::name::quoted;
use crate::base::{Error, Result};

/// Longest name of a file (Linux, NAME_MAX).
const LONGEST_PART: usize = 255;
/// Deepest path: each part is walked for each entry below it. Trees that people use end at some forty.
const DEEPEST: usize = 256;
/// Longest path (Linux, PATH_MAX, with its closing zero).
pub(super) const LONGEST: usize = 4095;

/// A path beneath the root, as bytes: parts joined by `/`, none of them empty,
/// `.` or `..`. The root itself is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Reads a name as archives have it, with or without `./` in front.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] for a name that is absolute, leads upwards, or is no name.
    pub(super) fn parse(name: &[u8]) -> Result<Self> {
        let wrong = |why: &str| Error::refused(format!("the archive has the name {}, which {why}", shown(name)));
        if name.is_empty() || name.len() > LONGEST {
            return Err(wrong("is empty or too long"));
        }
        if name.starts_with(b"/") {
            return Err(wrong("is absolute"));
        }
        let mut parts = Vec::new();
        for part in name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err(wrong("leads upwards"));
            }
            if part.len() > LONGEST_PART || part.contains(&0) {
                return Err(wrong("cannot be a file's name"));
            }
            parts.push(part);
        }
        if parts.len() > DEEPEST {
            return Err(wrong("lies too deep"));
        }
        Ok(EntryPath(parts.join(&b'/')))
    }

    /// Whether it is the root itself.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// What it is beneath a folder; `None` for what does not lie in it.
    pub(super) fn beneath(&self, folder: &str) -> Option<EntryPath> {
        let rest = self.0.strip_prefix(folder.as_bytes())?;
        match rest.strip_prefix(b"/") {
            Some(below) => Some(EntryPath(below.to_vec())),
            None => rest.is_empty().then(EntryPath::default),
        }
    }

    /// The path as bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The parts, outermost first.
    pub(super) fn parts(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The folder that holds it; the root's is the root.
    pub(super) fn parent(&self) -> EntryPath {
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        EntryPath(self.0[..end].to_vec())
    }

    /// Its last part; empty for the root.
    pub(super) fn name(&self) -> &[u8] {
        self.parts().next_back().unwrap_or_default()
    }

    /// Whether it lies directly in `dev`.
    pub(super) fn is_in_dev(&self) -> bool {
        self.parent().0 == b"dev"
    }
}

impl fmt::Display for EntryPath {
    /// In quotes, fit for a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&if self.is_root() { "'.'".into() } else { shown(&self.0) })
    }
}

/// Bytes that somebody else chose, fit for a message.
pub(super) fn shown(name: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(name))
}
