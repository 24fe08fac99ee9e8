//! A key that GnuPG signs with: one on a smart card, under a passphrase, or on another machine behind its agent.

use std::io::Write as _;
use std::time::Duration;

use crate::base::cmd::{self, Cmd};
use crate::base::{Context as _, Error, Kind, Result};
use crate::stream::key::{Fingerprint, Keyring, Signer};

/// A person looks for the card, types a PIN, touches a button.
const PATIENCE: Duration = Duration::from_secs(600);

/// A key that GnuPG knows.
pub(super) struct GnuPg {
    fingerprint: Fingerprint,
}

impl GnuPg {
    /// By a fingerprint, an id, or an address, as GnuPG finds keys. Returns it with its public key.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when GnuPG knows none, [`Kind::Usage`] when several are meant, [`Kind::Unavailable`] without GnuPG.
    pub fn find(name: &str) -> Result<(Self, Vec<u8>)> {
        let exported = gpg().args(["--export", "--"]).arg(name).output().map_err(missing)?;
        if exported.stdout.is_empty() {
            return Err(Error::not_found(format!("GnuPG has no key '{name}'"))
                .hint("'gpg --list-secret-keys' shows those that it can sign with"));
        }
        let keys = Keyring::from_bytes(&exported.stdout)?.fingerprints();
        let [fingerprint] = keys.as_slice() else {
            let all: Vec<String> = keys.iter().map(Fingerprint::to_string).collect();
            return Err(Error::usage(format!("'{name}' means several keys: {}", all.join(", ")))
                .hint("give the fingerprint of one"));
        };
        Ok((GnuPg { fingerprint: fingerprint.clone() }, exported.stdout))
    }

    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    fn sign(&self, mode: &[&str], data: &[u8]) -> Result<Vec<u8>> {
        let failed = || "handing a document to GnuPG".to_owned();
        let mut file = tempfile::NamedTempFile::new().context(failed)?;
        file.write_all(data).context(failed)?;
        let sign = gpg().args(["--armor", "--digest-algo", "SHA512", "--local-user", &self.fingerprint.to_string()]);
        let signed = sign.args(mode).args(["--output", "-", "--detach-sign", "--"]).arg(file.path()).output();
        let signed = signed.map_err(missing)?;
        if signed.status.success() {
            return Ok(signed.stdout);
        }
        Err(Error::failed(format!("GnuPG did not sign with {}", self.fingerprint))
            .because(cmd::last_words(&signed.stderr))
            .hint("try it yourself: echo x | gpg --sign >/dev/null; its agent asks for PINs at GPG_TTY"))
    }
}

impl Signer for GnuPg {
    fn sign_text(&self, text: &[u8]) -> Result<Vec<u8>> {
        self.sign(&["--textmode"], text)
    }

    fn sign_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.sign(&[], bytes)
    }
}

fn gpg() -> Cmd {
    Cmd::new("gpg").args(["--batch", "--quiet", "--no-auto-key-locate"]).timeout(PATIENCE)
}

fn missing(error: Error) -> Error {
    match error.kind() {
        Kind::Unavailable => error.hint("install GnuPG: the package is 'gpg' or 'gnupg'"),
        _ => error,
    }
}
