//! Settings: the environment and the configuration files, resolved once.
//!
//! Fragments (each file as written) are merged into inputs, inputs are
//! validated into [`Settings`]. This is the only place that reads the
//! environment; `docs/configuration.md` lists every variable and key.
#![allow(clippy::disallowed_methods, reason = "this is the place that the rule sends others to")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy as _;
use serde::Deserialize;

use crate::base::plan::{Accel, DriverKind};
use crate::base::{ByteSize, Context as _, Error, Kind, Layout, Result, fs};

/// The state folder. Default: `/var/lib/virga` for root, `$XDG_DATA_HOME/virga` else.
pub const VIRGA_HOME: &str = "VIRGA_HOME";
/// The folder for sockets and pid files. Default: `/run/virga` for root, `$XDG_RUNTIME_DIR/virga` else.
pub const VIRGA_RUNTIME_DIR: &str = "VIRGA_RUNTIME_DIR";
/// A configuration file to read instead of the usual ones.
pub const VIRGA_CONFIG: &str = "VIRGA_CONFIG";
/// What to log, as in `debug` or `virga::fetch=trace`.
pub const VIRGA_LOG: &str = "VIRGA_LOG";
/// The SSH agent's socket, set by the agent.
pub const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";

/// One configuration file, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Fragment {
    source: Option<String>,
    driver: Option<String>,
    accel: Option<String>,
    memory: Option<String>,
    cpus: Option<u32>,
    disk: Option<String>,
    timeout: Option<String>,
}

impl Fragment {
    /// What `other` says wins.
    fn overlaid(self, other: Fragment) -> Fragment {
        Fragment {
            source: other.source.or(self.source),
            driver: other.driver.or(self.driver),
            accel: other.accel.or(self.accel),
            memory: other.memory.or(self.memory),
            cpus: other.cpus.or(self.cpus),
            disk: other.disk.or(self.disk),
            timeout: other.timeout.or(self.timeout),
        }
    }
}

/// What commands fall back to when the command line is silent.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Where images come from.
    pub source: String,
    /// What runs guests.
    pub driver: DriverKind,
    /// How instructions are run.
    pub accel: Accel,
    /// A guest's memory.
    pub memory: ByteSize,
    /// A guest's processors.
    pub cpus: u32,
    /// A guest's first disk; an image that is larger keeps its own size.
    pub disk: ByteSize,
    /// How long `wait` waits.
    pub timeout: Duration,
}

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the state is.
    pub layout: Layout,
    /// Folders with the user's own sources, least important first.
    pub stream_dirs: Vec<PathBuf>,
    /// The user's home folder, if there is one.
    pub user_home: Option<PathBuf>,
    /// The SSH agent's socket, if one is announced.
    pub agent_socket: Option<PathBuf>,
    /// Fall-backs.
    pub defaults: Defaults,
}

/// Reads the environment and the configuration files.
///
/// # Errors
/// [`Kind::Usage`] for a file or variable that makes no sense, naming it.
pub fn load() -> Result<Settings> {
    let user_home = variable("HOME").map(PathBuf::from);
    let root = rustix::process::geteuid().is_root();
    let base = etcetera::base_strategy::choose_base_strategy().ok();
    let config_dirs = config_dirs(base.as_ref().map(|base| base.config_dir()));

    let mut merged = Fragment::default();
    for file in config_files(&config_dirs) {
        merged = merged.overlaid(fragment(&file)?);
    }
    Ok(Settings {
        layout: layout(root, base.as_ref().map(|base| base.data_dir()))?,
        stream_dirs: config_dirs.iter().map(|dir| dir.join("streams")).collect(),
        user_home,
        agent_socket: variable(SSH_AUTH_SOCK).map(PathBuf::from),
        defaults: defaults(merged)?,
    })
}

/// A variable's value; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// What [`VIRGA_LOG`] says.
#[must_use]
pub fn log_filter() -> Option<String> {
    variable(VIRGA_LOG)?.into_string().ok()
}

fn config_dirs(user: Option<PathBuf>) -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::from("/etc/virga")];
    dirs.extend(user.map(|dir| dir.join("virga")));
    dirs
}

fn config_files(dirs: &[PathBuf]) -> Vec<PathBuf> {
    match variable(VIRGA_CONFIG) {
        Some(file) => vec![PathBuf::from(file)],
        None => dirs.iter().map(|dir| dir.join("config.toml")).filter(|file| file.exists()).collect(),
    }
}

fn fragment(file: &Path) -> Result<Fragment> {
    let text = fs::read_text(file, 1 << 20).map_err(|error| error.with_kind(Kind::Usage))?;
    toml::from_str(&text)
        .map_err(|error| Error::usage(format!("the configuration file '{}' is wrong", file.display())).because(error))
}

fn layout(root: bool, data: Option<PathBuf>) -> Result<Layout> {
    let home = match (variable(VIRGA_HOME), data) {
        (Some(home), _) => absolute(PathBuf::from(home))?,
        (None, _) if root => PathBuf::from("/var/lib/virga"),
        (None, Some(data)) => data.join("virga"),
        (None, None) => {
            return Err(Error::usage("there is no home folder to keep the state in")
                .hint(format!("set HOME, or {VIRGA_HOME} to a folder")));
        }
    };
    let runtime = match (variable(VIRGA_RUNTIME_DIR), variable("XDG_RUNTIME_DIR")) {
        (Some(dir), _) => absolute(PathBuf::from(dir))?,
        (None, _) if root => PathBuf::from("/run/virga"),
        (None, Some(dir)) => PathBuf::from(dir).join("virga"),
        (None, None) => home.join("run"),
    };
    Layout::new(home, runtime)
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).context(|| format!("finding '{}'", path.display()))
}

fn defaults(merged: Fragment) -> Result<Defaults> {
    let size = |text: Option<String>, bare, fallback| match text {
        Some(text) => ByteSize::parse(&text, bare),
        None => Ok(ByteSize(fallback)),
    };
    let timeout = match merged.timeout {
        Some(text) => humantime::parse_duration(&text)
            .map_err(|error| Error::usage("the setting 'timeout' is not a time").because(error))?,
        None => Duration::from_secs(300),
    };
    Ok(Defaults {
        source: merged.source.unwrap_or_else(|| "ubuntu".into()),
        driver: merged.driver.as_deref().map_or(Ok(DriverKind::default()), str::parse)?,
        accel: merged.accel.as_deref().map_or(Ok(Accel::default()), str::parse)?,
        memory: size(merged.memory, ByteSize::MIB, ByteSize::GIB)?,
        cpus: merged.cpus.unwrap_or(1),
        disk: size(merged.disk, ByteSize::GIB, 8 * ByteSize::GIB)?,
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_win_and_unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write_atomic(&file, b"memory = \"2G\"\ncpus = 3\n", 0o644).unwrap();
        let merged = Fragment { cpus: Some(9), timeout: Some("1m".into()), ..Fragment::default() }
            .overlaid(fragment(&file).unwrap());
        let defaults = defaults(merged).unwrap();
        assert_eq!((defaults.memory.0, defaults.cpus), (2 << 30, 3));
        assert_eq!(defaults.timeout, Duration::from_secs(60));

        fs::write_atomic(&file, b"memroy = \"2G\"\n", 0o644).unwrap();
        let error = fragment(&file).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.causes()[0].contains("memroy"));
    }
}
