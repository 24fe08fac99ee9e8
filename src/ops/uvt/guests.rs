//! Any domain of the daemon by its name: listed, found, entered, removed,
//! whether uvtool made it, virga, or somebody else.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::{libvirt, record_of};
use crate::base::{Context as _, Error, GuestName, Kind, Result};
use crate::driver::libvirt::uvtool::{Machine, Uvtool};
use crate::guest;
use crate::ops::{Env, destroy, identity};
use crate::ssh::known_hosts;
use crate::ssh::session::{self, Login};

/// Whom uvtool logs in as where nobody says.
const USER: &str = "ubuntu";

/// The port of SSH.
const SSH: u16 = 22;

/// The names of all domains, in the order of `virsh list --all`.
///
/// # Errors
/// [`Kind::Unavailable`] without a daemon.
pub fn list(env: Env<'_>) -> Result<Vec<String>> {
    libvirt(env).names()
}

/// The addresses of a guest, best first, at least one.
///
/// # Errors
/// [`Kind::NotFound`] without such a domain; [`Kind::Failed`] while it has no address that anybody knows.
pub fn addresses(env: Env<'_>, name: &str) -> Result<Vec<IpAddr>> {
    let libvirt = libvirt(env);
    let found = libvirt.addresses(&libvirt.machine(name)?)?;
    if found.is_empty() {
        return Err(Error::failed(format!("no IP address found for libvirt machine '{name}'.")));
    }
    Ok(found)
}

/// How to get in to a guest.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// As whom; `None`: as the user whom virga noted, else uvtool's `ubuntu`.
    pub user: Option<String>,
    /// With which private key; `None`: with those that virga noted, else as `ssh` finds them.
    pub key: Option<PathBuf>,
    /// Whether to go in to a guest whose host keys nobody knows. Keys that are known count all the same.
    pub insecure: bool,
}

/// A way in, good as long as it lives: the host keys lie in a file of its own.
pub(super) struct Way {
    login: Login,
    _known_hosts: tempfile::NamedTempFile,
}

impl Way {
    /// # Errors
    /// [`Kind::Failed`] without known host keys, unless that was allowed.
    pub fn find(env: Env<'_>, machine: &Machine, entry: &Entry) -> Result<Self> {
        let pinned = !machine.host_keys.is_empty();
        if !pinned && !entry.insecure {
            return Err(Error::failed(
                "ssh public host key not found. Use --insecure iff you trust your network path to the guest.",
            ));
        }
        // For a domain's name may hold anything.
        let alias = format!("virga-{}", machine.uuid);
        let keys: Vec<&str> = machine.host_keys.iter().map(String::as_str).collect();
        let mut file = tempfile::Builder::new()
            .prefix("virga-known-hosts-")
            .tempfile()
            .context(|| "making a file for the host keys".into())?;
        let lines = known_hosts::lines(&alias, &keys)?;
        file.write_all(lines.as_bytes()).context(|| "writing the host keys".into())?;
        let record = record_of(env, machine);
        let noted = record.map(|record| (identity::keys(&env.settings.layout, &record), record.user));
        let (noted_keys, noted_user) = noted.unwrap_or_default();
        let noted_user = Some(noted_user).filter(|user| !user.is_empty());
        let key = entry.key.as_ref().map(std::path::absolute).transpose().context(|| "finding the key".into())?;
        let login = Login {
            user: entry.user.clone().or(noted_user).unwrap_or_else(|| USER.to_owned()),
            alias,
            known_hosts: file.path().to_owned(),
            algorithms: known_hosts::algorithms(&keys),
            identities: key.map_or(noted_keys, |key| vec![key]),
            pinned,
        };
        Ok(Way { login, _known_hosts: file })
    }

    /// To this address.
    pub fn to(&self, address: IpAddr) -> session::SshTarget {
        self.login.at(SocketAddr::from((address, SSH)))
    }
}

/// Runs `ssh` into a guest with our own input, output and terminal. `words` follow the destination as they would on
/// `ssh`'s own command line. Returns its exit code.
///
/// # Errors
/// [`Kind::NotFound`] without such a domain; [`Kind::Failed`] without an address or known host keys.
pub fn ssh(env: Env<'_>, name: &str, entry: &Entry, words: &[String]) -> Result<u8> {
    let libvirt = libvirt(env);
    let machine = libvirt.machine(name)?;
    let addresses = libvirt.addresses(&machine)?;
    let Some(address) = addresses.first() else {
        let text = format!("no IP address found for libvirt machine '{name}'. Has it had time to boot yet?");
        return Err(Error::failed(format!("{text}\nTry: uvt-kvm wait")));
    };
    let way = Way::find(env, &machine, entry)?;
    let code = session::interactive_words(&way.to(*address), words)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Removes a guest: out of libvirt first, then its own volumes, then what virga keeps of it. What the user attached stays.
///
/// # Errors
/// [`Kind::NotFound`] without such a domain; what libvirt said.
pub fn destroy(env: Env<'_>, name: &str) -> Result<()> {
    let libvirt = libvirt(env);
    if let Some(ours) = ours(env, &libvirt, name)?
        && destroy::destroy(env, &ours)?
    {
        return Ok(());
    }
    match libvirt.destroy(name)? {
        true => Ok(()),
        false => Err(Error::not_found(format!("domain '{name}' not found."))),
    }
}

/// The guest that virga keeps a record of: the domain's, or one whose domain is gone or was never there.
fn ours(env: Env<'_>, libvirt: &Uvtool, name: &str) -> Result<Option<GuestName>> {
    match libvirt.machine(name) {
        Ok(machine) => Ok(record_of(env, &machine).map(|record| record.plan.name)),
        Err(error) if error.kind() == Kind::NotFound => {
            let Ok(name) = name.parse::<GuestName>() else { return Ok(None) };
            let record = guest::load(&env.settings.layout, &name).ok().flatten();
            let at = record.and_then(|record| record.plan.daemon);
            Ok(at.filter(|daemon| daemon.uri == env.settings.uvtool.connect).map(|_| name))
        }
        Err(error) => Err(error),
    }
}
