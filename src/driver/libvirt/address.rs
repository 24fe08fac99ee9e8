//! Where a guest is: by DHCP lease, by the agent in the guest, by the host's
//! neighbours, in that order; on any network, IPv4 before IPv6.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use virt::domain::Domain;

use super::connection::doing;
use super::domain::SSH;
use super::raw::{self, Card, Source};
use crate::base::plan::Forward;
use crate::base::{Error, GuestPlan, Result};

/// Where the SSH of a running guest is; `None` while that is not known.
///
/// # Errors
/// What libvirt said.
pub(super) fn endpoint(domain: &Domain, plan: &GuestPlan) -> Result<Option<SocketAddr>> {
    if in_user_space(plan) {
        let ports = ports(domain)?;
        return Ok(ports.first().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port))));
    }
    let macs: Vec<String> = plan.nics.iter().map(|nic| nic.mac.to_string()).collect();
    Ok(addresses(domain, &macs).first().map(|address| SocketAddr::from((*address, SSH))))
}

/// Whether the guest is reached by ports of the host.
pub(super) fn in_user_space(plan: &GuestPlan) -> bool {
    plan.nics.first().is_some_and(|nic| nic.network.in_user_space())
}

/// All addresses by which a running domain is reached, best first: those of
/// its first card, then of the others; IPv4 first.
pub(super) fn addresses(domain: &Domain, macs: &[String]) -> Vec<IpAddr> {
    for source in [Source::Lease, Source::Agent, Source::Arp] {
        // None of them has to answer: an agent need not be there, a network may be somebody else's.
        let cards = raw::addresses(domain, source).unwrap_or_default();
        let found = choose(&cards, macs);
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn choose(cards: &[Card], macs: &[String]) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for mac in macs {
        let all = cards.iter().filter(|card| card.mac.eq_ignore_ascii_case(mac)).flat_map(|card| &card.addresses);
        let all = all.copied().filter(|address| reaches(*address));
        let (four, six): (Vec<IpAddr>, Vec<IpAddr>) = all.partition(IpAddr::is_ipv4);
        found.extend(four);
        found.extend(six);
    }
    found
}

/// An address that means the same to us as to the guest.
fn reaches(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified(),
    }
}

/// The host's ports that lead into a guest with a card in user space: SSH's first, then the plan's.
///
/// # Errors
/// What libvirt said.
pub(super) fn ports(domain: &Domain) -> Result<Vec<u16>> {
    let document = domain.xml_desc(0).map_err(doing("looking at the guest"))?;
    let document =
        roxmltree::Document::parse(&document).map_err(|e| Error::failed("reading libvirt's XML").because(e))?;
    let ranges = document.descendants().filter(|node| node.has_tag_name("range"));
    let ranges = ranges.filter(|node| node.parent().is_some_and(|parent| parent.has_tag_name("portForward")));
    Ok(ranges.filter_map(|node| node.attribute("start")?.parse().ok()).collect())
}

/// The plan's forwards with the host's ports filled in.
///
/// # Errors
/// What libvirt said.
pub(super) fn forwards(domain: &Domain, plan: &GuestPlan) -> Result<Vec<Forward>> {
    let ports = ports(domain)?.into_iter().skip(1);
    Ok(plan.forwards.iter().zip(ports).map(|(forward, host)| Forward { host, guest: forward.guest }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cards_ipv4_address_comes_first_and_link_local_ones_never() {
        let card = |mac: &str, addresses: &[&str]| Card {
            mac: mac.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let cards = [
            card("00:00:00:00:00:00", &["127.0.0.1", "::1"]),
            card("52:54:00:00:00:02", &["10.0.0.2"]),
            card("52:54:00:00:00:01", &["fe80::1", "fd00::1", "169.254.1.1", "192.168.122.5"]),
        ];
        let macs = ["52:54:00:00:00:01".to_owned(), "52:54:00:00:00:02".to_owned()];
        let found: Vec<String> = choose(&cards, &macs).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.168.122.5", "fd00::1", "10.0.0.2"]);
    }
}
