//! What a sync promises: everything verified, all at once or nothing, no more
//! than needed over the network.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::BufRead as _;
use std::process::Stdio;
use std::time::Duration;

use support::{Holder, Home, Mirror, names, run, sha256, small_image, text, write};

const KEYS: [&str; 4] = ["os=debian", "release=bookworm", "version=12", "version_name=20261101"];

fn published(home: &Home, size: &str) -> Mirror {
    let image = home.path("image.qcow2");
    small_image(&image, size);
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

fn blobs(home: &Home) -> Vec<String> {
    names(&home.state().join("pool/blobs/sha256"))
}

fn keyring(mirror: &Mirror) -> String {
    mirror.dir.join("keyring.gpg").display().to_string()
}

/// The generation files of all sources, as they lie there.
fn state(home: &Home) -> Vec<(String, Vec<u8>)> {
    let streams = home.state().join("pool/streams");
    let folders = names(&streams).into_iter().map(|name| streams.join(name));
    let files = folders.flat_map(|folder| names(&folder).into_iter().map(move |name| folder.join(name)));
    files
        .filter(|path| path.file_name().is_some_and(|name| name != "lock"))
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn a_sync_that_fails_half_way_leaves_the_old_state() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    home.ok(mirror.sync_args());
    let before = state(&home);
    publish(&home, &mirror, "2M", "20261102");
    let image = home.path("20261102.qcow2");
    let item = mirror.dir.join(format!("images/{}/disk1.img", sha256(&image)));
    let bytes = std::fs::read(&item).unwrap();
    write(&item, "torn");
    let error = home.fails(5, mirror.sync_args());
    assert!(error.contains("announced"), "{error}");
    assert_eq!(state(&home), before, "metadata and records are those of the last good sync");
    assert_eq!(home.json(["images"])[0]["keys"]["version_name"], "20261101");

    std::fs::write(&item, bytes).unwrap();
    let output = home.ok(mirror.sync_args());
    assert!(output.contains("fetched") && output.contains("retired"), "{output}");
}

/// What another one fetches is waited for, not fetched twice; whom it waits for, it says.
#[test]
fn a_download_that_another_sync_holds_is_waited_for() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let digest = names(&mirror.dir.join("images")).remove(0);
    let partial = home.state().join(format!("pool/partial/{digest}"));
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    let lock = partial.with_extension("lock");
    write(&lock, "pid 1: virga sync\n");
    let holder = Holder::of(&lock);
    let keyring = keyring(&mirror);
    let args = ["-v", "sync", "--source", &mirror.url, "--keyring", &keyring];
    let mut sync = home.virga(args).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(sync.stderr.take().unwrap()).lines().map_while(Result::ok);
    let told = said.find(|line| line.contains("is being fetched already (pid 1: virga sync)"));
    assert!(told.is_some() && sync.try_wait().unwrap().is_none());
    drop(holder);
    let rest: Vec<String> = said.collect();
    assert!(sync.wait().unwrap().success(), "{rest:?}");
    assert_eq!(blobs(&home).len(), 1);
}

#[test]
fn older_versions_retire_and_go_when_no_guest_needs_them() {
    let home = Home::with_key();
    let mirror = published(&home, "1M");
    home.ok(mirror.sync_args());
    home.ok(["create", "g", "release=bookworm", "--no-start"]);
    publish(&home, &mirror, "2M", "20261102");
    home.ok(mirror.sync_args());
    let states = |home: &Home| -> Vec<String> {
        let lines = home.ok(["images", "--template", "{version_name} {state} {guests}"]);
        lines.lines().map(str::to_owned).collect()
    };
    assert_eq!(states(&home), ["20261102 ready 0", "20261101 retired 1"]);
    home.ok(["prune"]);
    assert_eq!(states(&home).len(), 2, "a guest stands on the retired one");
    home.ok(["create", "new", "release=bookworm", "--no-start"]);
    assert_eq!(states(&home)[0], "20261102 ready 1");
    home.ok(["destroy", "g", "new"]);
    home.ok(["prune"]);
    assert_eq!(states(&home), ["20261102 ready 0"]);
    assert_eq!(blobs(&home).len(), 1);

    // What is offered again is no longer retired, and --keep retires nothing.
    home.ok(mirror.sync_args().into_iter().chain(["--max".into(), "2".into()]));
    home.ok(mirror.sync_args());
    assert_eq!(states(&home), ["20261102 ready 0", "20261101 retired 0"]);
    let again = home.ok(mirror.sync_args().into_iter().chain(["--max".into(), "2".into(), "--keep".into()]));
    assert!(!again.contains("fetched"), "{again}");
    home.ok(mirror.sync_args().into_iter().chain(["--keep".into()]));
    assert_eq!(states(&home), ["20261102 ready 0", "20261101 ready 0"]);
}

