//! The finished program copying streams: what is listed, fetched, mended and refused.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rstest::rstest;
use serde_json::{Value, json};
use sha2::Digest as _;
use support::{Home, run, sha256, text, write};

/// An unsigned stream in a folder, as a `file` URL.
struct Upstream<'h> {
    home: &'h Home,
    dir: PathBuf,
    id: &'static str,
    tree: Value,
}

impl<'h> Upstream<'h> {
    fn new(home: &'h Home, id: &'static str) -> Self {
        let dir = home.path(id);
        fs::create_dir_all(dir.join("streams/v1")).unwrap();
        let tree = json!({ "format": "products:1.0", "content_id": id, "datatype": "image-downloads", "products": {} });
        Upstream { home, dir, id, tree }
    }

    /// Adds an item with a content of its own and publishes.
    fn add(&mut self, [product, version, item]: [&str; 3]) -> PathBuf {
        let path = format!("{product}/{version}/{item}");
        let file = self.dir.join(&path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        write(&file, &format!("{} {path}\n", self.id).repeat(1000));
        let (release, arch) = product.split_once('-').unwrap();
        let product = &mut self.tree["products"][product];
        (product["release"], product["arch"], product["os"]) = (release.into(), arch.into(), "ubuntu".into());
        product["requirements"] = json!({ "secureboot": "false" });
        product["versions"][version]["items"][item] = json!({
            "ftype": item, "path": path, "size": file.metadata().unwrap().len(), "sha256": sha256(&file),
        });
        self.publish();
        file
    }

    fn publish(&self) {
        let path = format!("streams/v1/{}.json", self.id);
        write(&self.dir.join(&path), &self.tree.to_string());
        let entry = json!({ "format": "products:1.0", "datatype": "image-downloads", "path": path, "products": [] });
        let index = json!({ "format": "index:1.0", "index": { self.id: entry } });
        write(&self.dir.join("streams/v1/index.json"), &index.to_string());
    }

    fn url(&self) -> String {
        format!("file://{}/streams/v1/index.json", self.dir.display())
    }

    /// The arguments that copy it, and more.
    fn mirror(&self, more: &[&str]) -> Vec<String> {
        let (url, dir, key) = (self.url(), self.home.path("copy"), self.home.path("mirror.key"));
        let args = ["mirror", &url, dir.to_str().unwrap(), "--unsigned", "--key", key.to_str().unwrap()];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }
}

fn noble(home: &Home) -> Upstream<'_> {
    let mut upstream = Upstream::new(home, "up");
    for version in ["20260101", "20260102"] {
        upstream.add(["noble-amd64", version, "disk1.img"]);
        upstream.add(["noble-arm64", version, "disk1.img"]);
    }
    upstream
}

fn verified(home: &Home, dir: &Path) -> String {
    home.ok(["stream", "verify", dir.to_str().unwrap()])
}

fn inodes(dir: &Path) -> Vec<u64> {
    support::names(&dir.join("streams/v1"))
        .iter()
        .map(|name| dir.join("streams/v1").join(name).metadata().unwrap().ino())
        .collect()
}

