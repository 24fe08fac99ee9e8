//! The keeper of a guest's console: a small process that reads what the guest writes, and keeps the last of it.
//!
//! QEMU's own `logfile` has no bound, and a guest can fill the host's disk with it while no command of ours runs. So QEMU
//! writes to a pipe, its standard output, and at the other end is one process a guest, which ends when QEMU does, because
//! then the pipe is closed. Nothing else ends it but a kill: then what the guest writes is dropped, and the guest runs on.
//! It has both logs open and makes no file, so that the guest's folder can be moved and removed under it.
//!
//! It also judges what the guest sends (`egress.rs`), for that needs somebody who lives as long as the guest: the socket is
//! its standard output.

use std::fs::File;
use std::io::{PipeWriter, Read, Result as IoResult};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FallocateFlags;

use super::{egress, network};
use crate::base::cmd::Cmd;
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Context as _, Error, GuestPlan, Result, fs};

/// The verb that a keeper is started with. Not for users.
pub const VERB: &str = "__console";

/// Most bytes of a log: several boots, as much as their systems say.
const LIMIT: u64 = 1 << 20;

/// A guest's text comes byte by byte: it is taken in pieces. The pipe holds what comes in this time.
const GATHER: Duration = Duration::from_millis(10);

/// How often QEMU's own log is looked at while the guest is silent.
const LOOK: Duration = Duration::from_secs(10);

/// For the keeper of a QEMU that is gone: it has at most a pipe's content to write.
const PATIENCE: Duration = Duration::from_secs(10);

/// This very program, whatever has become of its file.
#[cfg(not(test))]
const PROGRAM: &[&str] = &["/proc/self/exe", VERB];
/// Unit tests are in another program.
#[cfg(test)]
const PROGRAM: &[&str] = &["sh", "-c", "exec cat >>\"$1\"", "keeper"];

/// Starts the keeper of a guest; what is written to the pipe is kept.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start(plan: &GuestPlan) -> Result<PipeWriter> {
    let cards = network::judged(plan).len();
    let (reader, writer) = std::io::pipe().context(|| "making a pipe for the guest's console".into())?;
    // What it could say nobody would hear.
    let nowhere = fs::open_or_create(Path::new("/dev/null"))?;
    let mut keeper = Cmd::new(PROGRAM[0]).args(&PROGRAM[1..]).arg(&plan.console_log).arg(&plan.backend_log);
    let mut frames = Stdio::null();
    if cards > 0 {
        let path = RuntimeFiles::new(&plan.runtime).frames();
        let listener = UnixListener::bind(&path).context(|| format!("making the socket '{}'", path.display()))?;
        keeper = keeper.arg(cards.to_string());
        frames = OwnedFd::from(listener).into();
    }
    keeper.spawn_detached_between(reader.into(), frames, nowhere)?;
    Ok(writer)
}

/// Returns when all that a guest whose QEMU is gone has written is in its log.
pub(super) fn settled(plan: &GuestPlan) {
    let Ok(log) = fs::open(&plan.console_log) else { return };
    let free = || Ok(log.try_lock_shared().is_ok().then_some(()));
    // One that hangs holds nothing up: it makes no file.
    let _ = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(1), free);
}

/// What a keeper does for a guest's cards: lets what the guest sends pass, or not, until QEMU ends. At `frames` QEMU
/// connects.
///
/// # Errors
/// When the sockets fail.
pub fn judge(frames: OwnedFd, cards: usize) -> Result<()> {
    egress::judge(frames.into(), cards).map_err(|error| Error::failed("judging what a guest sends").because(error))
}

/// What a keeper does for a guest's console: reads `input` to its end, and keeps the last of it in `console`; of `backend`, into which another
/// program writes, the last as well. Holds the first one's lock.
///
/// # Errors
/// When a log cannot be opened, or the input not be read.
pub fn keep(input: impl Read + AsFd, console: &Path, backend: &Path) -> Result<()> {
    let console = fs::open_or_create(console)?;
    // The keeper of the guest's last life has something to write yet.
    console.lock().context(|| "locking the console's log".into())?;
    let failed = |error| Error::failed("keeping the console's log").because(error);
    let length = console.metadata().map_err(failed)?.len();
    let mut log = Log { file: console, length };
    log.reserve();
    let backend = fs::open_or_create(backend)?;
    take(input, &mut log, &backend).map_err(failed)
}

