//! Why an image's bytes are taken for what they say they are.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who vouched for an image; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// A key that the user trusts signed for it.
    Signed,
    /// It was made here, or is a file that the user named.
    Own,
    /// A list of checksums that nobody signed, from the publisher's own server.
    ChecksumsOverTls,
    /// Nobody: whoever was on the way could have replaced it.
    Unsigned,
}

impl Trust {
    /// The word for it in records, filters and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Trust::Signed => "signed",
            Trust::Own => "own",
            Trust::ChecksumsOverTls => "checksums-over-tls",
            Trust::Unsigned => "unsigned",
        }
    }

    /// Whether filters choose such images only where they name `trust`.
    #[must_use]
    pub fn must_be_asked_for(self) -> bool {
        self == Trust::Unsigned
    }
}

/// As listings for people show it.
impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.must_be_asked_for() { "UNSIGNED" } else { self.word() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_what_is_stored() {
        for trust in [Trust::Signed, Trust::Own, Trust::ChecksumsOverTls, Trust::Unsigned] {
            assert_eq!(serde_json::to_value(trust).unwrap(), trust.word());
            assert_eq!(serde_json::from_value::<Trust>(trust.word().into()).unwrap(), trust);
        }
        assert_eq!([Trust::Unsigned, Trust::Signed].into_iter().min(), Some(Trust::Signed));
    }
}
