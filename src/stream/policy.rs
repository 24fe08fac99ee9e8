//! Which keys may sign and which signatures count. The OpenPGP crate does the
//! mathematics and has no opinion on age, strength, revocation or purpose; all of that is here.
//!
//! | what | rule |
//! |---|---|
//! | hash of a data signature | SHA-256, -384, -512, SHA3-256, -512 |
//! | hash of the self-signatures in a keyring | the same, and SHA-1: the keyring is trusted as a file, and the key of Ubuntu's images has no other |
//! | key | version 4 or 6; RSA of 2048 bits or more, ECDSA or EdDSA |
//! | key flags | must allow signing; a sub-key's binding must be signed back by the sub-key (0x19) |
//! | expiry of a key | counts now, as for its owner: whoever finds an expired key can date what he signs back |
//! | expiry of a signature | counts now |
//! | revoked key | never counts, whenever the signature was made |
//! | time of a signature | not before the key's creation, at most one day ahead of now |

use jiff::Timestamp;
use pgp::composed::{SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{PublicKey, PublicSubkey, Signature, SignatureType, SignatureVersion, SubpacketData, SubpacketType};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails, KeyId, KeyVersion, PublicParams, Tag};

use super::key::Fingerprint;

/// How far ahead of our clock a signer's clock may be, in seconds.
const CLOCK_SKEW: i64 = 24 * 60 * 60;

/// A primary key or sub-key of a keyring, judged once when the keyring is read.
#[derive(Clone)]
pub(super) struct TrustedKey {
    /// The primary key of the certificate that it belongs to.
    pub primary: Fingerprint,
    pub fingerprint: Fingerprint,
    pub user_id: String,
    key_id: KeyId,
    material: Material,
    /// Seconds since 1970.
    created: i64,
    expires: Option<i64>,
    /// Why nothing signed by it ever counts.
    unusable: Option<&'static str>,
}

#[derive(Clone)]
enum Material {
    Primary(PublicKey),
    Sub(PublicSubkey),
}

/// What became of one signature under one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts; made at this time.
    Good(Timestamp),
    /// It does not count, whatever it covers.
    Unusable(String),
    /// It is not a signature over this document by this key.
    Bad,
}

impl TrustedKey {
    /// Whether `signature` names this key as its maker. A name is a hint, not a proof.
    pub fn is_named_by(&self, signature: &Signature) -> bool {
        let fingerprints = signature.issuer_fingerprint();
        if fingerprints.is_empty() {
            return signature.issuer_key_id().contains(&&self.key_id);
        }
        fingerprints.iter().any(|fingerprint| fingerprint.as_bytes() == self.fingerprint.as_bytes())
    }

    /// Judges a signature over `data`, which must be of type `wanted`.
    pub fn judge(&self, signature: &Signature, wanted: SignatureType, data: &[u8], now: Timestamp) -> Verdict {
        let made = match self.refuse(signature, wanted, now) {
            Ok(made) => made,
            Err(reason) => return Verdict::Unusable(reason),
        };
        let verified = match &self.material {
            Material::Primary(key) => signature.verify(key, data),
            Material::Sub(key) => signature.verify(key, data),
        };
        if verified.is_ok() { Verdict::Good(made) } else { Verdict::Bad }
    }

    /// The signature's time, or why it does not count even when it is genuine.
    fn refuse(&self, signature: &Signature, wanted: SignatureType, now: Timestamp) -> Result<Timestamp, String> {
        let made = check_signature(signature, wanted, now)?;
        if let Some(reason) = self.unusable {
            return Err(reason.into());
        }
        if made < self.created {
            return Err("it is dated before its key was made".into());
        }
        if self.expires.is_some_and(|end| now.as_second().max(made) >= end) {
            return Err("its key has expired".into());
        }
        Timestamp::from_second(made).map_err(|_| "its date is out of range".into())
    }

    /// Why this key cannot make signatures that count at `now`; `None` when it can.
    pub fn cannot_sign(&self, now: Timestamp) -> Option<&'static str> {
        let expired = self.expires.is_some_and(|end| now.as_second() >= end);
        self.unusable.or(expired.then_some("the key has expired"))
    }
}

