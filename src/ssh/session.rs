//! Sessions in a guest through the system's `ssh`, with the guest's host keys
//! pinned: whatever the user's configuration says, no other key is accepted.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

pub use crate::base::cmd::{exit_code, shell_word};

use crate::base::cmd::{Cmd, Output, Pipes, interrupt_all};
use crate::base::poll::{self, Deadline};
use crate::base::{Context as _, Error, Kind, Result, fs};

/// The exit code of `ssh` when it was the connection that failed (ssh(1), "EXIT STATUS").
pub const CHANNEL_FAILED: i32 = 255;

/// Who logs in, and how the guest is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user's name in the guest.
    pub user: String,
    /// The name under which [`known_hosts`](Self::known_hosts) files the guest's keys.
    pub alias: String,
    /// The guest's own `known_hosts` file; absolute.
    pub known_hosts: PathBuf,
    /// What those keys can sign with ([`known_hosts::algorithms`](super::known_hosts::algorithms)).
    pub algorithms: String,
    /// The keys that were authorized, and no other is offered: files of private ones, and of public ones whose other
    /// half the agent has; absolute. Empty: those of the agent and the default ones, as `ssh` finds them.
    pub identities: Vec<PathBuf>,
    /// Whether only the keys of [`known_hosts`](Self::known_hosts) are accepted. Else whoever answers
    /// is taken for the guest: the user has said that they trust the way there.
    pub pinned: bool,
}

impl Login {
    /// The same at an address.
    #[must_use]
    pub fn at(&self, addr: SocketAddr) -> SshTarget {
        SshTarget { addr, login: self.clone() }
    }
}

/// A guest that can be logged in to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshTarget {
    /// Where its SSH server is.
    pub addr: SocketAddr,
    /// Who logs in.
    pub login: Login,
}

/// How `ssh` is to behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For ourselves: asks nothing, and reads no configuration of the user.
    Batch,
    /// For the user: honours their configuration where it does not weaken ours.
    User,
}

/// Whether a session gets a terminal in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tty {
    /// As `ssh` does: for a shell, not for a command.
    #[default]
    Auto,
    /// Always (`ssh -tt`).
    Always,
    /// Never (`ssh -T`).
    Never,
}

/// Options in the form of ssh_config(5), each value quoted where it must be.
/// They win over any configuration file, for `ssh` keeps the first value.
///
/// # Errors
/// [`Kind::Usage`] for a path that `ssh` could not be given.
pub fn options(target: &SshTarget, style: Style) -> Result<Vec<(&'static str, String)>> {
    Ok([whom(target)?, how(target, style)?].concat())
}

/// Which machine it is, and how it is recognised: nobody has a say in that.
fn whom(target: &SshTarget) -> Result<Vec<(&'static str, String)>> {
    let login = &target.login;
    let mut options = vec![
        ("HostName", target.addr.ip().to_string()),
        ("Port", target.addr.port().to_string()),
        // The host key: ours and no other.
        ("HostKeyAlias", login.alias.clone()),
        ("GlobalKnownHostsFile", "/dev/null".into()),
        ("KnownHostsCommand", "none".into()),
        ("VerifyHostKeyDNS", "no".into()),
        ("NoHostAuthenticationForLocalhost", "no".into()),
        ("CheckHostIP", "no".into()),
        ("UpdateHostKeys", "no".into()),
        // The connection: this address, and none that is still open to whoever had the port before.
        ("CanonicalizeHostname", "no".into()),
        ("ControlMaster", "no".into()),
        ("ControlPath", "none".into()),
        ("RemoteCommand", "none".into()),
    ];
    match login.pinned {
        true => options.extend([
            ("HostKeyAlgorithms", login.algorithms.clone()),
            ("UserKnownHostsFile", quoted_path(&login.known_hosts)?),
            ("StrictHostKeyChecking", "yes".into()),
        ]),
        false => options.extend([
            ("UserKnownHostsFile", "/dev/null".into()),
            ("StrictHostKeyChecking", "no".into()),
            // It would say that it has added the key to that file.
            ("LogLevel", "ERROR".into()),
        ]),
    }
    Ok(options)
}

