//! The cleartext signature framework (RFC 9580 section 7), read strictly:
//! one document, nothing before it, nothing after it, no header but `Hash`.
//!
//! One pass over the bytes. Lines end at LF only: other line ends of Unicode
//! are text, or a signed document could be read as another.

use crate::base::{Error, Result};

use super::armor::{is_blank, next_line, trim_end};

const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
const BEGIN_SIGNATURE: &[u8] = b"-----BEGIN PGP SIGNATURE-----";

/// The longest line that GnuPG reads in a clear-signed document without cutting it.
const LONGEST_LINE: usize = 19_990;

/// A clear-signed document, taken apart.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// The signed text: lines without trailing blanks, joined by LF, no LF at the end.
    ///
    /// What is hashed is the same with CR LF for LF. No line ends in CR here,
    /// so one text has one hash input and one hash input has one text.
    pub text: Vec<u8>,
    /// From the signature's armour to the end of the document.
    pub armor: &'a [u8],
}

/// Whether the document claims to be clear-signed.
pub(super) fn is_framed(document: &[u8]) -> bool {
    document.starts_with(BEGIN)
}

/// Takes a clear-signed document apart. Nothing is verified.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind::Refused) for anything but the plain form.
pub(super) fn split(document: &[u8]) -> Result<Parts<'_>> {
    let refuse = |what: &str| Err(Error::refused(format!("this is no clear-signed document: {what}")));
    let (first, mut rest) = next_line(document);
    if first != BEGIN {
        return refuse("it does not begin with '-----BEGIN PGP SIGNED MESSAGE-----'");
    }
    loop {
        let (header, after) = next_line(rest);
        if after.is_empty() {
            return refuse("it ends early");
        }
        rest = after;
        if header.is_empty() {
            break;
        }
        // Any other header (NotDashEscaped, Charset) would change what the text means, and none is signed.
        if !is_hash_header(header) {
            return refuse("it has a header other than 'Hash'");
        }
    }
    let mut text = Vec::with_capacity(rest.len());
    loop {
        let end = rest.iter().position(|&b| b == b'\n');
        let Some(end) = end else { return refuse("its signature is missing") };
        let line = &rest[..end];
        if let Some(escaped) = line.strip_prefix(b"- ") {
            text.extend_from_slice(trim_end(escaped));
        } else if line.starts_with(b"-") {
            if trim_end(line) == BEGIN_SIGNATURE {
                break;
            }
            return refuse("a line begins with '-' and is not escaped");
        } else {
            text.extend_from_slice(trim_end(line));
        }
        text.push(b'\n');
        rest = &rest[end + 1..];
    }
    // The line end before the signature's armour belongs to the framing.
    text.pop();
    Ok(Parts { text, armor: rest })
}

fn is_hash_header(line: &[u8]) -> bool {
    line.strip_prefix(b"Hash: ")
        .is_some_and(|names| names.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b',' | b' ')))
}

/// The text that a signature over `payload` covers: as [`Parts::text`].
///
/// # Errors
/// When a line is longer than GnuPG can read: it would call the signature bad.
pub(super) fn canonical(payload: &[u8]) -> Result<Vec<u8>> {
    let body = payload.strip_suffix(b"\n").unwrap_or(payload);
    let mut text = Vec::with_capacity(body.len());
    for (index, line) in body.split(|&b| b == b'\n').enumerate() {
        let line = trim_end(line);
        if line.len() > LONGEST_LINE {
            return Err(Error::failed(format!(
                "line {} has {} bytes, and GnuPG refuses clear-signed lines of more than {LONGEST_LINE}",
                index + 1,
                line.len()
            ))
            .hint("write the document with line breaks and indentation"));
        }
        if index > 0 {
            text.push(b'\n');
        }
        text.extend_from_slice(line);
    }
    Ok(text)
}

/// Puts the framing around a text from [`canonical`] and its armoured signature.
pub(super) fn join(text: &[u8], hash: &str, signature: &str) -> Vec<u8> {
    let mut document = Vec::with_capacity(text.len() + text.len() / 64 + signature.len() + 128);
    document.extend_from_slice(BEGIN);
    document.extend_from_slice(format!("\nHash: {hash}\n\n").as_bytes());
    for line in text.split(|&b| b == b'\n') {
        if line.starts_with(b"-") {
            document.extend_from_slice(b"- ");
        }
        document.extend_from_slice(line);
        document.push(b'\n');
    }
    document.extend_from_slice(signature.as_bytes());
    if !is_blank(&document[document.len() - 1..]) {
        document.push(b'\n');
    }
    document
}

#[cfg(test)]
mod tests;
