//! Keys, signatures and GnuPG homes for the tests of this part.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jiff::Timestamp;
use pgp::composed::{KeyType, SecretKeyParamsBuilder, SignedSecretKey, SubkeyParamsBuilder};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{RevocationCode, Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::ser::Serialize as _;
use pgp::types::{Duration, Password, Tag};
use rand_core::OsRng;

use super::key::Keyring;
use crate::base::cmd::Cmd;
use crate::base::fs;

/// The time at which the keys of these tests are made.
pub const BORN: u32 = 1_700_000_000;
pub const DAY: u32 = 24 * 60 * 60;

pub fn at(seconds: u32) -> Timestamp {
    Timestamp::from_second(seconds.into()).unwrap()
}

fn pgp_time(seconds: u32) -> pgp::types::Timestamp {
    pgp::types::Timestamp::from_secs(seconds)
}

fn duration(seconds: u32) -> Duration {
    std::time::Duration::from_secs(seconds.into()).try_into().unwrap()
}

/// A key made at [`BORN`], with a signing sub-key of the same age.
pub fn key(kind: KeyType) -> SignedSecretKey {
    let sub = SubkeyParamsBuilder::default()
        .key_type(kind.clone())
        .can_sign(true)
        .created_at(pgp_time(BORN))
        .build()
        .unwrap();
    SecretKeyParamsBuilder::default()
        .key_type(kind)
        .can_certify(true)
        .can_sign(true)
        .created_at(pgp_time(BORN))
        .primary_user_id("Test <test@example.org>".into())
        .subkey(sub)
        .build()
        .unwrap()
        .generate(OsRng)
        .unwrap()
}

pub fn ed25519() -> SignedSecretKey {
    key(KeyType::Ed25519Legacy)
}

/// One RSA key for all tests: it is slow to make. Only RSA signs weak hashes.
pub fn rsa() -> &'static SignedSecretKey {
    static KEY: LazyLock<SignedSecretKey> = LazyLock::new(|| key(KeyType::Rsa(2048)));
    &KEY
}

pub fn public(key: &SignedSecretKey) -> Vec<u8> {
    key.to_public_key().to_bytes().unwrap()
}

pub fn keyring(key: &SignedSecretKey) -> Keyring {
    Keyring::from_bytes(&public(key)).unwrap()
}

/// A signature in the making.
pub struct Recipe {
    pub kind: SignatureType,
    pub hash: HashAlgorithm,
    pub made: u32,
    pub extra: Vec<Subpacket>,
}

impl Recipe {
    pub fn of(kind: SignatureType) -> Self {
        Recipe { kind, hash: HashAlgorithm::Sha512, made: BORN + DAY, extra: Vec::new() }
    }

    pub fn hash(mut self, hash: HashAlgorithm) -> Self {
        self.hash = hash;
        self
    }

    pub fn made(mut self, seconds: u32) -> Self {
        self.made = seconds;
        self
    }

    pub fn with(mut self, data: SubpacketData) -> Self {
        self.extra.push(Subpacket::regular(data).unwrap());
        self
    }

    pub fn with_critical(mut self, data: SubpacketData) -> Self {
        self.extra.push(Subpacket::critical(data).unwrap());
        self
    }

    pub fn key_expires_after(self, seconds: u32) -> Self {
        self.with(SubpacketData::KeyExpirationTime(duration(seconds)))
    }

    pub fn expires_after(self, seconds: u32) -> Self {
        self.with(SubpacketData::SignatureExpirationTime(duration(seconds)))
    }

