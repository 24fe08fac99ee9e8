//! What a saved machine depends on besides its own files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sha2::Digest as _;

use super::{args, system};
use crate::base::cmd::Cmd;
use crate::base::name::hex;
use crate::base::nic::{Mac, Nic};
use crate::base::plan::{Disk, InstanceId};
use crate::base::{Error, GuestPlan, Result, fs};
use crate::driver::Begin;
use crate::driver::accel::{self, Accelerator};

/// How a machine is saved; another word whenever `memory.rs` does it in another way.
const SHAPE: &str = "memory-file-1";

/// The QEMU that is installed, the accelerator that would be used now, the
/// processor that the guest would see, and the whole machine as our arguments describe it.
///
/// # Errors
/// [`crate::base::Kind::Unavailable`] without QEMU, or when KVM is demanded and cannot be used.
pub(super) fn of(plan: &GuestPlan) -> Result<BTreeMap<String, String>> {
    let (accel, _) = accel::settle(plan)?;
    let version = Cmd::new(system::program(plan.arch)?).args(["--version"]).run()?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    let (accelerator, cpu) = match accel {
        Accelerator::Tcg => ("tcg", "max".to_owned()),
        Accelerator::Kvm => ("kvm", host_cpu()?),
    };
    let devices = args::argv(&anyone(plan)?, accel, Begin::Boot)?.join("\n");
    let facts = [
        ("qemu", version),
        ("shape", SHAPE.to_owned()),
        ("machine", system::machine(plan)),
        ("accelerator", accelerator.to_owned()),
        ("cpu", cpu),
        ("devices", hex(&sha2::Sha256::digest(devices)[..8])),
    ];
    Ok(facts.map(|(name, value)| (name.to_owned(), value)).into())
}

/// The same machine without what makes it this guest.
fn anyone(plan: &GuestPlan) -> Result<GuestPlan> {
    let nobody = |text: &str| Error::failed(format!("'{text}' should be a name"));
    let disk = |disk: &Disk| Disk { path: PathBuf::from("/disk"), chain: Vec::new(), ..disk.clone() };
    let mac: Mac = "52:54:00:00:00:00".parse()?;
    let nic = |nic: &Nic| Nic { mac, network: nic.network.clone() };
    Ok(GuestPlan {
        name: "anyone".parse().map_err(|_| nobody("anyone"))?,
        id: InstanceId::try_from("00000000-0000-4000-8000-000000000000".to_owned())?,
        disks: plan.disks.iter().map(disk).collect(),
        seed: plan.seed.as_ref().map(|_| PathBuf::from("/seed")),
        nics: plan.nics.iter().map(nic).collect(),
        forwards: Vec::new(),
        console_log: PathBuf::from("/console.log"),
        backend_log: PathBuf::from("/backend.log"),
        runtime: PathBuf::from("/run"),
        ..plan.clone()
    })
}

/// Everything of `/proc/cpuinfo` that a guest sees with `-cpu host`.
fn host_cpu() -> Result<String> {
    const SEEN: [&str; 6] = ["vendor_id", "cpu family", "model", "stepping", "microcode", "flags"];
    let text = fs::read_text("/proc/cpuinfo".as_ref(), 16 << 20)?;
    let first = text.split("\n\n").next().unwrap_or_default();
    let seen = first.lines().filter(|line| SEEN.iter().any(|key| line.split(':').next().map(str::trim) == Some(key)));
    let seen: Vec<&str> = seen.collect();
    Ok(format!("host {}", hex(&sha2::Sha256::digest(seen.join("\n"))[..8])))
}