/// The way there and the login: what a user's configuration says of these was meant for other machines, and could only
/// keep them out of this one. What they ask for on the command line counts.
fn how(target: &SshTarget, style: Style) -> Result<Vec<(&'static str, String)>> {
    let mut options = vec![
        // QEMU's user network takes connections for a guest that stands still, and `ssh` would wait for it without end.
        // Includes the key exchange, which takes seconds in an emulated guest.
        ("ConnectTimeout", "30".into()),
        // It is an address already.
        ("AddressFamily", "any".into()),
        ("PreferredAuthentications", "publickey,keyboard-interactive,password".into()),
        ("PubkeyAuthentication", "yes".into()),
        // Its older name, which every version knows. With a plus sign each is added to all that OpenSSH takes by itself.
        ("PubkeyAcceptedKeyTypes", "+rsa-sha2-512".into()),
        ("PKCS11Provider", "none".into()),
        // The next guest would take virga's own key there for one of the user's.
        ("AddKeysToAgent", "no".into()),
    ];
    if target.addr.ip().is_loopback() {
        options.extend([
            // Through a jump host, our loopback would be the jump host's.
            ("ProxyCommand", "none".into()),
            // Counts more than an interface.
            ("BindAddress", target.addr.ip().to_string()),
            ("Ciphers", "+aes256-ctr".into()),
            ("MACs", "+hmac-sha2-256".into()),
        ]);
        if style == Style::User {
            options.push(("KexAlgorithms", "+ecdh-sha2-nistp256".into()));
        }
    }
    let identities = &target.login.identities;
    for identity in identities {
        options.push(("IdentityFile", quoted_path(identity)?));
    }
    if !identities.is_empty() {
        options.extend([
            // An agent with many keys would use up the server's patience (MaxAuthTries) first.
            ("IdentitiesOnly", "yes".into()),
            // The one whose keys were authorized.
            ("IdentityAgent", "SSH_AUTH_SOCK".into()),
        ]);
    }
    match style {
        Style::Batch => options.extend([
            ("BatchMode", "yes".into()),
            // Nothing secret goes over it, and what is safe from tomorrow's computers costs an emulated guest 0.1 s.
            ("KexAlgorithms", "^curve25519-sha256".into()),
            ("ServerAliveInterval", "10".into()),
            ("LogLevel", "ERROR".into()),
        ]),
        Style::User => {
            options.push(("ServerAliveInterval", "30".into()));
            options.extend(LENT.map(|(key, value)| (key, value.to_owned())));
        }
    }
    Ok(options)
}

/// What a user's configuration lends to every machine: a guest is nobody's to trust, and gets it when it is asked for.
/// What it says of variables is added up, and what it leads to other machines too: that is for [`users_program`].
const LENT: [(&str, &str); 6] = [
    ("ForwardAgent", "no"),
    ("ForwardX11", "no"),
    ("ForwardX11Trusted", "no"),
    ("Tunnel", "no"),
    // A command here, of each connection there.
    ("PermitLocalCommand", "no"),
    // The first counts, and there is no way to say none.
    ("SetEnv", "VIRGA_GUEST=1"),
];

/// The user's configurations, in `ssh`'s own order.
const CONFIGURATIONS: [&str; 2] = ["~/.ssh/config", "/etc/ssh/ssh_config"];

/// `ssh` for the user: with their configuration, but for the variables and ports that it leads from every machine to every
/// other one. `asked` are the options of this command, which count.
fn users_program(asked: &[String]) -> Result<Cmd> {
    // What is included must be the user's or root's and closed to others, which `ssh` does not ask of the system's own file:
    // where that is nobody's, as in some containers, it is passed over rather than nobody let in.
    let theirs_too = fs::is_guarded(Path::new(CONFIGURATIONS[1]));
    program_with(&CONFIGURATIONS[..1 + usize::from(theirs_too)], asked)
}

fn program_with(files: &[&str], asked: &[String]) -> Result<Cmd> {
    use std::os::fd::AsRawFd as _;
    let asked = &option_words(asked);
    let making = || "making a configuration for ssh".to_owned();
    // In memory, and gone with us: `ssh` reads it in `/proc` before anything else.
    let file = rustix::fs::memfd_create("ssh_config", rustix::fs::MemfdFlags::CLOEXEC).context(making)?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, configuration(files, asked).as_bytes()).context(making)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut program = Cmd::new("ssh").arg("-F").arg(path);
    if !asked.iter().any(leads_ports) {
        program = program.args(["-o", "ClearAllForwardings=yes"]);
    }
    Ok(program.holding(file))
}

