//! Beside OpenSSH, whose keys they are.

use std::path::Path;

use rstest::rstest;

use super::super::{HostKeyKind, yaml};
use super::*;
use crate::base::fs;

fn config(document: Value) -> [Config; 1] {
    [Config::plain(document, false)]
}

fn ours() -> Vec<HostKey> {
    let key = ssh_key::PrivateKey::random(&mut rand_core::OsRng, ssh_key::Algorithm::Ed25519).unwrap();
    let public_openssh = key.public_key().to_openssh().unwrap() + " made here";
    let private_openssh = key.to_openssh(ssh_key::LineEnding::LF).unwrap().to_string();
    vec![HostKey { kind: HostKeyKind::Ed25519, private_openssh, public_openssh }]
}

/// A key pair as `ssh-keygen` makes it: the private file's text, and the public line without its comment.
fn made(folder: &Path, options: &[&str]) -> (String, String) {
    let path = folder.join("key");
    fs::remove_file(&path).unwrap();
    Cmd::new("ssh-keygen").args(["-q", "-N", "", "-C", "x@y", "-f"]).arg(&path).args(options).run().unwrap();
    let public = fs::read_text(&path.with_extension("pub"), 10_000).unwrap();
    (fs::read_text(&path, 10_000).unwrap(), public.trim_end().strip_suffix(" x@y").unwrap().to_owned())
}

#[test]
fn our_host_keys_are_injected_and_known_without_comment() {
    let ours = ours();
    for text in ["{}", "ssh_keys:", "ssh_keys: {ed25519_certificate: x}"] {
        let keys = host_keys(&config(yaml::parse(text, "it").unwrap()), &ours).unwrap();
        let inject = keys.inject.unwrap();
        assert_eq!(inject["ed25519_private"], ours[0].private_openssh);
        assert_eq!(inject["ed25519_public"], ours[0].public_openssh);
        assert_eq!(format!("{} made here", keys.public[0]), ours[0].public_openssh);
        assert_eq!(keys.warnings, Vec::<String>::new());
    }
}

/// Of every kind and in every form that `ssh-keygen` writes, with the public half and without.
#[rstest]
#[case::ed25519("ed25519", &["-t", "ed25519"])]
#[case::rsa("rsa", &["-t", "rsa", "-b", "2048"])]
#[case::rsa_as_pem("rsa", &["-t", "rsa", "-b", "2048", "-m", "PEM"])]
#[case::rsa_as_pkcs8("rsa", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"])]
#[case::p256_as_pem("ecdsa", &["-t", "ecdsa", "-b", "256", "-m", "PEM"])]
#[case::p384("ecdsa", &["-t", "ecdsa", "-b", "384"])]
#[case::p521("ecdsa", &["-t", "ecdsa", "-b", "521"])]
#[case::p521_as_pkcs8("ecdsa", &["-t", "ecdsa", "-b", "521", "-m", "PKCS8"])]
#[case::under_another_name("ecdsa", &["-t", "rsa", "-b", "2048"])]
fn host_keys_of_the_user_are_taken_over(#[case] name: &str, #[case] options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (private, public) = made(folder.path(), options);
    let (private_key, public_key) = (format!("{name}_private"), format!("{name}_public"));
    for theirs in [
        json!({"ssh_keys": {&private_key: private}}),
        json!({"ssh_keys": {&private_key: private, &public_key: format!("{public} root@host")}}),
        json!({"ssh_keys": {"rsa_certificate": "ssh-rsa-cert-v01@openssh.com AAAA", &private_key: private}}),
    ] {
        // As it arrives: through YAML.
        let theirs = yaml::parse(&yaml::write(&theirs).unwrap(), "it").unwrap();
        let keys = host_keys(&config(theirs), &ours()).unwrap();
        assert!(keys.inject.is_none());
        assert_eq!(keys.public, std::slice::from_ref(&public));
        assert!(keys.warnings[0].contains("of its own"));
    }
}

#[test]
fn several_are_all_known_and_what_cloud_init_passes_over_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (rsa, p384) =
        (made(folder.path(), &["-t", "rsa", "-b", "2048"]), made(folder.path(), &["-t", "ecdsa", "-b", "384"]));
    let theirs = json!({"ssh_keys": {
        "rsa_private": rsa.0, "dsa_private": "whatever", "ecdsa_private": p384.0, "ed25519-sk_private": "whatever",
    }});
    let keys = host_keys(&config(theirs), &ours()).unwrap();
    assert_eq!(keys.public, [rsa.1, p384.1]);
    assert!(
        keys.warnings[0].contains("DSA") && keys.warnings[1].contains("'ed25519-sk_private'"),
        "{:?}",
        keys.warnings
    );

    // With none that counts the guest would have no host key at all.
    let keys = host_keys(&config(json!({"ssh_keys": {"dsa_private": "whatever"}})), &ours()).unwrap();
    assert!(keys.inject.is_some() && keys.warnings[0].contains("DSA"), "{:?}", keys.warnings);
}

#[test]
fn host_keys_that_only_the_guest_knows_give_way() {
    let text = "ssh_keys:\n  rsa_private: {{ x }}\n".to_owned();
    let keys = host_keys(&[Config::Unknown { what: "the user-data 'j'".into(), text }], &ours()).unwrap();
    assert!(keys.inject.is_some() && keys.warnings[0].contains("the user-data 'j'"), "{:?}", keys.warnings);
}

#[test]
fn host_keys_that_sshd_could_not_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (private, _) = made(folder.path(), &["-t", "ed25519"]);
    let (_, other) = made(folder.path(), &["-t", "ed25519"]);
    let path = folder.path().join("locked");
    Cmd::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "secret", "-f"]).arg(&path).run().unwrap();
    let locked = fs::read_text(&path, 10_000).unwrap();
    for (theirs, reason, hint) in [
        (json!({"ssh_keys": {"rsa_private": "nonsense\n"}}), "OpenSSH cannot read", "line by line"),
        (json!({"ssh_keys": {"ed25519_private": locked}}), "OpenSSH cannot read", "passphrase"),
        (json!({"ssh_keys": {"ed25519_private": private.trim_end()}}), "OpenSSH cannot read", "ed25519_private: |"),
        (json!({"ssh_keys": {"ed25519_private": 5}}), "OpenSSH cannot read", ""),
        (json!({"ssh_keys": {"ed25519_private": private, "ed25519_public": other}}), "does not belong", ""),
        (json!({"ssh_keys": {"rsa_private": private, "rsa_public": "nonsense"}}), "not an SSH public key", ""),
        (json!({"ssh_keys": ["x"]}), "not a mapping", ""),
    ] {
        let error = host_keys(&config(theirs), &ours()).err().unwrap();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(reason), "{error}");
        assert!(hint.is_empty() || error.hints().iter().any(|text| text.contains(hint)), "{:?}", error.hints());
    }
}