#[test]
fn without_a_network_the_last_verified_metadata_counts() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let args = mirror.sync_args();
    let offline = || args.clone().into_iter().chain(["--offline".to_owned()]);
    let error = home.fails(3, offline());
    assert!(error.contains("never fetched"), "{error}");
    home.ok(args.clone());
    let keyring = keyring(&mirror);
    let url = mirror.url.clone();
    let dir = mirror.dir.clone();
    drop(mirror);
    assert!(home.ok(offline()).starts_with("present "));
    let output = home.output(args.clone());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("verified last"), "{}", text(&output.stderr));
    let remote = home.ok([
        "images",
        "--remote",
        "--offline",
        "--source",
        &url,
        "--keyring",
        &keyring,
        "--template",
        "{release} {item_url}",
    ]);
    assert!(remote.starts_with("bookworm http://127.0.0.1:"), "{remote}");
    // The copy is verified each time: with other keys it is worth nothing.
    let other = home.path("other");
    let other_key = home.path("other.key");
    home.ok(["stream", "init", other.to_str().unwrap(), "--key", other_key.to_str().unwrap()]);
    let wrong = other.join("keyring.gpg").display().to_string();
    home.fails(5, ["sync", "--source", &url, "--keyring", &wrong, "--offline"]);
    assert!(dir.exists());
}

#[test]
fn a_detached_signature_is_checked_and_needed() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let url = format!("{}streams/v1/index.json", mirror.url);
    let args = ["sync", "--source", &url, "--keyring", &keyring(&mirror)].map(str::to_owned);
    assert!(home.ok(args.clone()).starts_with("fetched "));
    assert!(home.ok(args.clone()).starts_with("present "));
    let products = names(&mirror.dir.join("streams/v1")).into_iter().find(|name| name.contains("local.virga")).unwrap();
    let products = mirror.dir.join("streams/v1").join(products.replace(".sjson", ".json"));
    let signature = format!("{}.gpg", products.display());

    let plain = std::fs::read_to_string(&products).unwrap();
    write(&products, &plain.replace("\"bookworm\"", "\"bookwormz\""));
    assert!(home.fails(5, args.clone()).contains("not verified"));
    write(&products, &plain);
    std::fs::remove_file(&signature).unwrap();
    let fresh = Home::new();
    assert!(fresh.fails(5, args.clone()).contains("is not signed"));
    assert!(blobs(&fresh).is_empty());
}

#[test]
fn sources_are_tried_in_turn() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let keyring = keyring(&mirror);
    // A listener that is closed again: nobody answers there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{closed}/");
    let output = home.output(["sync", "--source", &dead, "--source", &mirror.url, "--keyring", &keyring]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("fetched "));
    assert!(text(&output.stderr).contains("trying"), "{}", text(&output.stderr));
    // The last one's error is the answer.
    home.fails(1, ["sync", "--source", &dead, "--source", &dead, "--keyring", &keyring]);
}

#[test]
fn the_chain_of_trust_is_shown() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let synced = home.ok(mirror.sync_args().into_iter().chain(["--explain".to_owned()]));
    let id = home.ok(["images", "--template", "{id}"]);
    let shown = home.ok(["images", "--explain", id.trim()]);
    let fingerprint = run("gpg", ["--show-keys", "--with-colons", &keyring(&mirror)])
        .lines()
        .find_map(|line| line.strip_prefix("fpr:").map(|rest| rest.trim_matches(':').to_owned()))
        .unwrap();
    let index = format!("{}streams/v1/index.sjson", mirror.url);
    for part in [fingerprint.as_str(), &index, "products", &sha256(&mirror.item()), "virga stream", "SHA"] {
        assert!(shown.contains(part) && synced.contains(part), "{part}\n{shown}");
    }
    let chain = &home.json(["images"])[0]["chain"];
    assert_eq!(chain["index"]["signature"]["fingerprint"], fingerprint);
}

#[test]
fn rot_is_found_moved_aside_and_healed_by_the_next_sync() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::with_key();
    let mirror = published(&home, "1M");
    home.ok(mirror.sync_args());
    home.ok(["create", "g", "release=bookworm", "--no-start"]);
    assert!(home.ok(["images", "verify"]).starts_with("1 sound"));
    let blob = home.state().join("pool/blobs/sha256").join(&blobs(&home)[0]);
    std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    let error = home.fails(5, ["images", "verify"]);
    assert!(error.contains("guests cannot start: g"), "{error}");
    assert!(blobs(&home).is_empty());
    assert_eq!(home.ok(["images", "--template", "{state}"]).trim(), "missing");
    home.fails(3, ["create", "h", "release=bookworm", "--no-start"]);
    assert!(home.ok(mirror.sync_args()).starts_with("fetched "));
    assert!(home.ok(["images", "verify"]).starts_with("1 sound"));
    home.ok(["prune"]);
    assert!(names(&home.state().join("pool/quarantine")).is_empty());
}

