//! On what terms a source's metadata is taken: which keys must have signed it, or that nobody need have.

use std::path::Path;

use crate::base::{Error, Kind, Result, Trust};
use crate::ops::Env;
use crate::stream::filter::Filters;
use crate::stream::key::Keyring;
use crate::stream::source::{Signing, Source};

/// What a document must show before it is read.
pub(in crate::ops) enum Terms {
    Keys(Box<Keyring>),
    Nobody,
}

impl Terms {
    /// # Errors
    /// [`Kind::Refused`] when the source must be signed and its keys are not there.
    pub(in crate::ops) fn of(env: Env<'_>, source: &Source) -> Result<Self> {
        match source.signing {
            Signing::Required => return Ok(Terms::Keys(Box::new(keyring_of(source)?))),
            Signing::Waived => {}
            Signing::Absent => {
                return Err(Error::refused(format!(
                    "nobody signs '{}': only the connection vouches for it",
                    source.name
                ))
                .hint(source.unsigned_hint()));
            }
        }
        env.reporter.warn(&format!(
            "'{}' is taken unsigned: whoever is on the way to {} can replace its images",
            source.name, source.url
        ));
        Ok(Terms::Nobody)
    }

    /// What images taken on these terms are.
    pub(in crate::ops) fn trust(&self) -> Trust {
        match self {
            Terms::Keys(_) => Trust::Signed,
            Terms::Nobody => Trust::Unsigned,
        }
    }

    /// The filters for a source's items: those that name `trust` are about these terms, and none of its keys.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when images of another kind are asked for.
    pub(in crate::ops) fn without_trust(&self, filters: Filters, source: &Source) -> Result<Filters> {
        let (trust, rest): (Vec<_>, Vec<_>) = filters.0.into_iter().partition(|filter| filter.key() == "trust");
        match trust.iter().find(|filter| !filter.accepts(self.trust().word())) {
            None => Ok(Filters(rest)),
            Some(filter) => {
                let (name, word) = (&source.name, self.trust().word());
                Err(Error::not_found(format!("'{name}' is taken {word}, and {filter} was asked for")))
            }
        }
    }

    /// The primary keys that may sign; none where nothing is verified.
    pub(in crate::ops) fn keys(&self) -> Vec<String> {
        match self {
            Terms::Keys(keyring) => keyring.fingerprints().iter().map(ToString::to_string).collect(),
            Terms::Nobody => Vec::new(),
        }
    }
}

/// The keys that a source's metadata must be signed by.
///
/// # Errors
/// [`Kind::Refused`] when there is no keyring, or none of the pinned keys is in it.
pub fn keyring_of(source: &Source) -> Result<Keyring> {
    let keyring = match (source.keyrings.iter().find(|path| is_there(path)), source.shipped) {
        (Some(path), _) => Keyring::from_file(path).map_err(|error| error.with_kind(Kind::Refused))?,
        (None, Some(shipped)) => Keyring::from_bytes(shipped)?,
        (None, None) => return Err(missing(source)),
    };
    if source.fingerprints.is_empty() {
        return Ok(keyring);
    }
    let pins = source.fingerprints.iter().map(|text| text.parse()).collect::<Result<Vec<_>>>()?;
    keyring.pinned(&pins)
}

/// Whether a file is there, or may be: of one that may not be looked at the reason is told when it is opened.
fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

fn missing(source: &Source) -> Error {
    let tried: Vec<String> = source.keyrings.iter().map(|path| path.display().to_string()).collect();
    Error::refused(format!("the keyring of '{}' is missing: {}", source.name, tried.join(", ")))
        .hint(source.keyring_hint())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::source::Sources;

    #[test]
    fn the_shipped_key_counts_where_no_package_has_it_and_the_pin_agrees() {
        let sources = Sources::load(&[]).unwrap();
        let bare = Source { keyrings: vec!["/nonexistent/ring.gpg".into()], ..sources.get("ubuntu").unwrap().clone() };
        let keys: Vec<String> = keyring_of(&bare).unwrap().fingerprints().iter().map(ToString::to_string).collect();
        assert_eq!(keys, bare.fingerprints);
        let pinned = Source { fingerprints: vec!["0".repeat(40)], ..bare.clone() };
        assert!(keyring_of(&pinned).unwrap_err().to_string().contains("does not hold the pinned key"));
        // What is installed comes first, even when it is worth nothing.
        let installed = tempfile::NamedTempFile::new().unwrap();
        let broken = Source { keyrings: vec![installed.path().to_owned()], ..bare.clone() };
        assert_eq!(keyring_of(&broken).unwrap_err().kind(), Kind::Refused);
        let none = bare.with_keyring("/nonexistent/mine.gpg".into());
        assert!(keyring_of(&none).unwrap_err().to_string().contains("/nonexistent/mine.gpg"));
    }

    #[test]
    fn filters_about_trust_are_about_the_terms() {
        let sources = Sources::load(&[]).unwrap();
        let source = sources.get("ubuntu").unwrap();
        let filters = |texts: &[&str]| Filters::parse(texts).unwrap();
        let rest = Terms::Nobody.without_trust(filters(&["os=debian", "trust=unsigned"]), source).unwrap();
        assert_eq!(rest, filters(&["os=debian"]));
        let error = Terms::Nobody.without_trust(filters(&["trust=signed"]), source).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
