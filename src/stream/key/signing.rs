//! The secret key that a stream of our own is signed with.

use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use pgp::composed::{
    ArmorOptions, Deserializable as _, DetachedSignature, KeyType, SecretKeyParamsBuilder, SignedSecretKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Packet, Signature, SignatureType};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails as _, KeyVersion, Password};
use rand_core::OsRng;

use super::{FILE_LIMIT, Fingerprint, SECRET, about, brief, is_revocation, packets, parse};
use crate::base::name::quoted;
use crate::base::{Error, Kind, Result, fs};
use crate::stream::policy;

/// A secret key without a passphrase, and which of its parts signs.
pub struct SigningKey {
    key: SignedSecretKey,
    /// Index of the signing sub-key; `None` = the primary key signs.
    subkey: Option<usize>,
}

/// The hash of every signature that we make.
pub(super) const HASH: HashAlgorithm = HashAlgorithm::Sha512;

impl SigningKey {
    /// A new Ed25519 key in the form that GnuPG 2.2 reads (`EdDSA`, version 4), without expiry or passphrase.
    ///
    /// # Errors
    /// [`Kind::Usage`] when `user_id` is empty, has control characters or more than 200 bytes.
    pub fn generate(user_id: &str) -> Result<Self> {
        if user_id.trim().is_empty() || user_id.len() > 200 || user_id.chars().any(char::is_control) {
            return Err(Error::usage(format!("{} is not a name for a key", quoted(user_id)))
                .hint("write a name, as in 'Our images <images@example.org>'"));
        }
        let failed = |error: String| Error::failed("making a signing key").because(error);
        let parameters = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id(user_id.into())
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let key = parameters.generate(OsRng).map_err(|error| failed(brief(&error)))?;
        Ok(SigningKey { key, subkey: None })
    }

    /// As [`from_bytes`](Self::from_bytes), from a file.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the file is absent; else as [`from_bytes`](Self::from_bytes).
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = fs::read(path, FILE_LIMIT)?;
        Self::from_bytes(&bytes).map_err(|error| about(path, "signing key", error))
    }

    /// Reads one secret key, binary or armoured. The newest sub-key that may sign is used, else the primary key.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is none, several, under a passphrase, or nothing of it may sign.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let damaged = |error: pgp::errors::Error| Error::usage("the secret key is damaged").because(brief(&error));
        let none = || Error::usage("there is no secret key in it").hint(EXPORT_HINT);
        let bytes = packets(bytes, SECRET).map_err(|error| error.with_kind(Kind::Usage))?;
        let packets = parse(&bytes).collect::<pgp::errors::Result<Vec<Packet>>>().map_err(damaged)?;
        if packets.iter().filter(|packet| matches!(packet, Packet::SecretKey(_))).count() > 1 {
            return Err(Error::usage("there are several secret keys in it").hint(EXPORT_HINT));
        }
        let is_revoking = |packet: &Packet| match packet {
            Packet::Signature(signature) if is_revocation(signature) => Some(signature.clone()),
            _ => None,
        };
        let revocations: Vec<Signature> = packets.iter().filter_map(is_revoking).collect();
        let key = SignedSecretKey::from_packets(packets.into_iter().map(Ok).peekable())
            .next()
            .ok_or_else(none)?
            .map_err(damaged)?;
        let subkey = choose_signer(&key, &revocations)?;
        Ok(SigningKey { key, subkey })
    }

    /// The secret key, armoured: to be written to a file of mode 0600.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn to_armored(&self) -> Result<String> {
        self.key.to_armored_string(armored()).map_err(|error| encoding(&error))
    }

    /// The public key in the form that `gpgv --keyring` and [`Keyring`](super::Keyring) read.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn public_binary(&self) -> Result<Vec<u8>> {
        self.key.to_public_key().to_bytes().map_err(|error| encoding(&error))
    }

    /// The public key, armoured.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn public_armored(&self) -> Result<String> {
        self.key.to_public_key().to_armored_string(armored()).map_err(|error| encoding(&error))
    }

    /// The primary key's fingerprint: what others pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.key.primary_key.public_key())
    }

    /// As [`sign_inline`](super::sign_inline), by this key alone.
    ///
    /// # Errors
    /// As [`sign_inline`](super::sign_inline).
    pub fn sign_inline(&self, payload: &[u8]) -> Result<Vec<u8>> {
        super::sign_inline(payload, &[self])
    }

    /// As [`sign_detached`](super::sign_detached), by this key alone.
    ///
    /// # Errors
    /// As [`sign_detached`](super::sign_detached).
    pub fn sign_detached(&self, payload: &[u8]) -> Result<Vec<u8>> {
        super::sign_detached(payload, &[self])
    }

    fn sign(&self, kind: SignatureType, data: &[u8]) -> Result<String> {
        let password = Password::empty();
        let signed = match (self.subkey.map(|index| &self.key.secret_subkeys[index].key), kind) {
            (None, SignatureType::Text) => {
                DetachedSignature::sign_text_data(OsRng, &self.key.primary_key, &password, HASH, data)
            }
            (None, _) => DetachedSignature::sign_binary_data(OsRng, &self.key.primary_key, &password, HASH, data),
            (Some(key), SignatureType::Text) => DetachedSignature::sign_text_data(OsRng, key, &password, HASH, data),
            (Some(key), _) => DetachedSignature::sign_binary_data(OsRng, key, &password, HASH, data),
        };
        signed
            .and_then(|signature| signature.to_armored_string(armored()))
            .map_err(|error| Error::failed("signing").because(brief(&error)))
    }
}

