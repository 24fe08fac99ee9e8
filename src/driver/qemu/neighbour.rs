//! Where a guest on a bridge is: by the lease that libvirt's DHCP server gave
//! it, else by the host's table of neighbours.

use std::net::IpAddr;

use serde::Deserialize;

use super::network;
use crate::base::cmd::Cmd;
use crate::base::nic::Nic;
use crate::base::{Result, fs};

/// One line of a lease file of libvirt's (`libvirt_leaseshelper`).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Lease {
    ip_address: IpAddr,
    mac_address: Option<String>,
}

/// One line of `ip -json neighbour`.
#[derive(Deserialize)]
struct Neighbour {
    dst: IpAddr,
    lladdr: Option<String>,
}

/// The card's address as the host knows it, IPv4 before IPv6; `None` while it knows none.
///
/// # Errors
/// [`crate::base::Kind::Unavailable`] without the program `ip`.
pub(super) fn address(nic: &Nic) -> Result<Option<IpAddr>> {
    let Some(bridge) = network::bridge(&nic.network) else { return Ok(None) };
    let mac = nic.mac.to_string();
    // Whoever may not read it, or has another DHCP server, asks the neighbours.
    let leases = format!("/var/lib/libvirt/dnsmasq/{bridge}.status");
    let leases = fs::read(leases.as_ref(), 16 << 20).unwrap_or_default();
    let leases: Vec<Lease> = serde_json::from_slice(&leases).unwrap_or_default();
    let leased = leases.into_iter().filter_map(|lease| Some((lease.ip_address, lease.mac_address?)));
    if let Some(address) = best(leased, &mac) {
        return Ok(Some(address));
    }
    let said = Cmd::new("ip").args(["-json", "neighbour", "show", "dev", bridge]).run()?;
    let neighbours: Vec<Neighbour> = serde_json::from_slice(&said.stdout).unwrap_or_default();
    Ok(best(neighbours.into_iter().filter_map(|line| Some((line.dst, line.lladdr?))), &mac))
}

fn best(known: impl Iterator<Item = (IpAddr, String)>, mac: &str) -> Option<IpAddr> {
    // A link-local address means nothing without the link.
    let reaches = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    let own = known.filter(|(address, owner)| owner.eq_ignore_ascii_case(mac) && reaches(address));
    own.map(|(address, _)| address).min_by_key(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_decides_and_ipv4_comes_first() {
        let text = r#"[{"dst":"fe80::1","lladdr":"52:54:00:aa:bb:cc","state":["STALE"]},
            {"dst":"fd00::5","lladdr":"52:54:00:aa:bb:cc","state":["REACHABLE"]},
            {"dst":"10.0.0.9","state":["FAILED"]},
            {"dst":"10.0.0.7","lladdr":"52:54:00:AA:BB:CC","state":["DELAY"]},
            {"dst":"10.0.0.8","lladdr":"52:54:00:00:00:01","state":["REACHABLE"]}]"#;
        let known = || serde_json::from_str::<Vec<Neighbour>>(text).unwrap().into_iter();
        let pairs = || known().filter_map(|line| Some((line.dst, line.lladdr?)));
        assert_eq!(best(pairs(), "52:54:00:aa:bb:cc"), Some("10.0.0.7".parse().unwrap()));
        assert_eq!(
            best(pairs().filter(|(address, _)| address.is_ipv6()), "52:54:00:aa:bb:cc"),
            Some("fd00::5".parse().unwrap())
        );
        assert_eq!(best(pairs(), "52:54:00:00:00:09"), None);
    }
}
