//! What the tests of the finished program share: a state folder of their own,
//! real images, a real published stream and its real server.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod cluster;
pub mod incus;
pub mod lxc;
pub mod moments;
pub mod sandbox;
pub mod slow;
pub mod uvt;
pub mod watch;

use std::ffi::OsStr;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sandbox::Sandbox;

/// The program under test.
pub const VIRGA: &str = env!("CARGO_BIN_EXE_virga");

/// So long that only a fault takes it, on any machine and under any load. No test knows how fast the machine is.
pub const LONG: Duration = Duration::from_secs(600);

/// A clean home and state folder; on drop all its guests are destroyed and
/// nothing of them may be left.
pub struct Home {
    dir: tempfile::TempDir,
    /// What stands before the program: a way into namespaces, or nothing.
    within: Vec<String>,
    program: PathBuf,
    /// One of its own, which goes after its guests.
    sandbox: Option<Sandbox>,
    /// Until the last of it is gone.
    watched: watch::Folder,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vt-").tempdir().unwrap();
        let watched = watch::Folder::new(dir.path());
        let home = Home { dir, within: Vec::new(), program: VIRGA.into(), sandbox: None, watched };
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
        if all_cold() {
            return self;
        }
        self.share()
    }

    fn share(self) -> Self {
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
                // Another test may be at that too.
                if id != made.trim() {
                    let _ = self.virga(["template", "remove", id]).env("VIRGA_HOME", &shared).output();
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
        let home = self.share();
        let templates = home.state().join("templates");
        let shared = std::fs::read_link(&templates).unwrap();
        std::fs::remove_file(&templates).unwrap();
        run("cp", [OsStr::new("-a"), OsStr::new("--sparse=always"), shared.as_os_str(), templates.as_os_str()]);
        home
    }

    /// All that the program does, it does in a sandbox of its own, as root.
    pub fn in_a_sandbox(self) -> Self {
        let sandbox = Sandbox::new(&self.path("home"));
        let mut home = self.inside(&sandbox);
        home.sandbox = Some(sandbox);
        home
    }

    /// All that the program does, it does in the sandbox, as root.
    pub fn inside(mut self, sandbox: &Sandbox) -> Self {
        self.within = [self.nsenter(), sandbox.enter()].concat();
        self
    }

    /// All that the program does, it does in the sandbox, as an ordinary user whose home this is.
    pub fn inside_as_user(mut self, sandbox: &Sandbox) -> Self {
        self.within = [self.nsenter(), sandbox.enter_as_user()].concat();
        // Where that user can read it, whoever built it.
        self.program = self.path("virga");
        std::fs::copy(VIRGA, &self.program).unwrap();
        std::fs::create_dir(self.path("xdg")).unwrap();
        sandbox.give(self.dir.path());
        self
    }

    /// It would begin in the root folder.
    fn nsenter(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--wd={}", self.dir.path().display())]
    }

    /// Another program where the program under test works.
    pub fn beside(&self, program: &str) -> Command {
        let mut words = self.within.iter().map(String::as_str).chain([program]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env("PATH", path()).stdin(Stdio::null());
        command
    }

    /// Runs another program there, which must succeed; returns what it says.
    #[track_caller]
    pub fn run_beside(&self, program: &str, args: &[&str]) -> String {
        let output = self.beside(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// A shell's words for the program there, behind what a shell there does first.
    pub fn shell_line(&self, first: &str, args: &str) -> String {
        format!("{} sh -c '{first}; exec {} {args}'", self.within.join(" "), self.program.display())
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
        let cold = all_cold();
        let mut words = self.within.iter().map(OsStr::new).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(args.into_iter().filter(|arg| !cold || arg.as_ref() != "--warm"))
            .env_clear()
            .env("PATH", path())
            .env("HOME", self.path("home"))
            .env("VIRGA_HOME", self.state())
            .env("VIRGA_RUNTIME_DIR", self.path("run"))
            .env("VIRGA_LXC_PATH", self.path("lxc"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        if !self.within.is_empty() {
            command.env("XDG_RUNTIME_DIR", self.path("xdg"));
        }
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
        found.extend(self.keepers().iter().map(|pid| format!("{pid}: a keeper")));
        found
    }

    /// How many guests' QEMUs there are.
    pub fn machines(&self) -> usize {
        self.processes().iter().filter(|line| line.contains("qemu-system")).count()
    }

    /// The processes that wait for the end of this test's sessions; their numbers.
    pub fn keepers(&self) -> Vec<String> {
        let mark = self.dir.path().to_str().unwrap();
        let read = |pid: &str, file| text(&std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default());
        let of = |pid: &str| read(pid, "cmdline").contains("\0__keep\0") && read(pid, "environ").contains(mark);
        names(Path::new("/proc")).into_iter().filter(|pid| of(pid)).collect()
    }

    /// The guests' folders for sockets; what is noted of KVM beside them belongs to none.
    pub fn sockets(&self) -> Vec<String> {
        names(&self.path("run")).into_iter().filter(|name| name != "kvm.json").collect()
    }

    /// No process, no guest folder, no socket of ours is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
        assert_eq!(names(&self.state().join("guests")), Vec::<String>::new(), "guest folders are left");
        assert_eq!(self.sockets(), Vec::<String>::new(), "sockets are left");
        assert_eq!(names(&self.state().join("sessions")), Vec::<String>::new(), "sessions are left");
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        watch::settled();
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

/// With `VIRGA_TEST_COLD=1` every guest boots: what clones save the suite is measured so.
fn all_cold() -> bool {
    std::env::var_os("VIRGA_TEST_COLD").is_some()
}

/// Kills a program, and returns when it is gone: the one that `nsenter` runs, where it is that, which passes no signals on
/// and ends with it. What the program itself has started lives on: a guest is not to die with the command that starts it.
pub fn end(child: &mut Child) {
    let name = std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
    if name.trim_end() == "nsenter" {
        let inside = children(child.id());
        for pid in &inside {
            let _ = Command::new("kill").args(["-KILL", pid]).status();
        }
        if !inside.is_empty() {
            // Without nsenter nobody would know when what is inside has let go of its locks.
            let _ = child.wait();
            return;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The processes that this one has started.
pub fn children(pid: u32) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
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
    watch::begin();
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

/// A qcow2 image of a MiB that starts this 16-bit code on a machine with a BIOS; its path again.
pub fn boot_sector(path: &Path, mut code: Vec<u8>) -> PathBuf {
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code.resize(1 << 20, 0);
    let raw = path.with_extension("raw");
    std::fs::write(&raw, code).unwrap();
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), path.to_str().unwrap()]);
    path.to_owned()
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
        watch::companion(&server);
        wait_for("the server's port", LONG, || port_file.exists());
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
        end(&mut self.server);
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

/// A root file system with next to nothing in it, as the squashfs `NAME.squashfs` and as `NAME.root.tar.xz`.
pub fn small_roots(home: &Home, name: &str) -> [PathBuf; 2] {
    let tree = home.path(&format!("{name}.tree"));
    for folder in ["etc", "usr/bin", "dev"] {
        std::fs::create_dir_all(tree.join(folder)).unwrap();
    }
    write(&tree.join("etc/motd"), name);
    std::os::unix::fs::symlink("usr/bin", tree.join("bin")).unwrap();
    let [squashfs, packed] = ["squashfs", "root.tar.xz"].map(|kind| home.path(&format!("{name}.{kind}")));
    let text = |path: &Path| path.display().to_string();
    run("mksquashfs", [&text(&tree), &text(&squashfs), "-noappend", "-no-progress", "-all-root", "-quiet"]);
    run("tar", ["-C", &text(&tree), "--numeric-owner", "--owner=0", "--group=0", "-cJf", &text(&packed), "."]);
    [squashfs, packed]
}

/// A root file system that has folders and a few files alone: its programs are the machine's, mounted at `/usr`.
pub fn bare_root(home: &Home) -> PathBuf {
    let tree = home.path("bare.tree");
    for folder in ["dev", "etc/ssh", "proc", "root", "run", "sys", "tmp", "usr", "var/log", "var/lib"] {
        std::fs::create_dir_all(tree.join(folder)).unwrap();
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), tree.join(link)).unwrap();
    }
    write(&tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
    write(&tree.join("etc/os-release"), "ID=bare\n");
    let packed = home.path("bare.root.tar.xz");
    let [tree, file] = [&tree, &packed].map(|path| path.display().to_string());
    run("tar", ["-C", &tree, "--numeric-owner", "--owner=0", "--group=0", "-cJf", &file, "."]);
    packed
}

/// Another command at work on something: whoever has its lock.
pub struct Holder(Child);

impl Holder {
    pub fn of(lock: &Path) -> Self {
        let holder = Command::new("flock").arg(lock).args(["sleep", "36000"]).spawn().unwrap();
        let held = || !Command::new("flock").arg("--nonblock").arg(lock).arg("true").status().unwrap().success();
        wait_for("the lock", LONG, held);
        Holder(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        for child in children(self.0.id()) {
            run("kill", [child]);
        }
        let _ = self.0.wait();
    }
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

/// The tiny image, made by `tests/image/tiny` (cached; `make test` makes it first): for tests that need a guest, whichever.
pub fn tiny() -> &'static PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/image/tiny");
        PathBuf::from(run(script, [] as [&str; 0]).trim())
    })
}

/// Emulated always: the same on every machine, and KVM may be there without working.
pub const SMALL: [&str; 6] = ["--accel", "tcg", "--memory", "512M", "--cpus", "2"];

/// [`SMALL`] with one processor, for guests that boot at a libvirt daemon: the many slots that it gives them are mapped
/// anew as they boot, and with a second emulated processor QEMU 10.0 then fails at times ("iotlb_to_section: Assertion").
/// And for all for which it is enough: on a busy host the second one may lose its timer, and the guest hangs as it boots
/// ("rcu_preempt kthread timer wakeup didn't happen").
pub const SOLO: [&str; 6] = ["--accel", "tcg", "--memory", "512M", "--cpus", "1"];

/// [`SMALL`], warm; for [`Home::warm`].
pub const WARM: [&str; 7] = ["--accel", "tcg", "--memory", "512M", "--cpus", "2", "--warm"];

/// Runs a command in a guest; returns what it says.
#[track_caller]
pub fn in_guest(home: &Home, name: &str, command: &str) -> String {
    home.ok(["ssh", name, "--", command])
}

/// cloud-init's own programs know the guest, which is through with its first boot: what they say is the same in a clone.
#[track_caller]
pub fn cloud_inits_programs_know(home: &Home, name: &str) {
    let id = in_guest(home, name, "cat /var/lib/cloud/data/instance-id");
    let ask = |what: &str| in_guest(home, name, &format!("sudo cloud-init {what}"));
    assert_eq!(ask("query instance_id"), id);
    let all: serde_json::Value = serde_json::from_str(&ask("query --all")).unwrap();
    assert_eq!((&all["local_hostname"], &all["ds"]["meta_data"]["local-hostname"]), (&name.into(), &name.into()));
    assert!(all["public_ssh_keys"][0].as_str().unwrap().starts_with("ssh-ed25519 "), "{all}");
    assert!(all["userdata"].as_str().unwrap().contains("ssh_keys:"), "{all}");
    assert!(all["vendordata"].as_str().unwrap().starts_with("#cloud-config"), "{all}");
    assert!(!all.to_string().contains("virga-template"), "{all}");
    assert!(ask("status --long").contains("status: done"));
    assert!(ask("schema --system").contains("Valid cloud-config"));
    let logs =
        in_guest(home, name, "sudo cloud-init collect-logs -t /tmp/logs.tgz >/dev/null && tar tzf /tmp/logs.tgz");
    for file in ["cloud-id", "instance-data-sensitive.json", "result.json", "status.json"] {
        assert!(logs.contains(&format!("run/cloud-init/{file}\n")), "no {file} in {logs}");
    }
}

fn now() -> f64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

/// The guest's clock is within a second of ours.
#[track_caller]
pub fn clock_is_right(home: &Home, name: &str) {
    let mut session =
        home.virga(["ssh", name, "--", &telling("true")]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    told(session.stdin.take().unwrap(), session.stdout.take().unwrap());
    session.wait().unwrap();
}

/// A shell's words that say what the command says, and then what time it is, each time that they are asked.
pub fn telling(command: &str) -> String {
    format!("{command}; echo; while read -r _; do date +%s.%N; done")
}

/// What [`telling`] tells at the other side, whose clock must be within a second of ours. That is asked over a session
/// that stands already: an answer that took long proves nothing and is asked for again; no answer of a clock that is
/// further off can pass, and none of a clock that is right can fail.
#[track_caller]
pub fn told(mut questions: impl std::io::Write, answers: impl std::io::Read) -> String {
    let mut said = std::io::BufReader::new(answers).lines().map(Result::unwrap);
    let told = said.by_ref().take_while(|line| !line.is_empty()).map(|line| line + "\n").collect();
    let begun = Instant::now();
    let off = loop {
        let before = now();
        questions.write_all(b"\n").unwrap();
        let clock: f64 = said.next().expect("an answer").parse().unwrap();
        let after = now();
        // By so much it is off: at least the one, at most the other.
        let (least, most) = (clock - after, clock - before);
        if -1.0 < least && most < 1.0 {
            break None;
        }
        if most < -1.0 || least > 1.0 {
            break Some((least, most));
        }
        assert!(begun.elapsed() < LONG, "the clock cannot be measured: between {least} and {most}");
    };
    assert_eq!(off, None, "the clock is off, by seconds");
    told
}
