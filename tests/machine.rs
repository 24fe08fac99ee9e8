//! What can be done to a guest's machine once it is there: its size, its
//! name, its disks, its copies, its firmware. On both drivers.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::time::Instant;

use rstest::rstest;
use support::moments::{Moments, killed_after};
use support::{Home, LONG, SOLO, WARM, image, in_guest, names, run, small_image, text, tiny, wait_for, write};

/// The options that choose a driver; its name first.
const QEMU: &[&str] = &["--driver", "qemu"];
#[cfg(feature = "libvirt")]
const LIBVIRT: &[&str] = &["--driver", "libvirt"];

/// A guest that is only defined, over an image that nothing boots.
fn defined(home: &Home, name: &str, driver: &[&str], more: &[&str]) {
    let image = home.path("image.qcow2");
    if !image.exists() {
        small_image(&image, "64M");
    }
    let args = ["create", name, "--no-start", "--accel", "tcg", "--memory", "256M", "--disk", "1G"];
    home.ok(args.iter().chain(&["--image", image.to_str().unwrap()]).chain(driver).chain(more));
}

fn row(home: &Home, name: &str) -> serde_json::Value {
    let listed = home.json(["list"]);
    listed.as_array().unwrap().iter().find(|guest| guest["name"] == name).cloned().unwrap_or_default()
}

