//! The finished program without booting anything: what goes in, what comes
//! out, what is refused, what a killed command leaves.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::moments::{Moments, killed_after};
use support::{Home, LONG, Mirror, names, run, sha256, small_image, text, wait_for, write};

const KEYS: [&str; 4] = ["os=debian", "release=bookworm", "version=12", "version_name=20261101"];

fn published(home: &Home, size: &str) -> Mirror {
    let image = home.path("image.qcow2");
    small_image(&image, size);
    Mirror::with_image(home, &image, &KEYS)
}

fn blobs(home: &Home) -> Vec<String> {
    names(&home.state().join("pool/blobs/sha256"))
}

#[test]
fn sync_verifies_and_lists_what_was_published() {
    let home = Home::new();
    let mirror = published(&home, "64M");
    let first = home.ok(mirror.sync_args());
    assert!(first.starts_with("fetched "), "{first}");
    let again = home.ok(mirror.sync_args());
    assert!(again.starts_with("present "), "{again}");

    let images = home.json(["images", "release=bookworm"]);
    let image = &images[0];
    assert_eq!(image["keys"]["os"], "debian");
    assert_eq!(image["virtual_size"], 64 << 20);
    assert_eq!(blobs(&home), [sha256(&mirror.item())]);
    assert_eq!(image["blob"], format!("sha256:{}", blobs(&home)[0]));
    assert!(home.json(["images", "release=noble"]).as_array().unwrap().is_empty());
    let error = home.fails(2, ["images", "relese=bookworm"]);
    assert!(error.contains("relese") && error.contains("release"), "{error}");
    let error = home.fails(2, mirror.sync_args().into_iter().chain(["relese=bookworm".to_owned()]));
    assert!(error.contains("'relese'"), "{error}");
    assert!(home.json(["images", "version_name~^2026", "os!=ubuntu"]).as_array().unwrap().len() == 1);
}

#[test]
fn the_stream_is_what_gpgv_and_a_verifier_accept() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    home.ok(["stream", "verify", mirror.dir.to_str().unwrap()]);
    let keyring = mirror.dir.join("keyring.gpg");
    let index = mirror.dir.join("streams/v1/index.sjson");
    run("gpgv", ["--keyring", keyring.to_str().unwrap(), index.to_str().unwrap()]);
    let (body, signature) = (mirror.dir.join("streams/v1/index.json"), mirror.dir.join("streams/v1/index.json.gpg"));
    run("gpgv", ["--keyring", keyring.to_str().unwrap(), signature.to_str().unwrap(), body.to_str().unwrap()]);

    std::fs::OpenOptions::new().write(true).open(mirror.item()).unwrap().set_len(7).unwrap();
    home.fails(5, ["stream", "verify", mirror.dir.to_str().unwrap()]);
}

#[test]
fn the_server_serves_ranges_and_nothing_hidden() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let status = |args: &[&str], path: &str| {
        let url = format!("{}{path}", mirror.url);
        run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}"].iter().chain(args).chain([&url.as_str()]))
    };
    assert_eq!(status(&[], "streams/v1/index.sjson"), "200");
    assert_eq!(status(&["-r", "10-19"], "streams/v1/index.sjson"), "206");
    write(&mirror.dir.join(".hidden"), "x");
    for path in [
        ".hidden",
        ".virga-lock",
        "%2ehidden",
        "%2Ehidden",
        "images%2f.hidden",
        "streams/../.hidden",
        "../publisher.key",
    ] {
        assert_eq!(status(&["--path-as-is"], path), "404", "{path}");
    }
}

#[test]
fn a_removed_image_is_gone_from_the_stream() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let args = ["stream", "remove", mirror.dir.to_str().unwrap(), "--key", mirror.key.to_str().unwrap()];
    home.ok(args.into_iter().chain(["version_name=20261101"]));
    home.ok(["stream", "verify", mirror.dir.to_str().unwrap()]);
    let error = home.fails(3, mirror.sync_args());
    assert!(error.contains("no image"), "{error}");
}

