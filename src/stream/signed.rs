//! Verifying signed stream metadata: inline (`.sjson`) and detached (`.json` with `.json.gpg`).
//!
//! What the verifier returns is all that may be parsed: the text between the
//! marks is never read a second time by anybody else.

use std::borrow::Cow;

use jiff::Timestamp;
use pgp::packet::{Packet, Signature, SignatureType};

use super::key::{Fingerprint, Keyring, brief, parse};
use super::policy::Verdict;
use super::{armor, clearsign};
use crate::base::name::hex;
use crate::base::{Error, Result};

/// Each signature by a known key costs a pass over the document.
const MOST_SIGNATURES: usize = 16;

/// Who signed a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The primary key: what is pinned.
    pub fingerprint: Fingerprint,
    /// The key that made the signature: the primary key or one of its sub-keys.
    pub signing_key: Fingerprint,
    /// The key's own name for its owner; without control characters.
    pub user_id: String,
    /// When the signature says that it was made.
    pub signed_at: Timestamp,
    /// The hash that was signed, as in `SHA512`.
    pub hash: String,
}

/// A document whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Exactly what was verified. Of an inline document: its lines, without trailing blanks, each ended by LF.
    pub payload: Vec<u8>,
    /// The trusted keys whose signatures are good; at least one.
    pub signers: Vec<Signer>,
}

/// Verifies a clear-signed document (RFC 9580 section 7).
///
/// At least one signature must be good under the policy (see `policy.rs`).
/// Signatures by keys that the keyring does not hold are passed over; one by
/// a key that it does hold and that does not fit the document refuses it.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind::Refused) with the reason; never with parts of the document.
pub fn verify_inline(document: &[u8], keyring: &Keyring, now: Timestamp) -> Result<Verified> {
    let parts = clearsign::split(document)?;
    let block = armor::decode(parts.armor, SIGNATURE)?;
    if !armor::is_blank(block.rest) {
        return Err(Error::refused("there is text after the signature, which nobody signed"));
    }
    let signers = verify(&block.bytes, SignatureType::Text, &parts.text, keyring, now)?;
    let mut payload = parts.text;
    payload.push(b'\n');
    Ok(Verified { payload, signers })
}

/// Verifies `body` with a detached signature, binary or armoured; otherwise as [`verify_inline`].
///
/// # Errors
/// As [`verify_inline`].
pub fn verify_detached(body: &[u8], signature: &[u8], keyring: &Keyring, now: Timestamp) -> Result<Verified> {
    let signers = verify(&detached_packets(signature)?, SignatureType::Binary, body, keyring, now)?;
    Ok(Verified { payload: body.to_vec(), signers })
}

/// The packets of a signature that is binary or armoured.
fn detached_packets(signature: &[u8]) -> Result<Cow<'_, [u8]>> {
    if armor::is_binary(signature) {
        return Ok(signature.into());
    }
    let block = armor::decode(signature.trim_ascii_start(), SIGNATURE)?;
    if !armor::is_blank(block.rest) {
        return Err(Error::refused("there is text after the signature"));
    }
    Ok(block.bytes.into())
}

/// Whether a document carries its signature within itself: it is then to be
/// verified with [`verify_inline`], any other with [`verify_detached`].
#[must_use]
pub fn is_inline(document: &[u8]) -> bool {
    clearsign::is_framed(document)
}

/// The text of a document from a source that is unsigned by the user's own
/// decision: of a clear-signed one what stands between its marks, any other as it is. Nothing is verified.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind::Refused) when it begins as a clear-signed document and is none.
pub fn unsigned_text(document: &[u8]) -> Result<Vec<u8>> {
    if !clearsign::is_framed(document) {
        return Ok(document.to_vec());
    }
    let mut text = clearsign::split(document)?.text;
    text.push(b'\n');
    Ok(text)
}

