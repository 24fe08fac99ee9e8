//! The user's own user-data: what form each file has, and the parsed document
//! where it is plain cloud-config.

use serde_json::Value;

use super::{UserPart, yaml};
use crate::base::name::quoted;
use crate::base::{ByteSize, Error, Result};

/// Most bytes of all user-data together.
const LIMIT: usize = 16 << 20;

/// A form of user-data (cloud-init: "User data formats").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    CloudConfig,
    Archive,
    /// Script, include list, boot hook, part handler, JSON patch, Jinja template:
    /// cloud-init tells them apart by their first line itself.
    FirstLine,
    /// A MIME message with headers of its own.
    Mime,
    Gzip,
}

/// One file of user-data, understood as far as it is ours to understand.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub name: &'a str,
    pub form: Form,
    pub bytes: &'a [u8],
    /// Plain cloud-config only: what other forms come to is known in the guest alone.
    pub document: Option<Value>,
}

/// The first lines that cloud-init knows, longest first where one begins another.
const FIRST_LINES: &[(&str, Form)] = &[
    ("## template: jinja", Form::FirstLine),
    ("#cloud-config-archive", Form::Archive),
    ("#cloud-config-jsonp", Form::FirstLine),
    ("#cloud-config", Form::CloudConfig),
    ("#cloud-boothook", Form::FirstLine),
    ("#include-once", Form::FirstLine),
    ("#include", Form::FirstLine),
    ("#part-handler", Form::FirstLine),
    ("#!", Form::FirstLine),
];

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
    user_data.iter().filter(|part| !part.bytes.trim_ascii().is_empty()).map(read_one).collect()
}

fn read_one(part: &UserPart) -> Result<Part<'_>> {
    let what = format!("the user-data {}", quoted(&part.name));
    let made = |form, document| Part { name: &part.name, form, bytes: &part.bytes, document };
    if part.bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(made(Form::Gzip, None));
    }
    let text = std::str::from_utf8(&part.bytes).map_err(|error| {
        Error::usage(format!("{what} is neither UTF-8 text nor gzip"))
            .because(error)
            .hint("programs and archives cannot be user-data: let a script fetch them")
    })?;
    let form = form_of(text).ok_or_else(|| unknown_form(text, &what))?;
    let document = match form {
        Form::CloudConfig => Some(mapping(yaml::parse(text, &what)?, &what)?),
        Form::Archive => {
            let archive = yaml::parse(text, &what)?;
            if !archive.is_array() {
                return Err(Error::usage(format!("{what} is a cloud-config-archive, but not a list")));
            }
            None
        }
        _ => None,
    };
    Ok(made(form, document))
}

/// As cloud-init does it: leading blanks and letter case do not count.
fn form_of(text: &str) -> Option<Form> {
    let start: String = text.trim_start().chars().take(4096).collect::<String>().to_ascii_lowercase();
    let first = start.lines().next()?;
    let header = ["content-type:", "mime-version:"].iter().any(|name| first.starts_with(name));
    if header && start.contains("mime-version:") {
        return Some(Form::Mime);
    }
    let (line, form) = FIRST_LINES.iter().find(|(line, _)| first.starts_with(line))?;
    // "#cloud-confg-x" and the like: cloud-init would guess, newer ones differently.
    let rest = &first[line.len()..];
    let ends = rest.is_empty() || rest.starts_with(char::is_whitespace);
    (ends || *form == Form::FirstLine).then_some(*form)
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

/// What the plain cloud-config documents say about `key` once cloud-init has
/// merged them: by its rule the last one that has the key. `None` also when a
/// later document states merging rules of its own: then only the guest knows.
pub(super) fn setting<'a>(documents: &[&'a Value], key: &str) -> Option<&'a Value> {
    let mut found = None;
    for document in documents {
        if let Some(value) = document.get(key) {
            let own_rules = document.get("merge_how").or_else(|| document.get("merge_type")).is_some();
            found = if own_rules && found.is_some() { None } else { Some(value) };
        }
    }
    found
}