#[test]
fn a_replayed_older_index_is_refused() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let old: Vec<(std::path::PathBuf, Vec<u8>)> = names(&mirror.dir.join("streams/v1"))
        .into_iter()
        .map(|name| mirror.dir.join("streams/v1").join(name))
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    // `updated` counts seconds.
    std::thread::sleep(Duration::from_millis(1100));
    small_image(&home.path("two.qcow2"), "2M");
    let add = ["stream", "add", mirror.dir.to_str().unwrap(), home.path("two.qcow2").to_str().unwrap(), "--key"]
        .map(str::to_owned);
    home.ok(add.into_iter().chain([
        mirror.key.display().to_string(),
        "os=debian".into(),
        "release=bookworm".into(),
        "version_name=20261102".into(),
    ]));
    home.ok(mirror.sync_args());
    for (path, bytes) in old {
        overwrite(&path, &bytes);
    }
    let error = home.fails(5, mirror.sync_args());
    assert!(error.contains("older") && error.contains("--allow-older"), "{error}");
    assert_eq!(home.json(["images"])[0]["keys"]["version_name"], "20261102");
    home.ok(mirror.sync_args().into_iter().chain(["--allow-older".to_owned()]));
}

/// What makes a mirror untrustworthy, and the exit code for it.
#[test]
fn a_tampered_mirror_is_refused_and_nothing_is_kept() {
    type Tamper = fn(&Mirror);
    let cases: [(&str, Tamper); 5] = [
        ("index", |m| replace(&m.dir.join("streams/v1/index.sjson"), "image-downloads", "image-downloadz")),
        ("products", |m| {
            let products =
                names(&m.dir.join("streams/v1")).into_iter().find(|n| n.ends_with(".sjson") && n != "index.sjson");
            replace(&m.dir.join("streams/v1").join(products.unwrap()), "bookworm", "bullseye");
        }),
        ("unsigned index", |m| {
            std::fs::copy(m.dir.join("streams/v1/index.json"), m.dir.join("streams/v1/index.sjson")).unwrap();
        }),
        ("item, same size", |m| {
            let mut bytes = std::fs::read(m.item()).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            overwrite(&m.item(), &bytes);
        }),
        ("item, longer", |m| {
            let mut bytes = std::fs::read(m.item()).unwrap();
            bytes.push(0);
            overwrite(&m.item(), &bytes);
        }),
    ];
    for (what, tamper) in cases {
        let home = Home::new();
        let mirror = published(&home, "1M");
        tamper(&mirror);
        let error = home.fails(5, mirror.sync_args());
        assert!(blobs(&home).is_empty(), "{what}: {error}");
        assert!(home.json(["images"]).as_array().unwrap().is_empty(), "{what}");
    }
}

fn replace(path: &Path, from: &str, to: &str) {
    let old = std::fs::read_to_string(path).unwrap();
    assert!(old.contains(from), "{from} is not in {}", path.display());
    overwrite(path, old.replace(from, to).as_bytes());
}

fn overwrite(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_short_body_is_an_error_that_a_later_sync_puts_right() {
    let home = Home::new();
    let mirror = published(&home, "64M");
    let whole = std::fs::read(mirror.item()).unwrap();
    overwrite(&mirror.item(), &whole[..whole.len() / 2]);
    let error = home.output(mirror.sync_args());
    assert!(matches!(error.status.code(), Some(1 | 5)), "{}", text(&error.stderr));
    assert!(blobs(&home).is_empty());
    overwrite(&mirror.item(), &whole);
    home.ok(mirror.sync_args());
    assert_eq!(blobs(&home).len(), 1);
}

#[test]
fn another_key_is_refused_and_no_keyring_is_explained() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    let other = home.path("other");
    home.ok(["stream", "init", other.to_str().unwrap(), "--key", home.path("other.key").to_str().unwrap()]);
    let keyring = other.join("keyring.gpg");
    let error = home.fails(5, ["sync", "--source", &mirror.url, "--keyring", keyring.to_str().unwrap()]);
    assert!(error.contains("no signature by a trusted key"), "{error}");
    let error = home.fails(5, ["sync", "--source", &mirror.url]);
    assert!(error.contains("--keyring"), "{error}");
    assert!(home.ok(["sync", "--source", &mirror.url, "--unsigned"]).starts_with("fetched "));
    let shown = home.ok(["images"]);
    assert!(shown.contains("UNSIGNED"), "{shown}");
}

#[test]
fn a_missing_keyring_names_the_package_that_has_it() {
    let home = Home::new();
    let streams = home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&streams).unwrap();
    write(
        &streams.join("team.toml"),
        "url = \"http://127.0.0.1:1/\"\nkeyring = \"/nonexistent/k.gpg\"\npackage = \"team-keyring\"\n",
    );
    let error = home.fails(5, ["sync", "--source", "team"]);
    assert!(error.contains("/nonexistent/k.gpg") && error.contains("'team-keyring'"), "{error}");
    assert!(home.ok(["sync", "--list-sources"]).contains("team"));
    write(&streams.join("team.toml"), "url = \"http://127.0.0.1:1/\"\nkeyrings = \"x\"\n");
    let error = home.fails(2, ["sync", "--source", "team"]);
    assert!(error.contains("team.toml") && error.contains("keyrings"), "{error}");
}

