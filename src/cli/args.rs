//! Argument types shared by several verbs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::render::Format;
use crate::base::container::ContainerWish;
use crate::base::plan::{Accel, DriverChoice};
use crate::base::platform::Firmware;
use crate::base::{Arch, BackendName, ByteSize, Error};
use crate::ops::create::{self, MachineRequest};
use crate::ops::publish::SignWith;
use crate::ops::sync::FromSources;

/// `--format`.
#[derive(Args, Clone, Copy, Debug)]
pub struct FormatArg {
    /// How to print: columns for people or JSON for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Where images come from.
#[derive(Args, Clone, Debug)]
pub struct FromArgs {
    /// A source's name or a URL; given several times, they are tried in turn [default: ubuntu]
    #[arg(long = "source", value_name = "NAME|URL")]
    sources: Vec<String>,
    #[command(flatten)]
    trust: TrustArgs,
}

/// On what terms metadata is taken.
#[derive(Args, Clone, Debug)]
pub struct TrustArgs {
    /// Trust the keys in this file instead of the source's own
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// Take metadata without a signature: whoever is on the way can then replace an image
    #[arg(long, conflicts_with = "keyring")]
    unsigned: bool,
    /// Take metadata that is older than what was verified last, or than the source allows
    #[arg(long)]
    allow_older: bool,
}

/// The keys that sign a stream.
#[derive(Args, Clone, Debug)]
pub struct SignArgs {
    /// A key to sign with; made when the file is absent and the stream is not signed yet. May be given several times:
    /// all of them sign
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// A key that GnuPG signs with, on a smart card or in its agent: a fingerprint or an address. May be given several
    /// times
    #[arg(long, value_name = "KEY")]
    sign_with: Vec<String>,
}

impl From<SignArgs> for SignWith {
    fn from(args: SignArgs) -> Self {
        SignWith { files: args.key, gnupg: args.sign_with }
    }
}

impl FromArgs {
    /// Whether any of them was given.
    #[must_use]
    pub fn any(&self) -> bool {
        let TrustArgs { keyring, unsigned, allow_older } = &self.trust;
        !self.sources.is_empty() || keyring.is_some() || *unsigned || *allow_older
    }
}

impl TrustArgs {
    /// These terms for `sources`.
    #[must_use]
    pub fn with(self, sources: Vec<String>) -> FromSources {
        let TrustArgs { keyring, unsigned, allow_older } = self;
        FromSources { sources, keyring, path: None, unsigned, allow_older }
    }
}

impl From<FromArgs> for FromSources {
    fn from(args: FromArgs) -> Self {
        args.trust.with(args.sources)
    }
}

/// A number from 1, for clap.
#[must_use]
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// `--timeout`.
#[derive(Args, Clone, Copy, Debug)]
pub struct TimeoutArg {
    /// Give up after this time, as in 90s, 5m or 2h [default: 5m]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
}

/// A value that the library parses, its hint in the message: clap shows one line.
///
/// # Errors
/// Text for clap when it does not parse.
pub fn value<T: std::str::FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(one_line)
}

fn one_line(error: Error) -> String {
    match error.hints().first() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}

/// The address of a libvirt daemon (libvirt's documentation, "Connection URIs"), looked at only so far that it is one.
///
/// # Errors
/// Text for clap when it is none.
pub fn uri(text: &str) -> Result<String, String> {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if !scheme.is_empty() && scheme.chars().all(plain) && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err("write it as in qemu:///system, qemu+ssh://host/system or incus://REMOTE".into())
}

/// A variable for a program's environment.
///
/// # Errors
/// Text for clap when it is none.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && name.chars().all(plain) && !value.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("write it as NAME=VALUE".into()),
    }
}

/// A user's name in a guest (useradd(8): what Debian takes).
///
/// # Errors
/// Text for clap when it is none.
pub fn user(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && text.len() <= 32 && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err("a user's name has 1 to 32 of a-z, 0-9, '_' and '-' and begins with a letter or '_'".into())
}

/// A time with a unit. A bare number is none: seconds and minutes are meant by it alike.
///
/// # Errors
/// Text for clap when it is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    const HOW: &str = "write a number with its unit: 90s, 5m or 2h";
    let bare = text.trim().parse::<f64>().is_ok();
    humantime::parse_duration(text)
        .map_err(|_| HOW.to_owned())
        .and_then(|time| if bare { Err(HOW.into()) } else { Ok(time) })
}

/// Memory: a bare number counts MiB, as uvtool's users write it.
///
/// # Errors
/// Text for clap when it is not a size.
pub fn memory(text: &str) -> Result<ByteSize, String> {
    ByteSize::parse(text, ByteSize::MIB).map_err(one_line)
}

/// Disk space: a bare number counts GiB, as uvtool's users write it.
///
/// # Errors
/// Text for clap when it is not a size.
pub fn disk(text: &str) -> Result<ByteSize, String> {
    ByteSize::parse(text, ByteSize::GIB).map_err(one_line)
}

/// `--limit`.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    memory: Option<ByteSize>,
    cpus: Option<u32>,
    disk: Option<ByteSize>,
}

