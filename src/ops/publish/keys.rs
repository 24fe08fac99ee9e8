//! With which keys a stream is signed, and which its clients are given.
//!
//! All that sign a stream sign every document of it: whoever knows one of them reads all of it. A change is refused
//! without one of them, for then those who know only that one would be cut off; `stream rekey` alone changes who signs.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::gnupg::GnuPg;
use super::{keyring_path, with};
use crate::base::{Error, Kind, Result, fs};
use crate::ops::Env;
use crate::stream::key::{Fingerprint, Keyring, Signer, SigningKey, sign_detached, sign_inline};
use crate::stream::publish::Sign;
use crate::stream::signed;

/// The signature that says who signs a stream: the one that is written last.
const SIGNATURE: &str = "streams/v1/index.json.gpg";

/// More than a few keys have.
const KEYRING_LIMIT: u64 = 1 << 20;

/// Which keys are to sign, as a user names them. At least one.
#[derive(Clone, Debug, Default)]
pub struct SignWith {
    /// Files with a secret key each.
    pub files: Vec<PathBuf>,
    /// Keys that GnuPG has, or knows where they are: fingerprints, addresses.
    pub gnupg: Vec<String>,
}

/// Who signs, and whose signatures count where a stream of ours is read again.
pub struct Keys {
    signers: Vec<Key>,
    trusted: Keyring,
}

/// One key that signs.
struct Key {
    signer: Box<dyn Signer>,
    public: Vec<u8>,
    fingerprint: Fingerprint,
}

impl Keys {
    /// # Errors
    /// [`Kind::NotFound`] without such a key, [`Kind::Usage`] when there is none, or when one cannot sign.
    pub fn load(with: &SignWith) -> Result<Self> {
        let mut signers = Vec::new();
        for file in &with.files {
            let key = SigningKey::from_file(file).map_err(|error| match error.kind() {
                Kind::NotFound => error.hint("'virga stream init DIR --key FILE' makes a key"),
                _ => error,
            })?;
            let (public, fingerprint) = (key.public_binary()?, key.fingerprint());
            signers.push(Key { signer: Box::new(key), public, fingerprint });
        }
        for name in &with.gnupg {
            let (key, public) = GnuPg::find(name)?;
            let fingerprint = key.fingerprint().clone();
            signers.push(Key { signer: Box::new(key), public, fingerprint });
        }
        let mut rings = signers.iter().map(|key| Keyring::from_bytes(&key.public));
        let first = rings.next().ok_or_else(|| {
            Error::usage("nothing says which key signs").hint("give '--key FILE' or '--sign-with KEY'")
        })??;
        let trusted = rings.try_fold(first, |all, ring| Ok::<_, Error>(all.with(&ring?)))?;
        if trusted.fingerprints().len() < signers.len() {
            return Err(Error::usage("one key is given twice"));
        }
        Ok(Keys { signers, trusted })
    }

    /// Whose signatures count.
    pub fn trusted(&self) -> &Keyring {
        &self.trusted
    }

    /// The keys, in the order in which they were given.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.signers.iter().map(|key| key.fingerprint.clone()).collect()
    }

    /// Whether just these sign the stream in `dir`, if it is signed yet.
    ///
    /// # Errors
    /// [`Kind::Usage`] when another does, or one of these does not.
    pub fn fit(&self, dir: &Path) -> Result<()> {
        let path = dir.join(SIGNATURE);
        if !path.exists() {
            return Ok(());
        }
        let (known, others) = signed::named_signers(&fs::read(&path, KEYRING_LIMIT)?, &self.trusted)?;
        let rekey = "'virga stream rekey' changes which keys sign a stream";
        let stream = dir.display();
        if known.is_empty() {
            let others = others.join(", ");
            return Err(Error::usage(format!("the stream in '{stream}' is signed with another key: {others}"))
                .hint(format!("give that key; {rekey}")));
        }
        if let Some(other) = others.first() {
            let error = Error::usage(format!("the stream in '{stream}' is signed with {other} as well"));
            return Err(error.hint(format!("give that key too, or its clients are cut off; {rekey}")));
        }
        match self.signers.iter().find(|key| !known.contains(&key.fingerprint)) {
            Some(key) => Err(Error::usage(format!("the stream in '{stream}' is not signed with {}", key.fingerprint))
                .hint(format!("leave that key out; {rekey}"))),
            None => Ok(()),
        }
    }

    /// Lays the public keys into the stream's folder, for clients, and says when they are others than before. Those that
    /// were `announced` and do not sign yet stay, unless it is said which ones there are to be.
    fn lay_out(&self, env: Env<'_>, dir: &Path, announced: Option<&[PathBuf]>) -> Result<()> {
        let path = keyring_path(dir);
        let published = fs::read(&path, KEYRING_LIMIT).ok();
        let known = published.as_ref().and_then(|bytes| Keyring::from_bytes(bytes).ok());
        let mut all = Vec::new();
        match (announced, &known) {
            (None, Some(known)) => {
                let held = known.fingerprints();
                if self.signers.iter().all(|key| held.contains(&key.fingerprint)) {
                    return Ok(());
                }
                all.extend(
                    self.signers.iter().filter(|key| !held.contains(&key.fingerprint)).flat_map(|key| &key.public),
                );
                all.extend(published.iter().flatten());
            }
            _ => {
                all.extend(self.signers.iter().flat_map(|key| &key.public));
                for file in announced.unwrap_or_default() {
                    all.extend(public_of(file)?);
                }
            }
        }
        if published.as_ref() != Some(&all) {
            fs::write_atomic(&path, &all, 0o644)?;
            env.reporter.note(&format!("clients need '{}': virga sync --keyring", path.display()));
        }
        Ok(())
    }
}

