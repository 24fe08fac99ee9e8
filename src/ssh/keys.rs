//! Key pairs that virga makes: a guest's host keys, injected before its first
//! boot so that no connection ever has to trust an unknown one, and a user key
//! for people who have none.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, LineEnding, PrivateKey};

use crate::base::lock::{FileLock, Mode};
use crate::base::{Context as _, Error, Kind, Result, fs};

/// Far more than any private key of ours takes.
const KEY_FILE_LIMIT: u64 = 64 << 10;

/// Both halves of a key, as OpenSSH writes them.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The private half: PEM, `OPENSSH PRIVATE KEY`, not encrypted, with a final newline.
    pub private: String,
    /// The public half: one line `TYPE BASE64 COMMENT` without a newline.
    pub public: String,
}

impl KeyPair {
    fn generate(algorithm: Algorithm, comment: &str) -> Result<Self> {
        let make = || {
            let mut key = PrivateKey::random(&mut OsRng, algorithm)?;
            key.set_comment(comment);
            Self::of(&key)
        };
        make().context(|| "making an SSH key".into())
    }

    fn of(key: &PrivateKey) -> ssh_key::Result<Self> {
        Ok(KeyPair {
            private: key.to_openssh(LineEnding::LF)?.as_str().to_owned(),
            public: key.public_key().to_openssh()?,
        })
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The host keys of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKeys {
    /// Ed25519: what every OpenSSH since 6.5 prefers.
    pub ed25519: KeyPair,
    /// ECDSA on P-256: for guests and clients under a FIPS policy, which lack Ed25519.
    pub ecdsa: KeyPair,
}

impl HostKeys {
    /// Makes new ones, in about a millisecond. `comment` stands at the end of
    /// the public lines and must not have control characters.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn generate(comment: &str) -> Result<Self> {
        Ok(HostKeys {
            ed25519: KeyPair::generate(Algorithm::Ed25519, comment)?,
            ecdsa: KeyPair::generate(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }, comment)?,
        })
    }

    /// The public lines, the preferred one first.
    #[must_use]
    pub fn public_lines(&self) -> [&str; 2] {
        [&self.ed25519.public, &self.ecdsa.public]
    }
}

/// The user key that virga made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnKey {
    /// The private key's file; the public one lies beside it under `.pub`.
    pub path: PathBuf,
    /// The public line.
    pub public: String,
    /// Whether this call made it.
    pub made: bool,
}

/// The user key at `path`, made now if it is not there yet. Safe to call from
/// several processes at once: all get the same key. Takes the lock file
/// `lock` in the key's folder for the moment of making.
///
/// # Errors
/// When the key cannot be written, or is there but cannot be read: it is never replaced.
pub fn own_key(path: &Path) -> Result<OwnKey> {
    if let Some(key) = read_own_key(path)? {
        return Ok(key);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_private_dir(folder)?;
    let _lock =
        FileLock::acquire(&folder.join("lock"), Mode::Exclusive, "virga's own SSH key", Duration::from_secs(10))?;
    if let Some(key) = read_own_key(path)? {
        return Ok(key);
    }
    let pair = KeyPair::generate(Algorithm::Ed25519, "virga")?;
    // The private half last: once it is there, both are.
    fs::write_atomic(&public_path(path), format!("{}\n", pair.public).as_bytes(), 0o644)?;
    fs::write_atomic(path, pair.private.as_bytes(), 0o600)?;
    Ok(OwnKey { path: path.to_owned(), public: pair.public, made: true })
}

fn read_own_key(path: &Path) -> Result<Option<OwnKey>> {
    let text = match fs::read_text(path, KEY_FILE_LIMIT) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    let key = PrivateKey::from_openssh(&text).map_err(|error| {
        Error::failed(format!("'{}' is not an SSH private key", path.display()))
            .because(error)
            .hint("virga makes a new one when that file and its .pub are removed; older guests then refuse it")
    })?;
    // The public half comes from the private one, so that the two cannot differ.
    let public = key.public_key().to_openssh().context(|| format!("reading '{}'", path.display()))?;
    Ok(Some(OwnKey { path: path.to_owned(), public, made: false }))
}

/// `FILE.pub` beside `FILE`.
pub(super) fn public_path(private: &Path) -> PathBuf {
    let mut name = private.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::base::cmd::Cmd;

    /// What `ssh-keygen` takes for the public half of `private`.
    fn public_half(private: &Path) -> String {
        let output = Cmd::new("ssh-keygen").args(["-y", "-P", "", "-f"]).arg(private).run();
        output.expect("needs ssh-keygen (package openssh-client)").text().trim_end().to_owned()
    }

    #[test]
    fn ssh_keygen_agrees_on_host_keys() {
        let folder = tempfile::tempdir().unwrap();
        let keys = HostKeys::generate("root@web").unwrap();
        assert!(keys.ed25519.public.starts_with("ssh-ed25519 "));
        assert!(keys.ecdsa.public.starts_with("ecdsa-sha2-nistp256 "));
        for (name, pair) in [("a", &keys.ed25519), ("b", &keys.ecdsa)] {
            let path = folder.path().join(name);
            fs::write_new(&path, pair.private.as_bytes(), 0o600).unwrap();
            assert_eq!(public_half(&path), pair.public);
            assert!(pair.public.ends_with(" root@web"));
            assert!(pair.private.ends_with('\n'));
        }
        assert_ne!(keys, HostKeys::generate("root@web").unwrap());
        assert!(!format!("{keys:?}").contains("PRIVATE"), "private keys must not get into logs");
    }

    #[test]
    fn own_key_is_made_once_even_by_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ssh").join("id_ed25519");
        let keys: Vec<OwnKey> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| own_key(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(keys.iter().filter(|key| key.made).count(), 1);
        assert!(keys.iter().all(|key| key.public == keys[0].public));
        assert_eq!(public_half(&path), keys[0].public);
        assert_eq!(fs::read_text(&public_path(&path), 1000).unwrap().trim_end(), keys[0].public);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn a_damaged_own_key_is_reported_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id_ed25519");
        fs::write_new(&path, b"junk", 0o600).unwrap();
        let error = own_key(&path).unwrap_err();
        assert!(error.to_string().contains("id_ed25519"), "{error}");
        assert_eq!(fs::read(&path, 100).unwrap(), b"junk");
    }
}
