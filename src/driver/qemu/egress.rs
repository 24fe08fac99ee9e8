//! What a guest on QEMU's own network may send: to the world, and not to the host that it runs on.
//!
//! QEMU's network (libslirp) leads *every* address of its own, 10.0.2.0/24 and fec0::/64, to the host's loopback, where
//! other guests' ports and the services of the host are; the host's other addresses, and those at which clouds give away
//! the machine's logins, it reaches like any. It has no setting for that but `restrict=on`, which closes the world too. So
//! what a guest sends goes through us first: QEMU's `filter-redirector` hands each frame over at a socket, and what may
//! pass ([`frame`]) is handed back at another. What the guest receives takes the short way.
//!
//! It fails closed: without us, what the guest sends goes nowhere. A frame that cannot be handed on at once is dropped, as
//! networks drop frames: whoever waited for QEMU here could have QEMU wait for him, for good.

mod frame;

pub use self::frame::may_pass;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Result as IoResult, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketType};

/// A frame comes with its length before it, in network byte order (QEMU's `net_fill_rstate`).
const PREFIX: usize = 4;

/// The longest frame that QEMU hands over (`NET_BUFSIZE`).
const FRAME_MAX: usize = 4096 + 65536;

/// As many bytes may wait for QEMU to take them; then frames are dropped. A few hundred frames of a full window.
const WAITING_MAX: usize = 1 << 20;

/// As long is believed what was found of an address: the host can get others.
const REMEMBERED: Duration = Duration::from_secs(5);

/// As many addresses are remembered. A guest that asks for more costs the host time of its own, not memory.
const REMEMBERED_MAX: usize = 4096;

/// Judges what the guest sends by its cards, until QEMU ends. QEMU connects twice a card: for what it hands over, and for
/// what it is handed.
///
/// # Errors
/// When the sockets fail, or what comes is not what QEMU writes.
pub(super) fn judge(listener: UnixListener, cards: usize) -> IoResult<()> {
    let mut lines = Vec::new();
    for _ in 0..cards {
        let from = listener.accept()?.0;
        lines.push(Line::new(from, listener.accept()?.0)?);
    }
    drop(listener);
    let mut host = Host::default();
    while !lines.is_empty() {
        let mut watched: Vec<PollFd<'_>> = lines.iter().flat_map(Line::watched).collect();
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut open = Vec::new();
        for mut line in lines {
            if line.step(&mut |addr| host.is_at(addr))? {
                open.push(line);
            }
        }
        lines = open;
    }
    Ok(())
}

/// What one card sends.
struct Line {
    from: UnixStream,
    to: UnixStream,
    /// What came and is no whole frame yet.
    input: Vec<u8>,
    /// What is to be handed back.
    output: Vec<u8>,
}

impl Line {
    fn new(from: UnixStream, to: UnixStream) -> IoResult<Self> {
        from.set_nonblocking(true)?;
        to.set_nonblocking(true)?;
        Ok(Line { from, to, input: Vec::new(), output: Vec::new() })
    }

    fn watched(&self) -> [PollFd<'_>; 2] {
        // That the other end is closed is always told.
        let room = if self.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        [PollFd::new(&self.from, PollFlags::IN), PollFd::new(&self.to, room)]
    }

