//! The finished description of a guest: all that a driver needs to make it,
//! and nothing that it would have to look up.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::container::Container;
use super::name::quoted;
use super::nic::Nic;
use super::platform::Platform;
use super::{Arch, ByteSize, Error, GuestName, Result};

/// Everything a driver needs to define and start one guest. Stored in
/// `guest.json`; all paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPlan {
    /// The guest's name.
    pub name: GuestName,
    /// The guest's unique id: cloud-init's instance-id, the machine's UUID, and the label on everything that belongs to it.
    pub id: InstanceId,
    /// Processor architecture of the guest.
    pub arch: Arch,
    /// Memory; a whole number of MiB.
    pub memory: ByteSize,
    /// Virtual processors, at least 1.
    pub cpus: u32,
    /// How its instructions are run.
    pub accel: Accel,
    /// Disks in the order in which the guest sees them; the first one boots. A container has none.
    pub disks: Vec<Disk>,
    /// The cloud-init seed: a raw read-only image, or a folder with its documents, as the driver likes it.
    pub seed: Option<PathBuf>,
    /// Network cards in the order in which the guest sees them. SSH is reached over the first one.
    pub nics: Vec<Nic>,
    /// Ports of the guest made reachable on the host's loopback, besides SSH.
    pub forwards: Vec<Forward>,
    /// Its public host keys, as the seed injects them: `type base64` each.
    #[serde(default)]
    pub host_keys: Vec<String>,
    /// What the guest writes on its serial console goes here.
    pub console_log: PathBuf,
    /// What the backend's program says goes here.
    pub backend_log: PathBuf,
    /// Folder for sockets and the pid file.
    pub runtime: PathBuf,
    /// Which daemon keeps it, for drivers that talk to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon: Option<Daemon>,
    /// What is unusual about the machine.
    #[serde(default, skip_serializing_if = "Tuning::is_usual")]
    pub tuning: Tuning,
    /// What its machine is like apart from its size.
    #[serde(default)]
    pub platform: Platform,
    /// What makes it a container; `None`: a virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The name that its disks at the daemon bear, where it was renamed since they were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<GuestName>,
}

impl GuestPlan {
    /// The name that its disks at the daemon bear.
    #[must_use]
    pub fn volumes(&self) -> &GuestName {
        self.volumes.as_ref().unwrap_or(&self.name)
    }
}

/// What is unusual about a machine; by default nothing is. Made for guests of the libvirt driver alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// How writes to all its disks are cached, in libvirt's words.
    pub disk_cache: Option<String>,
    /// The host's processor where a template says otherwise; without a template that is usual.
    pub host_cpu: bool,
    /// The serial console goes into the backend's own log of the guest too, and nobody can type on it.
    pub log_console: bool,
    /// A domain's XML in which the guest is filled in.
    pub template: Option<String>,
    /// The layers beneath its disks lie where they are for good: they are taken as they are, not brought anywhere.
    pub base_in_place: bool,
}

impl Tuning {
    fn is_usual(&self) -> bool {
        *self == Tuning::default()
    }
}

/// The daemon that keeps a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// How it is reached, as in `qemu:///system`.
    pub uri: String,
    /// Its storage pool that holds the guest's disks.
    pub pool: String,
}

/// A disk of a guest. The format is always stated, never probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Its size as the guest sees it.
    pub size: ByteSize,
    /// The layers beneath it, nearest first; empty for a disk that stands alone.
    pub chain: Vec<Layer>,
    /// Whether the guest may only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether it is a file of the user's, which is used where it is and never removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

impl Disk {
    /// A qcow2 disk that goes with its guest.
    #[must_use]
    pub fn own(path: PathBuf, size: ByteSize, chain: Vec<Layer>) -> Self {
        Disk { path, format: DiskFormat::Qcow2, size, chain, read_only: false, kept: false }
    }

    /// How the user calls it: the file's path, or its name in the guest's folder.
    #[must_use]
    pub fn title(&self) -> String {
        match self.kept {
            true => self.path.display().to_string(),
            false => self.path.file_name().unwrap_or_default().display().to_string(),
        }
    }
}

/// A read-only layer beneath a disk. Its format too is stated, never probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The image file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
}

/// Disk image formats that virga handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// Plain bytes.
    Raw,
}

impl DiskFormat {
    /// QEMU's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

impl FromStr for DiskFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = [DiskFormat::Qcow2, DiskFormat::Raw];
        known
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| Error::usage(format!("{} is not a disk format", quoted(text))).hint("one of: qcow2, raw"))
    }
}