#[test]
fn hostile_images_are_refused_on_the_way_in() {
    let home = Home::new();
    let (secret, base) = (home.path("secret.qcow2"), home.path("evil.qcow2"));
    small_image(&secret, "1M");
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", secret.to_str().unwrap(), base.to_str().unwrap()],
    );
    let key = home.path("k");
    home.ok(["stream", "init", home.path("m").to_str().unwrap(), "--key", key.to_str().unwrap()]);
    let (m, k, b) = (home.path("m"), key.to_str().unwrap(), base.to_str().unwrap());
    let error = home.fails(5, ["stream", "add", m.to_str().unwrap(), b, "--key", k, "os=debian", "release=x"]);
    assert!(error.contains("backing file"), "{error}");
    let error = home.fails(5, ["create", "g", "--image", b, "--no-start"]);
    assert!(error.contains("backing file"), "{error}");
    home.assert_nothing_left();
    assert!(blobs(&home).is_empty());
}

#[test]
fn bad_requests_get_one_clear_error() {
    let home = Home::with_key();
    let image = home.path("i.qcow2");
    small_image(&image, "2G");
    let i = image.to_str().unwrap();
    let long = "a".repeat(200);
    for name in ["a/b", "a'b", "a\"b", "a\nb", "A", "-a", "", "..", &long] {
        home.fails(2, ["create", "--no-start", "--image", i, "--", name]);
    }
    let error = home.fails(2, ["images", "non sense"]);
    assert!(error.contains("filter"), "{error}");
    home.fails(2, ["create", "g", "--image", i, "--no-start", "--disk", "1G"]);
    home.fails(2, ["create", "g", "--image", i, "--no-start", "--memory", "1X"]);
    home.fails(2, ["create", "g", "--image", i, "--no-start", "--memory", "1M"]);
    home.fails(2, ["create", "g", "--image", i, "--no-start", "--user-data", "/nonexistent"]);
    home.fails(3, ["create", "g", "release=noble", "--no-start"]);
    home.fails(3, ["ssh", "g"]);
    home.fails(3, ["destroy", "g"]);
    home.fails(2, ["frobnicate"]);
    home.fails(3, ["sync", "--source", "no-such-source"]);
    home.fails(2, ["sync", "--max", "0"]);
    let error = home.fails(2, ["create", "UPPER", "--image", i]);
    assert!(error.contains("a-z"), "the rule is not told: {error}");
    home.ok(["destroy", "--if-exists", "g"]);
    home.assert_nothing_left();
}

#[test]
fn a_name_is_taken_once() {
    let home = Home::with_key();
    let image = home.path("i.qcow2");
    small_image(&image, "1M");
    home.ok(["create", "g", "--image", image.to_str().unwrap(), "--no-start"]);
    let record = std::fs::read(home.state().join("guests/g/guest.json")).unwrap();
    let error = home.fails(1, ["create", "g", "--image", image.to_str().unwrap(), "--no-start"]);
    assert!(error.contains("already"), "{error}");
    assert_eq!(
        std::fs::read(home.state().join("guests/g/guest.json")).unwrap(),
        record,
        "the first guest is untouched"
    );
    home.ok(["destroy", "g"]);
    home.assert_nothing_left();
}

