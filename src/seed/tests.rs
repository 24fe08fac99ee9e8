//! Read back by what the guest reads with: Python's `email` and PyYAML.

mod packed;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::base::cmd::Cmd;
use crate::base::{Kind, fs};

const OUR_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0M me@host";

fn request() -> SeedRequest {
    let key = ssh_key::PrivateKey::random(&mut rand_core::OsRng, ssh_key::Algorithm::Ed25519).unwrap();
    SeedRequest {
        name: "web1".parse().unwrap(),
        instance_id: InstanceId::try_from("00000000-0000-4000-8000-000000000001".to_owned()).unwrap(),
        macs: vec!["52:54:00:12:34:56".parse().unwrap()],
        cards_have_names: false,
        host_keys: vec![HostKey {
            kind: HostKeyKind::Ed25519,
            private_openssh: key.to_openssh(ssh_key::LineEnding::LF).unwrap().to_string(),
            public_openssh: key.public_key().to_openssh().unwrap(),
        }],
        authorized_keys: vec![OUR_KEY.into()],
        password: None,
        packages: Vec::new(),
        run_scripts_once: Vec::new(),
        user_data: Vec::new(),
        meta_data: None,
        network_config: None,
    }
}

fn with_user_data(texts: &[&[u8]]) -> SeedRequest {
    let part = |(number, bytes): (usize, &&[u8])| UserPart { name: format!("file {number}"), bytes: bytes.to_vec() };
    SeedRequest { user_data: texts.iter().enumerate().map(part).collect(), ..request() }
}

fn file(seed: &Seed, name: &str) -> Vec<u8> {
    seed.files.iter().find(|(file, _)| file == name).unwrap().1.clone()
}

/// Runs `code` with the file's bytes as `data`; `out` is returned.
pub(super) fn python(code: &str, data: &[u8]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    fs::write_new(&path, data, 0o600).unwrap();
    let code =
        format!("import sys, json, email, yaml\ndata = open(sys.argv[1], 'rb').read()\n{code}\nprint(json.dumps(out))");
    // The system's Python has PyYAML (package python3-yaml); others on PATH may not.
    let output = Cmd::new("/usr/bin/python3").args(["-c", &code]).arg(&path).run();
    let text = output.unwrap_or_else(|error| panic!("python3 with PyYAML: {:?}", error.causes())).text();
    serde_json::from_str(&text).unwrap()
}

pub(super) fn pyyaml(data: &[u8]) -> Value {
    python("out = yaml.safe_load(data)", data)
}

/// Type, file name, merge rule and content of every part, as cloud-init takes a message apart.
fn parts(seed: &Seed) -> Vec<[String; 4]> {
    let code = "
message = email.message_from_string(data.decode('utf-8'))
out = [[p.get_content_type(), p.get_filename() or '', p.get('Merge-Type', ''),
        p.get_payload(decode=True).decode('utf-8', 'backslashreplace')]
       for p in message.walk() if p.get_content_maintype() != 'multipart']";
    serde_json::from_value(python(code, &file(seed, "user-data"))).unwrap()
}

fn part<'a>(parts: &'a [[String; 4]], name: &str) -> &'a [String; 4] {
    parts.iter().find(|part| part[1] == name).unwrap_or_else(|| panic!("no part {name} in {parts:?}"))
}

#[test]
fn without_user_data_it_is_one_plain_document() {
    let mut request = request();
    request.packages = vec!["htop".into(), "linux-image-amd64=6.1".into()];
    request.password = Some("1:30".into());
    let seed = build(&request).unwrap();
    let names: Vec<&str> = seed.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["meta-data", "user-data", "network-config", "vendor-data"]);
    assert!(file(&seed, "user-data").starts_with(b"#cloud-config\n"));
    assert_eq!(
        pyyaml(&file(&seed, "user-data")),
        json!({
            "ssh_authorized_keys": [OUR_KEY],
            "packages": ["htop", "linux-image-amd64=6.1"],
            "chpasswd": {"expire": false},
            "password": "1:30",
            "ssh_pwauth": true,
            "ssh_keys": {
                "ed25519_private": request.host_keys[0].private_openssh,
                "ed25519_public": request.host_keys[0].public_openssh,
            },
        })
    );
    assert_eq!(
        pyyaml(&file(&seed, "meta-data")),
        json!({"instance-id": request.instance_id.as_str(), "local-hostname": "web1", "public-keys": [OUR_KEY]})
    );
    let network = pyyaml(&file(&seed, "network-config"));
    assert_eq!(network["version"], 2);
    assert_eq!(network["ethernets"]["eth0"]["match"], json!({"macaddress": "52:54:00:12:34:56"}));
    let defaults = json!({"manage_etc_hosts": "localhost", "ssh_deletekeys": true});
    assert_eq!(pyyaml(&file(&seed, "vendor-data")), defaults);
    assert!(file(&seed, "vendor-data").starts_with(b"#cloud-config\n"));
    assert_eq!(seed.host_public_keys, [request.host_keys[0].public_openssh.clone()]);
}

