//! Does an SSH server answer? A connection and the server's first line, far
//! cheaper for both sides than a login.
//!
//! Through QEMU's user network a connection always succeeds, because QEMU
//! accepts it before the guest does. What then happens tells how far the guest is:
//!
//! - silence: its network is not up. QEMU repeats the request after 1, 3, 7, 15 … s,
//!   so a connection begun early may be answered long after the guest is up;
//! - closed at once: its network is up, and no server listens yet;
//! - a line: the server is there.
//!
//! passt, which stands before libvirt's guests of ordinary users, accepts likewise.
//!
//! So while there is silence, further connections are opened beside the older
//! ones. They end as soon as one is seen to have been taken into the guest:
//! each that a server has costs it a process, it drops some when it has ten
//! (`MaxStartups`, sshd_config(5)), and OpenSSH since 9.8 shuts out for a while
//! who leaves without logging in too often (`PerSourcePenalties`).

mod taken;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::base::name::quoted;
use crate::base::poll::{self, Deadline};
use crate::base::{Context as _, Error, Result};

/// Shortest time from one connection to the next.
const STEP: Duration = Duration::from_millis(50);
/// Longest time from one connection to the next while there is only silence.
const SLOWEST: Duration = Duration::from_millis(500);
/// Shortest time from one connection to the next while a server is busy with its first line: it may have been started
/// anew meanwhile, and the connection be lost.
const BUSY: Duration = Duration::from_secs(1);
/// Connections open at once, were all of them taken at the same moment: OpenSSH begins to drop the eleventh.
const OPEN_LIMIT: usize = 7;
/// What every client's version line begins with (RFC 4253 section 4.2).
pub(super) const GREETING: &[u8] = b"SSH-2.0-";
/// How often open connections are looked at.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// A server may send other lines first (RFC 4253 section 4.2); what is longer is no SSH server.
const PREAMBLE_LIMIT: usize = 8 << 10;

/// A server's version line, `SSH-2.0-…`, without its line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banner(pub String);

/// A connection to a server that has said who it is.
#[derive(Debug)]
pub struct Answered {
    /// Its version line.
    pub banner: Banner,
    /// All that was read from it.
    pub received: Vec<u8>,
    /// Whether the greeting was sent: the client's own first bytes must not follow once more.
    pub greeted: bool,
    /// The connection; does not block.
    pub stream: TcpStream,
}

/// What the last attempts came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Nothing at all so far.
    #[default]
    Silence,
    /// The connection was refused.
    Refused,
    /// It was closed before a line came.
    Closed,
    /// Something that is no SSH server; the beginning of what it said.
    NotSsh(String),
    /// No way there: what the system says.
    Unreachable(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Silence => f.write_str("nothing answers: the guest's network is not up yet"),
            Answer::Refused => f.write_str("the connection is refused"),
            Answer::Closed => f.write_str("the connection is closed at once: no SSH server listens in the guest yet"),
            Answer::NotSsh(text) => write!(f, "what answers is no SSH server: it says {}", quoted(text)),
            Answer::Unreachable(text) => write!(f, "the guest cannot be reached: {text}"),
        }
    }
}

/// Waits until an SSH server answers at `addr`.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] with the last [`Answer`], [`crate::base::Kind::Interrupted`] on Ctrl-C.
pub fn banner(addr: SocketAddr, deadline: &Deadline) -> Result<Banner> {
    let mut prober = Prober::new(addr);
    let answered = poll::until(deadline, TICK, || prober.tick())?;
    answered.map(|answered| answered.banner).ok_or_else(|| {
        let limit = humantime::format_duration(deadline.limit());
        Error::timed_out(format!("no SSH server answered at {addr} within {limit}"))
            .because(prober.answer().to_string())
    })
}

/// The probing itself, one short step at a time, so that a caller can watch
/// other things in between.
#[derive(Debug)]
pub struct Prober {
    addr: SocketAddr,
    /// Oldest first.
    open: Vec<Attempt>,
    last: Option<Instant>,
    /// When the guest last did anything but keep silent, else when probing began.
    heard: Instant,
    /// Whether the guest's network has answered at all.
    alive: bool,
    answer: Answer,
}

#[derive(Debug)]
struct Attempt {
    begun: Instant,
    stream: TcpStream,
    received: Vec<u8>,
    greeted: bool,
    /// Whether the guest has this connection.
    taken: bool,
}

/// What became of one attempt.
enum Fate {
    Pending,
    Ended(Answer),
    Answered(Banner),
}

