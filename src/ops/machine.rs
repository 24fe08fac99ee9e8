//! The machine that a guest is to be, and the plan of it.

use std::collections::BTreeMap;
use std::path::Path;

use super::origin::{Base, From};
use super::{Env, choose};
use crate::base::container::{Container, ContainerWish, Packing};
use crate::base::nic::{Mac, Nic};
use crate::base::plan::{Accel, Disk, DriverChoice, DriverKind, InstanceId, Tuning};
use crate::base::platform::{Firmware, Platform};
use crate::base::{Arch, ByteSize, Digest, Error, GuestName, GuestPlan, Result};
use crate::driver::{Boots, Driver, Level, ProbeDepth, SeedIn, Started};

/// The machine that is wanted. `None` means: as the settings say.
#[derive(Clone, Debug)]
pub struct MachineRequest {
    /// Its image.
    pub from: From,
    /// What runs it.
    pub driver: Option<DriverChoice>,
    /// How its instructions are run.
    pub accel: Option<Accel>,
    /// Its memory.
    pub memory: Option<ByteSize>,
    /// Its processors.
    pub cpus: Option<u32>,
    /// Its first disk.
    pub disk: Option<ByteSize>,
    /// Its processor architecture; `None`: this machine's, or what the filters name.
    pub arch: Option<Arch>,
    /// Its firmware; `None`: what is usual for its architecture.
    pub firmware: Option<Firmware>,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// What is wished of a container; its size is [`disk`](Self::disk).
    pub container: ContainerWish,
}

/// Fails before any work when the backend cannot be used at all.
pub(super) fn usable(driver: &dyn Driver) -> Result<()> {
    let worst = driver.probe(ProbeDepth::Quick).into_iter().find(|finding| finding.level == Level::Error);
    if let Some(finding) = worst {
        let error = Error::new(finding.kind, finding.detail);
        return Err(match finding.hint {
            Some(hint) => error.hint(hint),
            None => error.hint("'virga doctor' looks at everything"),
        });
    }
    Ok(())
}

/// Distributions whose cloud images name their user after themselves.
const NAMED_AFTER_ITSELF: [&str; 6] = ["ubuntu", "debian", "fedora", "almalinux", "rocky", "centos"];

/// The default user's name in images of which nobody says what they are: the seed gives it.
pub(super) const GIVEN_USER: &str = "virga";

/// The user that the image's own cloud-init set-up makes, where the stream says which image it is.
pub(super) fn image_user(keys: &BTreeMap<String, String>) -> Option<&'static str> {
    let os = keys.get("os")?;
    NAMED_AFTER_ITSELF.into_iter().find(|name| os == name)
}

/// The machine with every default filled in, looked at before any work.
pub(super) struct Machine {
    pub driver: DriverKind,
    pub accel: Accel,
    pub memory: ByteSize,
    pub cpus: u32,
    pub firmware: Option<Firmware>,
    pub tpm: bool,
    container: ContainerWish,
    disk: Option<ByteSize>,
    least_disk: ByteSize,
}

impl Machine {
    /// # Errors
    /// [`crate::base::Kind::Usage`] for a machine that cannot be.
    pub fn of(env: Env<'_>, request: &MachineRequest) -> Result<Self> {
        let defaults = &env.settings.defaults;
        let memory = request.memory.unwrap_or(defaults.memory);
        let cpus = request.cpus.unwrap_or(defaults.cpus);
        check_size(memory, cpus)?;
        let driver = choose::driver(env, request)?;
        if !env.driver(driver).capabilities().boots.contains(&Boots::RootFileSystem) {
            no_container(&request.container, driver)?;
        }
        Ok(Machine {
            driver,
            accel: request.accel.unwrap_or(defaults.accel),
            memory,
            cpus,
            firmware: request.firmware,
            tpm: request.tpm,
            container: ContainerWish { size: request.disk, ..request.container.clone() },
            disk: request.disk,
            least_disk: defaults.disk,
        })
    }

    /// Why such a machine cannot be a template or come from one.
    pub fn why_cold(&self) -> Option<&'static str> {
        let plain = self.firmware.is_none_or(|firmware| firmware == Firmware::Bios) && !self.tpm;
        (!plain).then_some("what a guest's UEFI or TPM keeps is in files of its own, which are not saved")
    }

    /// The size of the first disk. Without a wish of the user's, an image that is larger than the default keeps its size.
    pub fn disk(&self, virtual_size: u64) -> ByteSize {
        self.disk.unwrap_or(ByteSize(virtual_size.max(self.least_disk.0)))
    }

    /// What makes it a container of these files.
    pub fn container(&self, base: &Base, packing: Packing, metadata: Option<&Path>, fingerprint: &Digest) -> Container {
        Container {
            root: base.path.clone(),
            packing,
            metadata: metadata.map(Path::to_owned),
            fingerprint: fingerprint.clone(),
            folders: Vec::new(),
            wish: self.container.clone(),
        }
    }
}

