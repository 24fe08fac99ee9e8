//! Beside Python's `email`, by which cloud-init takes messages apart.

use rstest::rstest;
use serde_json::{Value, json};

use super::super::tests::python;
use super::*;

/// Type and content of every part, as cloud-init sees them.
fn email(text: &str) -> Value {
    let code = "
message = email.message_from_string(data.decode('utf-8'))
out = [[p.get_content_type(), p.get_payload(decode=True).decode('latin-1')]
       for p in message.walk() if p.get_content_maintype() != 'multipart']";
    python(code, text.as_bytes())
}

fn ours(text: &str) -> Value {
    let latin1 = |body: &[u8]| body.iter().map(|byte| char::from(*byte)).collect::<String>();
    json!(leaves(text).unwrap().iter().map(|leaf| json!([leaf.kind, latin1(&leaf.body)])).collect::<Vec<_>>())
}

#[rstest]
#[case::one_part("Content-Type: text/cloud-config\nMIME-Version: 1.0\n\npackages: [a]\n")]
#[case::no_type("MIME-Version: 1.0\n\n#cloud-config\n")]
#[case::two(
    "Content-Type: multipart/mixed; boundary=\"==b==\"\nMIME-Version: 1.0\n\nread me\n--==b==\n\
     Content-Type: text/cloud-config\nMIME-Version: 1.0\n\na: b\n\n--==b==\nContent-Type: text/x-shellscript\n\n\
     #!/bin/sh\n--==b==--\nbehind it\n"
)]
#[case::folded_bare_and_in_capitals(
    "From nobody Thu Jan  1 00:00:00 1970\nMIME-VERSION: 1.0\nCONTENT-TYPE: Multipart/Mixed;\n boundary=b1\n\n--b1\n\
     content-type: Text/Cloud-Config; charset=\"utf-8\"\n\na: b\n--b1--\n"
)]
#[case::windows_lines(
    "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b\"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n\
     #!/bin/sh\r\ntrue\r\n--b--\r\n"
)]
#[case::base64(
    "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: application/x-gzip\n\
     Content-Transfer-Encoding: base64\n\nH4sI\nAAAA\n\n--b--\n"
)]
#[case::quoted_printable("MIME-Version: 1.0\nContent-Transfer-Encoding: Quoted-Printable\n\na=3Db=\n c \n=C3=BC=\nx\n")]
#[case::nested(
    "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=ab\n\
     \n--ab\n\none\n--ab\nContent-Type: text/x\n\ntwo\n--ab--\n--a\n\nthree\n--a--\n"
)]
#[case::cut_off("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b\n\ntwo")]
#[case::headers_alone("MIME-Version: 1.0\nContent-Type: text/plain\n")]
fn parts_are_those_of_pythons_email(#[case] text: &str) {
    assert!(is_message(text));
    assert_eq!(ours(text), email(text));
}

#[test]
fn headers_stay_as_they_are() {
    let text = "MIME-Version: 1.0\nContent-Type: text/cloud-config\nMerge-Type:\n list()\nContent-Transfer-Encoding: \
                base64\nLaunch-Index: 1\n\nYQ==\n";
    let leaves = leaves(text).unwrap();
    let lines: String = leaves[0].headers.iter().map(|header| header.lines).collect();
    assert_eq!(lines, "MIME-Version: 1.0\nContent-Type: text/cloud-config\nMerge-Type:\n list()\nLaunch-Index: 1\n");
    assert!(leaves[0].has(&["merge-type"]) && !leaves[0].has(&["x-merge-type"]));
    assert_eq!(leaves[0].body, b"a");
}

#[rstest]
#[case::no_boundary("MIME-Version: 1.0\nContent-Type: multipart/mixed\n\n--b\n\none\n--b--\n")]
#[case::another_boundary("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=a\n\n--b\n\none\n--b--\n")]
#[case::no_header("MIME-Version: 1.0\nwhat is this\n\none\n")]
#[case::an_old_encoding("MIME-Version: 1.0\nContent-Transfer-Encoding: x-uuencode\n\nbegin 644 a\n")]
#[case::no_base64("MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\n!!\n")]
#[case::a_letter("MIME-Version: 1.0\nContent-Type: message/rfc822\n\nSubject: x\n\n")]
fn what_is_damaged_is_left_to_the_guest(#[case] text: &str) {
    assert_eq!(leaves(text), None);
}

#[test]
fn a_message_without_end_ends() {
    let mut text = "MIME-Version: 1.0\n".to_owned();
    for depth in 0..1000 {
        text.push_str(&format!("Content-Type: multipart/mixed; boundary=b{depth}\n\n--b{depth}\n"));
    }
    assert_eq!(leaves(&text), None);
}

#[rstest]
#[case("#cloud-config\nx: 'mime-version: 1.0'\n")]
#[case("#!/bin/sh\nmime-version: 1.0\n")]
#[case("a: b\n\nmime-version: 1.0\n")]
#[case("## template: jinja\nmime-version: 1.0\n")]
fn others_are_no_messages(#[case] text: &str) {
    assert!(!is_message(text));
}

#[test]
fn a_message_that_does_not_say_what_is_between_its_parts_is_told_from_others() {
    assert!(lacks_boundary("MIME-Version: 1.0\nContent-Type: Multipart/mixed\n\n--b\n\none\n--b--\n"));
    for kind in ["multipart/mixed;\n boundary=b", "multipart/mixed; BOUNDARY*=us-ascii''b", "text/plain"] {
        assert!(!lacks_boundary(&format!("MIME-Version: 1.0\nContent-Type: {kind}\n\n--b\n\none\n--b--\n")), "{kind}");
    }
    assert!(!lacks_boundary("MIME-Version: 1.0\n\n#cloud-config\n"));
}
