//! Files that the user names on the command line. `-` is standard input, as it is with other programs.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{ByteSize, Context as _, Error, Kind, Result, fs, interrupt};

/// Which option has read standard input: there is nothing left for another.
static TAKEN_BY: OnceLock<&'static str> = OnceLock::new();

/// How often it is seen that Ctrl-C was pressed while nothing comes.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Whether a path stands for standard input.
#[must_use]
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads a whole file of at most `limit` bytes that was named with `option`, or standard input to its end. Blocks as long
/// as somebody writes there.
///
/// # Errors
/// [`Kind::Usage`] when it is absent, cannot be read or is larger, and when another option has read standard input;
/// [`Kind::Interrupted`] on Ctrl-C.
pub fn read(path: &Path, limit: u64, option: &'static str) -> Result<Vec<u8>> {
    if !is_stdin(path) {
        return fs::read(path, limit).map_err(|error| error.with_kind(Kind::Usage));
    }
    if let Err(option) = TAKEN_BY.set(option) {
        let first = TAKEN_BY.get().copied().unwrap_or_default();
        return Err(Error::usage(format!("'{option} -' has nothing to read: '{first} -' took standard input"))
            .hint("write one of the two to a file, and name that"));
    }
    let bytes = read_stdin(limit, &|| format!("reading standard input for '{option} -'"))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::usage(format!("what '{option} -' reads is larger than {}", ByteSize(limit)))),
        false => Ok(bytes),
    }
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path, limit: u64, option: &'static str) -> Result<String> {
    let text = String::from_utf8(read(path, limit, option)?);
    text.context(|| format!("'{}' is not UTF-8 text", path.display())).map_err(|error| error.with_kind(Kind::Usage))
}

/// One byte more than the limit where there is more.
fn read_stdin(limit: u64, doing: &dyn Fn() -> String) -> Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    let stdin = io::stdin();
    loop {
        interrupt::check()?;
        // Not the library's own loop, which goes on when a signal has come.
        let ready = rustix::event::poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&LOOK));
        match ready {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(io::Error::from).context(doing)?,
        };
        match stdin.lock().read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(doing),
        }
        if bytes.len() as u64 > limit {
            return Ok(bytes);
        }
    }
}
