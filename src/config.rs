//! Settings: the environment and the configuration files, resolved once.
//!
//! Fragments (each file as written) are merged into inputs, inputs are
//! validated into [`Settings`]. This is the only place that reads the
//! environment; `docs/configuration.md` lists every variable and key.
#![allow(clippy::disallowed_methods, reason = "this is the place that the rule sends others to")]

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy as _;
use rustix::fs::Access;
use serde::Deserialize;

use crate::base::address::{shown, without_secrets};
use crate::base::plan::{Accel, DriverChoice, DriverKind};
use crate::base::proxy::{Proxies, Proxy};
use crate::base::{ByteSize, Context as _, Error, Kind, Layout, Result, fs};

/// The state folder. Default: `/var/lib/virga` for root, `$XDG_DATA_HOME/virga` else.
pub const VIRGA_HOME: &str = "VIRGA_HOME";
/// The folder for sockets and pid files. Default: `/run/virga` for root, `$XDG_RUNTIME_DIR/virga` else.
pub const VIRGA_RUNTIME_DIR: &str = "VIRGA_RUNTIME_DIR";
/// A configuration file to read instead of the usual ones.
pub const VIRGA_CONFIG: &str = "VIRGA_CONFIG";
/// What to log, as in `debug` or `virga::fetch=trace`.
pub const VIRGA_LOG: &str = "VIRGA_LOG";
/// The daemon to talk to, as in `qemu:///system` or `incus://REMOTE`.
pub const VIRGA_CONNECT: &str = "VIRGA_CONNECT";
/// The same for all of libvirt's clients; the configuration file and [`VIRGA_CONNECT`] win.
pub const LIBVIRT_DEFAULT_URI: &str = "LIBVIRT_DEFAULT_URI";
/// The Incus daemon's socket.
pub const INCUS_SOCKET: &str = "INCUS_SOCKET";
/// The Incus daemon's folder, in which its socket is.
pub const INCUS_DIR: &str = "INCUS_DIR";
/// The LXD daemon's folder, in which its socket is.
pub const LXD_DIR: &str = "LXD_DIR";
/// The folder with the remotes of Incus' client. Default: `~/.config/incus`.
pub const INCUS_CONF: &str = "INCUS_CONF";
/// The folder with the remotes of LXD's client. Default: `~/.config/lxc`.
pub const LXD_CONF: &str = "LXD_CONF";
/// Where containers of classic LXC lie. Default: `/var/lib/virga-lxc`.
pub const VIRGA_LXC_PATH: &str = "VIRGA_LXC_PATH";
/// What uvtool's commands keep beside libvirt. Default: `/var/lib/uvtool/libvirt`.
pub const VIRGA_UVTOOL_HOME: &str = "VIRGA_UVTOOL_HOME";
/// A file with logins for servers, in place of `~/.netrc`.
pub const NETRC: &str = "NETRC";
/// The SSH agent's socket, set by the agent.
pub const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";

/// Every variable that settings come from. A process of ours that outlives its command has these and no others; those
/// with logins for servers are not among them.
pub const VARIABLES: [&str; 20] = [
    VIRGA_HOME,
    VIRGA_RUNTIME_DIR,
    VIRGA_CONFIG,
    VIRGA_CONNECT,
    VIRGA_LXC_PATH,
    VIRGA_UVTOOL_HOME,
    LIBVIRT_DEFAULT_URI,
    "LIBVIRT_AUTH_FILE",
    INCUS_SOCKET,
    INCUS_DIR,
    INCUS_CONF,
    LXD_DIR,
    LXD_CONF,
    SSH_AUTH_SOCK,
    "XDG_CONFIG_HOME",
    "XDG_CONFIG_DIRS",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    "KRB5CCNAME",
];

/// One configuration file, as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Fragment {
    source: Option<String>,
    driver: Option<String>,
    connect: Option<String>,
    libvirt_pool: Option<String>,
    incus_pool: Option<String>,
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
            connect: other.connect.or(self.connect),
            libvirt_pool: other.libvirt_pool.or(self.libvirt_pool),
            incus_pool: other.incus_pool.or(self.incus_pool),
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
    pub driver: DriverChoice,
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

/// Where uvtool's commands find what is uvtool's.
#[derive(Clone, Debug)]
pub struct Uvtool {
    /// The folder with the metadata of images, and with the pool's where we make that.
    pub home: PathBuf,
    /// The daemon. Always the system's unless virga's own settings name one: libvirt's variable does not count.
    pub connect: String,
}

