//! QEMU's own user network: which host port leads to which port of the guest.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use crate::base::nic::{Network, Nic};
use crate::base::plan::Forward;
use crate::base::{Error, GuestPlan, Kind, Result};

/// The bridge of libvirt's default network.
const LIBVIRTS_BRIDGE: &str = "virbr0";

/// Where distributions put it.
const HELPERS: [&str; 3] =
    ["/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper", "/usr/lib/qemu-bridge-helper"];

/// Port of the guest's SSH server.
pub(super) const SSH: u16 = 22;

/// What QEMU gives the first guest of its network, which is the only one, and the mask
/// (`-netdev user`, qemu(1): the default of `dhcpstart` and of `net`).
pub(super) const GUEST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(255, 255, 255, 0)];

/// Reads the forwards out of the monitor's `info usernet`, ordered by host port.
///
/// Its lines, the same from QEMU 7 to 10 (`slirp_connection_info` in libslirp):
/// `TCP[HOST_FORWARD]  13  127.0.0.1 40001  10.0.2.15    22  0  0`
pub(super) fn parse(usernet: &str) -> Vec<Forward> {
    let line = |line: &str| {
        let fields = line.trim_start().strip_prefix("TCP[HOST_FORWARD]")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [_descriptor, _from, host, _to, guest, ..] = fields[..] else { return None };
        Some(Forward { host: host.parse().ok()?, guest: guest.parse().ok()? })
    };
    let mut forwards: Vec<Forward> = usernet.lines().filter_map(line).collect();
    forwards.sort_by_key(|forward| forward.host);
    forwards
}

/// Tells the SSH port apart from the forwards that the plan asked for, and
/// fills in those whose host port was left to the system.
///
/// # Errors
/// When one that must be there is not.
pub(super) fn assign(plan: &GuestPlan, mut actual: Vec<Forward>) -> Result<(u16, Vec<Forward>)> {
    let mut take = |wanted: Forward| {
        let fits = |f: &Forward| f.guest == wanted.guest && (wanted.host == 0 || f.host == wanted.host);
        let at = actual.iter().position(fits);
        at.map(|at| actual.remove(at)).ok_or_else(|| Error::failed(format!("QEMU does not forward '{wanted}'")))
    };
    // Fixed ones first: what is left over is what the system chose.
    let mut filled = plan.forwards.clone();
    for forward in filled.iter_mut().filter(|f| f.host != 0) {
        take(*forward)?;
    }
    let ssh = take(Forward { host: 0, guest: SSH })?.host;
    for forward in filled.iter_mut().filter(|f| f.host == 0) {
        *forward = take(*forward)?;
    }
    Ok((ssh, filled))
}

/// Whether the guest is reached by ports of the host.
pub(super) fn in_user_space(plan: &GuestPlan) -> bool {
    plan.nics.first().is_none_or(|nic| nic.network.in_user_space())
}

/// The cards whose guest reaches the world and not the host, by their numbers (`egress.rs`).
pub(super) fn judged(plan: &GuestPlan) -> Vec<usize> {
    let judged = |(number, nic): (usize, &Nic)| (nic.network == Network::User).then_some(number);
    plan.nics.iter().enumerate().filter_map(judged).collect()
}

/// The bridge that a card is plugged into; `None` for one in user space.
pub(super) fn bridge(network: &Network) -> Option<&str> {
    match network {
        Network::User | Network::Full | Network::None | Network::Named(_) => None,
        Network::Nat => Some(LIBVIRTS_BRIDGE),
        Network::Bridge(name) => Some(name.as_str()),
    }
}

/// The program of QEMU's that plugs a guest into a bridge, for users who may not do so themselves.
pub(super) fn helper() -> Result<&'static str> {
    let found = HELPERS.into_iter().find(|path| Path::new(path).exists());
    found.ok_or_else(|| {
        Error::unavailable("QEMU's program qemu-bridge-helper is not there")
            .hint("install the package qemu-system-common")
    })
}

fn reachable(network: &Network) -> Result<()> {
    if let Network::Named(_) = network {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the qemu driver has no '{network}': only libvirt knows it"),
        )
        .hint("'--driver libvirt' has it; '--network bridge=NAME' takes its bridge"));
    }
    let Some(bridge) = bridge(network) else { return Ok(()) };
    helper()?;
    if Path::new("/sys/class/net").join(bridge).join("bridge").exists() {
        return Ok(());
    }
    let error = Error::not_found(format!("there is no bridge '{bridge}'"));
    Err(match network {
        Network::Nat => error.hint("it is that of libvirt's network: virsh -c qemu:///system net-start default"),
        _ => error.hint("'ip link show type bridge' shows those that are there"),
    })
}

/// What this driver's networks cannot be: unknown, forwarded to where it has an address, or twice at one host port.
///
/// # Errors
/// [`Kind::Unsupported`] naming the network, [`Kind::Usage`] naming the port.
pub(super) fn check(plan: &GuestPlan) -> Result<()> {
    plan.nics.iter().try_for_each(|nic| reachable(&nic.network))?;
    if !in_user_space(plan) && !plan.forwards.is_empty() {
        return Err(Error::usage("a guest whose first card is on a bridge has its own address: no port is forwarded")
            .hint("leave '--port' out, or put '--network user' first"));
    }
    let mut seen = Vec::new();
    for port in plan.forwards.iter().map(|f| f.host).filter(|port| *port != 0) {
        if seen.contains(&port) {
            return Err(Error::usage(format!("host port {port} is forwarded twice")));
        }
        seen.push(port);
    }
    Ok(())
}

/// Why QEMU could not set up a forward: it does not say itself.
pub(super) fn why_not(plan: &GuestPlan) -> Option<Error> {
    plan.forwards.iter().filter(|f| f.host != 0).find_map(|forward| {
        let error = TcpListener::bind((Ipv4Addr::LOCALHOST, forward.host)).err()?;
        let port = forward.host;
        Some(match error.kind() {
            std::io::ErrorKind::AddrInUse => Error::failed(format!("host port {port} is taken by another program"))
                .hint(format!("free the port ('ss -ltnp' names who has it), or {}", anew(*forward))),
            std::io::ErrorKind::PermissionDenied => {
                Error::failed(format!("host port {port} may be used by root only")).hint(anew(*forward))
            }
            _ => Error::failed(format!("host port {port} cannot be used")).because(error),
        })
    })
}

/// How a guest comes to another port: a guest that is there keeps its own.
fn anew(forward: Forward) -> String {
    let guest = forward.guest;
    format!("make the guest anew with '--port 0:{guest}', which lets the system choose, or with a free one above 1023")
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_freed_or_another_is_had_by_making_the_guest_anew() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let host = taken.local_addr().unwrap().port();
        let mut plan = plan("web", Path::new("/g"), Path::new("/r"));
        plan.forwards = vec![Forward { host, guest: 22 }];
        let error = why_not(&plan).unwrap();
        assert_eq!(error.to_string(), format!("host port {host} is taken by another program"));
        // 'start' has no such option: it is named with what has.
        let hints = error.hints();
        assert!(hints[0].starts_with("free the port"), "{hints:?}");
        assert!(hints[0].contains("make the guest anew with '--port 0:22'"), "{hints:?}");
    }
}
