//! The root of a guest as an image: without what makes it that guest.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use liblzma::write::XzEncoder;
use tar::{Builder, EntryType, Header};

use super::entry::{Entries, Entry, EntryKind};
use super::path::EntryPath;
use super::stream::{Bytes, Limits};
use crate::base::{Context as _, Result};

/// Packs fast: an image that is published is used here, as a rule.
const PRESET: u32 = 1;

/// What is left out of a folder, but not the folder itself: what belongs to one run, or to one machine.
const EMPTIED: [&str; 11] = [
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/lib/cloud",
    "var/lib/dhcp",
    "var/lib/dhclient",
    "var/lib/NetworkManager",
    "var/lib/systemd/network",
    "var/tmp",
];
/// What is left out.
const DROPPED: [&str; 9] = [
    "etc/hostname",
    "etc/netplan/50-cloud-init.yaml",
    "etc/network/interfaces.d/50-cloud-init",
    "etc/ssh/ssh_known_hosts",
    "root/.bash_history",
    "root/.ssh/authorized_keys",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
];
/// What is left out of each home folder.
const OF_HOMES: [&str; 2] = [".bash_history", ".ssh/authorized_keys"];
/// Empty: systemd makes a new one at the first boot.
const MACHINE_ID: &str = "etc/machine-id";
const LOGS: &str = "var/log/";

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    /// As a file without content.
    Emptied,
    Dropped,
}

fn fate(path: &str, kind: &EntryKind) -> Fate {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    let of_home = || path.strip_prefix("home/").and_then(|rest| rest.split_once('/')).map(|(_, rest)| rest);
    let file = !matches!(kind, EntryKind::Folder);
    // Journals lie in a folder with the machine's id for a name.
    let log = path.starts_with(LOGS) && (file || path.starts_with("var/log/journal/"));
    let host_key = path.strip_prefix("etc/ssh/").is_some_and(|name| name.starts_with("ssh_host_"));
    match () {
        () if path == MACHINE_ID => Fate::Emptied,
        () if log || host_key || EMPTIED.into_iter().any(below) => Fate::Dropped,
        () if DROPPED.contains(&path) || of_home().is_some_and(|rest| OF_HOMES.contains(&rest)) => Fate::Dropped,
        // A container's are made by whoever runs it.
        () if matches!(kind, EntryKind::Device { .. }) => Fate::Dropped,
        () => Fate::Kept,
    }
}

/// What was packed.
#[derive(Clone, Copy, Debug)]
pub struct Repacked {
    /// When the newest of it was made, in seconds since 1970.
    pub newest: i64,
}

/// Reads a tar whose folder `within` is a guest's root, and writes the root by itself as `root.tar.xz`. Left out is who
/// the guest is and what it noted of its life: machine-id, SSH host keys, host name, cloud-init's state, leases, logs,
/// random seeds, the keys that let people in, temporary files.
///
/// # Errors
/// [`crate::base::Kind::Refused`] for a tar that is damaged or too large; when `to` cannot be written.
pub fn repack(tar: Box<dyn Read + Send>, within: &str, to: &mut dyn Write) -> Result<Repacked> {
    let mut entries = Entries::new(Bytes::of_stream(tar, Limits::default()));
    let mut archive = Builder::new(XzEncoder::new(to, PRESET));
    let mut repacked = Repacked { newest: 0 };
    // Hard links lead to what comes before them.
    let mut gone = BTreeSet::new();
    while let Some(entry) = entries.next()? {
        let Some(path) = entry.path.beneath(within) else { continue };
        let text = String::from_utf8_lossy(path.bytes()).into_owned();
        let mut fate = fate(&text, &entry.kind);
        let link = match &entry.kind {
            EntryKind::Hardlink(target) => target.beneath(within),
            _ => None,
        };
        if link.as_ref().is_some_and(|target| gone.contains(target)) {
            fate = Fate::Dropped;
        }
        if fate != Fate::Kept {
            gone.insert(path.clone());
        }
        if fate == Fate::Kept {
            repacked.newest = repacked.newest.max(entry.mtime);
        }
        if fate != Fate::Dropped {
            // Also what is a link to a file elsewhere.
            let kind = if fate == Fate::Emptied { EntryKind::File } else { entry.kind.clone() };
            let entry = Entry { kind, ..entry };
            let size = if fate == Fate::Kept { entries.left() } else { 0 };
            let added = add(&mut archive, &path, &entry, link.as_ref(), size, Content(&mut entries));
            added.context(|| format!("packing {path}"))?;
        }
    }
    entries.finish()?;
    let doing = || "writing the root file system".to_owned();
    archive.into_inner().context(doing)?.finish().context(doing)?;
    Ok(repacked)
}

/// The current entry's content.
struct Content<'a>(&'a mut Entries);

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.content(buffer).map_err(std::io::Error::other)
    }
}

