//! Which keys may log in to a guest, and with which private keys `ssh` gets in.
//!
//! One place decides: key files that the user names; else the agent's keys;
//! else every `~/.ssh/id_*.pub`; else a key that virga makes. They are not
//! mixed, so that naming a file keeps every other key out, with one exception:
//! virga itself always gets in. Where that would take a passphrase, a token or an agent
//! that may be gone tomorrow, its own key is authorized as well.

mod private;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::agent::{self, take_string};
use super::keys;
use crate::base::name::quoted;
use crate::base::{Error, Kind, Result, fs, given};

/// Room for hundreds of keys.
const FILE_LIMIT: u64 = 1 << 20;

/// Where to look. The environment is read elsewhere: everything is passed in.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Files that the user named; when there are any, nothing else counts.
    pub files: &'a [PathBuf],
    /// The agent's socket (`SSH_AUTH_SOCK`).
    pub agent: Option<&'a Path>,
    /// The user's home folder.
    pub home: Option<&'a Path>,
    /// Where virga's own key is, or will be.
    pub own: &'a Path,
}

/// Keys for a guest's `authorized_keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKeys {
    /// Lines `[OPTIONS ]TYPE BASE64[ COMMENT]`, each key once; never empty.
    pub keys: Vec<String>,
    /// Where they come from.
    pub origin: Origin,
    /// The same keys as `ssh` is told of them, that of virga's own first.
    pub identities: Vec<Identity>,
    /// What was passed over and why, one line each.
    pub notes: Vec<String>,
}

/// An authorized key, as `ssh` is told that it may offer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Its private half's file.
    Private(PathBuf),
    /// Itself, as `TYPE BASE64`: the private half is an agent's, or somebody else's.
    Public(String),
}

/// Where authorized keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Files that the user named.
    Files,
    /// The SSH agent.
    Agent,
    /// `~/.ssh/id_*.pub`.
    Home,
    /// virga's own key, because there was no other.
    Own {
        /// The private key's file.
        path: PathBuf,
        /// Whether it was made just now.
        made: bool,
    },
}

/// Collects the keys: those of [`find`], and virga's own, which is made (once), when there is none or none that opens a
/// guest for virga whenever it has to get in.
///
/// # Errors
/// As [`find`], and when virga's own key cannot be read or made.
pub fn collect(sources: &Sources) -> Result<AuthorizedKeys> {
    let mut found = find(sources)?;
    if found.keys.is_empty() {
        let own = keys::own_key(sources.own)?;
        found.origin = Origin::Own { path: own.path.clone(), made: own.made };
        found.admit(own);
        return Ok(found);
    }
    let Some(why) = found.why_not_sure() else { return Ok(found) };
    let held = match found.origin {
        Origin::Agent => true,
        _ => found.held_by(sources.agent),
    };
    match found.origin {
        // Whoever named it does not want another; as long as that agent is there nobody needs one.
        Origin::Files if held => return Ok(found),
        _ if held => {}
        _ => found.notes.push(format!("{why}, and no agent holds it: virga's own key gets in as well")),
    }
    found.admit(keys::own_key(sources.own)?);
    Ok(found)
}

impl AuthorizedKeys {
    fn new(lines: Vec<Line>, origin: Origin, notes: Vec<String>) -> Self {
        let lines = once_each(lines);
        let identity = |line: &Line| match &line.private {
            Some(path) => Identity::Private(path.clone()),
            None => Identity::Public(line.key.clone()),
        };
        let identities = lines.iter().map(identity).collect();
        AuthorizedKeys { keys: lines.into_iter().map(|line| line.text).collect(), origin, identities, notes }
    }

