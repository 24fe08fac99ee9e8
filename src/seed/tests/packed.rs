//! User-data as other tools hand it on: in gzip, in base64, in messages, in lists.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

const CONFIG: &str = "#cloud-config\nwrite_files: [{path: /x, content: Grüße €}]\n";

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes.as_ref()).unwrap();
    encoder.finish().unwrap()
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// As Terraform's `cloudinit_config` writes it, before it packs it.
fn message(parts: &[(&str, &str)]) -> String {
    let mut text = "Content-Type: multipart/mixed; boundary=\"MIMEBOUNDARY\"\nMIME-Version: 1.0\r\n\r\n".to_owned();
    for (headers, body) in parts {
        text += &format!("--MIMEBOUNDARY\r\n{headers}Mime-Version: 1.0\r\n\r\n{body}\r\n");
    }
    text + "--MIMEBOUNDARY--\r\n"
}

fn parts_of(user_data: impl AsRef<[u8]>) -> Vec<[String; 4]> {
    parts(&build(&with_user_data(&[user_data.as_ref()])).unwrap())
}

#[test]
fn a_message_travels_as_it_is() {
    let text = message(&[
        ("Content-Type: text/cloud-config\r\n", "packages: [a]"),
        ("Content-Type: text/x-shellscript\r\n", "#!/bin/sh"),
    ]);
    let seed = build(&with_user_data(&[text.as_bytes()])).unwrap();
    assert!(String::from_utf8(file(&seed, "user-data")).unwrap().contains(&text));
    let parts = parts(&seed);
    assert_eq!([&parts[0][0], &parts[0][3]], ["text/cloud-config", "packages: [a]"]);
    assert_eq!([&parts[1][0], &parts[1][3]], ["text/x-shellscript", "#!/bin/sh"]);
    assert_eq!(parts.len(), 4);
}

#[rstest]
#[case::gzip(gzip(CONFIG))]
#[case::several_members([gzip(&CONFIG[..20]), gzip(&CONFIG[20..])].concat())]
#[case::base64(base64(CONFIG).into_bytes())]
#[case::base64_in_lines(base64(CONFIG).as_bytes().chunks(60).flat_map(|line| [line, b"\n"].concat()).collect())]
#[case::base64_without_padding(base64(CONFIG).trim_end_matches('=').as_bytes().to_vec())]
#[case::gzip_in_base64(base64(gzip(CONFIG)).into_bytes())]
#[case::base64_in_gzip(gzip(base64(CONFIG)))]
#[case::gzip_in_gzip(gzip(gzip(CONFIG)))]
fn what_is_packed_arrives_unpacked(#[case] bytes: Vec<u8>) {
    let parts = parts_of(bytes);
    assert_eq!(parts[0], ["text/cloud-config", "user-001-file_0", "", CONFIG]);
    assert_eq!(parts.len(), 3);
}

/// What cloud-init drops in silence when it is a part of a message.
#[rstest]
#[case::as_it_is(String::into_bytes)]
#[case::gzip(gzip)]
#[case::base64(|text: String| base64(text).into_bytes())]
#[case::gzip_in_base64(|text: String| base64(gzip(text)).into_bytes())]
fn a_packed_message_arrives_in_its_parts(#[case] pack: fn(String) -> Vec<u8>) {
    let script = "#!/bin/sh\necho Grüße";
    let text = message(&[
        (
            "Content-Disposition: attachment; filename=\"a.yaml\"\r\nContent-Type: text/cloud-config\r\n\
          Merge-Type: list(append)\r\n",
            "packages: [a]",
        ),
        (
            "Content-Disposition: attachment; filename=\"b.sh\"\r\nContent-Transfer-Encoding: 7bit\r\n\
          Content-Type: text/x-shellscript\r\n",
            script,
        ),
    ]);
    let parts = parts_of(pack(text));
    assert_eq!(parts[0], ["text/cloud-config", "a.yaml", "list(append)", "packages: [a]"]);
    assert_eq!(parts[1], ["text/x-shellscript", "b.sh", "", script]);
    assert_eq!(parts.len(), 4);
}