fn take(mut input: impl Read + AsFd, log: &mut Log, backend: &File) -> IoResult<()> {
    let mut buffer = vec![0; 64 << 10];
    let wait = Timespec { tv_sec: i64::try_from(LOOK.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        let length = backend.metadata()?.len();
        if length > LIMIT {
            shrink(backend, length, LIMIT / 2)?;
        }
        match rustix::event::poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => log.add(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        poll::sleep(GATHER);
    }
}

struct Log {
    file: File,
    length: u64,
}

impl Log {
    /// Takes the room that it will need, so that a disk that fills up later is no loss. Not every file system can.
    fn reserve(&self) {
        let _ = rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, LIMIT);
    }

    /// Adds text, and gives up the oldest for it where the log is full, or the disk. Nothing makes the guest wait.
    fn add(&mut self, text: &[u8]) {
        if self.length + text.len() as u64 > LIMIT {
            self.length = shrink(&self.file, self.length, LIMIT / 2).unwrap_or(self.length);
            self.reserve();
        }
        match self.file.write_all_at(text, self.length) {
            Ok(()) => self.length += text.len() as u64,
            // What cannot even be written over what is there is lost.
            Err(_) => drop(self.displace(text)),
        }
    }

    /// Moves text in at the end and as much out at the beginning: that takes no room.
    fn displace(&self, text: &[u8]) -> IoResult<()> {
        // A part of it may have been written.
        self.file.set_len(self.length)?;
        let mut all = vec![0; usize::try_from(self.length).unwrap_or_default()];
        self.file.read_exact_at(&mut all, 0)?;
        all.extend_from_slice(text);
        self.file.write_all_at(&all[text.len()..], 0)
    }
}

/// Keeps the last bytes of a log, from the beginning of a line on, and returns how many those are. In place: that takes
/// no room on a disk that has none, and whoever has the file open goes on with it.
fn shrink(file: &File, length: u64, keep: u64) -> IoResult<u64> {
    let keep = keep.min(length);
    let mut last = vec![0; usize::try_from(keep).unwrap_or_default()];
    file.read_exact_at(&mut last, length - keep)?;
    let begin = last.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let last = &last[begin..];
    file.write_all_at(last, 0)?;
    file.set_len(last.len() as u64)?;
    Ok(last.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Place(tempfile::tempdir().unwrap())
        }

        fn keep(&self, text: &[u8]) -> String {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let [console, backend] = ["console.log", "backend.log"].map(|name| self.0.path().join(name));
            std::thread::scope(|scope| {
                let keeper = scope.spawn(|| keep(reader, &console, &backend));
                writer.write_all(text).unwrap();
                drop(writer);
                keeper.join().unwrap().unwrap();
            });
            fs::read_text(&console, LIMIT).unwrap()
        }
    }

    fn lines(count: u32) -> Vec<u8> {
        (0..count).flat_map(|n| format!("line {n:07}\n").into_bytes()).collect()
    }

    #[test]
    fn the_last_of_it_is_kept_and_never_more() {
        let place = Place::new();
        assert_eq!(place.keep(b"one\ntwo"), "one\ntwo");
        assert_eq!(place.keep(b" and on\n"), "one\ntwo and on\n");
        let kept = place.keep(&lines(400_000));
        assert!(kept.starts_with("line ") && kept.ends_with("line 0399999\n"));
        assert!(kept.len() as u64 > LIMIT / 2 - (64 << 10) && kept.len() as u64 <= LIMIT, "{}", kept.len());
        let numbers: Vec<u32> = kept.lines().map(|line| line[5..].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "nothing is missing in between");
    }

    #[test]
    fn logs_that_grew_before_are_cut_as_well() {
        let place = Place::new();
        let (old, long) = (place.0.path().join("console.log"), lines(300_000));
        fs::write_new(&old, &long, 0o600).unwrap();
        let backend = place.0.path().join("backend.log");
        fs::write_new(&backend, &long, 0o600).unwrap();
        assert!(place.keep(b"new\n").ends_with("line 0299999\nnew\n"));
        let said = fs::read_text(&backend, LIMIT).unwrap();
        assert!(said.starts_with("line ") && said.ends_with("line 0299999\n") && said.len() as u64 <= LIMIT / 2);
    }

    #[test]
    fn where_there_is_no_room_the_new_takes_the_place_of_the_old() {
        let place = Place::new();
        let path = place.0.path().join("console.log");
        fs::write_new(&path, b"one\ntwo\nthree\n", 0o600).unwrap();
        let log = Log { file: fs::open_or_create(&path).unwrap(), length: 14 };
        log.displace(b"four\n").unwrap();
        assert_eq!(fs::read_text(&path, 100).unwrap(), "wo\nthree\nfour\n");
        log.displace(b"a line that is longer than all of it\n").unwrap();
        assert_eq!(fs::read_text(&path, 100).unwrap(), "han all of it\n");
    }

    #[test]
    fn one_line_without_end_is_cut_too() {
        let place = Place::new();
        let kept = place.keep(&vec![b'x'; 5 << 20]);
        assert!(kept.len() as u64 <= LIMIT && kept.len() as u64 >= LIMIT / 2 - 1);
    }
}
