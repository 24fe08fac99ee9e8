//! Signing with several keys side by side: who knows one of them can read the stream, also while it moves from one to
//! another.

use std::io::Write;

use pgp::armor::{self, BlockType};
use pgp::ser::Serialize;

use super::signing::{HASH, encoding};
use crate::base::Result;
use crate::stream::{armor as reading, clearsign};

/// Makes signatures with one key.
pub trait Signer: Sync {
    /// An armoured signature over text whose lines end in LF and have no blanks at their ends.
    ///
    /// # Errors
    /// When signing fails.
    fn sign_text(&self, text: &[u8]) -> Result<Vec<u8>>;

    /// An armoured signature over exactly these bytes.
    ///
    /// # Errors
    /// When signing fails.
    fn sign_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>>;
}

/// A clear-signed document of `payload` with a signature by each. Blanks at line ends are left out: the framework does not
/// sign them. A last line end is added when there is none.
///
/// # Errors
/// When a line is too long for GnuPG to read, or signing fails.
pub fn sign_inline(payload: &[u8], signers: &[&dyn Signer]) -> Result<Vec<u8>> {
    let text = clearsign::canonical(payload)?;
    let signature = together(signers, |signer| signer.sign_text(&text))?;
    Ok(clearsign::join(&text, &HASH.to_string(), &signature))
}

/// An armoured block with a detached signature by each over exactly these bytes.
///
/// # Errors
/// When signing fails.
pub fn sign_detached(payload: &[u8], signers: &[&dyn Signer]) -> Result<Vec<u8>> {
    together(signers, |signer| signer.sign_bytes(payload)).map(String::into_bytes)
}

fn together(signers: &[&dyn Signer], sign: impl Fn(&dyn Signer) -> Result<Vec<u8>>) -> Result<String> {
    let mut all = Vec::new();
    for signer in signers {
        all.extend(reading::decode(sign(*signer)?.trim_ascii_start(), "PGP SIGNATURE")?.bytes);
    }
    let mut armored = Vec::new();
    armor::write(&Packets(&all), BlockType::Signature, &mut armored, None, true).map_err(|error| encoding(&error))?;
    Ok(String::from_utf8_lossy(&armored).into_owned())
}

/// Packets that are written already.
struct Packets<'a>(&'a [u8]);

impl Serialize for Packets<'_> {
    fn to_writer<W: Write>(&self, writer: &mut W) -> pgp::errors::Result<()> {
        Ok(writer.write_all(self.0)?)
    }

    fn write_len(&self) -> usize {
        self.0.len()
    }
}
