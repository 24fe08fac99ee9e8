//! `known_hosts`: the only keys by which a guest is recognised.

use std::path::Path;

use crate::base::name::quoted;
use crate::base::{Error, GuestName, Result, fs};

/// What virga injects where a record does not say.
const USUAL: [&str; 2] = ["ssh-ed25519", "ecdsa-sha2-nistp256"];

/// The guest's host keys as `HostKeyAlgorithms`: a guest that offers another one is not ours. `public_keys` are lines as
/// in [`lines`], of any kind.
#[must_use]
pub fn algorithms<S: AsRef<str>>(public_keys: &[S]) -> String {
    let plain = |kind: &&str| kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"-@.".contains(&b));
    let kinds = public_keys.iter().filter_map(|line| line.as_ref().split_ascii_whitespace().next()).filter(plain);
    let mut algorithms: Vec<&str> = Vec::new();
    for kind in kinds {
        let of_kind: &[&str] = match kind {
            // One kind of key, several ways to sign. What it is called after is SHA-1, which OpenSSH takes no more.
            "ssh-rsa" => &["rsa-sha2-512", "rsa-sha2-256"],
            // One that `ssh` does not know it would end with.
            "ssh-dss" => &[],
            kind => &[kind],
        };
        algorithms.extend(of_kind.iter().filter(|name| !algorithms.contains(name)).collect::<Vec<_>>());
    }
    if algorithms.is_empty() { USUAL.join(",") } else { algorithms.join(",") }
}

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
    fn each_kind_of_key_has_its_algorithms_and_ssh_knows_them() {
        let of = |kinds: &[&str]| algorithms(&kinds.iter().map(|kind| format!("{kind} AAAA")).collect::<Vec<_>>());
        for (kinds, wanted) in [
            (&["ssh-rsa"][..], "rsa-sha2-512,rsa-sha2-256"),
            (&["ecdsa-sha2-nistp384", "ssh-ed25519"], "ecdsa-sha2-nistp384,ssh-ed25519"),
            (
                &["ecdsa-sha2-nistp521", "ssh-rsa", "ecdsa-sha2-nistp521"],
                "ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256",
            ),
            (&["ssh-dss", "ssh-ed25519"], "ssh-ed25519"),
            (&["ssh-dss"], "ssh-ed25519,ecdsa-sha2-nistp256"),
            (&["-oProxyCommand=x,y"], "ssh-ed25519,ecdsa-sha2-nistp256"),
            (&[], "ssh-ed25519,ecdsa-sha2-nistp256"),
        ] {
            assert_eq!(of(kinds), wanted, "{kinds:?}");
            let option = format!("HostKeyAlgorithms={wanted}");
            Cmd::new("ssh").args(["-G", "-F", "/dev/null", "-o", &option, "host"]).run().unwrap();
        }
    }

    #[test]
    fn a_line_without_a_key_is_refused() {
        for bad in ["", "ssh-ed25519", "  "] {
            assert!(lines("a", &[bad]).is_err(), "{bad:?}");
        }
    }
}