#[test]
fn packed_parts_of_a_message_are_unpacked() {
    let inner = message(&[("Content-Type: text/x-shellscript\r\n", "#!/bin/sh\ntrue")]);
    let part =
        |bytes: Vec<u8>| (base64(bytes), "Content-Type: application/x-gzip\r\nContent-Transfer-Encoding: base64\r\n");
    let (config, nested) = (part(gzip(CONFIG)), part(gzip(inner)));
    let text = message(&[
        (&format!("{}Content-Disposition: attachment; filename=x\r\n", config.1), &config.0),
        (nested.1, &nested.0),
        ("Content-Type: text/plain\r\n", "#!/bin/sh\nfalse"),
    ]);
    let parts = parts_of(text);
    assert_eq!(parts[0], ["text/plain", "x", "", CONFIG]);
    assert_eq!([&parts[1][0], &parts[1][3]], ["text/x-shellscript", "#!/bin/sh\ntrue"]);
    assert_eq!([&parts[2][0], &parts[2][3]], ["text/plain", "#!/bin/sh\nfalse"]);
    assert_eq!(parts.len(), 5);
}

#[rstest]
#[case::damaged(gzip(CONFIG)[..30].to_vec(), "cannot be unpacked")]
#[case::bomb(gzip(vec![b' '; 64 << 20]), "above the limit")]
#[case::bomb_in_a_message(
    message(&[(
        "Content-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n",
        &base64(gzip(vec![b' '; 64 << 20])),
    )]).into_bytes(),
    "above the limit"
)]
#[case::bomb_in_bombs(gzip(gzip(gzip(vec![b' '; 64 << 20]))), "above the limit")]
#[case::unknown_inside(gzip("hostname: x\n"), "would ignore")]
#[case::unknown_in_base64(base64("hostname: x\n").into_bytes(), "would ignore")]
#[case::a_word(b"password".to_vec(), "would ignore")]
#[case::program(gzip(b"\x7fELF\xff\xfe"), "neither UTF-8")]
#[case::unknown_in_a_message(
    message(&[(
        "Content-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n",
        &base64(gzip("hostname: x\n")),
    )]).into_bytes(),
    "would ignore"
)]
#[case::broken_in_a_message(message(&[("Content-Type: text/cloud-config\r\n", "a: [")]).into_bytes(), "not valid YAML")]
#[case::broken_in_gzip(gzip("#cloud-config\na: ["), "not valid YAML")]
#[case::broken_in_an_archive(b"#cloud-config-archive\n- {type: text/cloud-config, content: 'a: ['}\n".to_vec(), "not valid YAML")]
fn what_would_be_lost_is_refused(#[case] bytes: Vec<u8>, #[case] reason: &str) {
    let error = build(&with_user_data(&[&bytes])).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains(reason) && error.to_string().contains("'file 0'"), "{error}");
}

/// However a list without `default` comes: our keys get in, by one of its users, or by the image's own.
#[rstest]
#[case::gzip(gzip("#cloud-config\nusers: [{name: joe}]\n"))]
#[case::message(message(&[("Content-Type: text/cloud-config\r\n", "users: [{name: joe}]")]).into_bytes())]
#[case::message_by_first_line(message(&[("", "#cloud-config\nusers: [{name: joe}]")]).into_bytes())]
#[case::packed_message(gzip(message(&[("Content-Type: text/cloud-config\r\n", "users: [{name: joe}]")])))]
#[case::packed_part(message(&[(
    "Content-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n",
    &base64(gzip("#cloud-config\nusers: [{name: joe}]")),
)]).into_bytes())]
#[case::archive(b"#cloud-config-archive\n- {type: text/cloud-config, content: 'users: [{name: joe}]'}\n".to_vec())]
#[case::archive_by_first_line(b"#cloud-config-archive\n- |\n  #cloud-config\n  users: [{name: joe}]\n".to_vec())]
#[case::archive_without_type(b"#cloud-config-archive\n- content: 'users: [{name: joe}]'\n".to_vec())]
#[case::archive_in_a_message(message(&[(
    "Content-Type: text/cloud-config-archive\r\n",
    "- '#cloud-config\n\n  users: [{name: joe}]'",
)]).into_bytes())]
fn users_are_found_wherever_they_are(#[case] bytes: Vec<u8>) {
    let seed = build(&with_user_data(&[&bytes])).unwrap();
    assert_eq!(seed.login_user.as_deref(), Some("joe"));
    let parts = parts(&seed);
    let decided = pyyaml(part(&parts, "virga-decisions")[3].as_bytes());
    assert_eq!(decided["users"], json!([{"name": "joe", "ssh_authorized_keys": [OUR_KEY]}]));
}

