//! The user's own user-data: what form each file has, how it travels, and what configuration is known to be in it.

use std::borrow::Cow;

use serde_json::Value;

use super::message::{self, Header, Leaf};
use super::settings::Config;
use super::unpack::{self, Room};
use super::{UserPart, yaml};
use crate::base::name::quoted;
use crate::base::{ByteSize, Error, Result};

/// Most bytes of all user-data together, packed and unpacked.
const LIMIT: usize = 16 << 20;

/// A form of user-data (cloud-init: "User data formats").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    CloudConfig,
    Archive,
    /// A template: what it comes to is known in the guest alone.
    Jinja,
    /// A JSON patch of what was merged so far.
    Patch,
    /// Addresses of more.
    Include,
    Script,
    /// Boot hook, part handler: no configuration.
    Other,
    /// A MIME message with headers of its own.
    Message,
}

/// One file of user-data, understood as far as it is ours to understand.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub name: &'a str,
    pub form: Form,
    pub content: Content<'a>,
    /// What configuration it brings, in cloud-init's order.
    pub configs: Vec<Config>,
}

/// How a file travels.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// As it is, but for gzip or base64 around it.
    Whole(Cow<'a, [u8]>),
    /// In parts: those of a message that would not arrive whole (see [`must_be_rewritten`]).
    Parts(Vec<Carried>),
}

/// A part of a message, to be written anew.
#[derive(Debug)]
pub(super) struct Carried {
    /// Its header lines, but for how the content is encoded.
    pub headers: String,
    pub body: Vec<u8>,
}

/// The first lines that cloud-init knows, longest first where one begins another.
const FIRST_LINES: &[(&str, Form)] = &[
    ("## template: jinja", Form::Jinja),
    ("#cloud-config-archive", Form::Archive),
    ("#cloud-config-jsonp", Form::Patch),
    ("#cloud-config", Form::CloudConfig),
    ("#cloud-boothook", Form::Other),
    ("#include-once", Form::Include),
    ("#include", Form::Include),
    ("#part-handler", Form::Other),
    ("#!", Form::Script),
];

/// Types of parts that cloud-init unpacks.
const PACKED: &[&str] = &[
    "application/gzip",
    "application/gzip-compressed",
    "application/gzipped",
    "application/x-compress",
    "application/x-compressed",
    "application/x-gunzip",
    "application/x-gzip",
    "application/x-gzip-compressed",
];

/// Types that say little: cloud-init looks at the first line.
const VAGUE: &[&str] = &["text/plain", "text/x-not-multipart", "text/x-shellscript"];

/// Checks the files and tells their forms. Empty ones are left out.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) for what cloud-init would ignore or fail on.
pub(super) fn read(user_data: &[UserPart]) -> Result<Vec<Part<'_>>> {
    let total: usize = user_data.iter().map(|part| part.bytes.len()).sum();
    if total > LIMIT {
        let (total, limit) = (ByteSize(total as u64), ByteSize(LIMIT as u64));
        return Err(Error::usage(format!("user-data of {total} is above the limit of {limit}"))
            .hint("let the guest fetch large files itself"));
    }
    let mut reading = Reading { room: Room::new(LIMIT), configs: Vec::new() };
    user_data.iter().filter(|part| !part.bytes.trim_ascii().is_empty()).map(|part| reading.file(part)).collect()
}

struct Reading {
    room: Room,
    /// Of the file that is being read.
    configs: Vec<Config>,
}

