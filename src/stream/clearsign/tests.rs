use super::*;

fn document(headers: &str, body: &str) -> String {
    format!("-----BEGIN PGP SIGNED MESSAGE-----\n{headers}\n{body}-----BEGIN PGP SIGNATURE-----\nrest")
}

#[test]
fn text_is_unescaped_and_trimmed() {
    for (body, text) in [
        ("", ""),
        ("\n", ""),
        ("a\n", "a"),
        ("a\nb\n", "a\nb"),
        ("a\n\n", "a\n"),
        ("a \t\r\nb\r\r\n", "a\nb"),
        ("- -dash\n- \n- plain\n- - twice\n", "-dash\n\nplain\n- twice"),
        ("a\rb\n", "a\rb"),
        ("a\u{2028}b\u{b}c\u{c}d\u{85}e\n", "a\u{2028}b\u{b}c\u{c}d\u{85}e"),
    ] {
        let document = document("Hash: SHA512\n", body);
        let parts = split(document.as_bytes()).unwrap();
        assert_eq!(parts.text, text.as_bytes(), "{body:?}");
        assert_eq!(parts.armor, b"-----BEGIN PGP SIGNATURE-----\nrest");
    }
}

#[test]
fn only_hash_headers_are_accepted() {
    for headers in
        ["", "Hash: SHA512\n", "Hash: SHA256\r\nHash: SHA512\n", "Hash: SHA256,SHA512\n", "Hash: SHA3-512 \n"]
    {
        assert!(split(document(headers, "a\n").as_bytes()).is_ok(), "{headers:?}");
    }
    for headers in
        ["NotDashEscaped: yes\n", "Charset: UTF-8\n", "Hash: SHA512\nx\n", "Hash:SHA512\n", "hash: SHA512\n", "x\n"]
    {
        assert!(split(document(headers, "a\n").as_bytes()).is_err(), "{headers:?}");
    }
}

#[test]
fn anything_but_one_document_is_refused() {
    let good = document("Hash: SHA512\n", "a\n");
    for bad in [
        String::new(),
        "{}\n".into(),
        format!("\n{good}"),
        format!("text\n{good}"),
        format!("\u{feff}{good}"),
        format!(" {good}"),
        good.replace("a\n", "-a\n"),
        good.replace("a\n", "-----BEGIN PGP SIGNED MESSAGE-----\n"),
        good.replace("a\n", "-----BEGIN PGP SIGNATURE----- x\n"),
        good.replace("-----BEGIN PGP SIGNATURE-----", ""),
        "-----BEGIN PGP SIGNED MESSAGE-----".into(),
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n".into(),
        "-----BEGIN PGP SIGNED MESSAGE-----\n\na\n-----BEGIN PGP SIGNATURE-----".into(),
    ] {
        assert!(split(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn joining_and_splitting_agree() {
    for payload in ["", "\n", "a", "a\n", "- a\n-\n--\n\n", "a \t\r\n b\r\n", "From x\n", "a\n\n\n"] {
        let text = canonical(payload.as_bytes()).unwrap();
        let document = join(&text, "SHA512", "-----BEGIN PGP SIGNATURE-----\nx");
        assert_eq!(split(&document).unwrap().text, text, "{payload:?}");
    }
}

#[test]
fn a_line_that_gpg_would_cut_is_not_signed() {
    assert!(canonical(&vec![b'x'; LONGEST_LINE]).is_ok());
    let error = canonical(&[b"{\n".to_vec(), vec![b'x'; LONGEST_LINE + 1]].concat()).unwrap_err();
    assert!(error.to_string().starts_with("line 2 has 19991 bytes"), "{error}");
}