#[test]
fn what_a_source_offers_is_listed_without_fetching_it() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    publish(&home, &mirror, "2M", "20261102");
    let (url, keyring) = (mirror.url.clone(), keyring(&mirror));
    let base = ["images", "--remote", "--source", &url, "--keyring", &keyring];
    let lines = |more: &[&str]| home.ok(base.iter().chain(more));
    assert_eq!(lines(&["--template", "{version_name} {ftype}"]), "20261102 disk1.img\n20261101 disk1.img\n");
    assert_eq!(lines(&["--max", "1", "--template", "{version_name}"]), "20261102\n");
    assert_eq!(lines(&["version_name=20261101", "--template", "{sha256}"]).trim(), sha256(&home.path("image.qcow2")));
    assert!(lines(&[]).contains("20261102"));
    let json: serde_json::Value = serde_json::from_str(&lines(&["--format", "json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert!(lines(&["release=noble"]).is_empty());
    home.fails(2, base.iter().chain(&["--template", "{no_such_key}"]));
    home.fails(2, base.iter().chain(&["--template", "{"]));
    home.fails(2, ["images", "--source", &url]);
    assert!(blobs(&home).is_empty());
}

#[test]
fn images_are_called_what_people_call_them() {
    let home = Home::with_key();
    let mirror = published(&home, "1M");
    let sync = |name: &str| home.output(mirror.sync_args().into_iter().chain([name.to_owned()]));
    assert_eq!(sync("trixie").status.code(), Some(3));
    let arch = virga::base::Arch::host().to_string();
    for name in ["bookworm", "12", "debian/bookworm", &format!("debian/12/{arch}")] {
        assert!(sync(name).status.success(), "{name}");
    }
    home.ok(["create", "g", &format!("bookworm/{arch}"), "--no-start"]);
    let error = home.fails(3, ["create", "h", "noble", "--no-start"]);
    assert!(error.contains("virga sync noble"), "{error}");
}

#[test]
fn a_source_that_nobody_signs_needs_the_users_word() {
    let home = Home::new();
    let error = home.fails(5, ["sync", "--source", "linuxcontainers"]);
    assert!(error.contains("--unsigned") && error.contains("signed = false"), "{error}");
    let listed = home.ok(["sync", "--list-sources"]);
    let line = listed.lines().find(|line| line.starts_with("linuxcontainers")).unwrap();
    assert!(line.contains("UNSIGNED"), "{line}");
}

#[test]
fn metadata_beyond_its_greatest_age_is_refused() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let streams = home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&streams).unwrap();
    let source = |age: &str| {
        write(
            &streams.join("lab.toml"),
            &format!("url = '{}'\nkeyring = '{}'\nmax-age = '{age}'\n", mirror.url, keyring(&mirror)),
        );
    };
    source("1h");
    home.ok(["sync", "--source", "lab"]);
    source("1s");
    // `updated` counts seconds, and more than one must have passed.
    std::thread::sleep(Duration::from_millis(2100));
    let error = home.fails(5, ["sync", "--source", "lab"]);
    assert!(error.contains("too old") && error.contains("max-age"), "{error}");
    home.ok(["sync", "--source", "lab", "--allow-older"]);
}

#[test]
fn a_mirror_of_the_source_stands_in_for_it() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let streams = home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&streams).unwrap();
    let text = format!("url = 'http://{closed}/'\nkeyring = '{}'\nmirrors = ['{}']\n", keyring(&mirror), mirror.url);
    write(&streams.join("lab.toml"), &text);
    assert!(home.ok(["sync", "--source", "lab"]).starts_with("fetched "));
}

/// `stream add` of a container's root.
fn add_root(mirror: &Mirror, root: &std::path::Path, more: &[&str]) -> Vec<String> {
    let [dir, root, key] = [&mirror.dir, root, &mirror.key].map(|path| path.display().to_string());
    let args = ["stream".to_owned(), "add".into(), dir, root, "--key".into(), key];
    args.into_iter().chain(more.iter().map(|arg| (*arg).to_owned())).collect()
}