/// The file with the user's logins.
#[derive(Clone, Debug)]
pub struct Netrc {
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Whether [`NETRC`] names it.
    pub named: bool,
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
    /// The user's logins for servers.
    pub netrc: Option<Netrc>,
    /// The proxies that servers are asked through.
    pub proxies: Proxies,
    /// What is wrong with the proxy for each of these schemes of URLs.
    pub wrong_proxies: Vec<(&'static str, String)>,
    /// What of the environment is passed over, and what is used in its place.
    pub notes: Vec<String>,
    /// The SSH agent's socket, if one is announced.
    pub agent_socket: Option<PathBuf>,
    /// The daemon to talk to, where one is named.
    pub connect: Option<String>,
    /// libvirt's storage pool for guests' disks, where one is named.
    pub pool: Option<String>,
    /// The socket of the Incus or LXD daemon, where the environment names one.
    pub incus: Option<PathBuf>,
    /// Folders in which Incus' and LXD's own clients keep their remotes, the first one first.
    pub incus_clients: Vec<PathBuf>,
    /// That daemon's storage pool for guests, where one is named.
    pub incus_pool: Option<String>,
    /// Where containers of classic LXC lie: a folder that their own root may enter.
    pub lxc: PathBuf,
    /// Whether there is a display on which windows can be shown.
    pub display: bool,
    /// For the commands that speak uvtool's language.
    pub uvtool: Uvtool,
    /// Fall-backs.
    pub defaults: Defaults,
}

/// Reads the environment and the configuration files.
///
/// # Errors
/// [`Kind::Usage`] for a file or variable that makes no sense, naming it.
pub fn load() -> Result<Settings> {
    let mut notes = Vec::new();
    let user_home = user_home(&mut notes);
    let root = rustix::process::geteuid().is_root();
    let base = etcetera::base_strategy::choose_base_strategy().ok();
    // One that lies in a home folder is of no more use than that.
    let within = |dir: PathBuf, name| (user_home.is_some() || variable(name).is_some()).then_some(dir);
    let user_config = base.as_ref().and_then(|base| within(base.config_dir(), "XDG_CONFIG_HOME"));
    let config_dirs = config_dirs(user_config, &mut notes);

    let mut merged = Fragment::default();
    for file in config_files(&config_dirs) {
        merged = merged.overlaid(fragment(&file)?);
    }
    let connect = text(VIRGA_CONNECT)?.or(merged.connect.take());
    let uvtool = Uvtool {
        home: absolute(variable(VIRGA_UVTOOL_HOME).map_or_else(|| "/var/lib/uvtool/libvirt".into(), PathBuf::from))?,
        connect: connect.clone().unwrap_or_else(|| "qemu:///system".into()),
    };
    let data = base.as_ref().and_then(|base| within(base.data_dir(), "XDG_DATA_HOME"));
    Ok(Settings {
        layout: layout(root, data, &mut notes)?,
        stream_dirs: config_dirs.iter().map(|dir| dir.join("streams")).collect(),
        incus_clients: incus_clients(user_home.as_deref()),
        netrc: netrc(user_home.as_deref()),
        wrong_proxies: wrong_proxies(),
        proxies: proxies(),
        notes,
        user_home,
        agent_socket: variable(SSH_AUTH_SOCK).map(PathBuf::from),
        connect: connect.or(text(LIBVIRT_DEFAULT_URI)?),
        uvtool,
        pool: merged.libvirt_pool.take(),
        incus: incus_socket(),
        incus_pool: merged.incus_pool.take(),
        lxc: absolute(variable(VIRGA_LXC_PATH).map_or_else(|| "/var/lib/virga-lxc".into(), PathBuf::from))?,
        display: variable("DISPLAY").or_else(|| variable("WAYLAND_DISPLAY")).is_some(),
        defaults: defaults(merged)?,
    })
}

/// The home folder, unless this user may not enter it (su and sudo can leave that of another one): then nothing in it
/// is looked for.
fn user_home(notes: &mut Vec<String>) -> Option<PathBuf> {
    let home = PathBuf::from(variable("HOME")?);
    let barred = if home.is_absolute() { fs::barred(&home) } else { Some("it is not an absolute path".into()) };
    let Some(barred) = barred else { return Some(home) };
    notes.push(format!("HOME is '{}', and nothing there is used: {barred}", home.display()));
    None
}

fn netrc(home: Option<&Path>) -> Option<Netrc> {
    match (variable(NETRC), home) {
        (Some(path), _) => Some(Netrc { path: path.into(), named: true }),
        (None, Some(home)) => Some(Netrc { path: home.join(".netrc"), named: false }),
        (None, None) => None,
    }
}

/// The variables that name a proxy, for each scheme of URLs, the one first that wins.
const PROXIES: [(&str, [&str; 4]); 2] = [
    ("http", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
    ("https", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
];

/// Which variable names the proxy for a scheme, and its value.
fn proxy(names: [&'static str; 4]) -> Option<(&'static str, String)> {
    let (name, value) = names.into_iter().find_map(|name| Some((name, variable(name)?)))?;
    Some((name, value.to_string_lossy().into_owned()))
}

fn proxies() -> Proxies {
    let named = PROXIES.into_iter().filter_map(|(scheme, names)| {
        let (name, value) = proxy(names)?;
        Some(Proxy::new(scheme, name, &value))
    });
    let without = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
    Proxies { named: named.collect(), without: without.to_string_lossy().into_owned() }
}

/// Proxies of a kind that nobody speaks to: what is behind them would be asked for directly, which is not what was meant.
fn wrong_proxies() -> Vec<(&'static str, String)> {
    const KNOWN: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
    let wrong = |(scheme, names): (&'static str, [&'static str; 4])| {
        let (name, value) = proxy(names)?;
        let (kind, _) = value.split_once("://")?;
        let known = KNOWN.contains(&kind.to_ascii_lowercase().as_str());
        (!known).then(|| (scheme, format!("{name} is '{}', a kind of proxy that virga does not know", shown(&value))))
    };
    PROXIES.into_iter().filter_map(wrong).collect()
}

/// What Incus' and LXD's own clients go by.
fn incus_socket() -> Option<PathBuf> {
    let folder = |name| variable(name).map(|folder| PathBuf::from(folder).join("unix.socket"));
    variable(INCUS_SOCKET).map(PathBuf::from).or_else(|| folder(INCUS_DIR)).or_else(|| folder(LXD_DIR))
}

/// Where those clients look, Incus' own first; LXD's snap keeps its own.
fn incus_clients(home: Option<&Path>) -> Vec<PathBuf> {
    let folder = |name, usual: &str| variable(name).map(PathBuf::from).or_else(|| Some(home?.join(usual)));
    let snap = home.map(|home| home.join("snap/lxd/common/config"));
    [folder(INCUS_CONF, ".config/incus"), folder(LXD_CONF, ".config/lxc"), snap].into_iter().flatten().collect()
}

/// A variable's value; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A variable's value that must be text.
fn text(name: &str) -> Result<Option<String>> {
    let text = variable(name).map(OsString::into_string).transpose();
    text.map_err(|_| Error::usage(format!("the variable {name} is not UTF-8")))
}

/// What [`VIRGA_LOG`] says.
#[must_use]
pub fn log_filter() -> Option<String> {
    variable(VIRGA_LOG)?.into_string().ok()
}

fn config_dirs(user: Option<PathBuf>, notes: &mut Vec<String>) -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::from("/etc/virga")];
    dirs.extend(user.map(|dir| dir.join("virga")));
    dirs.retain(|dir| match fs::barred(dir) {
        None => true,
        Some(barred) => {
            notes.push(format!("the configuration in '{}' is not used: {barred}", dir.display()));
            false
        }
    });
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
    let wrong = || Error::usage(format!("the configuration file '{}' is wrong", file.display()));
    let fragment: Fragment = toml::from_str(&text)
        // It quotes the line, and that may hold a URL.
        .map_err(|error| without_secrets(&error.to_string()))
        .map_err(|error| wrong().because(error))?;
    // By itself: of what is merged nobody knows any more which file it came from.
    defaults(fragment.clone()).map_err(|error| wrong().because(error))?;
    Ok(fragment)
}

fn layout(root: bool, data: Option<PathBuf>, notes: &mut Vec<String>) -> Result<Layout> {
    let home = match (variable(VIRGA_HOME), data) {
        (Some(home), _) => absolute(PathBuf::from(home))?,
        (None, _) if root => PathBuf::from("/var/lib/virga"),
        (None, Some(data)) => data.join("virga"),
        (None, None) => {
            let error = Error::usage("there is no home folder to keep the state in");
            let error = notes.drain(..).fold(error, Error::hint);
            return Err(
                error.hint(format!("set HOME to your own, as 'su -' and 'sudo -H' do, or {VIRGA_HOME} to a folder"))
            );
        }
    };
    let runtime = match (variable(VIRGA_RUNTIME_DIR), variable("XDG_RUNTIME_DIR")) {
        (Some(dir), _) => absolute(PathBuf::from(dir))?,
        (None, _) if root => PathBuf::from("/run/virga"),
        (None, Some(dir)) => match unfit(Path::new(&dir)) {
            None => PathBuf::from(dir).join("virga"),
            Some(why) => {
                let (dir, instead) = (PathBuf::from(dir), home.join("run"));
                notes.push(format!(
                    "XDG_RUNTIME_DIR is '{}', which {why}: sockets go to '{}'",
                    dir.display(),
                    instead.display()
                ));
                instead
            }
        },
        (None, None) => home.join("run"),
    };
    Layout::new(home, runtime)
}

/// Why a folder is not this user's for sockets (XDG base directory specification, `XDG_RUNTIME_DIR`).
fn unfit(dir: &Path) -> Option<&'static str> {
    if !dir.is_absolute() {
        return Some("is not an absolute path");
    }
    let Ok(found) = std::fs::metadata(dir) else { return Some("is not there") };
    if !found.is_dir() {
        return Some("is no folder");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Some("belongs to another user");
    }
    // Without the sticky bit another user could put theirs in the place of ours.
    if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        return Some("is open to other users");
    }
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).err().map(|_| "may not be written to")
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).context(|| format!("finding '{}'", path.display()))
}

