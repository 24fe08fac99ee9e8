//! The verbs of a day's work, by the finished program with real guests: the same list for every driver.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Home, LONG, WARM, clock_is_right, image, in_guest, text, wait_for};
#[cfg(feature = "libvirt")]
use support::{SOLO, sandbox::Sandbox, tiny};

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
fn a_day_with_qemu() {
    let home = Home::with_key().warm();
    let image = image().to_str().unwrap();
    home.ok(["create", "vs-qemu", "--image", image, "--wait", "--timeout", "20m"].into_iter().chain(WARM));
    let error = home.fails(1, ["start", "--autostart", "vs-qemu"]);
    assert!(error.contains("qemu driver cannot"), "{error}");
    assert_eq!(home.json(["info", "vs-qemu"])["autostart"], serde_json::Value::Null);
    a_day(&home, "vs-qemu");
    home.ok(["destroy", "vs-qemu"]);
    home.assert_nothing_left();
}

#[cfg(feature = "libvirt")]
#[test]
fn a_day_with_libvirt() {
    let home = Home::with_key();
    let sandbox = Sandbox::new(&home.path("home"));
    let home = home.inside(&sandbox);
    let args = ["create", "vs-libvirt", "--driver", "libvirt", "--image", tiny().to_str().unwrap()];
    home.ok(args.into_iter().chain(SOLO).chain(["--wait", "--timeout", "20m"]));
    for (option, on) in [("--autostart", true), ("--no-autostart", false)] {
        home.ok(["start", option, "vs-libvirt"]);
        assert_eq!(home.json(["info", "vs-libvirt"])["autostart"], on);
    }
    let info = home.json(["info", "vs-libvirt"]);
    assert_eq!(info["connect"], "qemu:///system");
    assert!(info["addresses"][0].as_str().unwrap().contains('.'), "{info}");
    a_day(&home, "vs-libvirt");
    // What libvirt keeps of a guest goes with it: its memory, its snapshots.
    home.ok(["start", "vs-libvirt"]);
    home.ok(["snapshot", "create", "vs-libvirt"]);
    home.ok(["save", "vs-libvirt"]);
    home.ok(["destroy", "vs-libvirt"]);
    home.assert_nothing_left();
    let left = sandbox.run("virsh", &["-c", "qemu:///system", "list", "--all", "--name"]);
    assert!(!left.contains("vs-libvirt"), "{left}");
}

fn a_day(home: &Home, name: &str) {
    what_is_known(home, name);
    held_and_let_go(home, name);
    seen(home, name);
    typed_at(home, name);
    kept_and_put_back(home, name);
    saved(home, name);
    kept_while_stopped(home, name);
    mistaken(home, name);
}

fn state(home: &Home, name: &str) -> String {
    let listed = home.json(["list"]);
    let word = listed.as_array().unwrap().iter().find(|guest| guest["name"] == name).unwrap()["state"].clone();
    assert_eq!(home.json(["info", name])["state"], word);
    word.as_str().unwrap().to_owned()
}

fn what_is_known(home: &Home, name: &str) {
    let info = home.json(["info", name]);
    assert_eq!((&info["name"], &info["state"]), (&name.into(), &"running".into()));
    // As `WARM` and `SOLO` have it.
    let cpus = if name == "vs-qemu" { 2 } else { 1 };
    assert_eq!((&info["memory"], &info["cpus"]), (&(512_u64 << 20).into(), &cpus.into()));
    assert_eq!(info["disks"][0]["size"], 8_u64 << 30);
    assert!(info["disks"][0]["file"].as_str().unwrap().ends_with(".qcow2"), "{info}");
    let mac = in_guest(home, name, "cat /sys/class/net/e*/address");
    assert_eq!(info["nics"][0]["mac"], mac.trim());
    assert!(info["machine"].as_str().unwrap().starts_with("pc-q35-"), "{info}");
    assert!(info["ssh"].is_string() && info["user"].is_string() && info["created"].is_string(), "{info}");
    assert_eq!(info["snapshots"], 0);
    let lines = home.ok(["info", name]);
    assert!(lines.contains("state      running\n") && lines.contains(mac.trim()), "{lines}");
}

fn held_and_let_go(home: &Home, name: &str) {
    home.ok(["suspend", name]);
    home.ok(["suspend", name]);
    assert_eq!(state(home, name), "paused");
    let error = home.fails(1, ["ip", name]);
    assert!(error.contains("suspended") && error.contains(&format!("hint: virga resume {name}")), "{error}");
    // So long that a clock that stood still, or was put back, is off by more than is let pass.
    std::thread::sleep(Duration::from_secs(3));
    home.ok(["resume", name]);
    home.ok(["resume", name]);
    assert_eq!(state(home, name), "running");
    clock_is_right(home, name);
}