/// What is in the pool: type, version, state.
fn pooled(home: &Home) -> Vec<String> {
    let listed = home.ok(["images", "--template", "{ftype} {version_name} {state}"]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn a_container_image_is_published_verified_and_fetched_as_a_pair() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let [squashfs, packed] = support::small_roots(&home, "bookworm");
    let keys = ["os=debian", "release=bookworm", "version=12", "version_name=20261102"];
    let said = home.ok(add_root(&mirror, &squashfs, &keys));
    assert!(said.starts_with("added ") && said.contains(" 20261102 "), "{said}");
    assert!(home.ok(add_root(&mirror, &squashfs, &keys)).starts_with("present "), "twice is once");
    let dir = mirror.dir.to_str().unwrap();
    assert!(home.ok(["stream", "verify", dir]).starts_with("4 items"), "disk, metadata twice, root");

    // Another root with the metadata of the first one, in a later version.
    let metadata = home.path("metadata.tar.xz");
    let item = run("find", [dir, "-name", "incus.tar.xz"]);
    std::fs::copy(item.trim(), &metadata).unwrap();
    let later = ["version_name=20261103", "--metadata", metadata.to_str().unwrap()];
    assert!(home.ok(add_root(&mirror, &packed, &later)).starts_with("added "), "os and release are in the metadata");

    // The default is a disk; containers are asked for.
    home.ok(mirror.sync_args());
    assert_eq!(pooled(&home), ["disk1.img 20261101 ready"]);
    let mut args = mirror.sync_args();
    args.push("--container".into());
    assert!(home.ok([&args[..], &["--max=5".into(), "--dry-run".into()]].concat()).matches("would fetch").count() == 4);
    home.ok(&args);
    let both = ["incus.tar.xz 20261103 metadata", "root.tar.xz 20261103 root"];
    assert_eq!(pooled(&home), [&both[..], &["disk1.img 20261101 ready"]].concat());
    assert!(home.json(["images"]).as_array().unwrap().iter().any(|image| image["ftype"] == "root.tar.xz"));
    let again = home.ok(&args);
    assert!(!again.contains("fetched") && !again.contains("retired"), "{again}");
    let error = home.fails(2, [&args[..], &["ftype=squashfs".into()]].concat());
    assert!(error.contains("--container"), "{error}");

    // A version that has both kinds of roots is taken as a squashfs, once. `updated` counts seconds.
    std::thread::sleep(Duration::from_millis(1100));
    home.ok(add_root(&mirror, &squashfs, &later));
    let report = home.ok(&args);
    assert!(report.contains("fetched") && report.contains("retired"), "{report}");
    assert!(pooled(&home).contains(&"squashfs 20261103 root".to_owned()));

    // A root goes with its metadata.
    let key = mirror.key.to_str().unwrap();
    let gone = home.ok(["stream", "remove", dir, "--key", key, "version_name=20261102", "ftype=squashfs"]);
    assert_eq!(gone.lines().count(), 3, "{gone}");
    home.ok(["stream", "verify", dir]);
}

#[test]
fn what_is_no_sound_container_image_is_not_published() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let [squashfs, packed] = support::small_roots(&home, "bookworm");
    let before = run("find", [mirror.dir.to_str().unwrap()]);
    let refused = |code: i32, root: &std::path::Path, more: &[&str], part: &str| {
        let error = home.fails(code, add_root(&mirror, root, &[&["os=debian", "release=bookworm"], more].concat()));
        assert!(error.contains(part), "{error}");
    };
    let path = |name: &str| home.path(name);
    let packed_text = packed.display().to_string();
    let gz = path("root.tar.gz");
    run("sh", ["-c", &format!("xz -dc {packed_text} | gzip >{}", gz.display())]);
    refused(2, &gz, &[], "squashfs and root.tar.xz");
    let evil = path("evil.tar.xz");
    run("tar", ["-cJf", evil.to_str().unwrap(), "-P", "--transform=s,^,../,", "-C", "/", "usr/bin/true"]);
    refused(5, &evil, &[], "leads upwards");
    refused(2, &squashfs, &["ftype=root.tar.xz"], "is a squashfs");
    let etc = path("etc.tar.xz").display().to_string();
    run("tar", ["-C", path("bookworm.tree").to_str().unwrap(), "-cJf", &etc, "etc"]);
    refused(5, &squashfs, &["--metadata", &etc], "metadata.yaml");
    refused(5, &squashfs, &["--metadata", &packed_text], "neither file nor folder");
    refused(2, &path("image.qcow2"), &["--metadata", &packed_text], "no root file system");
    write(&path("metadata.yaml"), "architecture: aarch64\ncreation_date: 1\n");
    let arm = path("arm.tar.xz").display().to_string();
    run("tar", ["-C", path("").to_str().unwrap(), "-cJf", &arm, "metadata.yaml"]);
    refused(2, &squashfs, &["arch=amd64", "--metadata", &arm], "'aarch64', not 'amd64'");
    let torn = path("torn.tar.xz");
    let bytes = std::fs::read(&packed).unwrap();
    std::fs::write(&torn, &bytes[..bytes.len() - 40]).unwrap();
    refused(5, &torn, &[], "cut short");
    assert_eq!(run("find", [mirror.dir.to_str().unwrap()]), before);
}
