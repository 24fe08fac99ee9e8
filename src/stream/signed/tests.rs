use std::time::Duration;

use pgp::composed::{KeyType, SignedSecretKey};
use pgp::crypto::ecc_curve::ECCCurve;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::SubpacketData;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::base::{Kind, fs};
use crate::stream::key::SigningKey;
use crate::stream::pgp_testing::{
    BORN, DAY, Gpg, Recipe, armored, at, ed25519, key, keyring, packets, public, revocation, rsa,
};

const TEXT: &str = "{\n \"a\": 1,\n- b\n}";

fn inline(text: &str, signatures: &[Signature]) -> String {
    let document = clearsign::join(text.as_bytes(), "SHA512", &armored(signatures));
    String::from_utf8(document).unwrap()
}

fn text_signature(key: &SignedSecretKey) -> Signature {
    Recipe::of(SignatureType::Text).sign(&key.primary_key, TEXT.as_bytes())
}

fn check(document: &str, keyring: &Keyring) -> Result<Verified> {
    verify_inline(document.as_bytes(), keyring, at(BORN + 2 * DAY))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.to_string().len() < 400, "{error}");
}

#[rstest]
#[case::eddsa(KeyType::Ed25519Legacy)]
#[case::p256(KeyType::ECDSA(ECCCurve::P256))]
#[case::ed25519(KeyType::Ed25519)]
#[case::rsa(KeyType::Rsa(2048))]
fn good_signatures_by_primary_and_sub_keys(#[case] kind: KeyType) {
    let key = key(kind);
    let ring = keyring(&key);
    let sub = &key.secret_subkeys[0].key;
    let by_primary = text_signature(&key);
    let by_sub = Recipe::of(SignatureType::Text).hash(HashAlgorithm::Sha256).sign(sub, TEXT.as_bytes());
    for (signature, signer, hash) in [
        (by_primary, Fingerprint::of(key.primary_key.public_key()), "SHA512"),
        (by_sub, Fingerprint::of(sub), "SHA256"),
    ] {
        let verified = check(&inline(TEXT, &[signature]), &ring).unwrap();
        assert_eq!(verified.payload, format!("{TEXT}\n").into_bytes());
        let expected = Signer {
            fingerprint: Fingerprint::of(key.primary_key.public_key()),
            signing_key: signer,
            user_id: "Test <test@example.org>".into(),
            signed_at: at(BORN + DAY),
            hash: hash.into(),
        };
        assert_eq!(verified.signers, [expected]);
    }
    for signature in [
        Recipe::of(SignatureType::Binary).sign(&key.primary_key, b"a \r\n"),
        Recipe::of(SignatureType::Binary).sign(sub, b"a \r\n"),
    ] {
        let now = at(BORN + 2 * DAY);
        for form in [packets(std::slice::from_ref(&signature)), armored(std::slice::from_ref(&signature)).into_bytes()]
        {
            assert_eq!(verify_detached(b"a \r\n", &form, &ring, now).unwrap().payload, b"a \r\n");
            refused(verify_detached(b"a\r\n", &form, &ring, now), "bad signature by");
        }
    }
}

#[test]
fn what_is_not_signed_may_change_and_the_payload_does_not() {
    let key = ed25519();
    let ring = keyring(&key);
    let good = inline(TEXT, &[text_signature(&key)]);
    for same in [
        good.clone(),
        good.replace('\n', "\r\n"),
        good.replace('\n', " \t\n"),
        good.replace("Hash: SHA512\n", "Hash: SHA256\nHash: SHA512\n"),
        good.replace("Hash: SHA512\n", ""),
        good.replace("{\n", "- {\n"),
        format!("{good}\n \n"),
    ] {
        assert_eq!(check(&same, &ring).unwrap().payload, format!("{TEXT}\n").into_bytes(), "{same}");
    }
    for other in [good.replace("\"a\"", "\"b\""), good.replace("{\n", "{\n\n"), good.replace("}\n", "}\n\n")] {
        assert_ne!(other, good);
        refused(check(&other, &ring), "bad signature by");
    }
}