fn add<W: Write>(
    archive: &mut Builder<W>,
    path: &EntryPath,
    entry: &Entry,
    link: Option<&EntryPath>,
    size: u64,
    content: Content<'_>,
) -> std::io::Result<()> {
    let attributes = entry.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value));
    let attributes: Vec<(String, &Vec<u8>)> = attributes.collect();
    if !attributes.is_empty() {
        archive.append_pax_extensions(attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
    }
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
    header.set_size(0);
    let name = if path.is_root() { Path::new("./") } else { Path::new(OsStr::from_bytes(path.bytes())) };
    match &entry.kind {
        EntryKind::Folder => {
            header.set_entry_type(EntryType::Directory);
            archive.append_data(&mut header, name, std::io::empty())
        }
        EntryKind::File => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            archive.append_data(&mut header, name, content.take(size))
        }
        EntryKind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, name, OsStr::from_bytes(target))
        }
        EntryKind::Hardlink(_) => {
            let target = link.ok_or_else(|| std::io::Error::other("a hard link leads out of the root"))?;
            header.set_entry_type(EntryType::Link);
            archive.append_link(&mut header, name, OsStr::from_bytes(target.bytes()))
        }
        EntryKind::Fifo => {
            header.set_entry_type(EntryType::Fifo);
            archive.append_data(&mut header, name, std::io::empty())
        }
        EntryKind::Device { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_it_is_goes_and_the_rest_stays() {
        let (file, folder) = (EntryKind::File, EntryKind::Folder);
        for path in [
            "etc/ssh/ssh_host_rsa_key",
            "var/lib/cloud/instance",
            "var/log/auth.log",
            "tmp/x",
            "home/me/.ssh/authorized_keys",
            "etc/hostname",
            "var/lib/dhcp/dhclient.leases",
            "run/x",
            "var/log/apt/history.log",
        ] {
            assert_eq!(fate(path, &file), Fate::Dropped, "{path}");
        }
        for path in
            ["etc/ssh/sshd_config", "home/me/.ssh/id", "var/lib/cloudy", "etc/hostname.d", "usr/bin/tmp", "home/x"]
        {
            assert_eq!(fate(path, &file), Fate::Kept, "{path}");
        }
        for path in ["tmp", "var/log/apt", "var/lib/cloud", "dev", "var/log/journal"] {
            assert_eq!(fate(path, &folder), Fate::Kept, "{path}");
        }
        assert_eq!(fate("var/log/journal/0123", &folder), Fate::Dropped);
        assert_eq!(fate(MACHINE_ID, &file), Fate::Emptied);
    }

    #[test]
    fn a_root_is_taken_out_of_its_tar_with_all_that_it_has() {
        let mut tar = Builder::new(Vec::new());
        let mut add = |path: &str, kind: EntryType, link: &str, content: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o4755);
            header.set_uid(3_000_000);
            header.set_gid(7);
            header.set_mtime(9);
            header.set_size(content.len() as u64);
            if link.is_empty() {
                tar.append_data(&mut header, path, content).unwrap();
            } else {
                tar.append_link(&mut header, path, link).unwrap();
            }
        };
        let long = format!("rootfs/{}", "long/".repeat(40));
        add("metadata.yaml", EntryType::Regular, "", b"no");
        add("rootfs/", EntryType::Directory, "", b"");
        add("rootfs/bin", EntryType::Regular, "", b"program");
        add("rootfs/again", EntryType::Link, "rootfs/bin", b"");
        add("rootfs/link", EntryType::Symlink, "../../x", b"");
        add(&long, EntryType::Directory, "", b"");
        add("rootfs/etc/machine-id", EntryType::Regular, "", b"0123");
        add("rootfs/etc/id-too", EntryType::Link, "rootfs/etc/machine-id", b"");
        add("rootfs/x", EntryType::Regular, "", b"4567");
        add("rootfs/etc/machine-id", EntryType::Link, "rootfs/x", b"");
        add("rootfs/etc/hostname", EntryType::Regular, "", b"web");
        let tar = tar.into_inner().unwrap();

        let mut packed = Vec::new();
        let repacked = repack(Box::new(std::io::Cursor::new(tar)), "rootfs", &mut packed).unwrap();
        assert_eq!(repacked.newest, 9);
        let mut archive = tar::Archive::new(liblzma::read::XzDecoder::new(packed.as_slice()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, header) = (entry.path().unwrap().display().to_string(), entry.header().clone());
            let link = entry.link_name().unwrap().map(|link| link.display().to_string()).unwrap_or_default();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap()), (3_000_000, 7, 0o4755));
            found.push(format!("{path}>{link}={text}"));
        }
        let deep = long.strip_prefix("rootfs/").unwrap().trim_end_matches('/');
        let expected = [
            "./>=",
            "bin>=program",
            "again>bin=",
            "link>../../x=",
            &format!("{deep}>="),
            "etc/machine-id>=",
            "x>=4567",
            "etc/machine-id>=",
        ];
        assert_eq!(found, expected);
    }
}