#[test]
fn hostile_text_arrives_as_it_was_given() {
    let long = "a  b ".repeat(60);
    let hostile = [
        "yes",
        "no",
        "on",
        "y",
        "null",
        "~",
        "1:30",
        "12:30:45",
        "0644",
        "0o17",
        "0x1f",
        "1_000",
        "1e3",
        ".5",
        ".nan",
        "2012-01-01",
        "=",
        "<<",
        "-",
        "- a",
        "? a",
        "a: b",
        "a #b",
        "#a",
        "'",
        "\"",
        "it's \"x\"",
        " lead",
        "trail ",
        "*a",
        "&a",
        "!a",
        "!!int 3",
        "%a",
        "@a",
        "`a",
        "{",
        "}",
        "[]",
        "{a: b}",
        "|",
        ">",
        "a\\nb",
        "é€😀",
        "\u{a0}x",
        "a\u{2028}b",
        "\u{feff}a",
        "---",
        "...",
        "${HOME}",
        "{{ v1.name }}",
        &long,
    ];
    let mut request = request();
    request.authorized_keys = hostile.iter().map(|text| (*text).to_owned()).collect();
    let read = pyyaml(&file(&build(&request).unwrap(), "user-data"));
    assert_eq!(read["ssh_authorized_keys"], json!(hostile.as_slice()));
    request.user_data = with_user_data(&[b"#!/bin/sh\n"]).user_data;
    let parts = parts(&build(&request).unwrap());
    let read = pyyaml(part(&parts, "virga-additions")[3].as_bytes());
    assert_eq!(read["ssh_authorized_keys"], json!(hostile.as_slice()));
    for password in hostile {
        request.user_data.clear();
        request.authorized_keys.clear();
        request.password = Some(password.to_owned());
        let text = String::from_utf8(file(&build(&request).unwrap(), "user-data")).unwrap();
        assert_eq!(yaml::parse(&text, "ours").unwrap()["password"], password);
    }
}

#[test]
fn options_that_would_not_arrive_are_refused() {
    type Change = fn(&mut SeedRequest, &str);
    let key: Change = |request, text| request.authorized_keys.push(text.into());
    let package: Change = |request, text| request.packages.push(text.into());
    let password: Change = |request, text| request.password = Some(text.into());
    let script: Change = |request, text| request.run_scripts_once.push(Script { name: "s".into(), bytes: text.into() });
    let meta: Change = |request, text| request.meta_data = Some(text.into());
    let network: Change = |request, text| request.network_config = Some(text.into());
    for (change, text) in [
        (key, ""),
        (key, "ssh-ed25519 A\nssh-ed25519 B"),
        (key, "a\u{1b}b"),
        (package, ""),
        (package, "-o=x"),
        (package, "a b"),
        (package, "a\nb"),
        (package, "a;b"),
        (password, ""),
        (password, "a\nroot:x"),
        (password, "RANDOM"),
        (script, "echo no interpreter"),
        (meta, "- a"),
        (meta, "a: 1\na: 2"),
        (meta, "instance-id: [a]"),
        (meta, "instance-id: \"a\\nb\""),
        (meta, "instance-id: .."),
        (meta, &format!("instance-id: {}", "x".repeat(256))),
        (network, "text"),
        (network, "ethernets: {}"),
        (network, "version: [2"),
    ] {
        let mut request = request();
        change(&mut request, text);
        assert_eq!(build(&request).unwrap_err().kind(), Kind::Usage, "{text:?}");
    }
}

