//! What fuzzing kept (`fuzz/run`), replayed: no panic, and what must hold for
//! any bytes holds for these.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

#[path = "../fuzz/targets/checks.rs"]
mod checks;

use std::path::{Path, PathBuf};

use virga::stream::key::Keyring;

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "the corpus of {target} is gone");
    files
}

#[test]
fn clearsigned_texts() {
    let keyring = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/keyring.gpg");
    let keyring = Keyring::from_file(&keyring).unwrap();
    let mut verified = 0;
    for file in corpus("clearsigned") {
        let bytes = std::fs::read(&file).unwrap();
        checks::clearsigned(&bytes, &keyring);
        verified += usize::from(virga::stream::signed::verify_inline(&bytes, &keyring, jiff::Timestamp::now()).is_ok());
    }
    assert!(verified > 0, "no text of the corpus verifies: the fuzzer would never get beyond the armour");
}

#[test]
fn indexes() {
    corpus("index").iter().for_each(|file| checks::index(&std::fs::read(file).unwrap()));
}

#[test]
fn products() {
    corpus("products").iter().for_each(|file| checks::products(&std::fs::read(file).unwrap()));
}

#[test]
fn frames() {
    corpus("frame").iter().for_each(|file| checks::frame(&std::fs::read(file).unwrap()));
}

#[test]
fn texts_to_be_shown() {
    corpus("harmless").iter().for_each(|file| checks::harmless(&std::fs::read(file).unwrap()));
}

#[test]
fn disk_images() {
    corpus("qcow2").iter().for_each(|file| checks::qcow2(file));
}