#[rstest]
#[case::jinja(b"## template: jinja\n#cloud-config\nusers:\n- name: {{ v1.region }}\n".to_vec())]
#[case::jinja_in_a_message(message(&[("Content-Type: text/jinja2\r\n", "## template: jinja\n#cloud-config\nusers: [joe]\n")]).into_bytes())]
#[case::jinja_that_is_called_cloud_config(message(&[("Content-Type: text/cloud-config\r\n", "## template: jinja\n#cloud-config\nusers: [{{ x }}]\n{% if y %}")]).into_bytes())]
#[case::jinja_by_first_line(message(&[("", "## template: jinja\n#cloud-config\nusers: [joe]\n")]).into_bytes())]
#[case::jinja_in_gzip(gzip("## template: jinja\n#cloud-config\nusers: [joe]\n"))]
#[case::jinja_in_an_archive(b"#cloud-config-archive\n- |\n  ## template: jinja\n  #cloud-config\n  users: [joe]\n".to_vec())]
#[case::patch(b"#cloud-config-jsonp\n[{\"op\": \"replace\", \"path\": \"/users\", \"value\": [{\"name\": \"joe\"}]}]\n".to_vec())]
#[case::merged(message(&[
    ("Content-Type: text/cloud-config\r\n", "users: [{name: joe}]"),
    ("Content-Type: text/cloud-config\r\nMerge-Type: list(append)+dict(recurse_list)\r\n", "users: [{name: ann}]"),
]).into_bytes())]
fn users_that_only_the_guest_knows_get_default(#[case] bytes: Vec<u8>) {
    let seed = build(&with_user_data(&[&bytes])).unwrap();
    assert_eq!((seed.login_user.as_deref(), seed.warnings.len()), (None, 1), "{:?}", seed.warnings);
    let parts = parts(&seed);
    let added = part(&parts, "virga-additions");
    assert_eq!(pyyaml(added[3].as_bytes()), json!({"ssh_authorized_keys": [OUR_KEY], "users": ["default"]}));
    assert!(added[2].contains("list(append)"));
}

/// Whatever is in it: our keys are for somebody.
#[rstest]
#[case::damaged(b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\n\n--b\n\nx\n--b--\n")]
#[case::an_old_encoding(b"MIME-Version: 1.0\nContent-Transfer-Encoding: x-uuencode\n\nbegin 644 a\n")]
#[case::binary_in_an_archive(
    b"#cloud-config-archive\n- {type: text/cloud-config, content: !!binary dXNlcnM6IFtqb2VdCg==}\n"
)]
fn what_cannot_be_seen_may_bring_users(#[case] bytes: &[u8]) {
    let seed = build(&with_user_data(&[bytes])).unwrap();
    assert!(String::from_utf8(file(&seed, "user-data")).unwrap().contains("\nusers:\n"));
}

/// A script is one as a template too, and in a list.
#[rstest]
#[case(b"## template: jinja\n#!/bin/sh\n# users: here\n".to_vec())]
#[case(b"#cloud-config-archive\n- '#!/bin/sh\n\n  # users: here'\n- {type: text/x-shellscript, content: 'users: x'}\n".to_vec())]
#[case(message(&[("Content-Type: text/x-shellscript\r\n", "#!/bin/sh\n# users: here\n")]).into_bytes())]
fn scripts_bring_no_users(#[case] bytes: Vec<u8>) {
    let seed = build(&with_user_data(&[&bytes])).unwrap();
    assert!(seed.warnings.is_empty(), "{:?}", seed.warnings);
    let parts = parts(&seed);
    assert_eq!(pyyaml(part(&parts, "virga-additions")[3].as_bytes()), json!({"ssh_authorized_keys": [OUR_KEY]}));
}
