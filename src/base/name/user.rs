//! Users' names in guests.

use std::fmt;
use std::str::FromStr;

use super::quoted;
use crate::base::{Error, Result};

/// Longest name (useradd(8)).
const LONGEST: usize = 32;

/// A user's name in a guest: what useradd(8) takes anywhere, so 1 to 32 of `A-Z a-z 0-9 _ . -`, beginning with a letter
/// or `_`. To `ssh` it is never an option and never has a host in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(String);

impl UserName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UserName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if starts && text.len() <= LONGEST && text.bytes().all(plain) {
            return Ok(UserName(text.to_owned()));
        }
        Err(Error::usage(format!("{} is not a user's name", quoted(text)))
            .hint("a user's name has 1 to 32 of letters, digits, '_', '.' and '-' and begins with a letter or '_'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_images_have_and_those_that_attack() {
        for good in ["debian", "ec2-user", "cloud-user", "opc", "_x", "Administrator", "a.b"] {
            assert_eq!(good.parse::<UserName>().unwrap().as_str(), good);
        }
        for bad in ["", "-oProxyCommand=x", "a b", "a@b", "a\n", "a%h", "$(x)", "1st", &"a".repeat(33), "é"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
        }
    }
}
