//! SIGKILL at random moments, many times, on a busy machine: what goes through every step of a command
//! (tests/crash.rs) cannot hit, the middle of a step. `make soak` runs this; it takes hours.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use support::moments::{Moments, killed_after};
use support::{Home, SOLO, WARM, image, in_guest, names, sha256, tiny, watch};

/// Kills that hit a command at work, of each kind.
fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(100, |rounds| rounds.parse().expect("ROUNDS is a number"))
}

/// Four processors' work beside the test.
struct Busy(Vec<Child>);

impl Busy {
    fn new() -> Self {
        let one = |_| {
            let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
            watch::companion(&child);
            child
        };
        Busy((0..4).map(one).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills the command at random moments until enough of them have hit it at work, each time from where `before` leaves
/// things. It is measured as it goes: one that gets through says how long it takes by now.
fn killed(home: &Home, command: &[&str], mut whole: Duration, mut before: impl FnMut(), mut after: impl FnMut(&str)) {
    let (mut hits, mut kills, mut moments) = (0, 0, Moments::new());
    while hits < rounds() {
        before();
        let (seed, delay) = moments.next(whole);
        match killed_after(delay, &mut home.virga(command)) {
            true => hits += 1,
            false => whole = delay.max(Duration::from_millis(20)),
        }
        kills += 1;
        assert!(kills < 10 * rounds() + 100, "only {hits} of {kills} kills hit {command:?} at work");
        after(&format!("{command:?} killed after {delay:?}, seed {seed}"));
    }
}

fn took(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    // With something on top: the end is to be hit too.
    start.elapsed().mul_f64(1.2)
}

#[test]
#[ignore = "takes an hour: make soak"]
fn save_and_start() {
    let home = Home::with_key();
    let _busy = Busy::new();
    home.ok(["create", "guest", "--wait", "--image", tiny().to_str().unwrap()].iter().chain(&SOLO));
    in_guest(&home, "guest", "echo here >/dev/shm/note");
    let ask = "cat /proc/sys/kernel/random/boot_id /dev/shm/note";
    let before = in_guest(&home, "guest", ask);
    let repaired = |what: &str| {
        home.ok(["start", "guest"]);
        assert_eq!(in_guest(&home, "guest", ask), before, "{what}");
        assert_eq!(home.machines(), 1, "{what}");
    };
    let whole = took(|| drop(home.ok(["save", "guest"])));
    killed(&home, &["save", "guest"], whole, || drop(home.ok(["start", "guest"])), repaired);
    home.ok(["save", "guest"]);
    let whole = took(|| drop(home.ok(["start", "guest"])));
    killed(&home, &["start", "guest"], whole, || drop(home.ok(["save", "guest"])), repaired);
    home.ok(["destroy", "guest"]);
    home.assert_nothing_left();
}

#[test]
#[ignore = "takes an hour: make soak"]
fn clone() {
    let home = Home::with_key().warm();
    let _busy = Busy::new();
    let create: Vec<&str> = ["create", "clone", "--image", image().to_str().unwrap()].into_iter().chain(WARM).collect();
    let whole = took(|| drop(home.ok(&create)));
    let folder = home.json(["template", "list"])[0]["folder"].as_str().unwrap().to_owned();
    let memory = sha256(&Path::new(&folder).join("memory"));
    let after = |what: &str| {
        let guests = home.json(["list"]);
        if guests[0]["state"] == "running" {
            home.ok(["wait", "clone", "--timeout", "20m"]);
            assert_eq!(in_guest(&home, "clone", "hostname"), "clone\n", "{what}");
        }
    };
    killed(&home, &create, whole, || drop(home.output(["destroy", "clone"])), after);
    home.output(["destroy", "clone"]);
    assert_eq!(sha256(&Path::new(&folder).join("memory")), memory);
    home.assert_nothing_left();
}

#[test]
#[ignore = "takes hours: make soak"]
fn template() {
    let home = Home::with_key();
    let _busy = Busy::new();
    let template = ["--accel", "tcg", "--memory", "640M", "--cpus", "1", "--disk", "5G"];
    let create: Vec<&str> =
        ["template", "create", "--image", image().to_str().unwrap()].into_iter().chain(template).collect();
    let none = || {
        for template in home.json(["template", "list"]).as_array().unwrap() {
            home.ok(["template", "verify"]);
            home.ok(["template", "remove", template["id"].as_str().unwrap()]);
        }
        home.ok(["prune"]);
        assert_eq!((home.machines(), names(&home.state().join("guests")).len()), (0, 0));
    };
    let whole = took(|| drop(home.ok(&create)));
    killed(&home, &create, whole, none, |_| none());
    none();
    home.assert_nothing_left();
}
