//! A client for QEMU's control protocol (QMP, `docs/interop/qmp-spec.rst` in
//! QEMU's sources): one JSON object a line over a unix socket.
//!
//! QEMU serves one client at a time, so connections are short. The limit is on
//! QEMU's silence: each answer has it anew, kept by the kernel's socket timeouts.
//! Ctrl-C is not looked at here: clean-up after it needs QMP too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

use crate::base::fs::explain;
use crate::base::poll::Deadline;
use crate::base::{Context as _, Error, Result, crash};

/// Longest line read: the answers that we ask for are a few kilobytes.
const LINE_LIMIT: usize = 4 << 20;

/// What changes nothing, as used here, beside all that begins with `query-`: nothing that a kill can come between.
const ONLY_ASKS: [&str; 3] = ["qmp_capabilities", "qom-get", "human-monitor-command"];

/// How often to look whether a silent QEMU gets on.
const LOOK: Duration = Duration::from_millis(500);

/// One negotiated connection.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    limit: Duration,
    deadline: Deadline,
    working: Option<Sign>,
    next_id: u64,
}

/// How far a QEMU is that works and answers nobody meanwhile: a number that changes as long as it gets on.
struct Sign {
    look: Box<dyn Fn() -> u64>,
    last: u64,
}

impl std::fmt::Debug for Sign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sign").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Sign {
    fn has_changed(&mut self) -> bool {
        let now = (self.look)();
        std::mem::replace(&mut self.last, now) != now
    }
}

impl Qmp {
    /// Connects, reads the greeting, leaves negotiation mode. `limit` is for
    /// this, and then for each answer.
    ///
    /// # Errors
    /// [`crate::base::Kind::NotFound`] without a socket, [`crate::base::Kind::TimedOut`]
    /// when QEMU is busy with another client or hangs.
    pub(super) fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Deadline::after(limit);
        let stream = connect(path, limit).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => timed_out(&deadline),
            _ => explain(error, "connecting to QEMU's control socket", path),
        })?;
        let mut qmp = Qmp { stream: BufReader::new(stream), limit, deadline, working: None, next_id: 1 };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(Error::failed(format!("'{}' is not a QEMU control socket", path.display())));
        }
        qmp.say("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// From here on the limit is on QEMU's doing nothing: as long as what `look` returns changes, an answer is waited for.
    #[must_use]
    pub(super) fn while_changes(mut self, look: impl Fn() -> u64 + 'static) -> Self {
        let last = look();
        self.working = Some(Sign { look: Box::new(look), last });
        self
    }

    /// Runs one command and returns its answer; events that come between are skipped.
    ///
    /// # Errors
    /// What QEMU answers, with its own words; [`crate::base::Kind::TimedOut`].
    pub(super) fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
        self.deadline = Deadline::after(self.limit);
        self.say(name, arguments)
    }

    fn say(&mut self, name: &str, arguments: Value) -> Result<Value> {
        if !name.starts_with("query-") && !ONLY_ASKS.contains(&name) {
            crash::step(|| format!("telling QEMU '{name}'"));
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({"execute": name, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| self.io(error))?;
        loop {
            let mut answer = self.read()?;
            if answer["id"] != id {
                continue;
            }
            if let Some(words) = answer["error"]["desc"].as_str() {
                return Err(Error::failed(format!("QEMU refused '{name}'")).because(words.to_owned()));
            }
            return Ok(answer["return"].take());
        }
    }

    /// Runs one command of the human monitor.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub(super) fn monitor(&mut self, line: &str) -> Result<String> {
        let answer = self.command("human-monitor-command", json!({"command-line": line}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            if self.working.as_mut().is_some_and(Sign::has_changed) {
                self.deadline = Deadline::after(self.limit);
            }
            // Anew for every piece: a peer that drips bytes gets no more time than one that sends none.
            if self.deadline.passed() {
                return Err(timed_out(&self.deadline));
            }
            let most = if self.working.is_some() { LOOK } else { Duration::MAX };
            // Rounded up: a timeout of zero would mean none.
            let left = self.deadline.left().min(most).max(Duration::from_millis(1));
            self.stream.get_ref().set_read_timeout(Some(left)).map_err(|error| self.io(error))?;
            let piece = match self.stream.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // Whether that was all of its time is seen above.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(self.io(error)),
                Ok([]) => return Err(Error::failed("QEMU closed its control socket")),
                Ok(piece) => piece,
            };
            let used = piece.iter().position(|&byte| byte == b'\n').map_or(piece.len(), |at| at + 1);
            line.extend_from_slice(&piece[..used]);
            self.stream.consume(used);
            if line.len() > LINE_LIMIT {
                return Err(Error::failed("QEMU sent an endless line on its control socket"));
            }
        }
        serde_json::from_slice(&line).context(|| "reading QEMU's answer".into())
    }

    fn io(&self, error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => timed_out(&self.deadline),
            _ => Error::failed("talking to QEMU over its control socket").because(error),
        }
    }
}

fn timed_out(deadline: &Deadline) -> Error {
    let limit = humantime::format_duration(deadline.limit());
    Error::timed_out(format!("QEMU's control socket did not answer within {limit}"))
}

/// As `UnixStream::connect`, which would wait without end while QEMU's short queue of clients is full.
fn connect(path: &Path, limit: Duration) -> std::io::Result<UnixStream> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit.max(Duration::from_millis(1))))?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests;