#[rstest]
#[case::cloud_config(b"#cloud-config\nruncmd: [ls]\n", "text/cloud-config")]
#[case::no_final_newline(b"#cloud-config\nruncmd: [ls]", "text/cloud-config")]
#[case::blank_lines_first(b"\n\n#cloud-config\n\n{}\n\n", "text/cloud-config")]
#[case::not_ascii("#cloud-config\nwrite_files: [{path: /é€, content: 😀}]\n".as_bytes(), "text/cloud-config")]
#[case::binary_content(b"#cloud-config\nwrite_files: [{path: /x, content: !!binary /w==}]\n", "text/cloud-config")]
#[case::old_octal(b"#cloud-config\nwrite_files: [{path: /x, permissions: 0644}]\n", "text/cloud-config")]
#[case::script(b"#!/bin/sh\necho\n", "text/plain")]
#[case::windows_lines(b"#!/bin/sh\r\necho\r\n", "text/plain")]
#[case::include(b"#include\nhttp://127.0.0.1/x\n", "text/plain")]
#[case::include_once(b"#include-once\nhttp://127.0.0.1/x\n", "text/plain")]
#[case::archive(b"#cloud-config-archive\n- {type: text/cloud-config, content: x}\n", "text/cloud-config-archive")]
#[case::jinja(b"## template: jinja\n#cloud-config\n{% if x %}\na: b\n{% endif %}\n", "text/plain")]
#[case::boothook(b"#cloud-boothook\necho\n", "text/plain")]
#[case::our_own_boundary(b"#!/bin/sh\ncat <<E\n--==virga==\n--==virga===--\nE\n", "text/plain")]
fn user_data_of_every_form_arrives_untouched(#[case] bytes: &[u8], #[case] kind: &str) {
    let seed = build(&with_user_data(&[bytes])).unwrap();
    let parts = parts(&seed);
    assert_eq!(parts[0], [kind, "user-001-file_0", "", std::str::from_utf8(bytes).unwrap()]);
    let mut added = pyyaml(part(&parts, "virga-additions")[3].as_bytes());
    // Whatever the guest fetches, our keys are for somebody.
    let users = added.as_object_mut().unwrap().remove("users");
    assert_eq!(users, bytes.starts_with(b"#include").then(|| json!(["default"])));
    assert_eq!(added, json!({"ssh_authorized_keys": [OUR_KEY]}));
    let decided = pyyaml(part(&parts, "virga-decisions")[3].as_bytes());
    assert!(decided["ssh_keys"]["ed25519_private"].as_str().unwrap().contains("OPENSSH PRIVATE KEY"));
    assert!(parts[1][2].contains("list(append)") && parts[2][2].contains("dict(replace)"), "{parts:?}");
    assert_eq!(parts.len(), 3);
}

#[rstest]
#[case(b"hostname: x\n", "would ignore")]
#[case(b"# cloud-config\n", "would ignore")]
#[case(b"#cloud-confg\n", "would ignore")]
#[case(b"#cloud-config-x\n{}\n", "would ignore")]
#[case("\u{feff}#cloud-config\n".as_bytes(), "would ignore")]
#[case(b"\x7fELF\xff\xfe", "neither UTF-8 text nor gzip")]
#[case(b"#cloud-config\na: [\n", "not valid YAML")]
#[case(b"#cloud-config\npackages: [a]\npackages: [b]\n", "not valid YAML")]
#[case(b"#cloud-config\n- a\n", "not a mapping")]
#[case(b"#cloud-config-archive\na: b\n", "not a list")]
#[case(b"#cloud-config\nssh_authorized_keys: text\n", "is not a list")]
#[case(b"#cloud-config\nssh_authorized_keys:\n", "is not a list")]
fn user_data_that_would_be_lost_is_refused(#[case] bytes: &[u8], #[case] reason: &str) {
    let error = build(&with_user_data(&[bytes])).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains(reason), "{error}");
    if reason == "not valid YAML" {
        assert!(error.causes()[0].contains("line "), "{:?}", error.causes());
    }
}

