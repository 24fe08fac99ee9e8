//! The metadata archive of a container image: what the root file system is,
//! and the files that are made in it from a container's configuration.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::entry::{Entries, EntryKind};
use super::path::{EntryPath, shown};
use super::stream::{Bytes, Format, Limits};
use crate::base::name::quoted;
use crate::base::{Context as _, Error, Result};

/// The document in the archive.
pub(super) const DOCUMENT: &str = "metadata.yaml";
/// The folder of its templates.
pub(super) const TEMPLATES: &str = "templates";

/// Far more than any such archive holds.
const LIMITS: Limits = Limits { bytes: 16 << 20, entries: 1000 };
/// Largest document, and largest template.
const LARGEST: u64 = 1 << 20;

/// Architectures: as streams write them, and as LXD and Incus do.
const ARCHITECTURES: [(&str, &str); 8] = [
    ("amd64", "x86_64"),
    ("arm64", "aarch64"),
    ("armhf", "armv7l"),
    ("i386", "i686"),
    ("ppc64el", "ppc64le"),
    ("riscv64", "riscv64"),
    ("s390x", "s390x"),
    ("loong64", "loongarch64"),
];

/// An architecture's name in metadata, from its name in streams.
#[must_use]
pub fn incus_arch(stream: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(name, other)| [*name, *other].contains(&stream)).map(|(_, name)| *name)
}

/// An architecture's name in streams, from its name in metadata: there, either is used.
#[must_use]
pub fn stream_arch(metadata: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(other, name)| [*name, *other].contains(&metadata)).map(|(name, _)| *name)
}

/// When a template's file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// When the container is made.
    Create,
    /// When it is made as a copy of another.
    Copy,
    /// At each start.
    Start,
    /// When it gets another name.
    Rename,
}

impl When {
    /// The word in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            When::Create => "create",
            When::Copy => "copy",
            When::Start => "start",
            When::Rename => "rename",
        }
    }
}

/// A file that is made in the container from its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The template's name: a file in the archive's `templates`.
    pub template: String,
    /// When it is written.
    pub when: Vec<When>,
    /// Not where there is such a file already.
    pub create_only: bool,
    /// Values that the template uses.
    pub properties: BTreeMap<String, String>,
    /// Its text, in the language of the daemons (pongo2).
    pub content: String,
}

/// What a metadata archive says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The root's architecture, as it stands there: `x86_64`, `aarch64`.
    pub architecture: String,
    /// When the image was made, in seconds since 1970.
    pub creation_date: i64,
    /// What it is: `os`, `release`, `description` and others.
    pub properties: BTreeMap<String, String>,
    /// By the path of the file that is made: absolute, and without `..`.
    pub templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Document {
    architecture: String,
    #[serde(default)]
    creation_date: i64,
    #[serde(default)]
    properties: BTreeMap<String, Value>,
    #[serde(default)]
    templates: BTreeMap<String, TemplateEntry>,
}

#[derive(Deserialize)]
struct TemplateEntry {
    template: String,
    #[serde(default)]
    when: Vec<When>,
    #[serde(default)]
    create_only: bool,
    #[serde(default)]
    properties: BTreeMap<String, Value>,
}

impl Metadata {
    /// Reads an archive: a tar, by itself or compressed by xz or gzip. Writes
    /// nothing; reads no more than a bounded part.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] when it is no sound metadata archive.
    pub fn read(archive: &Path) -> Result<Self> {
        read(archive).context(|| format!("reading the metadata archive '{}'", archive.display()))
    }
}

fn read(archive: &Path) -> Result<Metadata> {
    let (bytes, format) = Bytes::open(archive, LIMITS)?;
    if format == Format::Squashfs {
        return Err(Error::refused("it is a squashfs: a root file system, no metadata"));
    }
    let mut entries = Entries::new(bytes);
    let (mut document, mut texts) = (None, BTreeMap::new());
    while let Some(entry) = entries.next()? {
        let parts: Vec<&[u8]> = entry.path.parts().collect();
        if parts.first() == Some(&&b"rootfs"[..]) {
            return Err(Error::refused("it holds a root file system as well")
                .hint("images in one piece are not taken: pack metadata and root by themselves"));
        }
        let is_template = parts.len() == 2 && parts[0] == TEMPLATES.as_bytes();
        let is_document = parts == [DOCUMENT.as_bytes()];
        match entry.kind {
            EntryKind::Folder => {}
            EntryKind::File if is_document => document = Some(text(entries.whole(LARGEST)?, &entry.path)?),
            EntryKind::File if is_template => {
                texts.insert(parts[1].to_vec(), text(entries.whole(LARGEST)?, &entry.path)?);
            }
            // What else somebody put there is of no use to anyone.
            EntryKind::File => {}
            _ => return Err(Error::refused(format!("its entry {} is neither file nor folder", entry.path))),
        }
    }
    entries.finish()?;
    let document = document.ok_or_else(|| {
        Error::refused(format!("it has no {DOCUMENT}"))
            .hint("metadata is what LXD and Incus call incus.tar.xz or lxd.tar.xz")
    })?;
    parse(&document, &texts)
}

fn text(bytes: Vec<u8>, path: &EntryPath) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::refused(format!("its {path} is not UTF-8 text")))
}

fn parse(document: &str, texts: &BTreeMap<Vec<u8>, String>) -> Result<Metadata> {
    let document: Document = serde_saphyr::from_str(document)
        .map_err(|error| Error::refused(format!("its {DOCUMENT} cannot be read")).because(error))?;
    if document.architecture.is_empty() || document.architecture.chars().any(char::is_control) {
        return Err(Error::refused(format!("its {DOCUMENT} says no architecture")));
    }
    let template = |(target, entry): (String, TemplateEntry)| {
        let target = target_of(&target)?;
        let name = &entry.template;
        let content = texts.get(name.as_bytes()).cloned().ok_or_else(|| {
            Error::refused(format!("its template {} for {} is not in it", quoted(name), quoted(&target)))
        })?;
        let properties = properties(entry.properties)?;
        let (when, create_only) = (entry.when, entry.create_only);
        Ok((target, Template { template: entry.template, when, create_only, properties, content }))
    };
    Ok(Metadata {
        architecture: document.architecture,
        creation_date: document.creation_date,
        properties: properties(document.properties)?,
        templates: document.templates.into_iter().map(template).collect::<Result<_>>()?,
    })
}

/// The path that a template is for, as one that stays within.
fn target_of(text: &str) -> Result<String> {
    let wrong = || Error::refused(format!("its template's target {} is no path of a file", quoted(text)));
    let within = text.strip_prefix('/').ok_or_else(wrong)?;
    let path = EntryPath::parse(within.as_bytes()).map_err(|error| wrong().because(error))?;
    if path.is_root() || within.ends_with('/') || within.chars().any(char::is_control) {
        return Err(wrong());
    }
    Ok(format!("/{}", String::from_utf8_lossy(path.bytes())))
}

/// Values as text, whatever YAML took them for.
fn properties(values: BTreeMap<String, Value>) -> Result<BTreeMap<String, String>> {
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        Value::Null => Ok((key, String::new())),
        Value::Bool(_) | Value::Number(_) => Ok((key, value.to_string())),
        _ => Err(Error::refused(format!("its property {} is no text", shown(key.as_bytes())))),
    };
    values.into_iter().map(text).collect()
}