impl Reading {
    fn file<'a>(&mut self, part: &'a UserPart) -> Result<Part<'a>> {
        let what = format!("the user-data {}", quoted(&part.name));
        let bytes = unpack::unpack(&part.bytes, &what, &mut self.room, |text| form_of(text).is_some())?;
        self.room.take(bytes.len(), &what)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            Error::usage(format!("{what} is neither UTF-8 text nor gzip"))
                .because(error)
                .hint("programs and archives cannot be user-data: let a script fetch them")
        })?;
        let form = form_of(text).ok_or_else(|| unknown_form(text, &what))?;
        let parts = match form {
            Form::Message => self.message(text, &what)?,
            _ => self.document(form, text, &what, false).map(|()| None)?,
        };
        let content = parts.map_or(Content::Whole(bytes), Content::Parts);
        Ok(Part { name: &part.name, form, content, configs: std::mem::take(&mut self.configs) })
    }

    /// Notes what configuration is in a document.
    fn document(&mut self, form: Form, text: &str, what: &str, own_rules: bool) -> Result<()> {
        match form {
            Form::CloudConfig => {
                let document = mapping(yaml::parse(text, what)?, what)?;
                self.configs.push(Config::plain(document, own_rules));
            }
            Form::Archive => {
                let Value::Array(entries) = yaml::parse(text, what)? else {
                    return Err(Error::usage(format!("{what} is a cloud-config-archive, but not a list")));
                };
                for (number, entry) in (1..).zip(&entries) {
                    self.entry(entry, &format!("{what}, entry {number},"))?;
                }
            }
            Form::Jinja => {
                let rendered = text.trim_start().split_once('\n').map_or("", |(_, rest)| rest);
                // A script may be one too.
                if form_of(rendered) == Some(Form::CloudConfig) {
                    self.configs.push(Config::Unknown { what: what.to_owned(), text: rendered.to_owned() });
                }
            }
            Form::Patch => self.configs.push(Config::Unknown { what: what.to_owned(), text: text.to_owned() }),
            Form::Include => self.configs.push(Config::Unseen),
            Form::Script | Form::Other | Form::Message => {}
        }
        Ok(())
    }

    /// An entry of an archive: text alone, or a mapping with its type beside it. cloud-init unpacks nothing in it.
    fn entry(&mut self, entry: &Value, what: &str) -> Result<()> {
        let content = entry.as_str().or_else(|| entry.get("content")?.as_str()).unwrap_or_default();
        let form = match entry.get("type").and_then(Value::as_str) {
            Some(kind) => form_of_kind(&kind.to_ascii_lowercase()),
            None => Some(form_of(content).unwrap_or(Form::CloudConfig)),
        };
        let own_rules = |name: &str| entry.get(name).is_some_and(|rules| !rules.is_null());
        let own_rules = own_rules("Merge-Type") || own_rules("X-Merge-Type");
        match form {
            // Binary content is not decoded here.
            Some(Form::CloudConfig) if !yaml::parse(content, what)?.is_object() => {
                let binary = unpack::decode(content.as_bytes()).is_some_and(|bytes| !bytes.is_empty());
                self.configs.extend(binary.then_some(Config::Unseen));
                Ok(())
            }
            Some(form @ (Form::CloudConfig | Form::Jinja | Form::Patch)) => {
                self.document(form, content, what, own_rules)
            }
            _ => Ok(()),
        }
    }

    /// Notes what is in a message; its parts, when it must be rewritten.
    fn message(&mut self, text: &str, what: &str) -> Result<Option<Vec<Carried>>> {
        if message::lacks_boundary(text) {
            return Err(Error::usage(format!(
                "{what} is a multipart message without a boundary, of which cloud-init makes nothing"
            ))
            .hint("its header is to be as in 'Content-Type: multipart/mixed; boundary=\"==x==\"'"));
        }
        let Some(leaves) = message::leaves(text) else {
            let unknown = Config::Unknown { what: what.to_owned(), text: text.to_owned() };
            self.configs.extend([unknown, Config::Unseen]);
            return Ok(None);
        };
        let rewritten = must_be_rewritten(text, &leaves);
        let mut carried = Vec::new();
        for (number, leaf) in (1..).zip(leaves) {
            self.leaf(leaf, &format!("{what}, part {number},"), &mut carried)?;
        }
        Ok(rewritten.then_some(carried))
    }

    fn leaf(&mut self, leaf: Leaf<'_>, what: &str, carried: &mut Vec<Carried>) -> Result<()> {
        let own_rules = leaf.has(&["merge-type", "x-merge-type"]);
        let packed = PACKED.contains(&leaf.kind.as_str());
        let body = match packed {
            true => {
                let body = unpack::gunzip(&leaf.body, what, &self.room)?;
                self.room.take(body.len(), what)?;
                body
            }
            false => leaf.body,
        };
        let text = std::str::from_utf8(&body).unwrap_or_default();
        if packed && form_of(text) == Some(Form::Message) {
            // cloud-init would drop it. One that travels whole becomes parts.
            let Some(leaves) = message::leaves(text) else {
                return Err(Error::usage(format!("{what} is a MIME message that cannot be read")));
            };
            return leaves.into_iter().try_for_each(|leaf| self.leaf(leaf, what, carried));
        }
        if packed && form_of(text).is_none() {
            return Err(unknown_form(text, what));
        }
        let form = match form_of(text) {
            // By whichever name: no other reader makes sense of a template.
            Some(Form::Jinja) => Some(Form::Jinja),
            by_line if packed || VAGUE.contains(&leaf.kind.as_str()) => by_line,
            _ => form_of_kind(&leaf.kind),
        };
        if let Some(form) = form
            && !text.trim().is_empty()
        {
            self.document(form, text, what, own_rules)?;
        }
        // What it is was said of what it was packed in.
        let stays = |header: &&Header<'_>| !packed || !header.is("content-type");
        let mut headers: String = if packed { "Content-Type: text/plain\n".into() } else { String::new() };
        for header in leaf.headers.iter().filter(stays) {
            headers.push_str(header.lines.trim_end());
            headers.push('\n');
        }
        carried.push(Carried { headers, body });
        Ok(())
    }
}