    /// Says of whoever has no key that none was found, or none that can be used: then [`notes`](Self::notes) say why.
    #[must_use]
    pub fn none(&self) -> &'static str {
        match self.notes.is_empty() {
            true => "no SSH key of yours was found",
            false => "no SSH key of yours was found that can be read",
        }
    }

    /// Lets virga's own key in, which is tried before any that somebody would have to be asked for.
    fn admit(&mut self, own: keys::OwnKey) {
        self.keys.push(own.public);
        self.identities.insert(0, Identity::Private(own.path));
    }

    /// Why none of the keys opens a guest without anybody's help; `None` when one does.
    fn why_not_sure(&self) -> Option<String> {
        let mut why = None;
        for identity in &self.identities {
            if let Identity::Private(path) = identity {
                match private::why_shut(path) {
                    Some(reason) => why = why.or(Some(reason)),
                    None => return None,
                }
            }
        }
        Some(why.unwrap_or_else(|| "no private half of your SSH keys is here".into()))
    }

    /// Whether the agent holds one of them. One that does not answer holds none.
    fn held_by(&self, agent: Option<&Path>) -> bool {
        let held = agent.and_then(|socket| agent::list(socket).ok()).unwrap_or_default();
        held.iter().any(|key| {
            let encoded = BASE64.encode(&key.blob);
            self.keys.iter().any(|line| line.split(' ').any(|word| word == encoded))
        })
    }
}

/// The user's own keys; none is an empty list. Makes nothing.
///
/// # Errors
/// [`Kind::Usage`] naming file and line when a named file is absent, has no
/// key, or has a line that is not one; [`Kind::TimedOut`] when there is an agent that does not answer.
pub fn find(sources: &Sources) -> Result<AuthorizedKeys> {
    if !sources.files.is_empty() {
        return from_files(sources.files);
    }
    let mut notes = Vec::new();
    let lines = from_agent(sources.agent, &mut notes)?;
    if !lines.is_empty() {
        return Ok(AuthorizedKeys::new(lines, Origin::Agent, notes));
    }
    let lines = from_home(sources.home, &mut notes)?;
    Ok(AuthorizedKeys::new(lines, Origin::Home, notes))
}

fn from_files(files: &[PathBuf]) -> Result<AuthorizedKeys> {
    let mut lines = Vec::new();
    for file in files {
        lines.extend(read_file(file)?);
    }
    Ok(AuthorizedKeys::new(lines, Origin::Files, Vec::new()))
}

fn from_agent(socket: Option<&Path>, notes: &mut Vec<String>) -> Result<Vec<Line>> {
    let Some(socket) = socket else { return Ok(Vec::new()) };
    let held = match agent::list(socket) {
        Ok(held) => held,
        // Somebody is there: other keys in their place would be a guess.
        Err(error) if error.kind() == Kind::TimedOut => return Err(error),
        Err(error) => {
            // A left-over SSH_AUTH_SOCK is common, and no reason to stop.
            notes.push(format!("{error}: its keys are not used"));
            return Ok(Vec::new());
        }
    };
    let mut lines = Vec::new();
    for key in held {
        let kind = String::from_utf8_lossy(take_string(&mut key.blob.as_slice()).unwrap_or_default()).into_owned();
        // An agent lists a certificate beside its key; only the key can be authorized.
        if kind.contains("-cert-v") {
            continue;
        }
        let comment: String = key.comment.chars().filter(|c| !c.is_control()).collect();
        match parse_line(&format!("{kind} {} {comment}", BASE64.encode(&key.blob))) {
            Ok(line) => lines.push(line),
            Err(why) => notes.push(format!("the agent's key {} is not used: {why}", quoted(&comment))),
        }
    }
    Ok(lines)
}

fn from_home(home: Option<&Path>, notes: &mut Vec<String>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let Some(home) = home else { return Ok(lines) };
    let folder = home.join(".ssh");
    let names = fs::list_dir(&folder).unwrap_or_else(|error| {
        // Nobody named this folder either.
        notes.push(format!("{error}: {}: the keys there are not used", error.causes().join(": ")));
        Vec::new()
    });
    for name in names {
        // `id_x-cert.pub` is a certificate: `id_x.pub` is beside it.
        if !name.starts_with("id_") || !name.ends_with(".pub") || name.ends_with("-cert.pub") {
            continue;
        }
        let file = folder.join(name);
        match read_file(&file) {
            Ok(found) => lines.extend(found),
            // Nobody named this file, so it is passed over, but not silently.
            Err(error) => {
                let why: String = error.causes().iter().map(|cause| format!(": {cause}")).collect();
                notes.push(format!("{error}{why}: not used"));
            }
        }
    }
    Ok(lines)
}

