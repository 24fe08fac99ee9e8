//! Paths in a guest.

use std::fmt;
use std::str::FromStr;

use super::quoted;
use crate::base::{Error, Result};

/// Longest path (Linux, PATH_MAX, with its closing zero).
const LONGEST: usize = 4095;

/// A path in a guest: absolute, or relative to the home folder of whoever works there. It has no `..` and no control
/// characters, and does not end with `/`. Empty: the home folder itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPath(String);

impl GuestPath {
    /// The text; `.` for the home folder.
    #[must_use]
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "." } else { &self.0 }
    }

    /// The path where `home` is the home folder.
    #[must_use]
    pub fn beneath(&self, home: &str) -> String {
        match self.0.as_str() {
            "" => home.to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("{home}/{path}"),
        }
    }

    /// Its last part; `None` for `/` and for the home folder.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        self.0.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// The folder that it is in.
    #[must_use]
    pub fn parent(&self) -> &str {
        match self.0.rsplit_once('/') {
            None => ".",
            Some(("", _)) => "/",
            Some((parent, _)) => parent,
        }
    }
}

impl FromStr for GuestPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format!("{} is not a path in a guest: it {why}", quoted(text)));
        if text.len() > LONGEST {
            return Err(wrong("is too long"));
        }
        if text.chars().any(char::is_control) {
            return Err(wrong("has control characters"));
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.contains(&"..") {
            return Err(wrong("leads upwards"));
        }
        let root = if text.starts_with('/') { "/" } else { "" };
        Ok(GuestPath(format!("{root}{}", parts.join("/"))))
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> GuestPath {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_read() {
        for (text, whole, name, parent) in [
            ("/etc//motd", "/etc/motd", Some("motd"), "/etc"),
            ("/motd/", "/motd", Some("motd"), "/"),
            ("./a/./b/", "/root/a/b", Some("b"), "a"),
            ("-rf", "/root/-rf", Some("-rf"), "."),
            ("/", "/", None, "/"),
            ("", "/root", None, "."),
        ] {
            let path = path(text);
            assert_eq!((path.beneath("/root").as_str(), path.file_name()), (whole, name), "{text}");
            assert_eq!(path.parent(), parent, "{text}");
        }
        assert_eq!(path("").as_str(), ".");
        for wrong in ["/a/../b", "..", "a\nb", "a\0b", &"a/".repeat(3000)] {
            assert!(wrong.parse::<GuestPath>().is_err(), "{wrong}");
        }
    }
}