#[test]
fn too_much_user_data_is_refused_and_none_is_none() {
    let large = [&b"#!/bin/sh\n"[..], &vec![b'x'; 16 << 20]].concat();
    assert!(build(&with_user_data(&[&large])).unwrap_err().to_string().contains("above the limit"));
    let seed = build(&with_user_data(&[b"", b" \n"])).unwrap();
    assert!(file(&seed, "user-data").starts_with(b"#cloud-config\n"));
}

#[test]
fn scripts_keep_their_order_and_are_named() {
    let script = |name: &str, text: &str| Script { name: name.into(), bytes: text.into() };
    let mut request = request();
    request.run_scripts_once = vec![script("z first.sh", "#!/bin/sh\necho é\n"), script("a", "#!/bin/sh\n")];
    let parts = parts(&build(&request).unwrap());
    let scripts: Vec<_> = parts.iter().filter(|part| part[0] == "text/x-shellscript").collect();
    assert_eq!([&scripts[0][1], &scripts[1][1]], ["virga-once-001-z_first.sh", "virga-once-002-a"]);
    assert_eq!(scripts[0][3], "#!/bin/sh\necho é\n");
    assert_eq!(parts.len(), 4, "our own documents are there too");
}

#[test]
fn users_without_default_are_replaced_by_users_with_our_key() {
    let mut request = with_user_data(&[b"#cloud-config\nusers: [{name: joe}]\n"]);
    request.password = Some("secret".into());
    let seed = build(&request).unwrap();
    assert_eq!(seed.login_user.as_deref(), Some("joe"));
    assert_eq!(seed.warnings.len(), 1);
    let parts = parts(&seed);
    assert!(!parts.iter().any(|part| part[1] == "virga-additions"), "there is no default user to add keys to");
    let decided = pyyaml(part(&parts, "virga-decisions")[3].as_bytes());
    assert_eq!(decided["users"][0]["ssh_authorized_keys"], json!([OUR_KEY]));
    assert_eq!(decided["ssh_pwauth"], true);
    assert!(decided.get("password").is_none());
    assert!(pyyaml(&file(&seed, "meta-data")).get("public-keys").is_none());
}

#[test]
fn a_users_own_meta_data_is_completed() {
    for (theirs, wanted) in [
        ("{}", json!({"local-hostname": "web1", "public-keys": [OUR_KEY]})),
        ("instance-id: mine", json!({"instance-id": "mine", "local-hostname": "web1", "public-keys": [OUR_KEY]})),
        ("local-hostname: h", json!({"local-hostname": "h", "public-keys": [OUR_KEY]})),
        ("hostname: h", json!({"hostname": "h", "public-keys": [OUR_KEY]})),
        ("public-keys: \"a\\nb\"", json!({"local-hostname": "web1", "public-keys": ["a", "b", OUR_KEY]})),
        ("public-keys: {x: a, y: [b]}", json!({"local-hostname": "web1", "public-keys": ["a", "b", OUR_KEY]})),
        ("x: {y: 'yes'}", json!({"x": {"y": "yes"}, "local-hostname": "web1", "public-keys": [OUR_KEY]})),
    ] {
        let request = SeedRequest { meta_data: Some(theirs.into()), ..request() };
        let mut wanted = wanted;
        let id = json!(request.instance_id.as_str());
        wanted.as_object_mut().unwrap().entry("instance-id").or_insert(id);
        assert_eq!(pyyaml(&file(&build(&request).unwrap(), "meta-data")), wanted, "{theirs}");
    }
}

