//! uvtool's commands against a real libvirtd: what each command line prints
//! and how it ends, and that each tool finds, uses and spares what the other
//! made. The pool `uvtool` is the daemon's one and only: these tests own it.
#![cfg(feature = "libvirt")]
#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::Path;
use std::time::Instant;

use support::uvt::{KVM, STREAMS, Uvt, volume_name};
use support::{Mirror, image, os_release, run, sha256, small_image, text, write};

const PRODUCT: &str = "local.virga:server:noble:amd64";

/// A served stream with noble for two architectures.
fn published(uvt: &Uvt) -> Mirror {
    let (amd64, arm64) = (uvt.home.path("amd64.qcow2"), uvt.home.path("arm64.qcow2"));
    small_image(&amd64, "64M");
    small_image(&arm64, "65M");
    let keys = ["os=ubuntu", "release=noble", "version=24.04", "label=minimal daily", "aliases=24.04,lts,noble"];
    let with = |arch| [&keys[..], &[arch, "version_name=20261101"]].concat();
    let mirror = Mirror::with_image(&uvt.home, &amd64, &with("arch=amd64"));
    add(uvt, &mirror, &arm64, &with("arch=arm64"));
    mirror
}

fn add(uvt: &Uvt, mirror: &Mirror, image: &Path, keys: &[&str]) {
    let args = ["stream", "add", mirror.dir.to_str().unwrap(), image.to_str().unwrap(), "--key"];
    uvt.home.ok(args.into_iter().chain([mirror.key.to_str().unwrap()]).chain(keys.iter().copied()));
}

/// The arguments of a sync from there, and more.
fn sync<'a>(mirror: &'a Mirror, keyring: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["-v", "sync", "--source", &mirror.url, "--keyring", keyring], more].concat()
}

#[test]
fn sync_and_query_keep_the_contract() {
    let uvt = Uvt::new();
    let mirror = published(&uvt);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    let sync = |more: &[&str]| uvt.run(STREAMS, &sync(&mirror, &keyring, more));
    assert_eq!(uvt.run(STREAMS, &["query"]), (0, String::new(), String::new()), "nothing is there, not even a pool");
    uvt.fails(STREAMS, &["purge"], "Cannot find pool 'uvtool'");

    // Where things are missing they are made, and that is said.
    let (code, stdout, stderr) = sync(&["release=noble", "arch=amd64"]);
    assert_eq!((code, stdout), (0, format!("Adding: {PRODUCT} 20261101\n")), "{stderr}");
    let made = format!("made the storage pool 'uvtool' in '{}'", uvt.home.path("uvt/images").display());
    assert!(stderr.contains(&made) && stderr.lines().count() == 2, "{stderr}");
    assert_eq!(sync(&["release=noble", "arch=amd64"]), (0, String::new(), String::new()), "a second time");
    assert!(uvt.virsh(&["pool-info", "uvtool"]).contains("Autostart:      yes"));

    let name = volume_name(&format!("{PRODUCT} 20261101"));
    assert_eq!((uvt.volumes(), uvt.metadata()), (vec![name.clone()], vec![name.clone()]));
    assert_eq!(sha256(&uvt.in_pool(&name)), sha256(&uvt.home.path("amd64.qcow2")));
    assert!(uvt.virsh(&["vol-dumpxml", "--pool", "uvtool", &name]).contains("<format type='qcow2'/>"));
    let metadata = std::fs::read_to_string(uvt.home.path("uvt/metadata").join(&name)).unwrap();
    let python = "import json, sys; d = json.load(open(sys.argv[1])); assert all(isinstance(v, str) for v in d.values());\
        print(json.dumps(d, indent=4), end='')";
    let path = uvt.home.path("uvt/metadata").join(&name);
    assert_eq!(run("python3", ["-c", python, path.to_str().unwrap()]), metadata, "as Python would write it");
    for key in
        ["\"product_name\": \"local", "\"version_name\": \"20261101\"", "\"sha256\"", "\"content_id\"", "\"size\": \""]
    {
        assert!(metadata.contains(key), "{key}: {metadata}");
    }

    let amd64 = "release=noble arch=amd64 label=minimal daily (20261101)\n";
    let arm64 = "release=noble arch=arm64 label=minimal daily (20261101)\n";
    assert_eq!(uvt.ok(STREAMS, &["query"]), amd64);
    // Any filter at all replaces the default, which is this machine's architecture.
    assert_eq!(
        uvt.ok(STREAMS, &["sync", "--source", &mirror.url, "--keyring", &keyring]),
        "",
        "says nothing without -v"
    );
    assert_eq!(uvt.ok(STREAMS, &["query"]), amd64);
    assert_eq!(sync(&["release=noble"]).1, "Adding: local.virga:server:noble:arm64 20261101\n");
    assert_eq!(uvt.ok(STREAMS, &["query"]), format!("{amd64}{arm64}"));
    assert_eq!(uvt.ok(STREAMS, &["query", "label=minimal daily", "arch!=arm64"]), amd64);
    assert_eq!(uvt.ok(STREAMS, &["query", "release=jammy"]), "");

    // A new version takes the place of the old one, whose volume nobody needs.
    let newer = uvt.home.path("newer.qcow2");
    small_image(&newer, "66M");
    add(&uvt, &mirror, &newer, &["os=ubuntu", "release=noble", "version=24.04", "arch=amd64", "version_name=20261102"]);
    assert_eq!(sync(&["arch=amd64"]).1, format!("Adding: {PRODUCT} 20261102\nRemoving: {PRODUCT} 20261101\n"));
    assert!(!uvt.volumes().contains(&name) && uvt.volumes().len() == 2, "{:?}", uvt.volumes());
    assert_eq!(uvt.metadata(), uvt.volumes());

    uvt.ok(STREAMS, &["purge"]);
    assert!(uvt.volumes().is_empty() && uvt.metadata().is_empty());
}

