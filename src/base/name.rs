//! Names that come from users, streams and guests, parsed into types that
//! cannot hold anything hostile.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

mod arch;
mod backend;
mod guest_path;
mod session;
mod snapshot;
mod user;

pub use arch::{Arch, arch_name, arch_names, is_arch};
pub use backend::BackendName;
pub use guest_path::GuestPath;
pub use session::SessionId;
pub use snapshot::SnapshotName;
pub use user::UserName;

/// A guest's name, which is also its hostname: 1 to 63 of `a-z 0-9 -`,
/// beginning with a letter, not ending with a hyphen (RFC 1123 section 2.1,
/// narrowed to lower case so that host names and folders compare alike).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl GuestName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.as_bytes()[0].is_ascii_lowercase()
            && !text.ends_with('-');
        if fits {
            return Ok(GuestName(text.to_owned()));
        }
        Err(Error::usage(format!("{} is not a guest name", quoted(text)))
            .hint("a guest name has 1 to 63 of a-z, 0-9 and '-', begins with a letter and does not end with '-'"))
    }
}

impl TryFrom<String> for GuestName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> String {
        name.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An image record's id in the pool: 12 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// The id of the item that a stream identifies by these four names, as
    /// offered by one source: another source of the same names is another image.
    #[must_use]
    pub fn of(source: &str, content_id: &str, product: &str, version: &str, item: &str) -> Self {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        for part in [source, content_id, product, version, item] {
            // The length keeps ("a", "bc") and ("ab", "c") apart.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        ImageId(hex(&hash.finalize()[..6]))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(ImageId(text.to_owned()));
        }
        Err(Error::usage(format!("{} is not an image id", quoted(text)))
            .hint("'virga images' shows the ids: 12 hexadecimal digits"))
    }
}

impl TryFrom<String> for ImageId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A template's id: 16 lower-case hexadecimal digits of the hash of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateId(String);

impl TemplateId {
    /// The id of the template with this key, given as text that differs for different keys.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        use sha2::Digest as _;
        TemplateId(hex(&sha2::Sha256::digest(key)[..8]))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(TemplateId(text.to_owned()));
        }
        Err(Error::usage(format!("{} is not a template's id", quoted(text)))
            .hint("'virga template list' shows the ids: 16 hexadecimal digits"))
    }
}

impl TryFrom<String> for TemplateId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TemplateId> for String {
    fn from(id: TemplateId) -> String {
        id.0
    }
}

impl fmt::Display for TemplateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The hash functions that virga trusts for content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestAlgorithm {
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
}

impl DigestAlgorithm {
    /// Length of the digest in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            DigestAlgorithm::Sha256 => 32,
            DigestAlgorithm::Sha512 => 64,
        }
    }

    /// The name used in streams and in file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DigestAlgorithm::Sha256 => "sha256",
            DigestAlgorithm::Sha512 => "sha512",
        }
    }
}

/// A content digest. Text form: `sha256:<hex>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: DigestAlgorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// From hexadecimal text of either case, without a prefix.
    ///
    /// # Errors
    /// [`super::Kind::Refused`] when the text is not a digest of that algorithm.
    pub fn from_hex(algorithm: DigestAlgorithm, text: &str) -> Result<Self> {
        let bytes = unhex(text)
            .filter(|bytes| bytes.len() == algorithm.size())
            .ok_or_else(|| Error::refused(format!("{} is not a {} digest", quoted(text), algorithm.name())))?;
        Ok(Digest { algorithm, bytes })
    }

    /// From the raw bytes that a hasher returned.
    ///
    /// # Panics
    /// When the length is not the algorithm's: a programming error.
    #[must_use]
    pub fn from_bytes(algorithm: DigestAlgorithm, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), algorithm.size(), "digest length");
        Digest { algorithm, bytes: bytes.to_vec() }
    }

    /// The hash function.
    #[must_use]
    pub fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// Lower-case hexadecimal digits without the prefix: safe as a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(&self.bytes)
    }

    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex(&self.bytes[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Digest::from_hex(DigestAlgorithm::Sha256, hex),
            Some(("sha512", hex)) => Digest::from_hex(DigestAlgorithm::Sha512, hex),
            _ => Err(Error::refused(format!("{} is not a digest", quoted(text)))
                .hint("a digest is written sha256:<64 hexadecimal digits>")),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A relative path from a stream: one or more plain segments, no `.` or `..`,
/// no empty segment, no backslash, `%`, `?`, `#`, blank or control character,
/// no `:` in the first segment, where it would make a scheme (RFC 3986 section
/// 4.2; Ubuntu has `streams/v1/com.ubuntu.cloud:released:download.sjson`). It
/// can be joined to a folder or a URL and never leaves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

impl RelPath {
    /// The path as text, segments separated by `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RelPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |segment: &str| {
            !segment.is_empty()
                && segment.len() <= 255
                && segment != "."
                && segment != ".."
                && segment.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b'%' | b'?' | b'#'))
        };
        let scheme = text.split('/').next().is_some_and(|first| first.contains(':'));
        if text.len() <= 1024 && !scheme && text.split('/').all(plain) {
            return Ok(RelPath(text.to_owned()));
        }
        Err(Error::refused(format!("{} is not a plain relative path", quoted(text))))
    }
}

impl TryFrom<String> for RelPath {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> String {
        path.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `text` in quotes, control characters escaped and cut at 80 characters:
/// fit to stand in a message whoever wrote it.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("'{}'", shown.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\""))
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes of hexadecimal text of either case; `None` when it is not that.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes.chunks_exact(2).map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_names() {
        for good in ["a", "web1", "a-b", &"a".repeat(63)] {
            assert!(good.parse::<GuestName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "1a", "A", "a/b", "a b", "a\nb", "a\"b", "..", "a.b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<GuestName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn relative_paths() {
        for good in ["a", "server/releases/24.04/x.img", "..a", "a~b+c", "streams/v1/a:b:c.sjson"] {
            assert!(good.parse::<RelPath>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/a",
            "../x",
            "a/../x",
            "..",
            "d/..",
            "./d/f",
            "d//f",
            "d/",
            "a\\b",
            "%2e%2e/x",
            "d/f?x",
            "http://x/y",
            "data:x",
            "a b",
            "a\0b",
            "a\nb",
        ] {
            assert!(bad.parse::<RelPath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests() {
        let hex = "AB".repeat(32);
        let digest = Digest::from_hex(DigestAlgorithm::Sha256, &hex).unwrap();
        assert_eq!(digest.to_string(), format!("sha256:{}", hex.to_lowercase()));
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!(Digest::from_hex(DigestAlgorithm::Sha512, &hex).is_err());
        assert!(Digest::from_hex(DigestAlgorithm::Sha256, &"zz".repeat(32)).is_err());
    }

    #[test]
    fn hostile_text_is_escaped_and_cut() {
        assert_eq!(quoted("a\nb\u{1b}"), "'a\\nb\\u{1b}'");
        assert!(quoted(&"x".repeat(500)).chars().count() < 90);
    }

    #[test]
    fn ids_depend_on_every_part() {
        let one = ImageId::of("s", "c", "p", "v", "i");
        assert_eq!(one, ImageId::of("s", "c", "p", "v", "i"));
        assert_ne!(one, ImageId::of("sc", "", "p", "v", "i"));
        assert!(one.as_str().parse::<ImageId>().is_ok());
    }
}
