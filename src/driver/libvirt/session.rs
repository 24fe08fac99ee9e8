//! What is done with a guest that is there: see [`crate::driver::Session`].

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use virt::domain::Domain;
use virt::sys;

use super::connection::doing;
use super::storage::Storage;
use super::{Libvirt, address, console, is_local, network, power, screen, snapshot};
use crate::base::cmd::Pipes;
use crate::base::{BackendName, Error, GuestPath, GuestPlan, Kind, Result, SnapshotName};
use crate::driver::carry::Load;
use crate::driver::{Autostart, Content, Details, Exec, Session, Snapshot, Viewer};

impl Libvirt {
    /// The guest's domain, which must be there.
    fn defined(&self, plan: &GuestPlan) -> Result<Domain> {
        self.domain(&*self.connection(plan)?, plan)?.ok_or_else(|| {
            Error::failed(format!("libvirt knows no guest '{}' any more", plan.name))
                .hint(format!("'virga start {}' defines it anew: its disks are still there", plan.name))
        })
    }
}

impl Session for Libvirt {
    fn suspend(&self, plan: &GuestPlan) -> Result<()> {
        let connection = self.connection(plan)?;
        self.running(&connection, plan)?.suspend().map_err(doing("holding the guest"))
    }

    fn save_there(&self, plan: &GuestPlan) -> Result<()> {
        let connection = self.connection(plan)?;
        let domain = self.running(&connection, plan)?;
        // It runs after its next start, also when it is held now.
        domain.managed_save(sys::VIR_DOMAIN_SAVE_RUNNING).map_err(doing(format!("saving the guest '{}'", plan.name)))
    }

    fn drop_saved(&self, plan: &GuestPlan) -> Result<()> {
        let connection = self.connection(plan)?;
        let Some(domain) = self.domain(&connection, plan)? else { return Ok(()) };
        if domain.has_managed_save(0).map_err(doing("looking at the guest"))? {
            domain.managed_save_remove(0).map_err(doing("dropping the guest's saved memory"))?;
        }
        Ok(())
    }

    fn set_autostart(&self, plan: &GuestPlan, wish: Option<Autostart>) -> Result<Option<String>> {
        if wish.is_some_and(|wish| wish != Autostart::default()) {
            return Err(Error::new(Kind::Unsupported, "libvirt starts guests with their host in no order"));
        }
        let set = self.defined(plan)?.set_autostart(wish.is_some());
        set.map(|_| None).map_err(doing("saying whether the guest starts with its host"))
    }

    fn location(&self, _plan: &GuestPlan) -> Result<Option<String>> {
        Ok(None)
    }

    fn details(&self, plan: &GuestPlan) -> Result<Details> {
        let connection = self.connection(plan)?;
        let Some(domain) = self.domain(&connection, plan)? else { return Ok(Details::default()) };
        let document = domain.xml_desc(0).map_err(doing("looking at the guest"))?;
        let read = parsed(&document)?;
        let machine = read.descendants().find(|node| node.has_tag_name("type") && node.has_attribute("machine"));
        let disks = read.descendants().filter(|node| node.has_tag_name("disk"));
        let files = disks.filter_map(|disk| {
            let source = disk.children().find(|node| node.has_tag_name("source"))?;
            source.attribute("file").map(PathBuf::from)
        });
        let addresses = if address::in_user_space(plan) || !domain.is_active().unwrap_or(false) {
            Vec::new()
        } else {
            let macs: Vec<String> = plan.nics.iter().map(|nic| nic.mac.to_string()).collect();
            address::addresses(&domain, &macs)
        };
        Ok(Details {
            autostart: Some(domain.autostart().map_err(doing("looking at the guest"))?),
            machine: machine.and_then(|node| node.attribute("machine")).map(str::to_owned),
            disks: files.take(plan.disks.len()).collect(),
            addresses,
            ending: power::ending(&domain, &self.daemon_of(plan).uri),
        })
    }

    fn snapshots(&self, plan: &GuestPlan) -> Result<Vec<Snapshot>> {
        let connection = self.connection(plan)?;
        self.domain(&connection, plan)?.map_or(Ok(Vec::new()), |domain| snapshot::list(&domain))
    }

    fn take_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        snapshot::take(&self.defined(plan)?, name)
    }

    fn restore_snapshot(&self, plan: &GuestPlan, snapshot: &Snapshot) -> Result<()> {
        snapshot::restore(&self.defined(plan)?, snapshot)?;
        if !snapshot.memory {
            // It has the definition again that it had then.
            let ports = if address::in_user_space(plan) { network::choose_ports(plan)? } else { Vec::new() };
            let connection = self.connection(plan)?;
            self.define(&Storage::new(&connection, self.daemon_of(plan)), plan, &ports)?;
        }
        Ok(())
    }

    fn remove_snapshot(&self, plan: &GuestPlan, name: &SnapshotName) -> Result<()> {
        snapshot::remove(&self.defined(plan)?, name)
    }

    fn console(&self, plan: &GuestPlan) -> Result<UnixStream> {
        let connection = self.connection(plan)?;
        let domain = self.running(&connection, plan)?;
        console::connect(&connection, &domain, plan)
    }

    fn exec(&self, _plan: &GuestPlan, _exec: &Exec, _streams: Pipes<'_>) -> Result<u8> {
        Err(Error::new(Kind::Unsupported, "a machine is entered over SSH"))
    }

    fn screenshot(&self, plan: &GuestPlan) -> Result<Vec<u8>> {
        let connection = self.connection(plan)?;
        screen::picture(&connection, &self.running(&connection, plan)?)
    }

    fn viewer(&self, plan: &GuestPlan) -> Result<Viewer> {
        let connection = self.connection(plan)?;
        let domain = self.running(&connection, plan)?;
        let uri = &self.daemon_of(plan).uri;
        let host = uri.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_owned());
        Ok(Viewer { host: host.filter(|_| !is_local(uri)), address: screen::served(&domain)? })
    }
}

impl Content for Libvirt {
    fn pull(&self, _plan: &GuestPlan, _path: &GuestPath, _folders: bool, _to: &mut dyn Write) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a machine is entered over SSH"))
    }

    fn push(&self, _plan: &GuestPlan, _what: &Load, _to: &GuestPath) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a machine is entered over SSH"))
    }

    fn pack_root(&self, _plan: &GuestPlan, _to: &mut dyn Write) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a machine's root is on a disk of its own"))
    }

    fn export(&self, _plan: &GuestPlan, _to: &mut dyn Write) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "machines are not exported"))
    }

    fn import(&self, _plan: &GuestPlan, _from: File) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "machines are not imported"))
    }

    fn keep_image(&self, _plan: &GuestPlan, _metadata: &Path, _root: &Path, _alias: &BackendName) -> Result<String> {
        Err(Error::new(Kind::Unsupported, "no daemon keeps images here"))
    }
}

/// libvirt's XML, read.
///
/// # Errors
/// When it is none.
pub(super) fn parsed(document: &str) -> Result<roxmltree::Document<'_>> {
    roxmltree::Document::parse(document).map_err(|error| Error::failed("reading libvirt's XML").because(error))
}