#[test]
fn a_filtered_copy_lists_what_it_holds_and_another_virga_takes_it() {
    let home = Home::new();
    let upstream = noble(&home);
    let copy = home.path("copy");
    let plan = home.ok(upstream.mirror(&["arch=amd64", "--max", "1", "--dry-run"]));
    assert_eq!(plan, "+ noble-amd64 20260102 disk1.img noble-amd64/20260102/disk1.img 34000\n");
    assert!(!copy.exists() && !home.path("mirror.key").exists());

    home.ok(upstream.mirror(&["arch=amd64", "--max", "1"]));
    assert!(verified(&home, &copy).starts_with("1 items"));
    assert!(!copy.join(".virga-partial").exists());
    assert_eq!(copy.join("noble-amd64/20260102/disk1.img").metadata().unwrap().mode() & 0o777, 0o644);
    let before = inodes(&copy);
    assert_eq!(home.ok(upstream.mirror(&["arch=amd64", "--max", "1"])), "");
    assert_eq!(inodes(&copy), before, "nothing new, nothing written");

    // A narrower run adds, and one that covers clears.
    home.ok(upstream.mirror(&["arch=arm64", "--max", "1"]));
    assert!(verified(&home, &copy).starts_with("2 items"));
    let keyring = copy.join("keyring.gpg");
    let index = copy.join("streams/v1/index.sjson");
    run("gpgv", ["--keyring", keyring.to_str().unwrap(), index.to_str().unwrap()]);

    // The copy is a source like any other, also for the next mirror.
    let (url, second, key) = (format!("file://{}/", copy.display()), home.path("second"), home.path("second.key"));
    let again = ["mirror", &url, second.to_str().unwrap(), "--key", key.to_str().unwrap()];
    home.ok(again.into_iter().chain(["--keyring", keyring.to_str().unwrap(), "arch=arm64"]));
    assert!(verified(&home, &second).starts_with("1 items"));
    let document: Value = serde_json::from_slice(&fs::read(second.join("streams/v1/up.json")).unwrap()).unwrap();
    assert_eq!(document["products"]["noble-arm64"]["requirements"], json!({ "secureboot": "false" }));
    assert!(document["products"].get("noble-amd64").is_none());
}

