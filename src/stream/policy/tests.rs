use pgp::packet::{KeyFlags, SubpacketData};
use pgp::types::Password;

use super::*;
use crate::stream::pgp_testing::{BORN, DAY, Recipe, at, ed25519, revocation, rsa};

fn flags(sign: bool) -> SubpacketData {
    let mut flags = KeyFlags::default();
    flags.set_certify(true);
    flags.set_sign(sign);
    SubpacketData::KeyFlags(flags)
}

fn self_signature() -> Recipe {
    Recipe::of(SignatureType::CertPositive).made(BORN)
}

type Key = pgp::composed::SignedSecretKey;

/// The judgement of a signature by the primary key and by the sub-key, at once.
fn judge(key: &Key, revocations: &[Signature], made: u32) -> [Verdict; 2] {
    judge_at(key, revocations, made, made)
}

/// As [`judge`], of one made at `made`.
fn judge_at(key: &Key, revocations: &[Signature], made: u32, now: u32) -> [Verdict; 2] {
    let keys = judge_certificate(&key.to_public_key(), revocations);
    let recipe = || Recipe::of(SignatureType::Binary).made(made);
    let primary = recipe().sign(&key.primary_key, b"x");
    let sub = recipe().sign(&key.secret_subkeys[0].key, b"x");
    [(&keys[0], primary), (&keys[1], sub)]
        .map(|(key, signature)| key.judge(&signature, SignatureType::Binary, b"x", at(now)))
}

fn good(made: u32) -> Verdict {
    Verdict::Good(at(made))
}

#[track_caller]
fn unusable(verdict: &Verdict, words: &str) {
    assert!(matches!(verdict, Verdict::Unusable(reason) if reason.contains(words)), "{verdict:?}");
}

#[test]
fn a_key_counts_while_it_is_valid() {
    let mut key = ed25519();
    assert_eq!(judge(&key, &[], BORN), [good(BORN), good(BORN)]);
    self_signature().with(flags(true)).key_expires_after(10 * DAY).certify(&mut key);
    let last = BORN + 10 * DAY - 1;
    assert_eq!(judge(&key, &[], last), [good(last), good(last)]);
    // Once it has expired, whoever has it could date what he signs as he likes.
    for (made, now) in [(last, last + 1), (last + 1, last + 1), (last + 1, last)] {
        for verdict in judge_at(&key, &[], made, now) {
            unusable(&verdict, "its key has expired");
        }
    }
}

#[test]
fn the_newest_self_signature_says_how_long_a_key_lives() {
    let mut key = ed25519();
    self_signature().with(flags(true)).key_expires_after(DAY).certify(&mut key);
    let older = key.details.users[0].signatures.clone();
    let prolonged = self_signature().made(BORN + DAY / 2).with(flags(true)).key_expires_after(50 * DAY);
    prolonged.certify(&mut key);
    key.details.users[0].signatures.extend(older);
    let made = BORN + 40 * DAY;
    assert_eq!(judge(&key, &[], made), [good(made), good(made)]);
}

#[test]
fn a_key_of_the_wrong_purpose_never_counts() {
    let mut key = ed25519();
    self_signature().with(flags(false)).certify(&mut key);
    let [primary, sub] = judge(&key, &[], BORN + DAY);
    unusable(&primary, "not for signing");
    assert_eq!(sub, good(BORN + DAY));
    // Keys from before key flags existed may sign.
    self_signature().certify(&mut key);
    assert_eq!(judge(&key, &[], BORN + DAY)[0], good(BORN + DAY));
}

#[test]
fn self_signatures_may_be_sha_1_but_not_md5() {
    let mut key = rsa().clone();
    self_signature().hash(HashAlgorithm::Sha1).with(flags(true)).certify(&mut key);
    assert_eq!(judge(&key, &[], BORN + DAY), [good(BORN + DAY), good(BORN + DAY)]);
    self_signature().hash(HashAlgorithm::Md5).with(flags(true)).certify(&mut key);
    for verdict in judge(&key, &[], BORN + DAY) {
        unusable(&verdict, "no valid self-signature");
    }
}

#[test]
fn a_key_needs_a_self_signature_of_its_own() {
    let (mut key, other) = (ed25519(), ed25519());
    key.details.users = other.details.users;
    unusable(&judge(&key, &[], BORN + DAY)[0], "no valid self-signature");
    // One directly over the key will do.
    key.details.direct_signatures = vec![Recipe::of(SignatureType::Key).with(flags(true)).over_key(&key)];
    assert_eq!(judge(&key, &[], BORN + DAY)[0], good(BORN + DAY));
}

