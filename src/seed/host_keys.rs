//! By which SSH host keys the guest is known: ours, or those that the user's own user-data brings.

use std::time::Duration;

use serde_json::{Map, Value, json};
use ssh_key::PublicKey;

use super::HostKey;
use super::settings::{Config, Setting, setting};
use crate::base::cmd::{Cmd, last_words};
use crate::base::name::quoted;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, Kind, Result};

/// The names that cloud-init has for host keys and writes for `sshd`; it passes over all others. The file decides what
/// kind of key it is.
const NAMES: [&str; 3] = ["ed25519", "ecdsa", "rsa"];

/// For reading a key: `ssh-keygen` has no more to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host keys of the guest.
pub(super) struct HostKeys {
    /// `ssh_keys` for cloud-init; `None` when the user's own are used.
    pub inject: Option<Value>,
    /// Each as `type base64`.
    pub public: Vec<String>,
    pub warnings: Vec<String>,
}

/// Ours, unless configuration of the user's brings its own: then theirs are what the guest will show. OpenSSH's own
/// `ssh-keygen` reads them, as `sshd` will: of any kind and in any form.
///
/// # Errors
/// [`Kind::Usage`] when theirs cannot be read: the guest would then have none, or could not be verified.
pub(super) fn host_keys(configs: &[Config], ours: &[HostKey]) -> Result<HostKeys> {
    let mut warnings = Vec::new();
    match setting(configs, "ssh_keys") {
        Setting::Known(theirs) if !theirs.is_null() => {
            let public = of_user(theirs, &mut warnings)?;
            if !public.is_empty() {
                warnings.push("the user-data brings SSH host keys of its own: they are used, none is made".into());
                return Ok(HostKeys { inject: None, public, warnings });
            }
        }
        Setting::Unknown { what, .. } => warnings
            .push(format!("what SSH host keys {what} brings is known in the guest alone: virga's take their place")),
        Setting::Known(_) | Setting::Absent => {}
    }
    let mut inject = Map::new();
    let mut public = Vec::new();
    for key in ours {
        inject.insert(format!("{}_private", key.kind.name()), json!(key.private_openssh));
        inject.insert(format!("{}_public", key.kind.name()), json!(key.public_openssh));
        public.push(plain_public(&key.public_openssh).map_err(|error| error.with_kind(Kind::Failed))?);
    }
    Ok(HostKeys { inject: (!ours.is_empty()).then_some(Value::Object(inject)), public, warnings })
}

/// What the guest will show, of the keys in `ssh_keys`.
fn of_user(theirs: &Value, warnings: &mut Vec<String>) -> Result<Vec<String>> {
    let theirs = theirs.as_object().ok_or_else(|| Error::usage("the user-data's 'ssh_keys' is not a mapping"))?;
    let (mut public, mut passed_over) = (Vec::new(), Vec::new());
    for (key, value) in theirs {
        match key.strip_suffix("_private") {
            Some(name) if NAMES.contains(&name) => public.push(public_of(name, value, theirs)?),
            Some(_) => passed_over.push(key.as_str()),
            None => {}
        }
    }
    for key in passed_over {
        warnings.push(match key {
            "dsa_private" => "the user-data's 'ssh_keys' has a DSA key, which OpenSSH takes no more".into(),
            _ => format!("the user-data's 'ssh_keys' has {}, which cloud-init does not know", quoted(key)),
        });
    }
    Ok(public)
}

fn public_of(name: &str, private: &Value, theirs: &Map<String, Value>) -> Result<String> {
    let stated = theirs.get(&format!("{name}_public")).and_then(Value::as_str).map(plain_public).transpose()?;
    let unreadable = |why: &str| {
        Error::usage(format!("the user-data's 'ssh_keys' has {name}_private that OpenSSH cannot read"))
            .because(why.to_owned())
    };
    let text = private.as_str().ok_or_else(|| unreadable("it is not text"))?;
    let derived = match derive(text)? {
        Derived::Key(line) => Some(plain_public(&line)?),
        Derived::Unreadable(why) => {
            let error = unreadable(&why);
            return Err(match text.ends_with('\n') {
                true => error.hint("it must have no passphrase, and be as 'ssh-keygen' wrote it, line by line"),
                false => error.hint(format!("its last line has no end, and must: write it below '{name}_private: |'")),
            });
        }
        Derived::NobodyToAsk => None,
    };
    match (stated, derived) {
        (Some(stated), Some(derived)) if stated != derived => {
            Err(Error::usage(format!("in the user-data's 'ssh_keys', {name}_public does not belong to {name}_private")))
        }
        (Some(public), _) | (None, Some(public)) => Ok(public),
        (None, None) => Err(Error::usage(format!("the user-data's 'ssh_keys' has no {name}_public"))
            .because("without 'ssh-keygen' it cannot be made of the private key")
            .hint("install the package openssh-client")),
    }
}

enum Derived {
    Key(String),
    /// Why it cannot.
    Unreadable(String),
    NobodyToAsk,
}

/// The public half of a private key.
fn derive(private: &str) -> Result<Derived> {
    let mut asked = match Cmd::new("ssh-keygen").args(["-y", "-P", "", "-f", "/dev/stdin"]).spawn() {
        Err(error) if error.kind() == Kind::Unavailable => return Ok(Derived::NobodyToAsk),
        other => other?,
    };
    asked.feed(private.as_bytes().to_vec());
    let output = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(2), || asked.poll())?;
    let output = output.ok_or_else(|| Error::timed_out("'ssh-keygen' does not end"))?;
    if output.status.success() {
        return Ok(Derived::Key(output.text().trim().to_owned()));
    }
    let words = last_words(&output.stderr);
    Ok(Derived::Unreadable(words.rsplit(": ").next().unwrap_or_default().to_owned()))
}

/// A public key's line without its comment.
fn plain_public(line: &str) -> Result<String> {
    let mut key = PublicKey::from_openssh(line.trim())
        .map_err(|error| Error::usage(format!("{} is not an SSH public key", quoted(line))).because(error))?;
    key.set_comment("");
    let text = key.to_openssh().map_err(|error| Error::failed("writing an SSH public key").because(error))?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests;