/// By which of the keyring's primary keys a detached signature says that it was made, each once, and by which others.
/// Nothing is verified.
///
/// # Errors
/// [`Kind::Refused`](crate::base::Kind::Refused) when it is no signature.
pub fn named_signers(signature: &[u8], keyring: &Keyring) -> Result<(Vec<Fingerprint>, Vec<String>)> {
    let (mut known, mut others) = (Vec::new(), Vec::new());
    for signature in read_signatures(&detached_packets(signature)?)? {
        match keyring.named_by(&signature).next() {
            Some(key) if known.contains(&key.primary) => {}
            Some(key) => known.push(key.primary.clone()),
            None => others.push(issuer(&signature)),
        }
    }
    Ok((known, others))
}

const SIGNATURE: &str = "PGP SIGNATURE";

fn verify(
    packets: &[u8],
    wanted: SignatureType,
    data: &[u8],
    keyring: &Keyring,
    now: Timestamp,
) -> Result<Vec<Signer>> {
    let (mut signers, mut unknown, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
    for signature in read_signatures(packets)? {
        match judge(&signature, wanted, data, keyring, now)? {
            Outcome::Good(signer) => signers.push(signer),
            Outcome::Unusable(reason) => unusable.push(reason),
            Outcome::Unknown(name) => unknown.push(name),
        }
    }
    if !signers.is_empty() {
        return Ok(signers);
    }
    if unusable.is_empty() {
        return Err(Error::refused(format!(
            "no signature by a trusted key: signed by {}; the keyring holds {}",
            unknown.join(", "),
            keyring.describe()
        )));
    }
    Err(Error::refused(format!("no signature by a trusted key counts: {}", unusable.join("; "))))
}

enum Outcome {
    Good(Signer),
    /// Why a signature by a known key does not count.
    Unusable(String),
    /// By a key that the keyring does not hold.
    Unknown(String),
}

/// # Errors
/// When a known key is named and the signature is not its own over `data`.
fn judge(
    signature: &Signature,
    wanted: SignatureType,
    data: &[u8],
    keyring: &Keyring,
    now: Timestamp,
) -> Result<Outcome> {
    let (mut unusable, mut bad) = (None, None);
    // More than one when a keyring has a key twice, or two keys whose short ids collide.
    for key in keyring.named_by(signature) {
        match key.judge(signature, wanted, data, now) {
            Verdict::Good(signed_at) => {
                return Ok(Outcome::Good(Signer {
                    fingerprint: key.primary.clone(),
                    signing_key: key.fingerprint.clone(),
                    user_id: key.user_id.clone(),
                    signed_at,
                    hash: signature.hash_alg().map(|hash| hash.to_string()).unwrap_or_default(),
                }));
            }
            Verdict::Unusable(reason) => unusable = Some(format!("signed by {}, but {reason}", key.fingerprint)),
            Verdict::Bad => bad = Some(&key.fingerprint),
        }
    }
    if let Some(fingerprint) = bad {
        return Err(Error::refused(format!(
            "bad signature by {fingerprint}: the document is not what was signed with this key"
        ))
        .hint(
            "the server may be in the middle of an update, or somebody altered it: try again later, or another source",
        ));
    }
    Ok(unusable.map_or_else(|| Outcome::Unknown(issuer(signature)), Outcome::Unusable))
}

/// The key that a signature names as its maker, for a message.
fn issuer(signature: &Signature) -> String {
    let fingerprint = signature.issuer_fingerprint().first().map(|fingerprint| hex(fingerprint.as_bytes()));
    let name = fingerprint.or_else(|| signature.issuer_key_id().first().map(|id| hex(id.as_ref())));
    name.map_or_else(|| "a key that it does not name".into(), |name| name.to_ascii_uppercase())
}

fn read_signatures(bytes: &[u8]) -> Result<Vec<Signature>> {
    let mut signatures = Vec::new();
    for packet in parse(bytes) {
        match packet {
            Ok(Packet::Signature(signature)) if signatures.len() < MOST_SIGNATURES => signatures.push(signature),
            Ok(Packet::Signature(_)) => {
                return Err(Error::refused(format!("there are more than {MOST_SIGNATURES} signatures")));
            }
            Ok(_) => return Err(Error::refused("there is something other than signatures in the signature block")),
            Err(error) => return Err(Error::refused("the signature is damaged").because(brief(&error))),
        }
    }
    if signatures.is_empty() {
        return Err(Error::refused("there is no signature in the signature block"));
    }
    Ok(signatures)
}

#[cfg(test)]
mod tests;