impl super::Signer for SigningKey {
    fn sign_text(&self, text: &[u8]) -> Result<Vec<u8>> {
        self.sign(SignatureType::Text, text).map(String::into_bytes)
    }

    fn sign_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.sign(SignatureType::Binary, bytes).map(String::into_bytes)
    }
}

impl fmt::Debug for SigningKey {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.fingerprint().to_string()).finish()
    }
}

const EXPORT_HINT: &str = "export one secret key: 'gpg --armor --export-secret-keys FINGERPRINT'";

fn armored() -> ArmorOptions<'static> {
    ArmorOptions { headers: None, include_checksum: true }
}

pub(super) fn encoding(error: &pgp::errors::Error) -> Error {
    Error::failed("encoding a key").because(brief(error))
}

/// The sub-key to sign with: the newest that may, as GnuPG chooses. `None` = the primary key.
fn choose_signer(key: &SignedSecretKey, revocations: &[Signature]) -> Result<Option<usize>> {
    let now = Timestamp::now();
    let judged = policy::judge_certificate(&key.to_public_key(), revocations);
    let refusal = |fingerprint: Fingerprint, version: KeyVersion| {
        if version != KeyVersion::V4 {
            return Some("it is not of version 4, which is all that other readers of streams know");
        }
        match judged.iter().find(|key| key.fingerprint == fingerprint) {
            Some(key) => key.cannot_sign(now),
            None => Some("it is not bound to its primary key"),
        }
    };
    let mut fit = Vec::new();
    for (index, sub) in key.secret_subkeys.iter().enumerate() {
        let public = sub.key.public_key();
        if refusal(Fingerprint::of(public), public.version()).is_none() {
            fit.push((Some(index), public.created_at(), sub.key.secret_params().is_encrypted()));
        }
    }
    fit.sort_by_key(|&(_, created, _)| std::cmp::Reverse(created));
    let primary = key.primary_key.public_key();
    match refusal(Fingerprint::of(primary), primary.version()) {
        None => fit.push((None, primary.created_at(), key.primary_key.secret_params().is_encrypted())),
        Some(reason) if fit.is_empty() => {
            return Err(Error::usage(format!("the secret key cannot sign: {reason}")));
        }
        Some(_) => {}
    }
    fit.into_iter().find(|&(.., locked)| !locked).map(|(index, ..)| index).ok_or_else(|| {
        Error::usage("the secret key is under a passphrase, which virga does not ask for").hint(
            "export a copy without one: 'gpg --edit-key FINGERPRINT passwd' in a GNUPGHOME of its own, \
             then 'gpg --armor --export-secret-keys'",
        )
    })
}
