use std::path::Path;

use super::*;
use crate::base::Kind;
use crate::stream::pgp_testing::{Gpg, ed25519, packets as signature_packets, public, revocation};
use crate::stream::signed::{verify_detached, verify_inline};

const UBUNTU: &str = "4A3C E3CD 565D 7EB5 C810  E2B9 7FF3 F408 476C F100";

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[test]
fn fingerprints_are_read_and_shown() {
    let ubuntu: Fingerprint = UBUNTU.parse().unwrap();
    assert_eq!(ubuntu.to_string(), "4A3CE3CD565D7EB5C810E2B97FF3F408476CF100");
    assert_eq!(ubuntu.to_string().to_lowercase().parse::<Fingerprint>().unwrap(), ubuntu);
    assert_eq!(serde_json::to_string(&ubuntu).unwrap(), format!("\"{ubuntu}\""));
    assert_eq!(serde_json::from_str::<Fingerprint>(&format!("\"{UBUNTU}\"")).unwrap(), ubuntu);
    assert!("ab".repeat(32).parse::<Fingerprint>().is_ok());
    for bad in ["", "7FF3F408476CF100", &"ab".repeat(21), &"gg".repeat(20), &format!("0x{ubuntu}")] {
        assert_eq!(bad.parse::<Fingerprint>().unwrap_err().kind(), Kind::Usage, "{bad}");
    }
}

#[test]
fn the_key_of_ubuntus_images_is_usable() {
    let path = Path::new("/usr/share/keyrings/ubuntu-cloudimage-keyring.gpg");
    let ring = Keyring::from_file(path)
        .unwrap_or_else(|error| panic!("package ubuntu-keyring (or ubuntu-cloudimage-keyring) is needed: {error}"));
    let ubuntu: Fingerprint = UBUNTU.parse().unwrap();
    let pinned = ring.clone().pinned(std::slice::from_ref(&ubuntu)).unwrap();
    assert_eq!(pinned.fingerprints(), [ubuntu]);
    // All its self-signatures are SHA-1.
    assert_eq!(pinned.keys[0].cannot_sign(now()), None);
    let other = "00".repeat(20).parse().unwrap();
    let error = ring.pinned(&[other]).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("4A3CE3CD565D7EB5C810E2B97FF3F408476CF100"), "{error}");
}

#[test]
fn keyrings_come_in_many_forms() {
    let (one, two) = (SigningKey::generate("one").unwrap(), SigningKey::generate("two").unwrap());
    let both = [one.fingerprint(), two.fingerprint()];
    let (a, b) = (one.public_armored().unwrap(), two.public_armored().unwrap());
    for text in [format!("{a}{b}"), format!("a note\n{a}\nanother\n{b}\n"), format!("{a}{b}").replace('\n', "\r\n")] {
        assert_eq!(Keyring::from_bytes(text.as_bytes()).unwrap().fingerprints(), both);
    }
    let binary = [one.public_binary().unwrap(), two.public_binary().unwrap()].concat();
    assert_eq!(Keyring::from_bytes(&binary).unwrap().fingerprints(), both);
    // GnuPG's old keyrings have a trust packet (old format, tag 12) after each packet.
    let trust = [0xb0, 2, 0, 0];
    let with_trust = [one.public_binary().unwrap(), trust.to_vec(), two.public_binary().unwrap()].concat();
    assert_eq!(Keyring::from_bytes(&with_trust).unwrap().fingerprints(), both);
    // Twice the same key is one key.
    let twice = Keyring::from_bytes(format!("{a}{a}").as_bytes()).unwrap();
    assert_eq!(twice.fingerprints(), [one.fingerprint()]);
    let pinned = Keyring::from_bytes(&binary).unwrap().pinned(&both[1..]).unwrap();
    assert_eq!(pinned.fingerprints(), both[1..]);
    assert!(Keyring::from_bytes(&binary).unwrap().pinned(&[]).is_err());
}