fn defaults(merged: Fragment) -> Result<Defaults> {
    let size = |name: &str, text: Option<String>, bare, fallback| match text {
        Some(text) => ByteSize::parse(&text, bare).context(|| format!("the setting '{name}' is wrong")),
        None => Ok(ByteSize(fallback)),
    };
    let timeout = match merged.timeout {
        Some(text) => humantime::parse_duration(&text)
            .map_err(|error| Error::usage("the setting 'timeout' is not a time").because(error))?,
        None => Duration::from_secs(300),
    };
    Ok(Defaults {
        source: merged.source.unwrap_or_else(|| "ubuntu".into()),
        driver: merged.driver.as_deref().map_or(Ok(DriverKind::default().into()), str::parse)?,
        accel: merged.accel.as_deref().map_or(Ok(Accel::default()), str::parse)?,
        memory: size("memory", merged.memory, ByteSize::MIB, ByteSize::GIB)?,
        cpus: merged.cpus.unwrap_or(1),
        disk: size("disk", merged.disk, ByteSize::GIB, 8 * ByteSize::GIB)?,
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

        fs::write_atomic(&file, b"sorce = \"https://u:s3cret@h/\"\n", 0o644).unwrap();
        let error = fragment(&file).unwrap_err();
        assert!(
            error.causes()[0].contains("https://h/") && !error.causes()[0].contains("s3cret"),
            "{:?}",
            error.causes()
        );
        fs::write_atomic(&file, b"memroy = \"2G\"\n", 0o644).unwrap();
        let error = fragment(&file).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.causes()[0].contains("memroy"));
    }

    #[test]
    fn a_value_that_is_wrong_is_told_with_the_file_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        for (text, cause) in
            [("memory = \"lots\"", "'memory'"), ("timeout = \"5\"", "'timeout'"), ("driver = \"kvm\"", "kvm")]
        {
            fs::write_atomic(&file, text.as_bytes(), 0o644).unwrap();
            let error = fragment(&file).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.to_string().contains(&file.display().to_string()), "{error}");
            assert!(error.causes()[0].contains(cause), "{:?}", error.causes());
        }
    }

    #[test]
    fn a_folder_for_sockets_is_ones_own_or_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write_new(&file, b"", 0o600).unwrap();
        assert_eq!(unfit(folder.path()), None);
        assert_eq!(unfit(Path::new("run/user/1000")), Some("is not an absolute path"));
        assert_eq!(unfit(&folder.path().join("absent")), Some("is not there"));
        assert_eq!(unfit(&file), Some("is no folder"));
        let open = folder.path().join("open");
        fs::create_private_dir(&open).unwrap();
        let mode = |mode| std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o770);
        assert_eq!(unfit(&open), Some("is open to other users"));
        mode(0o1777);
        assert_eq!(unfit(&open), None);
        // Root's, or where root runs this another one's.
        let others = folder.path().join("others");
        fs::create_private_dir(&others).unwrap();
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::fs::Uid::from_raw(65534);
            rustix::fs::chown(&others, Some(nobody), None).unwrap();
            assert_eq!(unfit(&others), Some("belongs to another user"));
        } else {
            assert_eq!(unfit(Path::new("/")), Some("belongs to another user"));
        }
    }
}
