//! Sources: where streams are and whom to trust for them.
//!
//! A source is data: a TOML file in `streams/` (built in) or in a folder of
//! the user's. The file's name is the source's name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::filter::Filters;
use crate::base::address::{shown, without_secrets};
use crate::base::name::{hex, quoted};
use crate::base::{Address, Context as _, Error, RelPath, Result, fs};

/// Where a source's index is when it does not say.
const DEFAULT_PATH: &str = "streams/v1/index.sjson";

/// The source whose keys vouch for a bare URL, as they do in uvtool.
const DEFAULT_SOURCE: &str = "ubuntu";

const BUILT_IN: [(&str, &str); 7] = [
    (DEFAULT_SOURCE, include_str!("../../streams/ubuntu.toml")),
    ("ubuntu-daily", include_str!("../../streams/ubuntu-daily.toml")),
    ("ubuntu-minimal", include_str!("../../streams/ubuntu-minimal.toml")),
    ("ubuntu-minimal-daily", include_str!("../../streams/ubuntu-minimal-daily.toml")),
    ("maas", include_str!("../../streams/maas.toml")),
    ("linuxcontainers", include_str!("../../streams/linuxcontainers.toml")),
    ("lxd-images", include_str!("../../streams/lxd-images.toml")),
];

/// The key by which Ubuntu's minimal images are told from others, which have the same content ids.
const LABEL: &str = "label";

/// The key that signs Ubuntu's streams. The pin in the source decides whether it counts, as with any other keyring.
const UBUNTU_KEYS: &[u8] = include_bytes!("../../streams/keyrings/ubuntu-cloudimage.gpg");

/// Whether a source's metadata must be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// It must.
    Required,
    /// It need not: the user said so, in a file of their own or on the command line.
    Waived,
    /// Nobody signs it, and the user has not said that they take it so.
    Absent,
}

