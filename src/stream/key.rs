//! Keys: whom we trust ([`Keyring`]) and with what we sign ([`SigningKey`]).

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::packet::{Packet, PacketParser, Signature, SignatureType};
use pgp::types::KeyDetails;
use serde::{Deserialize, Serialize};

use super::armor;
use super::policy::{self, TrustedKey};
use crate::base::name::{hex, quoted, unhex};
use crate::base::{Error, Result, fs};

mod several;
mod signing;

pub use several::{Signer, sign_detached, sign_inline};
pub use signing::SigningKey;

/// More than any keyring of a distribution has, so that a wrong file is not read whole.
const FILE_LIMIT: u64 = 64 << 20;

/// A key's fingerprint: 20 bytes (version 4) or 32 (version 6). Text form: hexadecimal digits in upper case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(Vec<u8>);

impl Fingerprint {
    pub(super) fn of(key: &impl KeyDetails) -> Self {
        Fingerprint(key.fingerprint().as_bytes().to_vec())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// 40 or 64 hexadecimal digits of either case; blanks between them are read over.
    fn from_str(text: &str) -> Result<Self> {
        let digits: String = text.split_ascii_whitespace().collect();
        match unhex(&digits) {
            Some(bytes) if matches!(bytes.len(), 20 | 32) => Ok(Fingerprint(bytes)),
            _ => Err(Error::usage(format!("{} is not a key's fingerprint", quoted(text)))
                .hint("a fingerprint has 40 or 64 hexadecimal digits: 'gpg --show-keys FILE' shows it")),
        }
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0).to_ascii_uppercase())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The public keys whose signatures are trusted.
#[derive(Clone)]
pub struct Keyring {
    keys: Vec<TrustedKey>,
}

impl Keyring {
    /// Reads public keys, binary or armoured, as many as there are. A key that
    /// may not sign is kept, so that an error can say why its signature does not count.
    ///
    /// # Errors
    /// [`Kind::Refused`](crate::base::Kind::Refused) for a keybox, secret keys, damaged packets, or when there is no key in it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.get(8..12) == Some(b"KBXf") {
            return Err(Error::refused("the keyring is a GnuPG keybox, which only GnuPG reads")
                .hint("export the key: 'gpg --export FINGERPRINT > keyring.gpg'"));
        }
        let (certificates, revocations) = read_certificates(&packets(bytes, PUBLIC)?)?;
        let keys: Vec<TrustedKey> =
            certificates.iter().flat_map(|certificate| policy::judge_certificate(certificate, &revocations)).collect();
        if keys.is_empty() {
            return Err(Error::refused("the keyring has no public key in it"));
        }
        Ok(Keyring { keys })
    }

    /// As [`from_bytes`](Self::from_bytes), from a file of at most 64 MiB.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::base::Kind::NotFound) when the file is absent; else as [`from_bytes`](Self::from_bytes).
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = fs::read(path, FILE_LIMIT)?;
        Self::from_bytes(&bytes).map_err(|error| about(path, "keyring", error))
    }

    /// The public keys of a file, as packets.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn binary(path: &Path) -> Result<Vec<u8>> {
        Self::from_file(path)?;
        packets(&fs::read(path, FILE_LIMIT)?, PUBLIC)
    }

    /// Keeps only these primary keys and their sub-keys.
    ///
    /// # Errors
    /// [`Kind::Refused`](crate::base::Kind::Refused) when none of them is in the keyring.
    pub fn pinned(mut self, fingerprints: &[Fingerprint]) -> Result<Self> {
        let held = self.describe();
        self.keys.retain(|key| fingerprints.contains(&key.primary));
        if self.keys.is_empty() {
            return Err(Error::refused(format!("the keyring does not hold the pinned key: it holds {held}")));
        }
        Ok(self)
    }

    /// All of them; each once where both have it.
    #[must_use]
    pub fn with(mut self, other: &Keyring) -> Self {
        let known = self.fingerprints();
        self.keys.extend(other.keys.iter().filter(|key| !known.contains(&key.primary)).cloned());
        self
    }

    /// The primary keys, each once, in the file's order.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        let mut all: Vec<Fingerprint> = Vec::new();
        for key in &self.keys {
            if !all.contains(&key.primary) {
                all.push(key.primary.clone());
            }
        }
        all
    }

    /// The keys that `signature` names as its maker.
    pub(super) fn named_by<'a>(&'a self, signature: &'a Signature) -> impl Iterator<Item = &'a TrustedKey> {
        self.keys.iter().filter(move |key| key.is_named_by(signature))
    }

    /// The primary keys for a message.
    pub(super) fn describe(&self) -> String {
        const SHOWN: usize = 6;
        let all = self.fingerprints();
        let shown: Vec<String> = all.iter().take(SHOWN).map(Fingerprint::to_string).collect();
        let more = all.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        shown.join(", ") + &more
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.describe()).finish()
    }
}

