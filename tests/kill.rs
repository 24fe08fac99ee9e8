//! SIGKILL at any moment of a sync or a mirror's run: pool and mirror are
//! consistent, and what was verified is not fetched again.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use rstest::rstest;
use support::moments::{Moments, killed_after};
use support::slow::SlowServer;
use support::{Home, Mirror, names, run, sha256};

const ITEMS: usize = 5;
/// A stream with items of random content that intake accepts.
fn published(home: &Home) -> Mirror {
    let image = |n: usize| {
        let path = home.path(&format!("{n}.qcow2"));
        let raw = home.path("raw");
        run("dd", ["if=/dev/urandom", &format!("of={}", raw.display()), "bs=1M", "count=2", "status=none"]);
        let mut bytes = std::fs::read(&raw).unwrap();
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&raw, bytes).unwrap();
        run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), path.to_str().unwrap()]);
        path
    };
    let keys = |n: usize| ["os=debian".to_owned(), format!("release=r{n}"), "version_name=20261101".into()];
    let first = keys(0);
    let mirror = Mirror::with_image(home, &image(0), &first.each_ref().map(String::as_str));
    for n in 1..ITEMS {
        let (image, dir, key) = (image(n), mirror.dir.to_str().unwrap(), mirror.key.to_str().unwrap());
        let args = ["stream", "add", dir, image.to_str().unwrap(), "--key", key].map(str::to_owned);
        home.ok(args.into_iter().chain(keys(n)));
    }
    mirror
}

/// What the stream announces: digest of each item's path.
fn announced(mirror: &Mirror) -> BTreeMap<String, String> {
    let images = mirror.dir.join("images");
    let file = |digest: String| {
        let name = names(&images.join(&digest)).remove(0);
        (digest.clone(), format!("/images/{digest}/{name}"))
    };
    names(&images).into_iter().map(file).collect()
}

#[test]
fn fifty_kills_lose_nothing_and_fetch_nothing_twice() {
    let home = Home::new();
    let mirror = published(&home);
    let server = SlowServer::start(mirror.dir.clone());
    let announced = announced(&mirror);
    let keyring = mirror.dir.join("keyring.gpg").display().to_string();
    let args = ["--quiet", "sync", "--source", &server.url, "--keyring", &keyring];
    let blobs = home.state().join("pool/blobs/sha256");

    let start = Instant::now();
    home.ok(args);
    let whole = start.elapsed();
    let (mut kills, mut hits, mut finished) = (0, 0, BTreeSet::new());
    let mut moments = Moments::new();
    // Later kills of a round may come too late, and how many do depends on the machine.
    while kills < 50 || hits < 26 {
        // Begun anew when a round got through, so that every moment has its turn.
        std::fs::remove_dir_all(home.state()).unwrap();
        finished.clear();
        for _ in 0..5 {
            let (seed, delay) = moments.next(whole.mul_f64(0.7));
            server.asked.lock().unwrap().clear();
            hits += usize::from(killed_after(delay, &mut home.virga(args)));
            kills += 1;
            assert!(kills < 500, "only {hits} kills of {kills} hit a sync that was at work");

            for digest in &finished {
                let again = server.asked.lock().unwrap().contains(&announced[digest]);
                assert!(!again, "{digest} was there and was fetched again (after {delay:?}, seed {seed})");
            }
            finished = names(&blobs).into_iter().collect();
            for blob in &finished {
                assert!(announced.contains_key(blob), "{blob} was never announced");
                assert_eq!(sha256(&blobs.join(blob)), *blob, "a final name without its content, seed {seed}");
            }
            // All records or none, and no record without its blob.
            let images = home.json(["images"]);
            let images = images.as_array().unwrap();
            assert!(images.is_empty() || images.len() == ITEMS, "{} records, seed {seed}", images.len());
            assert!(images.iter().all(|image| image["present"] == true), "seed {seed}");
        }
    }
    home.ok(args);
    assert_eq!(home.json(["images"]).as_array().unwrap().len(), ITEMS);
    assert!(home.ok(["images", "verify"]).starts_with("5 sound"));
    home.ok(["prune"]);
    assert_eq!(names(&home.state().join("pool/partial")), Vec::<String>::new());
    assert_eq!(names(&blobs).len(), ITEMS);
}

/// Every file of a mirror that has a final name, as `announced` names it.
fn finals(dir: &Path, announced: &BTreeMap<String, String>) -> BTreeSet<String> {
    let there = |(_, path): &(&String, &String)| dir.join(path.trim_start_matches('/')).exists();
    announced.iter().filter(there).map(|(digest, _)| digest.clone()).collect()
}

#[rstest]
#[case::signed_anew(&["--key", "mirror.key"])]
#[case::as_it_came(&["--as-is"])]
fn kills_leave_a_mirror_that_clients_can_use(#[case] how: &[&str]) {
    let home = Home::new();
    let upstream = published(&home);
    let server = SlowServer::start(upstream.dir.clone());
    let announced = announced(&upstream);
    let (copy, keyring) = (home.path("copy"), upstream.dir.join("keyring.gpg").display().to_string());
    let args: Vec<&str> = ["--quiet", "mirror", &server.url, copy.to_str().unwrap(), "--keyring", &keyring]
        .into_iter()
        .chain(how.iter().copied())
        .collect();
    let keyring =
        if how.contains(&"--as-is") { keyring.clone() } else { copy.join("keyring.gpg").display().to_string() };
    let check = |seed: u32| {
        for digest in finals(&copy, &announced) {
            let path = copy.join(announced[&digest].trim_start_matches('/'));
            assert_eq!(sha256(&path), digest, "a final name without its content, seed {seed}");
        }
        if copy.join("streams/v1/index.sjson").exists() {
            let url = format!("file://{}/", copy.display());
            let offered = home.json(["images", "--remote", "--source", &url, "--keyring", &keyring]);
            let missing = offered.as_array().unwrap().len() - finals(&copy, &announced).len();
            assert_eq!(missing, 0, "listed and not there, seed {seed}");
        }
    };
    let start = Instant::now();
    home.ok(&args);
    let whole = start.elapsed();
    let (mut kills, mut hits, mut moments) = (0, 0, Moments::new());
    while hits < 10 {
        std::fs::remove_dir_all(&copy).unwrap();
        let mut finished = BTreeSet::new();
        for _ in 0..4 {
            let (seed, delay) = moments.next(whole.mul_f64(0.7));
            server.asked.lock().unwrap().clear();
            hits += usize::from(killed_after(delay, &mut home.virga(&args)));
            kills += 1;
            assert!(kills < 200, "only {hits} kills of {kills} hit a run that was at work");
            for digest in &finished {
                let again = server.asked.lock().unwrap().contains(&announced[digest]);
                assert!(!again, "{digest} was there and was fetched again (after {delay:?}, seed {seed})");
            }
            finished = finals(&copy, &announced);
            check(seed);
        }
    }
    home.ok(&args);
    check(0);
    assert_eq!(finals(&copy, &announced).len(), ITEMS);
    let own: Vec<String> = names(&copy).into_iter().filter(|name| name.starts_with(".virga-")).collect();
    assert_eq!(own, [".virga-lock"]);
}