#[test]
fn what_cannot_be_trusted_or_found_is_one_line_and_exit_1() {
    let uvt = Uvt::new();
    let mirror = published(&uvt);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    uvt.home.ok([
        "stream",
        "init",
        uvt.home.path("other").to_str().unwrap(),
        "--key",
        uvt.home.path("k").to_str().unwrap(),
    ]);
    let strange = uvt.home.path("other/keyring.gpg").to_str().unwrap().to_owned();
    let nowhere = format!("{}nowhere/", mirror.url);
    let from = |source: &str, more: &[&str]| {
        let all = [&["sync", "--source", source], more].concat();
        let (code, stdout, stderr) = uvt.run(STREAMS, &all);
        assert_eq!((code, stdout.as_str()), (1, ""), "{more:?}: {stderr}");
        stderr.lines().filter(|line| line.starts_with("uvt-simplestreams-libvirt: error: ")).count()
    };
    for more in [&["--keyring", strange.as_str()][..], &["--keyring", "/nonexistent"], &["--keyring", &keyring, "a b"]]
    {
        assert_eq!(from(&mirror.url, more), 1, "{more:?}");
    }
    assert_eq!(from(&nowhere, &["--keyring", &keyring]), 1);
    // Whatever the index is called, somebody has to sign it.
    assert_eq!(from(&mirror.url, &["--keyring", &strange, "--path", "streams/v1/index.json"]), 1);
    assert!(uvt.volumes().is_empty() && uvt.metadata().is_empty());

    // Nothing that matches is no error, but it is said.
    let (code, stdout, stderr) =
        uvt.run(STREAMS, &["sync", "--source", &mirror.url, "--keyring", &keyring, "release=x"]);
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (0, "", "Warning: the source has no image that matches release=x\n")
    );
    uvt.fails(STREAMS, &["query", "release=noble", "="], "'=' is not a filter");

    // Unsigned, with every way to say where the index is.
    let unsigned = |source: &str, more: &[&str]| {
        uvt.ok(STREAMS, &[&["sync", "--no-authentication", "--source", source], more].concat());
        assert_eq!(uvt.metadata().len(), 1);
        uvt.ok(STREAMS, &["purge"]);
    };
    unsigned(&mirror.url, &["arch=amd64"]);
    unsigned(mirror.url.trim_end_matches('/'), &["--path", "streams/v1/index.json", "arch=amd64"]);
    unsigned(&format!("{}streams/v1/index.json", mirror.url), &["--keyring", &keyring, "arch=amd64"]);
    // The signature beside it counts.
    uvt.ok(STREAMS, &sync(&mirror, &keyring, &["--path", "streams/v1/index.json", "arch=amd64"]));
    for usage in [&[][..], &["nonsense"], &["sync", "--nonsense"], &["query", "-v"]] {
        assert_eq!(uvt.run(STREAMS, usage).0, 2, "{usage:?}");
    }
}

