//! Cloud-init seeds: the four NoCloud documents and the image that carries them.
//!
//! | file | what is in it |
//! |---|---|
//! | `meta-data` | instance id, host name, access keys |
//! | `user-data` | access keys, host keys, the options of the command line; the user's own user-data, untouched |
//! | `vendor-data` | `cloud-init/base.yaml`, the defaults that user-data overrides |
//! | `network-config` | DHCP on the guest's cards, or the user's own |
//!
//! A user's user-data travels as parts of a MIME message, ours behind them, and
//! cloud-init merges (its documentation: "User data formats", "Merging user data
//! sections"). The parts are the user's own, byte by byte; only what gzip or
//! base64 is around them is taken off, which cloud-init does not do everywhere. What must get in whatever
//! the user wrote is in a part that replaces; the rest only adds.

mod config;
mod copy;
mod host_keys;
pub mod iso;
mod login;
mod message;
mod meta_data;
mod mime;
mod part;
mod password;
mod pyyaml;
mod rename;
mod settings;
mod unpack;
mod warm;
mod yaml;

use std::fmt;

use crate::base::nic::Mac;
use crate::base::plan::InstanceId;
use crate::base::{GuestName, Result};

use settings::Config;

pub use copy::copy_part;
pub use password::hashed;
pub use rename::{renamed, renamed_in};
pub use warm::{renewal_part, user_part, why_cold};

/// No image of a seed is larger.
pub const LARGEST: u64 = 2 * iso::MAX_CONTENT as u64;

/// Everything a seed is made of.
#[derive(Clone)]
pub struct SeedRequest {
    /// The guest's name; becomes its host name.
    pub name: GuestName,
    /// Tells cloud-init whether this is a new machine.
    pub instance_id: InstanceId,
    /// Addresses of the cards that the network configuration is for.
    pub macs: Vec<Mac>,
    /// Whether the cards are called `eth0` and so on before cloud-init comes: a container's are.
    pub cards_have_names: bool,
    /// The guest's SSH identity.
    pub host_keys: Vec<HostKey>,
    /// Lines of `authorized_keys`, with options if they have any.
    pub authorized_keys: Vec<String>,
    /// Password of the login user, [`hashed`]; allows SSH logins with passwords.
    pub password: Option<String>,
    /// Packages to install on first boot.
    pub packages: Vec<String>,
    /// Run in this order, once in the guest's life, after everything else.
    pub run_scripts_once: Vec<Script>,
    /// The user's own user-data, in order; later ones win over earlier ones.
    pub user_data: Vec<UserPart>,
    /// The user's own meta-data; what it lacks is filled in.
    pub meta_data: Option<Vec<u8>>,
    /// The user's own network configuration, instead of ours.
    pub network_config: Option<Vec<u8>>,
}

/// Kinds of SSH host keys that virga makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKeyKind {
    /// Ed25519.
    Ed25519,
    /// ECDSA over NIST P-256.
    Ecdsa,
}

impl HostKeyKind {
    /// cloud-init's name of it, before `_private` and `_public`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HostKeyKind::Ed25519 => "ed25519",
            HostKeyKind::Ecdsa => "ecdsa",
        }
    }
}

/// One SSH host key pair.
#[derive(Clone)]
pub struct HostKey {
    /// Its kind.
    pub kind: HostKeyKind,
    /// The private key as OpenSSH's PEM text.
    pub private_openssh: String,
    /// The public key as one line: type, base64, perhaps a comment.
    pub public_openssh: String,
}

/// A script for `--run-script-once`.
#[derive(Clone)]
pub struct Script {
    /// Its file name, shown by cloud-init when it fails.
    pub name: String,
    /// UTF-8 text that begins with `#!`.
    pub bytes: Vec<u8>,
}

/// One file of user-data in any form that cloud-init knows.
#[derive(Clone)]
pub struct UserPart {
    /// Its file name, for messages and cloud-init's log.
    pub name: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// A finished seed. Holds private keys: files made of it are for their owner alone.
#[derive(Clone)]
pub struct Seed {
    /// `meta-data`, `user-data`, `network-config`, `vendor-data`.
    pub files: Vec<(String, Vec<u8>)>,
    /// The user to log in as, where user-data decides it; `None`: the image's default user.
    pub login_user: Option<String>,
    /// cloud-init's instance-id where the user's meta-data has one of its own; `None`: that of the request.
    pub instance: Option<String>,
    /// The host keys that the guest will show, each as `type base64`: ours, or
    /// those that the user's user-data brings.
    pub host_public_keys: Vec<String>,
    /// What the user should know, in whole sentences without full stop.
    pub warnings: Vec<String>,
}

impl Seed {
    /// The image for the guest, with the label that cloud-init looks for. The same seed gives the same bytes.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::base::Kind::Usage) when it is larger than 64 MiB.
    pub fn to_iso(&self) -> Result<Vec<u8>> {
        let files: Vec<(&str, &[u8])> =
            self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        iso::write_iso(&files)
    }
}

/// Makes the documents of a seed. The same request gives the same seed. Host keys of the user's are shown to `ssh-keygen`.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) naming the file and line, for what cloud-init would refuse or
/// silently ignore: user-data without a known first line, broken YAML or
/// duplicate keys in it, hostile keys, passwords, packages or scripts.
pub fn build(request: &SeedRequest) -> Result<Seed> {
    config::check(request)?;
    let mut parts = part::read(&request.user_data)?;
    let configs: Vec<Config> = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.configs)).collect();
    let access = login::decide(&configs, &request.authorized_keys, request.password.as_deref());
    let host_keys = host_keys::host_keys(&configs, &request.host_keys)?;
    let ours = config::ours(request, &configs, &access, host_keys.inject)?;
    let user_data = mime::user_data(&parts, &ours, &request.run_scripts_once)?;

    let meta_data = meta_data::meta_data(request, &access)?;
    let files = vec![
        ("meta-data".to_owned(), meta_data.bytes),
        ("user-data".to_owned(), user_data),
        ("network-config".to_owned(), config::network_config(request)?),
        ("vendor-data".to_owned(), config::BASE.as_bytes().to_vec()),
    ];
    let warnings = [access.warnings, host_keys.warnings, meta_data.warnings].concat();
    let (login_user, host_public_keys) = (access.login_user, host_keys.public);
    Ok(Seed { files, login_user, instance: meta_data.instance, host_public_keys, warnings })
}

// These hold secrets, so what shows them in a log shows only their shape.

impl fmt::Debug for SeedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeedRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKey").field("public_openssh", &self.public_openssh).finish_non_exhaustive()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for UserPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserPart").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Seed");
        shown.field("login_user", &self.login_user).field("warnings", &self.warnings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
