//! Programs that live on after us, and share nothing with whoever called us.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ExitStatus, Stdio};

use super::{Cmd, end, start};
use crate::base::{Error, Result};

/// Of our environment, what a program needs to find others, its libraries, and room for temporary files.
const KNOWN: [&str; 6] = ["PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "TZ", "NIX_LD_LIBRARY_PATH"];

impl Cmd {
    /// Gives it an environment and files of its own: whoever shares a machine with it, or breaks into it, reads the one in
    /// `/proc`, for as long as it lives; a CI job keeps its tokens there. `more` names what else it needs to know.
    #[must_use]
    pub fn apart(mut self, more: &[&str]) -> Self {
        let set: Vec<(OsString, OsString)> =
            self.command.get_envs().filter_map(|(k, v)| Some((k.into(), v?.into()))).collect();
        self.command.env_clear();
        for name in KNOWN.iter().chain(more) {
            if let Some(value) = std::env::var_os(name) {
                self.command.env(name, value);
            }
        }
        self.command.envs(set);
        close_on_exec();
        self
    }

    /// Starts it to live on after us: [`apart`](Self::apart), in a process group of its own (Ctrl-C at
    /// the terminal does not reach it), working directory `/`, no input, no
    /// output, standard error into `log`. No deadline applies.
    ///
    /// # Errors
    /// [`Unavailable`](crate::base::Kind::Unavailable) when the program cannot be started.
    pub fn spawn_detached(self, log: std::fs::File) -> Result<Detached> {
        self.spawn_detached_between(Stdio::null(), Stdio::null(), log)
    }

    /// As [`spawn_detached`](Self::spawn_detached), with this input and output.
    ///
    /// # Errors
    /// As [`spawn_detached`](Self::spawn_detached).
    pub fn spawn_detached_between(self, input: Stdio, output: Stdio, log: std::fs::File) -> Result<Detached> {
        self.spawn_knowing(&[], input, output, log)
    }

    /// As [`spawn_detached_between`](Self::spawn_detached_between), with these variables of the environment.
    ///
    /// # Errors
    /// As [`spawn_detached`](Self::spawn_detached).
    pub fn spawn_knowing(self, more: &[&str], input: Stdio, output: Stdio, log: std::fs::File) -> Result<Detached> {
        let mut this = self.apart(more);
        let detached = this.command.current_dir("/").process_group(0).stdin(input).stdout(output).stderr(log);
        start(&this.program, detached).map(Detached)
    }
}

/// A program that outlives us. Dropping this leaves it running.
#[derive(Debug)]
pub struct Detached(Child);

impl Detached {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has; reaps it then.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().map_err(|error| Error::failed("waiting for a program").because(error))
    }

    /// Kills and reaps it, whatever stands.
    pub fn kill(&mut self) {
        end(&mut self.0);
    }
}

/// No program that is started from now on gets a file that whoever called us had open. Ours have that mark from the
/// beginning.
fn close_on_exec() {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that is closed by now needs no mark.
    for number in numbers.filter(|number: &i32| *number > 2) {
        let _ = fcntl(number, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was open to whoever called us, and what they had set.
    #[test]
    fn who_stays_knows_nothing_of_the_caller() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        let open = crate::base::fs::open_or_create(&secret).unwrap();
        // A copy without the mark, as a shell's are.
        let open = rustix::io::dup(&open).unwrap();
        let told = "ls -l /proc/self/fd; cat /proc/self/environ";
        let theirs = Cmd::new("sh").args(["-c", told]).env("VIRGA_TEST_TOKEN", "s3cret").run().unwrap().text();
        assert!(theirs.contains("/secret") && theirs.contains("CARGO"), "else this shows nothing: {theirs}");
        let ours = Cmd::new("sh").args(["-c", told]).env("MINE", "1").apart(&["CARGO_PKG_NAME"]).run().unwrap().text();
        assert!(!ours.contains("/secret") && ours.contains("PATH=") && ours.contains("LC_ALL=C"), "{ours}");
        assert!(ours.contains("MINE=1") && ours.contains("CARGO_PKG_NAME=virga"), "{ours}");
        assert_eq!(ours.matches("CARGO").count(), 1, "{ours}");
        drop(open);
    }
}
