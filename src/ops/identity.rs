//! Who a guest is to others: its host keys, its seed, its `known_hosts`; and where its files are.

use std::path::PathBuf;

use crate::base::plan::Disk;
use crate::base::{GuestName, GuestPlan, Layout, Result, fs};
use crate::guest::Record;
use crate::seed::{self, Seed};
use crate::ssh::authorized::{AuthorizedKeys, Identity};
use crate::ssh::{keys as host, known_hosts};

/// New host keys for a guest.
///
/// # Errors
/// When the system has no random numbers to give.
pub(super) fn host_keys(name: &GuestName) -> Result<Vec<seed::HostKey>> {
    let host_keys = host::HostKeys::generate(&format!("root@{name}"))?;
    Ok([(seed::HostKeyKind::Ed25519, host_keys.ed25519), (seed::HostKeyKind::Ecdsa, host_keys.ecdsa)]
        .map(|(kind, pair)| seed::HostKey { kind, private_openssh: pair.private, public_openssh: pair.public })
        .to_vec())
}

/// Writes the seed, in the form that the plan says, and the host keys to expect into a new guest's folder.
///
/// # Errors
/// When something cannot be written.
pub(super) fn write(layout: &Layout, plan: &GuestPlan, seed: &Seed) -> Result<()> {
    let files = layout.guest_files(&plan.name);
    if plan.seed.as_deref() == Some(&files.seed_folder()) {
        fs::create_private_dir(&files.seed_folder())?;
        for (name, bytes) in &seed.files {
            fs::write_new(&files.seed_folder().join(name), bytes, 0o600)?;
        }
    } else {
        fs::write_new(&files.seed(), &seed.to_iso()?, 0o600)?;
    }
    let public: Vec<&str> = seed.host_public_keys.iter().map(String::as_str).collect();
    let known = known_hosts::lines(&known_hosts::alias(&plan.name), &public)?;
    fs::write_new(&files.known_hosts(), known.as_bytes(), 0o600)
}

/// Notes in a new guest's record by which keys `ssh` gets in, and puts those that are no files into its folder.
///
/// # Errors
/// When one cannot be written.
pub(super) fn grant(layout: &Layout, record: &mut Record, access: &AuthorizedKeys) -> Result<()> {
    let files = layout.guest_files(record.name());
    let mut identities = Vec::new();
    for (number, identity) in access.identities.iter().enumerate() {
        identities.push(match identity {
            Identity::Private(path) => path.clone(),
            Identity::Public(key) => {
                let path = files.access_key(number);
                fs::create_private_dir(fs::folder_of(&path))?;
                // Closed to others as a private key's is: `ssh` looks for that in it.
                fs::write_new(&path, format!("{key}\n").as_bytes(), 0o600)?;
                // The folder may get another name.
                path.strip_prefix(files.folder()).map_or_else(|_| path.clone(), PathBuf::from)
            }
        });
    }
    record.identities = identities;
    Ok(())
}

/// The files of the keys by which `ssh` gets in.
pub(in crate::ops) fn keys(layout: &Layout, record: &Record) -> Vec<PathBuf> {
    let files = layout.guest_files(record.name());
    record.identities.iter().map(|path| files.folder().join(path)).collect()
}

/// Has the files of a guest say its name where they say another.
///
/// # Errors
/// When something cannot be written.
pub(super) fn rename(layout: &Layout, plan: &GuestPlan, from: &GuestName) -> Result<()> {
    let public: Vec<&str> = plan.host_keys.iter().map(String::as_str).collect();
    known_hosts::write(&layout.guest_files(&plan.name).known_hosts(), &known_hosts::alias(&plan.name), &public)?;
    match renamed_seed(plan, from, &plan.name)? {
        Some((file, bytes)) => fs::write_atomic(&file, &bytes, 0o600),
        None => Ok(()),
    }
}

/// The file of a seed that says the guest's name, and what it says under the new one; `None` when the host name stands.
///
/// # Errors
/// When it cannot be read.
pub(super) fn renamed_seed(plan: &GuestPlan, from: &GuestName, to: &GuestName) -> Result<Option<(PathBuf, Vec<u8>)>> {
    let Some(seed) = &plan.seed else { return Ok(None) };
    if seed.is_dir() {
        let file = seed.join("meta-data");
        let changed = seed::renamed_in(&fs::read(&file, seed::LARGEST)?, from, to)?;
        return Ok(changed.map(|bytes| (file, bytes)));
    }
    let changed = seed::renamed(&fs::read(seed, seed::LARGEST)?, from, to)?;
    Ok(changed.map(|bytes| (seed.clone(), bytes)))
}

/// The plan with another name, its files in the folder of that name. Files of the user's stay where they are.
pub(super) fn named(layout: &Layout, plan: &GuestPlan, name: &GuestName) -> GuestPlan {
    let (from, to) = (layout.guest(&plan.name), layout.guest(name));
    let moved = |path: &PathBuf| path.strip_prefix(&from).map_or_else(|_| path.clone(), |rest| to.join(rest));
    let mut platform = plan.platform.clone();
    if let Some(flash) = &mut platform.flash {
        flash.vars = moved(&flash.vars);
    }
    let disk = |disk: &Disk| match disk.kept {
        true => disk.clone(),
        false => Disk { path: moved(&disk.path), ..disk.clone() },
    };
    GuestPlan {
        name: name.clone(),
        disks: plan.disks.iter().map(disk).collect(),
        seed: plan.seed.as_ref().map(moved),
        console_log: moved(&plan.console_log),
        backend_log: moved(&plan.backend_log),
        platform,
        ..plan.clone()
    }
}
