//! The verbs of a day's work against real QEMU processes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use super::super::tests::{Rig, eventually};
use super::*;
use crate::base::cmd::Cmd;
use crate::base::fs;
use crate::base::poll::{self, LONG};
use crate::driver::{Saved, Status, Stop};

/// The ticks that the BIOS counts: a guest's memory that changes as long as it runs.
fn ticks(plan: &GuestPlan) -> u64 {
    let said = talk(plan, ANSWER).unwrap().monitor("xp /1wx 0x46c").unwrap();
    u64::from_str_radix(said.trim().rsplit("0x").next().unwrap(), 16).unwrap()
}

fn greeted(rig: &Rig, plan: &GuestPlan) {
    eventually("its greeting", || !rig.driver.console_tail(plan, 1).unwrap().is_empty());
}

#[test]
fn a_held_guest_stands_still_and_goes_on() {
    let rig = Rig::new();
    let plan = rig.talking("web", b"hello\r\n\0", true);
    assert!(rig.driver.suspend(&plan).unwrap_err().to_string().contains("not running"));
    rig.up(&plan);
    greeted(&rig, &plan);
    for _ in 0..2 {
        rig.driver.suspend(&plan).unwrap();
        assert_eq!(rig.driver.status(&plan).unwrap(), Status::Paused);
    }
    let before = ticks(&plan);
    assert_eq!(ticks(&plan), before);
    for _ in 0..2 {
        rig.driver.release(&plan).unwrap();
        assert_eq!(rig.driver.status(&plan).unwrap(), Status::Running);
    }
    eventually("the next tick", || ticks(&plan) > before);
    assert!(rig.driver.details(&plan).unwrap().machine.unwrap().starts_with("pc-q35-"));
    assert_eq!(rig.driver.set_autostart(&plan, Some(Autostart::default())).unwrap_err().kind(), Kind::Unsupported);
}

/// One byte of the disk, as an offset that the image beneath it does not reach.
fn disk_byte(plan: &GuestPlan, command: &str) -> bool {
    let image = args::image(&plan.disks[0]).unwrap();
    let said = Cmd::new("qemu-io").args(["-c", command]).arg(image).output().unwrap();
    said.status.success() && !said.text().contains("verification failed")
}

#[test]
fn disks_of_a_stopped_guest_are_put_back() {
    let rig = Rig::new();
    let mut plan = rig.talking("web", b"hello\r\n\0", true);
    let mut second = plan.disks[0].clone();
    second.path.set_file_name("second.qcow2");
    second.chain.clear();
    Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&second.path).arg("16M").run().unwrap();
    plan.disks.push(second);
    let name: SnapshotName = "before".parse().unwrap();
    rig.driver.create(&plan).unwrap();
    assert!(rig.driver.snapshots(&plan).unwrap().is_empty());
    assert!(disk_byte(&plan, "write -P 1 32M 512"));
    rig.driver.take_snapshot(&plan, &name).unwrap();
    assert!(disk_byte(&plan, "write -P 2 32M 512") && disk_byte(&plan, "read -P 2 32M 512"));
    let found = rig.driver.snapshots(&plan).unwrap();
    assert_eq!((found.len(), found[0].name.as_str(), found[0].memory), (1, "before", false));
    rig.driver.restore_snapshot(&plan, &found[0]).unwrap();
    assert!(disk_byte(&plan, "read -P 1 32M 512"));
    // It is seen and removed while the guest runs, from every disk.
    rig.up(&plan);
    assert_eq!(rig.driver.snapshots(&plan).unwrap(), found);
    rig.driver.remove_snapshot(&plan, &name).unwrap();
    assert!(rig.driver.snapshots(&plan).unwrap().is_empty());
    rig.driver.stop(&plan, Stop::Force).unwrap();
    for disk in &plan.disks {
        let alone = GuestPlan { disks: vec![disk.clone()], ..plan.clone() };
        assert!(rig.driver.snapshots(&alone).unwrap().is_empty());
    }
    // What a killed command left on the second disk is not taken for the new one.
    let second = GuestPlan { disks: vec![plan.disks[1].clone()], ..plan.clone() };
    rig.driver.take_snapshot(&second, &name).unwrap();
    assert!(rig.driver.snapshots(&plan).unwrap().is_empty());
    rig.driver.take_snapshot(&plan, &name).unwrap();
    assert_eq!(rig.driver.snapshots(&second).unwrap().len(), 1);
    rig.driver.remove_snapshot(&plan, &name).unwrap();
    // A disk that fails leaves none on the others.
    fs::remove_file(&plan.disks[0].path).unwrap();
    rig.driver.take_snapshot(&plan, &name).unwrap_err();
    assert!(rig.driver.snapshots(&second).unwrap().is_empty());
}

