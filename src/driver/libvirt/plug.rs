//! Disks that come and go while a guest runs.

use std::path::Path;
use std::time::Duration;

use virt::domain::Domain;
use virt::sys;

use super::Libvirt;
use super::connection::doing;
use super::domain::disk as element_of;
use super::storage::Storage;
use crate::base::plan::Disk;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Kind, Result};

/// A guest lets a disk go as soon as its system hears of it; one that is still booting does not hear.
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk of a domain.
struct There {
    file: String,
    name: String,
}

fn cache(plan: &GuestPlan) -> Option<&str> {
    plan.tuning.disk_cache.as_deref()
}

impl Libvirt {
    /// See [`crate::driver::Driver::plug`].
    pub(super) fn plug_in(&self, plan: &GuestPlan, disk: &Disk) -> Result<()> {
        let connection = self.connection(plan)?;
        let domain = self.running(&connection, plan)?;
        let storage = Storage::new(&connection, self.daemon_of(plan));
        let places = storage.places(&*storage.pool()?, plan)?;
        let number = plan.disks.iter().position(|other| other == disk);
        let placed = number.map(|number| &places.disks[number]);
        let placed = placed.ok_or_else(|| Error::failed("the disk is not in the guest's plan"))?;
        let there = disks(&domain)?;
        if !there.iter().any(|disk| Path::new(&disk.file) == placed.top.path) {
            let free = (b'b'..=b'z').map(|letter| format!("vd{}", char::from(letter)));
            let name = free.into_iter().find(|name| !there.iter().any(|disk| disk.name == *name));
            let name = name.ok_or_else(|| Error::new(Kind::Unsupported, "a guest has at most 26 disks"))?;
            domain
                .attach_device_flags(&element_of(placed, &name, cache(plan)).document()?, sys::VIR_DOMAIN_AFFECT_LIVE)
                .map_err(doing(format!("plugging in the disk '{}'", disk.path.display())))?;
        }
        Ok(())
    }

    /// See [`crate::driver::Driver::unplug`].
    pub(super) fn take_out(&self, plan: &GuestPlan, disk: &Disk) -> Result<()> {
        let connection = self.connection(plan)?;
        let domain = self.running(&connection, plan)?;
        let storage = Storage::new(&connection, self.daemon_of(plan));
        let pool = storage.pool()?;
        let only = GuestPlan { disks: vec![disk.clone()], ..plan.clone() };
        let places = storage.places(&pool, &only)?;
        let Some(placed) = places.disks.first() else { return Ok(()) };
        let find = || -> Result<Option<There>> {
            Ok(disks(&domain)?.into_iter().find(|there| Path::new(&there.file) == placed.top.path))
        };
        let Some(there) = find()? else { return Ok(()) };
        let what = format!("taking out the disk '{}'", disk.path.display());
        domain
            .detach_device_flags(&element_of(placed, &there.name, cache(plan)).document()?, sys::VIR_DOMAIN_AFFECT_LIVE)
            .map_err(doing(what))?;
        let gone =
            poll::until(&Deadline::after(PATIENCE), Duration::from_millis(50), || Ok(find()?.is_none().then_some(())))?;
        gone.ok_or_else(|| {
            Error::timed_out(format!("the guest does not let go of '{}'", disk.path.display()))
                .hint("unmount it in the guest, or stop the guest")
        })
    }
}

fn disks(domain: &Domain) -> Result<Vec<There>> {
    let text = domain.xml_desc(0).map_err(doing("looking at the guest"))?;
    let document = roxmltree::Document::parse(&text).map_err(|e| Error::failed("reading libvirt's XML").because(e))?;
    let disks = document.descendants().filter(|node| node.has_tag_name("disk"));
    let read = |disk: roxmltree::Node<'_, '_>| {
        let child = |name: &str| disk.children().find(|node| node.has_tag_name(name));
        let file = child("source").and_then(|source| source.attribute("file")).unwrap_or_default().to_owned();
        Some(There { file, name: child("target")?.attribute("dev")?.to_owned() })
    };
    Ok(disks.filter_map(read).collect())
}
