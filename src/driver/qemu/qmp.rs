//! A client for QEMU's control protocol (QMP, `docs/interop/qmp-spec.rst` in
//! QEMU's sources): one JSON object a line over a unix socket.
//!
//! QEMU serves one client at a time, so connections are short. Everything on
//! one connection shares one deadline, kept by the kernel's socket timeouts.
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
use crate::base::{Context as _, Error, Result};

/// Longest line read: the answers that we ask for are a few kilobytes.
const LINE_LIMIT: usize = 4 << 20;

/// One negotiated connection.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    deadline: Deadline,
    next_id: u64,
}

impl Qmp {
    /// Connects, reads the greeting, leaves negotiation mode. `limit` is for
    /// this and for every later command together.
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
        let mut qmp = Qmp { stream: BufReader::new(stream), deadline, next_id: 1 };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(Error::failed(format!("'{}' is not a QEMU control socket", path.display())));
        }
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns its answer; events that come between are skipped.
    ///
    /// # Errors
    /// What QEMU answers, with its own words; [`crate::base::Kind::TimedOut`].
    pub(super) fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
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
            // Anew for every piece: a peer that drips bytes gets no more time than one that sends none.
            if self.deadline.passed() {
                return Err(timed_out(&self.deadline));
            }
            // Rounded up: a timeout of zero would mean none.
            let left = self.deadline.left().max(Duration::from_millis(1));
            self.stream.get_ref().set_read_timeout(Some(left)).map_err(|error| self.io(error))?;
            let piece = match self.stream.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
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