    /// Takes what is there and hands on what may pass; whether there is more to come.
    fn step(&mut self, is_host: &mut dyn FnMut(IpAddr) -> bool) -> IoResult<bool> {
        let mut buffer = [0; 64 << 10];
        let open = match (&self.from).read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if later(&error) => true,
            Err(error) => return Err(error),
        };
        self.sort(is_host)?;
        self.hand_on()?;
        Ok(open)
    }

    /// Moves whole frames that may pass from the input to the output.
    fn sort(&mut self, is_host: &mut dyn FnMut(IpAddr) -> bool) -> IoResult<()> {
        let mut at = 0;
        while let Some(prefix) = self.input[at..].first_chunk::<PREFIX>() {
            let length = u32::from_be_bytes(*prefix) as usize;
            if length > FRAME_MAX {
                return Err(std::io::Error::other("a frame that QEMU does not send"));
            }
            let end = at + PREFIX + length;
            let Some(framed) = self.input.get(at..end) else { break };
            let room = self.output.len() + framed.len() <= WAITING_MAX;
            if room && may_pass(&framed[PREFIX..], is_host) {
                self.output.extend_from_slice(framed);
            }
            at = end;
        }
        self.input.drain(..at);
        Ok(())
    }

    fn hand_on(&mut self) -> IoResult<()> {
        while !self.output.is_empty() {
            match (&self.to).write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// What is known of the host's addresses.
#[derive(Default)]
struct Host {
    found: HashMap<IpAddr, (bool, Instant)>,
}

impl Host {
    /// Whether the host itself is at an address, now or a moment ago.
    fn is_at(&mut self, addr: IpAddr) -> bool {
        let now = Instant::now();
        if let Some((is, when)) = self.found.get(&addr)
            && now.duration_since(*when) < REMEMBERED
        {
            return *is;
        }
        if self.found.len() >= REMEMBERED_MAX {
            self.found.clear();
        }
        let is = is_host(addr);
        self.found.insert(addr, (is, now));
        is
    }
}

/// Whether the host itself is at an address: the kernel then talks to it from that very address (`ip route get`). Nothing
/// is sent for that. Where the kernel cannot be asked, it may be: a guest can use up what asking needs.
fn is_host(addr: IpAddr) -> bool {
    // Any port will do.
    let to = SocketAddr::new(addr, 9);
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = match net::socket(family, SocketType::DGRAM, None) {
        Ok(socket) => UdpSocket::from(socket),
        Err(Errno::AFNOSUPPORT) => return false,
        Err(_) => return true,
    };
    match net::connect(&socket, &to) {
        Ok(()) => socket.local_addr().map_or(true, |from| from.ip() == addr),
        // There is no way to it, so none for the guest.
        Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::ADDRNOTAVAIL | Errno::INVAL) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
    }

    /// A frame that passes, of this length.
    fn arp(length: usize) -> Vec<u8> {
        let mut frame = vec![0; length];
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        frame
    }

    #[test]
    fn the_host_is_where_it_is_and_nowhere_else() {
        for addr in ["127.0.0.1", "::1"] {
            assert!(is_host(addr.parse().unwrap()), "{addr}");
        }
        for addr in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_host(addr.parse().unwrap()), "{addr}");
        }
        let mut host = Host::default();
        for number in 0..2 * u32::try_from(REMEMBERED_MAX).unwrap() {
            host.is_at(std::net::Ipv4Addr::from(0x7f00_0000 + number).into());
        }
        assert!(host.found.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn frames_are_handed_on_whole_whatever_the_pieces_they_come_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames");
        let listener = UnixListener::bind(&path).unwrap();
        let judge = std::thread::spawn(move || judge(listener, 2));
        let [mut out, mut back, mut out2, mut back2] = [(); 4].map(|()| UnixStream::connect(&path).unwrap());
        let all = [framed(&arp(60)), framed(b"not a frame"), framed(&arp(1514)), framed(&[])].concat();
        for byte in &all {
            out.write_all(&[*byte]).unwrap();
        }
        out2.write_all(&framed(&arp(42))).unwrap();
        let mut got = vec![0; 60 + 1514 + 2 * PREFIX];
        back.read_exact(&mut got).unwrap();
        assert_eq!(got, [framed(&arp(60)), framed(&arp(1514))].concat());
        let mut got = vec![0; 42 + PREFIX];
        back2.read_exact(&mut got).unwrap();
        drop((out, out2));
        assert_eq!((back.read(&mut got).unwrap(), back2.read(&mut got).unwrap()), (0, 0));
        judge.join().unwrap().unwrap();
    }

    /// QEMU waits for whoever takes its frames: nobody who waits for QEMU may do so.
    #[test]
    fn who_does_not_take_frames_loses_some_and_holds_nobody_up() {
        let (mut out, from) = UnixStream::pair().unwrap();
        let (to, mut back) = UnixStream::pair().unwrap();
        let judge = std::thread::spawn(move || {
            let mut line = Line::new(from, to).unwrap();
            loop {
                rustix::event::poll(&mut line.watched(), None).unwrap();
                if !line.step(&mut |_| false).unwrap() {
                    return line.output.len();
                }
            }
        });
        let frame = framed(&arp(1514));
        for _ in 0..8 * WAITING_MAX / frame.len() {
            out.write_all(&frame).unwrap();
        }
        drop(out);
        assert!(judge.join().unwrap() <= WAITING_MAX);
        let mut got = Vec::new();
        back.read_to_end(&mut got).unwrap();
        let whole = got.len() - got.len() % frame.len();
        assert!(whole > 0 && got[..whole].chunks(frame.len()).all(|one| one == frame), "frames are whole");
    }

    #[test]
    fn nonsense_ends_it() {
        let (mut out, from) = UnixStream::pair().unwrap();
        let (to, _back) = UnixStream::pair().unwrap();
        out.write_all(&[0xff; 8]).unwrap();
        assert!(Line::new(from, to).unwrap().step(&mut |_| false).is_err());
    }
}