const PUBLIC: &str = "PGP PUBLIC KEY BLOCK";
const SECRET: &str = "PGP PRIVATE KEY BLOCK";

/// The packets of a binary file, or of all its armoured blocks of that kind one after another.
fn packets(bytes: &[u8], label: &str) -> Result<Vec<u8>> {
    if armor::is_binary(bytes) {
        return Ok(bytes.to_vec());
    }
    let begin = |label| format!("-----BEGIN {label}-----");
    let (wanted, secret) = (begin(label), begin(SECRET));
    let mut all = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (line, after) = armor::next_line(rest);
        if line == wanted.as_bytes() {
            let block = armor::decode(rest, label)?;
            all.extend_from_slice(&block.bytes);
            rest = block.rest;
        } else if line == secret.as_bytes() {
            return Err(secret_in_keyring());
        } else {
            // People keep notes between the blocks.
            rest = after;
        }
    }
    Ok(all)
}

/// The packets of `bytes`, one by one, without those that say nothing here.
///
/// Packets of versions or kinds that are not known must be passed over (RFC 9580 section 4.3).
pub(super) fn parse(bytes: &[u8]) -> impl Iterator<Item = pgp::errors::Result<Packet>> {
    PacketParser::new(bytes).filter(|packet| match packet {
        Ok(packet) => !matches!(packet, Packet::Trust(_) | Packet::Marker(_) | Packet::Padding(_)),
        Err(error) => !is_unknown(error),
    })
}

fn is_unknown(error: &pgp::errors::Error) -> bool {
    match error {
        pgp::errors::Error::Unsupported { .. } => true,
        pgp::errors::Error::InvalidPacketContent { source } => is_unknown(source),
        _ => false,
    }
}

/// Splits packets into certificates and, apart, all revocations, wherever they stand.
///
/// The crate's own reader for many keys ends at a packet that it does not
/// expect, such as the trust packets in GnuPG's old keyrings, and drops a
/// revocation that stands in another place; both would be silent.
fn read_certificates(bytes: &[u8]) -> Result<(Vec<SignedPublicKey>, Vec<Signature>)> {
    let mut groups: Vec<Vec<Packet>> = Vec::new();
    let mut revocations = Vec::new();
    let damaged = |error: pgp::errors::Error| Error::refused("the keyring is damaged").because(brief(&error));
    for packet in parse(bytes) {
        match packet.map_err(damaged)? {
            Packet::SecretKey(_) => return Err(secret_in_keyring()),
            packet @ Packet::PublicKey(_) => groups.push(vec![packet]),
            Packet::Signature(signature) if is_revocation(&signature) => revocations.push(signature),
            packet => {
                let group = groups.last_mut().ok_or_else(|| Error::refused("the keyring does not begin with a key"))?;
                group.push(packet);
            }
        }
    }
    let mut certificates = Vec::new();
    for group in groups {
        for certificate in SignedPublicKey::from_packets(group.into_iter().map(Ok).peekable()) {
            certificates.push(certificate.map_err(damaged)?);
        }
    }
    Ok((certificates, revocations))
}

fn is_revocation(signature: &Signature) -> bool {
    matches!(signature.typ(), Some(SignatureType::KeyRevocation | SignatureType::SubkeyRevocation))
}

/// A library's error, without the input that some of them quote whole.
pub(super) fn brief(error: &pgp::errors::Error) -> String {
    error.to_string().chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn secret_in_keyring() -> Error {
    Error::refused("the keyring holds a secret key").hint("export the public key: 'gpg --export FINGERPRINT'")
}

fn about(path: &Path, what: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("the {what} '{}' cannot be used", path.display())).because(error)
}

#[cfg(test)]
mod tests;
