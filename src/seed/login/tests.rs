use rstest::rstest;

use super::super::yaml;
use super::*;
use crate::base::Kind;

fn document(text: &str) -> Value {
    yaml::parse(text, "the test").unwrap()
}

fn keys() -> Vec<String> {
    vec!["ssh-ed25519 OURS".into()]
}

#[rstest]
#[case::nothing("{}", None)]
#[case::default_listed("users: [default, {name: joe}]", None)]
#[case::unnamed_is_default("users: [{sudo: true}]", None)]
#[case::text_with_default("users: 'joe, default'", None)]
#[case::mapping_with_default("users: {default: true, joe: {}}", None)]
#[case::old_user("user: ann", Some("ann"))]
#[case::old_user_mapping("{user: {name: ann}, users: [{name: joe}]}", Some("ann"))]
#[case::renamed_default("system_info: {default_user: {name: ops}}", Some("ops"))]
#[case::renamed_and_listed("{system_info: {default_user: {name: ops}}, users: [default]}", Some("ops"))]
#[case::no_users_key("users:", None)]
fn the_default_user_keeps_our_keys(#[case] text: &str, #[case] login: Option<&str>) {
    let access = decide(&[&document(text)], &keys(), None);
    assert_eq!(access.login_user.as_deref(), login);
    assert!(access.for_default_user && access.users.is_none() && access.warnings.is_empty(), "{:?}", access.warnings);
}

#[rstest]
#[case::only_one("users: [{name: joe}]", "joe", 0)]
#[case::root_last("users: [{name: root}, {name: joe}]", "joe", 1)]
#[case::root_alone("users: [{name: root}]", "root", 0)]
#[case::name_alone("users: [joe]", "joe", 0)]
#[case::names_as_text("users: 'joe,ann'", "joe", 0)]
#[case::by_name("users: {joe: {shell: /bin/bash}, ann: true}", "joe", 0)]
#[case::skips_who_cannot(
    "users: [{name: a, system: true}, {name: b, inactive: yes}, {name: c, shell: /usr/sbin/nologin}, \
     {name: d, no-create-home: true}, {name: joe}]",
    "joe",
    4
)]
fn a_list_without_default_gets_our_keys(#[case] text: &str, #[case] login: &str, #[case] at: usize) {
    let access = decide(&[&document(text)], &keys(), Some("secret"));
    assert_eq!(access.login_user.as_deref(), Some(login));
    assert!(!access.for_default_user);
    let users = access.users.unwrap();
    assert_eq!(users[at]["name"], login);
    assert_eq!(users[at]["ssh_authorized_keys"], json!(keys()));
    assert_eq!(users[at]["plain_text_passwd"], "secret");
    assert_eq!(users[at]["lock_passwd"], false);
    let others = users.as_array().unwrap().iter().filter(|user| user["name"] != login);
    assert!(others.into_iter().all(|user| user.get("ssh_authorized_keys").is_none()));
    assert!(access.warnings[0].contains(&format!("go to '{login}'")), "{:?}", access.warnings);
}

#[test]
fn their_own_keys_stay_and_ours_come_once() {
    for text in [
        "users: [{name: joe, uid: 1200, ssh_authorized_keys: [theirs]}]",
        "users: [{name: joe, uid: 1200, ssh-authorized-keys: [theirs, ssh-ed25519 OURS]}]",
        "users: [{name: joe, uid: 1200, ssh_authorized_keys: \"theirs\\nssh-ed25519 OURS\"}]",
    ] {
        let users = decide(&[&document(text)], &keys(), None).users.unwrap();
        let wanted = json!([{"name": "joe", "uid": 1200, "ssh_authorized_keys": ["theirs", "ssh-ed25519 OURS"]}]);
        assert_eq!(users, wanted, "{text}");
    }
}

#[test]
fn a_hashed_password_stays_hashed() {
    let text = document("users: [{name: joe, plain_text_passwd: x, lock-passwd: true}]");
    let users = decide(&[&text], &[], Some("$6$salt$hash")).users.unwrap();
    let wanted = json!([{"name": "joe", "passwd": "$6$salt$hash", "lock_passwd": false, "ssh_authorized_keys": []}]);
    assert_eq!(users, wanted);
}

#[test]
fn nobody_to_log_in_as_is_said() {
    for text in ["users: []", "users: [{name: a, system: true}]"] {
        let access = decide(&[&document(text)], &keys(), None);
        assert_eq!(access.login_user, None);
        assert!(access.warnings[0].contains("SSH will not let anyone in"), "{:?}", access.warnings);
    }
}

#[test]
fn the_last_document_decides_unless_it_has_rules_of_its_own() {
    let (one, two) = (document("users: [{name: joe}]"), document("users: [default]"));
    assert_eq!(decide(&[&one, &two], &keys(), None).login_user, None);
    assert_eq!(decide(&[&two, &one], &keys(), None).login_user.as_deref(), Some("joe"));
    let rules = document("{merge_how: 'list(append)', users: [{name: joe}]}");
    let access = decide(&[&two, &rules], &keys(), None);
    assert!(access.login_user.is_none() && access.for_default_user);
}

fn pair() -> (String, String) {
    let key = PrivateKey::random(&mut rand_core::OsRng, ssh_key::Algorithm::Ed25519).unwrap();
    let public = key.public_key().to_openssh().unwrap();
    (key.to_openssh(ssh_key::LineEnding::LF).unwrap().to_string(), public)
}

fn ours() -> Vec<HostKey> {
    let (private_openssh, public) = pair();
    vec![HostKey { kind: super::super::HostKeyKind::Ed25519, private_openssh, public_openssh: public + " made here" }]
}

#[test]
fn our_host_keys_are_injected_and_known_without_comment() {
    let ours = ours();
    for text in ["{}", "ssh_keys:", "ssh_keys: {ed25519_certificate: x}"] {
        let keys = host_keys(&[&document(text)], &ours).unwrap();
        let inject = keys.inject.unwrap();
        assert_eq!(inject["ed25519_private"], ours[0].private_openssh);
        assert_eq!(inject["ed25519_public"], ours[0].public_openssh);
        assert_eq!(format!("{} made here", keys.public[0]), ours[0].public_openssh);
    }
}

#[test]
fn host_keys_of_the_user_are_taken_over() {
    let (private, public) = pair();
    for theirs in [
        json!({"ssh_keys": {"ed25519_private": private}}),
        json!({"ssh_keys": {"ed25519_private": private, "ed25519_public": format!("{public} x@y")}}),
        json!({"ssh_keys": {"ed25519_private": "an older PEM form", "ed25519_public": public}}),
    ] {
        let keys = host_keys(&[&theirs], &ours()).unwrap();
        assert!(keys.inject.is_none());
        assert_eq!(keys.public, std::slice::from_ref(&public));
        assert!(keys.warnings[0].contains("of its own"));
    }
}

#[test]
fn host_keys_that_cannot_be_verified_are_refused() {
    let ((private, _), (_, other)) = (pair(), pair());
    for (theirs, reason) in [
        (json!({"ssh_keys": {"rsa_private": "an older PEM form"}}), "cannot be read"),
        (json!({"ssh_keys": {"ed25519_private": private, "ed25519_public": other}}), "does not belong"),
        (json!({"ssh_keys": {"rsa_private": "x", "rsa_public": "nonsense"}}), "not an SSH public key"),
        (json!({"ssh_keys": ["x"]}), "not a mapping"),
    ] {
        let error = host_keys(&[&theirs], &ours()).err().unwrap();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(reason), "{error}");
    }
}
