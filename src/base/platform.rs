//! What a guest's machine is like apart from its size: machine type, firmware, TPM.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::quoted;
use super::plan::DiskFormat;
use super::{Arch, Error, Result};

/// The part of a guest's plan that says what its machine is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// The machine type with its version, as in `pc-q35-10.0`; `None` until the backend has
    /// said at the first start which one its newest is. It stays the same when the backend gets newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The machine type that it had before it was upgraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_before: Option<String>,
    /// What starts the boot loader.
    pub firmware: Firmware,
    /// The firmware's files, for drivers that choose them themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flash: Option<Flash>,
    /// Whether it has a TPM 2.0.
    pub tpm: bool,
}

/// A UEFI firmware on the host. Chosen once: its variables fit this one alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flash {
    /// The program, read-only and shared by all guests.
    pub code: PathBuf,
    /// Its format.
    pub code_format: DiskFormat,
    /// What the guest's variables are at first.
    pub template: PathBuf,
    /// The format of the template, and of the guest's own copy of it.
    pub vars_format: DiskFormat,
    /// The guest's own variables.
    pub vars: PathBuf,
}

/// What starts the boot loader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A PC's BIOS.
    #[default]
    Bios,
    /// UEFI that starts what it finds.
    Uefi,
    /// UEFI with secure boot: it starts what Microsoft or the distributor has signed.
    UefiSecure,
}

impl Firmware {
    /// What a guest has unless the user says.
    #[must_use]
    pub fn usual(arch: Arch) -> Self {
        match arch {
            Arch::Amd64 => Firmware::Bios,
            Arch::Arm64 => Firmware::Uefi,
        }
    }
}

impl FromStr for Firmware {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bios" => Ok(Firmware::Bios),
            "uefi" => Ok(Firmware::Uefi),
            "uefi-secure" => Ok(Firmware::UefiSecure),
            _ => {
                Err(Error::usage(format!("{} is not a firmware", quoted(text))).hint("one of: bios, uefi, uefi-secure"))
            }
        }
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
            Firmware::UefiSecure => "uefi-secure",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for firmware in [Firmware::Bios, Firmware::Uefi, Firmware::UefiSecure] {
            assert_eq!(firmware.to_string().parse::<Firmware>().unwrap(), firmware);
            assert_eq!(serde_json::to_value(firmware).unwrap(), firmware.to_string());
        }
        assert!("efi".parse::<Firmware>().unwrap_err().hints()[0].contains("uefi-secure"));
    }
}
