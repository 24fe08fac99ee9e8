//! Running other programs: one way for all, with a deadline, bounded output,
//! a fixed locale, and errors that quote what the program said.
#![allow(clippy::disallowed_methods, reason = "this is the place that the rule sends others to")]

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

mod apart;
mod captured;
mod pump;

pub use apart::Detached;
pub use pump::{Pipes, exit_code, interrupt_all, shell_word};

use self::captured::Captured;
use super::poll::{self, Deadline, Silence};
use super::{Context as _, Error, Kind, Result, crash, interrupt};

/// A killed program is gone in a moment; for so long one may hang in the kernel, on a disk that does not answer.
const BURIAL: Duration = Duration::from_secs(60);

/// What goes at once into a pipe that takes anything at all (`PIPE_BUF`, pipe(7)).
const LINE: usize = 4096;

/// A program about to be run.
pub struct Cmd {
    program: OsString,
    command: Command,
    timeout: Duration,
    working: Option<Box<dyn Fn() -> u64>>,
    held: Option<std::fs::File>,
}

impl std::fmt::Debug for Cmd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cmd").field("command", &self.command).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// What a program that ended well (or was allowed not to) left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Cmd {
    /// A program by name (found on `PATH`) or path. No shell is involved.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref().to_owned();
        let mut command = Command::new(&program);
        command.env("LC_ALL", "C").env_remove(crash::VARIABLE).stdin(Stdio::null());
        Cmd { program, command, timeout: Duration::from_secs(60), working: None, held: None }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Kills the program after this time. 60 s when not said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// As [`timeout`](Self::timeout), for a program that has as long to work as there is to do: it is killed when what
    /// `look` returns has not changed for so long.
    #[must_use]
    pub fn while_changes(self, timeout: Duration, look: impl Fn() -> u64 + 'static) -> Self {
        Cmd { timeout, working: Some(Box::new(look)), ..self }
    }

    /// Keeps a file of ours open for as long as we wait for the program.
    #[must_use]
    pub fn holding(mut self, file: std::fs::File) -> Self {
        self.held = Some(file);
        self
    }

    /// Runs to the end and collects the output, whatever the exit status.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the program is not there, [`Kind::TimedOut`]
    /// when it was killed for taking too long, [`Kind::Interrupted`] on Ctrl-C.
    pub fn output(mut self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Captured::new()?, Captured::new()?);
        let mut child = start(&self.program, self.command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        stdout.begin(child.stdout.take());
        stderr.begin(child.stderr.take());
        let mut silence = Silence::new(self.timeout);
        let status = loop {
            let ended = child.try_wait().map_err(|error| Error::failed("waiting for a program").because(error));
            let outcome = match ended {
                Ok(Some(status)) => break status,
                Ok(None) if silence.lasts(|| self.working.as_ref().map(|look| look())) => Err(self.late()),
                Ok(None) => interrupt::check(),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                end(&mut child);
                return Err(error);
            }
            poll::sleep(Duration::from_millis(2));
        };
        Ok(Output { status, stdout: stdout.finish(), stderr: stderr.finish() })
    }

    fn late(&self) -> Error {
        let (program, limit) = (shown(&self.program), humantime::format_duration(self.timeout));
        Error::timed_out(match self.working {
            None => format!("{program} did not end within {limit}"),
            Some(_) => format!("{program} has got no further for {limit}"),
        })
    }

    /// Runs to the end and returns the output of a program that ended with 0.
    ///
    /// # Errors
    /// As [`output`](Self::output); [`Kind::Failed`] quoting its last words when it ended otherwise.
    pub fn run(self) -> Result<Output> {
        let program = self.program.clone();
        let output = self.output()?;
        if output.status.success() {
            return Ok(output);
        }
        Err(Error::failed(format!("{} failed ({})", shown(&program), output.status))
            .because(last_words(&output.stderr)))
    }

    /// Starts it and returns while it runs, with pipes to all three streams:
    /// for programs that are talked to. The timeout is not used.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the program is not there.
    pub fn spawn(mut self) -> Result<Running> {
        let (mut stdout, mut stderr) = (Captured::new()?, Captured::new()?);
        let piped = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start(&self.program, piped)?;
        stdout.begin(child.stdout.take());
        stderr.begin(child.stderr.take());
        Ok(Running { stdin: child.stdin.take(), child, stdout, stderr })
    }

    /// Starts it and hands out what it writes, as it is written: for output
    /// that is too large to be kept. The timeout is not used.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the program is not there.
    pub fn read(mut self) -> Result<Reading> {
        let mut stderr = Captured::new()?;
        let mut child = start(&self.program, self.command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        stderr.begin(child.stderr.take());
        Ok(Reading { program: self.program, stdout: child.stdout.take(), child, stderr })
    }

    /// Starts it with a stream as its input and output, and returns the stream's other end; closing that is how the
    /// program learns to end. One that fails within `patience` is an error.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the program is not there; [`Kind::Failed`] quoting its last words.
    pub fn connect(mut self, patience: Duration) -> Result<UnixStream> {
        let what = || "connecting to a program".to_owned();
        let (ours, theirs) = UnixStream::pair().context(what)?;
        let input = theirs.try_clone().context(what)?;
        let mut stderr = Captured::new()?;
        let ends = self.command.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
        let mut child = start(&self.program, ends)?;
        stderr.begin(child.stderr.take());
        let ended = poll::until(&Deadline::after(patience), Duration::from_millis(5), || {
            child.try_wait().map_err(|error| Error::failed("waiting for a program").because(error))
        })?;
        if let Some(status) = ended.filter(|status| !status.success()) {
            let words = last_words(&stderr.finish());
            return Err(Error::failed(format!("{} failed ({status})", shown(&self.program))).because(words));
        }
        // Whoever ends is buried, and heard until then.
        std::thread::spawn(move || (child.wait(), stderr));
        Ok(ours)
    }

    /// Runs with our own input, output and terminal and returns how it ended:
    /// for sessions that the user holds. Ctrl-C goes to the program; a signal
    /// that ends us ends it as well.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the program is not there.
    pub fn interactive(self) -> Result<ExitStatus> {
        self.interactive_until(None)?.ok_or_else(|| Error::failed("a program without a time limit ran out of time"))
    }

    /// As [`interactive`](Self::interactive), for no longer than a deadline; `None` when it was ended for that.
    ///
    /// # Errors
    /// As [`interactive`](Self::interactive).
    pub fn interactive_until(mut self, deadline: Option<&Deadline>) -> Result<Option<ExitStatus>> {
        // The user's own locale: what the session shows is for them.
        self.command.env_remove("LC_ALL");
        if let Some(locale) = std::env::var_os("LC_ALL") {
            self.command.env("LC_ALL", locale);
        }
        let ours = self.command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let mut child = start(&self.program, ours)?;
        let ended = watch_for_end(&child);
        let mut asked = false;
        let late = || deadline.is_some_and(Deadline::passed);
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(50)) {
            if (interrupt::requested() || late()) && !asked {
                asked = true;
                if let Some(pid) = pid_of(&child) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
        let status = child.wait().context(|| "waiting for a program".into())?;
        Ok((!asked || !late()).then_some(status))
    }
}

/// A program that runs; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
}