fn limits(text: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for part in text.split(',') {
        let twice = match part.split_once('=') {
            Some(("memory", size)) => limits.memory.replace(memory(size)?).is_some(),
            Some(("disk", size)) => limits.disk.replace(disk(size)?).is_some(),
            Some(("cpu" | "cpus", number)) => {
                let number = number.parse().map_err(|_| format!("'{number}' is no number of processors"))?;
                limits.cpus.replace(number).is_some()
            }
            _ => return Err("write it as in cpu=2,memory=1GiB,disk=10GiB".into()),
        };
        if twice {
            return Err(format!("'{part}' limits again what is limited already"));
        }
    }
    Ok(limits)
}

/// Which image, and what machine: for verbs that make one.
#[derive(clap::Args, Debug)]
pub struct MachineArgs {
    /// Which image, as in release=noble, or an image's id [default: the only one]
    #[arg(value_name = "FILTER", conflicts_with = "image")]
    filters: Vec<String>,
    /// Make it of this file (qcow2 or raw) instead of an image in the pool
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    image: Option<PathBuf>,
    /// Memory, as in 512M or 2G; a bare number counts MiB [default: 1G]
    #[arg(long, value_parser = memory, value_name = "SIZE", help_heading = "Machine")]
    memory: Option<ByteSize>,
    /// Processors [default: 1]
    #[arg(long, visible_alias = "cpu", value_name = "N", help_heading = "Machine")]
    cpus: Option<u32>,
    /// Size of the first disk; a bare number counts GiB [default: 8G, or the image's if larger]
    #[arg(long, value_parser = disk, value_name = "SIZE", help_heading = "Machine")]
    disk: Option<ByteSize>,
    /// Processors, memory and disk in one, as in cpu=2,memory=1GiB,disk=10GiB
    #[arg(long, value_parser = limits, value_name = "LIMITS", conflicts_with_all = ["memory", "cpus", "disk"], help_heading = "Machine")]
    limit: Option<Limits>,
    /// What runs the guest: qemu, libvirt, incus, lxc, or auto: the first that fits the image and this host [default: qemu]
    #[arg(long, value_parser = value::<DriverChoice>, value_name = "DRIVER", help_heading = "Machine")]
    driver: Option<DriverChoice>,
    /// The processors' architecture, amd64 or arm64; a foreign one is emulated [default: this machine's]
    #[arg(long, value_parser = value::<Arch>, value_name = "ARCH", help_heading = "Machine")]
    arch: Option<Arch>,
    /// bios, uefi, or uefi-secure: with secure boot [default: bios; uefi for arm64]
    #[arg(long, value_parser = value::<Firmware>, value_name = "FIRMWARE", help_heading = "Machine")]
    firmware: Option<Firmware>,
    /// Give it a TPM 2.0, emulated by swtpm
    #[arg(long, help_heading = "Machine")]
    tpm: bool,
    #[command(flatten)]
    container: ContainerArgs,
    /// auto, kvm or tcg [default: auto: KVM where it really runs code at speed]
    #[arg(long, value_parser = value::<Accel>, value_name = "ACCEL", help_heading = "Machine")]
    accel: Option<Accel>,
}

/// What is wished of a container.
#[derive(clap::Args, Debug)]
struct ContainerArgs {
    /// A profile of the daemon's that it takes; may be given several times [default: default]
    #[arg(long = "profile", value_parser = value::<BackendName>, value_name = "PROFILE", help_heading = "Container")]
    profiles: Vec<BackendName>,
    /// Let containers run in it
    #[arg(long, help_heading = "Container")]
    nesting: bool,
    /// Let its root be the host's root: who breaks out of it owns the host
    #[arg(long, help_heading = "Container")]
    privileged: bool,
    /// The cluster's member that it is placed on [default: the cluster decides]
    #[arg(long, value_parser = value::<BackendName>, value_name = "MEMBER", help_heading = "Container")]
    target: Option<BackendName>,
}

impl ContainerArgs {
    fn wish(self) -> ContainerWish {
        let ContainerArgs { profiles, nesting, privileged, target } = self;
        ContainerWish { size: None, privileged, nesting, profiles, target }
    }
}

impl MachineArgs {
    /// As a plain request.
    #[must_use]
    pub fn request(self) -> MachineRequest {
        let limit = self.limit.unwrap_or(Limits { memory: self.memory, cpus: self.cpus, disk: self.disk });
        MachineRequest {
            from: self.image.map_or_else(|| create::From::Pool(self.filters), create::From::File),
            driver: self.driver,
            accel: self.accel,
            memory: limit.memory,
            cpus: limit.cpus,
            disk: limit.disk,
            arch: self.arch,
            firmware: self.firmware,
            tpm: self.tpm,
            container: self.container.wish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_what_has_none_is_told_how_it_is_written() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h", 7200), ("1h 30m", 5400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["5", "0", "1.5", "x", "", "5 x"] {
            assert!(duration(text).unwrap_err().contains("90s, 5m or 2h"), "{text}");
        }
    }
}
