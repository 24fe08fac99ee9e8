//! One list for every driver: what each must do with the same commands, with
//! real daemons, real machines and real guests: what boots is tests/image/tiny, and in containers a real Debian.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::PathBuf;
use std::time::Instant;

use rstest::rstest;
use support::moments::{Moments, killed_after};
use support::sandbox::Sandbox;
use support::{Home, LONG, SMALL, SOLO, in_guest, incus, names, run, text, tiny, wait_for};

/// A driver to be looked at, and where it works.
struct Rig {
    // Before the sandbox: its guests go while there is still a daemon.
    home: Home,
    sandbox: Sandbox,
    uri: Option<&'static str>,
    containers: bool,
    image: PathBuf,
}

impl Rig {
    fn new(driver: &str) -> Self {
        let home = Home::with_key();
        if driver == "incus" {
            incus::sync(&home);
            let sandbox = incus::sandbox(&home.path("home"));
            return Rig { home: home.inside(&sandbox), sandbox, uri: None, containers: true, image: PathBuf::new() };
        }
        let sandbox = Sandbox::new(&home.path("home"));
        // The image where an ordinary user can read it.
        let copy = home.path("image.qcow2");
        run("cp", ["--reflink=auto", tiny().to_str().unwrap(), copy.to_str().unwrap()]);
        let (home, uri) = match driver {
            "qemu" => (home.inside(&sandbox), None),
            "system" => (home.inside(&sandbox), Some("qemu:///system")),
            "session" => (home.inside_as_user(&sandbox), Some("qemu:///session")),
            _ => unreachable!("a driver"),
        };
        Rig { home, sandbox, uri, containers: false, image: copy }
    }