impl Running {
    /// Writes all of `bytes` to its input in the background, then closes the input.
    pub fn feed(&mut self, bytes: Vec<u8>) {
        if let Some(mut pipe) = self.stdin.take() {
            // A program that ends without reading breaks the pipe: how it ended tells more.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
    }

    /// Writes a line to its input now, of no more than `LINE` bytes. One that has left a whole pipe unread does not
    /// get it: nobody listens there, and waiting for it would have no end.
    pub fn send(&mut self, line: &[u8]) {
        debug_assert!(line.len() <= LINE, "{} bytes at once", line.len());
        if let Some(pipe) = self.stdin.as_mut().filter(|pipe| has_room(pipe)) {
            // A program that ended breaks the pipe: how it ended tells more.
            let _ = pipe.write_all(line);
        }
    }

    /// Looks at what it has written to its standard output so far.
    pub fn peek<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.stdout.lock())
    }

    /// How it ended and all its output; `None` while it runs. Call it no more after that.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn poll(&mut self) -> Result<Option<Output>> {
        let Some(status) = self.child.try_wait().context(|| "waiting for a program".into())? else { return Ok(None) };
        Ok(Some(Output { status, stdout: self.stdout.finish(), stderr: self.stderr.finish() }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A program whose output is read while it runs; dropping it kills it.
#[derive(Debug)]
pub struct Reading {
    program: OsString,
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Captured,
}

impl Reading {
    /// Waits for its end. What it has not been read of by now is lost.
    ///
    /// # Errors
    /// [`Kind::Failed`] quoting its last words when it did not end with 0; [`Kind::TimedOut`] when it does not end.
    pub fn finish(&mut self) -> Result<()> {
        self.stdout = None;
        let ended = poll::until(&Deadline::after(BURIAL), Duration::from_millis(2), || {
            self.child.try_wait().context(|| "waiting for a program".into())
        })?;
        let Some(status) = ended else {
            let limit = humantime::format_duration(BURIAL);
            let what = format!("{} has been read to its end, and is there {limit} later", shown(&self.program));
            return Err(Error::timed_out(what));
        };
        if status.success() {
            return Ok(());
        }
        let words = last_words(&self.stderr.finish());
        Err(Error::failed(format!("{} failed ({status})", shown(&self.program))).because(words))
    }
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stdout.as_mut().map_or(Ok(0), |pipe| pipe.read(buffer))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn has_room(pipe: &ChildStdin) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&now)).is_ok_and(|ready| ready > 0)
}