impl Sign for Keys {
    fn inline(&self, document: &[u8]) -> Result<Vec<u8>> {
        let message = sign_inline(document, &self.makers())?;
        // Another program may have signed: what we would not take nobody is given.
        signed::verify_inline(&message, &self.trusted, Timestamp::now())?;
        Ok(message)
    }

    fn detached(&self, document: &[u8]) -> Result<Vec<u8>> {
        let signature = sign_detached(document, &self.makers())?;
        let verified = signed::verify_detached(document, &signature, &self.trusted, Timestamp::now())?;
        if verified.signers.len() < self.signers.len() {
            return Err(Error::failed("one of the keys makes signatures that do not count"));
        }
        Ok(signature)
    }
}

impl Keys {
    fn makers(&self) -> Vec<&dyn Signer> {
        self.signers.iter().map(|key| key.signer.as_ref()).collect()
    }
}

/// The keys of the stream in `dir`; a file that is not there is made, unless the stream is signed already. Their public
/// parts are laid into the folder for clients.
///
/// # Errors
/// [`Kind::Usage`] when a secret key would lie in the folder that is served, or the stream is signed with others.
pub fn keys_for(env: Env<'_>, dir: &Path, sign_with: &SignWith, user_id: &str) -> Result<Keys> {
    fs::create_dir(dir)?;
    let in_use = dir.join(SIGNATURE).exists();
    for file in &sign_with.files {
        refuse_key_within(dir, file)?;
        if in_use && !file.exists() {
            let (stream, key) = (dir.display(), file.display());
            return Err(Error::usage(format!(
                "the stream in '{stream}' is signed with another key than '{key}', which is not there"
            ))
            .hint("give that key; 'virga stream rekey' changes which keys sign a stream"));
        }
        make(env, file, user_id)?;
    }
    let keys = Keys::load(sign_with)?;
    keys.fit(dir)?;
    keys.lay_out(env, dir, None)?;
    Ok(keys)
}

/// Which keys are to sign a stream from now on.
#[derive(Clone, Debug)]
pub struct RekeyRequest {
    /// The stream's folder.
    pub dir: PathBuf,
    /// Those that sign; a file that is absent is made. One of them must have signed the stream as it is.
    pub sign: SignWith,
    /// Files with further keys, public or secret, that clients are to know before they sign.
    pub announce: Vec<PathBuf>,
    /// Whom a new key belongs to.
    pub user_id: String,
}

/// Signs a stream anew, with these keys and no others, and gives its clients these and those that are announced.
/// Repeatable. Clients that know one of the keys that sign, before or after, can read it at every moment.
///
/// # Errors
/// [`Kind::Refused`] when none of the keys has signed the stream as it is.
pub fn rekey(env: Env<'_>, request: &RekeyRequest) -> Result<Vec<Fingerprint>> {
    let dir = &request.dir;
    for file in &request.sign.files {
        refuse_key_within(dir, file)?;
        make(env, file, &request.user_id)?;
    }
    let keys = Keys::load(&request.sign)?;
    // Clients first: what is signed with a key that nobody can have is of no use.
    let before = fs::read(&keyring_path(dir), KEYRING_LIMIT).ok();
    with(dir, &keys, |publisher| publisher.check_whole())?;
    keys.lay_out(env, dir, Some(&request.announce))?;
    with(dir, &keys, |publisher| publisher.sign_again()).inspect_err(|_| {
        if let Some(before) = before {
            let _ = fs::write_atomic(&keyring_path(dir), &before, 0o644);
        }
    })?;
    Ok(keys.fingerprints())
}

fn make(env: Env<'_>, file: &Path, user_id: &str) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    let key = SigningKey::generate(user_id)?;
    match fs::write_once(file, key.to_armored()?.as_bytes(), 0o600) {
        // Another command made one since: that is the key.
        Err(error) if error.kind() == Kind::Exists => Ok(()),
        made => {
            made?;
            env.reporter.note(&format!("made the signing key '{}': keep it secret, and keep it", file.display()));
            Ok(())
        }
    }
}

/// The public keys of a file, whichever kind of key it holds.
fn public_of(file: &Path) -> Result<Vec<u8>> {
    match SigningKey::from_file(file) {
        Ok(key) => key.public_binary(),
        Err(error) if error.kind() == Kind::NotFound => Err(error),
        Err(_) => Keyring::binary(file),
    }
}

fn refuse_key_within(dir: &Path, key: &Path) -> Result<()> {
    let folder = fs::folder_of(key);
    let (Ok(dir), Ok(folder)) = (dir.canonicalize(), folder.canonicalize()) else { return Ok(()) };
    if folder.starts_with(&dir) {
        return Err(
            Error::usage("the secret key would lie in the folder that is served").hint("give a --key outside of it")
        );
    }
    Ok(())
}