#[test]
fn text_around_the_document_is_refused() {
    let key = ed25519();
    let ring = keyring(&key);
    let good = inline(TEXT, &[text_signature(&key)]);
    refused(check(&format!("text\n{good}"), &ring), "does not begin with");
    refused(check(&format!("{good}text\n"), &ring), "after the signature");
    refused(check(&format!("{good}{good}"), &ring), "after the signature");
    refused(check(&good.replace("Hash: SHA512\n", "NotDashEscaped: yes\n"), &ring), "header other than 'Hash'");
    refused(check(&good.replace("Hash: SHA512\n", "Hash: SHA512\nComment: x\n"), &ring), "header other than 'Hash'");
    refused(check(&good.replace("- - b", "- b"), &ring), "bad signature");
    refused(check(&good.replace("- - b", "-b"), &ring), "not escaped");
    refused(check("{}\n", &ring), "does not begin with");
    refused(check("", &ring), "does not begin with");
}

#[rstest]
#[case(HashAlgorithm::Md5)]
#[case(HashAlgorithm::Sha1)]
#[case(HashAlgorithm::Ripemd160)]
#[case(HashAlgorithm::Sha224)]
fn weak_hashes_are_refused(#[case] hash: HashAlgorithm) {
    let key = rsa();
    let signature = Recipe::of(SignatureType::Text).hash(hash).sign(&key.primary_key, TEXT.as_bytes());
    refused(check(&inline(TEXT, &[signature]), &keyring(key)), &format!("it was made with {hash}"));
}

#[test]
fn dates_are_checked() {
    let key = ed25519();
    let ring = keyring(&key);
    let made = |recipe: Recipe, now: u32| {
        let signature = recipe.sign(&key.primary_key, TEXT.as_bytes());
        verify_inline(inline(TEXT, &[signature]).as_bytes(), &ring, at(now))
    };
    let recipe = || Recipe::of(SignatureType::Text);
    refused(made(recipe().made(BORN - 1), BORN + DAY), "before its key was made");
    made(recipe().made(BORN), BORN + DAY).unwrap();
    refused(made(recipe().made(BORN + 2 * DAY + 1), BORN + DAY), "dated in the future");
    made(recipe().made(BORN + 2 * DAY), BORN + DAY).unwrap();
    refused(made(recipe().made(BORN).expires_after(DAY), BORN + DAY), "it has expired");
    made(recipe().made(BORN).expires_after(DAY + 1), BORN + DAY).unwrap();
    made(recipe().made(BORN).expires_after(0), BORN + DAY).unwrap();
}

#[test]
fn a_signature_of_another_type_is_refused() {
    let key = ed25519();
    let ring = keyring(&key);
    let now = at(BORN + 2 * DAY);
    let crlf = TEXT.replace('\n', "\r\n");
    let binary = Recipe::of(SignatureType::Binary).sign(&key.primary_key, crlf.as_bytes());
    refused(check(&inline(TEXT, &[binary]), &ring), "type that does not belong here");
    let text = packets(&[text_signature(&key)]);
    refused(verify_detached(TEXT.as_bytes(), &text, &ring, now), "type that does not belong here");
    // A signature over the key itself says nothing about a document.
    let direct = packets(&[Recipe::of(SignatureType::Key).over_key(&key)]);
    refused(verify_detached(b"", &direct, &ring, now), "type that does not belong here");
}

#[test]
fn demands_that_we_do_not_know_void_a_signature() {
    let key = ed25519();
    let ring = keyring(&key);
    let notation = || SubpacketData::PolicyURI("x".into());
    let recipe = || Recipe::of(SignatureType::Text);
    let sign = |recipe: Recipe| inline(TEXT, &[recipe.sign(&key.primary_key, TEXT.as_bytes())]);
    check(&sign(recipe().with(notation())), &ring).unwrap();
    refused(check(&sign(recipe().with_critical(notation())), &ring), "demands something unknown");
}