/// Checks of a data signature that need no key; its time in seconds since 1970.
fn check_signature(signature: &Signature, wanted: SignatureType, now: Timestamp) -> Result<i64, String> {
    let config = signature.config().ok_or("it is of an unknown version")?;
    if !matches!(config.version(), SignatureVersion::V4 | SignatureVersion::V6) {
        return Err("it is of an old version".into());
    }
    if config.typ() != wanted {
        return Err("it is of a type that does not belong here".into());
    }
    if !is_strong(config.hash_alg) {
        return Err(format!("it was made with {}, which can be forged", config.hash_alg));
    }
    // A critical subpacket that we do not honour must void the signature (RFC 9580 section 5.2.3.7).
    let understood = |kind| {
        matches!(
            kind,
            SubpacketType::SignatureCreationTime
                | SubpacketType::SignatureExpirationTime
                | SubpacketType::IssuerKeyId
                | SubpacketType::IssuerFingerprint
                | SubpacketType::SignersUserID
        )
    };
    if config.hashed_subpackets().any(|packet| packet.is_critical && !understood(packet.typ())) {
        return Err("it demands something unknown to virga".into());
    }
    let made = seconds(signature).ok_or("it has no date")?;
    if made > now.as_second().saturating_add(CLOCK_SKEW) {
        return Err("it is dated in the future".into());
    }
    let lifetime = signature.signature_expiration_time().map_or(0, to_seconds);
    if lifetime != 0 && made + lifetime <= now.as_second() {
        return Err("it has expired".into());
    }
    Ok(made)
}

fn is_strong(hash: HashAlgorithm) -> bool {
    matches!(
        hash,
        HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    )
}

/// SHA-1 is broken for documents that an attacker may choose; of a key in a trusted file they chose nothing.
fn is_strong_enough_for_self(signature: &Signature) -> bool {
    signature.hash_alg().is_some_and(|hash| is_strong(hash) || hash == HashAlgorithm::Sha1)
}

/// Judges the primary key and every sub-key of a certificate.
///
/// `revocations` are those of the whole keyring: one that was appended to the file counts as well.
pub(super) fn judge_certificate(certificate: &SignedPublicKey, revocations: &[Signature]) -> Vec<TrustedKey> {
    let key = &certificate.primary_key;
    let primary = Fingerprint::of(key);
    let user_id = user_id(certificate);
    let self_signature = self_signature(certificate);
    let created = i64::from(key.created_at().as_secs());
    let expires = self_signature.and_then(|signature| expiry(created, signature));
    let of_all = if revocations.iter().any(|signature| signature.verify_key(key).is_ok()) {
        Some("its key was revoked")
    } else if !matches!(key.version(), KeyVersion::V4 | KeyVersion::V6) {
        // The fingerprints of version 3 are MD5.
        Some("its key is of an old version")
    } else if self_signature.is_none() {
        Some("its key has no valid self-signature")
    } else {
        None
    };
    let may_sign = self_signature.is_some_and(|signature| !has_key_flags(signature) || signature.key_flags().sign());
    let own = weakness(key.public_params()).or((!may_sign).then_some("its key is not for signing"));
    let mut keys = vec![TrustedKey {
        primary: primary.clone(),
        fingerprint: primary.clone(),
        user_id: user_id.clone(),
        key_id: key.legacy_key_id(),
        material: Material::Primary(key.clone()),
        created,
        expires,
        unusable: of_all.or(own),
    }];
    for sub in &certificate.public_subkeys {
        let created = i64::from(sub.key.created_at().as_secs());
        let (unusable, own_expiry) = match judge_subkey(key, sub, revocations) {
            Ok(binding) => (None, expiry(created, binding)),
            Err(reason) => (Some(reason), None),
        };
        keys.push(TrustedKey {
            primary: primary.clone(),
            fingerprint: Fingerprint::of(&sub.key),
            user_id: user_id.clone(),
            key_id: sub.key.legacy_key_id(),
            material: Material::Sub(sub.key.clone()),
            created,
            // A sub-key does not outlive its primary key.
            expires: [own_expiry, expires].into_iter().flatten().min(),
            unusable: of_all.or(unusable),
        });
    }
    keys
}

