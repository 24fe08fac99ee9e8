//! The remotes that Incus' own client knows, or LXD's: `incus remote add` sets
//! one up, and it is ours too. Read, never written (Incus documentation,
//! "How to add remote servers").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use super::address::Host;
use crate::base::{BackendName, Error, Kind, Result, fs};

/// Most bytes of one file of a client's.
const LIMIT: u64 = 1 << 20;

/// A client's file, as far as it matters here.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    remotes: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    addr: String,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    auth_type: String,
    #[serde(default)]
    project: String,
}

/// A daemon as its client has it.
pub(super) enum Remote {
    /// At a socket of this host: the usual one, or this.
    Local(Option<PathBuf>),
    /// Over HTTPS.
    Far(Far),
}

/// A daemon over HTTPS.
pub(super) struct Far {
    /// Where it is, and after it where other members of its cluster are: those that bear the same certificate.
    pub hosts: Vec<Host>,
    /// The server certificate that it must show; `None`: one that the system's authorities vouch for.
    pub pinned: Option<CertificateDer<'static>>,
    /// Who we are there.
    pub identity: Identity,
    /// The project that the client is in.
    pub project: Option<BackendName>,
}

/// A client certificate and its key.
pub(super) struct Identity {
    pub file: PathBuf,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// The remote of this name, from the first of the folders that knows it.
///
/// # Errors
/// [`Kind::Unavailable`] when none does, or for one that is no daemon or cannot be used.
pub(super) fn find(folders: &[PathBuf], name: &BackendName) -> Result<Remote> {
    for folder in folders {
        let remotes = read(folder)?;
        if let Some(entry) = remotes.get(name.as_str()) {
            return remote(folder, &remotes, name.as_str(), entry);
        }
    }
    Err(Error::unavailable(format!("the client of Incus knows no remote '{name}'"))
        .hint(format!("'incus remote add {name} ADDRESS' makes it known, 'incus remote list' shows those that are")))
}

fn read(folder: &Path) -> Result<BTreeMap<String, Entry>> {
    let file = folder.join("config.yml");
    let text = match fs::read_text(&file, LIMIT) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(BTreeMap::new()),
        text => text.map_err(|error| error.with_kind(Kind::Unavailable))?,
    };
    let config: Config = serde_saphyr::from_str(&text)
        .map_err(|error| Error::unavailable(format!("'{}' cannot be read", file.display())).because(error))?;
    Ok(config.remotes)
}

fn remote(folder: &Path, all: &BTreeMap<String, Entry>, name: &str, entry: &Entry) -> Result<Remote> {
    let unusable = |why: &str| Error::unavailable(format!("the remote '{name}' {why}"));
    if !matches!(entry.protocol.as_str(), "" | "incus" | "lxd") {
        return Err(unusable("is a server of images and no daemon"));
    }
    if let Some(socket) = entry.addr.strip_prefix("unix:") {
        let socket = Some(socket.trim_start_matches("//")).filter(|socket| !socket.is_empty());
        return Ok(Remote::Local(socket.map(PathBuf::from)));
    }
    if !matches!(entry.auth_type.as_str(), "" | "tls") {
        return Err(unusable("wants another proof than a client certificate")
            .hint(format!("'incus remote add {name} ADDRESS --auth-type tls' sets it up for one")));
    }
    let host = |entry: &Entry| Host::parse(entry.addr.strip_prefix("https://")?).ok();
    let first = host(entry).ok_or_else(|| unusable("has no address that can be read"))?;
    let pinned = pin(folder, name)?;
    let mut hosts = vec![first];
    for (other, entry) in all.iter().filter(|(other, _)| pinned.is_some() && *other != name) {
        // A name is a file's here. What of others cannot be read is no reason to leave this one alone.
        let same = other.parse::<BackendName>().is_ok() && pin(folder, other).is_ok_and(|found| found == pinned);
        hosts.extend(host(entry).filter(|_| same));
    }
    let project = Some(&entry.project).filter(|project| !project.is_empty()).map(|project| project.parse());
    let project = project.transpose().map_err(|_| unusable("has a project whose name cannot be read"))?;
    Ok(Remote::Far(Far { hosts, pinned, identity: identity(std::slice::from_ref(&folder.to_owned()))?, project }))
}

/// The server certificate that was accepted when the remote was added.
fn pin(folder: &Path, name: &str) -> Result<Option<CertificateDer<'static>>> {
    let file = folder.join("servercerts").join(format!("{name}.crt"));
    match file.exists() {
        true => certificate(&file).map(Some),
        false => Ok(None),
    }
}

/// A certificate's file.
///
/// # Errors
/// [`Kind::Unavailable`] when it cannot be read.
pub(super) fn certificate(file: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(&bytes(file)?).map_err(|error| unreadable(file, &error.to_string()))
}

/// The client certificate in the first of the folders that has one.
///
/// # Errors
/// [`Kind::Unavailable`] when none has, or for one that cannot be read.
pub(super) fn identity(folders: &[PathBuf]) -> Result<Identity> {
    let Some(folder) = folders.iter().find(|folder| folder.join("client.crt").exists()) else {
        return Err(Error::unavailable("there is no client certificate to show to a daemon")
            .hint("'incus remote add' makes one, and has the daemon trust it"));
    };
    let (file, key) = (folder.join("client.crt"), folder.join("client.key"));
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(&file)?).collect();
    let chain = chain.map_err(|error| unreadable(&file, &error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(&key)?)
        .map_err(|error| unreadable(&key, &error.to_string()).hint("a key under a password cannot be used"))?;
    Ok(Identity { file, chain, key })
}

fn bytes(file: &Path) -> Result<Vec<u8>> {
    fs::read(file, LIMIT).map_err(|error| error.with_kind(Kind::Unavailable))
}

fn unreadable(file: &Path, why: &str) -> Error {
    Error::unavailable(format!("'{}' cannot be read", file.display())).because(why.to_owned())
}
