//! What uvtool's commands want of a libvirt daemon: any of its domains by
//! name, whoever made it, and the pool `uvtool` (in `volumes`).

use std::net::IpAddr;
use std::path::Path;

use roxmltree::Document;
use virt::domain::Domain;
use virt::sys;

use super::connection::{Connections, doing, found};
use super::{Libvirt, address, label};
use crate::base::{Error, Kind, Result};

pub use super::volumes::{Used, Volume};

/// uvtool's storage pool.
pub const POOL: &str = super::storage::UVTOOL;

/// A daemon, seen with uvtool's eyes.
#[derive(Debug)]
pub struct Uvtool {
    pub(super) uri: String,
    pub(super) connections: Connections,
}

/// A domain, as far as uvtool's commands look at it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it runs.
    pub running: bool,
    /// The addresses of its network cards, in their order.
    pub macs: Vec<String>,
    /// The public host keys that uvtool or virga injected, `type base64` and perhaps a comment.
    pub host_keys: Vec<String>,
}

impl Uvtool {
    /// Opens it; no I/O.
    #[must_use]
    pub fn new(uri: &str) -> Self {
        Uvtool { uri: uri.to_owned(), connections: Connections::shared() }
    }

    /// The names of all domains as `virsh list --all` orders them: running ones by their number, then the others by name.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] without a daemon; what libvirt said.
    pub fn names(&self) -> Result<Vec<String>> {
        let domains =
            self.connections.get(&self.uri)?.list_all_domains(0).map_err(doing("listing libvirt's domains"))?;
        let mut listed = Vec::new();
        for domain in domains {
            let name = domain.name().map_err(doing("listing libvirt's domains"))?;
            listed.push((domain.id().unwrap_or(u32::MAX), name.to_lowercase(), name));
        }
        listed.sort();
        Ok(listed.into_iter().map(|(_, _, name)| name).collect())
    }

    fn find(&self, name: &str) -> Result<Option<Domain>> {
        let connection = self.connections.get(&self.uri)?;
        found(connection.lookup_domain_by_name(name), || format!("looking for the domain '{name}'"))
    }

    fn get(&self, name: &str) -> Result<Domain> {
        // libvirt's own words, as uvtool passes them on.
        let unknown = || format!("libvirt: Domain not found: no domain with matching name '{name}'");
        self.find(name)?.ok_or_else(|| Error::not_found(unknown()))
    }

    /// The domain of this name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] in libvirt's words; [`Kind::Unavailable`] without a daemon.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let domain = self.get(name)?;
        let document = document(&domain, 0)?;
        let read = parse(&document)?;
        let cards = read.descendants().filter(|node| node.has_tag_name("interface"));
        let mac = |card: roxmltree::Node<'_, '_>| {
            Some(card.children().find(|node| node.has_tag_name("mac"))?.attribute("address")?.to_owned())
        };
        Ok(Machine {
            name: name.to_owned(),
            uuid: domain.uuid_string().map_err(doing("looking at a domain"))?,
            // Only what runs has a number.
            running: domain.id().is_some(),
            macs: cards.filter_map(mac).collect(),
            host_keys: label::host_keys(&read),
        })
    }

    /// Whether it still runs; one that is gone does not.
    ///
    /// # Errors
    /// What libvirt said.
    pub fn is_running(&self, name: &str) -> Result<bool> {
        match self.find(name)? {
            None => Ok(false),
            Some(domain) => domain.is_active().map_err(doing("looking at a domain")),
        }
    }

    /// The addresses by which a machine is reached on any network, best first; none while they are not known.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] without a daemon.
    pub fn addresses(&self, machine: &Machine) -> Result<Vec<IpAddr>> {
        let domain = self.find(&machine.name)?;
        Ok(domain.map(|domain| address::addresses(&domain, &machine.macs)).unwrap_or_default())
    }

    /// Stops the domain by force, removes it from libvirt with all that libvirt keeps of it, and only then deletes
    /// those of its volumes that are named after it as uvtool names them. What the user attached stays, and so does
    /// what anything else uses. `false` when there is no such domain.
    ///
    /// # Errors
    /// What libvirt said. When it cannot be removed from libvirt, no volume is deleted.
    pub fn destroy(&self, name: &str) -> Result<bool> {
        let Some(domain) = self.find(name)? else { return Ok(false) };
        self.take_away(&domain, name).map(|()| true)
    }

    /// As [`destroy`](Self::destroy), for a domain whose volumes bear this name.
    pub(super) fn take_away(&self, domain: &Domain, name: &str) -> Result<()> {
        let document = document(domain, sys::VIR_DOMAIN_XML_INACTIVE)?;
        // Before the domain goes: a pool that does not start would keep what nobody names any more.
        let folder = self.folder(POOL)?;
        Libvirt::undefine(domain)?;
        let Some(folder) = folder else { return Ok(()) };
        let own = |path: &Path| {
            let volume = path.strip_prefix(&folder).ok()?.to_str()?;
            is_own(name, volume).then(|| volume.to_owned())
        };
        let read = parse(&document)?;
        let names: Vec<String> = self.sources(&read)?.iter().filter_map(|path| own(path)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let used = self.used()?;
        let free: Vec<String> = names.into_iter().filter(|volume| used.by(&folder.join(volume)).is_none()).collect();
        self.delete(POOL, &free)
    }
}

/// Whether uvtool gives a volume of this name to the guest and to no other.
fn is_own(guest: &str, volume: &str) -> bool {
    let Some(rest) = volume.strip_prefix(guest) else { return false };
    let number = rest.strip_prefix("-ephem-").and_then(|rest| rest.strip_suffix(".qcow"));
    let ephemeral = number.is_some_and(|number| number.len() >= 2 && number.bytes().all(|b| b.is_ascii_digit()));
    matches!(rest, ".qcow" | "-ds.qcow") || ephemeral
}

/// A domain's XML.
pub(super) fn document(domain: &Domain, flags: u32) -> Result<String> {
    domain.xml_desc(flags).map_err(doing("looking at a domain"))
}

/// XML that libvirt wrote.
pub(super) fn parse(document: &str) -> Result<Document<'_>> {
    Document::parse(document).map_err(|error| Error::new(Kind::Failed, "reading libvirt's XML").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_uvtool_names_after_a_guest_is_its_own() {
        for own in ["web.qcow", "web-ds.qcow", "web-ephem-00.qcow", "web-ephem-100.qcow"] {
            assert!(is_own("web", own), "{own}");
        }
        for other in ["web2.qcow", "web-data.qcow", "web.qcow2", "web-ephem-x.qcow", "web-ephem-0.qcow", "we.qcow", ""]
        {
            assert!(!is_own("web", other), "{other}");
        }
        assert!(!is_own("web", "web-2.qcow") && is_own("web-2", "web-2.qcow"));
    }
}