#[test]
fn what_is_cut_changed_or_deleted_is_mended() {
    let home = Home::new();
    let upstream = noble(&home);
    let copy = home.path("copy");
    home.ok(upstream.mirror(&[]));
    let file = |path: &str| copy.join(path).join("disk1.img");
    fs::remove_file(file("noble-amd64/20260101")).unwrap();
    write(&file("noble-amd64/20260102"), "cut");
    let size = usize::try_from(file("noble-arm64/20260101").metadata().unwrap().len()).unwrap();
    write(&file("noble-arm64/20260101"), &"x".repeat(size));
    // Held from the run above, and mended all the same.
    let report: Value = serde_json::from_str(&home.ok(upstream.mirror(&["arch=amd64", "--format", "json"]))).unwrap();
    assert_eq!(report["fetched"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(report["documents"], json!([]));
    assert!(verified(&home, &copy).starts_with("4 items"));
}

/// A repair that was begun, and then upstream has the file no longer: what
/// there is of it gets no final name, and is listed no longer.
#[rstest]
#[case::signed_anew(false)]
#[case::as_it_came(true)]
fn what_nobody_has_any_more_is_not_offered(#[case] as_is: bool) {
    let home = Home::new();
    let upstream = noble(&home);
    let copy = home.path("copy");
    let mirror = |more: &[&str]| {
        let mut args = upstream.mirror(more);
        if as_is {
            args.retain(|arg| arg != "--key" && !arg.ends_with("mirror.key"));
            args.push("--as-is".into());
        }
        home.output(args)
    };
    assert!(mirror(&[]).status.success());
    let lost = copy.join("noble-arm64/20260101/disk1.img");
    write(&lost, "cut");
    // As a killed run leaves it.
    let partial = copy.join(".virga-partial");
    fs::create_dir(&partial).unwrap();
    let digest = sha256(&upstream.dir.join("noble-arm64/20260101/disk1.img"));
    let name = format!("sha256:{digest} noble-arm64/20260101/disk1.img");
    let name = sha2::Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    write(&partial.join(&name), "half");
    fs::remove_file(upstream.dir.join("noble-arm64/20260101/disk1.img")).unwrap();
    let output = mirror(&["arch=amd64"]);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("cannot be fetched"), "{stderr}");
    assert!(!lost.exists(), "what is wrong is not served");
    assert!(!partial.exists());
    if !as_is {
        assert!(verified(&home, &copy).starts_with("3 items"));
    }
}

#[test]
fn another_key_changes_nothing_that_is_published() {
    let home = Home::new();
    let upstream = noble(&home);
    let copy = home.path("copy");
    home.ok(upstream.mirror(&[]));
    let before = fs::read(copy.join("keyring.gpg")).unwrap();
    let mut args = upstream.mirror(&[]);
    let at = args.len() - 1;
    args[at] = home.path("slip.key").display().to_string();
    assert!(home.fails(2, &args).contains("another key"));
    assert!(!home.path("slip.key").exists());
    home.ok(["stream", "init", home.path("other").to_str().unwrap(), "--key", &args[at]]);
    assert!(home.fails(2, &args).contains("another key"));
    assert_eq!(fs::read(copy.join("keyring.gpg")).unwrap(), before);
    assert!(verified(&home, &copy).starts_with("4 items"));
}

/// Whoever can write to the folder, and has no key, must not get his text signed.
#[test]
fn text_without_a_signature_is_never_signed() {
    let home = Home::new();
    let upstream = noble(&home);
    let copy = home.path("copy");
    home.ok(upstream.mirror(&[]));
    let plain = copy.join("streams/v1/up.json");
    fs::remove_file(copy.join("streams/v1/up.sjson")).unwrap();
    let text = fs::read_to_string(&plain).unwrap();
    fs::remove_file(&plain).unwrap();
    write(&plain, &text.replace("\"ubuntu\"", "\"altered\""));
    assert!(home.fails(5, upstream.mirror(&["arch=amd64"])).contains("checking the signature"));
    fs::remove_file(copy.join("streams/v1/up.json.gpg")).unwrap();
    assert!(home.fails(5, upstream.mirror(&["arch=amd64"])).contains("checking the signature"));
}

#[test]
fn what_the_source_retires_goes_unless_it_is_kept() {
    let home = Home::new();
    let mut upstream = noble(&home);
    let copy = home.path("copy");
    home.ok(upstream.mirror(&["--max", "1"]));
    upstream.add(["noble-amd64", "20260103", "disk1.img"]);
    home.ok(upstream.mirror(&["--max", "1", "--keep"]));
    assert!(copy.join("noble-amd64/20260102/disk1.img").exists());
    let said = home.ok(upstream.mirror(&["--max", "1"]));
    assert!(said.starts_with("- noble-amd64 20260102 disk1.img"), "{said}");
    assert!(!copy.join("noble-amd64/20260102").exists());
    assert!(verified(&home, &copy).starts_with("2 items"));
    assert!(
        home.fails(3, upstream.mirror(&["release=trixie"])).contains("offers no image that matches release=trixie")
    );
    assert!(verified(&home, &copy).starts_with("2 items"));
}

#[test]
fn a_wrong_file_leaves_the_copy_as_it_was() {
    let home = Home::new();
    let mut upstream = noble(&home);
    let copy = home.path("copy");
    home.ok(upstream.mirror(&["--max", "1"]));
    let file = upstream.add(["noble-amd64", "20260103", "disk1.img"]);
    let sound = fs::read(&file).unwrap();
    write(&file, &"y".repeat(sound.len()));
    let before = inodes(&copy);
    home.fails(5, upstream.mirror(&["--max", "1"]));
    assert_eq!(inodes(&copy), before);
    assert!(!copy.join("noble-amd64/20260103").exists());
    assert!(verified(&home, &copy).starts_with("2 items"));
    fs::write(&file, sound).unwrap();
    home.ok(upstream.mirror(&["--max", "1"]));
    assert!(copy.join("noble-amd64/20260103/disk1.img").exists());
}

#[test]
fn two_sources_make_one_copy_that_incus_can_read() {
    let home = Home::new();
    let upstream = noble(&home);
    let mut lxd = Upstream::new(&home, "lxd");
    let metadata = lxd.add(["trixie-amd64", "20260101", "lxd.tar.xz"]);
    let root = lxd.add(["trixie-amd64", "20260101", "squashfs"]);
    // In place of what the source chooses by itself, which is disk images.
    let mut args = upstream.mirror(&["--max", "1", "ftype~."]);
    args.insert(2, lxd.url());
    home.ok(&args);
    let copy = home.path("copy");
    let images: Value = serde_json::from_slice(&fs::read(copy.join("streams/v1/images.json")).unwrap()).unwrap();
    let both = home.path("both");
    fs::write(&both, [fs::read(metadata).unwrap(), fs::read(root).unwrap()].concat()).unwrap();
    let item = &images["products"]["trixie-amd64"]["versions"]["20260101"]["items"]["incus.tar.xz"];
    assert_eq!(item["combined_squashfs_sha256"], sha256(&both));
    assert!(verified(&home, &copy).starts_with("6 items"));
}

#[test]
fn wrong_places_are_explained() {
    let home = Home::new();
    let upstream = noble(&home);
    fs::create_dir(home.path("copy")).unwrap();
    write(&home.path("copy/letter.txt"), "dear");
    assert!(home.fails(2, upstream.mirror(&[])).contains("holds no stream"));
    fs::remove_file(home.path("copy/letter.txt")).unwrap();
    let mut args = upstream.mirror(&[]);
    let at = args.len() - 1;
    args[at] = home.path("copy/secret.key").to_str().unwrap().to_owned();
    assert!(home.fails(2, &args).contains("secret key"));
    assert!(home.fails(2, ["mirror", "ubuntu", "--key", "k"]).contains("which folder"));
}

#[test]
fn metadata_can_stay_as_it_came() {
    let home = Home::new();
    let (dir, key) = (home.path("signed"), home.path("publisher.key"));
    home.ok(["stream", "init", dir.to_str().unwrap(), "--key", key.to_str().unwrap()]);
    let add = |version: &str| {
        let image = home.path(&format!("{version}.qcow2"));
        support::small_image(&image, "1M");
        fs::OpenOptions::new()
            .append(true)
            .open(&image)
            .unwrap()
            .set_len(262_144 + version.len() as u64 * 512 + version.bytes().map(u64::from).sum::<u64>() * 512)
            .unwrap();
        let version = format!("version_name={version}");
        home.ok([
            "stream",
            "add",
            dir.to_str().unwrap(),
            image.to_str().unwrap(),
            "--key",
            key.to_str().unwrap(),
            "os=debian",
            "release=bookworm",
            &version,
        ]);
    };
    add("20260101");
    add("20260102");
    let copy = home.path("copy");
    let keyring = dir.join("keyring.gpg").display().to_string();
    let mirror = |index: &str, more: &[&str]| {
        let url = format!("file://{}/streams/v1/{index}", dir.display());
        let args = ["mirror", &url, copy.to_str().unwrap(), "--as-is", "--keyring", &keyring].map(str::to_owned);
        home.output(args.into_iter().chain(more.iter().map(|arg| (*arg).to_owned())))
    };
    let output = mirror("index.sjson", &["--max", "1"]);
    assert!(output.status.success(), "{}", support::text(&output.stderr));
    assert!(support::text(&output.stderr).contains("1 fewer"), "{}", support::text(&output.stderr));
    for name in support::names(&copy.join("streams/v1")) {
        assert_eq!(
            fs::read(copy.join("streams/v1").join(&name)).unwrap(),
            fs::read(dir.join("streams/v1").join(&name)).unwrap()
        );
    }
    // The other form of the same metadata adds up, and both are the publisher's.
    assert!(mirror("index.json", &[]).status.success());
    assert!(!support::text(&mirror("index.json", &[]).stderr).contains("fewer"));
    assert_eq!(support::names(&copy.join("streams/v1")), support::names(&dir.join("streams/v1")));
    run("gpgv", ["--keyring", &keyring, copy.join("streams/v1/index.sjson").to_str().unwrap()]);
    let sync = home.ok(["sync", "--source", &format!("file://{}", copy.display()), "--keyring", &keyring]);
    assert!(sync.starts_with("fetched"), "{sync}");

    // What the publisher removes goes, what is damaged is mended.
    home.ok(["stream", "remove", dir.to_str().unwrap(), "--key", key.to_str().unwrap(), "version_name=20260101"]);
    let left = support::names(&copy.join("images"));
    assert_eq!(left.len(), 2);
    let kept = sha256(&home.path("20260102.qcow2"));
    write(&copy.join("images").join(&kept).join("disk1.img"), "rotten");
    let output = mirror("index.sjson", &[]);
    assert!(support::text(&output.stdout).starts_with("+ "), "{}", support::text(&output.stderr));
    assert_eq!(support::names(&copy.join("images")), [kept]);

    let args = ["mirror", &format!("file://{}", dir.display()), copy.to_str().unwrap(), "--keyring", &keyring];
    home.fails(2, args);
    home.fails(2, args.iter().chain(&["--as-is", "--key", "k"]));
}
