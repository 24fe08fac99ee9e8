//! The user's terminal as the guest's: every key goes there, and what comes back is shown as it is.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::term;
use crate::base::{Context as _, Error, Result, interrupt};

/// Ctrl-], as in virsh and telnet.
const LEAVE: u8 = 0x1d;

/// What a guest that reads nothing may be owed; more is dropped, as a serial line does.
const OWED: usize = 64 << 10;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The user left.
    Left,
    /// The other side did: the guest ended, or somebody took the console.
    Gone,
}

/// Connects this terminal with `stream` until the user leaves or the stream ends. However it ends, the terminal
/// is as it was.
///
/// # Errors
/// When standard input is no terminal; [`crate::base::Kind::Interrupted`] on SIGTERM (Ctrl-C goes to the guest).
pub fn session(stream: UnixStream) -> Result<End> {
    let terminal = Raw::begin()?;
    let ended = pump(stream);
    drop(terminal);
    ended
}

/// The terminal's own settings, put back when dropped: on an error and on a panic too.
pub(super) struct Raw(Termios);

impl Raw {
    /// From now on every key is the guest's.
    pub(super) fn begin() -> Result<Self> {
        let stdin = std::io::stdin();
        let doing = || "setting up the terminal".to_owned();
        let before = tcgetattr(&stdin).context(doing)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw).context(doing)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Colours off, cursor shown, a new line: a guest that ended in the middle of something left the screen so.
        term::bytes(b"\x1b[0m\x1b[?25h\r\n");
        // There is nobody left to tell.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn pump(mut stream: UnixStream) -> Result<End> {
    let broken = |error: std::io::Error| Error::failed("talking to the console").because(error);
    stream.set_nonblocking(true).map_err(broken)?;
    let stdin = std::io::stdin();
    let mut owed: Vec<u8> = Vec::new();
    let mut piece = [0; 4096];
    loop {
        interrupt::check()?;
        let wanted = if owed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut both = [PollFd::new(&stdin, PollFlags::IN), PollFd::from_borrowed_fd(stream.as_fd(), wanted)];
        // A signal that comes just before the wait is seen after it.
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut both, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context(|| "waiting for the terminal".into())?,
        };
        let [typed, said] = both.map(|one| one.revents());
        if !said.is_empty() {
            match stream.read(&mut piece) {
                Ok(0) => return Ok(End::Gone),
                Ok(length) => term::bytes(&piece[..length]),
                Err(error) if again(&error) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(End::Gone),
                Err(error) => return Err(broken(error)),
            }
        }
        if !typed.is_empty() {
            // Past the buffer of `Stdin`, which poll(2) does not see.
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut piece));
            let length = length.context(|| "reading the terminal".into())?;
            let left = piece[..length].iter().position(|byte| *byte == LEAVE);
            if length == 0 || left.is_some() {
                return Ok(End::Left);
            }
            owed.extend(piece[..length].iter().take(OWED.saturating_sub(owed.len())));
        }
        if !owed.is_empty() {
            match stream.write(&owed) {
                Ok(length) => drop(owed.drain(..length)),
                Err(error) if again(&error) => {}
                // What it said last is still to be read; the end comes with that.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => owed.clear(),
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

fn again(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted)
}
