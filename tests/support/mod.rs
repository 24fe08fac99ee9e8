//! What the tests of the finished program share: a state folder of their own,
//! real images, a real published stream and its real server.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod moments;
pub mod slow;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The program under test.
pub const VIRGA: &str = env!("CARGO_BIN_EXE_virga");

/// A clean home and state folder; on drop all its guests are destroyed and
/// nothing of them may be left.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let home = Home { dir: tempfile::Builder::new().prefix("vt-").tempdir().unwrap() };
        std::fs::create_dir(home.path("home")).unwrap();
        home
    }

    /// A home in which an SSH key pair is found, as on a developer's machine.
    pub fn with_key() -> Self {
        let home = Home::new();
        std::fs::create_dir(home.path("home/.ssh")).unwrap();
        run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", home.path("home/.ssh/id_ed25519").to_str().unwrap()]);
        home
    }

    /// Uses the pool and the template of all tests whose subject is not the boot: clones of the test image, made with
    /// [`WARM`], are there in a second. The template is made where it is missing, and kept with what was built.
    pub fn warm(self) -> Self {
        static MADE: OnceLock<PathBuf> = OnceLock::new();
        let shared = MADE.get_or_init(|| {
            let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("warm");
            let virga = |args: &[&str]| {
                let output = self.virga(args).env("VIRGA_HOME", &shared).output().unwrap();
                assert!(output.status.success(), "{}", text(&output.stderr));
                text(&output.stdout)
            };
            let made = virga(&[&["template", "create", "--image", image().to_str().unwrap()], &SMALL[..]].concat());
            for id in names(&shared.join("templates")).iter().filter(|name| !name.contains('.')) {
                if id != made.trim() {
                    virga(&["template", "remove", id]);
                }
            }
            shared
        });
        std::fs::create_dir(self.state()).unwrap();
        for folder in ["pool", "templates"] {
            std::os::unix::fs::symlink(shared.join(folder), self.state().join(folder)).unwrap();
        }
        self
    }

    /// As [`warm`](Self::warm), with a copy of the template, to be damaged.
    pub fn warm_apart(self) -> Self {
        let home = self.warm();
        let templates = home.state().join("templates");
        let shared = std::fs::read_link(&templates).unwrap();
        std::fs::remove_file(&templates).unwrap();
        run("cp", [OsStr::new("-a"), OsStr::new("--sparse=always"), shared.as_os_str(), templates.as_os_str()]);
        home
    }

    /// A path below the folder of this test.
    pub fn path(&self, rest: &str) -> PathBuf {
        self.dir.path().join(rest)
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The program with arguments, in a clean environment.
    pub fn virga<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = Command::new(VIRGA);
        command
            .args(args)
            .env_clear()
            .env("PATH", path())
            .env("HOME", self.path("home"))
            .env("VIRGA_HOME", self.state())
            .env("VIRGA_RUNTIME_DIR", self.path("run"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn output<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Output {
        self.virga(args).output().unwrap()
    }

    /// Runs it, expects success, returns stdout.
    #[track_caller]
    pub fn ok<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it, expects this exit code, returns stderr. One clear error: it begins with "error:" and names no source line.
    #[track_caller]
    pub fn fails<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, code: i32, args: I) -> String {
        let output = self.output(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{}{stderr}", text(&output.stdout));
        assert!(stderr.contains("error: "), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains(".rs:"), "{stderr}");
        stderr
    }

    /// Parsed output of a command with `--format json`.
    #[track_caller]
    pub fn json<const N: usize>(&self, args: [&str; N]) -> serde_json::Value {
        let all: Vec<&str> = args.into_iter().chain(["--format", "json"]).collect();
        serde_json::from_str(&self.ok(all)).unwrap()
    }

    /// Processes, other than this one, whose command line names this test's folder.
    pub fn processes(&self) -> Vec<String> {
        let mark = self.dir.path().to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let line = text(&raw).replace('\0', " ");
            if line.contains(&mark) {
                found.push(format!("{}: {line}", entry.file_name().display()));
            }
        }
        found
    }

    /// No process, no guest folder, no socket of ours is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
        assert_eq!(names(&self.state().join("guests")), Vec::<String>::new(), "guest folders are left");
        assert_eq!(names(&self.path("run")), Vec::<String>::new(), "sockets are left");
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let guests = self.output(["list", "--format", "json"]);
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&guests.stdout).unwrap_or_default();
        for guest in listed {
            let _ = self.output(["destroy", guest["name"].as_str().unwrap_or_default()]);
        }
        if !std::thread::panicking() {
            assert_eq!(self.processes(), Vec::<String>::new(), "the test left processes");
        }
    }
}

