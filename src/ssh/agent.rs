//! Asking an SSH agent which keys it holds
//! (draft-ietf-sshm-ssh-agent, section 3.5: `SSH_AGENTC_REQUEST_IDENTITIES`).

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

#[cfg(doc)]
use crate::base::Kind;
use crate::base::{Context as _, Error, Result};

/// Length 1, then message 11.
const REQUEST: [u8; 5] = [0, 0, 0, 1, 11];
/// `SSH_AGENT_IDENTITIES_ANSWER`
const ANSWER: u8 = 12;
/// The most that OpenSSH's own client accepts.
const ANSWER_LIMIT: usize = 256 << 10;
/// A local agent answers in under a millisecond, a forwarded one needs a round trip. That one does not is told only
/// after this: who gets in must not depend on how busy a machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// One key that an agent holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AgentKey {
    /// The public key in SSH wire format.
    pub blob: Vec<u8>,
    /// What the user called it.
    pub comment: String,
}

/// The keys of the agent behind `socket`.
///
/// # Errors
/// [`Kind::TimedOut`] when it does not answer within half a minute; [`Kind::Failed`] when there is no agent, or it
/// answers nonsense.
pub(super) fn list(socket: &Path) -> Result<Vec<AgentKey>> {
    list_within(socket, PATIENCE)
}

fn list_within(socket: &Path, patience: Duration) -> Result<Vec<AgentKey>> {
    // On a thread, because connecting to a full socket and every single read may block for good.
    let (sender, receiver) = mpsc::channel();
    let path: PathBuf = socket.to_owned();
    std::thread::spawn(move || sender.send(ask(&path, patience)));
    let answer = match receiver.recv_timeout(patience) {
        Err(_) => return Err(silent(socket)),
        // Its thread's limit passed before this one woke.
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            return Err(silent(socket));
        }
        Ok(answer) => answer.context(|| format!("asking the SSH agent at '{}'", socket.display()))?,
    };
    parse(&answer).ok_or_else(|| Error::failed(format!("the SSH agent at '{}' answers nonsense", socket.display())))
}

fn silent(socket: &Path) -> Error {
    Error::timed_out(format!("the SSH agent at '{}' does not answer", socket.display()))
        .hint("say which keys get in with '--ssh-public-key-file FILE', or leave the agent out: unset SSH_AUTH_SOCK")
}

fn ask(socket: &Path, patience: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    // Not as long as whoever waits for this: that it was silent is for them to say.
    stream.set_read_timeout(Some(patience * 2))?;
    stream.set_write_timeout(Some(patience * 2))?;
    stream.write_all(&REQUEST)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > ANSWER_LIMIT {
        return Err(std::io::Error::other("the answer is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<Vec<AgentKey>> {
    let (kind, mut rest) = answer.split_first()?;
    if *kind != ANSWER {
        return None;
    }
    let (count, tail) = rest.split_first_chunk()?;
    rest = tail;
    let mut keys = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let blob = take_string(&mut rest)?.to_vec();
        let comment = String::from_utf8_lossy(take_string(&mut rest)?).into_owned();
        keys.push(AgentKey { blob, comment });
    }
    Some(keys)
}

/// Takes a length-prefixed string off the front (RFC 4251 section 5).
pub(super) fn take_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (string, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *bytes = rest;
    Some(string)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::base::Kind;

    #[test]
    fn answers() {
        let good = b"\x0c\0\0\0\x01\0\0\0\x02ab\0\0\0\x01c";
        assert_eq!(parse(good).unwrap(), [AgentKey { blob: b"ab".to_vec(), comment: "c".into() }]);
        assert_eq!(parse(b"\x0c\0\0\0\0").unwrap(), []);
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_none(), "cut at {cut}");
        }
        // 5 is SSH_AGENT_FAILURE; a count of four thousand million must not be believed.
        for bad in [&b"\x05"[..], b"", b"\x0c\xff\xff\xff\xff", b"\x0c\0\0\0\x01\xff\xff\xff\xff"] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_silent_or_boasting_agent_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        assert!(list(&path).is_err(), "no agent");
        let listener = UnixListener::bind(&path).unwrap();
        // It accepts and never says a word: without a limit this would not come back.
        let error = list_within(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        assert!(error.hints()[0].contains("--ssh-public-key-file"), "{error}");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map(Result::unwrap) {
                // Asked first: one that hangs up on a question is another matter.
                let _ = stream.read_exact(&mut [0; REQUEST.len()]).and_then(|()| stream.write_all(&[0xff; 4]));
            }
        });
        let error = list(&path).unwrap_err();
        assert_eq!(error.causes(), ["the answer is too long"], "a length of 4 GiB");
    }
}
