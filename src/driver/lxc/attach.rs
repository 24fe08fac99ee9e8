//! Programs in a running container, by `lxc-attach`.

use std::io::Write;

use tempfile::NamedTempFile;

use super::tools;
use crate::base::cmd::{Cmd, Pipes, interrupt_all, shell_word};
use crate::base::layout::LxcFiles;
use crate::base::name::quoted;
use crate::base::{Context as _, Error, GuestPath, Result, fs};
use crate::driver::Exec;
use crate::driver::carry::{self, Load};

/// Where paths begin that are not absolute.
const HOME: &str = "/root";
/// What a program finds in its environment, before what the user adds: nothing of the host's.
const ENVIRONMENT: [&str; 4] =
    ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"];
/// What `lxc-attach` ends with when it cannot begin a program (`attach.c`): it is none, or not there.
const NOT_BEGUN: [i32; 2] = [126, 127];
/// Most bytes read of what `lxc-attach` says.
const LOG_LIMIT: u64 = 1 << 20;

/// `lxc-attach` as its words, up to the program's.
fn words(files: &LxcFiles, more: &[String]) -> Vec<String> {
    let container = ["-P", &files.parent().display().to_string(), "-n", files.name().as_str(), "--clear-env"];
    let mut words: Vec<String> = container.map(str::to_owned).to_vec();
    for variable in ENVIRONMENT.into_iter().map(str::to_owned).chain(more.iter().cloned()) {
        words.extend(["--set-var".to_owned(), variable]);
    }
    words
}

/// Runs a program to its end and returns its exit code. Ctrl-C goes to the program.
///
/// # Errors
/// When it cannot be begun.
pub(super) fn exec(files: &LxcFiles, exec: &Exec, streams: Pipes<'_>) -> Result<u8> {
    let log = NamedTempFile::new().context(|| "making a file for what lxc-attach says".into())?;
    let mut more: Vec<String> = exec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if exec.terminal.is_some() {
        more.insert(0, "TERM=xterm-256color".into());
    }
    let mut all = words(files, &more);
    all.extend(["-q".to_owned(), "-l".into(), "ERROR".into(), "-o".into(), log.path().display().to_string()]);
    all.push("--".into());
    all.extend(exec.command.iter().cloned());
    let command = match exec.terminal {
        None => Cmd::new("lxc-attach").args(all),
        // It gives the program a terminal where it has one itself: here of `script`, whose size is what the program sees.
        Some([columns, lines]) => {
            let line: Vec<String> = all.iter().map(|word| shell_word(word)).collect();
            let line = format!("stty cols {columns} rows {lines}; exec lxc-attach {}", line.join(" "));
            Cmd::new("script").args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).env("SHELL", "/bin/sh")
        }
    };
    // It begins in the folder of this name where the container has it.
    let status = command.dir("/").pump(streams, interrupt_all)?;
    let code = crate::base::cmd::exit_code(status);
    if NOT_BEGUN.contains(&code) {
        let said = fs::read_text(log.path(), LOG_LIMIT).unwrap_or_default();
        if let Some(line) = said.lines().find(|line| line.contains("Failed to exec")) {
            let program = exec.command.first().map_or("", String::as_str);
            let what = format!("running {} in the guest '{}'", quoted(program), files.name());
            return Err(Error::failed(what).because(tools::reason(line).to_owned()));
        }
    }
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// As [`carry::Content::pull`], of a container that runs.
pub(super) fn pull(files: &LxcFiles, path: &GuestPath, folders: bool, to: &mut dyn Write) -> Result<()> {
    let place = path.beneath(HOME);
    let parent = place.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent });
    run(files, path, carry::pull_words(path, parent, folders)?, Box::new(std::io::empty()), to)
}

/// As [`carry::Content::push`], into a container that runs.
pub(super) fn push(files: &LxcFiles, what: &Load, to: &GuestPath) -> Result<()> {
    let (reader, mut writer) = std::io::pipe().context(|| "making a pipe".into())?;
    let words = carry::push_words(&what.name, &to.beneath(HOME));
    let read = move |input| run(files, to, words, Box::new(input), &mut std::io::sink());
    carry::at_once(read, reader, move || what.write(&mut writer))
}

fn run(
    files: &LxcFiles,
    path: &GuestPath,
    command: Vec<String>,
    input: Box<dyn std::io::Read + Send>,
    output: &mut dyn Write,
) -> Result<()> {
    let mut said = Vec::new();
    let attach = Cmd::new("lxc-attach").args(words(files, &[])).arg("--").args(command).dir("/");
    let status = attach.pump(Pipes { input, output, errors: &mut said }, interrupt_all)?;
    carry::ended(status.code(), path, &said)
}