/// A source of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its name: `[a-z0-9][a-z0-9-]{0,40}`, safe as a folder's name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// The stream's root: http, https or file, ending in `/`.
    pub url: Address,
    /// Where the index is, from the root.
    pub path: RelPath,
    /// Files with the keys that may sign, to be tried in this order.
    pub keyrings: Vec<PathBuf>,
    /// If any: only these keys of the keyrings may sign. Upper-case
    /// hexadecimal, 40 or 64 digits.
    pub fingerprints: Vec<String>,
    /// Packages of distributions that hold the keyring.
    pub packages: Vec<String>,
    /// The keys that virga brings along, for machines where none of the keyrings is installed.
    pub shipped: Option<&'static [u8]>,
    /// If any: only documents with these content ids are this source's, a `*` at the end standing for anything. One key
    /// signs several streams; the id is what tells them apart.
    pub content_ids: Vec<String>,
    /// Whether index and products must be signed.
    pub signing: Signing,
    /// Other roots with the same content, to be tried after `url`.
    pub mirrors: Vec<Address>,
    /// Metadata that was signed longer ago is refused.
    pub max_age: Option<Duration>,
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
    #[serde(default, rename = "content-id")]
    content_id: OneOrMany,
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(rename = "max-age")]
    max_age: Option<String>,
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
        let file: File = toml::from_str(text).map_err(|error| {
            // It quotes the line.
            Error::usage(within()).because(without_secrets(&error.to_string()))
        })?;
        let url = parse_url(&file.url).context(within)?;
        let mirrors = file.mirrors.iter().map(|mirror| parse_mirror(mirror, &url)).collect::<Result<_>>();
        let max_age = file.max_age.as_deref().map(parse_age).transpose();
        let source = Source {
            name: name.to_owned(),
            description: file.description,
            mirrors: mirrors.context(within)?,
            max_age: max_age.context(within)?,
            url,
            path: parse_path(file.path.as_deref().unwrap_or(DEFAULT_PATH)).context(within)?,
            keyrings: file.keyring.into_vec().into_iter().map(|path| folder.join(path)).collect(),
            fingerprints: file
                .fingerprints
                .iter()
                .map(|text| parse_fingerprint(text))
                .collect::<Result<_>>()
                .context(within)?,
            packages: file.package.into_vec(),
            shipped: None,
            content_ids: file.content_id.into_vec(),
            signing: if file.signed.unwrap_or(true) { Signing::Required } else { Signing::Waived },
            filters: Filters::parse(&file.filters).context(within)?,
        };
        if source.is_signed() && source.keyrings.is_empty() {
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
        const FOLDER: &str = "/streams/v1";
        let (root, path) = match url.find("/streams/v1/") {
            // The folder of the index, and no file in it.
            _ if url.trim_end_matches('/').ends_with(FOLDER) => {
                (url.trim_end_matches('/').trim_end_matches(FOLDER), DEFAULT_PATH)
            }
            Some(at) => url.split_at(at + 1),
            None => (url, DEFAULT_PATH),
        };
        let (root, path) = (parse_url(root)?, parse_path(path)?);
        let known = built_in().collect::<Result<Vec<_>>>()?;
        let mut source = match known.into_iter().find(|source| place(&source.url) == place(&root)) {
            // What is known of it does not depend on how it was named.
            Some(known) if known.is_signed() => known,
            _ => {
                let default = builtin(DEFAULT_SOURCE, BUILT_IN[0].1)?;
                let mut filters = default.filters;
                // What tells Ubuntu's own streams apart says nothing of others.
                filters.0.retain(|filter| filter.key() != LABEL);
                Source { filters, content_ids: Vec::new(), max_age: None, ..default }
            }
        };
        (source.name, source.description) = (name_of(&root, &path), root.to_string());
        (source.url, source.path) = (root, path);
        Ok(match keyring {
            Some(keyring) => source.with_keyring(keyring.to_owned()),
            None => source,
        })
    }

    /// With the keys in this file in place of its own. Whoever gives keys wants signatures.
    #[must_use]
    pub fn with_keyring(self, keyring: PathBuf) -> Self {
        let (keyrings, signing) = (vec![keyring], Signing::Required);
        Source { keyrings, signing, fingerprints: Vec::new(), packages: Vec::new(), shipped: None, ..self }
    }

    /// Whether a document with this content id can be this source's.
    #[must_use]
    pub fn lists(&self, content_id: &str) -> bool {
        let fits = |pin: &String| match pin.strip_suffix('*') {
            Some(start) => content_id.starts_with(start),
            None => pin == content_id,
        };
        self.content_ids.is_empty() || self.content_ids.iter().any(fits)
    }

    /// The same root with another index; its name is then one that is made of both.
    #[must_use]
    pub fn at_path(mut self, path: RelPath) -> Self {
        if path != self.path {
            self.name = name_of(&self.url, &path);
            self.path = path;
        }
        self
    }

    /// Whether its metadata must be signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.signing == Signing::Required
    }

    /// What it is called in the pool. Unsigned runs are a source of their own, under a name that no source can have: they
    /// replace and retire nothing that was signed.
    #[must_use]
    pub fn store(&self) -> String {
        match self.signing {
            Signing::Required => self.name.clone(),
            Signing::Waived | Signing::Absent => format!("{}+unsigned", self.name),
        }
    }

    /// What is remembered under: the place that it is read from, however that is spelled and the source named.
    #[must_use]
    pub fn place(&self) -> String {
        named(&place(&self.url), &place(&self.url))
    }

    /// The URL of a file of this source.
    #[must_use]
    pub fn url_of(&self, path: &RelPath) -> Address {
        self.url.join(path)
    }

    /// The roots that the metadata may be read from, in the order to try them.
    pub fn roots(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.url).chain(&self.mirrors)
    }

    /// Where the file of an item may lie: below each root, then at the mirrors
    /// that the stream names for it. Of these only plain roots count, and none
    /// whose connection is weaker than the source's own.
    #[must_use]
    pub fn places(&self, path: &RelPath, item_mirrors: &[String]) -> Vec<Address> {
        let named = item_mirrors.iter().filter_map(|mirror| parse_mirror(mirror, &self.url).ok());
        let mut places = Vec::new();
        for root in self.roots().cloned().chain(named) {
            let place = root.join(path);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    /// What to tell a user who asks for a source that nobody signs.
    #[must_use]
    pub fn unsigned_hint(&self) -> String {
        format!(
            "take it nevertheless with --unsigned, or for good with signed = false in a streams/{}.toml of your own",
            self.name
        )
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
            Error::not_found(format!("there is no source {}", quoted(&shown(name))))
                .hint(format!("known sources: {}; a URL is taken as well", known.join(", ")))
        })
    }

    /// All of them, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.values()
    }
}

