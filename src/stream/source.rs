//! Sources: where streams are and whom to trust for them.
//!
//! A source is data: a TOML file in `streams/` (built in) or in a folder of
//! the user's. The file's name is the source's name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::filter::Filters;
use crate::base::name::{hex, quoted};
use crate::base::{Context as _, Error, RelPath, Result, fs};

/// Where a source's index is when it does not say.
const DEFAULT_PATH: &str = "streams/v1/index.sjson";

/// The source whose keys vouch for a bare URL, as they do in uvtool.
const DEFAULT_SOURCE: &str = "ubuntu";

const BUILT_IN: [(&str, &str); 4] = [
    (DEFAULT_SOURCE, include_str!("../../streams/ubuntu.toml")),
    ("ubuntu-daily", include_str!("../../streams/ubuntu-daily.toml")),
    ("ubuntu-minimal", include_str!("../../streams/ubuntu-minimal.toml")),
    ("ubuntu-minimal-daily", include_str!("../../streams/ubuntu-minimal-daily.toml")),
];

/// A source of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its name: `[a-z0-9][a-z0-9-]{0,40}`, safe as a folder's name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// The stream's root: http, https or file, ending in `/`.
    pub url: String,
    /// Where the index is, from the root.
    pub path: RelPath,
    /// Files with the keys that may sign, to be tried in this order.
    pub keyrings: Vec<PathBuf>,
    /// If any: only these keys of the keyrings may sign. Upper-case
    /// hexadecimal, 40 or 64 digits.
    pub fingerprints: Vec<String>,
    /// Packages of distributions that hold the keyring.
    pub packages: Vec<String>,
    /// Whether index and products must be signed.
    pub signed: bool,
    /// Filters that always apply.
    pub filters: Filters,
}

/// A source's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    description: String,
    url: String,
    path: Option<String>,
    #[serde(default)]
    keyring: OneOrMany,
    #[serde(default)]
    fingerprints: Vec<String>,
    #[serde(default)]
    package: OneOrMany,
    signed: Option<bool>,
    #[serde(default)]
    filters: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

impl Source {
    /// Reads a source's file. Relative keyrings are looked for in `folder`.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] saying what is wrong with it.
    pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Self> {
        check_name(name)?;
        let within = || format!("reading the source '{name}'");
        let file: File = toml::from_str(text).map_err(|error| Error::usage(within()).because(error))?;
        let source = Source {
            name: name.to_owned(),
            description: file.description,
            url: parse_url(&file.url).context(within)?,
            path: parse_path(file.path.as_deref().unwrap_or(DEFAULT_PATH)).context(within)?,
            keyrings: file.keyring.into_vec().into_iter().map(|path| folder.join(path)).collect(),
            fingerprints: file
                .fingerprints
                .iter()
                .map(|text| parse_fingerprint(text))
                .collect::<Result<_>>()
                .context(within)?,
            packages: file.package.into_vec(),
            signed: file.signed.unwrap_or(true),
            filters: Filters::parse(&file.filters).context(within)?,
        };
        if source.signed && source.keyrings.is_empty() {
            return Err(Error::usage(format!("the source '{name}' names no keyring"))
                .hint("add keyring = \"/path/to/keys.gpg\", or signed = false to trust whoever serves it"));
        }
        Ok(source)
    }

    /// A source that is only a URL. `streams/v1/FILE` in it is the index;
    /// else that is `streams/v1/index.sjson`. Its name is made of the host and
    /// a short hash, the same for the same URL. With no `keyring`, the keys of
    /// the source `ubuntu` are the trusted ones.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] when it is no URL that virga can read.
    pub fn from_url(url: &str, keyring: Option<&Path>) -> Result<Self> {
        let (root, path) = match url.find("/streams/v1/") {
            Some(at) => url.split_at(at + 1),
            None => (url, DEFAULT_PATH),
        };
        let (root, path) = (parse_url(root)?, parse_path(path)?);
        let default = builtin(DEFAULT_SOURCE, BUILT_IN[0].1)?;
        let (keyrings, fingerprints, packages) = match keyring {
            Some(keyring) => (vec![keyring.to_owned()], Vec::new(), Vec::new()),
            None => (default.keyrings, default.fingerprints, default.packages),
        };
        Ok(Source {
            name: name_of(&root, &path),
            description: root.clone(),
            url: root,
            path,
            keyrings,
            fingerprints,
            packages,
            signed: true,
            filters: default.filters,
        })
    }

