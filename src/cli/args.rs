//! Argument types shared by several verbs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::render::Format;
use crate::base::plan::{Accel, DriverKind};
use crate::base::{ByteSize, Error};
use crate::ops::create::{self, MachineRequest};
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
        FromSources { sources, keyring, unsigned, allow_older }
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
    /// Give up after this time, as in 90s or 5m [default: 5m]
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

/// A time with a unit; a bare number counts seconds, as uvtool's users write it.
///
/// # Errors
/// Text for clap when it is neither.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
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
    /// What runs the guest [default: qemu]
    #[arg(long, value_parser = value::<DriverKind>, value_name = "DRIVER", help_heading = "Machine")]
    driver: Option<DriverKind>,
    /// auto, kvm or tcg [default: auto: KVM where it really runs code at speed]
    #[arg(long, value_parser = value::<Accel>, value_name = "ACCEL", help_heading = "Machine")]
    accel: Option<Accel>,
}

impl MachineArgs {
    /// As a plain request.
    #[must_use]
    pub fn request(self) -> MachineRequest {
        MachineRequest {
            from: self.image.map_or_else(|| create::From::Pool(self.filters), create::From::File),
            driver: self.driver,
            accel: self.accel,
            memory: self.memory,
            cpus: self.cpus,
            disk: self.disk,
        }
    }
}
