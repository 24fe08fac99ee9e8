//! A guest as a file: what it was here, and its backend's own backup of it.
//!
//! A tar of two entries: [`ABOUT`], and the backup, whose size is written once it is known.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use super::Record;
use crate::base::container::ContainerWish;
use crate::base::nic::Network;
use crate::base::plan::DriverKind;
use crate::base::{Arch, ByteSize, Context as _, Digest, Error, GuestName, Result, Trust};

/// The shape that this build writes.
const VERSION: u32 = 1;
const ABOUT: &str = "virga.json";
const BACKUP: &str = "backup.tar";
const BLOCK: u64 = 512;
/// Most bytes of what is said of a guest.
const LIMIT: u64 = 1 << 20;

/// What a guest was where it was exported. No secrets, and no paths: nothing of another host is taken over here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    version: u32,
    /// Its name there.
    pub name: GuestName,
    /// Which driver ran it.
    pub driver: DriverKind,
    /// Its architecture.
    pub arch: Arch,
    /// Its memory.
    pub memory: ByteSize,
    /// Its processors.
    pub cpus: u32,
    /// What its cards were plugged into.
    pub networks: Vec<Network>,
    /// What was wished of it as a container.
    pub wish: ContainerWish,
    /// The image that it was made of.
    pub fingerprint: Digest,
    /// The user to log in as.
    pub user: String,
    /// What was known of its image.
    pub keys: BTreeMap<String, String>,
    /// Who vouched for that image.
    #[serde(default)]
    pub trust: Option<Trust>,
}

impl Exported {
    /// What there is to say of a container; `None` for a machine.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let plan = &record.plan;
        let container = plan.container.as_ref()?;
        Some(Exported {
            version: VERSION,
            name: plan.name.clone(),
            driver: record.driver,
            arch: plan.arch,
            memory: plan.memory,
            cpus: plan.cpus,
            networks: plan.nics.iter().map(|nic| nic.network.clone()).collect(),
            wish: container.wish.clone(),
            fingerprint: container.fingerprint.clone(),
            user: record.user.clone(),
            keys: record.origin.keys.clone(),
            trust: record.origin.trust,
        })
    }

    /// Writes the whole file; `fill` writes the backup.
    ///
    /// # Errors
    /// When it cannot be written; what `fill` returns.
    pub fn write(&self, file: &mut File, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        let doing = || "writing the exported guest".to_owned();
        let about = serde_json::to_vec_pretty(self).context(doing)?;
        let length = about.len() as u64;
        file.write_all(header(ABOUT, length)?.as_bytes()).context(doing)?;
        file.write_all(&about).context(doing)?;
        let place = file.seek(SeekFrom::Current(filling(length))).context(doing)?;
        let begin = file.seek(SeekFrom::Current(BLOCK as i64)).context(doing)?;
        fill(file)?;
        let end = file.seek(SeekFrom::End(0)).context(doing)?;
        file.set_len(end + filling(end - begin).unsigned_abs() + 2 * BLOCK).context(doing)?;
        file.seek(SeekFrom::Start(place)).context(doing)?;
        file.write_all(header(BACKUP, end - begin)?.as_bytes()).context(doing)
    }

    /// Reads what a file says of its guest, and leaves it where the backup begins.
    ///
    /// # Errors
    /// [`crate::base::Kind::Refused`] for what is no such file.
    pub fn read(file: &mut File) -> Result<Self> {
        let length = entry(file, ABOUT)?;
        if length > LIMIT {
            return Err(foreign());
        }
        let mut about = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact(&mut about).map_err(|error| foreign().because(error))?;
        let read: Exported = serde_json::from_slice(&about).map_err(|error| foreign().because(error))?;
        if read.version > VERSION {
            return Err(Error::failed("the guest was exported by a newer virga").hint("update virga"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if read.user.is_empty() || read.user.starts_with('-') || !read.user.chars().all(plain) {
            return Err(foreign());
        }
        file.seek(SeekFrom::Current(filling(length))).context(|| "reading the exported guest".into())?;
        entry(file, BACKUP)?;
        Ok(read)
    }
}

fn header(name: &str, size: u64) -> Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name).context(|| "writing the exported guest".into())?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(size);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// Reads the head of an entry of this name; returns its size.
fn entry(file: &mut File, name: &str) -> Result<u64> {
    let mut header = Header::new_gnu();
    file.read_exact(header.as_mut_bytes()).map_err(|error| foreign().because(error))?;
    let size = header.entry_size().ok().filter(|_| *header.path_bytes() == *name.as_bytes());
    size.ok_or_else(foreign)
}

fn filling(length: u64) -> i64 {
    (length.wrapping_neg() % BLOCK) as i64
}

fn foreign() -> Error {
    Error::refused("it is no guest that virga exported").hint("'virga export' writes such a file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| crate::base::fs::open_or_create(&dir.path().join(name)).unwrap();
        let said = serde_json::json!({
            "version": 1, "name": "web", "driver": "incus", "arch": "amd64", "memory": 1u64 << 30, "cpus": 2,
            "networks": ["nat"], "wish": {"privileged": true}, "fingerprint": format!("sha256:{}", "0".repeat(64)),
            "user": "debian", "keys": {"os": "debian"},
        });
        let exported: Exported = serde_json::from_value(said.clone()).unwrap();
        let mut file = open("whole");
        exported.write(&mut file, |file| file.write_all(b"backup").context(|| "writing".into())).unwrap();
        // It is a tar for others too.
        let mut archive = tar::Archive::new(open("whole"));
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [std::path::Path::new(ABOUT), std::path::Path::new(BACKUP)]);
        let mut file = open("whole");
        let read = Exported::read(&mut file).unwrap();
        assert_eq!((read.name.as_str(), read.wish.privileged, read.networks.len()), ("web", true, 1));
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert!(rest.starts_with(b"backup") && rest[6..].iter().all(|byte| *byte == 0));

        for (key, wrong) in [("user", "-oProxyCommand=x"), ("name", "../x"), ("driver", "none"), ("networks", "x")] {
            let mut other = said.clone();
            other[key] = wrong.into();
            let about = other.to_string();
            let mut file = open(key);
            file.write_all(header(ABOUT, about.len() as u64).unwrap().as_bytes()).unwrap();
            file.write_all(about.as_bytes()).unwrap();
            assert!(Exported::read(&mut open(key)).is_err(), "{key}");
        }
        assert!(Exported::read(&mut open("empty")).is_err());
    }
}