fn record(home: &Home, name: &str) -> serde_json::Value {
    let path = home.state().join("guests").join(name).join("guest.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A home in which this driver has all that it needs.
/// Real guests take turns: three at once on two cores starve each other.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn home_for(driver: &[&str]) -> Home {
    let home = Home::with_key();
    if driver[1] == "libvirt" { home.in_a_sandbox() } else { home }
}

fn virsh<const N: usize>(home: &Home, args: [&str; N]) -> String {
    home.run_beside("virsh", &[&["-q", "-c", "qemu:///system"][..], &args].concat())
}

#[cfg(feature = "libvirt")]
fn is_there(home: &Home, path: &str) -> bool {
    home.beside("test").args(["-e", path]).status().unwrap().success()
}

/// The size of the guest's first disk, as a foreign program sees it.
fn disk_size(home: &Home, name: &str, driver: &[&str]) -> u64 {
    let mut file = home.state().join("guests").join(name).join("disk.qcow2");
    if driver[1] == "libvirt" {
        let xml = virsh(home, ["dumpxml", name]);
        file = xml.split("<source file='").nth(1).unwrap().split('\'').next().unwrap().into();
    }
    let said = home.run_beside("qemu-img", &["info", "-U", "-f", "qcow2", "--output=json", file.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

#[rstest]
#[case::qemu(QEMU)]
#[cfg_attr(feature = "libvirt", case::libvirt(LIBVIRT))]
fn a_stopped_guest_is_resized_and_nothing_shrinks(#[case] driver: &[&str]) {
    let home = home_for(driver);
    let name = format!("vm-size-{}", driver[1]);
    let name = name.as_str();
    defined(&home, name, driver, &[]);
    home.ok(["resize", name, "--memory", "320M", "--cpus", "2", "--disk", "3"]);
    let listed = row(&home, name);
    assert_eq!((listed["memory"].as_u64(), listed["cpus"].as_u64()), (Some(320 << 20), Some(2)));
    assert_eq!(disk_size(&home, name, driver), 3 << 30);
    if driver[1] == "libvirt" {
        let xml = virsh(&home, ["dumpxml", name]);
        assert!(xml.contains("<vcpu placement='static'>2</vcpu>") && xml.contains(">327680</memory>"), "{xml}");
    }
    assert!(home.fails(2, ["resize", name, "--disk", "2"]).contains("cannot shrink"));
    assert!(home.fails(2, ["resize", name, "--disk", "17T"]).contains("16 TiB"));
    home.fails(2, ["resize", name, "--memory", "1M"]);
    home.fails(2, ["resize", name]);
    home.fails(3, ["resize", "vm-nobody", "--cpus", "1"]);
    home.ok(["resize", name, "--disk", "3"]);
    home.ok(["start", name]);
    assert!(home.fails(1, ["resize", name, "--cpus", "1"]).contains(&format!("virga stop {name}")));
    home.ok(["destroy", name]);
    home.assert_nothing_left();
}

/// A killed command leaves both plans in the record; whoever is next carries the change through.
#[rstest]
#[case::qemu(QEMU)]
#[cfg_attr(feature = "libvirt", case::libvirt(LIBVIRT))]
fn an_interrupted_change_is_carried_through(#[case] driver: &[&str]) {
    let home = home_for(driver);
    let name = format!("vm-half-{}", driver[1]);
    defined(&home, &name, driver, &[]);
    let path = home.state().join("guests").join(&name).join("guest.json");
    let mut record = record(&home, &name);
    record["was"] = record["plan"].clone();
    record["plan"]["disks"][0]["size"] = (2_u64 << 30).into();
    write(&path, &record.to_string());
    home.ok(["resize", &name, "--cpus", "3"]);
    assert_eq!(disk_size(&home, &name, driver), 2 << 30);
    assert!(self::record(&home, &name)["was"].is_null());
    write(&path, &record.to_string());
    home.ok(["destroy", &name]);
    home.assert_nothing_left();
}

/// Firmware starts with nothing on the disk: the shell that comes with it shows its prompt, or is refused as unsigned.
#[cfg(feature = "libvirt")]
#[rstest]
#[case::uefi("vm-uefi", &["--firmware", "uefi"], "Shell>")]
#[case::secure("vm-secure", &["--firmware", "uefi-secure"], "Security Violation")]
#[case::arm64("vm-arm64", &["--arch", "arm64"], "Shell>")]
#[case::tpm("vm-tpm", &["--firmware", "uefi", "--tpm"], "Shell>")]
fn libvirt_starts_other_firmware(#[case] name: &str, #[case] machine: &[&str], #[case] words: &str) {
    let home = home_for(LIBVIRT);
    defined(&home, name, LIBVIRT, machine);
    home.ok(["start", name]);
    wait_for(words, LONG, || home.ok(["console", name]).contains(words));
    let of_old = row(&home, name)["machine"].clone();
    assert!(of_old.as_str().unwrap().contains('-'), "no version: {of_old}");
    home.ok(["stop", "--force", name]);
    home.ok(["resize", name, "--memory", "300M"]);
    home.ok(["start", name]);
    assert_eq!(row(&home, name)["machine"], of_old);
    let variables = virsh(&home, ["dumpxml", name]);
    assert_eq!(variables.contains("<tpm model='tpm-crb'>"), machine.contains(&"--tpm"));
    let variables = variables.split("</nvram>").next().unwrap().rsplit('>').next().unwrap();
    assert!(is_there(&home, variables));
    home.ok(["destroy", name]);
    assert!(!is_there(&home, variables), "its variables are left");
    home.assert_nothing_left();
}

/// What a guest is asked, one answer a line.
const QUESTIONS: &str = "hostname; cat /etc/machine-id /var/lib/cloud/data/instance-id /sys/class/net/e*/address; \
    sudo cat /etc/ssh/ssh_host_ed25519_key.pub | cut -d ' ' -f 2; grep -c 127.0.1.1 /etc/hosts; \
    sudo ls /var/lib/cloud/instances; cat here; lsblk -bdno SIZE /dev/vda";

fn answers(home: &Home, name: &str) -> Vec<String> {
    home.ok(["wait", name, "--timeout", "20m"]);
    in_guest(home, name, QUESTIONS).lines().map(|line| line.trim().to_owned()).collect()
}

/// A real guest: its copy is another machine, it itself stays the same under another name, and both answer at once.
#[rstest]
#[case::qemu(QEMU)]
#[cfg_attr(feature = "libvirt", case::libvirt(LIBVIRT))]
fn a_copy_is_another_machine_and_a_renamed_guest_the_same(#[case] driver: &[&str]) {
    let _turn = turn();
    let home = home_for(driver);
    let home = if driver == QEMU { home.warm() } else { home };
    let machine = if driver == QEMU { &WARM[..] } else { &SOLO[..] };
    let name = |what: &str| format!("vm-{what}-{}", driver[1]);
    let (one, two, uno) = (name("one"), name("two"), name("uno"));
    let (one, two, uno) = (one.as_str(), two.as_str(), uno.as_str());
    // One real cloud-init is enough: what the seed of a copy says is the same for every driver. What it makes of another
    // name, tests/warm.rs shows.
    let image = if driver == QEMU { image() } else { tiny() };
    home.ok(["create", one, "--image", image.to_str().unwrap()].iter().chain(machine).chain(driver));
    home.ok(["wait", one, "--timeout", "20m"]);
    in_guest(&home, one, "echo content >here; sync");
    let before = answers(&home, one);
    assert_eq!(before[0], one);
    assert!(home.fails(1, ["clone", one, two]).contains("is running"));
    assert!(home.fails(1, ["rename", one, uno]).contains("is running"));
    home.ok(["stop", one]);

    home.ok(["clone", one, two]);
    assert!(home.fails(1, ["clone", one, two]).contains("already"));
    assert!(home.fails(1, ["rename", one, two]).contains("already"));
    home.ok(["rename", one, uno]);
    home.ok(["resize", uno, "--disk", "9"]);
    home.fails(3, ["rename", one, uno]);
    assert_eq!(names(&home.state().join("guests")), [two, uno]);
    home.ok(["start", two]);
    let copy = answers(&home, two);
    assert_eq!(copy[0], two);
    for (number, what) in ["host name", "machine-id", "instance-id", "address", "host key"].iter().enumerate() {
        assert_ne!(copy[number], before[number], "the copy has the original's {what}");
    }
    // The rest is as it was: one name in /etc/hosts, one instance, which is its own, and the content.
    assert_eq!(copy[5..], ["1", &copy[2], "content", &before[8]]);
    if driver != QEMU {
        home.ok(["start", uno]);
        let same = answers(&home, uno);
        assert_eq!(same[0], uno, "the host name does not follow");
        assert_eq!(same[1..5], before[1..5]);
        assert_eq!((same[7].as_str(), same[8].as_str()), ("content", "9663676416"));
    }

    // A copy stands without the original, on the same image.
    home.ok(["destroy", uno]);
    assert_eq!(in_guest(&home, two, "cat here"), "content\n");
    if driver[1] == "libvirt" {
        assert!(virsh(&home, ["dumpxml", two]).contains("<backingStore type='file'"), "the copy stands alone");
    }
    home.ok(["destroy", two]);
    home.assert_nothing_left();
    if driver[1] == "libvirt" {
        let volumes = virsh(&home, ["vol-list", "virga"]);
        assert!(![one, two, uno].iter().any(|name| volumes.contains(name)), "{volumes}");
    }
}

/// Killed at whatever moment of a rename, a guest has one of the two names, and starts under it.
#[rstest]
#[case::qemu(QEMU)]
#[cfg_attr(feature = "libvirt", case::libvirt(LIBVIRT))]
fn a_killed_rename_leaves_a_guest_under_one_name(#[case] driver: &[&str]) {
    let home = home_for(driver);
    let (one, two) = (format!("vm-ka-{}", driver[1]), format!("vm-kb-{}", driver[1]));
    defined(&home, &one, driver, &[]);
    let mut found = std::collections::BTreeSet::new();
    // What it takes here and now, there and back.
    let began = Instant::now();
    home.ok(["rename", &one, &two]);
    home.ok(["rename", &two, &one]);
    let whole = began.elapsed() / 2;
    let (mut kills, mut hits, mut moments) = (0, 0, Moments::new());
    // Until both have been seen, however busy this machine is.
    while kills < 12 || hits < 6 || found.len() < 2 {
        assert!(kills < 200, "{hits} kills of {kills} hit a rename that was at work: {found:?}");
        let from = names(&home.state().join("guests"))[0].clone();
        let to = if from == one { &two } else { &one };
        let (seed, delay) = moments.next(whole);
        hits += usize::from(killed_after(delay, &mut home.virga(["rename", &from, to])));
        kills += 1;
        let listed = home.json(["list"]);
        let listed = listed.as_array().unwrap();
        assert_eq!((listed.len(), &listed[0]["state"]), (1, &"stopped".into()), "{listed:?}, seed {seed}");
        let now = listed[0]["name"].as_str().unwrap();
        home.ok(["resize", now, "--cpus", "1"]);
        assert!(record(&home, now)["was"].is_null());
        found.insert(from == now);
    }
    let last = &names(&home.state().join("guests"))[0];
    home.ok(["start", last]);
    home.ok(["destroy", last]);
    home.assert_nothing_left();
}

/// The sizes and write protections of the disks that the guest sees.
fn seen(home: &Home, name: &str) -> Vec<String> {
    let said = in_guest(home, name, "lsblk -bdno SIZE,RO");
    said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Waits until its kernel has noticed what came and what went.
fn sees(home: &Home, name: &str, there: &[String], gone: &[String]) {
    wait_for("the disks in the guest", LONG, || {
        let now = seen(home, name);
        there.iter().all(|line| now.contains(line)) && !gone.iter().any(|line| now.contains(line))
    });
}

/// Disks of a real guest, as it runs: what it sees, what it writes, and what is left of them.
#[rstest]
#[case::qemu(QEMU)]
#[cfg_attr(feature = "libvirt", case::libvirt(LIBVIRT))]
fn disks_come_and_go_while_a_guest_runs(#[case] driver: &[&str]) {
    let _turn = turn();
    let home = home_for(driver);
    // Where libvirt's user gets to as well.
    let folder = tempfile::Builder::new().prefix("vm-disks-").permissions(open_to_all()).tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, qcow2, iso) = (file("da,ta"), file("q"), file("i"));
    write(data.as_ref(), &"x".repeat(5 << 20));
    small_image(qcow2.as_ref(), "6M");
    run("genisoimage", ["-quiet", "-V", "disc", "-o", &iso, &data]);
    let name = format!("vm-disk-{}", driver[1]);
    let name = name.as_str();
    home.ok(["create", name, "--image", tiny().to_str().unwrap()].iter().chain(&SOLO).chain(driver));
    home.ok(["wait", name, "--timeout", "20m"]);

    let made = home.ok(["attach", name, "--size", "7M"]);
    assert_eq!(made, "ephemeral-0.qcow2\n");
    let refused = home.fails(5, ["attach", name, &data]);
    assert!(refused.contains("--format raw"), "{refused}");
    assert_eq!(home.ok(["attach", name, &data, "--format", "raw"]), format!("{data}\n"));
    home.ok(["attach", name, &qcow2, "--read-only"]);
    home.ok(["attach", name, &iso]);
    assert!(home.fails(1, ["attach", name, &iso]).contains("already"));
    let of = |size: u64, read_only: u8| format!("{} {read_only}", size << 20);
    sees(&home, name, &[of(7, 0), of(5, 0), of(6, 1)], &[]);
    let write_to = "for d in /dev/vd?; do [ $(lsblk -bdno SIZE $d) != 5242880 ] || echo guest | sudo dd of=$d bs=512 \
        conv=sync,fsync status=none; done";
    in_guest(&home, name, write_to);
    assert_eq!(home.json(["list"])[0]["disks"].as_array().unwrap().len(), 5);

    home.ok(["detach", name, &data]);
    assert!(std::fs::read_to_string(&data).unwrap().starts_with("guest\n"));
    assert!(home.fails(2, ["detach", name, "ephemeral-0.qcow2"]).contains("--delete"));
    assert!(home.fails(2, ["detach", name, "disk.qcow2"]).contains("boots from"));
    assert!(home.fails(3, ["detach", name, "none"]).contains("ephemeral-0.qcow2"));
    home.ok(["detach", name, "ephemeral-0.qcow2", "--delete"]);
    sees(&home, name, &[], &[of(7, 0), of(5, 0)]);

    // Again, now that it does not run; and what is the user's outlives the guest.
    home.ok(["stop", "--force", name]);
    home.ok(["attach", name, "--size", "9M"]);
    home.ok(["attach", name, &data, "--format", "raw"]);
    home.ok(["detach", name, &qcow2]);
    home.ok(["start", name]);
    home.ok(["wait", name, "--timeout", "20m"]);
    sees(&home, name, &[of(9, 0), of(5, 0)], &[]);
    home.ok(["destroy", name]);
    for path in [&data, &qcow2, &iso] {
        assert!(std::fs::File::open(path).is_ok(), "'{path}' went with the guest");
    }
    home.assert_nothing_left();
    if driver[1] == "libvirt" {
        assert!(!virsh(&home, ["vol-list", "virga"]).contains(name));
    }
}

fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

#[rstest]
#[case::qemu(QEMU)]
#[cfg_attr(feature = "libvirt", case::libvirt(LIBVIRT))]
fn a_machine_type_is_upgraded_and_back(#[case] driver: &[&str]) {
    let home = home_for(driver);
    let name = format!("vm-type-{}", driver[1]);
    let name = name.as_str();
    defined(&home, name, driver, &[]);
    let said = |args: &[&str]| {
        let output = home.output(args);
        assert!(output.status.success());
        text(&output.stderr)
    };
    assert!(said(&["upgrade-machine-type", name]).contains("never started"));
    home.ok(["start", name]);
    let newest = row(&home, name)["machine"].as_str().unwrap().to_owned();
    assert!(home.fails(1, ["upgrade-machine-type", name]).contains("is running"));
    home.ok(["stop", "--force", name]);
    assert!(said(&["upgrade-machine-type", name]).contains("no newer"));
    home.fails(1, ["upgrade-machine-type", name, "--rollback"]);

    // As one that was made with an older QEMU.
    let path = home.state().join("guests").join(name).join("guest.json");
    let mut old = record(&home, name);
    old["plan"]["platform"]["machine"] = "pc-q35-9.0".into();
    write(&path, &old.to_string());
    let runs_as = || {
        home.ok(["start", name]);
        let machine = match driver[1] {
            "libvirt" => virsh(&home, ["dumpxml", name]),
            _ => home.processes().join(" "),
        };
        home.ok(["stop", "--force", name]);
        machine
    };
    if driver == QEMU {
        assert!(runs_as().contains("pc-q35-9.0,"));
    }
    assert!(said(&["upgrade-machine-type", name]).contains(&format!("pc-q35-9.0 and is a {newest}")));
    assert!(runs_as().contains(&newest));
    home.ok(["upgrade-machine-type", name, "--rollback"]);
    assert!(runs_as().contains("pc-q35-9.0"));
    assert_eq!(row(&home, name)["machine"], "pc-q35-9.0");
    home.ok(["destroy", name]);
    home.assert_nothing_left();
}
