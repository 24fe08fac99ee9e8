//! The driver lxc with LXC's real programs: containers of a root file system
//! that is published, synced and verified as users do.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::moments::{Moments, killed_after};
use support::sandbox::Sandbox;
use support::{Home, LONG, Mirror, image, in_guest, lxc, names, small_roots, text, wait_for, write};

/// What every guest here is, unless it says otherwise.
const MACHINE: [&str; 6] = ["--driver", "lxc", "--memory", "256M", "--cpus", "1"];
const LIMIT: [&str; 2] = ["--timeout", "20m"];

struct Rig {
    // Before the sandbox: its guests go while there is still a bridge.
    home: Home,
    sandbox: Sandbox,
    /// The machine's cgroups of virga's before the test.
    before: Vec<PathBuf>,
    /// Last: cgroups are the machine's, so what is left of them can be told only if one test at a time makes some.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Rig {
    /// With Debian in the pool, and a root with next to nothing in it.
    fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = Home::with_key();
        std::fs::set_permissions(home.path(""), Permissions::from_mode(0o711)).unwrap();
        let sandbox = lxc::sandbox(&home.path("home"));
        let home = home.inside(&sandbox);
        let root = image().to_str().unwrap().replace(".qcow2", ".root.tar.xz");
        let mirror = Mirror::with_image(&home, Path::new(&root), &["os=debian", "release=bookworm", "version=12"]);
        let [_, tiny] = small_roots(&home, "tiny");
        let place = |path: &PathBuf| path.display().to_string();
        let (dir, key) = (place(&mirror.dir), place(&mirror.key));
        home.ok(["stream", "add", &dir, &place(&tiny), "--key", &key, "os=tiny", "release=one", "version=1"]);
        home.ok([mirror.sync_args(), vec!["--container".into()]].concat());
        Rig { home, sandbox, before: cgroups("virga-"), _turn: turn }
    }

    fn create(&self, name: &str, more: &[&str]) -> Vec<String> {
        [&["create", name][..], &MACHINE, more].concat().iter().map(|&arg| arg.to_owned()).collect()
    }

    /// Makes a Debian and waits until it is ready.
    #[track_caller]
    fn debian(&self, name: &str, more: &[&str]) {
        self.home.ok(self.create(name, &[&["os=debian", "--wait"][..], &LIMIT, more].concat()));
    }

    #[track_caller]
    fn start(&self, name: &str) {
        self.home.ok(["start", name]);
        self.home.ok([&["wait", name][..], &LIMIT].concat());
    }

    /// A command in a guest, as its root.
    #[track_caller]
    fn root(&self, name: &str, command: &str) -> String {
        in_guest(&self.home, name, &format!("sudo sh -c '{command}'")).trim().to_owned()
    }

    fn state(&self, name: &str) -> String {
        let listed = self.home.json(["list"]);
        let guest = listed.as_array().unwrap().iter().find(|guest| guest["name"] == name);
        guest.unwrap_or_else(|| panic!("no '{name}' in {listed}"))["state"].as_str().unwrap().to_owned()
    }

    /// The folder of all containers.
    fn lxcpath(&self) -> PathBuf {
        let id = std::fs::read_to_string(self.home.state().join("id")).unwrap();
        self.home.path("lxc").join(id.trim())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.lxcpath().join(name)
    }

    fn id(&self, name: &str) -> String {
        self.home.json(["info", name])["id"].as_str().unwrap().to_owned()
    }

    /// Neither process nor mount, cgroup, lock or folder.
    #[track_caller]
    fn nothing_left(&self) {
        self.home.assert_nothing_left();
        assert_eq!(cgroups("virga-"), self.before);
        assert_eq!(names(&self.home.path("lxc")), Vec::<String>::new());
        let mark = self.home.path("lxc").display().to_string();
        assert!(!self.sandbox.run("cat", &["/proc/mounts"]).contains(&mark));
        assert_eq!(self.sandbox.run("find", &["/run", "-path", "*/lxc/lock/*", "-type", "f", "-path", "*/vt-*"]), "");
        // The bridge has no port.
        assert_eq!(self.sandbox.run("ls", &["/sys/class/net/lxcbr0/brif"]), "");
    }
}

/// All cgroups of the machine whose name begins so.
fn cgroups(prefix: &str) -> Vec<PathBuf> {
    fn below(dir: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path());
                }
                below(&entry.path(), prefix, found);
            }
        }
    }
    let mut found = Vec::new();
    below(Path::new("/sys/fs/cgroup"), prefix, &mut found);
    found
}

