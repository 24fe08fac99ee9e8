//! Is everything there that virga needs, and what can be done about it.

use std::path::Path;

use super::Env;
use crate::base::plan::DriverKind;
use crate::base::{ByteSize, Kind, cmd, fs};
use crate::driver::{Ability, Finding, Level, ProbeDepth};
use crate::ssh::authorized;
use crate::stream::source::Sources;

/// Less free space than this is worth a word: one cloud image and its guest.
const LITTLE_SPACE: u64 = 4 * ByteSize::GIB;

/// Looks at everything. Never fails: what is wrong is a finding.
#[must_use]
pub fn doctor(env: Env<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for kind in DriverKind::ALL {
        let driver = env.driver(*kind);
        let found = driver.probe(ProbeDepth::Full);
        let usable = found.iter().all(|finding| finding.level != Level::Error);
        findings.extend(found);
        if usable {
            findings.push(reach(*kind, driver.capabilities().host_closed));
        }
    }
    findings.push(ssh_client());
    findings.extend(keyrings(env));
    findings.push(state(env.settings.layout.home()));
    findings.push(space(env));
    findings.push(keys(env));
    findings
}

fn finding(check: &str, level: Level, detail: impl Into<String>, hint: Option<&str>) -> Finding {
    Finding { check: check.into(), level, detail: detail.into(), hint: hint.map(Into::into), kind: Kind::Unavailable }
}

/// What a guest reaches unless it is told otherwise.
fn reach(kind: DriverKind, host_closed: Ability) -> Finding {
    let detail = match host_closed {
        Ability::Yes => "guests reach the world, and not this host; '--network full' opens it to one".to_owned(),
        Ability::No(why) => format!("guests reach this host as well: {why}"),
    };
    finding(&format!("{kind} network"), Level::Ok, detail, None)
}

fn ssh_client() -> Finding {
    match cmd::find("ssh") {
        Some(path) => finding("ssh", Level::Ok, format!("{} is there", path.display()), None),
        None => finding("ssh", Level::Error, "there is no ssh program", Some("install the package openssh-client")),
    }
}

/// One finding a keyring, naming the sources that need it.
fn keyrings(env: Env<'_>) -> Vec<Finding> {
    let sources = match Sources::load(&env.settings.stream_dirs) {
        Ok(sources) => sources,
        Err(error) => return vec![finding("sources", Level::Error, error.to_string(), error.hints().first().copied())],
    };
    let mut findings: Vec<Finding> = Vec::new();
    for source in sources.iter().filter(|source| source.is_signed()) {
        let (level, detail, hint) = match super::catalog::keyring_of(source) {
            Ok(keyring) => {
                let keys: Vec<String> = keyring.fingerprints().iter().map(ToString::to_string).collect();
                (Level::Ok, format!("trusted key {}", keys.join(", ")), None)
            }
            // Images from files need none.
            Err(error) => (Level::Warning, error.to_string(), error.hints().first().map(ToString::to_string)),
        };
        match findings.iter_mut().find(|known| known.detail.starts_with(&detail)) {
            Some(known) => known.detail = format!("{}, {}", known.detail, source.name),
            None => findings.push(Finding {
                check: "keyring".into(),
                level,
                detail: format!("{detail}: {}", source.name),
                hint,
                kind: Kind::Unavailable,
            }),
        }
    }
    findings
}

/// Without a place for its state virga can do nothing that changes anything.
fn state(home: &Path) -> Finding {
    match fs::unwritable(home) {
        None => finding("state", Level::Ok, format!("kept in {}", home.display()), None),
        Some(error) => {
            let why: String = error.causes().iter().map(|cause| format!(": {cause}")).collect();
            let detail = format!("nothing can be kept in {}: {error}{why}", home.display());
            let hints = error.hints();
            let moved = "VIRGA_HOME=FOLDER keeps the state in another folder";
            let hint = hints.iter().find(|hint| hint.contains("VIRGA_HOME")).copied().unwrap_or(moved);
            finding("state", Level::Error, detail, Some(hint))
        }
    }
}

fn space(env: Env<'_>) -> Finding {
    let home = env.settings.layout.home();
    // The folder may not be there yet: ask for the nearest one above it that is.
    let asked = home.ancestors().find(|path| path.exists()).unwrap_or(home);
    match fs::free_space(asked) {
        Ok(free) if free < LITTLE_SPACE => finding(
            "space",
            Level::Warning,
            format!("only {} free in {}", ByteSize(free), home.display()),
            Some("'virga prune' frees images that no guest uses; VIRGA_HOME moves the state"),
        ),
        Ok(free) => finding("space", Level::Ok, format!("{} free in {}", ByteSize(free), home.display()), None),
        Err(error) => finding("space", Level::Error, error.to_string(), None),
    }
}

fn keys(env: Env<'_>) -> Finding {
    let settings = env.settings;
    let own = settings.layout.own_key();
    let found = authorized::find(&authorized::Sources {
        files: &[],
        agent: settings.agent_socket.as_deref(),
        home: settings.user_home.as_deref(),
        own: &own,
    });
    match found {
        Ok(found) if found.keys.is_empty() => {
            let detail = format!("{}: virga makes one of its own for guests", found.none());
            let why = found.notes.join("; ");
            finding("keys", Level::Ok, detail, (!why.is_empty()).then_some(why.as_str()))
        }
        Ok(found) => finding("keys", Level::Ok, format!("{} of your SSH keys get into guests", found.keys.len()), None),
        Err(error) => finding("keys", Level::Warning, error.to_string(), error.hints().first().copied()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_nothing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state(&folder.path().join("not/yet")).level, Level::Ok);
        // Not even root makes anything in a file.
        let file = folder.path().join("file");
        fs::write_new(&file, b"", 0o600).unwrap();
        let found = state(&file);
        assert_eq!(found.level, Level::Error, "{}", found.detail);
        assert!(found.hint.unwrap().contains("VIRGA_HOME"));
    }
}