    /// The URL of a file of this source.
    #[must_use]
    pub fn url_of(&self, path: &RelPath) -> String {
        join_url(&self.url, path)
    }

    /// What to tell a user who has none of the keyrings.
    #[must_use]
    pub fn keyring_hint(&self) -> String {
        let packages = self.packages.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(" or ");
        if packages.is_empty() {
            return "pass the file with the publisher's public key: --keyring FILE".into();
        }
        format!("the distribution's package {packages} has it; or pass --keyring FILE")
    }
}

/// `root` (ending in `/`) and `path`, whose odd characters are percent-encoded
/// (RFC 3986 section 3.3: all but `pchar` and `/`).
#[must_use]
pub fn join_url(root: &str, path: &RelPath) -> String {
    let mut url = root.to_owned();
    for byte in path.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// All sources by name.
#[derive(Clone, Debug)]
pub struct Sources(BTreeMap<String, Source>);

impl Sources {
    /// The built-in sources, and over them every `*.toml` of `folders`, later
    /// folders over earlier ones. An absent folder is an empty one.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] naming the file that is wrong.
    pub fn load(folders: &[PathBuf]) -> Result<Self> {
        const LIMIT: u64 = 1 << 20;
        let mut sources = BTreeMap::new();
        for (name, text) in BUILT_IN {
            sources.insert(name.to_owned(), builtin(name, text)?);
        }
        for folder in folders {
            for file in fs::list_dir(folder)? {
                let Some(name) = file.strip_suffix(".toml") else { continue };
                let path = folder.join(&file);
                let source = Source::parse(name, &fs::read_text(&path, LIMIT)?, folder)
                    .context(|| format!("in '{}'", path.display()))?;
                sources.insert(name.to_owned(), source);
            }
        }
        Ok(Sources(sources))
    }

    /// The source of this name.
    ///
    /// # Errors
    /// [`crate::base::Kind::NotFound`], telling the known names.
    pub fn get(&self, name: &str) -> Result<&Source> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            Error::not_found(format!("there is no source {}", quoted(name)))
                .hint(format!("known sources: {}; a URL is taken as well", known.join(", ")))
        })
    }

    /// All of them, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.values()
    }
}

fn builtin(name: &str, text: &str) -> Result<Source> {
    Source::parse(name, text, Path::new("/"))
}

fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=41).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::usage(format!("{} is not a source name", quoted(name)))
        .hint("a source name has 1 to 41 of a-z, 0-9 and '-' and does not begin with '-'"))
}

fn parse_url(text: &str) -> Result<String> {
    let wrong = |why: &str| {
        Error::usage(format!("{} {why}", quoted(text)))
            .hint("write the stream's root, for example https://cloud-images.ubuntu.com/releases/")
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is not a URL"))?;
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "http" | "https" if rest.is_empty() || rest.starts_with('/') => return Err(wrong("has no host")),
        "file" if !rest.starts_with('/') => return Err(wrong("is not an absolute file URL")),
        "http" | "https" | "file" => {}
        _ => return Err(wrong("is neither http, https nor file")),
    }
    if rest.contains(['?', '#']) || !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("has a query, a fragment, blanks or letters that a URL must encode"));
    }
    let slash = if rest.ends_with('/') { "" } else { "/" };
    Ok(format!("{scheme}://{rest}{slash}"))
}

fn parse_path(text: &str) -> Result<RelPath> {
    // The user wrote it, so it is their mistake and no attack.
    text.parse().map_err(|error: Error| error.with_kind(crate::base::Kind::Usage))
}

