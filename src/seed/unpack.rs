//! User-data out of its wrapping: gzip (RFC 1952) and base64 (RFC 4648), in which other tools hand it on.

use std::borrow::Cow;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use flate2::read::MultiGzDecoder;

use crate::base::{ByteSize, Error, Result};

/// How many wrappings there may be around one another: gzip in base64 is what Terraform's `cloudinit_config` writes.
const LAYERS: usize = 4;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How many bytes of content there may be still. All that is unpacked for one guest takes from it.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    left: usize,
}

impl Room {
    pub fn new(limit: usize) -> Self {
        Room { limit, left: limit }
    }

    fn too_much(&self, what: &str) -> Error {
        let limit = ByteSize(self.limit as u64);
        Error::usage(format!("{what} is above the limit of {limit} for all user-data, unpacked"))
            .hint("let the guest fetch large files itself")
    }

    /// Takes what is there unpacked.
    pub fn take(&mut self, bytes: usize, what: &str) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| self.too_much(what))?;
        Ok(())
    }
}

/// The content in its wrappings, unpacked no further than there is room. What is in none comes back as it is, and so does
/// what a `known` content would be taken for.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) for gzip that is damaged, or too much.
pub(super) fn unpack<'a>(
    bytes: &'a [u8],
    what: &str,
    room: &mut Room,
    known: fn(&str) -> bool,
) -> Result<Cow<'a, [u8]>> {
    let mut content = Cow::Borrowed(bytes);
    for _ in 0..LAYERS {
        let inner = if is_gzip(&content) {
            gunzip(&content, what, room)?
        } else if let Some(inner) = from_base64(&content, known) {
            inner
        } else {
            return Ok(content);
        };
        content = Cow::Owned(inner);
    }
    Ok(content)
}

pub(super) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// What was packed, however many members there are.
///
/// # Errors
/// As [`unpack`].
pub(super) fn gunzip(bytes: &[u8], what: &str, room: &Room) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut reader = MultiGzDecoder::new(bytes).take(room.left as u64 + 1);
    reader.read_to_end(&mut content).map_err(|error| {
        Error::usage(format!("{what} is gzip that cannot be unpacked"))
            .because(error)
            .hint("'gzip --test' says whether the file is whole")
    })?;
    match content.len() > room.left {
        true => Err(room.too_much(what)),
        false => Ok(content),
    }
}

/// `None` unless there is something in it that can be taken: most words are base64, too.
fn from_base64(bytes: &[u8], known: fn(&str) -> bool) -> Option<Vec<u8>> {
    let is_known = |bytes: &[u8]| is_gzip(bytes) || std::str::from_utf8(bytes).is_ok_and(known);
    if is_known(bytes) {
        return None;
    }
    decode(bytes).filter(|content| is_known(content))
}

/// Base64 in lines of any length, with its padding or without.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    LENIENT.decode(text).ok()
}