#[test]
fn what_is_no_keyring_is_refused() {
    let key = SigningKey::generate("x").unwrap();
    let public = key.public_binary().unwrap();
    let secret = key.to_armored().unwrap();
    let keybox = [&[0, 0, 0, 32, 1, 1, 0, 2][..], b"KBXf", &[0; 20]].concat();
    for (bytes, words) in [
        (keybox.as_slice(), "keybox"),
        (secret.as_bytes(), "secret key"),
        (b"", "no public key"),
        (b"{}\n", "no public key"),
        (&public[..public.len() - 3], "damaged"),
        (&[&public[..], &[0xff; 40]].concat(), "damaged"),
        (
            &signature_packets(&[crate::stream::pgp_testing::Recipe::of(SignatureType::Key).over_key(&ed25519())]),
            "begin",
        ),
        (key.public_armored().unwrap().replace("-----END", "").as_bytes(), "damaged"),
    ] {
        let error = Keyring::from_bytes(bytes).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(error.causes().iter().all(|cause| cause.len() <= 100), "{:?}", error.causes());
    }
    assert_eq!(Keyring::from_file(Path::new("/nonexistent")).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_revocation_counts_wherever_it_stands() {
    let key = ed25519();
    let (key, revoked) = (public(&key), signature_packets(&[revocation(&key)]));
    for ring in [[&key[..], &revoked].concat(), [&revoked[..], &key].concat()] {
        let ring = Keyring::from_bytes(&ring).unwrap();
        assert_eq!(ring.keys[0].cannot_sign(now()), Some("its key was revoked"));
    }
}

#[test]
fn a_signing_key_survives_its_file_and_never_shows_itself() {
    let key = SigningKey::generate("Ours <a@example.org>").unwrap();
    let again = SigningKey::from_bytes(key.to_armored().unwrap().as_bytes()).unwrap();
    assert_eq!(again.fingerprint(), key.fingerprint());
    assert_eq!(format!("{key:?}"), format!("SigningKey(\"{}\")", key.fingerprint()));
    let ring = Keyring::from_bytes(&key.public_binary().unwrap()).unwrap();
    let verified = verify_inline(&again.sign_inline(b"{}").unwrap(), &ring, now()).unwrap();
    assert_eq!(
        (verified.payload.as_slice(), verified.signers[0].user_id.as_str()),
        (&b"{}\n"[..], "Ours <a@example.org>")
    );
    for bad in ["", "  ", "a\nb", &"x".repeat(201)] {
        assert_eq!(SigningKey::generate(bad).unwrap_err().kind(), Kind::Usage);
    }
    let two = [key.to_armored().unwrap(), SigningKey::generate("x").unwrap().to_armored().unwrap()].concat();
    for (bad, words) in [
        (key.public_armored().unwrap(), "no secret key"),
        (String::new(), "no secret key"),
        ("{}".into(), "no secret key"),
        (two, "several"),
    ] {
        let error = SigningKey::from_bytes(bad.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(SigningKey::from_file(Path::new("/nonexistent")).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn gpgs_keys_sign() {
    let gpg = Gpg::new();
    gpg.generate("plain <a@example.org>", "ed25519", "sign");
    gpg.generate("split <b@example.org>", "ed25519", "cert");
    let split = Keyring::from_bytes(&gpg.run(&["--export", "split"])).unwrap().fingerprints()[0].to_string();
    gpg.run(&["--quick-add-key", &split, "rsa2048", "sign", "never"]);
    gpg.run(&["--quick-add-key", &split, "cv25519", "encr", "never"]);
    let body = b"{\n}\n";
    for (export, name) in
        [("--export-secret-keys", "plain"), ("--export-secret-keys", "split"), ("--export-secret-subkeys", "split")]
    {
        let secret = SigningKey::from_bytes(&gpg.run(&["--armor", export, name])).unwrap();
        let public = gpg.run(&["--export", name]);
        let ring = Keyring::from_bytes(&public).unwrap();
        let (inline, detached) = (secret.sign_inline(body).unwrap(), secret.sign_detached(body).unwrap());
        let signer = verify_inline(&inline, &ring, now()).unwrap().signers.remove(0);
        assert_eq!(signer.fingerprint == signer.signing_key, name == "plain");
        verify_detached(body, &detached, &ring, now()).unwrap();
        let inline = gpg.write("x.sjson", &inline);
        gpg.gpgv(&public, &[&inline]).unwrap();
        let (detached, body) = (gpg.write("x.json.gpg", &detached), gpg.write("x.json", body));
        gpg.gpgv(&public, &[&detached, &body]).unwrap();
        let own = Keyring::from_bytes(&secret.public_binary().unwrap()).unwrap();
        assert_eq!(own.fingerprints(), ring.fingerprints());
    }
    gpg.generate("crypt <c@example.org>", "rsa2048", "cert");
    let error = SigningKey::from_bytes(&gpg.run(&["--export-secret-keys", "crypt"])).unwrap_err();
    assert!(error.to_string().contains("not for signing"), "{error}");
}

#[test]
fn a_key_under_a_passphrase_is_explained() {
    let gpg = Gpg::new();
    let secret = ["--passphrase", "secret", "--quick-generate-key", "x <x@example.org>", "ed25519", "sign", "never"];
    gpg.run(&secret);
    let locked = gpg.run(&["--passphrase", "secret", "--armor", "--export-secret-keys"]);
    let error = SigningKey::from_bytes(&locked).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("passphrase"), "{error}");
    assert!(!error.hints().is_empty());
}

#[test]
fn gpgs_revocations_and_expiry_are_seen() {
    let gpg = Gpg::new();
    gpg.run(&[
        "--faked-system-time",
        "20200101T000000",
        "--quick-generate-key",
        "x <x@example.org>",
        "ed25519",
        "sign",
        "1y",
    ]);
    let file = gpg.write("x.json", b"{}\n");
    let file = file.to_str().unwrap();
    let early = gpg.run(&["--faked-system-time", "20200601T000000", "--clearsign", "-o", "-", file]);
    let ring = gpg.run(&["--export"]);
    let trusted = Keyring::from_bytes(&ring).unwrap();
    let then = "2020-07-01T00:00:00Z".parse().unwrap();
    assert!(verify_inline(&early, &trusted, then).is_ok());
    let error = verify_inline(&early, &trusted, now()).unwrap_err();
    assert!(error.to_string().contains("its key has expired"), "{error}");
    assert_eq!(trusted.keys[0].cannot_sign(now()), Some("the key has expired"));
    // GnuPG writes a revocation certificate beside each new key, disabled by a colon.
    let name = format!("openpgp-revocs.d/{}.rev", trusted.fingerprints()[0]);
    let certificate = String::from_utf8(gpg.read(&name)).unwrap().replace(":-----BEGIN", "-----BEGIN");
    let revoked = gpg.write("revoked.asc", certificate.as_bytes());
    gpg.run(&["--import", revoked.to_str().unwrap()]);
    let imported = Keyring::from_bytes(&gpg.run(&["--export"])).unwrap();
    let armored = gpg.run(&["--armor", "--export"]);
    let appended = [&armored[..], certificate.as_bytes()].concat();
    for ring in [imported, Keyring::from_bytes(&appended).unwrap()] {
        let error = verify_inline(&early, &ring, now()).unwrap_err();
        assert!(error.to_string().contains("its key was revoked"), "{error}");
    }
}