/// `SendEnv` adds to what was said before, and only what comes last takes from it.
fn configuration(files: &[&str], asked: &[(char, String)]) -> String {
    let mut text: String = files.iter().map(|file| format!("Include {file}\n")).collect();
    text.push_str("Match all\n    SendEnv -*\n");
    for (_, word) in asked.iter().filter(|(option, word)| *option == 'o' && !word.contains(char::is_control)) {
        // As in `-o SendEnv=NAME`, or with blanks around the sign, or instead of it.
        let word = word.trim_start();
        if let Some((key, names)) = word.split_at_checked("SendEnv".len())
            && key.eq_ignore_ascii_case("SendEnv")
        {
            let names = names.trim_start().trim_start_matches('=');
            text.push_str(&format!("    SendEnv {names}\n"));
        }
    }
    text
}

/// The options at the beginning of `ssh`'s words, as it reads them (getopt(3)): each with its value, if it takes one. What
/// follows is a command's.
fn option_words(words: &[String]) -> Vec<(char, String)> {
    const WITH_VALUE: &str = "BbcDEeFIiJLlmOoPpQRSWw";
    let (mut options, mut words) = (Vec::new(), words.iter());
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty() && *letters != "-") else {
            break;
        };
        for (at, letter) in letters.char_indices() {
            if !WITH_VALUE.contains(letter) {
                options.push((letter, String::new()));
                continue;
            }
            let attached = &letters[at + letter.len_utf8()..];
            let value =
                if attached.is_empty() { words.next().cloned().unwrap_or_default() } else { attached.to_owned() };
            options.push((letter, value));
            break;
        }
    }
    options
}

/// Whether an option is about ports: then all that were configured stay as well, for only all can be given up.
fn leads_ports((option, value): &(char, String)) -> bool {
    let starts = |key: &str| value.trim_start().get(..key.len()).is_some_and(|start| start.eq_ignore_ascii_case(key));
    match option {
        'L' | 'R' | 'D' => true,
        'o' => ["LocalForward", "RemoteForward", "DynamicForward"].into_iter().any(starts),
        _ => false,
    }
}

/// A path as the value of an option that takes quotes, `%` and `${}` (ssh_config(5), "TOKENS").
fn quoted_path(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains("${") && !text.contains(|c: char| c.is_control()));
    let text = text.ok_or_else(|| {
        let error = Error::usage(format!("ssh cannot be given the path {path:?}"));
        error.hint("move the file to a path without '${', control and non-UTF-8 characters")
    })?;
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")))
}

/// The `ssh` program with its options, up to and with the destination.
///
/// # Errors
/// As [`options`].
pub fn ssh_command(target: &SshTarget, style: Style, tty: Tty) -> Result<Cmd> {
    command_with(target, style, tty, &[])
}

fn command_with(target: &SshTarget, style: Style, tty: Tty, asked: &[String]) -> Result<Cmd> {
    // After "--", words of the remote command are never options.
    let end = ["--".into(), target.login.alias.clone().into()];
    let program = match style {
        Style::Batch => Cmd::new("ssh"),
        Style::User => users_program(asked)?,
    };
    Ok(program.args(arguments(target, style, tty, asked)?).args::<_, OsString>(end))
}

fn arguments(target: &SshTarget, style: Style, tty: Tty, asked: &[String]) -> Result<Vec<OsString>> {
    let mut args: Vec<OsString> = Vec::new();
    if style == Style::Batch {
        args.extend(["-F".into(), "/dev/null".into()]);
    }
    match tty {
        Tty::Auto => {}
        Tty::Always => args.push("-tt".into()),
        Tty::Never => args.push("-T".into()),
    }
    let set = |options: Vec<(&'static str, String)>, args: &mut Vec<OsString>| {
        for (key, value) in options {
            args.extend(["-o".into(), format!("{key}={value}").into()]);
        }
    };
    set(whom(target)?, &mut args);
    // The first value counts.
    args.extend(asked.iter().map(Into::into));
    set(how(target, style)?, &mut args);
    args.extend(["-l".into(), target.login.user.clone().into()]);
    // The alias will be the destination, so that the user's configuration can speak of `Host virga-*`.
    Ok(args)
}

