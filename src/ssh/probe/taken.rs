//! Whether the other side has taken what was sent over a loopback connection.
//!
//! Who forwards a port to a guest (QEMU's user network, passt) has the host's
//! kernel accept a connection at once, and reads from it when the guest has
//! accepted it too. Both ends are this kernel's, so it tells how much lies
//! unread at the other one: `rx_queue` in `/proc/net/tcp` (proc_pid_net(5)).

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;

use crate::base::fs;

/// Some 400,000 connections.
const LIMIT: u64 = 64 << 20;

/// What the kernel knew of its connections at one moment.
pub(super) struct Table(String);

impl Table {
    /// Reads it; empty where there is none.
    pub(super) fn read(of: SocketAddr) -> Self {
        let file = if of.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        Table(fs::read_text(Path::new(file), LIMIT).unwrap_or_default())
    }

    /// Whether nothing lies unread at the other end of this connection; `false` where that is not known.
    pub(super) fn is_taken(&self, stream: &TcpStream) -> bool {
        let (Ok(ours), Ok(theirs)) = (stream.local_addr(), stream.peer_addr()) else { return false };
        let (ours, theirs) = (written(ours), written(theirs));
        // sl local_address rem_address st tx_queue:rx_queue …
        let mut lines = self.0.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        lines.any(|words| match words[..] {
            [_, local, remote, _, queues, ..] => local == theirs && remote == ours && queues.ends_with(":00000000"),
            _ => false,
        })
    }
}

/// An address as the kernel writes it there: words of four bytes as they lie in memory.
fn written(addr: SocketAddr) -> String {
    let word = |bytes: &[u8]| format!("{:08X}", u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let ip: String = match addr.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    format!("{ip}:{:04X}", addr.port())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::base::poll::wait_for;

    #[rstest::rstest]
    #[case("127.0.0.1:0")]
    #[case("[::1]:0")]
    fn what_is_read_is_taken(#[case] addr: &str) {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(b"word").unwrap();
        assert!(!Table::read(addr).is_taken(&stream), "nobody has accepted it");
        let (mut other, _) = listener.accept().unwrap();
        assert!(!Table::read(addr).is_taken(&stream), "nobody has read from it");
        other.read_exact(&mut [0; 4]).unwrap();
        wait_for("the end of the queue", || Table::read(addr).is_taken(&stream));
        assert!(!Table(String::new()).is_taken(&stream), "where the kernel says nothing");
    }
}
