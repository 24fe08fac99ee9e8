//! MIME messages of the user's (RFC 2045 and 2046), taken apart as Python's `email` does it for cloud-init.

use super::unpack;

/// Multiparts in multiparts; nobody writes more.
const DEPTH: usize = 8;

/// A part that has no parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leaf<'a> {
    /// Its header lines as they stand, but for how the content is encoded.
    pub headers: Vec<Header<'a>>,
    /// What it is, in small letters: `text/cloud-config`.
    pub kind: String,
    /// The content, decoded.
    pub body: Vec<u8>,
}

/// One header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header<'a> {
    /// Before the colon.
    pub name: &'a str,
    /// All of it with its line breaks.
    pub lines: &'a str,
}

impl Header<'_> {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    fn value(&self) -> &str {
        self.lines[self.name.len() + 1..].trim()
    }
}

impl Leaf<'_> {
    pub fn has(&self, names: &[&str]) -> bool {
        self.headers.iter().any(|header| names.iter().any(|name| header.is(name)) && !header.value().is_empty())
    }
}

/// Whether cloud-init would take it for a message: `mime-version:` stands among its headers.
pub(super) fn is_message(text: &str) -> bool {
    let text = text.trim_start();
    let (headers, _) = split_headers(text);
    headers.iter().any(|header| header.is("mime-version"))
}

/// Whether it says that it has parts, and not what is between them: cloud-init makes nothing of it.
pub(super) fn lacks_boundary(text: &str) -> bool {
    let (headers, _) = split_headers(text.trim_start());
    let kind = headers.iter().find(|header| header.is("content-type")).map_or("", Header::value).to_ascii_lowercase();
    kind.trim_start().starts_with("multipart/") && !kind.contains("boundary")
}

/// Its parts in their order. `None` for what only the guest can take apart: damaged, or with an encoding or a kind that
/// cloud-init is not known to be sent.
pub(super) fn leaves(text: &str) -> Option<Vec<Leaf<'_>>> {
    let mut found = Vec::new();
    collect(text.trim_start(), DEPTH, &mut found).then_some(found)
}

fn collect<'a>(text: &'a str, depth: usize, found: &mut Vec<Leaf<'a>>) -> bool {
    let (mut headers, body) = split_headers(text);
    let Some(body) = body else { return false };
    let value = |name: &str| headers.iter().find(|header| header.is(name)).map_or("", Header::value);
    let content_type = value("content-type");
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let kind = if kind.contains('/') { kind } else { "text/plain".to_owned() };
    if kind.starts_with("multipart/") {
        let Some(boundary) = parameter(content_type, "boundary") else { return false };
        let parts = split(body, &boundary);
        return depth > 0 && !parts.is_empty() && parts.into_iter().all(|part| collect(part, depth - 1, found));
    }
    let body = match value("content-transfer-encoding").to_ascii_lowercase().as_str() {
        "" | "7bit" | "8bit" | "binary" => Some(body.as_bytes().to_vec()),
        "base64" => unpack::decode(body.as_bytes()),
        "quoted-printable" => Some(from_quoted_printable(body)),
        _ => None,
    };
    let Some(body) = body.filter(|_| !kind.starts_with("message/")) else { return false };
    headers.retain(|header| !header.is("content-transfer-encoding"));
    found.push(Leaf { headers, kind, body });
    true
}

/// The headers, and what follows the empty line behind them; `None` where something else follows.
fn split_headers(text: &str) -> (Vec<Header<'_>>, Option<&str>) {
    let mut headers: Vec<Header<'_>> = Vec::new();
    // (name, where it begins) of the header that goes on.
    let mut open: Option<(&str, usize)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let folded = line.starts_with([' ', '\t']) && open.is_some();
        if !folded {
            headers.extend(open.take().map(|(name, begin)| Header { name, lines: &text[begin..at] }));
            if line.trim_end_matches(['\r', '\n']).is_empty() {
                return (headers, Some(&text[at + line.len()..]));
            }
            let name = line.split_once(':').map(|(name, _)| name);
            match name.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic())) {
                Some(name) => open = Some((name, at)),
                // What a mailbox puts before a message.
                None if at == 0 && line.starts_with("From ") => {}
                None => return (headers, None),
            }
        }
        at += line.len();
    }
    headers.extend(open.map(|(name, begin)| Header { name, lines: &text[begin..] }));
    (headers, Some(""))
}

/// A parameter of a header's value, out of its quotes.
fn parameter(value: &str, name: &str) -> Option<String> {
    value.split(';').skip(1).find_map(|parameter| {
        let (key, text) = parameter.split_once('=')?;
        let text = text.trim();
        let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        (key.trim().eq_ignore_ascii_case(name) && !bare.is_empty()).then(|| bare.replace("\\\"", "\""))
    })
}

/// The parts between the boundaries. The line break before a boundary belongs to that (RFC 2046, section 5.1.1).
fn split<'a>(body: &'a str, boundary: &str) -> Vec<&'a str> {
    let (mut parts, mut begin, mut at) = (Vec::new(), None, 0);
    for line in body.split_inclusive('\n') {
        let behind = line.strip_prefix("--").and_then(|line| line.strip_prefix(boundary)).map(str::trim_end);
        if let Some(behind @ ("" | "--")) = behind {
            if let Some(begin) = begin {
                let part: &str = &body[begin..at];
                let part = part.strip_suffix('\n').unwrap_or(part);
                parts.push(part.strip_suffix('\r').unwrap_or(part));
            }
            if behind == "--" {
                return parts;
            }
            begin = Some(at + line.len());
        }
        at += line.len();
    }
    // One that was cut off.
    parts.extend(begin.map(|begin| &body[begin..]));
    parts
}

/// RFC 2045, section 6.7; what is no such encoding stays as it is.
fn from_quoted_printable(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches(['\r', '\n']);
        let (mut rest, soft) = match content.strip_suffix('=') {
            Some(content) => (content, true),
            None => (content, false),
        };
        while let Some((before, after)) = rest.split_once('=') {
            bytes.extend(before.as_bytes());
            let code = after.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
            bytes.push(code.unwrap_or(b'='));
            rest = if code.is_some() { &after[2..] } else { after };
        }
        bytes.extend(rest.as_bytes());
        if !soft {
            bytes.extend(&line.as_bytes()[content.len()..]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