/// Something of the user's own, in LXC's own folder, under a name that a guest has too.
fn foreign(rig: &Rig, name: &str) {
    let config = "lxc.rootfs.path = dir:/var/lib/lxc/web/rootfs\nlxc.init.cmd = /bin/sleep 3000\nlxc.net.0.type = empty\n\
                  lxc.apparmor.profile = unconfined\nlxc.mount.entry = /usr usr none bind,ro,create=dir 0 0\n";
    let place = format!("/var/lib/lxc/{name}");
    let make = format!(
        "mkdir -p {place}/rootfs && cd {place}/rootfs && mkdir dev proc sys usr && \
                        ln -s usr/bin bin && ln -s usr/lib lib && ln -s usr/lib64 lib64 && cat >../config"
    );
    let mut shell = rig.sandbox.command("sh").args(["-c", &make]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), config.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    rig.sandbox.run("lxc-start", &["-n", name, "-d"]);
    assert_eq!(rig.sandbox.run("lxc-info", &["-n", name, "-sH"]).trim(), "RUNNING");
}

#[test]
fn an_unprivileged_container_from_a_stream_to_its_end() {
    let rig = Rig::new();
    let home = &rig.home;
    foreign(&rig, "web");
    rig.debian("web", &[]);
    assert_eq!(rig.state("web"), "running");

    // Who it is, and what it may.
    assert_eq!(in_guest(home, "web", "hostname").trim(), "web");
    assert_eq!(in_guest(home, "web", "nproc").trim(), "1");
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    assert_eq!(rig.root("web", limit), (256 << 20).to_string());
    assert!(rig.root("web", "cloud-init status --long").contains("NoCloud [seed=/var/lib/cloud/seed/nocloud-net]"));
    let map: Vec<String> = in_guest(home, "web", "cat /proc/self/uid_map").split_whitespace().map(Into::into).collect();
    assert_eq!(map, ["0", "1000000", "65536"]);
    // The container's root owns its files, and nobody else on the host gets at its set-id programs.
    let meta = |path: &str| rig.folder("web").join(path).symlink_metadata().unwrap();
    assert_eq!((meta("rootfs").uid(), meta("rootfs/usr/bin/su").uid()), (1_000_000, 1_000_000));
    assert_eq!((meta("").uid(), meta("").gid(), meta("").mode() & 0o7777), (0, 1_000_000, 0o750));
    let host = home.beside("sh").args(["-c", "cat /proc/sys/kernel/hostname"]).output().unwrap();
    assert_ne!(text(&host.stdout).trim(), "web");

    // Repeatable: a second start, a second creation.
    home.ok(["start", "web"]);
    let error = home.fails(1, rig.create("web", &["os=debian"]));
    assert!(error.contains("already a guest 'web'"), "{error}");

    // Held and let go.
    home.ok(["suspend", "web"]);
    assert_eq!(rig.state("web"), "paused");
    home.ok(["resume", "web"]);
    assert_eq!(rig.state("web"), "running");

    // A snapshot, taken while it runs; put back when it does not.
    rig.root("web", "echo before >/root/mark; sync");
    assert_eq!(home.ok(["snapshot", "create", "web", "one"]), "one\n");
    assert_eq!(rig.state("web"), "running");
    rig.root("web", "echo after >/root/mark; sync");
    home.fails(1, ["snapshot", "restore", "web", "one"]);
    home.ok(["stop", "web"]);
    assert_eq!((rig.state("web").as_str(), cgroups("virga-")), ("stopped", rig.before.clone()));
    home.ok(["snapshot", "restore", "web", "one"]);
    rig.start("web");
    assert_eq!(rig.root("web", "cat /root/mark"), "before");
    home.ok(["snapshot", "remove", "web", "one"]);
    assert_eq!(names(&rig.folder("web").join("snapshots")), Vec::<String>::new());

    console(&rig, "web");
    identity(&rig, "web");

    home.ok(["destroy", "web", "renamed"]);
    rig.nothing_left();
    assert_eq!(rig.sandbox.run("lxc-info", &["-n", "web", "-sH"]).trim(), "RUNNING");
    rig.sandbox.run("lxc-stop", &["-n", "web", "-k"]);
}