#[test]
fn of_several_signatures_one_must_be_good_and_none_bad() {
    let (ours, theirs) = (rsa(), ed25519());
    let ring = keyring(ours);
    let both = Keyring::from_bytes(&[public(ours), public(&theirs)].concat()).unwrap();
    let (good, foreign) = (text_signature(ours), text_signature(&theirs));
    let bad = Recipe::of(SignatureType::Text).sign(&ours.primary_key, b"other");
    let weak = Recipe::of(SignatureType::Text).hash(HashAlgorithm::Sha1).sign(&ours.primary_key, TEXT.as_bytes());
    let signed = |signatures: &[&Signature]| {
        let owned: Vec<Signature> = signatures.iter().map(|&signature| signature.clone()).collect();
        inline(TEXT, &owned)
    };
    for set in [&[&good, &foreign][..], &[&foreign, &good], &[&weak, &good]] {
        assert_eq!(check(&signed(set), &ring).unwrap().signers.len(), 1);
    }
    assert_eq!(check(&signed(&[&good, &foreign]), &both).unwrap().signers.len(), 2);
    refused(check(&signed(&[&good, &bad]), &ring), "bad signature by");
    refused(check(&signed(&[&bad, &good]), &ring), "bad signature by");
    refused(check(&signed(&[&foreign]), &ring), "no signature by a trusted key: signed by");
    refused(check(&signed(&[&weak, &foreign]), &ring), "no signature by a trusted key counts: signed by");
    refused(check(&signed(&[&good; 17]), &ring), "more than 16");
    refused(check(&signed(&[]), &ring), "no signature in the signature block");
}

#[test]
fn only_signatures_may_stand_in_the_signature_block() {
    let key = ed25519();
    let now = at(BORN + 2 * DAY);
    let signature = packets(&[Recipe::of(SignatureType::Binary).sign(&key.primary_key, b"x")]);
    let with_key = [signature.clone(), public(&key)].concat();
    refused(verify_detached(b"x", &with_key, &keyring(&key), now), "something other than signatures");
    refused(verify_detached(b"x", &signature[..signature.len() - 1], &keyring(&key), now), "");
    refused(verify_detached(b"x", b"", &keyring(&key), now), "");
}

#[test]
fn who_signed_is_named_in_the_refusal() {
    let (ours, theirs) = (ed25519(), ed25519());
    let error = check(&inline(TEXT, &[text_signature(&theirs)]), &keyring(&ours)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no signature by a trusted key: signed by {}; the keyring holds {}",
            Fingerprint::of(theirs.primary_key.public_key()),
            Fingerprint::of(ours.primary_key.public_key())
        )
    );
}

#[test]
fn a_key_known_by_its_short_id_alone_is_found() {
    let key = ed25519();
    let mut config = Recipe::of(SignatureType::Text).config(&key.primary_key);
    config.hashed_subpackets.retain(|packet| !matches!(packet.data, SubpacketData::IssuerFingerprint(_)));
    let signature = config.clone().sign(&key.primary_key, &pgp::types::Password::empty(), TEXT.as_bytes()).unwrap();
    check(&inline(TEXT, &[signature]), &keyring(&key)).unwrap();
    config.unhashed_subpackets.clear();
    let nameless = config.sign(&key.primary_key, &pgp::types::Password::empty(), TEXT.as_bytes()).unwrap();
    refused(check(&inline(TEXT, &[nameless]), &keyring(&key)), "a key that it does not name");
}

#[test]
fn a_revoked_key_never_counts() {
    let key = ed25519();
    let document = inline(TEXT, &[text_signature(&key)]);
    // Appended to the keyring file, as people do with a revocation certificate.
    let revoked = [public(&key), packets(&[revocation(&key)])].concat();
    refused(check(&document, &Keyring::from_bytes(&revoked).unwrap()), "its key was revoked");
    // Somebody else's revocation changes nothing.
    let foreign = [public(&key), packets(&[revocation(&ed25519())])].concat();
    check(&document, &Keyring::from_bytes(&foreign).unwrap()).unwrap();
}

#[test]
fn unsigned_documents_are_passed_on() {
    assert_eq!(unsigned_text(b"{}").unwrap(), b"{}");
    assert_eq!(unsigned_text(b"").unwrap(), b"");
    let document = inline(TEXT, &[]).replace("-----END PGP SIGNATURE-----", "");
    assert_eq!(unsigned_text(document.as_bytes()).unwrap(), format!("{TEXT}\n").into_bytes());
    assert!(unsigned_text(b"-----BEGIN PGP SIGNED MESSAGE-----\n").is_err());
}