#[rstest]
#[case::text("instance-id: iid-local01", Some("iid-local01"))]
#[case::number("instance-id: 12345", Some("12345"))]
#[case::number_that_yaml_would_change("instance-id: 0123", Some("0123"))]
#[case::large_number("instance-id: 123456789012345678901234567890", Some("123456789012345678901234567890"))]
#[case::fraction("instance-id: 1.10", Some("1.10"))]
#[case::date("instance-id: 2026-01-31", Some("2026-01-31"))]
#[case::truth("instance-id: yes", Some("yes"))]
#[case::time("instance-id: 1:30", Some("1:30"))]
#[case::quoted("\"instance-id\": \"a b/c: it's\"", Some("a b/c: it's"))]
#[case::json("{\"instance-id\": \"i-1\", \"local-hostname\": \"h\"}", Some("i-1"))]
#[case::anchor("x: &a i-2\ninstance-id: *a", Some("i-2"))]
#[case::null("instance-id:", None)]
#[case::tilde("instance-id: ~", None)]
#[case::empty("instance-id: ''", None)]
#[case::blanks("instance-id: '  '", None)]
#[case::absent("local-hostname: h", None)]
#[case::nothing("", None)]
#[case::another_key("instance_id: x", None)]
fn whatever_instance_id_the_guest_gets_is_known(#[case] theirs: &str, #[case] own: Option<&str>) {
    let request = SeedRequest { meta_data: Some(theirs.into()), ..request() };
    let seed = build(&request).unwrap();
    assert_eq!(seed.instance.as_deref(), own);
    assert_eq!(pyyaml(&file(&seed, "meta-data"))["instance-id"], own.unwrap_or(request.instance_id.as_str()));
    assert_eq!(seed.warnings.len(), usize::from(theirs.contains("instance_id")), "{:?}", seed.warnings);
}

#[test]
fn user_data_from_elsewhere_is_told() {
    let request = SeedRequest { meta_data: Some("seedfrom: http://x/".into()), ..request() };
    assert!(build(&request).unwrap().warnings[0].contains("seedfrom"));
}

#[test]
fn each_card_has_a_name_of_its_own_and_the_boot_waits_for_the_first() {
    let macs = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
    let request = SeedRequest { macs: macs.iter().map(|mac| mac.parse().unwrap()).collect(), ..request() };
    let config = pyyaml(&file(&build(&request).unwrap(), "network-config"));
    for (name, mac) in ["eth0", "eth1"].iter().zip(macs) {
        let card = &config["ethernets"][name];
        assert_eq!((&card["set-name"], &card["match"]["macaddress"]), (&json!(name), &json!(mac)), "{config}");
    }
    assert_eq!(config["ethernets"]["eth0"]["optional"], json!(null));
    assert_eq!(config["ethernets"]["eth1"]["optional"], json!(true));
}

#[test]
fn a_users_own_network_config_is_taken_as_it_is() {
    for text in ["version: 2\nethernets: {}\n", "network: {config: disabled}\n", "version: 1\nconfig: []\n"] {
        let request = SeedRequest { network_config: Some(text.into()), ..request() };
        assert_eq!(file(&build(&request).unwrap(), "network-config"), text.as_bytes());
    }
}

#[test]
fn the_same_request_gives_the_same_image_and_debug_shows_no_secret() {
    let mut request = with_user_data(&[b"#!/bin/sh\n"]);
    request.password = Some("hush-hush".into());
    let seed = build(&request).unwrap();
    assert_eq!(seed.to_iso().unwrap(), build(&request).unwrap().to_iso().unwrap());
    let shown = format!("{request:?} {seed:?} {:?} {:?}", request.host_keys, request.user_data);
    assert!(!shown.contains("hush") && !shown.contains("PRIVATE") && !shown.contains("/bin/sh"), "{shown}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 6, failure_persistence: None, ..Default::default()
    })]

    /// Two alphabets: what YAML gives a meaning to, and everything.
    #[test]
    fn any_text_survives_yaml(texts in proptest::collection::vec("[ \t\n\r'\"#:,\\-?*&!|>%@`~=0-9a-fxyn.\\[\\]{}\\\\]{0,120}|.{0,60}", 300)) {
        let written = yaml::write_cloud_config(&texts).unwrap();
        proptest::prop_assert_eq!(pyyaml(written.as_bytes()), json!(texts));
    }
}

#[rstest]
#[case::a_tab(b"#cloud-config\na: b\n\t\nc: d\n", "tab at line 3, column 1: cloud-init refuses it")]
#[case::a_date(b"#cloud-config\na: 2026-13-45\n", "is no date")]
#[case::no_boundary(b"MIME-Version: 1.0\nContent-Type: multipart/mixed\n\n--b\n\nx\n--b--\n", "without a boundary")]
fn what_cloud_init_would_make_nothing_of_is_refused(#[case] text: &[u8], #[case] words: &str) {
    let error = build(&with_user_data(&[text])).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    let said = [vec![error.to_string()], error.causes()].concat().join(": ");
    assert!(said.contains(words), "{said}");
}