/// Somebody on the way, who shows another image under the name of the real one, and one that is newer than all.
#[test]
fn what_was_taken_unsigned_stands_in_nobodys_place() {
    let uvt = Uvt::new();
    let mirror = published(&uvt);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    let (evil, theirs) = (uvt.home.path("evil"), uvt.home.path("evil.qcow2"));
    small_image(&theirs, "66M");
    let key = uvt.home.path("evil.key").display().to_string();
    uvt.home.ok(["stream", "init", evil.to_str().unwrap(), "--key", &key]);
    let show = |version: &str| {
        let version = format!("version_name={version}");
        let keys = ["os=ubuntu", "release=noble", "arch=amd64", "label=minimal daily", &version];
        let args = ["stream", "add", evil.to_str().unwrap(), theirs.to_str().unwrap(), "--key", &key];
        uvt.home.ok(args.iter().chain(&keys));
    };
    show("20261101");
    let source = format!("file://{}/", evil.display());
    let unsigned = || uvt.ok(STREAMS, &["sync", "--no-authentication", "--source", &source, "arch=amd64"]);
    let signed = || uvt.ok(STREAMS, &sync(&mirror, &keyring, &["arch=amd64"]));
    let [name, newer] = ["20261101", "99991231"].map(|version| volume_name(&format!("{PRODUCT} {version}")));
    let [good, bad] = [uvt.home.path("amd64.qcow2"), theirs.clone()].map(|image| sha256(&image));

    unsigned();
    assert_eq!(sha256(&uvt.in_pool(&name)), bad);
    assert!(uvt.run(STREAMS, &["query"]).2.contains("unsigned: release=noble"));
    signed();
    assert_eq!(sha256(&uvt.in_pool(&name)), good, "the signed one takes its place");
    unsigned();
    assert_eq!(sha256(&uvt.in_pool(&name)), good, "and keeps it");
    assert!(!uvt.run(STREAMS, &["query"]).2.contains("unsigned"));
    small_image(&theirs, "67M");
    show("99991231");
    unsigned();
    assert!(uvt.volumes().contains(&name) && uvt.volumes().contains(&newer), "{:?}", uvt.volumes());
    uvt.ok(KVM, &["create", "--no-start", "vu-which", "release=noble"]);
    assert!(uvt.virsh(&["vol-dumpxml", "--pool", "uvtool", "vu-which.qcow"]).contains(&name));
    // A guest on the unsigned one: it is not replaced under it.
    uvt.ok(KVM, &["destroy", "vu-which"]);
    uvt.ok(STREAMS, &["purge"]);
    uvt.ok(STREAMS, &["sync", "--no-authentication", "--source", &source, "arch=amd64", "version_name=20261101"]);
    uvt.ok(KVM, &["create", "--no-start", "vu-on-it", "release=noble"]);
    let stands = format!("{PRODUCT} 20261101 was taken unsigned, and a guest stands on that volume");
    uvt.fails(STREAMS, &sync(&mirror, &keyring, &["arch=amd64"]), &stands);
}

