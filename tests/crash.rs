//! SIGKILL, or Ctrl-C, before each step that a command takes, one after the other: whatever it was at, the next command
//! goes on from there, nothing is lost, nothing stays held, nothing is left.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]
#![allow(clippy::print_stderr, reason = "how many steps there are is worth knowing")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rstest::rstest;
use support::{
    Home, LONG, Mirror, SOLO, WARM, boot_sector, in_guest, names, run, sha256, small_image, telling, text, tiny,
    wait_for,
};

/// Kills a command before its first step, then before its second, until it gets through, each time from where `before`
/// leaves things. `after` is told where it was killed.
fn at_each_step(home: &Home, command: &[&str], before: impl FnMut(), after: impl FnMut(&str)) {
    until_it_ends(home, command, 0, before, after);
}

/// As [`at_each_step`], of a command that ends with this exit code.
fn until_it_ends(home: &Home, command: &[&str], code: i32, mut before: impl FnMut(), mut after: impl FnMut(&str)) {
    let mut step = 1;
    loop {
        before();
        let Some(what) = killed_before(home, command, step, code) else { return };
        after(&what);
        step += 1;
    }
}

/// Kills a command before this step and says which that was; `None` when it got through, with this exit code.
fn killed_before(home: &Home, command: &[&str], step: usize, code: i32) -> Option<String> {
    let output = home.virga(command).env("VIRGA_TEST_AT_STEP", format!("KILL {step}")).output().unwrap();
    let said = text(&output.stderr);
    if output.status.signal() != Some(9) {
        assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
        assert!(step > 5, "{command:?} has {step} steps, all told");
        eprintln!("{command:?}: {} steps", step - 1);
        return None;
    }
    let what = format!("{command:?}: {}", said.lines().last().unwrap_or_default());
    eprintln!("{what}");
    Some(what)
}

fn state(home: &Home) -> String {
    home.json(["list"])[0]["state"].as_str().unwrap_or("none").to_owned()
}

fn nothing_is_left(home: &Home, what: &str) {
    home.ok(["prune"]);
    assert_eq!(home.processes(), Vec::<String>::new(), "{what}");
    assert_eq!(names(&home.state().join("guests")), Vec::<String>::new(), "{what}");
    assert_eq!(home.sockets(), Vec::<String>::new(), "{what}");
}

/// A guest that is being made is a guest or none, and goes without a trace.
#[test]
fn create_and_destroy() {
    let home = Home::with_key();
    let image = home.path("small.qcow2");
    small_image(&image, "64M");
    let create: Vec<&str> = ["create", "guest", "--image", image.to_str().unwrap()].into_iter().chain(SOLO).collect();
    let mut made = 0;
    at_each_step(
        &home,
        &create,
        || drop(home.output(["destroy", "guest"])),
        |what| {
            let there = home.json(["list"]);
            let again = home.output(&create);
            if there == serde_json::json!([]) {
                assert!(again.status.success(), "{what}: {}", text(&again.stderr));
            } else {
                assert_eq!(again.status.code(), Some(1), "{what}: {}", text(&again.stderr));
                assert!(text(&again.stderr).contains("virga destroy guest"), "{what}: {}", text(&again.stderr));
                made += usize::from(there[0]["state"] != "half-made");
            }
            home.ok(["destroy", "guest"]);
            nothing_is_left(&home, what);
        },
    );
    assert!(made > 0, "it was never whole");
    home.ok(["destroy", "guest"]);
    at_each_step(
        &home,
        &["destroy", "guest"],
        || drop(home.ok(&create)),
        |what| {
            if home.json(["list"]) != serde_json::json!([]) {
                home.ok(["destroy", "guest"]);
            }
            nothing_is_left(&home, what);
        },
    );
    home.assert_nothing_left();
}

