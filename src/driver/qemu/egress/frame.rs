//! Which frames a guest may send.
//!
//! Read as libslirp reads them (`src/slirp.c`, `ip_input.c`, `ip6_input.c`, `tcp_input.c`, `udp.c`): what it would take
//! for something else than we do, or what is cut short, does not pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// QEMU's network: 10.0.2.0/24, fec0::/64; the host, and the name server that stands for the host's own (`-netdev user`,
/// qemu(1)).
const NETWORK: [u8; 3] = [10, 0, 2];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const DNS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);

const GATEWAYS6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)];

/// All DHCPv6 servers (RFC 8415).
const DHCP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Where clouds tell a machine who it is, and give it its logins, besides 169.254.0.0/16: Alibaba, Azure, Oracle before it
/// used that.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// The same, by their first 32 bits: AWS, Google, Oracle, Scaleway, Akamai, Alibaba.
const METADATA6: [[u16; 2]; 6] =
    [[0xfd00, 0x0ec2], [0xfd20, 0x00ce], [0xfd00, 0x00c1], [0xfd00, 0x0042], [0xfd00, 0xa9fe], [0xfd00, 0x0100]];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// Where a packet goes.
enum Place {
    World,
    /// QEMU's own network, and with it the host's loopback.
    Inside,
    /// The host, or what is no single machine of the world.
    Closed,
}

/// Whether a guest on QEMU's own network may send this frame. `is_host` says whether the host is at an address.
pub fn may_pass(frame: &[u8], is_host: &mut dyn FnMut(IpAddr) -> bool) -> bool {
    let Some((head, packet)) = frame.split_first_chunk::<14>() else { return false };
    let passes = match [head[12], head[13]] {
        // Who has which address of QEMU's network: asked and answered in it.
        [0x08, 0x06] => Some(true),
        [0x08, 0x00] => v4(packet, is_host),
        [0x86, 0xdd] => v6(packet, is_host),
        _ => None,
    };
    passes.unwrap_or(false)
}

fn v4(packet: &[u8], is_host: &mut dyn FnMut(IpAddr) -> bool) -> Option<bool> {
    let head = packet.first_chunk::<20>()?;
    let length = usize::from(head[0] & 0xf) * 4;
    if head[0] >> 4 != 4 || length < head.len() {
        return None;
    }
    let to = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
    match place4(to, is_host) {
        Place::World => return Some(true),
        Place::Closed => return Some(false),
        Place::Inside => {}
    }
    // A piece of a packet: only the first one says for which port it is.
    if u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0 {
        return Some(false);
    }
    let content = packet.get(length..)?;
    Some(match head[9] {
        TCP => tcp(content, to == DNS)?,
        UDP => match port(content)? {
            53 => to == DNS,
            67 => to == GATEWAY || to == Ipv4Addr::BROADCAST,
            _ => false,
        },
        ICMP => to == GATEWAY,
        _ => false,
    })
}

fn place4(to: Ipv4Addr, is_host: &mut dyn FnMut(IpAddr) -> bool) -> Place {
    match to.octets() {
        [a, b, c, _] if [a, b, c] == NETWORK => Place::Inside,
        [255, 255, 255, 255] => Place::Inside,
        [0 | 127 | 224.., ..] | [169, 254, ..] => Place::Closed,
        _ if METADATA.contains(&to) || is_host(to.into()) => Place::Closed,
        _ => Place::World,
    }
}

fn v6(packet: &[u8], is_host: &mut dyn FnMut(IpAddr) -> bool) -> Option<bool> {
    let (head, content) = packet.split_first_chunk::<40>()?;
    if head[0] >> 4 != 6 {
        return None;
    }
    let to = Ipv6Addr::from(*head[24..].first_chunk::<16>()?);
    match place6(to, is_host) {
        Place::World => return Some(true),
        Place::Closed => return Some(false),
        Place::Inside => {}
    }
    // The next header is the content's, or it is nothing that libslirp takes.
    Some(match head[6] {
        ICMP6 => match *content.first()? {
            // Who is there: of the gateway alone.
            128 => GATEWAYS6.contains(&to),
            // Routers and neighbours (RFC 4861), groups (RFC 3810).
            130..=137 | 143 => true,
            _ => false,
        },
        TCP => tcp(content, to == DNS6)?,
        UDP => match port(content)? {
            53 => to == DNS6,
            547 => to == DHCP6,
            _ => false,
        },
        _ => false,
    })
}