#[test]
fn no_changed_byte_is_ever_accepted_with_another_payload() {
    let key = SigningKey::generate("x").unwrap();
    let ring = Keyring::from_bytes(&key.public_binary().unwrap()).unwrap();
    let document = key.sign_inline(b"{\n \"a\": \"-\"\n}\n- x\n").unwrap();
    let now = Timestamp::now();
    let payload = verify_inline(&document, &ring, now).unwrap().payload;
    let mut accepted = 0;
    for place in 0..document.len() {
        for change in [1, 0x20, 0x80, document[place] ^ b'\n', document[place] ^ b'-', document[place]] {
            let mut changed = document.clone();
            changed[place] ^= change;
            let shorter = [&document[..place], &document[place + 1..]].concat();
            let longer = [&document[..place], &[change], &document[place..]].concat();
            for document in [changed, shorter, longer, document[..place].to_vec()] {
                if let Ok(verified) = verify_inline(&document, &ring, now) {
                    assert_eq!(verified.payload, payload, "{}", String::from_utf8_lossy(&document));
                    accepted += 1;
                }
            }
        }
    }
    // Blanks at line ends, for one, are free to change: the test must have seen such.
    assert!(accepted > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..300), place in 0usize..4096, cut in 0usize..64) {
        let key = ed25519();
        let ring = public(&key);
        let signature = packets(&[text_signature(&key)]);
        let document = inline(TEXT, &[text_signature(&key)]).into_bytes();
        let now = at(BORN + 2 * DAY);
        let mutate = |bytes: &[u8]| {
            let from = place % bytes.len();
            let to = (from + cut).min(bytes.len());
            [&bytes[..from], &noise, &bytes[to..]].concat()
        };
        let trusted = keyring(&key);
        if let Ok(verified) = verify_inline(&mutate(&document), &trusted, now) {
            prop_assert_eq!(verified.payload, format!("{TEXT}\n").into_bytes());
        }
        let _ = verify_detached(TEXT.as_bytes(), &mutate(&signature), &trusted, now);
        let _ = verify_detached(TEXT.as_bytes(), &noise, &trusted, now);
        let _ = Keyring::from_bytes(&mutate(&ring));
        let _ = Keyring::from_bytes(&noise);
        let _ = SigningKey::from_bytes(&noise);
        let _ = unsigned_text(&mutate(&document));
    }

    #[test]
    fn what_we_sign_we_accept(text in "[-a {}\t\r\n\u{85}\u{2028}]{0,60}") {
        let key = SigningKey::generate("x").unwrap();
        let ring = Keyring::from_bytes(&key.public_binary().unwrap()).unwrap();
        let document = key.sign_inline(text.as_bytes()).unwrap();
        let payload = verify_inline(&document, &ring, Timestamp::now()).unwrap().payload;
        let body = text.strip_suffix('\n').unwrap_or(&text);
        let lines: Vec<&str> = body.split('\n').map(|line| line.trim_end_matches([' ', '\t', '\r'])).collect();
        prop_assert_eq!(String::from_utf8(payload).unwrap(), lines.join("\n") + "\n");
        let detached = key.sign_detached(text.as_bytes()).unwrap();
        verify_detached(text.as_bytes(), &detached, &ring, Timestamp::now()).unwrap();
    }
}

#[test]
fn what_a_document_costs_grows_with_its_length_alone() {
    let key = SigningKey::generate("x").unwrap();
    let ring = Keyring::from_bytes(&key.public_binary().unwrap()).unwrap();
    // In processor time: a busy machine takes the processor away now and then. The best of three, for caches.
    let used = || {
        let said = fs::read_text("/proc/thread-self/schedstat".as_ref(), 1 << 10).unwrap();
        Duration::from_nanos(said.split(' ').next().unwrap().parse().unwrap())
    };
    let took = |lines: usize| {
        let text = "   \"sha256\": \"0123456789abcdef0123456789abcdef\",\n- x\n".repeat(lines);
        let document = key.sign_inline(text.as_bytes()).unwrap();
        let once = |_| {
            let start = used();
            let payload = verify_inline(&document, &ring, Timestamp::now()).unwrap().payload;
            let took = used() - start;
            assert!(payload == text.as_bytes());
            took
        };
        (0..3).map(once).min().unwrap()
    };
    // 20 MB against 2.5: 8 times as long for a reader that looks at each byte once, 64 for a quadratic one.
    let (short, long) = (took(50_000), took(400_000));
    assert!(long < short * 24, "{short:?} {long:?}");
}