#[test]
fn a_revoked_user_id_counts_for_nothing() {
    let mut key = ed25519();
    let recipe = || self_signature().made(BORN + DAY).with(flags(true));
    recipe().certify(&mut key);
    let certified = key.details.users[0].signatures.clone();
    // In the same second, and before it in the file: the revocation counts.
    Recipe::of(SignatureType::CertRevocation).made(BORN + DAY).certify(&mut key);
    key.details.users[0].signatures.extend(certified);
    unusable(&judge(&key, &[], BORN + DAY)[0], "no valid self-signature");
    // Certified anew, it counts again.
    let revoked = key.details.users[0].signatures.clone();
    recipe().made(BORN + 2 * DAY).certify(&mut key);
    key.details.users[0].signatures.extend(revoked);
    assert_eq!(judge(&key, &[], BORN + DAY)[0], good(BORN + DAY));
}

#[test]
fn a_revoked_key_takes_its_subkeys_along() {
    let key = ed25519();
    for made in [BORN, BORN + 20 * DAY] {
        for verdict in judge(&key, &[revocation(&key)], made) {
            unusable(&verdict, "its key was revoked");
        }
    }
    assert_eq!(judge(&key, &[revocation(&ed25519())], BORN), [good(BORN), good(BORN)]);
}

#[test]
fn a_revoked_subkey_leaves_its_primary_key() {
    let key = ed25519();
    let revoked = Recipe::of(SignatureType::SubkeyRevocation).over_subkey(&key);
    let [primary, sub] = judge(&key, &[revoked], BORN + DAY);
    assert_eq!(primary, good(BORN + DAY));
    unusable(&sub, "its sub-key was revoked");
    // The sub-key cannot revoke itself in the name of the primary key.
    let sub = &key.secret_subkeys[0].key;
    let forged = Recipe::of(SignatureType::SubkeyRevocation)
        .config(sub)
        .sign_subkey_binding(sub, key.primary_key.public_key(), &Password::empty(), sub.public_key())
        .unwrap();
    assert_eq!(judge(&key, &[forged], BORN + DAY)[1], good(BORN + DAY));
}

#[test]
fn a_subkey_must_be_bound_both_ways() {
    let mut key = ed25519();
    let mut with = |data: Vec<SubpacketData>| {
        let recipe = data.into_iter().fold(Recipe::of(SignatureType::SubkeyBinding).made(BORN), Recipe::with);
        let binding = recipe.over_subkey(&key);
        key.secret_subkeys[0].signatures = vec![binding];
        let [_, sub] = judge(&key, &[], BORN + 5 * DAY);
        sub
    };
    let back = |key: &Key| {
        let sub = &key.secret_subkeys[0].key;
        let primary = key.primary_key.public_key();
        let signature = Recipe::of(SignatureType::KeyBinding)
            .config(sub)
            .sign_primary_key_binding(sub, sub.public_key(), &Password::empty(), primary)
            .unwrap();
        SubpacketData::EmbeddedSignature(Box::new(signature))
    };
    unusable(&with(vec![flags(true)]), "has not signed the primary key back");
    unusable(&with(vec![flags(true), back(&ed25519())]), "has not signed the primary key back");
    unusable(&with(vec![]), "not for signing");
    let mut key = ed25519();
    let word = back(&key);
    let binding = Recipe::of(SignatureType::SubkeyBinding).made(BORN).with(flags(true)).with(word);
    let binding = binding.key_expires_after(6 * DAY).over_subkey(&key);
    key.secret_subkeys[0].signatures = vec![binding];
    assert_eq!(judge(&key, &[], BORN + 5 * DAY)[1], good(BORN + 5 * DAY));
    unusable(&judge(&key, &[], BORN + 6 * DAY)[1], "has expired");
    // A binding made by another primary key.
    let mut other = ed25519();
    other.secret_subkeys = key.secret_subkeys;
    unusable(&judge(&other, &[], BORN + 5 * DAY)[1], "not bound to the primary key");
}

#[test]
fn the_name_is_that_marked_primary_and_has_no_control_characters() {
    let mut key = ed25519();
    let mut second = key.details.users[0].clone();
    second.id = pgp::packet::UserId::from_str(pgp::types::PacketHeaderVersion::default(), "second\u{1b}[2J").unwrap();
    second.signatures = vec![];
    key.details.users[0].signatures.clear();
    key.details.users.push(second);
    key.details.users.swap(0, 1);
    self_signature().with(flags(true)).certify(&mut key);
    assert_eq!(judge_certificate(&key.to_public_key(), &[])[0].user_id, "second [2J");
}

#[test]
fn short_rsa_keys_are_weak() {
    let bits = modulus_bits(rsa().primary_key.public_key().public_params());
    assert_eq!(bits, 2048);
    assert_eq!(weakness(rsa().primary_key.public_key().public_params()), None);
}