/// Ctrl-C takes back what `create` made, whenever it comes.
#[rstest]
#[case::cold(&SOLO, 1)]
#[case::warm(&WARM, 7)]
fn an_interrupted_create(#[case] machine: &[&str], #[case] stride: usize) {
    let home = Home::with_key().warm();
    let image = support::image().to_str().unwrap();
    let create: Vec<&str> = ["create", "gone", "--image", image].into_iter().chain(machine.iter().copied()).collect();
    // The image is in the pool and the first things that a home gets are there: from here on each has the same steps.
    home.ok(["create", "first", "--no-start"].iter().chain(&create[2..]));
    let mut taken_back = 0;
    for step in (1..).step_by(stride) {
        let output = home.virga(&create).env("VIRGA_TEST_AT_STEP", format!("INT {step}")).output().unwrap();
        let said = text(&output.stderr);
        let what = said.lines().find(|line| line.starts_with("before its step "));
        match (what, output.status.code()) {
            (_, Some(0)) => drop(home.ok(["destroy", "gone"])),
            // Before its handlers stand, the signal simply ends it.
            (Some(_), Some(130) | None) => taken_back += 1,
            _ => panic!("{said}"),
        }
        assert_eq!(names(&home.state().join("guests")), ["first"], "{what:?}");
        assert_eq!(home.machines(), 0, "{what:?}");
        if what.is_none() {
            break;
        }
    }
    eprintln!("{create:?}: taken back at {taken_back} steps");
    assert!(taken_back > 3, "it was taken back at {taken_back} steps");

    // The wait that follows the last step; a clone may be quicker than we are.
    let wait = ["--wait", "--timeout", "20m"];
    let mut child = home.virga(create.iter().chain(&wait)).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.ends_with(": the SSH server")), "it did not come to wait");
    run("kill", ["-INT", &child.id().to_string()]);
    said.for_each(drop);
    match child.wait().unwrap().code() {
        Some(0) if stride > 1 => drop(home.ok(["destroy", "gone"])),
        code => assert_eq!(code, Some(130)),
    }
    assert_eq!(names(&home.state().join("guests")), ["first"]);
    assert_eq!(home.machines(), 0);
    home.ok(["destroy", "first"]);
    home.assert_nothing_left();
}

/// What a run makes goes with it, from the first moment on.
#[test]
fn run_and_its_guest() {
    let home = Home::with_key();
    let image = ends_at_once(&home);
    let options = ["run", "--image", image.to_str().unwrap()].into_iter().chain(SOLO);
    let command: Vec<&str> = options.chain(["--", "true"]).collect();
    let nothing_is_left = |what: &str| {
        wait_for(what, LONG, || home.processes().is_empty());
        home.ok(["list"]);
        home.assert_nothing_left();
        // The next one is to have as many steps.
        home.ok(["prune"]);
    };
    until_it_ends(&home, &command, 125, || {}, nothing_is_left);
    home.assert_nothing_left();
}

/// The image of a machine that switches itself off as its first deed.
fn ends_at_once(home: &Home) -> PathBuf {
    // mov ax, 0x2000; mov dx, 0x604 (the ACPI control register of QEMU's q35); out dx, ax; hlt
    boot_sector(&home.path("ends.qcow2"), vec![0xb8, 0x00, 0x20, 0xba, 0x04, 0x06, 0xef, 0xf4])
}

/// A clone is a whole machine, or a half-made one that no command takes for one; the template stays as it is.
#[test]
fn clone() {
    let home = Home::with_key().warm();
    let create: Vec<&str> =
        ["create", "clone", "--image", support::image().to_str().unwrap()].into_iter().chain(WARM).collect();
    // Another one of the same template is beside it, and stays.
    home.ok(["create", "whole"].iter().chain(&create[2..]));
    let memory = PathBuf::from(home.json(["template", "list"])[0]["folder"].as_str().unwrap()).join("memory");
    let before = sha256(&memory);
    let mut whole = 0;
    let after = |what: &str| {
        let guests = home.json(["list"]);
        match guests.as_array().unwrap().iter().find(|guest| guest["name"] == "clone").map(|clone| &clone["state"]) {
            None => return,
            Some(state) if state == "half-made" => {
                for command in ["start", "ssh", "wait"] {
                    let error = home.fails(1, [command, "clone"]);
                    assert!(error.contains("virga destroy clone"), "{what}: {error}");
                }
            }
            Some(_) => {
                home.ok(["wait", "clone", "--timeout", "20m"]);
                assert_eq!(in_guest(&home, "clone", "hostname"), "clone\n", "{what}");
                whole += 1;
            }
        }
        home.ok(["destroy", "clone"]);
        assert_eq!(home.machines(), 1, "{what}");
    };
    at_each_step(&home, &create, || drop(home.output(["destroy", "clone"])), after);
    assert!(whole > 0, "it was never whole");
    home.ok(["destroy", "clone", "whole"]);
    assert_eq!(sha256(&memory), before, "a clone changed the template");
    home.assert_nothing_left();
}