/// Refuses what only containers can be wished to be: a machine would be made without a word about it.
///
/// # Errors
/// [`crate::base::Kind::Usage`] naming the option and the driver.
fn no_container(wish: &ContainerWish, driver: DriverKind) -> Result<()> {
    let options = [
        ("--privileged", wish.privileged),
        ("--nesting", wish.nesting),
        ("--profile", !wish.profiles.is_empty()),
        ("--target", wish.target.is_some()),
    ];
    let Some((option, _)) = options.into_iter().find(|(_, given)| *given) else { return Ok(()) };
    Err(Error::usage(format!("'{option}' is for containers, and the {driver} driver makes none"))
        .hint("'--driver incus' and '--driver lxc' make containers; '--container' has 'virga sync' fetch their images"))
}

/// Whether a guest can have this much.
///
/// # Errors
/// [`crate::base::Kind::Usage`] when not.
pub(super) fn check_size(memory: ByteSize, cpus: u32) -> Result<()> {
    if !memory.0.is_multiple_of(ByteSize::MIB) || memory.0 < 64 * ByteSize::MIB {
        return Err(Error::usage(format!("a guest cannot have {memory} of memory"))
            .hint("give a whole number of MiB, at least 64M"));
    }
    if !(1..=255).contains(&cpus) {
        return Err(Error::usage(format!("a guest cannot have {cpus} processors")));
    }
    Ok(())
}

/// What a guest's root file system is on.
pub(super) enum Root {
    /// A disk of its own.
    Disk(Disk),
    /// Files that the backend keeps.
    Files(Container),
}

/// The plan of a guest with one card.
///
/// # Errors
/// [`crate::base::Kind::Unsupported`] for what the driver cannot do; when the system has no random numbers to give.
pub(super) fn plan(env: Env<'_>, name: &GuestName, machine: &Machine, arch: Arch, root: Root) -> Result<GuestPlan> {
    let files = env.settings.layout.guest_files(name);
    let id = InstanceId::generate()?;
    let driver = env.driver(machine.driver);
    let capabilities = driver.capabilities();
    let (disks, container) = match root {
        Root::Disk(disk) => (vec![disk], None),
        Root::Files(container) => (Vec::new(), Some(container)),
    };
    let nic = Nic { mac: Mac::generate()?, network: capabilities.default_network };
    let firmware = machine.firmware.unwrap_or(Firmware::usual(arch));
    let mut plan = GuestPlan {
        name: name.clone(),
        arch,
        memory: machine.memory,
        cpus: machine.cpus,
        accel: machine.accel,
        disks,
        seed: Some(match capabilities.seed {
            SeedIn::Image => files.seed(),
            SeedIn::Folder => files.seed_folder(),
        }),
        nics: vec![nic],
        forwards: Vec::new(),
        host_keys: Vec::new(),
        console_log: files.console_log(),
        backend_log: files.backend_log(),
        runtime: env.settings.layout.runtime(id.short()),
        daemon: driver.daemon(),
        tuning: Tuning::default(),
        platform: Platform { firmware, tpm: machine.tpm, ..Platform::default() },
        container,
        volumes: None,
        id,
    };
    driver.complete(&mut plan)?;
    Ok(plan)
}

/// Keeps in the plan which machine the backend made, the first time. `false` when that was known.
pub(super) fn note_type(plan: &mut GuestPlan, started: &Started) -> bool {
    if plan.platform.machine.is_some() || started.machine.is_none() {
        return false;
    }
    plan.platform.machine.clone_from(&started.machine);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    #[test]
    fn what_is_for_containers_is_not_dropped_without_a_word() {
        no_container(&ContainerWish::default(), DriverKind::Qemu).unwrap();
        // Its size is that of the first disk, which every guest has.
        no_container(&ContainerWish { size: Some(ByteSize(1)), ..ContainerWish::default() }, DriverKind::Qemu).unwrap();
        let named = |text: &str| text.parse().unwrap();
        for (option, wish) in [
            ("--privileged", ContainerWish { privileged: true, ..ContainerWish::default() }),
            ("--nesting", ContainerWish { nesting: true, ..ContainerWish::default() }),
            ("--profile", ContainerWish { profiles: vec![named("web")], ..ContainerWish::default() }),
            ("--target", ContainerWish { target: Some(named("m1")), ..ContainerWish::default() }),
        ] {
            let error = no_container(&wish, DriverKind::Qemu).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(option) && error.to_string().contains("the qemu driver"), "{error}");
        }
    }
}
