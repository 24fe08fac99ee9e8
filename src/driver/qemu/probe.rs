//! What `doctor` and `create` want to know of QEMU on this machine.

use std::path::Path;

use super::{args, launch, system};
use crate::base::cmd::Cmd;
use crate::base::layout::RuntimeFiles;
use crate::base::{Arch, Error, Kind, Layout, Result, fs};
use crate::driver::{Finding, Level, ProbeDepth, kvm};

/// The oldest version that takes `-device` as JSON.
const OLDEST: (u32, u32) = (6, 2);

/// The oldest version that saves machines for warm starts: it takes a file as the way of a migration.
const TEMPLATES: (u32, u32) = (8, 2);

/// Looks; see [`crate::driver::Driver::probe`].
pub(super) fn findings(layout: &Layout, depth: ProbeDepth) -> Vec<Finding> {
    let mut findings = Vec::new();
    match system::program(Arch::host()) {
        Ok(path) if depth == ProbeDepth::Full => {
            findings.push(version(&path));
            findings.push(sandbox(&path));
        }
        Ok(path) => findings.push(finding("qemu", Level::Ok, path.display().to_string(), None)),
        Err(error) => {
            findings.push(finding("qemu", Level::Error, error.to_string(), Some(system::install_hint(Arch::host()))))
        }
    }
    findings.push(sockets(layout));
    if depth == ProbeDepth::Full {
        findings.push(accel(kvm::look()));
    }
    findings
}

/// # Errors
/// [`Kind::Unsupported`] for a QEMU that is too old to save machines that are loaded many times.
pub(super) fn can_make_templates(path: &Path) -> Result<()> {
    let said = Cmd::new(path).arg("--version").run()?.text();
    match parse_version(&said) {
        Some(version) if version < TEMPLATES => {
            Err(Error::new(Kind::Unsupported, "this QEMU is too old for templates").hint("they need QEMU 8.2 or later"))
        }
        _ => Ok(()),
    }
}

fn version(path: &Path) -> Finding {
    let said = match Cmd::new(path).arg("--version").run() {
        Ok(output) => output.text(),
        Err(error) => {
            let detail = format!("{error}: {}", error.causes().join(": "));
            return finding("qemu", Level::Error, detail, Some("install the package again"));
        }
    };
    let line = said.lines().next().unwrap_or_default().to_owned();
    match parse_version(&line) {
        Some(version) if version < OLDEST => {
            let hint = format!("virga needs QEMU {}.{} or later", OLDEST.0, OLDEST.1);
            finding("qemu", Level::Error, line, Some(&hint))
        }
        Some(_) => finding("qemu", Level::Ok, line, None),
        None => finding("qemu", Level::Warning, format!("{} has an unknown version", path.display()), None),
    }
}

/// Major and minor from "QEMU emulator version 10.0.2 (Debian …)".
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let (_, rest) = line.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn sandbox(path: &Path) -> Finding {
    // QEMU enters the sandbox before it lists its machines.
    let tried = Cmd::new(path).args(["-sandbox", args::SANDBOX, "-machine", "help"]).run();
    match tried {
        Ok(_) => finding("qemu sandbox", Level::Ok, "QEMU can be confined (seccomp)".into(), None),
        Err(error) => {
            let detail = format!("QEMU cannot be confined: {}", error.causes().join(": "));
            finding("qemu sandbox", Level::Error, detail, Some("install a QEMU that is built with seccomp"))
        }
    }
}

fn sockets(layout: &Layout) -> Finding {
    // Ids are cut to 8 characters in runtime folders' names.
    match launch::check_length(&RuntimeFiles::new(&layout.runtime("01234567"))) {
        Ok(()) if layout.runtime_root().exists() => match fs::ours_alone(layout.runtime_root(), 0o022) {
            Ok(()) => finding("sockets", Level::Ok, layout.runtime_root().display().to_string(), None),
            Err(error) => {
                let found = finding("sockets", Level::Error, error.to_string(), error.hints().first().copied());
                Finding { kind: error.kind(), ..found }
            }
        },
        Ok(()) => finding("sockets", Level::Ok, layout.runtime_root().display().to_string(), None),
        Err(error) => finding("sockets", Level::Error, error.to_string(), error.hints().first().copied()),
    }
}

fn accel(found: Result<kvm::Kvm>) -> Finding {
    match found {
        Ok(found) => {
            let level = if found.usable() { Level::Ok } else { Level::Warning };
            finding("kvm", level, found.describe(), found.hint())
        }
        Err(error) => finding("kvm", Level::Warning, error.to_string(), None),
    }
}

fn finding(check: &str, level: Level, detail: String, hint: Option<&str>) -> Finding {
    Finding { check: check.into(), level, detail, hint: hint.map(str::to_owned), kind: Kind::Unavailable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (line, version) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", Some((10, 0))),
            ("QEMU emulator version 7.2.15 (Debian 1:7.2+dfsg-7+deb12u12)", Some((7, 2))),
            ("QEMU emulator version 6.2.0", Some((6, 2))),
            ("QEMU emulator version ten", None),
            ("", None),
        ] {
            assert_eq!(parse_version(line), version, "{line}");
        }
    }
}