/// `id_x` for `id_x.pub`, where it exists. Absolute, for it is used later from other folders.
fn private_half(public: &Path) -> Option<PathBuf> {
    let private = std::path::absolute(public.with_extension("")).ok()?;
    (public.extension()? == "pub" && private.is_file()).then_some(private)
}

fn once_each(mut lines: Vec<Line>) -> Vec<Line> {
    let mut seen = HashSet::new();
    // Stable: of two that are equal, that with a private half stays.
    let halves: HashSet<String> =
        lines.iter().filter(|line| line.private.is_some()).map(|line| line.key.clone()).collect();
    lines.retain(|line| (line.private.is_some() || !halves.contains(&line.key)) && seen.insert(line.key.clone()));
    lines
}

/// The keys in a public key file or an `authorized_keys` file; at least one. The first has the private half that is
/// beside the file.
fn read_file(path: &Path) -> Result<Vec<Line>> {
    let text = given::read_text(path, FILE_LIMIT, "--ssh-public-key-file")?;
    if text.contains("PRIVATE KEY-----") {
        let error = Error::usage(format!("'{}' is a private key", path.display()));
        return Err(error.hint("name the public key: the file that ends in .pub"));
    }
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        lines.push(parse_line(line).map_err(|why| {
            Error::usage(format!("'{}':{} is not an SSH public key: {why}", path.display(), number + 1))
        })?);
    }
    if lines.is_empty() {
        return Err(Error::usage(format!("'{}' has no SSH public key", path.display())));
    }
    // It is that of the first, for `ssh` reads no further.
    lines[0].private = private_half(path);
    Ok(lines)
}

/// One line, tidied; the key alone, for comparing; where its private half is, if that is here.
#[derive(Debug)]
struct Line {
    text: String,
    key: String,
    private: Option<PathBuf>,
}

/// Takes a line of `authorized_keys` apart (sshd(8), "AUTHORIZED_KEYS FILE
/// FORMAT"). `ssh-key`'s own parser refuses options with a blank in quotes,
/// tabs, and leading blanks, all of which sshd accepts.
fn parse_line(line: &str) -> Result<Line, String> {
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err("it has control characters".into());
    }
    let (options, rest) = match split_word(line) {
        (word, rest) if is_key_type(word) => ("", [word, " ", rest].concat()),
        _ => {
            let end = end_of_options(line).ok_or("it has an open quote")?;
            (&line[..end], line[end..].to_owned())
        }
    };
    let (kind, rest) = split_word(&rest);
    let (encoded, comment) = split_word(rest);
    if !is_key_type(kind) || encoded.is_empty() {
        return Err("there is no key type followed by a key".into());
    }
    check_key(kind, encoded)?;
    let key = format!("{kind} {encoded}");
    let words = [options, &key, comment.trim_end()];
    let text = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    Ok(Line { text, key, private: None })
}

/// The first word, and what follows the blanks after it.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches([' ', '\t']);
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start_matches([' ', '\t']))
}

fn is_key_type(word: &str) -> bool {
    let known = ["ssh-", "ecdsa-", "sk-", "webauthn-"].iter().any(|prefix| word.starts_with(prefix));
    known && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'@'))
}

/// Where the options end: the first blank outside quotes; `None` when a quote is left open.
fn end_of_options(line: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b' ' | b'\t' if !quoted => return Some(at),
            _ => {}
        }
    }
    (!quoted).then_some(line.len())
}

fn check_key(kind: &str, encoded: &str) -> Result<(), String> {
    if kind == "ssh-dss" {
        return Err("OpenSSH no longer accepts DSA keys".into());
    }
    if kind.contains("-cert-v") {
        return Err("it is a certificate; name the public key that it certifies".into());
    }
    let blob = BASE64.decode(encoded).map_err(|_| "the key is not whole base64")?;
    // The type stands in the key itself too, and sshd compares (RFC 4253 section 6.6).
    if take_string(&mut blob.as_slice()) != Some(kind.as_bytes()) {
        return Err(format!("the key is not of the type {}", quoted(kind)));
    }
    let known = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-ed25519@", "sk-ecdsa-sha2-"];
    if known.iter().any(|prefix| kind.starts_with(prefix)) {
        ssh_key::PublicKey::from_openssh(&format!("{kind} {encoded}")).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
