//! Puts the user's parts, ours and the scripts into one user-data document.
//!
//! RFC 2046, section 5.1, as Python's `email` reads it. One trap shapes this:
//! it takes text outside ASCII without a transfer encoding for Latin-1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::config::Ours;
use super::part::{Carried, Content, Form, Part};
use super::{Script, yaml};
use crate::base::Result;

/// cloud-init's merging rules, "Merging user data sections": lists grow, nothing is overwritten.
const ADD: &str = "list(append)+dict(no_replace,recurse_list)+str()";
/// Keys of ours take the place of theirs. Also cloud-init's rule where none is stated.
const REPLACE: &str = "list()+dict(replace)+str()";

/// The user-data: one plain cloud-config document when there is nothing but
/// ours (the easiest to read in the guest), a MIME message otherwise.
///
/// # Errors
/// When ours cannot be written as YAML.
pub(super) fn user_data(parts: &[Part<'_>], ours: &Ours, scripts: &[Script]) -> Result<Vec<u8>> {
    if parts.is_empty() && scripts.is_empty() {
        let mut all = ours.additions.clone();
        all.extend(ours.decisions.clone());
        return Ok(yaml::write_cloud_config(&all)?.into_bytes());
    }
    let mut entities = Vec::new();
    for (number, part) in (1..).zip(parts) {
        entities.extend(theirs(number, part));
    }
    // Behind theirs: the merging rules of a part say how it goes over those before it.
    for (name, rule, document) in
        [("virga-additions", ADD, &ours.additions), ("virga-decisions", REPLACE, &ours.decisions)]
    {
        if !document.is_empty() {
            let header = format!("Merge-Type: {rule}\n");
            let text = yaml::write_cloud_config(document)?;
            entities.push(entity("text/cloud-config", name, &header, text.as_bytes()));
        }
    }
    // cloud-init runs scripts sorted by name, and names those that fail in its result.
    for (number, script) in (1..).zip(scripts) {
        let name = format!("virga-once-{number:03}-{}", plain(&script.name));
        entities.push(entity("text/x-shellscript", &name, "", &script.bytes));
    }
    Ok(join(&entities))
}

fn theirs(number: usize, part: &Part<'_>) -> Vec<Vec<u8>> {
    let bytes = match &part.content {
        Content::Whole(bytes) => bytes,
        Content::Parts(parts) => {
            return parts.iter().map(|Carried { headers, body }| encoded(headers, "", body)).collect();
        }
    };
    let kind = match part.form {
        // A message is an entity as it stands: headers, empty line, body.
        Form::Message => return vec![[bytes.trim_ascii_start(), b"\n"].concat()],
        Form::CloudConfig => "text/cloud-config",
        Form::Archive => "text/cloud-config-archive",
        // This type makes cloud-init look at the first line.
        Form::Jinja | Form::Patch | Form::Include | Form::Script | Form::Other => "text/plain",
    };
    vec![entity(kind, &format!("user-{number:03}-{}", plain(part.name)), "", bytes)]
}

fn entity(kind: &str, name: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let first = format!("Content-Type: {kind}\nContent-Disposition: attachment; filename=\"{name}\"\n");
    encoded(&first, headers, body)
}

fn encoded(first: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let simple = body.iter().all(|b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t' | b'\n'));
    let encoding = if simple { "7bit" } else { "base64" };
    let mut bytes = format!("{first}Content-Transfer-Encoding: {encoding}\n{headers}\n").into_bytes();
    if simple {
        bytes.extend(body);
    } else {
        for line in STANDARD.encode(body).as_bytes().chunks(76) {
            bytes.extend(line);
            bytes.push(b'\n');
        }
    }
    bytes.push(b'\n');
    bytes
}

fn join(entities: &[Vec<u8>]) -> Vec<u8> {
    let mut boundary = "==virga==".to_owned();
    // A boundary must occur in no part; the same parts always give the same one.
    while entities.iter().any(|entity| entity.windows(boundary.len()).any(|bytes| bytes == boundary.as_bytes())) {
        boundary.push('=');
    }
    let mut bytes = format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n").into_bytes();
    for entity in entities {
        bytes.extend(format!("\n--{boundary}\n").into_bytes());
        bytes.extend(entity.strip_suffix(b"\n").unwrap_or(entity));
    }
    bytes.extend(format!("\n--{boundary}--\n").into_bytes());
    bytes
}

/// A file name as cloud-init would clean it, so that it is the same in its log and in ours.
fn plain(name: &str) -> String {
    let clean: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).take(100).collect();
    if clean.is_empty() { "unnamed".into() } else { clean }
}
