//! `known_hosts`: the only keys by which a guest is recognised.

use std::path::Path;

use crate::base::name::quoted;
use crate::base::{Error, GuestName, Result, fs};

/// The key types that virga injects, for `HostKeyAlgorithms`: a guest that
/// offers another one is not ours.
pub const ALGORITHMS: &str = "ssh-ed25519,ecdsa-sha2-nistp256";

/// The name under which a guest's keys are filed. It stands for the guest and
/// not for an address, so ports may change hands without a false alarm or a
/// false match.
#[must_use]
pub fn alias(name: &GuestName) -> String {
    format!("virga-{name}")
}

/// The file's text (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): one line a key.
///
/// # Errors
/// When a public line is not `TYPE BASE64 [COMMENT]`.
pub fn lines(alias: &str, public_keys: &[&str]) -> Result<String> {
    let mut text = String::new();
    for line in public_keys {
        let mut words = line.split_ascii_whitespace();
        let (Some(kind), Some(key)) = (words.next(), words.next()) else {
            return Err(Error::failed(format!("{} is not a public key", quoted(line))));
        };
        text.push_str(&format!("{alias} {kind} {key}\n"));
    }
    Ok(text)
}

/// Writes the file, replacing an older one whole.
///
/// # Errors
/// As [`lines`], and when it cannot be written.
pub fn write(path: &Path, alias: &str, public_keys: &[&str]) -> Result<()> {
    fs::write_atomic(path, lines(alias, public_keys)?.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::cmd::Cmd;
    use crate::ssh::keys::HostKeys;

    #[test]
    fn ssh_keygen_finds_the_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known_hosts");
        let keys = HostKeys::generate("root@web").unwrap();
        let alias = alias(&"web".parse().unwrap());
        write(&path, &alias, &keys.public_lines()).unwrap();

        let find = |name: &str| {
            let output = Cmd::new("ssh-keygen").args(["-F", name, "-f"]).arg(&path).output();
            let output = output.expect("needs ssh-keygen (package openssh-client)");
            (output.status.success(), output.text())
        };
        let (found, text) = find("virga-web");
        assert!(found);
        for line in keys.public_lines() {
            let bare = line.strip_suffix(" root@web").unwrap();
            assert!(text.contains(&format!("virga-web {bare}\n")), "{text}");
        }
        assert!(!find("virga-web2").0);

        let list = Cmd::new("ssh-keygen").args(["-l", "-f"]).arg(&path).run().unwrap().text();
        assert!(list.contains("(ED25519)") && list.contains("(ECDSA)"), "{list}");
        assert_eq!(list.lines().count(), 2);
    }

    #[test]
    fn a_line_without_a_key_is_refused() {
        for bad in ["", "ssh-ed25519", "  "] {
            assert!(lines("a", &[bad]).is_err(), "{bad:?}");
        }
    }
}