/// Runs a command in the guest and collects its output, whatever its exit
/// status. `input` is its standard input. As with `ssh`, the words are joined
/// by blanks and read by the login shell there: quote with [`shell_word`].
///
/// # Errors
/// [`Kind::TimedOut`] after `limit`, [`Kind::Unavailable`] without `ssh`,
/// [`Kind::Interrupted`] on Ctrl-C.
pub fn run(target: &SshTarget, argv: &[impl AsRef<str>], input: &[u8], limit: Duration) -> Result<Output> {
    let command = ssh_command(target, Style::Batch, Tty::Never)?.args(argv.iter().map(AsRef::as_ref));
    let mut running = command.spawn().map_err(need_ssh)?;
    running.feed(input.to_vec());
    let deadline = Deadline::after(limit);
    poll::until(&deadline, Duration::from_millis(2), || running.poll())?.ok_or_else(|| late(limit))
}

fn late(limit: Duration) -> Error {
    let limit = humantime::format_duration(limit);
    Error::timed_out(format!("a command in the guest did not end within {limit}"))
}

/// Runs a command, or without one a shell, with our own standard input, output
/// and terminal. Returns the command's exit code; 255 when the channel
/// failed, 128 + n when `ssh` itself was killed by signal n.
///
/// As with `ssh`, the words of `argv` are joined by blanks and read by the
/// login shell in the guest: `ls '$HOME'` shows the home folder there.
///
/// # Errors
/// [`Kind::Unavailable`] without `ssh`.
pub fn interactive(target: &SshTarget, argv: &[String], tty: Tty) -> Result<i32> {
    interactive_with(target, &[], argv, tty)
}

/// As [`interactive`], with options of `ssh`'s own that were asked for. They count, but for those that say which machine
/// it is and how it is recognised.
///
/// # Errors
/// [`Kind::Unavailable`] without `ssh`.
pub fn interactive_with(target: &SshTarget, asked: &[String], argv: &[String], tty: Tty) -> Result<i32> {
    let status = command_with(target, Style::User, tty, asked)?.args(argv).interactive().map_err(need_ssh)?;
    Ok(exit_code(status))
}

/// As [`interactive`], for no longer than a deadline; `None` when the command was ended for that.
///
/// # Errors
/// [`Kind::Unavailable`] without `ssh`.
pub fn interactive_until(
    target: &SshTarget,
    argv: &[String],
    tty: Tty,
    deadline: Option<&Deadline>,
) -> Result<Option<i32>> {
    let status = ssh_command(target, Style::User, tty)?.args(argv).interactive_until(deadline).map_err(need_ssh)?;
    Ok(status.map(exit_code))
}

/// Runs a command between the caller's streams and returns how it ended; 255: the channel failed. `line` is read by the
/// login shell there.
///
/// # Errors
/// [`Kind::Unavailable`] without `ssh`; when its words cannot be passed on.
pub fn between(target: &SshTarget, line: &str, pipes: Pipes<'_>) -> Result<ExitStatus> {
    ssh_command(target, Style::User, Tty::Never)?.arg(line).pump(pipes, interrupt_all).map_err(need_ssh)
}

/// As [`interactive`], but `words` are read as `ssh` reads what follows the destination: options of its own first,
/// then the command.
///
/// # Errors
/// [`Kind::Unavailable`] without `ssh`.
pub fn interactive_words(target: &SshTarget, words: &[String]) -> Result<i32> {
    let program = users_program(words)?.args(arguments(target, Style::User, Tty::Auto, &[])?);
    let command = program.arg(&target.login.alias).args(words);
    Ok(exit_code(command.interactive().map_err(need_ssh)?))
}

pub(super) fn need_ssh(error: Error) -> Error {
    if error.kind() == Kind::Unavailable { error.hint("install the package openssh-client") } else { error }
}

#[cfg(test)]
mod tests;
