use rstest::rstest;

use super::super::yaml;
use super::*;

fn document(text: &str) -> Config {
    Config::plain(yaml::parse(text, "the test").unwrap(), false)
}

fn unknown(text: &str) -> Config {
    Config::Unknown { what: "the user-data 'j'".into(), text: text.into() }
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
fn the_default_user_keeps_our_keys(#[case] text: &str, #[case] login: Option<&str>) {
    let access = decide(&[document(text)], &keys(), None);
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
    let access = decide(&[document(text)], &keys(), Some("secret"));
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
        let users = decide(&[document(text)], &keys(), None).users.unwrap();
        let wanted = json!([{"name": "joe", "uid": 1200, "ssh_authorized_keys": ["theirs", "ssh-ed25519 OURS"]}]);
        assert_eq!(users, wanted, "{text}");
    }
}

#[test]
fn a_hashed_password_stays_hashed() {
    let text = document("users: [{name: joe, plain_text_passwd: x, lock-passwd: true}]");
    let users = decide(&[text], &[], Some("$6$salt$hash")).users.unwrap();
    let wanted =
        json!([{"name": "joe", "hashed_passwd": "$6$salt$hash", "lock_passwd": false, "ssh_authorized_keys": []}]);
    assert_eq!(users, wanted);
}

#[test]
fn nobody_to_log_in_as_is_said() {
    for text in ["users: []", "users: [{name: a, system: true}]"] {
        let access = decide(&[document(text)], &keys(), None);
        assert_eq!(access.login_user, None);
        assert!(access.warnings[0].contains("SSH will not let anyone in"), "{:?}", access.warnings);
    }
}

/// cloud-init would make no user at all of it.
#[test]
fn a_users_key_without_a_value_is_filled_in() {
    let access = decide(&[document("users:")], &keys(), None);
    assert_eq!((access.users, access.for_default_user, access.login_user), (Some(json!(["default"])), true, None));
    assert_eq!(decide(&[document("users:")], &[], None).users, None);
}

#[test]
fn the_last_document_decides_unless_it_has_rules_of_its_own() {
    let (one, two) = (|| document("users: [{name: joe}]"), || document("users: [default]"));
    assert_eq!(decide(&[one(), two()], &keys(), None).login_user, None);
    assert_eq!(decide(&[two(), one()], &keys(), None).login_user.as_deref(), Some("joe"));
    let rules = || document("{merge_how: 'list(append)', users: [{name: joe}]}");
    let access = decide(&[two(), rules()], &keys(), None);
    assert!(access.login_user.is_none() && access.for_default_user && access.warnings.is_empty());
    // In neither of the two.
    let access = decide(&[one(), rules()], &keys(), None);
    assert!(access.add_default && access.warnings[0].contains("'default' is added"), "{:?}", access.warnings);
}

#[rstest]
#[case::list("users:\n- name: joe\n  shell: {{ x }}\n", true)]
#[case::flow("{users: [{name: joe}]}", true)]
#[case::quoted("\"users\" : [joe]", true)]
#[case::in_a_condition("{% if x %}\nusers: [joe]\n{% endif %}\n", true)]
#[case::a_patch("#cloud-config-jsonp\n[{ \"op\": \"add\", \"path\": \"/users\", \"value\": [] }]", true)]
#[case::default_is_there("users:\n- default\n- name: joe\n", false)]
#[case::default_in_a_flow("users: [default, {name: joe}]", false)]
fn a_list_that_only_the_guest_knows_gets_default(#[case] text: &str, #[case] told: bool) {
    let access = decide(&[unknown(text)], &keys(), None);
    assert!(access.add_default && access.for_default_user && access.users.is_none());
    assert_eq!(access.warnings.len(), usize::from(told), "{:?}", access.warnings);
    assert!(access.warnings.iter().all(|warning| warning.contains("the user-data 'j'")));
    // Without keys there is nobody to let in.
    assert!(!decide(&[unknown(text)], &[], None).add_default);
}

#[rstest]
#[case("hostname: {{ x }}\n")]
#[case("system_users: [a]\nusers_file: b\n# users are elsewhere\n")]
fn a_text_without_users_changes_nothing(#[case] text: &str) {
    let access = decide(&[unknown(text)], &keys(), None);
    assert!(!access.add_default && access.for_default_user && access.warnings.is_empty());
}

#[test]
fn what_the_guest_fetches_may_bring_users() {
    let access = decide(&[Config::Unseen], &keys(), None);
    assert!(access.add_default && access.for_default_user && access.warnings.is_empty());
    // A list that is known takes the place of whatever was fetched.
    let access = decide(&[Config::Unseen, document("users: [joe]")], &keys(), None);
    assert!(!access.add_default && access.users.is_some());
}

#[test]
fn a_document_behind_one_that_is_not_known_decides() {
    let access = decide(&[unknown("users: [{{ x }}]"), document("users: [joe]")], &keys(), None);
    assert_eq!((access.login_user.as_deref(), access.add_default), (Some("joe"), false));
    let access = decide(&[document("users: [joe]"), unknown("users: [{{ x }}]")], &keys(), None);
    assert_eq!((access.login_user, access.add_default, access.users), (None, true, None));
}