/// Whether cloud-init would lose something of it: what is packed in it and not in ASCII, or a message itself; text
/// outside ASCII that is not encoded, which Python's `email` takes for Latin-1.
fn must_be_rewritten(text: &str, leaves: &[Leaf<'_>]) -> bool {
    !text.is_ascii() || leaves.iter().any(|leaf| PACKED.contains(&leaf.kind.as_str()))
}

/// The form of a type that a message or an archive states.
fn form_of_kind(kind: &str) -> Option<Form> {
    Some(match kind.split(';').next().unwrap_or_default().trim() {
        "text/cloud-config" => Form::CloudConfig,
        "text/cloud-config-archive" => Form::Archive,
        "text/cloud-config-jsonp" => Form::Patch,
        "text/jinja2" => Form::Jinja,
        "text/x-include-url" | "text/x-include-once-url" => Form::Include,
        _ => return None,
    })
}

/// As cloud-init does it: leading blanks and letter case do not count.
fn form_of(text: &str) -> Option<Form> {
    let start: String = text.trim_start().chars().take(4096).collect();
    if message::is_message(&start) {
        return Some(Form::Message);
    }
    let start = start.to_ascii_lowercase();
    let first = start.lines().next()?;
    let (line, form) = FIRST_LINES.iter().find(|(line, _)| first.starts_with(line))?;
    // "#cloud-confg-x" and the like: cloud-init would guess, newer ones differently.
    let rest = &first[line.len()..];
    let ends = rest.is_empty() || rest.starts_with(char::is_whitespace);
    (ends || !matches!(form, Form::CloudConfig | Form::Archive)).then_some(*form)
}

fn unknown_form(text: &str, what: &str) -> Error {
    let first = text.trim_start().lines().next().unwrap_or_default();
    let error = Error::usage(format!("{what} begins with {}, which cloud-init would ignore", quoted(first)));
    if first.starts_with('\u{feff}') {
        return error.hint("remove the byte order mark: save the file as UTF-8 without one");
    }
    error.hint("the first line must be '#cloud-config' for YAML, or '#!/bin/sh' (or the like) for a script").hint(
        "cloud-init also knows #include, #cloud-config-archive, #cloud-boothook, #part-handler, \
         '## template: jinja', MIME messages and gzip",
    )
}

fn mapping(document: Value, what: &str) -> Result<Value> {
    match document {
        Value::Null => Ok(Value::Object(serde_json::Map::new())),
        Value::Object(_) => Ok(document),
        _ => Err(Error::usage(format!("{what} is cloud-config, but not a mapping of keys to values"))),
    }
}