impl Prober {
    /// Begins; nothing is connected yet.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self::begun(addr, Instant::now())
    }

    fn begun(addr: SocketAddr, now: Instant) -> Self {
        Prober { addr, open: Vec::new(), last: None, heard: now, alive: false, answer: Answer::Silence }
    }

    /// What the last attempts came to.
    #[must_use]
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Looks at the open connections and opens another when it is time. Does not block.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn tick(&mut self) -> Result<Option<Answered>> {
        self.tick_at(Instant::now())
    }

    /// As [`tick`](Self::tick) at this moment: what is done when depends on nothing else.
    fn tick_at(&mut self, now: Instant) -> Result<Option<Answered>> {
        let mut index = 0;
        while index < self.open.len() {
            match self.open[index].look() {
                Fate::Pending => index += 1,
                Fate::Answered(banner) => {
                    let Attempt { stream, received, greeted, .. } = self.open.remove(index);
                    // From here on it is a connection like any other.
                    sockopt::set_socket_linger(&stream, None).context(|| "setting up a socket".into())?;
                    return Ok(Some(Answered { banner, received, greeted, stream }));
                }
                Fate::Ended(answer) => {
                    self.open.remove(index);
                    // On loopback a refusal comes from the host: QEMU does not listen yet.
                    self.alive |= match answer {
                        Answer::Closed | Answer::NotSsh(_) => true,
                        Answer::Refused => !self.addr.ip().is_loopback(),
                        Answer::Silence | Answer::Unreachable(_) => false,
                    };
                    self.answer = answer;
                    self.heard = now;
                }
            }
        }
        if self.is_time(now) {
            self.see_what_is_taken(now);
        }
        if self.is_time(now) {
            if self.open.len() >= OPEN_LIMIT {
                self.open.remove(self.least_useful(now));
            }
            self.last = Some(now);
            match Attempt::begin(self.addr, now).context(|| format!("connecting to {}", self.addr))? {
                Ok(attempt) => self.open.push(attempt),
                Err(answer) => self.answer = answer,
            }
        }
        Ok(None)
    }

    /// Gives up all but the first when one is in the guest.
    fn see_what_is_taken(&mut self, now: Instant) {
        if self.open.iter().any(|attempt| attempt.taken) || !self.open.iter().any(|attempt| attempt.greeted) {
            return;
        }
        let table = self.addr.ip().is_loopback().then(|| taken::Table::read(self.addr));
        for attempt in self.open.iter_mut().filter(|attempt| attempt.greeted) {
            attempt.taken = table.as_ref().is_none_or(|table| table.is_taken(&attempt.stream));
        }
        if self.open.iter().any(|attempt| attempt.taken) {
            self.open.retain(|attempt| attempt.taken);
            self.open.truncate(1);
            self.heard = now;
        }
    }

    /// Whether another connection is due.
    fn is_time(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) >= self.gap(now))
    }

    /// How long after the newest connection the next one is opened.
    fn gap(&self, now: Instant) -> Duration {
        match self.open.last() {
            None => STEP,
            // The guest has one, or closed others before: a server is busy with its first line, and has twice as long each
            // time. It may need as long as it likes.
            Some(_) if self.alive || self.open.iter().any(|attempt| attempt.taken) => {
                (now.duration_since(self.heard) / 2).max(BUSY)
            }
            // Two per cent of the silence so far: what that adds to the wait nobody notices.
            Some(_) => (now.duration_since(self.heard) / 50).clamp(STEP, SLOWEST),
        }
    }

    /// The connection to give up for a new one: its neighbours are closest
    /// together for its age, so that what stays is spread over all ages. The
    /// oldest and the newest stay.
    fn least_useful(&self, now: Instant) -> usize {
        let share = |i: usize| {
            let gap = self.open[i + 1].begun.duration_since(self.open[i - 1].begun);
            gap.as_secs_f64() / now.duration_since(self.open[i].begun).as_secs_f64().max(0.001)
        };
        (1..self.open.len() - 1).min_by(|a, b| share(*a).total_cmp(&share(*b))).unwrap_or(0)
    }
}

impl Attempt {
    /// Starts connecting without waiting for it; the inner error is one that may pass.
    fn begin(addr: SocketAddr, now: Instant) -> io::Result<Result<Self, Answer>> {
        let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // Given up means reset: a server that finds the connection in its
        // queue later neither serves it nor counts it against us.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        match rustix::net::connect(&socket, &addr) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Ok(Err(answer_of(&error.into()))),
        }
        let stream = TcpStream::from(socket);
        Ok(Ok(Attempt { begun: now, stream, received: Vec::new(), greeted: false, taken: false }))
    }

    fn look(&mut self) -> Fate {
        let mut piece = [0; 512];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Fate::Ended(self.ended()),
                Ok(n) => self.received.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.greet();
                    return Fate::Pending;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.received.is_empty() => return Fate::Ended(answer_of(&error)),
                Err(_) => return Fate::Ended(self.ended()),
            }
            if let Some(banner) = version_line(&self.received) {
                return Fate::Answered(banner);
            }
            if self.received.len() > PREAMBLE_LIMIT {
                return Fate::Ended(self.ended());
            }
        }
    }

    /// What is sent is read when the guest has the connection: that is how it is seen. And old versions of passt finish a
    /// connection into the guest only when something is sent over it.
    fn greet(&mut self) {
        if !self.greeted {
            // Not connected yet, or broken: the next look tells.
            self.greeted = self.stream.write(GREETING).is_ok_and(|sent| sent == GREETING.len());
        }
    }

    fn ended(&self) -> Answer {
        match self.received.split(|byte| *byte == b'\n').next() {
            Some([_, ..]) => {
                Answer::NotSsh(String::from_utf8_lossy(&self.received).lines().next().unwrap_or("").into())
            }
            _ => Answer::Closed,
        }
    }
}

fn answer_of(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Answer::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => Answer::Closed,
        io::ErrorKind::TimedOut => Answer::Silence,
        _ => Answer::Unreachable(error.to_string()),
    }
}

/// The first whole line that begins with `SSH-2.0-` or `SSH-1.99-` (RFC 4253 sections 4.2 and 5.1).
fn version_line(received: &[u8]) -> Option<Banner> {
    let whole = received.iter().rposition(|byte| *byte == b'\n')?;
    received[..whole].split(|byte| *byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let version = line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.99-");
        (version && line.len() <= 255).then(|| Banner(String::from_utf8_lossy(line).into_owned()))
    })
}

#[cfg(test)]
mod tests;