/// A template is whole or none. Most of its steps come after a boot: but for `make soak`, one of those will do.
#[test]
fn template() {
    let home = Home::with_key();
    let machine = ["--accel", "tcg", "--memory", "640M", "--cpus", "1", "--disk", "5G"];
    let create: Vec<&str> =
        ["template", "create", "--image", support::image().to_str().unwrap()].into_iter().chain(machine).collect();
    let every = std::env::var_os("ROUNDS").is_some();
    let (mut step, mut booted) = (1, false);
    while let Some(what) = killed_before(&home, &create, step, 0) {
        match home.json(["template", "list"])[0]["id"].as_str() {
            Some(id) => {
                home.ok(["template", "verify"]);
                home.ok(["template", "remove", id]);
            }
            None => {
                let guests = home.json(["list"]);
                let half = guests.as_array().unwrap().iter().all(|guest| guest["state"] == "half-made");
                assert!(half, "{what}: {guests}");
            }
        }
        nothing_is_left(&home, &what);
        if booted && !every {
            return;
        }
        // After this QEMU is started, and the boot comes.
        booted |= what.ends_with("/console.log'");
        step += if booted && !every { 2 + std::process::id() as usize % 24 } else { 1 };
    }
    assert!(every, "it was through at step {step}, and no step after the boot was gone through");
    nothing_is_left(&home, "at the end");
}

#[test]
fn start_and_stop() {
    let home = Home::with_key();
    let image = home.path("small.qcow2");
    small_image(&image, "64M");
    home.ok(["create", "guest", "--no-start", "--image", image.to_str().unwrap()].iter().chain(&SOLO));
    let runs = |what: &str| {
        home.ok(["start", "guest"]);
        assert_eq!((state(&home).as_str(), home.machines()), ("running", 1), "{what}");
    };
    let stands = |what: &str| {
        home.ok(["stop", "--force", "guest"]);
        assert_eq!((state(&home).as_str(), home.machines()), ("stopped", 0), "{what}");
    };
    at_each_step(&home, &["start", "guest"], || stands("before"), runs);
    at_each_step(&home, &["stop", "--force", "guest"], || runs("before"), stands);
    home.ok(["destroy", "guest"]);
    home.assert_nothing_left();
}

