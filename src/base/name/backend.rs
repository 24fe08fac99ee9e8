//! The names that backends and hosts give to what is theirs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::quoted;
use crate::base::{Error, Result};

/// The name of something that is a backend's or the host's: a network, a bridge, a profile, a cluster's member. 1 to 50 letters, digits, `.`, `_` and `-`, not first `-` or `.`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendName(String);

impl BackendName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackendName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if starts && text.len() <= 50 && text.bytes().all(plain) {
            return Ok(BackendName(text.to_owned()));
        }
        Err(Error::usage(format!("{} is not the name of a network or bridge", quoted(text)))
            .hint("names have 1 to 50 letters, digits, '.', '_' and '-'"))
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for BackendName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BackendName> for String {
    fn from(name: BackendName) -> String {
        name.0
    }
}