/// Names in a folder, sorted; an absent folder has none.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().display().to_string()).collect();
    names.sort();
    names
}

/// Bytes as text, for messages.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `PATH` with the folders that ordinary users of Debian lack in theirs (`blkid`).
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap())
}

/// A key of `/etc/os-release`: the test image is one of the distribution that this machine runs.
pub fn os_release(key: &str) -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {key} in /etc/os-release")).trim_matches('"').to_owned()
}

/// Runs a foreign tool that must succeed; returns stdout. A tool that is missing is a failure that names it.
#[track_caller]
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, args: I) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", path())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed by this test (packaging/install-deps): {error}"));
    assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A small qcow2 image that intake accepts but nothing boots.
pub fn small_image(path: &Path, size: &str) {
    run("qemu-img", ["create", "-q", "-f", "qcow2", path.to_str().unwrap(), size]);
}

/// The SHA-256 of a file, by a program that we did not write.
pub fn sha256(path: &Path) -> String {
    run("sha256sum", [path]).split(' ').next().unwrap().to_owned()
}

/// A stream published with `virga stream` and served by `virga stream serve`.
pub struct Mirror {
    pub dir: PathBuf,
    pub key: PathBuf,
    pub url: String,
    server: Child,
}

impl Mirror {
    /// Publishes `image` under `keys` and serves it on loopback.
    pub fn with_image(home: &Home, image: &Path, keys: &[&str]) -> Self {
        let (dir, key) = (home.path("mirror"), home.path("publisher.key"));
        home.ok(["stream", "init", dir.to_str().unwrap(), "--key", key.to_str().unwrap()]);
        let mut args =
            vec!["stream", "add", dir.to_str().unwrap(), image.to_str().unwrap(), "--key", key.to_str().unwrap()];
        args.extend(keys);
        home.ok(args);
        let port_file = home.path("port");
        let server = home
            .virga(["--quiet", "stream", "serve", dir.to_str().unwrap(), "--port-file", port_file.to_str().unwrap()])
            .spawn()
            .unwrap();
        wait_for("the server's port", Duration::from_secs(10), || port_file.exists());
        let port = std::fs::read_to_string(&port_file).unwrap();
        Mirror { dir, key, url: format!("http://127.0.0.1:{}/", port.trim()), server }
    }

    /// The arguments of a `virga sync` from here.
    pub fn sync_args(&self) -> Vec<String> {
        let keyring = self.dir.join("keyring.gpg");
        ["sync", "--source", &self.url, "--keyring", keyring.to_str().unwrap()].map(str::to_owned).to_vec()
    }

    /// The one item file below the mirror.
    pub fn item(&self) -> PathBuf {
        fn find(dir: &Path) -> Option<PathBuf> {
            let mut entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
            entries.sort();
            entries.into_iter().find_map(|path| if path.is_dir() { find(&path) } else { Some(path) })
        }
        find(&self.dir.join("images")).expect("an item below images/")
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Waits until something holds; a limit that passes is a failure.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what} did not come within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes a file.
pub fn write(path: &Path, content: &str) {
    std::fs::File::create(path).unwrap().write_all(content.as_bytes()).unwrap();
}

/// Says that a test is left out, and why; in CI that is a failure.
#[track_caller]
#[allow(clippy::print_stderr, reason = "whoever runs the tests is to read it")]
pub fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
}

/// The Debian image, made by `tests/image/build` (cached; `make test` makes it first).
pub fn image() -> &'static PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/image/build");
        PathBuf::from(run(script, [] as [&str; 0]).trim())
    })
}

/// Emulated always: the same on every machine, and KVM may be there without working.
pub const SMALL: [&str; 6] = ["--accel", "tcg", "--memory", "512M", "--cpus", "2"];

/// [`SMALL`], warm; for [`Home::warm`].
pub const WARM: [&str; 7] = ["--accel", "tcg", "--memory", "512M", "--cpus", "2", "--warm"];

/// Runs a command in a guest; returns what it says.
#[track_caller]
pub fn in_guest(home: &Home, name: &str, command: &str) -> String {
    home.ok(["ssh", name, "--", command])
}
