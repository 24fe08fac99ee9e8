//! UEFI firmware, found by the descriptors that come with it (QEMU's
//! `docs/interop/firmware.json`): which files it is, and what for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::system;
use crate::base::plan::DiskFormat;
use crate::base::platform::{Firmware, Flash};
use crate::base::{Arch, Error, Kind, Result, fs};

/// Where descriptors are; a file in a later folder takes the place of one with the same name in an earlier one.
const FOLDERS: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// Firmware has a few megabytes; 64 MiB is what a machine `virt` maps of it.
const LARGEST: u64 = 64 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    executable: Option<File>,
    #[serde(default)]
    nvram_template: Option<File>,
}

#[derive(Clone, Deserialize)]
struct File {
    filename: PathBuf,
    format: DiskFormat,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// The firmware for such a guest; its variables will be in `vars`.
///
/// # Errors
/// [`Kind::Unavailable`] with what installs it.
pub(super) fn find(arch: Arch, firmware: Firmware, vars: &Path) -> Result<Flash> {
    find_in(&FOLDERS.map(Path::new), arch, firmware, vars)
}

fn find_in(folders: &[&Path], arch: Arch, firmware: Firmware, vars: &Path) -> Result<Flash> {
    let mut files = BTreeMap::new();
    for folder in folders {
        let names = fs::list_dir(folder)?;
        files.extend(names.into_iter().filter(|name| name.ends_with(".json")).map(|name| {
            let path = folder.join(&name);
            (name, path)
        }));
    }
    // In the order of their names: so is it laid down who comes first.
    for path in files.values() {
        let text = fs::read(path, 1 << 20)?;
        // An empty file hides one of the same name; one of another shape is for others.
        let Ok(descriptor) = serde_json::from_slice::<Descriptor>(&text) else { continue };
        if let Some((code, template)) = descriptor.fits(arch, firmware)
            && code.filename.exists()
            && template.filename.exists()
        {
            return Ok(Flash {
                code: code.filename,
                code_format: code.format,
                template: template.filename,
                vars_format: template.format,
                vars: vars.to_owned(),
            });
        }
    }
    let package = match arch {
        Arch::Amd64 => "ovmf",
        Arch::Arm64 => "qemu-efi-aarch64",
    };
    Err(Error::unavailable(format!("no firmware '{firmware}' for {arch} guests is installed"))
        .hint(format!("install it: 'apt install {package}' on Debian and Ubuntu")))
}

impl Descriptor {
    /// Program and variables, if it is a firmware of this kind in two files.
    fn fits(self, arch: Arch, firmware: Firmware) -> Option<(File, File)> {
        let has = |feature: &str| self.features.iter().any(|name| name == feature);
        let right = match firmware {
            Firmware::Bios => false,
            // One that can do secure boot wants a machine that protects it.
            Firmware::Uefi => !has("secure-boot") && !has("requires-smm"),
            // Without keys in it, it is not secure.
            Firmware::UefiSecure => has("secure-boot") && has("enrolled-keys"),
        };
        // Those for confidential guests have no variables, or are no flash.
        let plain = self.interface_types.iter().any(|kind| kind == "uefi")
            && self.mapping.device == "flash"
            && self.mapping.mode.as_deref().is_none_or(|mode| mode == "split");
        let target = |target: &Target| {
            target.architecture == system::name(arch)
                && target.machines.iter().any(|machine| machine.starts_with(system::family(arch)) || machine == "*")
        };
        if !(right && plain && self.targets.iter().any(target)) {
            return None;
        }
        self.mapping.executable.zip(self.mapping.nvram_template)
    }
}

/// Gives a guest variables of its own, unless it has them.
///
/// # Errors
/// [`Kind::Unavailable`] when the firmware is not installed any more.
pub(super) fn lay_out(flash: &Flash) -> Result<()> {
    if !flash.code.exists() {
        let gone = format!("the guest's firmware '{}' is gone", flash.code.display());
        return Err(Error::unavailable(gone).hint("install the package again that it came with"));
    }
    if flash.vars.exists() {
        return Ok(());
    }
    let bytes = fs::read(&flash.template, LARGEST).map_err(|error| error.with_kind(Kind::Unavailable))?;
    // Whole or absent: what a killed command left would be taken for the guest's own.
    fs::write_atomic(&flash.vars, &bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(code: &Path, features: &str, mapping: &str) -> String {
        format!(
            r#"{{"description": "x", "interface-types": ["uefi"], "tags": [], "features": [{features}],
            "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}],
            "mapping": {{"device": "flash", {mapping} "executable": {{"filename": {code:?}, "format": "raw"}},
            "nvram-template": {{"filename": {code:?}, "format": "raw"}}}}}}"#
        )
    }

    #[test]
    fn the_first_that_fits_is_taken_and_a_later_folder_wins() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        let put = |folder: &Path, name: &str, features: &str, mapping: &str| {
            fs::create_private_dir(folder).unwrap();
            let code = folder.join(format!("{name}.fd"));
            fs::write_atomic(&code, b"code", 0o600).unwrap();
            let text = descriptor(&code, features, mapping);
            fs::write_atomic(&folder.join(format!("{name}.json")), text.as_bytes(), 0o600).unwrap();
            code
        };
        put(&first, "10-stateless", "", r#""mode": "stateless","#);
        let secure = put(&first, "20-secure", r#""secure-boot", "enrolled-keys", "requires-smm""#, "");
        put(&first, "30-no-keys", r#""secure-boot", "requires-smm""#, "");
        let plain = put(&first, "40-plain", r#""acpi-s3""#, "");
        put(&first, "50-plain", "", "");
        fs::write_new(&first.join("00-broken.json"), b"{", 0o600).unwrap();
        let find = |folders: &[&Path], arch, firmware| find_in(folders, arch, firmware, "/vars".as_ref());
        let code = |folders: &[&Path], firmware| find(folders, Arch::Amd64, firmware).unwrap().code;
        assert_eq!(code(&[&first], Firmware::Uefi), plain);
        assert_eq!(code(&[&first], Firmware::UefiSecure), secure);
        let error = find(&[&first], Arch::Arm64, Firmware::Uefi).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.hints()[0].contains("qemu-efi-aarch64"));

        let ours = put(&second, "40-plain", "", "");
        assert_eq!(code(&[&first, &second], Firmware::Uefi), ours);
        // An empty file hides it, and so does one whose program is gone.
        fs::write_atomic(&second.join("40-plain.json"), b"", 0o600).unwrap();
        assert_eq!(code(&[&first, &second], Firmware::Uefi), first.join("50-plain.fd"));
        fs::remove_file(&first.join("50-plain.fd")).unwrap();
        assert_eq!(find(&[&first, &second], Arch::Amd64, Firmware::Uefi).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn variables_are_copied_once() {
        let folder = tempfile::tempdir().unwrap();
        let (code, vars) = (folder.path().join("code"), folder.path().join("vars"));
        fs::write_new(&code, b"factory", 0o400).unwrap();
        let flash = Flash {
            code: code.clone(),
            code_format: DiskFormat::Raw,
            template: code.clone(),
            vars_format: DiskFormat::Raw,
            vars: vars.clone(),
        };
        lay_out(&flash).unwrap();
        fs::write_atomic(&vars, b"own", 0o600).unwrap();
        lay_out(&flash).unwrap();
        assert_eq!(fs::read(&vars, 100).unwrap(), b"own");
        fs::remove_file(&code).unwrap();
        assert_eq!(lay_out(&flash).unwrap_err().kind(), Kind::Unavailable);
    }
}