#[test]
fn each_tool_spares_and_uses_what_the_other_made() {
    let uvt = Uvt::new();
    uvt.make_pool();
    let mirror = published(&uvt);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    let old = volume_name(&format!("{PRODUCT} 20261001"));
    uvt.image_by_hand(&old, "20261001", "noble");
    assert_eq!(uvt.ok(STREAMS, &["query"]), "release=noble arch=amd64 label=release (20261001)\n");
    uvt.ok(KVM, &["create", "--no-start", "vu-old", "release=noble"]);
    assert!(uvt.virsh(&["vol-dumpxml", "--pool", "uvtool", "vu-old.qcow"]).contains(&old));

    // Volumes of the user's, attached or not, by whatever kind of disk; retired images that such disks need.
    let file = uvt.home.path("foreign.qcow2");
    small_image(&file, "2M");
    for name in ["vu-foreign.qcow2", "vu-loose.qcow2", "x-uvt-plain-mine"] {
        uvt.volume(name, &file);
    }
    let retired: Vec<String> = ["a 1", "b 1", "c 1", "d 1"].map(volume_name).to_vec();
    retired.iter().for_each(|name| uvt.volume(name, &file));
    let (a, b, c, d) = (&retired[0], &retired[1], &retired[2], &retired[3]);
    // An overlay outside all pools, over one in the pool, over a retired image: only the files say so.
    let (middle, outside) = (uvt.in_pool("vu-middle.qcow2"), uvt.home.path("outside.qcow2"));
    for (over, beneath) in [(&middle, uvt.in_pool(c)), (&outside, middle.clone())] {
        run(
            "qemu-img",
            ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", beneath.to_str().unwrap(), over.to_str().unwrap()],
        );
    }
    let volume = |name: &str, dev: &str| {
        format!("<disk type='volume'><source pool='uvtool' volume='{name}'/><target dev='{dev}'/></disk>")
    };
    let in_file = |path: &Path, dev: &str| {
        format!("<disk type='file'><source file='{}'/><target dev='{dev}'/></disk>", path.display())
    };
    let block = format!("<disk type='block'><source dev='{}'/><target dev='sdd'/></disk>", uvt.in_pool(b).display());
    let disks = [volume("vu-foreign.qcow2", "sda"), volume(a, "sdb"), in_file(&outside, "sdc"), block].concat();
    uvt.domain("vu-hand", &disks);
    // Metadata without a volume is an error that the next sync mends; other files are nobody's business.
    write(&uvt.home.path("uvt/metadata").join(volume_name("gone 1")), "{}");
    write(&uvt.home.path("uvt/metadata/notes"), "mine");

    let stdout = uvt.ok(STREAMS, &sync(&mirror, &keyring, &["arch=amd64"]));
    assert_eq!(stdout, format!("Adding: {PRODUCT} 20261101\nRemoving: {PRODUCT} 20261001\n"));
    let new = volume_name(&format!("{PRODUCT} 20261101"));
    assert_eq!(uvt.metadata(), ["notes".to_owned(), new.clone()]);
    let volumes = uvt.volumes();
    for kept in [&old, a, b, c, &new] {
        assert!(volumes.contains(kept), "{kept}");
    }
    assert!(!volumes.contains(d), "nobody needs it");
    for kept in ["vu-foreign.qcow2", "vu-loose.qcow2", "x-uvt-plain-mine", "vu-middle.qcow2", "vu-old.qcow"] {
        assert!(volumes.iter().any(|name| name == kept), "{kept} is not an image's");
    }

    // Once nobody stands on it any more it goes.
    uvt.ok(KVM, &["destroy", "vu-old"]);
    assert!(uvt.volumes().contains(&old));
    uvt.ok(KVM, &["create", "--no-start", "vu-new"]);
    uvt.ok(STREAMS, &sync(&mirror, &keyring, &["arch=amd64"]));
    assert!(!uvt.volumes().contains(&old));

    // A purge too leaves what is needed, and all that is no image.
    let (code, _, stderr) = uvt.run(STREAMS, &["purge"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains(&format!("{PRODUCT} 20261101 stays: ")), "{stderr}");
    let before: Vec<String> = volumes
        .into_iter()
        .filter(|name| ![&old, d, &"vu-old.qcow".into(), &"vu-old-ds.qcow".into()].contains(&name))
        .collect();
    let after: Vec<String> = uvt.volumes().into_iter().filter(|name| !name.starts_with("vu-new")).collect();
    assert_eq!(after, before);
    uvt.ok(KVM, &["destroy", "vu-new"]);
    uvt.virsh(&["undefine", "vu-hand"]);
    uvt.ok(STREAMS, &["purge"]);
    let left: Vec<String> = uvt.volumes().into_iter().filter(|name| name.starts_with("x-uvt-b64-")).collect();
    assert_eq!((left, uvt.metadata()), (vec![c.clone()], vec!["notes".to_owned()]), "a volume stands on it");
}

#[test]
fn a_sync_that_was_killed_is_made_whole_by_the_next() {
    let uvt = Uvt::new();
    uvt.make_pool();
    let mirror = published(&uvt);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    let name = volume_name(&format!("{PRODUCT} 20261101"));
    let half = uvt.home.path("half");
    std::fs::write(&half, b"half an image").unwrap();
    uvt.volume(&name, &half);
    uvt.ok(STREAMS, &sync(&mirror, &keyring, &["arch=amd64"]));
    assert_eq!(sha256(&uvt.in_pool(&name)), sha256(&uvt.home.path("amd64.qcow2")));
}

#[test]
fn create_keeps_the_contract_without_starting() {
    let uvt = Uvt::new();
    let mirror = published(&uvt);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    uvt.ok(STREAMS, &sync(&mirror, &keyring, &["release=noble"]));
    let create = |args: &[&str]| uvt.run(KVM, &[&["create", "--no-start"], args].concat());
    let xml = |name: &str| uvt.virsh(&["dumpxml", "--inactive", name]);

    // Defaults: no filter is the newest long-term release, and of two architectures this machine's.
    assert_eq!(create(&["vu-plain"]), (0, String::new(), String::new()));
    let plain = xml("vu-plain");
    for part in
        ["<memory unit='KiB'>524288</memory>", ">1</vcpu>", "<source network='default'/>", "uvt:ssh_known_hosts"]
    {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    assert!(plain.contains("xmlns:uvt=\"https://launchpad.net/uvtool/libvirt/1\">ssh-ed25519 AAAA"), "{plain}");
    assert!(plain.contains(&volume_name(&format!("{PRODUCT} 20261101"))));
    let volume = uvt.virsh(&["vol-dumpxml", "--pool", "uvtool", "vu-plain.qcow"]);
    assert!(volume.contains("<capacity unit='bytes'>8589934592<"), "{volume}");
    assert!(uvt.volumes().iter().any(|name| name == "vu-plain-ds.qcow"));
    let listed = uvt.home.virga(["list"]).env("VIRGA_CONNECT", "qemu:///system").output().unwrap();
    assert!(
        text(&listed.stdout).contains("vu-plain  stopped  ubuntu noble amd64 20261101"),
        "{}",
        text(&listed.stdout)
    );

    // Everything at once.
    write(&uvt.home.path("user-data"), "#cloud-config\nruncmd: [date]\n");
    write(&uvt.home.path("once"), "date\n");
    let args = "vu-all release=noble arch=amd64 --memory 768 --cpu 2 --disk 9 --ephemeral-disk 1 --ephemeral-disk 2 --bridge vubr0 \
        --disk-cache writeback --host-passthrough --developer --machine-type pc --user-data user-data --packages a,b \
        --run-script-once once --meta-data /dev/null";
    let (code, stdout, stderr) = create(&args.split_whitespace().collect::<Vec<_>>());
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    assert!(stderr.starts_with("Warning: ") && stderr.lines().count() == 1, "{stderr}");
    let all = xml("vu-all");
    for part in
        ["<memory unit='KiB'>786432<", ">2</vcpu>", "<source bridge='vubr0'/>", "machine='pc-", "<serial type='stdio'>"]
    {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert_eq!(all.matches("cache='unsafe'").count(), 4, "it wins, on all disks: {all}");
    assert_eq!(all.matches("<interface ").count(), 1);
    for (name, gib) in [("vu-all.qcow", 9_u64), ("vu-all-ephem-00.qcow", 1), ("vu-all-ephem-01.qcow", 2)] {
        let volume = uvt.virsh(&["vol-dumpxml", "--pool", "uvtool", name]);
        assert!(volume.contains(&format!("<capacity unit='bytes'>{}<", gib << 30)), "{volume}");
        assert!(volume.contains("<format type='qcow2'/>"), "{volume}");
    }
    assert!(all.contains("ssh-ed25519 AAAA"), "the host keys are there with --user-data too");

    // A file in place of an image, and the warning about passwords, word by word.
    let backing = uvt.home.path("backing.qcow2");
    small_image(&backing, "10M");
    let args = [
        "vu-file",
        "--backing-image-file",
        "backing.qcow2",
        "--password",
        "x",
        "--unsafe-caching",
        "--guest-arch",
        "vax",
    ];
    let (code, _, stderr) = create(&args);
    let warnings = "Warning: using --password from the command line is not secure and should be used for debugging only.\n\
        Warning: unknown architecture 'vax' using defaults\n";
    assert_eq!((code, stderr.as_str()), (0, warnings));
    assert!(xml("vu-file").contains(backing.to_str().unwrap()));

    // A template of the user's.
    let template = "<domain type='kvm'><name>x</name><os><type arch='x86_64' machine='q35'>hvm</type></os>\
        <description>mine</description><devices><interface type='network'><source network='default'/>\
        <model type='e1000'/></interface><serial type='pty'/></devices></domain>";
    write(&uvt.home.path("template.xml"), template);
    assert_eq!(create(&["vu-tmpl", "--template", "template.xml", "--cpu", "3", "arch=amd64"]).0, 0);
    let tmpl = xml("vu-tmpl");
    for part in
        ["<description>mine</description>", "<model type='e1000'/>", ">3</vcpu>", "vu-tmpl.qcow", "ssh_known_hosts"]
    {
        assert!(tmpl.contains(part), "{part}: {tmpl}");
    }

    let fails = |args: &[&str], message: &str| uvt.fails(KVM, &[&["create", "--no-start"], args].concat(), message);
    fails(&["vu-plain"], "libvirt: storage volume 'vu-plain.qcow' exists already");
    fails(&["vu-x", "release=jammy"], "no images found that match filters ['release=jammy'].");
    fails(&["vu-x", "release=noble", "arch~."], "multiple images found that match filters ['release=noble', 'arch~.']");
    fails(&["vu-x", "--template", "/nonexistent"], "opening '/nonexistent'");
    fails(&["vu-x", "--template", "user-data"], "the template is not XML");
    fails(&["vu-x", "--pool", "vu-none"], "Cannot find pool 'vu-none'");
    fails(&["vu-x", "="], "'=' is not a filter");
    for usage in [
        &["create"][..],
        &["create", "vu-x", "--memory", "much"],
        &["create", "vu-x", "--password", "x", "--user-data", "user-data"],
        &["create", "vu-x", "--disk-cache", "sometimes"],
        &[],
        &["nonsense"],
        &["destroy"],
        &["wait", "--timeout", "soon", "vu-plain"],
    ] {
        let (code, stdout, stderr) = uvt.run(KVM, usage);
        assert_eq!((code, stdout.as_str()), (2, ""), "{usage:?}: {stderr}");
    }
    assert!(!uvt.virsh(&["list", "--all", "--name"]).contains("vu-x"), "nothing is left of what failed");
    assert!(!uvt.volumes().iter().any(|name| name.starts_with("vu-x")));

    uvt.ok(KVM, &["destroy", "vu-plain", "vu-all", "vu-file", "vu-tmpl"]);
    assert!(!uvt.volumes().iter().any(|name| name.starts_with("vu-")), "{:?}", uvt.volumes());
    assert!(backing.exists());
    drop(mirror);
    uvt.home.assert_nothing_left();
}

#[test]
fn any_domain_is_listed_found_waited_for_and_safely_destroyed() {
    let uvt = Uvt::new();
    uvt.make_pool();
    let file = uvt.home.path("disk.qcow2");
    small_image(&file, "2M");
    for name in ["vu-guest.qcow", "vu-guest-ds.qcow", "vu-guest-ephem-00.qcow", "vu-guest-data.qcow", "vu-other.qcow"] {
        uvt.volume(name, &file);
    }
    let disk = |path: &Path, dev: &str| {
        let driver = "<driver name='qemu' type='qcow2'/>";
        format!("<disk type='file'>{driver}<source file='{}'/><target dev='{dev}'/></disk>", path.display())
    };
    let own = ["vu-guest.qcow", "vu-guest-ds.qcow", "vu-guest-ephem-00.qcow", "vu-guest-data.qcow", "vu-other.qcow"];
    let mut disks: String =
        own.iter().zip(["vda", "vdb", "vdc", "vdd", "vde"]).map(|(name, dev)| disk(&uvt.in_pool(name), dev)).collect();
    disks += &disk(&file, "vdf");
    disks += "<disk type='file' device='cdrom'><target dev='sda'/></disk>";
    let card = "<interface type='network'><mac address='52:54:00:76:75:01'/><source network='default'/></interface>";
    uvt.domain("vu-guest", &format!("{disks}{card}"));
    uvt.domain("vu-bare", "");
    uvt.domain("vu-Also", "");

    uvt.fails(KVM, &["wait", "vu-guest"], "libvirt domain 'vu-guest' is not running.");
    uvt.virsh(&["net-start", "default"]);
    uvt.virsh(&["start", "--paused", "vu-bare"]);
    uvt.virsh(&["start", "--paused", "vu-guest"]);
    let listed = uvt.ok(KVM, &["list"]);
    let ours: Vec<&str> = listed.lines().filter(|name| name.starts_with("vu-")).collect();
    assert_eq!(ours, ["vu-bare", "vu-guest", "vu-Also"], "running ones first");
    let theirs = uvt.virsh(&["-q", "list", "--all"]);
    let theirs: Vec<&str> = theirs
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|name| name.starts_with("vu-"))
        .collect();
    assert_eq!(ours, theirs);

    let unknown = "libvirt: Domain not found: no domain with matching name 'vu-none'";
    for verb in ["ip", "ssh", "wait"] {
        uvt.fails(KVM, &[verb, "vu-none"], unknown);
    }
    uvt.fails(KVM, &["ssh", "-l", "me", "you@vu-none"], &unknown.replace("vu-none", "you@vu-none"));
    uvt.fails(KVM, &["ssh", "you@vu-none"], unknown);
    uvt.fails(KVM, &["ip", "vu-guest"], "no IP address found for libvirt machine 'vu-guest'.");
    let stderr = uvt.fails(
        KVM,
        &["ssh", "vu-guest"],
        "no IP address found for libvirt machine 'vu-guest'. Has it had time to boot yet?",
    );
    assert_eq!(stderr.lines().nth(1), Some("Try: uvt-kvm wait"));
    uvt.fails(KVM, &["wait", "vu-bare"], "libvirt domain 'vu-bare' has no NIC MACs available.");
    let no_key = "ssh public host key not found. Use --insecure iff you trust your network path to the guest.";
    uvt.fails(KVM, &["wait", "vu-guest"], no_key);
    let lease = "timed out waiting for dnsmasq lease for 52:54:00:76:75:01.";
    uvt.fails(KVM, &["wait", "--timeout", "1.5", "--interval", "0.5", "--insecure", "vu-guest"], lease);
    uvt.fails(KVM, &["wait", "--timeout", "0", "--without-ssh", "vu-guest"], lease);

    // What made the original fail half-way: a snapshot, an empty drive, a disk outside of pools.
    uvt.fails(KVM, &["destroy", "vu-none"], "domain 'vu-none' not found.");
    uvt.virsh(&["destroy", "vu-guest"]);
    uvt.virsh(&["snapshot-create-as", "vu-guest", "before"]);
    let (code, _, stderr) = uvt.run(KVM, &["destroy", "vu-none", "vu-guest", "vu-bare", "vu-Also"]);
    assert_eq!((code, stderr.as_str()), (1, "uvt-kvm: error: domain 'vu-none' not found.\n"), "the others go");
    assert!(!uvt.virsh(&["list", "--all", "--name"]).contains("vu-"));
    assert_eq!(uvt.volumes(), ["vu-guest-data.qcow", "vu-other.qcow"], "what the user attached stays");
    assert!(file.exists());
}

/// The real thing, from a signed stream to a guest and back.
#[test]
fn a_guest_boots_is_waited_for_entered_and_destroyed() {
    let uvt = Uvt::new();
    let (os, release) = (os_release("ID"), os_release("VERSION_CODENAME"));
    let keys = [&format!("os={os}"), &format!("release={release}"), "version=0", "arch=amd64", "label=release"];
    let mirror = Mirror::with_image(&uvt.home, image(), &keys);
    let keyring = mirror.dir.join("keyring.gpg").to_str().unwrap().to_owned();
    uvt.ok(STREAMS, &sync(&mirror, &keyring, &["arch=amd64", keys[1]]));
    write(&uvt.home.path("once"), "echo once >/var/lib/from-script\n");
    write(&uvt.home.path("user-data"), "#cloud-config\nwrite_files: [{path: /etc/mine, content: mine}]\n");
    let args =
        ["create", "vu-boot", "--memory", "512", "--cpu", "2", "--run-script-once", "once", "--user-data", "user-data"];
    uvt.ok(KVM, &[&args[..], &[keys[1]]].concat());
    assert_eq!(uvt.ok(KVM, &["wait", "--timeout", "1200", "vu-boot"]), "");

    let address = uvt.ok(KVM, &["ip", "vu-boot"]);
    assert!(address.trim().parse::<std::net::Ipv4Addr>().is_ok(), "{address}");
    assert_eq!(uvt.ok(KVM, &["ssh", "vu-boot", "true"]), "");
    let said =
        uvt.ok(KVM, &["ssh", "--insecure", &format!("{os}@vu-boot"), "hostname; cat /etc/mine /var/lib/from-script"]);
    assert_eq!(said, "vu-boot\nmineonce\n");
    assert_eq!(uvt.run(KVM, &["ssh", "vu-boot", "exit", "7"]).0, 7, "the command's own code");
    let terminal = uvt.run(KVM, &["ssh", "-l", &os, "vu-boot", "--", "-tt", "tty"]);
    assert!(terminal.1.starts_with("/dev/pts/"), "options of ssh's own behind '--': {terminal:?}");
    assert!(!uvt.home.path("home/.ssh/known_hosts").exists(), "the user's own file is left alone");

    // A script of the user's own, what it is told, and what becomes of its exit code.
    write(&uvt.home.path("script"), "echo $UVTOOL_WAIT_INTERVAL $UVTOOL_WAIT_TIMEOUT\n");
    assert_eq!(
        uvt.ok(KVM, &["wait", "--remote-wait-script", "script", "--timeout", "1200", "vu-boot"]),
        "8.0 1200.0\n"
    );
    write(&uvt.home.path("script"), "exit 3\n");
    let began = Instant::now();
    uvt.fails(
        KVM,
        &["wait", "--remote-wait-script", "script", "vu-boot"],
        "the remote wait script failed with exit code 3",
    );
    // So long that all before the script takes a quarter of it at most; the script itself would never end.
    let limit = (4 * (began.elapsed().as_secs() + 1)).to_string();
    write(&uvt.home.path("script"), "sleep 36000\n");
    let late = format!("timed out waiting for the remote wait script on {}.", address.trim());
    uvt.fails(KVM, &["wait", "--remote-wait-script", "script", "--timeout", &limit, "vu-boot"], &late);

    // As the original would find it: no record of virga's, and then no host keys either.
    std::fs::rename(uvt.home.state().join("guests"), uvt.home.path("aside")).unwrap();
    let (user_at, key) = (format!("{os}@vu-boot"), uvt.home.path("home/.ssh/id_ed25519").to_str().unwrap().to_owned());
    let with_key = ["--", "-i", &key, "hostname"];
    assert_eq!(uvt.ok(KVM, &[&["ssh", &user_at][..], &with_key].concat()), "vu-boot\n");
    let uri = "https://launchpad.net/uvtool/libvirt/1";
    uvt.virsh(&["metadata", "vu-boot", "--uri", uri, "--remove", "--live", "--config"]);
    let no_key = "ssh public host key not found. Use --insecure iff you trust your network path to the guest.";
    uvt.fails(KVM, &["ssh", &user_at, "true"], no_key);
    assert_eq!(uvt.ok(KVM, &[&["ssh", "--insecure", &user_at][..], &with_key].concat()), "vu-boot\n");
    uvt.ok(KVM, &["wait", "--insecure", "--remote-wait-user", &os, "--ssh-private-key-file", &key, "vu-boot"]);
    uvt.ok(KVM, &["wait", "--without-ssh", "vu-boot"]);
    uvt.ok(KVM, &["destroy", "vu-boot"]);
    assert!(!uvt.virsh(&["list", "--all", "--name"]).contains("vu-"));
    assert!(!uvt.volumes().iter().any(|name| name.starts_with("vu-")), "{:?}", uvt.volumes());
}
