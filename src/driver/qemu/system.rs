//! What differs from one processor architecture to another: program, machine type, processor, devices.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::base::cmd::Cmd;
use crate::base::platform::Firmware;
use crate::base::{Arch, Error, GuestPlan, Kind, Result, cmd};
use crate::driver::accel::Accelerator;

/// QEMU's name of an architecture.
pub(super) fn name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64",
        Arch::Arm64 => "aarch64",
    }
}

/// What the concrete names of its machine types begin with.
pub(super) fn family(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "pc-q35-",
        Arch::Arm64 => "virt-",
    }
}

/// What the program is called that runs guests of this architecture.
pub(super) fn program_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "qemu-system-x86_64",
        Arch::Arm64 => "qemu-system-aarch64",
    }
}

/// What installs it.
pub(super) fn install_hint(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "install it: 'apt install qemu-system-x86' on Debian and Ubuntu",
        Arch::Arm64 => "install it: 'apt install qemu-system-arm qemu-efi-aarch64' on Debian and Ubuntu",
    }
}

/// Where the program is.
///
/// # Errors
/// [`Kind::Unavailable`] with how to install it.
pub(super) fn program(arch: Arch) -> Result<PathBuf> {
    let name = program_name(arch);
    cmd::find(name).ok_or_else(|| Error::unavailable(format!("'{name}' is not on the PATH")).hint(install_hint(arch)))
}

/// Fails for a firmware that machines of this architecture do not have.
///
/// # Errors
/// [`Kind::Unsupported`] naming it.
pub(super) fn check(arch: Arch, firmware: Firmware) -> Result<()> {
    if arch == Arch::Arm64 && firmware == Firmware::Bios {
        return Err(Error::new(Kind::Unsupported, "arm64 guests have no BIOS").hint("they start by '--firmware uefi'"));
    }
    Ok(())
}

/// The machine type with what it need not have, for `-machine`.
pub(super) fn machine(plan: &GuestPlan) -> String {
    let platform = &plan.platform;
    let (newest, traits) = match plan.arch {
        Arch::Amd64 => ("q35", "usb=off,vmport=off"),
        Arch::Arm64 => ("virt", "gic-version=max"),
    };
    let mut machine = format!("{},{traits}", platform.machine.as_deref().unwrap_or(newest));
    if platform.firmware == Firmware::UefiSecure && plan.arch == Arch::Amd64 {
        // What the guest's system runs may not write the variables: only the firmware in its own mode may.
        machine += ",smm=on";
    }
    if platform.flash.is_some() {
        machine += ",pflash0=firmware,pflash1=variables";
    }
    machine
}

/// The processor, for `-cpu`.
pub(super) fn cpu(arch: Arch, accel: Accelerator) -> &'static str {
    match (accel, arch) {
        (Accelerator::Kvm, _) => "host",
        (Accelerator::Tcg, Arch::Amd64) => "max",
        // Its pointers are signed by a cheap cipher: the real one takes half of the emulator's time.
        (Accelerator::Tcg, Arch::Arm64) => "max,pauth-impdef=on",
    }
}

/// A display device: GRUB hangs without any; nobody looks at it.
pub(super) fn display(arch: Arch) -> Value {
    match arch {
        Arch::Amd64 => json!({"driver": "VGA"}),
        Arch::Arm64 => json!({"driver": "virtio-gpu-pci"}),
    }
}

/// The device by which a guest talks to its TPM.
pub(super) fn tpm(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "tpm-crb",
        Arch::Arm64 => "tpm-tis-device",
    }
}

/// The newest machine type of the QEMU that is installed.
///
/// # Errors
/// When QEMU does not say.
pub(super) fn newest_machine(arch: Arch) -> Result<String> {
    let said = Cmd::new(program(arch)?).args(["-machine", "help"]).run()?.text();
    newest_in(&said, arch).ok_or_else(|| Error::failed("QEMU does not say what its newest machine type is"))
}

/// Out of lines such as `q35  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)`.
fn newest_in(help: &str, arch: Arch) -> Option<String> {
    let alias = match arch {
        Arch::Amd64 => "q35",
        Arch::Arm64 => "virt",
    };
    let line = help.lines().find(|line| line.split_whitespace().next() == Some(alias))?;
    let (_, name) = line.rsplit_once("(alias of ")?;
    let name = name.strip_suffix(')')?;
    name.starts_with(family(arch)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_machine_is_what_the_alias_stands_for() {
        let help = "Supported machines are:\n\
            pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\n\
            q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n\
            pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n";
        assert_eq!(newest_in(help, Arch::Amd64).as_deref(), Some("pc-q35-10.0"));
        assert_eq!(newest_in(help, Arch::Arm64), None);
        for arch in [Arch::Amd64, Arch::Arm64] {
            assert!(newest_machine(arch).unwrap().starts_with(family(arch)));
        }
    }
}