#[test]
fn a_running_guest_is_put_back_with_its_memory() {
    let rig = Rig::new();
    let driver = &rig.driver;
    let plan = rig.talking("web", b"hello\r\n\0", true);
    rig.up(&plan);
    greeted(&rig, &plan);
    let name: SnapshotName = "warm".parse().unwrap();
    driver.take_snapshot(&plan, &name).unwrap();
    assert_eq!(driver.status(&plan).unwrap(), Status::Running);
    let found = driver.snapshots(&plan).unwrap().remove(0);
    assert!(found.memory && found.name == "warm");
    // It goes on as it is put back, before it can be asked: so it is given the longer before that, the longer that takes.
    let goes_back = [2, 8, 32, 128].into_iter().any(|seconds| {
        let since = ticks(&plan);
        eventually("some seconds of the guest", || ticks(&plan) > since + 18 * seconds);
        let before = ticks(&plan);
        driver.restore_snapshot(&plan, &found).unwrap();
        ticks(&plan) < before
    });
    assert!(goes_back, "its memory is not that of the snapshot");
    assert_eq!(driver.status(&plan).unwrap(), Status::Running);
    assert_eq!(driver.snapshots(&plan).unwrap(), std::slice::from_ref(&found), "a restored one stays");

    // A stopped guest runs after that, and hears the power button that it had switched on.
    driver.stop(&plan, Stop::Force).unwrap();
    assert_eq!(driver.snapshots(&plan).unwrap(), std::slice::from_ref(&found));
    driver.restore_snapshot(&plan, &found).unwrap();
    assert_eq!(driver.status(&plan).unwrap(), Status::Running);
    assert!(driver.endpoint(&plan).unwrap().is_some());
    driver.stop(&plan, Stop::Graceful(LONG)).unwrap();

    // What is not there is not restored; ops asks first.
    let nowhere = Snapshot { name: "nowhere".into(), ..found.clone() };
    let error = driver.restore_snapshot(&plan, &nowhere).unwrap_err();
    assert!(error.causes()[0].contains("nowhere"), "{error}");
    assert_eq!(driver.status(&plan).unwrap(), Status::Stopped, "it did not run before");
    rig.up(&plan);
    let error = driver.restore_snapshot(&plan, &nowhere).unwrap_err();
    assert!(error.hints()[0].contains("restart --force"), "{error}");
    driver.stop(&plan, Stop::Force).unwrap();
    driver.remove_snapshot(&plan, &name).unwrap();
    assert!(driver.snapshots(&plan).unwrap().is_empty());
}

/// Loading leaves capabilities on with which a snapshot would be none.
#[test]
fn a_guest_that_was_saved_can_be_kept() {
    let rig = Rig::new();
    let driver = &rig.driver;
    let plan = rig.talking("web", b"hello\r\n\0", true);
    rig.up(&plan);
    greeted(&rig, &plan);
    let saved = Saved { state: rig.home.path().join("state"), memory: None };
    driver.save(&plan, &saved).unwrap();
    driver.stop(&plan, Stop::Force).unwrap();
    driver.start(&plan, Begin::Empty(None)).unwrap();
    driver.load(&plan, &saved).unwrap();
    driver.release(&plan).unwrap();
    let (name, taking) = ("again".parse().unwrap(), Instant::now());
    let before = ticks(&plan);
    driver.take_snapshot(&plan, &name).unwrap();
    let mut ran = taking.elapsed();
    driver.stop(&plan, Stop::Force).unwrap();
    let found = driver.snapshots(&plan).unwrap().remove(0);
    // One that booted would count these as well: its BIOS begins with the time of day.
    poll::sleep(Duration::from_secs(2));
    let restoring = Instant::now();
    driver.restore_snapshot(&plan, &found).unwrap();
    let after = ticks(&plan);
    ran += restoring.elapsed();
    // No more than what it can have run, however long each step took, and half of that pause.
    let most = before + (18.3 * ran.as_secs_f64()) as u64 + 18;
    assert!((before..=most).contains(&after), "{before} {after} {most}");
}

#[test]
fn the_console_is_for_one_client_and_ends_with_the_guest() {
    let rig = Rig::new();
    let plan = rig.talking("web", b"hello\r\n\0", true);
    rig.driver.create(&plan).unwrap();
    rig.driver.console(&plan).unwrap_err();
    rig.up(&plan);
    // A BIOS that is reset while it begins may not come back.
    greeted(&rig, &plan);
    let mut stream = rig.driver.console(&plan).unwrap();
    let error = rig.driver.console(&plan).unwrap_err();
    assert!(error.to_string().contains("taken") && error.hints()[0].contains("--log"), "{error}");
    stream.write_all(b"nobody reads this\r").unwrap();
    // It says its greeting at each boot.
    let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER).unwrap();
    qmp.command("system_reset", json!({})).unwrap();
    drop(qmp);
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"hello") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    drop(stream);
    let mut again = None;
    eventually("a free console", || {
        again = rig.driver.console(&plan).ok();
        again.is_some()
    });
    rig.driver.stop(&plan, Stop::Force).unwrap();
    let mut rest = Vec::new();
    again.unwrap().read_to_end(&mut rest).unwrap();
}

#[test]
fn the_screen_is_seen_and_served_on_loopback() {
    let rig = Rig::new();
    let plan = rig.talking("web", b"hello\r\n\0", true);
    rig.driver.create(&plan).unwrap();
    rig.driver.screenshot(&plan).unwrap_err();
    rig.driver.viewer(&plan).unwrap_err();
    rig.up(&plan);
    let png = rig.driver.screenshot(&plan).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let left = fs::list_dir(&plan.runtime).unwrap();
    assert!(!left.iter().any(|name| name.starts_with("screen-")), "{left:?}");
    let viewer = rig.driver.viewer(&plan).unwrap();
    assert_eq!(rig.driver.viewer(&plan).unwrap(), viewer);
    let address = viewer.address.strip_prefix("vnc://").unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let mut greeting = [0; 4];
    TcpStream::connect(address).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB ");
    rig.driver.stop(&plan, Stop::Force).unwrap();
    assert!(TcpStream::connect(address).is_err());
}
