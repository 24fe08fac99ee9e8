//! Other firmware and other processors: each is proved by what it says on its console.

use super::*;
use crate::base::plan::{Disk, DiskFormat};
use crate::base::platform::Firmware;

/// The guest is there when its console has said this.
fn says(rig: &Rig, plan: &GuestPlan, words: &str) {
    eventually(words, || rig.driver.console_tail(plan, 50).unwrap().join("\n").contains(words));
}

fn machine(rig: &Rig, name: &str, arch: Arch, firmware: Firmware) -> GuestPlan {
    let mut plan = rig.plan(name);
    plan.arch = arch;
    plan.platform.firmware = firmware;
    rig.driver.complete(&mut plan).unwrap();
    plan
}

/// An empty disk: the firmware finds nothing to boot but its own shell, which a secure one refuses as it is not signed.
#[rstest::rstest]
#[case::uefi(Arch::Amd64, Firmware::Uefi, "pc-q35-", "Shell>")]
#[case::secure(Arch::Amd64, Firmware::UefiSecure, "pc-q35-", "Security Violation")]
#[case::arm64(Arch::Arm64, Firmware::Uefi, "virt-", "Shell>")]
fn a_firmware_starts(#[case] arch: Arch, #[case] firmware: Firmware, #[case] machine_type: &str, #[case] words: &str) {
    let rig = Rig::new();
    let plan = machine(&rig, "uefi", arch, firmware);
    rig.driver.create(&plan).unwrap();
    let vars = plan.platform.flash.clone().unwrap().vars;
    let started = rig.driver.start(&plan, Begin::Boot).unwrap();
    let found = started.machine.unwrap();
    assert!(found.starts_with(machine_type) && found.len() > machine_type.len(), "{found}");
    says(&rig, &plan, words);
    rig.driver.stop(&plan, Stop::Force).unwrap();

    // Its variables are its own, and stay; the machine is the one that it was.
    let before = fs::read(&vars, 64 << 20).unwrap();
    assert!(before != fs::read(&plan.platform.flash.clone().unwrap().template, 64 << 20).unwrap());
    let mut again = plan.clone();
    again.platform.machine = Some(found.clone());
    rig.driver.create(&again).unwrap();
    assert!(fs::read(&vars, 64 << 20).unwrap() == before);
    assert_eq!(rig.driver.start(&again, Begin::Boot).unwrap().machine, Some(found));
    rig.driver.remove(&again).unwrap();
}

#[test]
fn a_machine_that_cannot_be_is_refused() {
    let rig = Rig::new();
    let mut plan = rig.plan("web");
    plan.arch = Arch::Arm64;
    let error = rig.driver.complete(&mut plan).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.hints()[0].contains("--firmware uefi"), "{error}");
    plan.platform.firmware = Firmware::Uefi;
    plan.accel = Accel::Kvm;
    rig.driver.complete(&mut plan).unwrap();
    rig.driver.create(&plan).unwrap();
    let error = rig.driver.start(&plan, Begin::Boot).unwrap_err();
    assert_eq!((error.kind(), error.hints()[0].contains("--accel tcg")), (Kind::Unavailable, true), "{error}");

    // Firmware that is gone since is named, not QEMU's trouble with it.
    plan.platform.flash.as_mut().unwrap().code = rig.home.path().join("gone");
    plan.accel = Accel::Tcg;
    assert!(rig.driver.start(&plan, Begin::Boot).unwrap_err().to_string().contains("gone"));
    assert_eq!(plan.platform.flash.unwrap().vars_format, DiskFormat::Raw);
}

/// The processes of `swtpm` that are this rig's.
fn tpms(rig: &Rig) -> usize {
    let mark = rig.home.path().to_str().unwrap().to_owned();
    process::scan(|args| {
        args.first().is_some_and(|name| name.ends_with("swtpm")) && args.iter().any(|arg| arg.contains(&mark))
    })
    .unwrap()
    .len()
}

#[test]
fn a_tpm_comes_and_goes_with_its_guest() {
    let rig = Rig::below("vm tpm ");
    let mut plan = machine(&rig, "tpm", Arch::Amd64, Firmware::Uefi);
    plan.platform.tpm = true;
    rig.up(&plan);
    assert_eq!(tpms(&rig), 1);
    let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER).unwrap();
    assert_eq!(qmp.command("query-tpm", json!({})).unwrap()[0]["model"], "tpm-crb");
    drop(qmp);
    says(&rig, &plan, "BdsDxe");
    let kept = rig.driver.layout.guest_files(&plan.name).tpm();
    assert!(!fs::list_dir(&kept).unwrap().is_empty(), "the firmware has not used it");
    rig.driver.stop(&plan, Stop::Force).unwrap();
    assert_eq!(tpms(&rig), 0);

    // One that a killed command left before QEMU was there is ended by whoever is next.
    drop(tpm::start(&plan, &kept).unwrap());
    assert_eq!(tpms(&rig), 1);
    rig.up(&plan);
    assert_eq!(tpms(&rig), 1);
    // And it does not outlive a QEMU that was killed, or that does not start.
    for pid in rig.running() {
        Cmd::new("kill").args(["-9", &pid.to_string()]).run().unwrap();
    }
    eventually("its end", || tpms(&rig) == 0);
    rig.driver.stop(&plan, Stop::Force).unwrap();
    fs::remove_file(&plan.disks[0].path).unwrap();
    rig.driver.start(&plan, Begin::Boot).unwrap_err();
    assert_eq!(tpms(&rig), 0);
    assert!(fs::list_dir(&plan.runtime).unwrap() == ["guest"]);
    rig.driver.remove(&plan).unwrap();

    let comma = Rig::new();
    let error = tpm::start(&plan, comma.home.path()).unwrap_err();
    assert!(error.to_string().contains("comma"), "{error}");
}

#[test]
fn disks_are_plugged_in_and_those_of_the_start_stay() {
    let rig = Rig::new();
    let mut plan = rig.plan("web");
    let further = |number: usize| {
        let path = rig.home.path().join(format!("disk,{number}"));
        Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("1M").run().unwrap();
        Disk { kept: true, ..Disk::own(path, ByteSize(1 << 20), vec![]) }
    };
    let cold = further(0);
    plan.disks.push(cold.clone());
    rig.up(&plan);
    let hot: Vec<Disk> = (1..=args::PORTS).map(further).collect();
    for disk in &hot {
        rig.driver.plug(&plan, disk).unwrap();
        rig.driver.plug(&plan, disk).unwrap();
    }
    let error = rig.driver.plug(&plan, &further(9)).unwrap_err();
    assert!(error.hints()[0].contains("4 disks"), "{error}");
    let error = rig.driver.plug(&plan, &Disk { path: "/nowhere".into(), ..further(8) }).unwrap_err();
    assert!(error.causes()[0].contains("No such file"), "{error}");
    assert_eq!(rig.driver.unplug(&plan, &cold).unwrap_err().kind(), Kind::Unsupported);
    rig.driver.unplug(&plan, &further(7)).unwrap();
    // What was refused is not open any more.
    Cmd::new("qemu-img").args(["resize", "-q", "-f", "qcow2"]).arg(further(9).path).arg("2M").run().unwrap();
    rig.driver.remove(&plan).unwrap();
}
