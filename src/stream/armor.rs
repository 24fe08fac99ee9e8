//! OpenPGP's ASCII armour (RFC 9580 section 6.2): base64 between two marked lines.
//!
//! Read here and not by the OpenPGP crate: its reader is lenient about what
//! stands around the block, and its errors quote the whole input.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::base::{Error, Result};

/// One armoured block and what follows its last line.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub bytes: Vec<u8>,
    pub rest: &'a [u8],
}

/// Decodes the block that begins at the first byte of `text`; `label` is as in `PGP SIGNATURE`.
///
/// The checksum line is read over: RFC 9580 section 6.1 wants it ignored, and what counts is the signature.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind::Refused) when no such block begins there or it is damaged.
pub(super) fn decode<'a>(text: &'a [u8], label: &str) -> Result<Block<'a>> {
    let damaged = |what: &str| Error::refused(format!("the block '{label}' is damaged: {what}"));
    let (first, mut rest) = next_line(text);
    if first != marker("BEGIN", label).as_bytes() {
        return Err(damaged("its first line is missing"));
    }
    loop {
        let (line, after) = next_line(rest);
        rest = after;
        match line {
            [] if rest.is_empty() => return Err(damaged("it ends early")),
            [] => break,
            line if line.contains(&b':') => {}
            _ => return Err(damaged("no blank line after its headers")),
        }
    }
    let mut base64 = Vec::new();
    let end = marker("END", label);
    let mut checksum = false;
    loop {
        if rest.is_empty() {
            return Err(damaged("it ends early"));
        }
        let (line, after) = next_line(rest);
        rest = after;
        if line == end.as_bytes() {
            break;
        }
        match line.first() {
            None => {}
            Some(_) if checksum => return Err(damaged("text after its checksum")),
            Some(b'=') if line.len() == 5 => checksum = true,
            Some(_) => base64.extend_from_slice(line),
        }
    }
    let bytes = STANDARD.decode(&base64).map_err(|_| damaged("it is not base64"))?;
    Ok(Block { bytes, rest })
}

/// The next line without its end and the blanks before it, and what follows.
pub(super) fn next_line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match text.iter().position(|&b| b == b'\n') {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, &text[text.len()..]),
    };
    (trim_end(line), rest)
}

/// Without trailing blanks, as RFC 9580 section 7.2 defines them, and carriage returns.
pub(super) fn trim_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t' | b'\r')).map_or(0, |last| last + 1);
    &line[..end]
}

/// Whether nothing but white space is there.
pub(super) fn is_blank(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_whitespace)
}

/// Whether `bytes` are packets: every OpenPGP packet begins with bit 7 set, no text in ASCII does.
pub(super) fn is_binary(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & 0x80 != 0)
}

fn marker(word: &str, label: &str) -> String {
    format!("-----{word} {label}-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "-----BEGIN PGP SIGNATURE-----\nVersion: x\n\naGVs\nbG8=\n=abcd\n-----END PGP SIGNATURE-----\n";

    #[test]
    fn decodes_and_says_what_is_left() {
        for text in [GOOD.to_owned(), GOOD.replace('\n', " \r\n"), GOOD.replace("=abcd\n", "")] {
            let text = text + "left";
            let block = decode(text.as_bytes(), "PGP SIGNATURE").unwrap();
            assert_eq!((block.bytes.as_slice(), block.rest), (b"hello".as_slice(), b"left".as_slice()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_damaged() {
        for (from, to) in [
            ("-----BEGIN", "----BEGIN"),
            ("BEGIN PGP SIGNATURE", "BEGIN PGP MESSAGE"),
            ("Version: x\n\n", ""),
            ("Version: x\n\n", "Version x\n\n"),
            ("bG8=", "b?8="),
            ("bG8=", "bG8"),
            ("=abcd", "=abcd\naGVs"),
            ("-----END PGP SIGNATURE-----\n", ""),
            ("END PGP SIGNATURE", "END PGP MESSAGE"),
            (GOOD, ""),
            (GOOD, "-----BEGIN PGP SIGNATURE-----"),
            (GOOD, "-----BEGIN PGP SIGNATURE-----\n\n"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            assert!(decode(text.as_bytes(), "PGP SIGNATURE").is_err(), "{text}");
        }
    }
}
