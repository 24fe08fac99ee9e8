//! Giving a domain that is defined another plan.

use super::Libvirt;
use super::connection::doing;
use super::domain::{machine_name, newest_machine};
use super::storage::Storage;
use super::{address, network};
use crate::base::{Error, GuestPlan, Result};

impl Libvirt {
    /// See [`crate::driver::Driver::newest_machine`].
    pub(super) fn newest(&self, plan: &GuestPlan) -> Result<String> {
        // Another kind of board would be another machine to the guest, with its disks elsewhere.
        let alias = match plan.platform.machine.as_deref() {
            Some(machine) if machine == "pc" || machine.starts_with("pc-i440fx-") => "pc",
            _ => newest_machine(plan.arch),
        };
        let arch = machine_name(plan.arch);
        let said = self
            .connection(plan)?
            .domain_capabilities(None, Some(arch), Some(alias), None, 0)
            .map_err(doing("asking libvirt for its newest machine type"))?;
        let read = roxmltree::Document::parse(&said).map_err(|e| Error::failed("reading libvirt's XML").because(e))?;
        let machine = read.root_element().children().find(|node| node.has_tag_name("machine"));
        let machine = machine.and_then(|machine| machine.text()).filter(|name| *name != alias);
        machine.map(str::to_owned).ok_or_else(|| Error::failed("libvirt does not say what its newest machine type is"))
    }

    /// See [`crate::driver::Driver::reconfigure`].
    pub(super) fn change(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        let connection = self.connection(new)?;
        if let Some(domain) = self.domain(&connection, new)?
            && domain.name().map_err(doing("looking at the guest"))? != new.name.as_str()
        {
            Self::name_is_free(&connection, new)?;
            domain
                .rename(new.name.as_str(), 0)
                .map_err(doing(format!("giving the guest '{}' the name '{}'", old.name, new.name)))?;
        }
        let storage = Storage::new(&connection, self.daemon_of(new));
        storage.extend(new)?;
        if old.name != new.name {
            // The seed says the name.
            storage.lay_out_seed(&*storage.pool()?, new)?;
        }
        let ports = if address::in_user_space(new) { network::choose_ports(new)? } else { Vec::new() };
        self.define(&storage, new, &ports).map(drop)
    }
}
