//! What hangs is told of and ended: the watch over all that the tests start, watched itself.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::process::{Command, Output, Stdio};

use support::{Home, run, small_image, text, watch, write};

/// Set for the tests here that hang; they do nothing without it.
const HANG: &str = "VIRGA_TEST_HANG";

fn is_to_hang() -> bool {
    std::env::var_os(HANG).is_some()
}

/// Runs one of the tests that hang, in a process of its own whose folder is in this home, with a limit of seconds.
fn hanging(home: &Home, test: &str) -> String {
    let Output { status, stdout, stderr } = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs([(HANG, "1"), ("VIRGA_TEST_LIMIT", "5")])
        .env("TMPDIR", home.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = format!("{}{}", text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(101), "a failed test, no more and no less: {said}");
    assert_eq!(home.processes(), Vec::<String>::new(), "{said}");
    said
}

#[test]
fn what_hangs_is_told_of_and_ended_with_its_guest() {
    let home = Home::new();
    let said = hanging(&home, "a_stop_that_hangs");
    let names = |line: &str| line.contains("virga stop g --timeout 1h");
    assert!(said.lines().any(|line| line.contains("a program hung: ") && names(line)), "{said}");
    // What runs, and that the QEMU stands still.
    assert!(said.lines().any(|line| line.starts_with("  ") && names(line)), "{said}");
    assert!(said.lines().any(|line| line.contains(" T ") && line.contains("qemu-system")), "{said}");
    assert!(said.contains("/qmp: does not answer: timed out"), "{said}");
    assert!(said.contains("query-status: {\"return\": {\"status\": \"running\""), "{said}");
    assert!(said.contains("query-migrate: {\"return\": {"), "{said}");
    assert!(said.contains("g/console.log:\n  line 6\n"), "{said}");
    assert!(said.contains("g/backend.log:\n"), "{said}");
    assert!(said.contains("all of it is killed"), "{said}");
    assert!(said.contains("panicked") && !said.contains("it went on"), "{said}");
}

#[test]
fn a_stop_that_hangs() {
    if !is_to_hang() {
        return;
    }
    let home = Home::with_key();
    let image = home.path("i.qcow2");
    small_image(&image, "1M");
    for name in ["g", "h"] {
        let machine = ["--accel", "tcg", "--memory", "64M", "--cpus", "1", "--image", image.to_str().unwrap()];
        let mut create = home.virga(["create", name].iter().chain(&machine)).spawn().unwrap();
        // However long it takes on this machine: it is not what is to hang.
        watch::companion(&create);
        assert!(create.wait().unwrap().success());
    }
    let qemu = home.processes().into_iter().find(|line| line.contains("guest=g,")).unwrap();
    run("kill", ["-STOP", qemu.split(':').next().unwrap()]);
    let lines: Vec<String> = (1..=20).map(|number| format!("line {number}\n")).collect();
    write(&home.state().join("guests/g/console.log"), &lines.concat());
    // The test takes no notice, and fails nevertheless.
    home.output(["stop", "g", "--timeout", "1h"]);
    watch::settled();
    assert!(home.processes().is_empty(), "it went on: its guests are left");
    drop(home);
    panic!("it went on");
}

#[test]
fn a_pipe_that_is_left_open_is_told_of_and_its_holder_ended() {
    let home = Home::new();
    let said = hanging(&home, "a_pipe_that_stays_open");
    assert!(said.contains("a program hung: 'sleep 1000'"), "{said}");
    assert!(said.contains("all of it is killed"), "{said}");
    assert!(!said.contains("it went on"), "{said}");
}

#[test]
fn a_pipe_that_stays_open() {
    if !is_to_hang() {
        return;
    }
    let home = Home::new();
    let mut companion = Command::new("sleep").args(["2000"]).spawn().unwrap();
    watch::companion(&companion);
    run("sh", ["-c", "sleep 1000 & echo left"]);
    let lives = companion.try_wait().unwrap().is_none();
    support::end(&mut companion);
    assert!(lives, "it went on: without its companion");
    drop(home);
    panic!("it went on");
}