/// What is typed on the console, at a terminal, gets there; what it shows comes back, and into the log.
fn console(rig: &Rig, name: &str) {
    let command = rig.home.shell_line("true", &format!("console {name}"));
    let like = rig.home.virga([] as [&str; 0]);
    let mut script = std::process::Command::new("script");
    script.args(["-q", "-e", "-c", &command, "/dev/null"]).env_clear().current_dir(rig.home.path(""));
    script.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("SHELL", "/bin/sh");
    let mut session = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut keys = session.stdin.take().unwrap();
    let log = rig.home.state().join("guests").join(name).join("console.log");
    wait_for("what was typed", LONG, || {
        // Again and again: it may not listen yet.
        std::io::Write::write_all(&mut keys, b"virga-typed-this\r").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        text(&std::fs::read(&log).unwrap_or_default()).contains("virga-typed-this")
    });
    // Ctrl-] leaves.
    std::io::Write::write_all(&mut keys, b"\x1d").unwrap();
    assert!(session.wait().unwrap().success());
    assert!(rig.home.ok(["console", "--log", name]).contains("virga-typed-this"));
}

/// A clone is another machine; a renamed guest is the same one under another name.
fn identity(rig: &Rig, name: &str) {
    let home = &rig.home;
    let who = |name: &str| {
        rig.root(name, "cat /etc/machine-id; cloud-init query instance_id; cat /etc/ssh/ssh_host_ed25519_key.pub")
            .lines()
            .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let original = who(name);
    rig.root(name, "echo carried >/root/carried");
    home.ok(["stop", name]);
    home.ok(["clone", name, "copy"]);
    rig.start("copy");
    let copied = who("copy");
    assert!(original.iter().zip(&copied).all(|(one, other)| one != other), "{original:?} {copied:?}");
    assert_eq!((copied.len(), &copied[1]), (3, &rig.id("copy")));
    assert_eq!(in_guest(home, "copy", "hostname; sudo cat /root/carried"), "copy\ncarried\n");
    // Renaming one that runs is refused.
    home.fails(1, ["rename", "copy", "renamed"]);
    home.ok(["stop", "copy"]);
    home.ok(["rename", "copy", "renamed"]);
    assert_eq!(names(&rig.lxcpath()), ["renamed", name]);
    rig.start("renamed");
    assert_eq!(in_guest(home, "renamed", "hostname").trim(), "renamed");
    assert_eq!(who("renamed"), copied);
}

#[test]
fn a_privileged_container_with_a_profile_and_what_starts_it_by_itself() {
    let rig = Rig::new();
    let home = &rig.home;
    let hook = home.path("hook");
    write(&hook, &format!("#!/bin/sh\necho \"$LXC_NAME\" >>{}\n", home.path("hooked").display()));
    std::fs::set_permissions(&hook, Permissions::from_mode(0o755)).unwrap();
    let profile = format!(
        "lxc.hook.pre-start = {}\nlxc.start.auto = 1\nlxc.start.order = 3\nlxc.start.delay = 1\nlxc.uts.name = other\n",
        hook.display()
    );
    write(&home.path("profile"), &profile);
    rig.sandbox.run("cp", &[home.path("profile").to_str().unwrap(), "/etc/lxc/first.conf"]);
    let error = home.fails(3, rig.create("bare", &["os=debian", "--profile", "missing"]));
    assert!(error.contains("/etc/lxc/missing.conf"), "{error}");

    rig.debian("bare", &["--privileged", "--nesting", "--profile", "first"]);
    assert_eq!(std::fs::read_to_string(home.path("hooked")).unwrap(), "bare\n");
    // Ours wins where a profile says the same.
    assert_eq!(in_guest(home, "bare", "hostname").trim(), "bare");
    let map: Vec<String> =
        in_guest(home, "bare", "cat /proc/self/uid_map").split_whitespace().map(Into::into).collect();
    assert_eq!(map, ["0", "0", "4294967295"]);
    let meta = rig.folder("bare").metadata().unwrap();
    assert_eq!((meta.gid(), meta.mode() & 0o7777), (0, 0o700));

    home.ok(["stop", "bare"]);
    let path = rig.lxcpath();
    let listed = rig.sandbox.run("lxc-autostart", &["-P", path.to_str().unwrap(), "--list"]);
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["bare", "1"], "name and delay");
    // LXC keeps nothing of an ephemeral one.
    write(&home.path("profile"), &format!("{profile}lxc.ephemeral = 1\n"));
    rig.sandbox.run("cp", &[home.path("profile").to_str().unwrap(), "/etc/lxc/first.conf"]);
    rig.sandbox.run("lxc-autostart", &["-P", path.to_str().unwrap()]);
    assert_eq!(rig.state("bare"), "running");
    home.ok([&["wait", "bare"][..], &LIMIT].concat());
    // Ended from outside, with nothing said to virga.
    rig.sandbox.run("lxc-stop", &["-P", path.to_str().unwrap(), "-n", "bare", "-k"]);
    assert_eq!(rig.state("bare"), "stopped");
    wait_for("the end of its files", LONG, || !rig.folder("bare").exists());
    let error = home.fails(1, ["start", "bare"]);
    assert!(error.contains("virga destroy bare"), "{error}");
    home.ok(["destroy", "bare"]);
    rig.nothing_left();
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_leaves_nothing() {
    let rig = Rig::new();
    let home = &rig.home;
    for (more, code, said) in [
        (&["--network", "user"][..], 1, "no network of their own"),
        (&["--network", "network=default"], 1, "no networks by name"),
        (&["--network", "bridge=br77"], 6, "no bridge 'br77'"),
        (&["--disk", "10G"], 1, "no quota"),
        (&["--port", "8080:80"], 1, "forward ports"),
        (&["--tpm"], 1, "neither firmware nor TPM"),
        (&["--target", "member"], 1, "cluster"),
        (&["--arch", "arm64"], 3, "arm64"),
    ] {
        let error = home.fails(code, rig.create("no", &[&["os=tiny"][..], more].concat()));
        assert!(error.contains(said), "{more:?}: {error}");
        rig.nothing_left();
    }
    // A root without a program to begin with.
    let error = home.fails(6, rig.create("no", &["os=tiny"]));
    assert!(error.contains("guest 'no' cannot be started"), "{error}");
    rig.nothing_left();

    rig.sandbox.run("cp", &["/etc/subgid", "/etc/subgid.there"]);
    rig.sandbox.run("cp", &["/dev/null", "/etc/subgid"]);
    let error = home.fails(6, rig.create("no", &["os=tiny"]));
    assert!(error.contains("usermod --add-subuids") && error.contains("--privileged"), "{error}");
    rig.sandbox.run("mv", &["/etc/subgid.there", "/etc/subgid"]);

    std::fs::set_permissions(home.path(""), Permissions::from_mode(0o700)).unwrap();
    let error = home.fails(6, rig.create("no", &["os=tiny"]));
    assert!(error.contains("chmod o+x"), "{error}");
    std::fs::set_permissions(home.path(""), Permissions::from_mode(0o711)).unwrap();

    rig.sandbox.run("ip", &["link", "del", "lxcbr0"]);
    let error = home.fails(6, rig.create("no", &["os=tiny"]));
    assert!(error.contains("no bridge 'lxcbr0'") && error.contains("lxc-net"), "{error}");
    assert!(text(&home.output(["doctor"]).stdout).contains("warning  lxc      this host has no bridge 'lxcbr0'"));
    home.assert_nothing_left();
    assert_eq!(names(&home.path("lxc")), Vec::<String>::new());
}

#[test]
fn a_create_that_is_killed_leaves_what_destroy_removes() {
    let rig = Rig::new();
    let home = &rig.home;
    let (began, args) = (Instant::now(), |image| rig.create("web", &[image]));
    home.ok(args("os=debian"));
    let whole = began.elapsed();
    home.ok(["destroy", "web"]);
    rig.nothing_left();

    let mut moments = Moments::new();
    let mut hits = 0;
    // Anywhere, and where LXC starts it, which is short and last.
    for round in 0..4 {
        let (seed, mut moment) = moments.next(whole);
        if round >= 2 {
            moment = whole.saturating_sub(moment / 20);
        }
        hits += u32::from(killed_after(moment, &mut home.virga(args("os=debian"))));
        // Made, or a part of it, or nothing yet.
        let listed = home.json(["list"]);
        if listed.as_array().unwrap().is_empty() {
            continue;
        }
        let output = home.output(["destroy", "web"]);
        assert!(output.status.success(), "seed {seed}, {moment:?}: {}", text(&output.stderr));
        rig.nothing_left();
    }
    assert!(hits > 0, "no moment was within the work");

    // What lies in the folder without a guest is seen, and goes by its name.
    home.ok(rig.create("web", &["os=debian", "--no-start"]));
    std::fs::remove_dir_all(home.state().join("guests/web")).unwrap();
    assert_eq!(rig.state("web"), "orphan");
    home.ok(["destroy", "web"]);
    rig.nothing_left();
}