fn seen(home: &Home, name: &str) {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
    let file = home.path("screen.png");
    home.ok(["screenshot", name, file.to_str().unwrap()]);
    assert!(std::fs::read(&file).unwrap().starts_with(PNG));
    assert!(home.output(["screenshot", name, "-"]).stdout.starts_with(PNG));
    home.fails(1, ["screenshot", name, "no/such/folder.png"]);

    let address = home.ok(["viewer", name]);
    assert_eq!(home.ok(["viewer", name, "--print"]), address, "it is served once");
    let place = address.trim().strip_prefix("vnc://127.0.0.1:").unwrap();
    let greeting = format!("exec 3<>/dev/tcp/127.0.0.1/{place}; head -c 4 <&3");
    assert_eq!(home.beside("bash").args(["-c", &greeting]).output().unwrap().stdout, b"RFB ");
}

/// A console at a terminal that `script` makes.
struct Console {
    child: std::process::Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Console {
    fn open(home: &Home, name: &str) -> Self {
        let console = home.shell_line("echo $$ >pid", &format!("console {name}"));
        let command = format!("stty -a >before; {console}; echo code $?; stty -a >after");
        let like = home.virga([] as [&str; 0]);
        let mut script = Command::new("script");
        script.args(["-q", "-c", &command, "/dev/null"]).env_clear().current_dir(like.get_current_dir().unwrap());
        script.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("SHELL", "/bin/sh");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (shown, mut pipe) = (Arc::new(Mutex::new(Vec::new())), child.stdout.take().unwrap());
        let copy = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut piece) {
                copy.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Console { child, shown }
    }

    fn says(&self, words: &str) {
        wait_for(words, LONG, || text(&self.shown.lock().unwrap()).contains(words));
    }

    fn types(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    #[track_caller]
    fn ended(mut self, home: &Home) {
        self.says("code ");
        self.child.wait().unwrap();
        let settings = ["before", "after"].map(|file| std::fs::read_to_string(home.path(file)).unwrap());
        assert_eq!(settings[0], settings[1], "the terminal is not as it was");
    }
}

fn typed_at(home: &Home, name: &str) {
    let mut first = Console::open(home, name);
    first.says("Ctrl-] leaves");
    first.types(b"\r");
    first.says("login:");
    let second = Console::open(home, name);
    second.says("is taken by another client");
    second.says("code 1");
    second.ended(home);
    first.types(b"nobody\x1d");
    first.says("code 0");
    first.ended(home);

    // In a pipe it is the log, as with --log.
    assert!(home.ok(["console", name]).contains("login:"));
    assert_eq!(home.ok(["console", name, "-n", "1"]).lines().count(), 1);

    // SIGTERM puts the terminal back too.
    let third = Console::open(home, name);
    third.says("Ctrl-] leaves");
    let pid = std::fs::read_to_string(home.path("pid")).unwrap();
    assert!(home.beside("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
    third.says("code 130");
    third.ended(home);
}

fn kept_and_put_back(home: &Home, name: &str) {
    let boot = in_guest(home, name, BOOT);
    let note = "cat /dev/shm/note disk";
    in_guest(home, name, "echo before | tee /dev/shm/note >disk; sync");
    assert_eq!(home.ok(["snapshot", "create", name, "one"]), "one\n");
    let error = home.fails(1, ["snapshot", "create", name, "one"]);
    assert!(error.contains(&format!("virga snapshot remove {name} one")), "{error}");
    let listed = home.json(["snapshot", "list", name]);
    assert_eq!((&listed[0]["name"], &listed[0]["memory"]), (&"one".into(), &true.into()));
    let taken: String = listed[0]["taken"].as_str().unwrap().chars().take(10).collect();
    assert_eq!(taken, support::run("date", ["-u", "+%Y-%m-%d"]).trim());
    in_guest(home, name, "echo after | tee /dev/shm/note >disk; sync");
    // So long that a clock that stood still, or was put back, is off by more than is let pass.
    std::thread::sleep(Duration::from_secs(3));
    home.ok(["snapshot", "restore", name, "one"]);
    assert_eq!(in_guest(home, name, note), "before\nbefore\n");
    assert_eq!(in_guest(home, name, BOOT), boot);
    clock_is_right(home, name);
    // A held one is put back and runs.
    home.ok(["suspend", name]);
    home.ok(["snapshot", "restore", name, "one"]);
    assert_eq!(state(home, name), "running");
    assert_eq!(in_guest(home, name, BOOT), boot);
}

fn saved(home: &Home, name: &str) {
    let boot = in_guest(home, name, BOOT);
    home.ok(["save", name]);
    home.ok(["save", name]);
    assert_eq!(state(home, name), "saved");
    for args in [&["suspend", name][..], &["resume", name], &["screenshot", name, "x.png"], &["viewer", name]] {
        let error = home.fails(1, args);
        assert!(error.contains(&format!("hint: virga start {name}")), "{args:?}: {error}");
    }
    for args in [&["snapshot", "create", name][..], &["snapshot", "restore", name, "one"]] {
        assert!(home.fails(1, args).contains("is saved"));
    }
    // So long that a clock that stood still, or was put back, is off by more than is let pass.
    std::thread::sleep(Duration::from_secs(3));
    home.ok(["start", name]);
    assert_eq!(in_guest(home, name, BOOT), boot);
    clock_is_right(home, name);
    // A guest that was loaded can be kept, and is what it was.
    home.ok(["snapshot", "create", name, "loaded"]);
    home.ok(["snapshot", "restore", name, "loaded"]);
    assert_eq!(in_guest(home, name, BOOT), boot);
    home.ok(["snapshot", "remove", name, "loaded"]);
    home.ok(["save", name]);
    home.ok(["stop", name]);
    assert_eq!(state(home, name), "saved", "only force takes its memory");
    home.ok(["stop", "--force", name]);
    assert_eq!(state(home, name), "stopped");
}

fn kept_while_stopped(home: &Home, name: &str) {
    home.ok(["snapshot", "create", name, "cold"]);
    let listed = home.json(["snapshot", "list", name]);
    let memory: Vec<(&str, bool)> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["memory"].as_bool().unwrap()))
        .collect();
    assert_eq!(memory, [("one", true), ("cold", false)]);
    assert_eq!(home.json(["info", name])["snapshots"], 2);
    it_must_fit(home, name);
    home.ok(["snapshot", "restore", name, "cold"]);
    assert_eq!(state(home, name), "stopped");
    home.ok(["snapshot", "restore", name, "one"]);
    assert_eq!(in_guest(home, name, "cat /dev/shm/note"), "before\n");
    let error = home.fails(1, ["snapshot", "restore", name, "cold"]);
    assert!(error.contains(&format!("hint: virga stop {name}")), "{error}");
    for snapshot in ["one", "cold"] {
        home.ok(["snapshot", "remove", name, snapshot]);
    }
    assert_eq!(home.json(["snapshot", "list", name]), serde_json::json!([]));
    let named = home.ok(["snapshot", "create", name]);
    assert!(named.starts_with("s20"), "{named}");
    home.ok(["snapshot", "remove", name, named.trim()]);
    home.ok(["stop", "--force", name]);
}

/// A snapshot is of a machine: into another one it is not put.
fn it_must_fit(home: &Home, name: &str) {
    let refuses = |snapshot: &str, why: &str| {
        let error = home.fails(1, ["snapshot", "restore", name, snapshot]);
        assert!(error.contains("does not fit") && error.contains(why), "{error}");
    };
    let disk = home.ok(["attach", name, "--size", "16M"]);
    let why = format!("it did not have the disk '{}'", disk.trim());
    refuses("cold", &why);
    refuses("one", &why);
    home.ok(["detach", name, disk.trim(), "--delete"]);
    let size = || home.json(["info", name])["disks"][0]["size"].as_u64().unwrap();
    let before = size();
    home.ok(["resize", name, "--memory", "576M", "--disk", &format!("{}M", (before >> 20) + 64)]);
    refuses("one", "it had 512 MiB of memory");
    home.ok(["snapshot", "restore", name, "cold"]);
    // The disk is as it was, the machine as it is.
    assert_eq!((size(), home.json(["info", name])["memory"].as_u64().unwrap()), (before, 576 << 20));
    home.ok(["resize", name, "--memory", "512M"]);
}

fn mistaken(home: &Home, name: &str) {
    home.fails(3, ["snapshot", "restore", name, "nowhere"]);
    home.fails(3, ["snapshot", "remove", name, "nowhere"]);
    home.fails(2, ["snapshot", "create", name, "1"]);
    home.fails(2, ["snapshot", "restore", name]);
    for verb in ["suspend", "resume", "save", "viewer"] {
        let error = home.fails(1, [verb, name]);
        assert!(error.contains("is not running") && error.contains("hint: virga start"), "{verb}: {error}");
    }
    for args in [
        &["suspend", "nobody"][..],
        &["resume", "nobody"],
        &["info", "nobody"],
        &["viewer", "nobody"],
        &["screenshot", "nobody", "x.png"],
        &["console", "nobody"],
        &["snapshot", "list", "nobody"],
        &["snapshot", "create", "nobody"],
    ] {
        assert!(home.fails(3, args).contains("there is no guest 'nobody'"), "{args:?}");
    }
    assert!(!home.path("x.png").exists());
}

/// Of a guest that `create` did not finish there is something to show, and nothing to do.
#[test]
fn half_made_guests_are_shown_and_refused() {
    let home = Home::with_key();
    home.ok(["create", "vs-half", "--no-start", "--image", image().to_str().unwrap()]);
    let record = home.state().join("guests/vs-half/guest.json");
    let text = std::fs::read_to_string(&record).unwrap();
    support::write(&record, &text.replace("\"phase\": \"ready\"", "\"phase\": \"creating\""));
    assert_eq!(home.json(["info", "vs-half"])["state"], "half-made");
    for args in [&["suspend", "vs-half"][..], &["snapshot", "create", "vs-half"], &["screenshot", "vs-half", "-"]] {
        let error = home.fails(1, args);
        assert!(error.contains("half-made") && error.contains("virga destroy"), "{args:?}: {error}");
    }
    home.ok(["destroy", "vs-half"]);
    home.assert_nothing_left();
}
