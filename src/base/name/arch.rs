//! Processor architectures, and the names that they go by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::quoted;
use crate::base::{Error, Result};

/// Each architecture under the name that Debian, Ubuntu and the streams use, and under those of kernels and compilers.
const NAMES: [(&str, &[&str]); 10] = [
    ("amd64", &["x86_64", "x86-64", "x64"]),
    ("arm64", &["aarch64"]),
    ("armhf", &["armv7l", "armv7", "armhfp"]),
    ("armel", &["armv5tel"]),
    ("i386", &["i486", "i586", "i686", "x86"]),
    ("loong64", &["loongarch64"]),
    ("ppc64el", &["ppc64le", "powerpc64le"]),
    ("riscv64", &[]),
    ("s390x", &[]),
    ("mips64el", &["mips64le"]),
];

fn known(text: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    NAMES.iter().find(|(name, others)| *name == text || others.contains(&text))
}

/// Whether a text is the name of an architecture, whichever.
#[must_use]
pub fn is_arch(text: &str) -> bool {
    known(text).is_some()
}

/// An architecture under the name that streams use; a text that names none stays as it is.
#[must_use]
pub fn arch_name(text: &str) -> &str {
    known(text).map_or(text, |(name, _)| name)
}

/// All names of the architecture that a text names; the text alone when that is none.
pub fn arch_names(text: &str) -> impl Iterator<Item = &str> {
    let (name, others) = known(text).copied().unwrap_or((text, &[]));
    std::iter::once(name).chain(others.iter().copied())
}

/// A processor architecture, under the names that Debian, Ubuntu and the
/// streams use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Arch {
    /// The architecture that this program was built for.
    #[must_use]
    pub fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Arch::Arm64 } else { Arch::Amd64 }
    }

    /// The stream's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match arch_name(text) {
            "amd64" => Ok(Arch::Amd64),
            "arm64" => Ok(Arch::Arm64),
            _ => Err(Error::usage(format!("{} is not an architecture that virga knows", quoted(text)))
                .hint("known architectures: amd64, arm64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_architecture_has_many_names_and_each_name_is_one_architectures() {
        for (name, also) in [
            ("amd64", "x86_64"),
            ("arm64", "aarch64"),
            ("ppc64el", "ppc64le"),
            ("i386", "i686"),
            ("armhf", "armv7l"),
            ("loong64", "loongarch64"),
        ] {
            assert_eq!((arch_name(also), arch_name(name)), (name, name));
            assert!(arch_names(name).any(|one| one == also) && is_arch(also));
        }
        assert_eq!((arch_name("vax"), is_arch("vax")), ("vax", false));
        assert_eq!(arch_names("vax").collect::<Vec<_>>(), ["vax"]);
        let mut all: Vec<&str> = NAMES.iter().flat_map(|(name, _)| arch_names(name)).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!("x86_64".parse::<Arch>().unwrap(), Arch::Amd64);
        assert!("i686".parse::<Arch>().unwrap_err().to_string().contains("'i686'"));
    }
}