    pub fn config(self, key: &impl pgp::types::SigningKey) -> SignatureConfig {
        let mut config = SignatureConfig::v4(self.kind, key.algorithm(), self.hash);
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(pgp_time(self.made))).unwrap(),
            Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
        ];
        config.hashed_subpackets.extend(self.extra);
        config.unhashed_subpackets = vec![Subpacket::regular(SubpacketData::IssuerKeyId(key.legacy_key_id())).unwrap()];
        config
    }

    pub fn sign(self, key: &impl pgp::types::SigningKey, data: &[u8]) -> Signature {
        self.config(key).sign(key, &Password::empty(), data).unwrap()
    }

    /// Puts a self-signature in the place of the user id's.
    pub fn certify(self, key: &mut SignedSecretKey) {
        let user = &key.details.users[0];
        let signature = self
            .config(&key.primary_key)
            .sign_certification(
                &key.primary_key,
                key.primary_key.public_key(),
                &Password::empty(),
                Tag::UserId,
                &user.id,
            )
            .unwrap();
        key.details.users[0].signatures = vec![signature];
    }

    /// A signature over the primary key.
    pub fn over_key(self, key: &SignedSecretKey) -> Signature {
        let primary = &key.primary_key;
        self.config(primary).sign_key(primary, &Password::empty(), primary.public_key()).unwrap()
    }

    /// A signature over the primary key and its sub-key.
    pub fn over_subkey(self, key: &SignedSecretKey) -> Signature {
        let (primary, sub) = (&key.primary_key, key.secret_subkeys[0].key.public_key());
        self.config(primary).sign_subkey_binding(primary, primary.public_key(), &Password::empty(), sub).unwrap()
    }
}

pub fn revocation(key: &SignedSecretKey) -> Signature {
    Recipe::of(SignatureType::KeyRevocation)
        .made(BORN + 10 * DAY)
        .with(SubpacketData::RevocationReason(RevocationCode::KeyRetired, "".into()))
        .over_key(key)
}

/// Signatures as a file of packets.
pub fn packets(signatures: &[Signature]) -> Vec<u8> {
    use pgp::packet::PacketTrait as _;
    let mut bytes = Vec::new();
    for signature in signatures {
        signature.to_writer_with_header(&mut bytes).unwrap();
    }
    bytes
}

/// Signatures as one armoured block.
pub fn armored(signatures: &[Signature]) -> String {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD.encode(packets(signatures));
    let lines: Vec<&str> = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PGP SIGNATURE-----\n\n{}\n-----END PGP SIGNATURE-----\n", lines.join("\n"))
}

/// A GnuPG home of its own, whose agent ends with it.
pub struct Gpg {
    folder: tempfile::TempDir,
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Cmd::new("gpgconf").arg("--homedir").arg(self.folder.path()).args(["--kill", "all"]).output();
    }
}

impl Gpg {
    /// Fails with a clear message when GnuPG is not installed.
    pub fn new() -> Self {
        // Short: the agent's socket is in it.
        let folder = tempfile::Builder::new().prefix("vg").tempdir_in("/tmp").unwrap();
        fs::set_mode(folder.path(), 0o700).unwrap();
        Gpg { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write_atomic(&path, bytes, 0o600).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(&self.path(name), 1 << 30).unwrap()
    }

    /// Runs gpg; its standard output.
    pub fn run(&self, args: &[&str]) -> Vec<u8> {
        let output = Cmd::new("gpg")
            .arg("--homedir")
            .arg(self.folder.path())
            .args(["--batch", "--yes", "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""])
            .args(args)
            .run();
        output.unwrap_or_else(|error| panic!("gpg (package gnupg) {args:?}: {error}: {:?}", error.causes())).stdout
    }

    /// A new key without a passphrase.
    pub fn generate(&self, user_id: &str, algorithm: &str, usage: &str) {
        self.run(&["--quick-generate-key", user_id, algorithm, usage, "never"]);
    }

    /// What gpgv makes of a document (and, when detached, its signature); what it wrote as the signed text.
    pub fn gpgv(&self, keyring: &[u8], files: &[&Path]) -> Result<Vec<u8>, String> {
        let keyring = self.write("trusted.gpg", keyring);
        let text = self.path("text");
        fs::remove_file(&text).unwrap();
        let mut cmd = Cmd::new("gpgv").arg("--homedir").arg(self.folder.path()).arg("--keyring").arg(keyring);
        if files.len() == 1 {
            cmd = cmd.arg("--output").arg(&text);
        }
        let output = cmd.args(files).output().expect("gpgv (package gpgv) is needed");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(if files.len() == 1 { self.read("text") } else { Vec::new() })
    }
}