/// Upper case, without the blanks that tools print between the groups.
fn parse_fingerprint(text: &str) -> Result<String> {
    let digits: String = text.chars().filter(|c| *c != ' ').collect();
    if matches!(digits.len(), 40 | 64) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_uppercase());
    }
    Err(Error::usage(format!("{} is not a key's fingerprint", quoted(text)))
        .hint("a fingerprint has 40 or 64 hexadecimal digits: 'gpg --show-keys FILE' prints it"))
}

fn name_of(root: &str, path: &RelPath) -> String {
    use sha2::Digest as _;
    let (scheme, rest) = root.split_once("://").unwrap_or_default();
    // Without user name and password: the name is shown, and is a folder's.
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().filter(|host| !host.is_empty()).unwrap_or(scheme);
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let host: String = host.chars().map(plain).take(30).collect();
    let hash = sha2::Sha256::digest(format!("{root} {path}"));
    format!("{}-{}", host.trim_matches('-'), hex(&hash[..4])).trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    const UBUNTU_KEY: &str = "4A3CE3CD565D7EB5C810E2B97FF3F408476CF100";

    fn parse(text: &str) -> Result<Source> {
        Source::parse("own", text, Path::new("/etc/virga/streams"))
    }

    #[test]
    fn the_built_in_sources_are_ubuntus() {
        let sources = Sources::load(&[]).unwrap();
        let urls: Vec<(&str, &str)> =
            sources.iter().map(|source| (source.name.as_str(), source.url.as_str())).collect();
        let root = "https://cloud-images.ubuntu.com";
        assert_eq!(
            urls,
            [
                ("ubuntu", &*format!("{root}/releases/")),
                ("ubuntu-daily", &*format!("{root}/daily/")),
                ("ubuntu-minimal", &*format!("{root}/minimal/releases/")),
                ("ubuntu-minimal-daily", &*format!("{root}/minimal/daily/")),
            ]
        );
        for source in sources.iter() {
            assert!(source.signed);
            assert_eq!(source.fingerprints, [UBUNTU_KEY]);
            assert_eq!(source.keyrings, [Path::new("/usr/share/keyrings/ubuntu-cloudimage-keyring.gpg")]);
            assert!(source.filters.names("ftype") && source.filters.names("datatype") && !source.filters.names("arch"));
            assert!(source.keyring_hint().contains("'ubuntu-keyring' or 'ubuntu-cloudimage-keyring'"));
        }
        let path = "streams/v1/com.ubuntu.cloud:released:download.sjson".parse().unwrap();
        let url = sources.get("ubuntu").unwrap().url_of(&path);
        assert_eq!(url, format!("{root}/releases/streams/v1/com.ubuntu.cloud:released:download.sjson"));
        let error = sources.get("debian").unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.hints()[0].contains("ubuntu-minimal-daily"));
    }

    #[test]
    fn files_of_the_user_replace_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| fs::write_atomic(&folder.path().join(name), text.as_bytes(), 0o644).unwrap();
        write("ubuntu.toml", "url = 'http://mirror.example/u'\nkeyring = ['a.gpg', '/b.gpg']\nsigned = true");
        write(
            "lab.toml",
            "url = 'file:///srv/stream/'\nsigned = false\npath = 'streams/v1/index.json'\nfilters = ['os=debian']",
        );
        write("README", "no source");
        let sources = Sources::load(&[folder.path().join("absent"), folder.path().to_owned()]).unwrap();
        let ubuntu = sources.get("ubuntu").unwrap();
        assert_eq!(ubuntu.url, "http://mirror.example/u/");
        assert_eq!(ubuntu.keyrings, [folder.path().join("a.gpg"), PathBuf::from("/b.gpg")]);
        assert_eq!(ubuntu.path.as_str(), DEFAULT_PATH);
        let lab = sources.get("lab").unwrap();
        assert!(!lab.signed && lab.filters.names("os"));
        write("Bad Name.toml", "");
        let error = Sources::load(&[folder.path().to_owned()]).unwrap_err();
        assert!(error.to_string().contains("Bad Name.toml"), "{error}");
    }

    #[test]
    fn wrong_files_are_explained() {
        for (text, part) in [
            ("url = 'https://x/'", "names no keyring"),
            ("signed = false", "missing field `url`"),
            ("url = 'https://x/'\nkeyrings = 'a'", "unknown field `keyrings`"),
            ("url = 'https://x/'\nkeyring = 3", "a string or a list of strings"),
            ("url = 'ftp://x/'\nsigned = false", "neither http, https nor file"),
            ("url = 'x/y'\nsigned = false", "is not a URL"),
            ("url = 'https:///x'\nsigned = false", "has no host"),
            ("url = 'file://x/y'\nsigned = false", "not an absolute file URL"),
            ("url = 'https://x/?a=b'\nsigned = false", "has a query"),
            ("url = 'https://x/a b'\nsigned = false", "blanks"),
            ("url = 'https://x/'\nsigned = false\npath = '../x'", "not a plain relative path"),
            ("url = 'https://x/'\nsigned = false\nfingerprints = ['1234']", "'1234' is not a key's fingerprint"),
            ("url = 'https://x/'\nsigned = false\nfilters = ['noble']", "'noble' is not a filter"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            let said = format!("{error}: {}", error.causes().join(": "));
            assert!(said.contains(part), "{text}\n{said}");
        }
        for name in ["", "-a", "A", "a/b", "..", &"a".repeat(42)] {
            assert!(Source::parse(name, "url = 'https://x/'\nsigned = false", Path::new("/")).is_err(), "{name}");
        }
    }

    #[test]
    fn fingerprints_are_taken_as_gpg_prints_them() {
        let text =
            "url = 'https://x/'\nkeyring = 'k'\nfingerprints = ['4a3c e3cd 565d 7eb5 c810  e2b9 7ff3 f408 476c f100']";
        assert_eq!(parse(text).unwrap().fingerprints, [UBUNTU_KEY]);
    }

    #[test]
    fn urls_become_sources() {
        for (url, root, path) in [
            ("https://h.example/a", "https://h.example/a/", DEFAULT_PATH),
            ("HTTP://h.example:8000/a/streams/v1/x.json", "http://h.example:8000/a/", "streams/v1/x.json"),
            ("http://h.example/streams/v1/sub/x.sjson", "http://h.example/", "streams/v1/sub/x.sjson"),
            ("file:///srv/stream", "file:///srv/stream/", DEFAULT_PATH),
        ] {
            let source = Source::from_url(url, None).unwrap();
            assert_eq!((source.url.as_str(), source.path.as_str()), (root, path));
            assert_eq!(source.fingerprints, [UBUNTU_KEY]);
            assert!(source.signed);
            check_name(&source.name).unwrap();
        }
        let name = |url: &str| Source::from_url(url, Some(Path::new("/k.gpg"))).unwrap().name;
        assert!(name("https://h.example:8000/a").starts_with("h-example-8000-"));
        assert!(!name("https://user:secret@h.example/").contains("secret"));
        assert!(name("file:///srv").starts_with("file-"));
        assert_eq!(name("https://h/a"), name("https://h/a/"));
        assert_ne!(name("https://h/a"), name("https://h/b"));
        check_name(&name(&format!("https://{}/", "x.".repeat(100)))).unwrap();
        check_name(&name("https://[::1]/")).unwrap();
        assert!(Source::from_url("https://h/streams/v1/../x", None).is_err());
        assert_eq!(Source::from_url("https://h/a", Some(Path::new("/k.gpg"))).unwrap().fingerprints, [""; 0]);
    }

    #[test]
    fn odd_characters_are_encoded_in_urls() {
        let path = "a[1]/{x}/b+c~d:e.img".parse().unwrap();
        assert_eq!(join_url("https://h/", &path), "https://h/a%5B1%5D/%7Bx%7D/b+c~d:e.img");
    }
}
