//! libvirt's networks: there, started, or a hint.

use std::net::{Ipv4Addr, TcpListener};

use virt::connect::Connect;

use super::connection::{doing, explain, found};
use crate::base::nic::Network;
use crate::base::{Context as _, Error, GuestPlan, Result};

/// The network that comes with libvirt.
pub(super) const DEFAULT: &str = "default";

/// Whether a network runs; `None` when libvirt knows none of this name.
///
/// # Errors
/// What libvirt said.
pub(super) fn state(connection: &Connect, name: &str) -> Result<Option<bool>> {
    let network = found(connection.lookup_network_by_name(name), || format!("looking for the network '{name}'"))?;
    network.map(|network| network.is_active().map_err(doing("looking at a network"))).transpose()
}

/// What to do where there is no default network.
pub(super) fn define_hint(uri: &str) -> String {
    format!(
        "define it: virsh -c {uri} net-define /usr/share/libvirt/networks/default.xml; or choose another with '--network'"
    )
}

/// Starts the networks that the guest's cards are plugged into, where they do not run.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] for a network that libvirt does not know.
pub(super) fn ready(connection: &Connect, uri: &str, plan: &GuestPlan) -> Result<()> {
    if let Some(template) = &plan.tuning.template {
        return super::template::networks(template)?.iter().try_for_each(|name| start(connection, uri, name));
    }
    for nic in &plan.nics {
        match &nic.network {
            Network::Nat => start(connection, uri, DEFAULT)?,
            Network::Named(name) => start(connection, uri, name.as_str())?,
            Network::User | Network::Full | Network::None | Network::Bridge(_) => {}
        }
    }
    Ok(())
}

fn start(connection: &Connect, uri: &str, name: &str) -> Result<()> {
    let network = found(connection.lookup_network_by_name(name), || format!("looking for the network '{name}'"))?;
    let Some(network) = network else {
        let error = Error::not_found(format!("libvirt at '{uri}' has no network '{name}'"));
        return Err(match name {
            DEFAULT => error.hint(define_hint(uri)),
            _ => error.hint(format!("'virsh -c {uri} net-list --all' shows those it has")),
        });
    };
    let runs = || network.is_active().map_err(doing("looking at a network"));
    if runs()? {
        return Ok(());
    }
    match network.create() {
        // Another command was quicker.
        Err(error) if !runs()? => Err(explain(&error, format!("starting the network '{name}'"))
            .hint("another program may use its addresses; '--network' chooses another network")),
        _ => Ok(()),
    }
}

/// A free port of the host's loopback for SSH and for each forward that does not say its own. Another program can take
/// one before the guest has it; then the start fails and is tried again with others.
///
/// # Errors
/// When the system has none.
pub(super) fn choose_ports(plan: &GuestPlan) -> Result<Vec<u16>> {
    // All are held until all are chosen, so that they differ.
    let mut held = Vec::new();
    let mut free = || -> Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "finding a free port".into())?;
        let port = listener.local_addr().context(|| "finding a free port".into())?.port();
        held.push(listener);
        Ok(port)
    };
    let wanted = std::iter::once(0).chain(plan.forwards.iter().map(|forward| forward.host));
    wanted.map(|port| if port == 0 { free() } else { Ok(port) }).collect()
}
