//! What ends the making of a template, the resuming of a clone or the saving of
//! a guest: nothing half-made is used, and the next command repairs.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Home, LONG, SOLO, WARM, clock_is_right, end, image, in_guest, names, run, text, tiny, wait_for};

/// Not the machine of all other tests: it is another template.
const OTHER: [&str; 8] = ["--accel", "tcg", "--memory", "640M", "--cpus", "1", "--disk", "5G"];

fn template_args() -> impl Iterator<Item = &'static str> {
    ["template", "create", "--image", image().to_str().unwrap()].into_iter().chain(OTHER)
}

fn create_args(name: &str) -> impl Iterator<Item = &str> {
    ["create", name, "--image", image().to_str().unwrap()].into_iter().chain(WARM)
}

/// What a killed command left goes with the next command of its kind, and what that makes is whole, and nobody's.
/// (SIGKILL before each step: tests/crash.rs.)
#[test]
fn a_template_is_made_after_one_that_was_killed() {
    let home = Home::with_key();
    let guests = home.state().join("guests");
    let mut child = home.virga(template_args()).spawn().unwrap();
    wait_for("its boot", LONG, || home.machines() == 1 || child.try_wait().unwrap().is_some());
    end(&mut child);
    let args = ["-v", "create", "guest", "--warm", "--wait", "--image", image().to_str().unwrap()];
    let output = home.output(args.into_iter().chain(OTHER));
    assert!(output.status.success() && text(&output.stderr).contains("renewed"), "{}", text(&output.stderr));
    assert_eq!(names(&guests), ["guest"]);
    assert_eq!(home.machines(), 1);
    let folder = home.json(["template", "list"])[0]["folder"].as_str().unwrap().to_owned();
    private(Path::new(&folder));
    holds_nothing_of_the_users(&home, Path::new(&folder));
    what_was_asked_for_is_there(&home);
    home.ok(["destroy", "guest"]);
    home.assert_nothing_left();
}

fn private(folder: &Path) {
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder), 0o700);
    assert!(names(folder).iter().all(|name| mode(&folder.join(name)) == 0o600));
}

/// The key that opens its clone is nowhere in it; what is in it for certain is found by the same search.
fn holds_nothing_of_the_users(home: &Home, folder: &Path) {
    let key = std::fs::read_to_string(home.path("home/.ssh/id_ed25519.pub")).unwrap();
    let key = key.split(' ').nth(1).unwrap();
    let memory = std::fs::read(folder.join("memory")).unwrap();
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has(&memory, "virga.renewal") && !has(&memory, &key[key.len() - 40..]), "the user's key is in the memory");
    let disk = std::fs::read(folder.join("disk.qcow2")).unwrap();
    assert!(!has(&disk, &key[key.len() - 40..]), "the user's key is on the disk");
}

fn what_was_asked_for_is_there(home: &Home) {
    let has = in_guest(home, "guest", "nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; lsblk -bdno SIZE");
    let has: Vec<u64> = has.lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(has[0] == 1 && (550..640).contains(&has[1]) && has.contains(&(5 << 30)), "{has:?}");
}

/// Ctrl-C in the midst of a save lets the guest run on, and takes back what was written. So do a terminal that is
/// closed and a service manager, which both tell it twice. (SIGKILL there: tests/crash.rs.)
#[test]
fn an_interrupted_save_lets_the_guest_run_on() {
    let home = Home::with_key();
    home.ok(["create", "guest", "--wait", "--image", tiny().to_str().unwrap()].iter().chain(&SOLO));
    in_guest(&home, "guest", "echo here >/dev/shm/note");
    let before = in_guest(&home, "guest", ASK);
    for signals in [&["-INT"][..], &["-HUP", "-HUP"], &["-TERM", "-TERM"]] {
        assert!(
            (0..20).any(|_| was_interrupted(&home, &before, signals)),
            "none of twenty {signals:?} came as it was saved"
        );
    }
    home.ok(["destroy", "guest"]);
    home.assert_nothing_left();
}

/// What is another one after another boot.
const ASK: &str = "cat /proc/sys/kernel/random/boot_id /dev/shm/note";

/// Sends the one QEMU of a test a signal, if it is there. Stopped, it stands for one on a machine that has no time for it.
fn signal(home: &Home, signal: &str) -> bool {
    let qemu = home.processes().into_iter().find(|line| line.contains("qemu-system"));
    let sent = |line: String| Command::new("kill").args([signal, line.split(':').next().unwrap()]).status().unwrap();
    qemu.is_some_and(|line| sent(line).success())
}

fn state(home: &Home) -> String {
    home.json(["list"])[0]["state"].as_str().unwrap().to_owned()
}

/// Whether the signals came in time: it is saved, and started again, else.
fn was_interrupted(home: &Home, before: &str, signals: &[&str]) -> bool {
    let folder = home.state().join("guests/guest");
    let mut child = home.virga(["save", "guest"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the file", LONG, || folder.join("saved").exists() || child.try_wait().unwrap().is_some());
    // However quick the machine is, the signals come before the end.
    if signal(home, "-STOP") {
        for signal in signals {
            if child.try_wait().unwrap().is_none() {
                run("kill", [(*signal).to_owned(), child.id().to_string()]);
            }
        }
        signal(home, "-CONT");
    }
    wait_for("the end of save", LONG, || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    match output.status.code() {
        Some(130) => {
            assert_eq!(state(home), "running", "{}", text(&output.stderr));
            assert_eq!(names(&folder).iter().filter(|name| *name == "saved").count(), 0);
            assert_eq!(in_guest(home, "guest", ASK), before);
            true
        }
        Some(0) => {
            home.ok(["start", "guest"]);
            false
        }
        other => panic!("{other:?}: {}", text(&output.stderr)),
    }
}

/// A QEMU that answers late is neither running nor held until it has said so, and what is done then is done to what it
/// said: a guest that is held goes on, however long the answer takes.
#[test]
fn a_late_answer_is_waited_for() {
    let home = Home::with_key().warm();
    home.ok(create_args("guest").chain(["--wait", "--timeout", "20m"]));
    let late = |command: &[&str]| {
        assert!(signal(&home, "-STOP"));
        assert_eq!(state(&home), "busy", "no answer was taken for one");
        let child = home.virga(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Meanwhile it asks.
        assert_eq!(state(&home), "busy");
        assert!(signal(&home, "-CONT"));
        let output = child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    home.ok(["suspend", "guest"]);
    let error = home.fails(1, ["wait", "guest", "--timeout", "1h"]);
    assert!(error.contains("suspended") && error.contains("virga resume guest"), "{error}");
    let (code, error) = late(&["ssh", "guest", "--", "true"]);
    assert!(code == Some(1) && error.contains("suspended"), "{error}");
    let (code, error) = late(&["start", "guest"]);
    assert_eq!((code, state(&home).as_str()), (Some(0), "running"), "{error}");
    clock_is_right(&home, "guest");
    let (code, error) = late(&["save", "guest"]);
    assert_eq!((code, state(&home).as_str()), (Some(0), "saved"), "{error}");
    home.ok(["start", "guest"]);
    clock_is_right(&home, "guest");
    // Nothing is asked of one that is to be ended.
    assert!(signal(&home, "-STOP"));
    home.ok(["stop", "--force", "guest"]);
    assert_eq!(state(&home), "stopped");
    home.ok(["destroy", "guest"]);
    home.assert_nothing_left();
}
