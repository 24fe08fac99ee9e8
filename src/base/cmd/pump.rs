//! Programs between streams of the caller's.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::{Cmd, end, start};
use crate::base::{Error, Result, interrupt, poll};

/// A piece of what goes in or comes out.
const PIECE: usize = 64 << 10;

/// What a program is connected with.
pub struct Pipes<'a> {
    /// Is read on a thread of its own until it ends.
    pub input: Box<dyn Read + Send>,
    /// Takes what it writes.
    pub output: &'a mut dyn Write,
    /// Takes what it writes of errors.
    pub errors: &'a mut dyn Write,
}

impl std::fmt::Debug for Pipes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pipes")
    }
}

enum Said {
    Output(Vec<u8>),
    Errors(Vec<u8>),
}

impl Cmd {
    /// Works in this folder.
    #[must_use]
    pub fn dir(mut self, folder: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Adds to its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs to the end between the caller's streams. On Ctrl-C `interrupted` is called once with the program's number;
    /// what then becomes of it is up to that. The timeout is not used.
    ///
    /// # Errors
    /// [`crate::base::Kind::Unavailable`] when the program is not there; when what it says cannot be passed on, and it
    /// is killed then.
    pub fn pump(mut self, pipes: Pipes<'_>, interrupted: impl FnOnce(u32)) -> Result<ExitStatus> {
        let piped = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start(&self.program, piped)?;
        if let Some(mut stdin) = child.stdin.take() {
            let mut input = pipes.input;
            // A program that ends without reading breaks the pipe: how it ended tells more.
            std::thread::spawn(move || std::io::copy(&mut input, &mut stdin));
        }
        let (sender, said) = mpsc::sync_channel(16);
        listen(child.stdout.take(), sender.clone(), Said::Output);
        listen(child.stderr.take(), sender, Said::Errors);
        let passed_on = pass_on(&said, pipes.output, pipes.errors, &mut child, interrupted);
        passed_on.map_err(|error| {
            end(&mut child);
            Error::failed("passing on what a program wrote").because(error)
        })
    }
}

/// Until it has closed all that it writes on, and has ended.
fn pass_on(
    said: &mpsc::Receiver<Said>,
    output: &mut dyn Write,
    errors: &mut dyn Write,
    child: &mut Child,
    interrupted: impl FnOnce(u32),
) -> std::io::Result<ExitStatus> {
    let mut interrupted = Some(interrupted);
    loop {
        match said.recv_timeout(Duration::from_millis(50)) {
            Ok(Said::Output(piece)) => output.write_all(&piece).and_then(|()| output.flush())?,
            Ok(Said::Errors(piece)) => errors.write_all(&piece).and_then(|()| errors.flush())?,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => match child.try_wait()? {
                Some(status) => return Ok(status),
                // It has nothing more to say and goes on: Ctrl-C still counts.
                None => poll::sleep(Duration::from_millis(2)),
            },
        }
        if interrupt::requested()
            && let Some(interrupted) = interrupted.take()
        {
            interrupted(child.id());
        }
    }
}

fn listen<R: Read + Send + 'static>(pipe: Option<R>, sender: mpsc::SyncSender<Said>, said: fn(Vec<u8>) -> Said) {
    let Some(mut pipe) = pipe else { return };
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if sender.send(said(piece[..length].to_vec())).is_err() {
                break;
            }
        }
    });
}

/// The exit code of a program, as shells count: 128 + n for signal n.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// `text` as one word for a POSIX shell.
#[must_use]
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Sends SIGINT to a program that this process has started, and to what that has started.
pub fn interrupt_all(pid: u32) {
    use rustix::process::{Pid, Signal, kill_process};
    let list = format!("/proc/{pid}/task/{pid}/children");
    let children = crate::base::fs::read_text(std::path::Path::new(&list), 64 << 10).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        interrupt_all(child);
    }
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process(pid, Signal::INT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_as_they_are() {
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let input = Box::new(std::io::Cursor::new(bytes.clone()));
        let pipes = Pipes { input, output: &mut output, errors: &mut errors };
        let status = Cmd::new("sh").args(["-c", "cat; echo no >&2; exit 7"]).pump(pipes, |_| ()).unwrap();
        assert_eq!((status.code(), output == bytes, errors.as_slice()), (Some(7), true, &b"no\n"[..]));
    }

    #[test]
    fn one_whose_words_nobody_takes_is_killed() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let pipes = Pipes { input: Box::new(std::io::empty()), output: &mut Closed, errors: &mut Vec::new() };
        assert!(Cmd::new("yes").pump(pipes, |_| ()).is_err());
    }
}
