//! Whoever plays somebody else: each test is an attacker with real trees, signed by real keys.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{Home, Mirror, names, run, small_image, text, wait_for, write};

const KEYS: [&str; 4] = ["os=debian", "release=bookworm", "version=12", "version_name=20261101"];

fn published(home: &Home) -> Mirror {
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    Mirror::with_image(home, &image, &KEYS)
}

/// Publishes one more version.
fn publish(home: &Home, mirror: &Mirror, size: &str, version: &str) {
    // `updated` counts seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let image = home.path(&format!("{version}.qcow2"));
    small_image(&image, size);
    let (dir, key) = (mirror.dir.to_str().unwrap(), mirror.key.to_str().unwrap());
    let version = format!("version_name={version}");
    home.ok(["stream", "add", dir, image.to_str().unwrap(), "--key", key, "os=debian", "release=bookworm", &version]);
}

/// The documents of a tree as they are now.
fn documents(mirror: &Mirror) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = mirror.dir.join("streams/v1");
    let paths = names(&folder).into_iter().map(|name| folder.join(name));
    paths.filter(|path| path.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// A tree as the attacker serves it.
fn serve(documents: &[(PathBuf, Vec<u8>)]) {
    documents.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
}

/// The same tree with all signatures taken off.
fn bare(documents: &[(PathBuf, Vec<u8>)]) -> Vec<(PathBuf, Vec<u8>)> {
    let plain = |path: &Path| {
        let twin = path.with_extension("json");
        documents.iter().find(|(path, _)| *path == twin).map(|(_, bytes)| bytes.clone())
    };
    documents.iter().map(|(path, bytes)| (path.clone(), plain(path).unwrap_or_else(|| bytes.clone()))).collect()
}

fn sync(mirror: &Mirror, more: &[&str]) -> Vec<String> {
    mirror.sync_args().into_iter().chain(more.iter().map(|arg| (*arg).to_owned())).collect()
}

/// What is in the pool: version, trust and state.
fn pooled(home: &Home) -> Vec<String> {
    let listed = home.ok(["images", "--template", "{version_name} {trust} {state}"]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn an_unsigned_run_erases_nothing_of_what_was_verified() {
    let home = Home::with_key();
    let mirror = published(&home);
    let old = documents(&mirror);
    publish(&home, &mirror, "2M", "20261102");
    let new = documents(&mirror);
    home.ok(mirror.sync_args());
    serve(&old);
    let refused = |home: &Home| {
        let error = home.fails(5, mirror.sync_args());
        assert!(error.contains("older than the one that was verified last"), "{error}");
    };
    refused(&home);

    // A keyring is missing for a day, and somebody adds --unsigned.
    serve(&bare(&new));
    let unsigned = ["sync", "--source", &mirror.url, "--unsigned"];
    assert!(home.ok(unsigned).starts_with("present "));
    serve(&bare(&old));
    home.fails(5, unsigned);
    home.ok(unsigned.iter().chain(&["--allow-older"]));
    serve(&old);
    refused(&home);
    let signed = |home: &Home| {
        let signed = pooled(home).into_iter().filter(|line| line.contains(" signed "));
        signed.collect::<Vec<_>>()
    };
    assert_eq!(signed(&home), ["20261102 signed ready"], "neither replaced nor retired");
    home.ok(["create", "g", "release=bookworm", "--no-start"]);
    assert_eq!(home.json(["list"])[0]["trust"], "signed");

    // Nor does a run with other keys, after which the copies are not theirs.
    let other = home.path("other");
    let key = home.path("other.key");
    home.ok(["stream", "init", other.to_str().unwrap(), "--key", key.to_str().unwrap()]);
    let ring = other.join("keyring.gpg").display().to_string();
    let mine = mirror.dir.join("keyring.gpg");
    let both = home.path("both.gpg");
    std::fs::write(&both, [std::fs::read(&ring).unwrap(), std::fs::read(&mine).unwrap()].concat()).unwrap();
    home.fails(5, ["sync", "--source", &mirror.url, "--keyring", &ring]);
    home.fails(5, ["sync", "--source", &mirror.url, "--keyring", both.to_str().unwrap()]);

    // The copies may go altogether.
    std::fs::remove_dir_all(home.state().join("pool/streams")).unwrap();
    refused(&home);
    // Only the flag lowers what is remembered, and then for good.
    home.ok(sync(&mirror, &["--allow-older"]));
    home.ok(mirror.sync_args());
    serve(&new);
    home.ok(mirror.sync_args());
    serve(&old);
    refused(&home);
}

#[test]
fn what_was_verified_last_is_carried_from_one_machine_to_the_next() {
    let home = Home::new();
    let mirror = published(&home);
    let old = documents(&mirror);
    publish(&home, &mirror, "2M", "20261102");
    home.ok(mirror.sync_args());
    serve(&old);
    let fresh = Home::new();
    let carried = fresh.state().join("verified");
    std::fs::create_dir_all(&carried).unwrap();
    for name in names(&home.state().join("verified")) {
        std::fs::copy(home.state().join("verified").join(&name), carried.join(&name)).unwrap();
    }
    let error = fresh.fails(5, mirror.sync_args());
    assert!(error.contains("older than the one that was verified last"), "{error}");
    // Without it, first contact takes what is signed.
    Home::new().ok(mirror.sync_args());
    // What cannot be read is no first contact.
    let file = names(&carried).into_iter().find(|name| name.ends_with(".json")).unwrap();
    write(&carried.join(file), "torn");
    fresh.fails(1, mirror.sync_args());
}

/// A mirror that is stuck is asked by `mirror` as by `sync`, and a file that another run wrote counts for both.
#[test]
fn a_mirror_run_remembers_and_is_reminded() {
    let home = Home::new();
    let upstream = published(&home);
    let old = documents(&upstream);
    publish(&home, &upstream, "2M", "20261102");
    home.ok(upstream.sync_args());
    serve(&old);
    let (copy, key) = (home.path("copy"), home.path("copy.key"));
    let ring = upstream.dir.join("keyring.gpg").display().to_string();
    let args = ["mirror", &upstream.url, copy.to_str().unwrap(), "--keyring", &ring, "--key", key.to_str().unwrap()];
    let error = home.fails(5, args);
    assert!(error.contains("older than the one that was verified last"), "{error}");
}

#[test]
fn an_unsigned_image_is_never_used_in_silence() {
    let home = Home::with_key();
    let mirror = published(&home);
    let unsigned = ["sync", "--source", &mirror.url, "--unsigned"];
    home.ok(unsigned);
    let image = &home.json(["images"])[0];
    assert_eq!(image["trust"], "unsigned");
    let id = image["id"].as_str().unwrap().to_owned();
    let error = home.fails(3, ["create", "g", "release=bookworm", "--no-start"]);
    assert!(error.contains("only unsigned images match") && error.contains("trust=unsigned"), "{error}");

    // Asked for, it is taken, and said to be what it is from then on.
    for (name, filters) in [("asked", vec!["release=bookworm", "trust=unsigned"]), ("named", vec![id.as_str()])] {
        let output = home.output([&["create", name, "--no-start"], &filters[..]].concat());
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains(&format!("image {id} is unsigned")), "{said}");
        let record = std::fs::read_to_string(home.state().join("guests").join(name).join("guest.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["origin"]["trust"], "unsigned");
        assert_eq!(home.json(["info", name])["trust"], "unsigned");
        assert!(home.ok(["info", name]).contains("UNSIGNED"));
    }
    assert_eq!(home.ok(["list"]).matches("UNSIGNED").count(), 2);
    assert!(home.ok(["images"]).contains("UNSIGNED"));
    home.ok(["clone", "asked", "copied"]);
    assert_eq!(home.json(["info", "copied"])["trust"], "unsigned", "a copy is no better");
    home.ok(["destroy", "asked", "named", "copied"]);

    // The same bytes, signed: filters mean that one, which is no other product.
    home.ok(mirror.sync_args());
    assert_eq!(pooled(&home), ["20261101 signed ready", "20261101 unsigned ready"]);
    let output = home.output(["create", "g", "release=bookworm", "--no-start"]);
    assert!(output.status.success() && !text(&output.stderr).contains("unsigned"), "{}", text(&output.stderr));
    assert_eq!(home.json(["list"])[0]["trust"], "signed");
    home.ok(["create", "any", "release=bookworm", "trust~.", "--no-start"]);
    assert_eq!(home.json(["info", "any"])["trust"], "signed");
    let only = |filter: &str| home.ok(["images", filter, "--template", "{trust}"]);
    assert_eq!((only("trust=unsigned").trim(), only("trust!=unsigned").trim()), ("unsigned", "signed"));

    // An unsigned run may say whatever it likes of the same version: the signed record stays.
    publish(&home, &mirror, "2M", "20261102");
    serve(&bare(&documents(&mirror)));
    home.ok(unsigned);
    assert!(pooled(&home).contains(&"20261101 signed ready".to_owned()), "{:?}", pooled(&home));
    // Filters about trust are for the pool; a source is taken on the terms that were given.
    home.ok(unsigned.iter().chain(&["trust=unsigned"]));
    let error = home.fails(3, sync(&mirror, &["trust=unsigned"]));
    assert!(error.contains("is taken signed"), "{error}");
}

/// A file that the user names is theirs, and no image's word is taken for its own trust.
#[test]
fn a_stream_does_not_say_how_it_is_trusted() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let mirror = Mirror::with_image(&home, &image, &[&KEYS[..], &["trust=signed"]].concat());
    home.ok(["sync", "--source", &mirror.url, "--unsigned"]);
    assert_eq!(pooled(&home), ["20261101 unsigned ready"]);
    home.fails(3, ["create", "g", "release=bookworm", "trust=signed", "--no-start"]);
    home.ok(["create", "g", "--image", image.to_str().unwrap(), "--no-start"]);
    assert_eq!(home.json(["info", "g"])["trust"], "own");
}

/// A stream with another content id, signed by the same key, in the place of the first.
#[test]
fn one_stream_does_not_pose_as_another_that_the_same_key_signs() {
    let home = Home::new();
    let released = published(&home);
    let index = std::fs::read_to_string(released.dir.join("streams/v1/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let id = index["index"].as_object().unwrap().keys().next().unwrap().clone();
    let streams = home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&streams).unwrap();
    let keyring = released.dir.join("keyring.gpg").display().to_string();
    let source = |pins: &str| {
        let text = format!("url = '{}'\nkeyring = '{keyring}'\ncontent-id = {pins}\n", released.url);
        write(&streams.join("lab.toml"), &text);
    };
    let sync = ["sync", "--source", "lab"];
    source("'com.example:released:download'");
    let error = home.fails(5, sync);
    assert!(error.contains("is another stream") && error.contains(&id) && error.contains("content-id"), "{error}");
    assert!(home.json(["images"]).as_array().unwrap().is_empty());
    home.fails(5, ["images", "--remote", "--source", "lab"]);
    source(&format!("['com.example:released:*', '{}*']", &id[..id.len() - 3]));
    home.ok(sync);
    source(&format!("'{id}'"));
    home.ok(sync);
}

/// Documents of another stream, in an index that has the right ones too.
#[test]
fn what_an_index_has_besides_is_not_read() {
    let home = Home::new();
    let mirror = published(&home);
    let other = home.path("other.qcow2");
    small_image(&other, "3M");
    let [dir, key, other] = [&mirror.dir, &mirror.key, &other].map(|path| path.display().to_string());
    home.ok(["stream", "init", &dir, "--key", &key, "--content-id", "com.example:daily:download"]);
    home.ok([
        "stream",
        "add",
        &dir,
        &other,
        "--key",
        &key,
        "content_id=com.example:daily:download",
        "os=debian",
        "release=bookworm",
        "version_name=29990101",
    ]);
    let streams = home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&streams).unwrap();
    let pinned = |pins: &str| {
        let text = format!("url = '{}'\nkeyring = '{dir}/keyring.gpg'\n{pins}\n", mirror.url);
        write(&streams.join("lab.toml"), &text);
        let lines = home.ok(["images", "--remote", "--source", "lab", "--template", "{version_name}"]);
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(pinned("content-id = 'com.example:*'"), ["29990101"]);
    assert_eq!(pinned("content-id = 'local.virga:*'"), ["20261101"]);
    home.ok(["sync", "--source", "lab"]);
    assert_eq!(pooled(&home), ["20261101 signed ready"]);
    assert_eq!(pinned("").len(), 2);
}

/// What `run` may fetch, it may use; what is there and signed comes first.
#[test]
fn run_takes_an_unsigned_image_from_whoever_may_fetch_one() {
    let home = Home::with_key();
    let mirror = published(&home);
    home.ok(["sync", "--source", &mirror.url, "--unsigned"]);
    let machine = ["run", "release=bookworm", "--accel", "tcg", "--memory", "128M", "--boot-timeout", "1s"];
    let error = home.fails(125, [&machine[..], &["--offline", "--", "true"]].concat());
    assert!(error.contains("trust=unsigned"), "{error}");
    let unsigned = [&machine[..], &["--source", &mirror.url, "--unsigned", "--", "true"]].concat();
    // Nothing is on the disk, so it does not come up; but it was made.
    assert!(home.fails(125, &unsigned).contains(" is unsigned: "));
    home.ok(mirror.sync_args());
    assert!(!home.fails(125, &unsigned).contains("unsigned"));
}

#[test]
fn the_first_sync_of_an_old_stream_is_spoken_of() {
    let home = Home::new();
    let mirror = published(&home);
    let output = home.output(mirror.sync_args());
    assert!(output.status.success() && !text(&output.stderr).contains("held back"), "{}", text(&output.stderr));

    // The documents as they were signed long ago, with a key that was there already.
    let gpg = home.path("gpg");
    std::fs::create_dir(&gpg).unwrap();
    let signed_ago = |days: u64, args: &[&str]| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let time = format!("--faked-system-time={}", now - days * 24 * 3600);
        run(
            "gpg",
            [
                &[
                    "--homedir",
                    gpg.to_str().unwrap(),
                    "--batch",
                    "--yes",
                    "--pinentry-mode=loopback",
                    "--passphrase=",
                    "--digest-algo=SHA512",
                    &time,
                ],
                args,
            ]
            .concat(),
        );
    };
    run("chmod", ["700", gpg.to_str().unwrap()]);
    signed_ago(100, &["--quick-generate-key", "old <old@example.com>", "rsa3072", "sign", "never"]);
    let ring = home.path("old.gpg").display().to_string();
    signed_ago(0, &["--output", &ring, "--export"]);
    let sign = |days: u64| {
        for (plain, _) in documents(&mirror) {
            if plain.extension().is_some_and(|ext| ext == "json") {
                let [inline, beside] = ["sjson", "json.gpg"].map(|end| plain.with_extension(end).display().to_string());
                let plain = plain.display().to_string();
                signed_ago(days, &["--output", &inline, "--clearsign", &plain]);
                signed_ago(days, &["--output", &beside, "--detach-sign", &plain]);
            }
        }
    };
    sign(50);
    let args = ["sync", "--source", &mirror.url, "--keyring", &ring];
    let output = home.output(args);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("more than 45 days ago") && said.contains("max-age"), "{said}");
    sign(40);
    assert!(!text(&home.output(args).stderr).contains("days ago"));
    // It ends a moment after it was told to.
    run("gpgconf", ["--homedir", gpg.to_str().unwrap(), "--kill", "gpg-agent"]);
    wait_for("gpg's agent to end", Duration::from_secs(60), || {
        !home.processes().iter().any(|line| line.contains("gpg-agent"))
    });
}

#[test]
fn a_mirror_of_unsigned_images_says_that_they_were() {
    let home = Home::new();
    let upstream = published(&home);
    let ring = upstream.dir.join("keyring.gpg").display().to_string();
    let explained = |from: &Path, n: usize| {
        let client = Home::new();
        let (url, keyring) = (format!("file://{}/", from.display()), from.join("keyring.gpg"));
        client.ok(["sync", "--source", &url, "--keyring", keyring.to_str().unwrap()]);
        assert_eq!(client.json(["images"])[0]["trust"], "signed", "{n}");
        client.ok(["images", "--explain"])
    };
    let mirror = |from: &str, to: &Path, terms: &[&str]| {
        let key = home.path("mirror.key");
        let args = ["mirror", from, to.to_str().unwrap(), "--key", key.to_str().unwrap()];
        home.ok([&args[..], terms].concat());
    };
    let (signed, unsigned, again) = (home.path("signed"), home.path("unsigned"), home.path("again"));
    mirror(&upstream.url, &signed, &["--keyring", &ring]);
    let said = explained(&signed, 1);
    assert!(said.contains("upstream  signed by ") && !said.contains("UNSIGNED"), "{said}");
    mirror(&upstream.url, &unsigned, &["--unsigned"]);
    let said = explained(&unsigned, 2);
    assert!(said.contains("upstream  UNSIGNED"), "{said}");
    // A mirror of that mirror, which is signed, does not make it better.
    let key = unsigned.join("keyring.gpg").display().to_string();
    mirror(&format!("file://{}/", unsigned.display()), &again, &["--keyring", &key]);
    let said = explained(&again, 3);
    assert!(said.contains("upstream  UNSIGNED"), "{said}");
}