/// The drivers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// QEMU run directly: no daemon, no privileges.
    #[default]
    Qemu,
    /// A libvirt daemon, here or elsewhere.
    #[cfg(feature = "libvirt")]
    Libvirt,
    /// Containers of an Incus daemon, or of LXD.
    Incus,
    /// Containers by the tools of classic LXC, without a daemon.
    Lxc,
}

impl DriverKind {
    /// Every driver.
    pub const ALL: &[DriverKind] = &[
        DriverKind::Qemu,
        #[cfg(feature = "libvirt")]
        DriverKind::Libvirt,
        DriverKind::Incus,
        DriverKind::Lxc,
    ];
}

/// Which driver is to run a guest. Text form: a driver's name, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// The first that fits the image and the host.
    Auto,
    /// This one.
    Kind(DriverKind),
}

impl From<DriverKind> for DriverChoice {
    fn from(kind: DriverKind) -> Self {
        DriverChoice::Kind(kind)
    }
}

impl FromStr for DriverChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(DriverChoice::Auto),
            kind => kind.parse().map(DriverChoice::Kind),
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DriverKind::Qemu => "qemu",
            #[cfg(feature = "libvirt")]
            DriverKind::Libvirt => "libvirt",
            DriverKind::Incus => "incus",
            DriverKind::Lxc => "lxc",
        })
    }
}

impl FromStr for DriverKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        DriverKind::ALL.iter().find(|kind| kind.to_string() == text).copied().ok_or_else(|| {
            let known: Vec<String> = DriverKind::ALL.iter().map(ToString::to_string).collect();
            let error = Error::usage(format!("{} is not a driver", quoted(text)));
            match text {
                "libvirt" => error.hint("this virga was built without its feature 'libvirt'"),
                _ => error.hint(format!("known drivers: {}, auto", known.join(", "))),
            }
        })
    }
}

/// How the guest's instructions are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it really runs code at speed, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

impl FromStr for Accel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Accel::Auto),
            "kvm" => Ok(Accel::Kvm),
            "tcg" => Ok(Accel::Tcg),
            _ => Err(Error::usage(format!("{} is not an accelerator", quoted(text))).hint("one of: auto, kvm, tcg")),
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Accel::Auto => "auto",
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// The first thing in which two fingerprints of a driver differ, as a sentence.
#[must_use]
pub fn difference(then: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Option<String> {
    let (name, before) = then.iter().find(|(name, before)| now.get(*name) != Some(before))?;
    let now = now.get(name).map_or("nothing", String::as_str);
    Some(format!("{name} was '{before}' and is '{now}'"))
}

/// A TCP port of the guest on the host's loopback. Text form: `HOST:GUEST`;
/// host port 0 lets the system choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Port on 127.0.0.1 of the host; 0 = chosen at start.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
}

impl FromStr for Forward {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (host, guest) = text.split_once(':')?;
            let guest: u16 = guest.parse().ok()?;
            (guest != 0).then_some(())?;
            Some(Forward { host: host.parse().ok()?, guest })
        };
        parse().ok_or_else(|| {
            Error::usage(format!("{} is not a port forward", quoted(text)))
                .hint("write HOST:GUEST, as in 8080:80; host port 0 lets the system choose")
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// A random (version 4) UUID that names one life of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

impl InstanceId {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn generate() -> Result<Self> {
        let mut b = random::<16>()?;
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let h = super::name::hex(&b);
        Ok(InstanceId(format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])))
    }

    /// The usual 36 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 8 digits: short enough for a socket's path.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl TryFrom<String> for InstanceId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let shape = |(i, b): (usize, u8)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        };
        if text.len() == 36 && text.bytes().enumerate().all(shape) {
            return Ok(InstanceId(text));
        }
        Err(Error::failed(format!("{} is not an instance id", quoted(&text))))
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `N` bytes from the system's random number generator.
///
/// # Errors
/// When the system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    use rand_core::RngCore as _;
    let mut bytes = [0; N];
    rand_core::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::failed("asking the system for random numbers").because(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        let id = InstanceId::generate().unwrap();
        assert_eq!(InstanceId::try_from(id.to_string()).unwrap(), id);
        assert_eq!(id.as_str().as_bytes()[14], b'4');
    }

    #[test]
    fn forwards() {
        assert_eq!("8080:80".parse::<Forward>().unwrap(), Forward { host: 8080, guest: 80 });
        for bad in ["80", "80:0", ":80", "99999:1", "a:b", "1:2:3"] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }
}