    fn create<'a>(&'a self, name: &'a str, more: &'a [&'a str]) -> Vec<&'a str> {
        if self.containers {
            return [&["create", name, "--driver", "incus", "--memory", "512M", "--cpus", "2"], more].concat();
        }
        let driver = match self.uri {
            None => vec!["--driver", "qemu"],
            Some(uri) => vec!["--driver", "libvirt", "--connect", uri],
        };
        let machine = if self.uri.is_some() { &SOLO } else { &SMALL };
        let image = ["--image", self.image.to_str().unwrap()];
        [&["create", name][..], machine, &image, &driver, more].concat()
    }

    fn state(&self, name: &str) -> String {
        let listed = self.home.json(["list"]);
        let guest = listed.as_array().unwrap().iter().find(|guest| guest["name"] == name);
        guest.unwrap_or_else(|| panic!("no '{name}' in {listed}"))["state"].as_str().unwrap().to_owned()
    }

    fn record(&self, name: &str) -> serde_json::Value {
        let record = std::fs::read(self.home.state().join("guests").join(name).join("guest.json")).unwrap();
        serde_json::from_slice(&record).unwrap()
    }

    /// The process that is the machine of this name, as the host numbers it.
    fn machine(&self, name: &str) -> Option<u32> {
        if self.containers {
            return container(name);
        }
        let id = self.record(name)["plan"]["id"].as_str().unwrap().to_owned();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = text(&std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
            let mut words = line.split('\0');
            if words.next().is_some_and(|word| word.contains("qemu-system")) && words.any(|word| word == id) {
                return entry.file_name().to_str()?.parse().ok();
            }
        }
        None
    }

    /// virsh where the guests are, as who they belong to.
    fn virsh(&self, args: &[&str]) -> String {
        let uri = self.uri.expect("a daemon");
        let mut command = std::process::Command::new("nsenter");
        if uri == "qemu:///session" {
            command
                .args(self.sandbox.enter_as_user())
                .args(["env", "-i"])
                .arg(format!("HOME={}", self.home.path("home").display()));
            command.arg(format!("XDG_RUNTIME_DIR={}", self.home.path("xdg").display()));
        } else {
            command.args(self.sandbox.enter());
        }
        let output = command.args(["virsh", "-q", "-c", uri]).args(args).output().unwrap();
        assert!(output.status.success(), "virsh {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// No machine, no domain, no volume, no file, no lock of any guest is left.
    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(names(&self.home.state().join("guests")), Vec::<String>::new());
        let machines: Vec<String> = self
            .home
            .processes()
            .into_iter()
            .filter(|line| line.contains("qemu-system") || line.contains("passt"))
            .collect();
        assert_eq!(machines, Vec::<String>::new());
        if self.containers {
            let left = self.sandbox.run("incus", &["list", "--all-projects", "--format", "csv"]);
            return assert_eq!(left, "", "instances are left");
        }
        if self.uri.is_none() {
            return assert_eq!(self.home.sockets(), Vec::<String>::new());
        }
        assert_eq!(self.virsh(&["list", "--all", "--name"]).trim(), "");
        let volumes = self.virsh(&["vol-list", "virga"]);
        let volumes: Vec<&str> = volumes.split_whitespace().filter(|word| !word.contains('/')).collect();
        assert!(volumes.len() == 1 && volumes[0].starts_with("virga-"), "volumes are left: {volumes:?}");
    }
}

/// The first process of a container of this name, as the host numbers it: the child of its monitor.
fn container(name: &str) -> Option<u32> {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = text(&std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
        if line.starts_with("[lxc monitor]") && line.trim_end_matches('\0').ends_with(&format!(" {name}")) {
            let monitor = entry.file_name().to_str()?.parse().ok()?;
            return support::children(monitor).first()?.parse().ok();
        }
    }
    None
}

#[rstest]
fn every_driver_keeps_its_promises(#[values("qemu", "system", "session", "incus")] driver: &str) {
    let rig = Rig::new(driver);
    defined_and_removed(&rig);
    killed_from_outside(&rig);
    interrupted(&rig);
    if rig.containers {
        foreign_instances_are_left_alone(&rig);
    }
    if rig.uri.is_some() {
        foreign_domains_are_left_alone(&rig);
        undefined_from_outside(&rig);
    }
    booted(&rig);
    rig.nothing_is_left();
}

/// Twice what can be asked for twice, and clear errors for what makes no sense.
fn defined_and_removed(rig: &Rig) {
    let home = &rig.home;
    home.ok(rig.create("one", &["--no-start"]));
    assert_eq!(rig.state("one"), "stopped");
    let before = rig.record("one");
    let error = home.fails(1, rig.create("one", &["--no-start"]));
    assert!(error.contains("already") && error.contains("virga destroy one"), "{error}");
    assert_eq!(rig.record("one"), before);
    home.ok(["stop", "one"]);
    home.ok(["stop", "--force", "one"]);
    for command in ["ip", "wait", "ssh"] {
        let error = home.fails(1, [command, "one"]);
        assert!(error.contains("not running") && error.contains("virga start one"), "{command}: {error}");
    }

    let disk = ["--no-start", "--ephemeral-disk", "1G"];
    home.ok(rig.create("two", if rig.containers { &disk[..1] } else { &disk }));
    let other = rig.record("two");
    for path in ["/plan/id", "/plan/nics/0/mac", "/plan/host_keys/0"] {
        let (one, two) = (before.pointer(path).unwrap(), other.pointer(path).unwrap());
        assert!(one.is_string() && one != two, "{path}: {one} {two}");
    }
    home.ok(["destroy", "one", "two"]);
    home.fails(3, ["destroy", "one"]);
    home.ok(["destroy", "--if-exists", "one"]);
    rig.nothing_is_left();
}

fn killed_from_outside(rig: &Rig) {
    let home = &rig.home;
    home.ok(rig.create("killed", &[]));
    let first = rig.machine("killed").expect("a machine");
    home.ok(["start", "killed"]);
    assert_eq!(rig.machine("killed"), Some(first), "starting what runs starts nothing");
    run("kill", ["-KILL", &first.to_string()]);
    // A container's daemon does not tell how its first process ended.
    let dead = if rig.containers { "stopped" } else { "died" };
    wait_for("its death", LONG, || rig.state("killed") == dead);
    if rig.containers {
        // Incus says "running" once more meanwhile: so it is to have said the same for a while, counted in answers.
        let mut in_a_row = 0;
        wait_for("the daemon's last word", LONG, || {
            in_a_row = if rig.state("killed") == dead { in_a_row + 1 } else { 0 };
            in_a_row == 20
        });
    } else {
        let ended = home.json(["info", "killed"])["ended"].to_string();
        assert!(ended.contains("its QEMU was killed"), "{ended}");
    }
    let error = home.fails(1, ["wait", "killed", "--timeout", "20m"]);
    assert!(error.contains("not running"), "{error}");
    home.ok(["start", "killed"]);
    assert_eq!(rig.state("killed"), "running");
    assert_ne!(rig.machine("killed"), Some(first));
    home.ok(["stop", "--force", "killed"]);
    assert_eq!(rig.state("killed"), "stopped");
    home.ok(["stop", "--force", "killed"]);
    home.ok(["destroy", "killed"]);
    rig.nothing_is_left();
}

/// Ctrl-C takes everything back; what SIGKILL leaves, `destroy` removes.
fn interrupted(rig: &Rig) {
    let home = &rig.home;
    let mut moments = Moments::new();
    // A daemon sees through what it began: for containers each time the unpacking of a whole root.
    let [taken_back, killed] = if rig.containers { [2, 3] } else { [4, 6] };
    // What it takes here and now; a later one may be quicker.
    let began = Instant::now();
    home.ok(rig.create("gone", &[]));
    let window = began.elapsed().mul_f64(0.7);
    home.ok(["destroy", "gone"]);
    for _ in 0..taken_back {
        let (seed, delay) = moments.next(window);
        let mut child =
            home.virga(rig.create("gone", &["--wait"])).stderr(std::process::Stdio::piped()).spawn().unwrap();
        std::thread::sleep(delay);
        // Before nsenter has begun it there is nobody to interrupt.
        wait_for("the program itself", LONG, || {
            !support::children(child.id()).is_empty() || child.try_wait().unwrap().is_some()
        });
        interrupt(child.id());
        wait_for("the end of create", LONG, || child.try_wait().unwrap().is_some());
        let said = text(&child.wait_with_output().unwrap().stderr);
        assert_eq!(names(&home.state().join("guests")), Vec::<String>::new(), "after {delay:?}, seed {seed}: {said}");
    }
    rig.nothing_is_left();
    let (mut kills, mut hits) = (0, 0);
    while kills < killed || hits < killed / 2 {
        let (seed, delay) = moments.next(window);
        hits += usize::from(killed_after(delay, &mut home.virga(rig.create("gone", &[]))));
        kills += 1;
        assert!(kills < 10 * killed, "only {hits} kills of {kills} hit a create that was at work");
        let output = home.output(["destroy", "--if-exists", "gone"]);
        assert!(output.status.success(), "after {delay:?}, seed {seed}: {}", text(&output.stderr));
        assert_eq!(names(&home.state().join("guests")), Vec::<String>::new(), "after {delay:?}, seed {seed}");
    }
    rig.nothing_is_left();
}

/// The program itself: nsenter stands before it and passes no signals on.
fn interrupt(nsenter: u32) {
    for pid in support::children(nsenter) {
        let _ = std::process::Command::new("kill").args(["-INT", &pid]).status();
    }
}

fn foreign_domains_are_left_alone(rig: &Rig) {
    let definition = rig.home.path("home/foreign.xml");
    let xml = "<domain type='qemu'><name>foreign</name><memory unit='MiB'>64</memory>\
               <os><type arch='x86_64'>hvm</type></os></domain>";
    support::write(&definition, xml);
    rig.virsh(&["define", definition.to_str().unwrap()]);
    let error = rig.home.fails(1, rig.create("foreign", &["--no-start"]));
    assert!(error.contains("not virga's"), "{error}");
    assert_eq!(names(&rig.home.state().join("guests")), Vec::<String>::new());
    rig.home.fails(3, ["destroy", "foreign"]);
    assert!(rig.virsh(&["list", "--all", "--name"]).contains("foreign"));
    let uri = rig.uri.unwrap();
    rig.home.fails(3, ["--connect", uri, "destroy", "foreign"]);
    assert!(rig.virsh(&["list", "--all", "--name"]).contains("foreign"));
    rig.virsh(&["undefine", "foreign"]);
}

fn foreign_instances_are_left_alone(rig: &Rig) {
    rig.sandbox.run("incus", &["init", "--empty", "foreign"]);
    let error = rig.home.fails(1, rig.create("foreign", &["--no-start"]));
    assert!(error.contains("none of virga's"), "{error}");
    assert_eq!(names(&rig.home.state().join("guests")), Vec::<String>::new());
    rig.home.fails(3, ["destroy", "foreign"]);
    assert!(rig.sandbox.run("incus", &["list", "--format", "csv"]).contains("foreign"));
    rig.sandbox.run("incus", &["delete", "foreign"]);
    // The folder is gone: the instance is found by its label.
    rig.home.ok(rig.create("orphan", &[]));
    std::fs::remove_dir_all(rig.home.state().join("guests/orphan")).unwrap();
    assert_eq!(rig.home.json(["list"])[0]["state"], "orphan");
    rig.home.ok(["destroy", "orphan"]);
    rig.nothing_is_left();
}

fn undefined_from_outside(rig: &Rig) {
    let home = &rig.home;
    home.ok(rig.create("lost", &["--no-start"]));
    rig.virsh(&["undefine", "lost"]);
    assert_eq!(rig.state("lost"), "stopped");
    home.ok(["start", "lost"]);
    assert_eq!(rig.state("lost"), "running");
    rig.virsh(&["destroy", "lost"]);
    rig.virsh(&["undefine", "lost"]);
    home.ok(["destroy", "lost"]);
    rig.nothing_is_left();
    // The other way round: the folder is gone, the domain is found by its label.
    home.ok(rig.create("orphan", &[]));
    std::fs::remove_dir_all(home.state().join("guests/orphan")).unwrap();
    let uri = rig.uri.unwrap();
    let listed = home.json(["--connect", uri, "list"]);
    assert_eq!(listed[0]["state"], "orphan", "{listed}");
    home.ok(["--connect", uri, "destroy", "orphan"]);
    rig.nothing_is_left();
}

fn booted(rig: &Rig) {
    let home = &rig.home;
    let forward = ["--port", "0:8080"];
    home.ok(rig.create("web", if rig.uri == Some("qemu:///system") { &[] } else { &forward }));
    home.ok(["wait", "web", "--timeout", "20m"]);
    let ask = "hostname; cat /proc/sys/kernel/random/boot_id";
    let before = in_guest(home, "web", ask);
    assert!(before.starts_with("web\n"), "{before}");
    wait_for("a login on its console", LONG, || home.ok(["console", "web"]).contains("web login:"));

    // It restarts itself: the same guest, another boot.
    let said = home.output(["ssh", "web", "--", "sudo systemctl reboot"]);
    wait_for(&format!("another boot after {}: {}", said.status, text(&said.stderr)), LONG, || {
        let output = home.output(["ssh", "web", "--", ask]);
        output.status.success() && text(&output.stdout) != before
    });
    home.ok(["stop", "web"]);
    assert_eq!(rig.state("web"), "stopped");
    if rig.containers {
        a_container_is_what_it_was_made(rig);
    }
    home.ok(["destroy", "web"]);
}

/// A program by the daemon: input and output byte for byte, arguments as they are, its exit code.
fn without_ssh(home: &Home) {
    let said = home.ok(["exec", "web", "-e", "A=b c", "--", "sh", "-c", "id -u; echo \"$A\" \"$1\"", "sh", "x  y"]);
    assert_eq!(said, "0\nb c x  y\n");
    let failed = home.output(["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (failed.status.code(), text(&failed.stdout), text(&failed.stderr)),
        (Some(7), "out\n".into(), "err\n".into())
    );
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let mut child = home.virga(["exec", "web", "--", "cat"]);
    let mut child = child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, &sent).unwrap());
    let back = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(back.status.success() && back.stdout == bytes, "{} bytes came back", back.stdout.len());
    home.fails(1, ["exec", "web", "--", "/nowhere"]);
}

/// Limits as they are seen from within, a state put back, another one of its kind.
fn a_container_is_what_it_was_made(rig: &Rig) {
    let home = &rig.home;
    home.ok(["resize", "web", "--cpus", "1", "--memory", "256M"]);
    home.ok(["snapshot", "create", "web", "before"]);
    home.ok(["start", "web"]);
    home.ok(["wait", "web", "--timeout", "20m"]);
    assert_eq!(in_guest(home, "web", "nproc").trim(), "1");
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
    assert_eq!(in_guest(home, "web", limit).trim(), (256u64 << 20).to_string());
    assert_eq!(in_guest(home, "web", "systemctl is-system-running").trim(), "running");
    let who = "cat /etc/machine-id; hostname; cloud-init query instance_id; sudo cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub";
    let source = in_guest(home, "web", &format!("echo made >note; sync; {who}"));
    without_ssh(home);
    home.ok(["suspend", "web"]);
    assert_eq!(rig.state("web"), "paused");
    home.ok(["resume", "web"]);
    home.ok(["stop", "web"]);
    home.ok(["snapshot", "restore", "web", "before"]);
    home.ok(["start", "web"]);
    home.ok(["wait", "web", "--timeout", "20m"]);
    assert_eq!(
        in_guest(home, "web", "ls note 2>&1; true").trim(),
        "ls: cannot access 'note': No such file or directory"
    );
    home.ok(["stop", "web"]);
    home.ok(["snapshot", "remove", "web", "before"]);
    home.ok(["clone", "web", "copy"]);
    home.ok(["rename", "web", "old"]);
    home.ok(["start", "old", "copy"]);
    for name in ["old", "copy"] {
        home.ok(["wait", name, "--timeout", "20m"]);
    }
    let (source, copy): (Vec<&str>, String) = (source.lines().collect(), in_guest(home, "copy", who));
    let copy: Vec<&str> = copy.lines().collect();
    assert_eq!((source.len(), copy.len(), copy[1]), (4, 4, "copy"));
    assert!(source.iter().zip(&copy).all(|(source, copy)| source != copy), "{source:?} {copy:?}");
    let renamed = in_guest(home, "old", who);
    assert_eq!(renamed, format!("{}\nold\n{}\n{}\n", source[0], source[2], source[3]));
    for verb in ["save", "viewer"] {
        home.fails(1, [verb, "old"]);
    }
    home.ok(["stop", "--force", "old", "copy"]);
    home.ok(["destroy", "copy"]);
    home.ok(["rename", "old", "web"]);
}