/// The binding of a sub-key that may sign, or why it may not.
fn judge_subkey<'a>(
    primary: &PublicKey,
    sub: &'a SignedPublicSubKey,
    revocations: &[Signature],
) -> Result<&'a Signature, &'static str> {
    let revokes = |signature: &&Signature| {
        signature.typ() == Some(SignatureType::SubkeyRevocation)
            && is_by(signature, primary)
            && signature.verify_subkey_binding(primary, &sub.key).is_ok()
    };
    if revocations.iter().any(|signature| revokes(&signature)) {
        return Err("its sub-key was revoked");
    }
    let binding = newest(sub.signatures.iter().filter(|signature| {
        signature.typ() == Some(SignatureType::SubkeyBinding)
            && is_strong_enough_for_self(signature)
            && signature.verify_subkey_binding(primary, &sub.key).is_ok()
    }))
    .ok_or("its sub-key is not bound to the primary key")?;
    if !binding.key_flags().sign() {
        return Err("its sub-key is not for signing");
    }
    // Without the sub-key's own word anybody could adopt a foreign key and claim its signatures.
    let signed_back = binding.embedded_signature().is_some_and(|back| {
        is_strong_enough_for_self(back) && back.verify_primary_key_binding(&sub.key, primary).is_ok()
    });
    if !signed_back {
        return Err("its sub-key has not signed the primary key back");
    }
    weakness(sub.key.public_params()).map_or(Ok(binding), Err)
}

/// The self-signature that says what the primary key is for and how long it lasts: the newest
/// over a user id that was not revoked, or that directly over the key
/// (RFC 9580 section 5.2.3.10: the latter first for version 6).
fn self_signature(certificate: &SignedPublicKey) -> Option<&Signature> {
    let key = &certificate.primary_key;
    let direct = || {
        newest(certificate.details.direct_signatures.iter().filter(|signature| {
            signature.typ() == Some(SignatureType::Key)
                && is_strong_enough_for_self(signature)
                && signature.verify_key(key).is_ok()
        }))
    };
    let certified = || newest(certificate.details.users.iter().filter_map(|user| certification(key, user)));
    if key.version() == KeyVersion::V6 { direct().or_else(certified) } else { certified().or_else(direct) }
}

/// The newest self-certification of a user id; none when it was revoked later.
fn certification<'a>(key: &PublicKey, user: &'a pgp::types::SignedUser) -> Option<&'a Signature> {
    let own = user.signatures.iter().filter(|signature| {
        is_by(signature, key)
            && is_strong_enough_for_self(signature)
            && signature.verify_certification(key, Tag::UserId, &user.id).is_ok()
    });
    newest(own).filter(|signature| signature.typ() != Some(SignatureType::CertRevocation))
}

/// The user id to show: the one marked primary, else the first.
fn user_id(certificate: &SignedPublicKey) -> String {
    let users = &certificate.details.users;
    let shown = users.iter().find(|user| user.is_primary()).or(users.first());
    let text = shown.map(|user| String::from_utf8_lossy(user.id.id()).into_owned()).unwrap_or_default();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// Of signatures with the same date a revocation counts, else the last one.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| (seconds(signature), signature.typ() == Some(SignatureType::CertRevocation)))
}

fn is_by(signature: &Signature, key: &PublicKey) -> bool {
    signature.issuer_key_id().contains(&&key.legacy_key_id())
        || signature.issuer_fingerprint().contains(&&key.fingerprint())
}

fn has_key_flags(signature: &Signature) -> bool {
    signature.config().is_some_and(|config| {
        config.hashed_subpackets().any(|packet| matches!(packet.data, SubpacketData::KeyFlags(_)))
    })
}

fn expiry(created: i64, signature: &Signature) -> Option<i64> {
    let lifetime = signature.key_expiration_time().map_or(0, to_seconds);
    (lifetime != 0).then_some(created + lifetime)
}

fn seconds(signature: &Signature) -> Option<i64> {
    signature.created().map(|time| i64::from(time.as_secs()))
}

/// An OpenPGP duration has 32 bits, so this loses nothing.
fn to_seconds(duration: pgp::types::Duration) -> i64 {
    std::time::Duration::from(duration).as_secs().cast_signed()
}

fn weakness(params: &PublicParams) -> Option<&'static str> {
    match params {
        PublicParams::RSA(_) if modulus_bits(params) < 2048 => Some("its RSA key has less than 2048 bits"),
        PublicParams::RSA(_)
        | PublicParams::ECDSA(_)
        | PublicParams::EdDSALegacy(_)
        | PublicParams::Ed25519(_)
        | PublicParams::Ed448(_) => None,
        _ => Some("its key is of a kind that virga does not trust"),
    }
}

/// The bit count that stands before an RSA key's modulus (RFC 9580 section 3.2).
fn modulus_bits(params: &PublicParams) -> u16 {
    match params.to_bytes().as_deref() {
        Ok(&[high, low, ..]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
