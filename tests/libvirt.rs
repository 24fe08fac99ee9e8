//! One libvirtd and many commands at once, hostile text, and a daemon that is
//! somewhere else. No guest boots here.
#![cfg(feature = "libvirt")]
#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use roxmltree::Document;
use support::sandbox::Sandbox;
use support::{Home, LONG, names, run, small_image, text, wait_for, write};

const LIBVIRT: [&str; 4] = ["--driver", "libvirt", "--connect", "qemu:///system"];

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

/// Of a guest's name, its domain, its record and its own volumes all are there once, or none is.
#[test]
fn two_hundred_guests_are_made_and_removed_at_once() {
    const MANY: usize = 200;
    let home = Home::with_key();
    let sandbox = Sandbox::new(&home.path("home"));
    let home = home.inside(&sandbox);
    let virsh = |args: &[&str]| sandbox.run("virsh", &[&["-q", "-c", "qemu:///system"], args].concat());
    let image = home.path("image.qcow2");
    small_image(&image, "2M");
    let image = image.to_str().unwrap();
    let wanted: BTreeSet<String> = (0..MANY).map(|number| format!("vl-{number}")).collect();

    let all_at_once = |args: &dyn Fn(&str) -> Vec<String>| {
        let started: Vec<_> = wanted
            .iter()
            .map(|name| home.virga(args(name)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        for child in started {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    };
    all_at_once(&|name| {
        let args = [&["create", name, "--no-start", "--image", image][..], &LIBVIRT].concat();
        args.into_iter().map(str::to_owned).collect()
    });
    assert_eq!(lines(&virsh(&["list", "--all", "--name"])), wanted);
    let listed = home.json(["list"]);
    let listed: BTreeSet<_> =
        listed.as_array().unwrap().iter().map(|guest| guest["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, wanted);
    // The image once, a disk and a seed for each.
    let volumes = lines(&virsh(&["vol-list", "virga"]));
    assert_eq!(volumes.len(), 1 + 2 * MANY, "{volumes:?}");
    for name in &wanted {
        assert_eq!(volumes.iter().filter(|volume| volume.starts_with(&format!("{name}."))).count(), 2, "{volumes:?}");
    }
    let domains = wanted.iter().map(|name| virsh(&["domuuid", name]).trim().to_owned());
    assert_eq!(domains.collect::<BTreeSet<_>>().len(), MANY);

    all_at_once(&|name| vec!["destroy".into(), name.into()]);
    assert_eq!(virsh(&["list", "--all", "--name"]).trim(), "");
    assert!(lines(&virsh(&["vol-list", "virga"])).len() <= 1, "at most the image: {}", virsh(&["vol-list", "virga"]));
    home.assert_nothing_left();
}

/// What a name of a file or folder may hold that XML cannot without care.
const HOSTILE: &str = "a'\"&lt;><evil/>&<![CDATA[]]>--><!--%s${x}\u{e9}";

#[test]
fn no_text_of_anybodys_becomes_markup() {
    let home = Home::with_key();
    let sandbox = Sandbox::new(&home.path("home"));
    let home = home.inside(&sandbox);
    let virsh = |args: &[&str]| sandbox.run("virsh", &[&["-c", "qemu:///system"], args].concat());
    // No slash in a file's name: '<evil/>' would be two folders.
    let hostile = HOSTILE.replace('/', "");
    let folder = home.path(&hostile);
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let image = folder.join("image.qcow2");
    small_image(&image, "2M");
    let (image, state) = (image.to_str().unwrap(), folder.join("state"));
    let virga = |args: &[&str]| home.virga(args).env("VIRGA_HOME", &state).output().unwrap();
    let ok = |args: &[&str]| {
        let output = virga(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };

    // Where the state is, which image it is, which disks: each is there as it is written, and nothing else is.
    ok(&[&["create", "vl-all", "--no-start", "--image", image][..], &LIBVIRT].concat());
    ok(&["attach", "vl-all", image, "--read-only"]);
    let xml = virsh(&["dumpxml", "--inactive", "vl-all"]);
    let read = Document::parse(&xml).unwrap();
    assert!(!read.descendants().any(|node| node.has_tag_name("evil")), "{xml}");
    let has = |tag: &str, attribute: &str, value: &str| {
        let found = read.descendants().any(|node| node.has_tag_name(tag) && node.attribute(attribute) == Some(value));
        assert!(found, "no {tag} with {attribute} '{value}': {xml}");
    };
    has("source", "file", image);
    has("log", "file", state.join("guests/vl-all/console.log").to_str().unwrap());
    assert_eq!(ok(&["list", "--format", "json"]).matches("vl-all\"").count(), 1);
    ok(&["detach", "vl-all", image]);
    ok(&["destroy", "vl-all"]);

    // What is a word of the field's is refused before anything is made.
    for option in [
        &["--network", "network=n'/><evil/>"][..],
        &["--network", "bridge=b'/><evil/>"],
        &["--network", "network=default", "--mac", "52:54:00:00:00:01'/>"],
        &["--machine", "q35'/><evil/>"],
        &["--memory", "512M'/>"],
        &["--arch", "amd64'/>"],
        &["--firmware", "uefi'/>"],
        &["--accel", "kvm'/>"],
    ] {
        let output = virga(&[&["create", "vl-no", "--no-start", "--image", image][..], &LIBVIRT, option].concat());
        assert_eq!(output.status.code(), Some(2), "{option:?}: {}", text(&output.stderr));
    }
    let output = virga(&[&["create", "a'/><evil/>", "--no-start", "--image", image][..], &LIBVIRT].concat());
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert_eq!(virsh(&["list", "--all", "--name"]).trim(), "");
    assert_eq!(names(&state.join("guests")), Vec::<String>::new());
}

/// A daemon that sees none of our files, and of whose files we see none: everything goes through its connection.
#[test]
fn a_daemon_elsewhere_keeps_guests_by_its_connection_alone() {
    let home = Home::with_key();
    let sandbox = Sandbox::new(&home.path("home"));
    let virsh = |args: &[&str]| sandbox.run("virsh", &[&["-q", "-c", "qemu:///system"], args].concat());
    // The program is outside; only this leads in.
    let way = home.path("way");
    write(&way, &format!("#!/bin/sh\nexec nsenter {} virt-ssh-helper qemu:///system\n", sandbox.enter().join(" ")));
    run("chmod", ["+x", way.to_str().unwrap()]);
    let uri = format!("qemu+ext:///system?command={}", way.display());
    let image = home.path("image.qcow2");
    small_image(&image, "2M");
    let far = ["--driver", "libvirt", "--accel", "tcg", "--connect", uri.as_str()];

    home.ok(["create", "vl-far", "--no-start", "--image", image.to_str().unwrap()].iter().chain(&far));
    assert_eq!(virsh(&["list", "--all", "--name"]).trim(), "vl-far");
    assert_eq!(home.json(["list"])[0]["state"], "stopped");
    let xml = virsh(&["dumpxml", "vl-far"]);
    assert!(!xml.contains(home.path("").to_str().unwrap()) || !xml.contains("<log "), "a file of ours is told: {xml}");
    // What came over is what was sent.
    let base = virsh(&["vol-list", "virga"]);
    let base = base.split_whitespace().find(|word| word.contains('/') && !word.contains("vl-far")).unwrap().to_owned();
    let there = sandbox.run("sha256sum", &[&base]);
    assert_eq!(there.split_whitespace().next().unwrap(), support::sha256(&image));
    assert_eq!(
        sandbox.run("qemu-img", &["check", "-U", &base]).lines().next().unwrap(),
        "No errors were found on the image."
    );

    home.ok(["start", "vl-far"]);
    assert_eq!(virsh(&["domstate", "vl-far"]).trim(), "running");
    home.ok(["suspend", "vl-far"]);
    // Nobody is in it who could be told the time: that is given up, and due.
    let mut resumed = home.virga(["resume", "vl-far"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the guest", LONG, || virsh(&["domstate", "vl-far"]).trim() == "running");
    run("kill", ["-INT", &resumed.id().to_string()]);
    assert_eq!(resumed.wait().unwrap().code(), Some(130));
    assert!(std::fs::read_to_string(home.state().join("guests/vl-far/guest.json")).unwrap().contains("clock_due"));
    let picture = home.path("far.png");
    home.ok(["screenshot", "vl-far", picture.to_str().unwrap()]);
    assert!(run("file", [picture.to_str().unwrap()]).contains("PNG image"));
    home.ok(["stop", "--force", "vl-far"]);
    home.ok(["snapshot", "create", "vl-far", "one"]);
    let error = home.fails(1, ["clone", "vl-far", "vl-copy"]);
    assert!(error.contains("virga snapshot remove vl-far one"), "{error}");
    home.ok(["snapshot", "remove", "vl-far", "one"]);
    home.ok(["clone", "vl-far", "vl-copy"]);
    home.ok(["destroy", "vl-far"]);

    // The way is gone: said in one line, nothing is made, and guests elsewhere are none the worse.
    home.ok(["create", "vl-near", "--no-start", "--driver", "qemu", "--image", image.to_str().unwrap()]);
    let blocked = home.path("blocked");
    std::fs::rename(&way, &blocked).unwrap();
    let error =
        home.fails(6, ["create", "vl-none", "--no-start", "--image", image.to_str().unwrap()].iter().chain(&far));
    assert!(error.contains("cannot be reached"), "{error}");
    let listed = home.virga(["list", "--format", "json"]).output().unwrap();
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    assert_eq!(text(&listed.stderr).matches("cannot be reached").count(), 1, "{}", text(&listed.stderr));
    let guests: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let states = guests.as_array().unwrap().iter().map(|guest| (guest["name"].as_str(), guest["state"].as_str()));
    assert_eq!(states.collect::<Vec<_>>(), [(Some("vl-copy"), Some("unknown")), (Some("vl-near"), Some("stopped"))]);
    home.ok(["destroy", "vl-near"]);
    home.fails(6, ["destroy", "vl-copy"]);
    home.fails(6, ["destroy", "vl-nobody"]);

    // A record that is lost is no reason to lose the guest: the folder knows where its guests are.
    std::fs::rename(&blocked, &way).unwrap();
    std::fs::remove_dir_all(home.state().join("guests/vl-copy")).unwrap();
    assert_eq!(home.json(["list"])[0]["state"], "orphan");
    home.ok(["destroy", "vl-copy"]);
    assert_eq!(virsh(&["list", "--all", "--name"]).trim(), "");
    assert!(lines(&virsh(&["vol-list", "virga"])).len() <= 1);
    home.assert_nothing_left();
}

/// Takes libvirt's library away from the namespaces' own view of the machine.
const WITHOUT_LIBVIRT: &str = r#"
set -eu
dir=$1
library=$(ldconfig -p | sed -n 's/.*libvirt\.so\.0 .*=> //p' | head -n 1)
folder=$(dirname "$(realpath "$library")")
mkdir "$dir/changes" "$dir/work"
mount -t overlay libraries -o "lowerdir=$folder,upperdir=$dir/changes,workdir=$dir/work" "$folder"
rm "$folder"/libvirt.so*
touch "$dir/ready"
while :; do sleep 1000 & wait; done
"#;

#[test]
fn a_host_without_libvirt_has_all_but_its_guests() {
    let home = Home::with_key();
    let sandbox = Sandbox::made("a host without libvirt", WITHOUT_LIBVIRT, &home.path("home"));
    let home = home.inside(&sandbox);
    let image = home.path("image.qcow2");
    small_image(&image, "2M");
    let image = image.to_str().unwrap();

    home.ok(["create", "vl-other", "--no-start", "--image", image]);
    assert_eq!(home.json(["list"])[0]["name"], "vl-other");
    let said = home.fails(6, [&["create", "vl-guest", "--no-start", "--image", image][..], &LIBVIRT].concat());
    for part in ["libvirt is not installed", "libvirt.so.0: cannot open", "hint: install its client library"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(home.json(["list"]).as_array().unwrap().len(), 1, "nothing is left of the one that failed");
    home.ok(["destroy", "vl-other"]);
    home.assert_nothing_left();
}
