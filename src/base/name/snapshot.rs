//! The names of snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::quoted;
use crate::base::{Error, Result};

/// A snapshot's name: 1 to 63 of `A-Z a-z 0-9 . _ -`, beginning with a letter. QEMU takes an id where it
/// takes a name, and its ids are numbers: no name of ours can be one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
        if starts && text.len() <= 63 && text.bytes().all(plain) {
            return Ok(SnapshotName(text.to_owned()));
        }
        Err(Error::usage(format!("{} is not the name of a snapshot", quoted(text)))
            .hint("a snapshot's name has 1 to 63 letters, digits, '.', '_' and '-' and begins with a letter"))
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> String {
        name.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for good in ["a", "before-upgrade", "v1.2_3", "A", &"x".repeat(63)] {
            assert_eq!(good.parse::<SnapshotName>().unwrap().as_str(), good);
        }
        for bad in ["", "1", "-a", ".", "a b", "a/b", "a,b", "a<b", "a'", "ä", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }
}