fn pid_of(child: &Child) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(child.id()).ok()?)
}

/// Sends once the child has ended, without reaping it: until then its pid stays its own.
fn watch_for_end(child: &Child) -> mpsc::Receiver<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let (sender, receiver) = mpsc::channel();
    let pid = pid_of(child);
    std::thread::spawn(move || {
        while let Some(Err(rustix::io::Errno::INTR)) =
            pid.map(|pid| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT))
        {}
        let _ = sender.send(());
    });
    receiver
}

fn start(program: &OsStr, command: &mut Command) -> Result<Child> {
    crash::step(|| format!("starting {}", shown(program)));
    command.spawn().map_err(|error| {
        let message = format!("{} cannot be started", shown(program));
        Error::new(Kind::Unavailable, message).because(error)
    })
}

fn shown(program: &OsStr) -> String {
    format!("'{}'", Path::new(program).display())
}

/// Kills and reaps it. One that is stuck in the kernel is left to it: whoever waits for us has waited long enough.
fn end(child: &mut Child) {
    let _ = child.kill();
    let reaped = || Ok(child.try_wait().unwrap_or_default());
    if let Ok(None) = poll::to_the_end(&Deadline::after(BURIAL), Duration::from_millis(2), reaped) {
        tracing::warn!(pid = child.id(), "a program does not end although it was killed");
    }
}

/// The last non-empty lines of a program's standard error, fit for a message.
#[must_use]
pub fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let words = lines[lines.len().saturating_sub(3)..].join("; ");
    if words.is_empty() {
        return "it said nothing".into();
    }
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect()
}