/// That a built-in source is unsigned is a fact, not the user's decision.
fn builtin(name: &str, text: &str) -> Result<Source> {
    let mut source = Source::parse(name, text, Path::new("/"))?;
    if source.signing == Signing::Waived {
        source.signing = Signing::Absent;
    }
    // Only what is pinned: a file of the user's that has the same name brings its own keys.
    source.shipped = (!source.fingerprints.is_empty()).then_some(UBUNTU_KEYS);
    Ok(source)
}

fn built_in() -> impl Iterator<Item = Result<Source>> {
    BUILT_IN.iter().map(|(name, text)| builtin(name, text))
}

fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=41).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::usage(format!("{} is not a source name", quoted(name)))
        .hint("a source name has 1 to 41 of a-z, 0-9 and '-' and does not begin with '-'"))
}

fn parse_url(text: &str) -> Result<Address> {
    let wrong = |why: &str| {
        Error::usage(format!("{} {why}", quoted(&shown(text))))
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
    Ok(Address::new(format!("{scheme}://{rest}{slash}")))
}

/// A further root for what lies at `url`: its connection may not be weaker.
fn parse_mirror(text: &str, url: &Address) -> Result<Address> {
    let mirror = parse_url(text)?;
    let strength = |url: &Address| match url.reveal().split("://").next() {
        Some("file") => 2,
        Some("https") => 1,
        _ => 0,
    };
    // Only a local source may name local files; http says nothing that https kept to itself.
    if strength(&mirror) < strength(url).min(1) || (strength(&mirror) == 2 && strength(url) != 2) {
        return Err(Error::usage(format!("the mirror '{mirror}' is reached in another way than '{url}'")));
    }
    Ok(mirror)
}

fn parse_age(text: &str) -> Result<Duration> {
    humantime::parse_duration(text).map_err(|error| {
        Error::usage(format!("{} is not a time", quoted(text))).because(error).hint("as in max-age = \"14d\"")
    })
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

/// Without user name and password: who they are for is not what the source is, and the name is shown.
fn name_of(root: &Address, path: &RelPath) -> String {
    let root = root.to_string();
    let (scheme, rest) = root.split_once("://").unwrap_or_default();
    let host = rest.split('/').next().filter(|host| !host.is_empty()).unwrap_or(scheme);
    named(host, &format!("{root} {path}"))
}

/// A root without what leads to it all the same: how it is fetched, logins, case of letters and the usual port of its host.
fn place(root: &Address) -> String {
    let root = root.to_string();
    let (scheme, rest) = root.split_once("://").unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit('@').next().unwrap_or(host).to_ascii_lowercase();
    let usual = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => "",
    };
    let host = host.strip_suffix(usual).unwrap_or(&host);
    format!("{}/{}", host.trim_end_matches('.'), path.trim_end_matches('/'))
}

/// A file's name: the beginning of `host` and a short hash of `what`.
fn named(host: &str, what: &str) -> String {
    use sha2::Digest as _;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let host: String = host.chars().map(plain).take(30).collect();
    let hash = sha2::Sha256::digest(what);
    format!("{}-{}", host.trim_matches('-'), hex(&hash[..4])).trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests;