#[test]
fn guests_made_at_the_same_time_do_not_disturb_each_other() {
    let home = Home::with_key();
    let image = home.path("i.qcow2");
    small_image(&image, "1M");
    let children: Vec<_> = (0..8)
        .map(|n| {
            // Two of each name: exactly one of a pair may win.
            let args = ["create".into(), format!("g{}", n / 2), "--no-start".into(), "--image".into()];
            home.virga(args).arg(&image).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let won =
        children.into_iter().filter_map(|child| child.wait_with_output().ok()).filter(|o| o.status.success()).count();
    assert_eq!(won, 4);
    assert_eq!(names(&home.state().join("guests")), ["g0", "g1", "g2", "g3"]);
    assert_eq!(blobs(&home).len(), 1);
    home.ok(["destroy", "g0", "g1", "g2", "g3"]);
    home.assert_nothing_left();
}

#[test]
fn what_create_writes_is_what_foreign_tools_read() {
    let home = Home::with_key();
    let image = home.path("i.qcow2");
    small_image(&image, "64M");
    write(&home.path("my.yaml"), "#cloud-config\nwrite_files:\n- path: /etc/motd\n  content: hello\n");
    write(&home.path("once.sh"), "#!/bin/sh\ntouch /once\n");
    let (i, y, s) = (image.to_str().unwrap(), home.path("my.yaml"), home.path("once.sh"));
    let args =
        ["create", "g", "--image", i, "--no-start", "--disk", "5G", "--ephemeral-disk", "1G", "--packages", "hello,jq"];
    home.ok(args.into_iter().chain(["--user-data", y.to_str().unwrap(), "--run-script-once", s.to_str().unwrap()]));
    let guest = home.state().join("guests/g");

    let disk = guest.join("disk.qcow2");
    run("qemu-img", ["check", "-q", disk.to_str().unwrap()]);
    let info: serde_json::Value =
        serde_json::from_str(&run("qemu-img", ["info", "--output=json", disk.to_str().unwrap()])).unwrap();
    assert_eq!(info["virtual-size"], 5u64 << 30);
    assert_eq!(info["backing-filename-format"], "qcow2");
    assert_eq!(
        info["backing-filename"],
        home.state().join("pool/blobs/sha256").join(&blobs(&home)[0]).to_str().unwrap()
    );
    run("qemu-img", ["check", "-q", guest.join("ephemeral-0.qcow2").to_str().unwrap()]);

    let seed = guest.join("seed.img");
    let label = run("blkid", ["-p", "-o", "value", "-s", "LABEL", seed.to_str().unwrap()]);
    assert_eq!(label.trim().to_lowercase(), "cidata");
    for flavour in ["-R", "-J"] {
        let listing = run("isoinfo", [flavour, "-f", "-i", seed.to_str().unwrap()]);
        for file in ["meta-data", "user-data", "network-config"] {
            assert!(listing.lines().any(|line| line == format!("/{file}")), "{flavour}: {listing}");
        }
    }
    let known = std::fs::read_to_string(guest.join("known_hosts")).unwrap();
    let alias = known.split(' ').next().unwrap();
    run("ssh-keygen", ["-F", alias, "-f", guest.join("known_hosts").to_str().unwrap()]);

    // Private: keys and user-data are in there.
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&guest).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(&seed).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn prune_frees_only_what_nothing_needs() {
    let home = Home::with_key();
    let mirror = published(&home, "1M");
    home.ok(mirror.sync_args());
    home.ok(["create", "g", "release=bookworm", "--no-start"]);
    let image = home.json(["images"])[0]["id"].as_str().unwrap().to_owned();
    let output = home.output(["images", "rm", &image]);
    assert!(text(&output.stderr).contains("stays while guests stand on it"), "{}", text(&output.stderr));
    home.ok(["prune"]);
    assert_eq!(blobs(&home).len(), 1, "a guest stands on it");
    home.ok(["destroy", "g"]);
    home.ok(["prune", "--dry-run"]);
    assert_eq!(blobs(&home).len(), 1, "a dry run removes nothing");
    home.ok(["prune"]);
    assert!(blobs(&home).is_empty());
    home.fails(3, ["images", "rm", &image]);
}

#[test]
fn a_killed_create_leaves_a_named_thing_that_destroy_removes() {
    let home = Home::with_key();
    let image = home.path("i.qcow2");
    small_image(&image, "1M");
    let args = ["create", "g", "--image", image.to_str().unwrap(), "--accel", "tcg", "--memory", "128M"];
    // What it takes here and now.
    let began = Instant::now();
    home.ok(args);
    let whole = began.elapsed();
    home.ok(["destroy", "g"]);
    let (mut kills, mut moments) = (0, Moments::new());
    let mut seen = std::collections::BTreeSet::new();
    while kills < 20 || !seen.contains("half-made") {
        kills += 1;
        assert!(kills < 500, "no kill of {kills} hit a half-made guest: {seen:?}");
        let (_, delay) = moments.next(whole);
        killed_after(delay, &mut home.virga(args));
        let listed = home.json(["list"]);
        if let Some(guest) = listed.as_array().unwrap().first() {
            seen.insert(guest["state"].as_str().unwrap().to_owned());
            home.fails(1, ["create", "g", "--image", image.to_str().unwrap(), "--no-start"]);
        }
        home.ok(["destroy", "--if-exists", "g"]);
        home.assert_nothing_left();
    }
    home.ok(["create", "g", "--image", image.to_str().unwrap(), "--no-start"]);
}

#[test]
fn two_images_of_one_content_and_two_syncs_at_once_share_the_work() {
    let home = Home::new();
    let mirror = published(&home, "64M");
    let image = home.path("image.qcow2");
    let twin =
        ["stream", "add", mirror.dir.to_str().unwrap(), image.to_str().unwrap(), "--key", mirror.key.to_str().unwrap()];
    home.ok(twin.into_iter().chain(["os=debian", "release=trixie", "version=13", "version_name=20261101"]));
    let syncs: Vec<_> = (0..3)
        .map(|_| home.virga(mirror.sync_args()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let mut fetched = 0;
    for sync in syncs {
        let output = sync.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        fetched += text(&output.stdout).lines().filter(|line| line.starts_with("fetched")).count();
    }
    assert_eq!(fetched, 1, "one content is fetched once");
    assert_eq!(home.json(["images"]).as_array().unwrap().len(), 2);
    assert_eq!(blobs(&home).len(), 1);
}

#[test]
fn interrupting_a_sync_ends_it_soon_and_cleanly() {
    let home = Home::new();
    let mirror = published(&home, "1M");
    // A server that accepts and says nothing: the sync hangs in its first request.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let keyring = mirror.dir.join("keyring.gpg");
    let args = ["sync", "--source", &url, "--keyring", keyring.to_str().unwrap()];
    let mut child = home.virga(args).stderr(Stdio::piped()).spawn().unwrap();
    silent.set_nonblocking(true).unwrap();
    let mut held = None;
    wait_for("the first request", LONG, || {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it asked for anything");
        held = silent.accept().ok();
        held.is_some()
    });
    run("kill", ["-INT", &child.id().to_string()]);
    wait_for("the end of the sync", LONG, || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(silent.accept().is_err(), "it was tried once more");
}

/// Runs virga in a mount namespace of its own, with a file system of 4 MiB as
/// its state; returns its exit code, stderr, and the files that are left there.
fn on_a_small_disk<S: AsRef<std::ffi::OsStr>>(home: &Home, args: impl IntoIterator<Item = S>) -> (i32, String, String) {
    let state = home.state();
    std::fs::create_dir_all(&state).unwrap();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$0\" && { \"$@\"; code=$?; find \"$0\" -type f; exit $code; }";
    let user = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let command = home.virga(args);
    let output = std::process::Command::new("unshare")
        .args([user, "--", "sh", "-c", script])
        .arg(&state)
        .arg(support::VIRGA)
        .args(command.get_args())
        .env_clear()
        .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output()
        .unwrap();
    (output.status.code().unwrap(), text(&output.stderr), text(&output.stdout))
}

#[test]
fn a_full_disk_is_a_clear_error() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "preallocation=full", image.to_str().unwrap(), "8M"]);
    let mirror = Mirror::with_image(&home, &image, &KEYS);
    let create = ["create", "g", "--no-start", "--image", image.to_str().unwrap()].map(str::to_owned);
    for args in [mirror.sync_args(), create.to_vec()] {
        let (code, stderr, left) = on_a_small_disk(&home, args);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("free") || stderr.contains("space"), "{stderr}");
        assert!(stderr.contains("hint: "), "{stderr}");
        assert!(!left.contains("blobs") && !left.contains("guests") && !left.contains("import-"), "{left}");
    }
}

#[test]
fn help_fits_a_terminal_and_completions_exist() {
    let home = Home::new();
    for verb in ["sync", "images", "create", "wait", "ssh", "list", "destroy", "doctor", "stream", "prune"] {
        let help = home.ok([verb, "--help"]);
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{verb}: {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.ok(["completions", shell]).contains("virga"));
    }
    home.ok(["man", home.path("man").to_str().unwrap()]);
    run("man", ["--warnings", "-l", home.path("man/virga-create.1").to_str().unwrap()]);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let home = Home::new();
    let mut child = home.virga(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn a_newer_state_folder_is_left_alone() {
    let home = Home::new();
    std::fs::create_dir_all(home.state()).unwrap();
    write(&home.state().join("version"), "99\n");
    let error = home.fails(1, ["images"]);
    assert!(error.contains("newer"), "{error}");
}