/// Where a program is on `PATH`; no process is started.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::poll::LONG;

    #[test]
    fn keeps_output_and_quotes_failure() {
        assert_eq!(Cmd::new("echo").arg("a b").run().unwrap().text(), "a b\n");
        let error = Cmd::new("ls").arg("/nonexistent").run().unwrap_err();
        assert!(error.causes()[0].contains("No such file"), "{:?}", error.causes());
        assert_eq!(Cmd::new("virga-no-such-program").run().unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn talks_to_a_running_program() {
        let mut cat = Cmd::new("sh").arg("-c").arg("read -r a; echo \"got $a\"; read -r b; exit 7").spawn().unwrap();
        cat.send(b"one\n");
        let wait = |what: &mut dyn FnMut() -> Option<Output>| {
            poll::until(&Deadline::after(LONG), Duration::from_millis(2), || Ok(what())).unwrap()
        };
        wait(&mut || cat.peek(|out| (out == b"got one\n").then(|| Cmd::new("true").run().unwrap()))).unwrap();
        assert!(cat.poll().unwrap().is_none());
        cat.feed(b"two\n".to_vec());
        let output = wait(&mut || cat.poll().unwrap()).unwrap();
        assert_eq!((output.status.code(), output.text().as_str()), (Some(7), "got one\n"));
    }

    /// More than a pipe takes, to one that never reads.
    #[test]
    fn nobody_waits_for_one_who_does_not_listen() {
        let mut deaf = Cmd::new("sleep").arg("36000").spawn().unwrap();
        let line = [b'\n'; LINE];
        (0..2 * (1 << 20) / LINE).for_each(|_| deaf.send(&line));
        assert!(deaf.poll().unwrap().is_none());
    }

    #[test]
    fn does_not_wait_for_what_a_program_left_behind() {
        // What it leaves behind holds its output open, and outlives every patience.
        let mut sh = Cmd::new("sh").args(["-c", "sleep 36000 & echo $!"]).spawn().unwrap();
        let output = poll::until(&Deadline::after(LONG), Duration::from_millis(2), || sh.poll()).unwrap().unwrap();
        let left = output.text();
        assert!(output.status.success());
        Cmd::new("kill").arg(left.trim()).run().expect("it is still there");
    }

    /// All that was said before the end is there, however much: no moment is waited for in which it might come.
    #[test]
    fn last_words_are_whole() {
        for _ in 0..50 {
            let mut sh = Cmd::new("sh").args(["-c", "sleep 36000 & seq 5000; echo $! >&2"]).spawn().unwrap();
            let output = poll::until(&Deadline::after(LONG), Duration::from_millis(1), || sh.poll()).unwrap().unwrap();
            Cmd::new("kill").arg(String::from_utf8_lossy(&output.stderr).trim()).run().unwrap();
            assert!(output.text().ends_with("\n5000\n"), "{}", output.text().len());
        }
        // The same without looking in between, past a grandchild that holds the pipe.
        let output = Cmd::new("sh").args(["-c", "sleep 36000 & echo $!"]).run().unwrap();
        Cmd::new("kill").arg(output.text().trim()).run().unwrap();
    }

    #[test]
    fn hands_out_what_is_written_and_how_it_ended() {
        let mut text = String::new();
        let mut reading = Cmd::new("sh").args(["-c", "seq 100000; echo no >&2; exit 3"]).read().unwrap();
        reading.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\n100000\n"));
        assert_eq!(reading.finish().unwrap_err().causes(), ["no"]);
        drop(Cmd::new("yes").read().unwrap());
    }

    /// Longer than its limit, by as much as it is seen to do.
    #[test]
    fn what_gets_on_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (looks, path) = (std::cell::Cell::new(0), folder.path().join("enough"));
        let script = format!("while [ ! -e '{}' ]; do sleep 0.02; done", path.display());
        let enough = path.clone();
        let look = move || {
            looks.set(looks.get() + 1);
            if looks.get() == 100 {
                crate::base::fs::write_new(&enough, b"", 0o600).unwrap();
            }
            // Each look is another one, so the limit never passes.
            looks.get()
        };
        Cmd::new("sh").args(["-c", &script]).while_changes(Duration::from_nanos(1), look).run().unwrap();
        let still = Cmd::new("sleep").arg("36000").while_changes(Duration::from_millis(50), || 0).run();
        assert_eq!(still.unwrap_err().kind(), Kind::TimedOut);
    }

    #[test]
    fn kills_what_takes_too_long() {
        let error = Cmd::new("sleep").arg("60").timeout(Duration::from_millis(50)).run().unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
    }
}