fn place6(to: Ipv6Addr, is_host: &mut dyn FnMut(IpAddr) -> bool) -> Place {
    match to.segments() {
        // A network with NAT64: what is behind it is IPv4's.
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => {
            let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
            match place4(Ipv4Addr::new(a, b, c, d), is_host) {
                Place::World => Place::World,
                Place::Inside | Place::Closed => Place::Closed,
            }
        }
        // Link-local, site-local (QEMU's network is one), multicast.
        [0xfe80..=0xffff, ..] => Place::Inside,
        // Loopback, and IPv4 in another form.
        [0..=0xff, ..] => Place::Closed,
        [a, b, ..] if METADATA6.contains(&[a, b]) => Place::Closed,
        _ if is_host(to.into()) => Place::Closed,
        _ => Place::World,
    }
}

/// To the name server, or no beginning of a connection but a part of one that came in by a forwarded port.
fn tcp(content: &[u8], to_dns: bool) -> Option<bool> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let flags = *content.get(13)?;
    Some((to_dns && port(content)? == 53) || flags & (SYN | ACK) != SYN)
}

/// The port that TCP or UDP is for.
fn port(content: &[u8]) -> Option<u16> {
    content.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for a connection.
    const SYN: u8 = 0x02;

    fn ethernet(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 1, 2, 3][..], &kind, packet].concat()
    }

    fn segment(port: u16, flags: u8) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[2..4].copy_from_slice(&port.to_be_bytes());
        (segment[12], segment[13]) = (0x50, flags);
        segment
    }

    fn datagram(port: u16) -> Vec<u8> {
        [&[0x80, 0][..], &port.to_be_bytes(), &[0, 8, 0, 0]].concat()
    }

    fn packet(to: &str, protocol: u8, content: &[u8]) -> Vec<u8> {
        match to.parse().unwrap() {
            IpAddr::V4(to) => {
                let mut head = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15];
                head.extend(to.octets());
                ethernet([0x08, 0x00], &[head.as_slice(), content].concat())
            }
            IpAddr::V6(to) => {
                let mut head = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
                head.extend([0; 16]);
                head.extend(to.octets());
                ethernet([0x86, 0xdd], &[head.as_slice(), content].concat())
            }
        }
    }

    /// On a host at 192.0.2.7 and 2001:db8::7.
    fn passes(frame: &[u8]) -> bool {
        may_pass(frame, &mut |addr| addr.to_string() == "192.0.2.7" || addr.to_string() == "2001:db8::7")
    }

    fn connects(to: &str, port: u16) -> bool {
        passes(&packet(to, TCP, &segment(port, SYN)))
    }

    fn sends(to: &str, port: u16) -> bool {
        passes(&packet(to, UDP, &datagram(port)))
    }

    #[test]
    fn the_world_is_open() {
        for to in ["192.0.2.8", "10.0.3.2", "8.8.8.8", "2001:db8::8", "fd00::1", "64:ff9b::808:808"] {
            assert!(connects(to, 22) && sends(to, 123), "{to}");
        }
    }

    #[test]
    fn the_host_is_not() {
        let host = ["10.0.2.2", "10.0.2.1", "10.0.2.4", "10.0.2.15", "10.0.2.255", "255.255.255.255", "192.0.2.7"];
        let host6 = ["fec0::2", "fec0::1234", "fec0:1::2", "fe80::2", "2001:db8::7", "::1", "::ffff:10.0.2.2", "::"];
        let local = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"];
        let many = ["224.0.0.251", "240.0.0.1", "ff02::fb", "ff02::1", "64:ff9b::a00:202", "64:ff9b::c000:207"];
        for to in host.iter().chain(&host6).chain(&local).chain(&many) {
            for port in [1, 22, 80, 6010] {
                assert!(!connects(to, port) && !sends(to, port), "{to} {port}");
            }
            // The name server's port and DHCP's are those addresses' alone that have such.
            assert!(!connects(to, 53) && !sends(to, 53) && !sends(to, 69), "{to}");
            assert!(!sends(to, 547), "{to}");
            assert_eq!(sends(to, 67), ["10.0.2.2", "255.255.255.255"].contains(to), "{to}");
        }
    }

    #[test]
    fn nor_is_what_clouds_tell_their_machines() {
        let four = ["169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"];
        let six =
            ["fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::1"];
        for to in four.into_iter().chain(six) {
            assert!(!connects(to, 80) && !sends(to, 53), "{to}");
        }
    }

    #[test]
    fn names_and_addresses_are_had() {
        assert!(connects("10.0.2.3", 53) && sends("10.0.2.3", 53) && connects("fec0::3", 53) && sends("fec0::3", 53));
        assert!(!connects("10.0.2.3", 22) && !sends("10.0.2.3", 22) && !connects("fec0::3", 22));
        assert!(sends("255.255.255.255", 67) && sends("10.0.2.2", 67) && sends("ff02::1:2", 547));
        assert!(passes(&ethernet([0x08, 0x06], &[0; 28])), "ARP");
        for to in ["fe80::2", "ff02::1:ff00:2", "fec0::2", "ff02::2"] {
            assert!(passes(&packet(to, ICMP6, &[135; 24])), "{to}");
        }
        let echo = |to| passes(&packet(to, ICMP6, &[128; 16]));
        assert!(echo("fec0::2") && echo("fe80::2") && !echo("fec0::7") && !echo("ff02::1"));
        assert!(!passes(&packet("fec0::2", ICMP6, &[])) && !passes(&packet("fec0::2", ICMP6, &[1; 48])));
        assert!(passes(&packet("10.0.2.2", ICMP, &[0; 8])), "the gateway says that it is there");
    }

    #[test]
    fn who_was_called_may_answer() {
        for to in ["10.0.2.2", "fec0::2"] {
            for flags in [0x12, 0x10, 0x18, 0x11, 0x04, 0x14] {
                assert!(passes(&packet(to, TCP, &segment(40001, flags))), "{to} {flags:#x}");
            }
            // libslirp takes the first of these for a beginning; none of them is an answer.
            for flags in [SYN, SYN | 0x08, SYN | 0x01, SYN | 0x04, SYN | 0x20, SYN | 0xc0] {
                assert!(!passes(&packet(to, TCP, &segment(40001, flags))), "{to} {flags:#x}");
            }
        }
    }

    #[test]
    fn what_hides_what_it_is_does_not_pass() {
        let whole = packet("10.0.2.2", TCP, &segment(22, 0x10));
        for length in 0..whole.len() - 6 {
            assert!(!passes(&whole[..length]), "cut after {length}");
        }
        // Pieces: the first, a later one.
        for at in [[0x20, 0], [0, 1], [0x20, 3]] {
            let mut piece = whole.clone();
            piece[14 + 6..14 + 8].copy_from_slice(&at);
            assert!(!passes(&piece), "{at:?}");
            let mut piece = packet("192.0.2.8", TCP, &segment(22, SYN));
            piece[14 + 6..14 + 8].copy_from_slice(&at);
            assert!(passes(&piece), "to the world {at:?}");
        }
        // With options the ports are further back: a header that is said to be longer than it is shows nothing else.
        let mut options = packet("10.0.2.2", TCP, &[&[1, 1, 1, 0][..], &segment(22, SYN)].concat());
        options[14] = 0x46;
        assert!(!passes(&options));
        let mut long = packet("10.0.2.2", TCP, &segment(22, SYN));
        long[14] = 0x4f;
        assert!(!passes(&long));
        long[14] = 0x44;
        assert!(!passes(&long));
        // Other protocols, VLANs, IPv6 in IPv4, further headers of IPv6.
        assert!(!passes(&packet("10.0.2.2", 132, &[0; 20])) && !passes(&packet("10.0.2.2", 41, &[0; 60])));
        assert!(!passes(&ethernet([0x81, 0x00], &whole[12..])) && !passes(&ethernet([0x88, 0xf8], &[0; 60])));
        for next in [0, 43, 44, 60] {
            assert!(!passes(&packet("fec0::2", next, &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 22, 0, 0, 0, 0])), "{next}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_it_fail(frame: Vec<u8>, kind in 0..3usize) {
            let mut frame = frame;
            if frame.len() >= 14 {
                frame[12..14].copy_from_slice(&[[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06]][kind]);
            }
            let _ = passes(&frame);
        }
    }
}