/// Texts that framing code gets wrong.
const AWKWARD: [&str; 10] = [
    "{}\n",
    "",
    "no end",
    "- dash\n-\n--- x\n-----BEGIN PGP SIGNATURE-----\n",
    "blanks \t \n\t\n x \n",
    "windows\r\nlines\r\n",
    "empty\n\n\nlines\n\n",
    "From here\nto there\n",
    "\u{2028}\u{85}\u{b}\u{c}x\u{feff}\n",
    "mixed\r\nends \r\r\n- \r\n",
];

#[test]
fn gpgv_accepts_what_we_sign() {
    let gpg = Gpg::new();
    let key = SigningKey::generate("Test <test@example.org>").unwrap();
    let ring = key.public_binary().unwrap();
    let own = Keyring::from_bytes(&ring).unwrap();
    let longest = format!("-{}\n", "x".repeat(19_989));
    for text in AWKWARD.into_iter().chain([longest.as_str()]) {
        let document = key.sign_inline(text.as_bytes()).unwrap();
        let payload = verify_inline(&document, &own, Timestamp::now()).unwrap().payload;
        let file = gpg.write("x.sjson", &document);
        let seen = gpg.gpgv(&ring, &[&file]).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(String::from_utf8(seen).unwrap(), String::from_utf8(payload).unwrap(), "{text:?}");
        let body = gpg.write("x.json", text.as_bytes());
        let signature = gpg.write("x.json.gpg", &key.sign_detached(text.as_bytes()).unwrap());
        gpg.gpgv(&ring, &[&signature, &body]).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    }
    let changed = String::from_utf8(key.sign_inline(b"{}\n").unwrap()).unwrap().replace("{}", "[]");
    let file = gpg.write("x.sjson", changed.as_bytes());
    assert!(gpg.gpgv(&ring, &[&file]).unwrap_err().contains("BAD signature"));
}

#[test]
fn we_accept_what_gpg_signs() {
    let gpg = Gpg::new();
    gpg.generate("one <one@example.org>", "ed25519", "sign");
    gpg.generate("two <two@example.org>", "rsa2048", "sign");
    gpg.generate("three <three@example.org>", "nistp256", "sign");
    for user in ["one", "two", "three"] {
        let ring = Keyring::from_bytes(&gpg.run(&["--export", user])).unwrap();
        for text in AWKWARD {
            let file = gpg.write("x.json", text.as_bytes());
            let file = file.to_str().unwrap();
            for digest in ["SHA256", "SHA512"] {
                let signed = gpg.run(&["-u", user, "--digest-algo", digest, "--clearsign", "-o", "-", file]);
                let verified =
                    verify_inline(&signed, &ring, Timestamp::now()).unwrap_or_else(|e| panic!("{user} {text:?}: {e}"));
                assert_eq!(verified.signers[0].hash, digest);
            }
            for armor in ["--armor", "--no-armor"] {
                let signature = gpg.run(&["-u", user, armor, "--detach-sign", "-o", "-", file]);
                verify_detached(text.as_bytes(), &signature, &ring, Timestamp::now())
                    .unwrap_or_else(|e| panic!("{user} {text:?}: {e}"));
            }
        }
    }
    let file = gpg.write("x.json", b"{}\n");
    let file = file.to_str().unwrap();
    let all = Keyring::from_bytes(&gpg.run(&["--armor", "--export"])).unwrap();
    let signed = gpg.run(&["-u", "one", "-u", "two", "--clearsign", "-o", "-", file]);
    assert_eq!(verify_inline(&signed, &all, Timestamp::now()).unwrap().signers.len(), 2);
    for user in ["one", "two"] {
        let weak = gpg.run(&["-u", user, "--digest-algo", "SHA1", "--clearsign", "-o", "-", file]);
        refused(verify_inline(&weak, &all, Timestamp::now()), "SHA1");
    }
}