/// What is in a guest's memory is there afterwards, whichever command comes next, and it knows the time.
#[test]
fn save_and_resume() {
    let home = Home::with_key();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{port}:7");
    let create = ["create", "guest", "--image", tiny().to_str().unwrap(), "--port", &forward, "--wait"];
    home.ok(create.iter().chain(&["--timeout", "20m"]).chain(&SOLO));
    in_guest(&home, "guest", "echo here >/dev/shm/note");
    // It tells over a plain connection: a login for each of a hundred looks would take minutes.
    let telling = telling("cat /proc/sys/kernel/random/boot_id /dev/shm/note");
    let serve = format!(
        "echo '{telling}' >answer; (sudo nc -ll -p 7 -e bash $PWD/answer >/dev/null 2>&1 </dev/null &); \
         until netstat -ltn | grep -q ':7 '; do sleep 0.1; done"
    );
    in_guest(&home, "guest", &serve);
    // Its kernel takes the time from the RTC, to a second; virga tells it better.
    home.ok(["save", "guest"]);
    home.ok(["start", "guest"]);
    let told = || {
        let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        support::told(&connection, &connection)
    };
    let before = told();
    let is_the_same = |what: &str| {
        assert_eq!(told(), before, "{what}");
        let files = names(&home.state().join("guests/guest"));
        assert!(!files.iter().any(|name| name.starts_with("saved")), "{what}: {files:?}");
        assert_eq!(home.machines(), 1, "{what}");
    };
    let mut turn = 0;
    at_each_step(
        &home,
        &["save", "guest"],
        || drop(home.ok(["start", "guest"])),
        |what| {
            turn += 1;
            if turn % 3 == 0 {
                home.ok(["save", "guest"]);
                assert_eq!((state(&home).as_str(), home.machines()), ("saved", 0), "{what}");
            }
            home.ok(["start", "guest"]);
            is_the_same(what);
        },
    );
    at_each_step(
        &home,
        &["start", "guest"],
        || drop(home.ok(["save", "guest"])),
        |what| {
            home.ok(["start", "guest"]);
            is_the_same(what);
        },
    );
    home.ok(["destroy", "guest"]);
    home.assert_nothing_left();
}

fn published(home: &Home) -> Mirror {
    let image = |name: &str| {
        let path = home.path(name);
        small_image(&path, "1M");
        path
    };
    let keys = |release| ["os=debian", release, "version_name=20261101"];
    let mirror = Mirror::with_image(home, &image("one.qcow2"), &keys("release=one"));
    let (dir, key, second) = (mirror.dir.to_str().unwrap(), mirror.key.to_str().unwrap(), image("two.qcow2"));
    run("qemu-io", ["-c", "write 0 64k", second.to_str().unwrap()]);
    home.ok(["stream", "add", dir, second.to_str().unwrap(), "--key", key].into_iter().chain(keys("release=two")));
    mirror
}

#[test]
fn sync() {
    let home = Home::new();
    let mirror = published(&home);
    let keyring = mirror.dir.join("keyring.gpg").display().to_string();
    let sync = ["--quiet", "sync", "--source", &mirror.url, "--keyring", &keyring];
    at_each_step(
        &home,
        &sync,
        || std::fs::remove_dir_all(home.state()).unwrap_or_default(),
        |what| {
            let images = home.json(["images"]);
            let images = images.as_array().unwrap();
            assert!(images.iter().all(|image| image["present"] == true), "{what}: {images:?}");
            home.ok(sync);
            assert!(home.ok(["images", "verify"]).starts_with("2 sound"), "{what}");
            home.ok(["prune"]);
            assert_eq!(names(&home.state().join("pool/partial")), Vec::<String>::new(), "{what}");
            assert_eq!(names(&home.state().join("pool/blobs/sha256")).len(), 2, "{what}");
        },
    );
}

#[test]
fn mirror() {
    let home = Home::new();
    let upstream = published(&home);
    let keyring = upstream.dir.join("keyring.gpg").display().to_string();
    let (copy, key) = (home.path("copy"), upstream.key.display().to_string());
    let url = format!("file://{}", copy.display());
    let mirror = ["--quiet", "mirror", &upstream.url, copy.to_str().unwrap(), "--keyring", &keyring, "--key", &key];
    let sync = ["--quiet", "sync", "--source", &url, "--keyring", &keyring];
    at_each_step(
        &home,
        &mirror,
        || std::fs::remove_dir_all(&copy).unwrap_or_default(),
        |what| {
            home.ok(mirror);
            assert_eq!(leftovers(&copy), Vec::<String>::new(), "{what}");
            std::fs::remove_dir_all(home.state()).unwrap_or_default();
            home.ok(sync);
            assert_eq!(home.json(["images"]).as_array().unwrap().len(), 2, "{what}");
        },
    );
}

/// What is on its way, by its name, and lies in a tree.
fn leftovers(tree: &Path) -> Vec<String> {
    let found = run("find", [tree.to_str().unwrap(), "-name", ".virga-tmp*", "-o", "-name", "*.part*"]);
    found.lines().map(str::to_owned).collect()
}
