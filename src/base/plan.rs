//! The finished description of a guest: all that a driver needs to make it,
//! and nothing that it would have to look up.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::quoted;
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
    /// Disks in the order in which the guest sees them; the first one boots.
    pub disks: Vec<Disk>,
    /// The cloud-init seed, a raw read-only image.
    pub seed: Option<PathBuf>,
    /// The network card's address.
    pub mac: Mac,
    /// Ports of the guest made reachable on the host's loopback, besides SSH.
    pub forwards: Vec<Forward>,
    /// What the guest writes on its serial console goes here.
    pub console_log: PathBuf,
    /// What the backend's program says goes here.
    pub backend_log: PathBuf,
    /// Folder for sockets and the pid file.
    pub runtime: PathBuf,
}

/// A disk of a guest. The format is always stated, never probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The layers beneath it, nearest first; empty for a disk that stands alone.
    pub chain: Vec<Layer>,
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

/// The drivers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// QEMU run directly: no daemon, no privileges.
    #[default]
    Qemu,
}

impl DriverKind {
    /// Every driver.
    pub const ALL: [DriverKind; 1] = [DriverKind::Qemu];
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DriverKind::Qemu => "qemu",
        })
    }
}

impl FromStr for DriverKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "qemu" => Ok(DriverKind::Qemu),
            _ => Err(Error::usage(format!("{} is not a driver", quoted(text))).hint("known drivers: qemu")),
        }
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

/// A network card's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// A random address under QEMU's prefix 52:54:00.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn generate() -> Result<Self> {
        let [a, b, c] = random::<3>()?;
        Ok(Mac([0x52, 0x54, 0x00, a, b, c]))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?).collect();
        bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            // The lowest bit of the first byte marks a group address (IEEE 802).
            .filter(|bytes| bytes[0] & 1 == 0)
            .map(Mac)
            .ok_or_else(|| Error::usage(format!("{} is not a network card's address", quoted(&text))))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
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
    fn ids_and_addresses_round_trip() {
        let id = InstanceId::generate().unwrap();
        assert_eq!(InstanceId::try_from(id.to_string()).unwrap(), id);
        assert_eq!(id.as_str().as_bytes()[14], b'4');
        let mac = Mac::generate().unwrap();
        assert_eq!(Mac::try_from(mac.to_string()).unwrap(), mac);
        for bad in ["", "52:54:00:1:2:3", "53:54:00:01:02:03", "52:54:00:01:02:03:04", "52-54-00-01-02-03"] {
            assert!(Mac::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn forwards() {
        assert_eq!("8080:80".parse::<Forward>().unwrap(), Forward { host: 8080, guest: 80 });
        for bad in ["80", "80:0", ":80", "99999:1", "a:b", "1:2:3"] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }
}
