//! `virga run`, and throwaway guests: what the command says is what comes out,
//! and nothing is left, whatever ends it.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use support::moments::Moments;
use support::{Home, LONG, Mirror, WARM, image, names, run, small_image, text, wait_for};

/// `virga run` of the real Debian.
fn warm<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--image", image().to_str().unwrap()], &WARM[..], options, &["--"], command].concat()
}

/// `virga run` of an image that boots nothing: it waits until it is ended.
fn hopeless<'a>(image: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--image", image, "--accel", "tcg", "--memory", "128M"], options, &["--", "true"]].concat()
}

fn with_input(home: &Home, args: &[&str], input: &str) -> Output {
    let mut command = home.virga(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn signal(child: &Child, name: &str) {
    run("kill", [name, &child.id().to_string()]);
}

/// What a run has left is gone by itself, and what nobody was there to remove, with the next command.
#[track_caller]
fn all_goes(home: &Home) {
    wait_for("the end of all processes", LONG, || home.processes().is_empty());
    home.ok(["list"]);
    home.assert_nothing_left();
}

#[test]
fn a_run_ends_as_its_command_does() {
    let home = Home::with_key().warm();
    let program = "cat; echo \"$WHO\"; echo talk >&2; exit 3";
    let output = with_input(&home, &warm(&["--env", "WHO=a  b"], &["sh", "-c", program]), "one\ntwo\n");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "one\ntwo\na  b\n");
    assert!(text(&output.stderr).contains("talk\n"));
    home.assert_nothing_left();

    // Not what ssh says of a connection that broke: the command said it.
    assert_eq!(home.output(warm(&[], &["sh", "-c", "exit 255"])).status.code(), Some(255));
    home.fails(124, warm(&["--timeout", "2s"], &["sleep", "1000"]));
    let broke = home.fails(125, warm(&[], &["sudo", "poweroff", "--force"]));
    assert!(broke.contains("the connection to"), "{broke}");
    home.assert_nothing_left();
}

#[test]
fn a_folder_goes_in_and_results_come_back() {
    let home = Home::with_key().warm();
    let work = home.path("it's work");
    std::fs::create_dir_all(work.join("sub")).unwrap();
    support::write(&work.join("sub/input"), "one\n");
    let (folder, results) = (work.to_str().unwrap(), home.path("results"));
    let place = format!("out:{}", results.display());
    let transfer = ["--copy", folder, "--get", &place, "--get", "/etc/hostname"];
    let program = "mkdir out; sed s/one/two/ sub/input >out/done; ln -s /etc/passwd out/link; exit 7";
    let output = home.output(warm(&transfer, &["sh", "-c", program]));
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(results.join("done")).unwrap(), "two\n");
    assert_eq!(std::fs::read_link(results.join("link")).unwrap().to_str().unwrap(), "/etc/passwd");
    assert!(std::fs::read_to_string(home.path("hostname")).unwrap().starts_with("run-"));
    home.assert_nothing_left();

    // Into a folder that is there, but over none.
    std::fs::create_dir(results.join("out")).unwrap();
    let error = home.fails(125, warm(&transfer, &["true"]));
    assert!(error.contains("a folder") && error.contains("results/out"), "{error}");
    home.fails(125, warm(&["--copy", "nowhere"], &["true"]));
    assert_eq!(home.output(warm(&["--get", "missing"], &["false"])).status.code(), Some(1));
    let error = home.fails(125, warm(&["--get", "missing"], &["true"]));
    assert!(error.contains("the guest has no 'missing'"), "{error}");
    home.assert_nothing_left();
}

#[test]
fn a_guest_stays_when_it_is_wanted() {
    let home = Home::with_key().warm();
    home.ok(warm(&["--name", "one", "--keep-on-failure"], &["true"]));
    home.assert_nothing_left();
    let output = home.output(warm(&["--name", "two", "--keep-on-failure"], &["false"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("'virga destroy two' removes it"), "{}", text(&output.stderr));
    assert_eq!(home.ok(["ssh", "two", "--", "echo still here"]), "still here\n");
    home.fails(125, warm(&["--name", "two"], &["true"]));
    assert_eq!(home.json(["list"])[0]["state"], "running", "a run does not touch what has its name");
    home.ok(["destroy", "two"]);
    home.assert_nothing_left();
}

#[test]
fn whatever_ends_a_run_nothing_is_left() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    // How long it takes here and now until the guest runs; from then on it only waits.
    let began = Instant::now();
    let child = home.virga(hopeless(image.to_str().unwrap(), &[])).stderr(Stdio::null()).process_group_of_its_own();
    wait_for("the guest", LONG, || home.processes().iter().any(|line| line.contains("qemu-system")));
    let whole = began.elapsed();
    end_of(child, &home, "-KILL");
    // Twice as long, so that the later moments are within the wait, whatever the first run took more than the others.
    let step = whole / 10;
    let (mut moments, mut made, mut running) = (Moments::new(), 0, 0);
    for number in 0..20 {
        let how = ["-KILL", "-INT", "-KILL", "-HUP"][number as usize % 4];
        let (seed, within) = moments.next(step);
        let delay = step * number + within;
        let mut child =
            home.virga(hopeless(image.to_str().unwrap(), &[])).stderr(Stdio::null()).process_group_of_its_own();
        std::thread::sleep(delay);
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself, seed {seed}");
        made += usize::from(!names(&home.state().join("guests")).is_empty());
        running += usize::from(home.processes().iter().any(|line| line.contains("qemu-system")));
        signal(&child, how);
        let status = child.wait().unwrap();
        if how == "-INT" {
            // Before the program listens, the signal itself ends it.
            assert!(matches!(status.code(), Some(130) | None), "{status}, seed {seed}");
        }
        all_goes(&home);
    }
    assert!(made > 1 && running > 0 && running < 20, "of 20 found {made} a guest and {running} one that ran");
}

/// Ends a run from outside, and sees that nothing stays.
fn end_of(mut child: Child, home: &Home, how: &str) {
    signal(&child, how);
    child.wait().unwrap();
    all_goes(home);
}

trait OfItsOwn {
    fn process_group_of_its_own(&mut self) -> Child;
}

impl OfItsOwn for Command {
    /// As a shell starts it.
    fn process_group_of_its_own(&mut self) -> Child {
        std::os::unix::process::CommandExt::process_group(self, 0).spawn().unwrap()
    }
}

#[test]
fn a_run_that_is_killed_in_the_midst_of_its_command_takes_the_guest_along() {
    let home = Home::with_key().warm();
    for how in ["-KILL", "-TERM"] {
        let mut child =
            home.virga(warm(&[], &["sh", "-c", "echo up; sleep 1000"])).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        signal(&child, how);
        assert!(!child.wait().unwrap().success());
        all_goes(&home);
    }
}

/// Keeper and all: what is left then waits for the next command.
#[test]
fn the_next_command_removes_what_nobody_was_left_to_remove() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let mut child = home.virga(hopeless(image.to_str().unwrap(), &["--name", "left"])).spawn().unwrap();
    let runs = || home.json(["list"])[0]["state"] == "running";
    wait_for("the guest", LONG, runs);
    for process in home.keepers() {
        run("kill", ["-KILL", &process]);
    }
    signal(&child, "-KILL");
    child.wait().unwrap();
    assert!(home.ok(["gc", "--dry-run"]).starts_with("left: "));
    // What keeps its console goes when it goes.
    let others: Vec<String> = home.processes().into_iter().filter(|line| !line.contains(" __console ")).collect();
    assert_eq!((others.len(), home.machines()), (1, 1), "QEMU alone: {others:?}");
    let said = home.output(["list"]);
    assert!(text(&said.stderr).contains("removed 'left'"), "{}", text(&said.stderr));
    home.assert_nothing_left();
}

#[test]
fn gc_removes_what_killed_commands_left_and_nothing_else() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let create = |name| ["create", name, "--image", image.to_str().unwrap(), "--no-start", "--memory", "128M"];
    home.ok(create("whole"));
    home.ok(create("half"));
    let record = home.state().join("guests/half/guest.json");
    let text = std::fs::read_to_string(&record).unwrap().replace("\"ready\"", "\"creating\"");
    std::fs::write(&record, text).unwrap();
    assert_eq!(home.ok(["gc", "--dry-run"]), "half: the command that made it was killed\n");
    assert_eq!(home.json(["gc"])[0]["name"], "half");
    assert_eq!(home.ok(["gc"]), "");
    assert_eq!(home.json(["list"])[0]["name"], "whole");
}

#[test]
fn a_guest_with_a_time_to_live_goes_by_itself() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let machine = ["--image", image.to_str().unwrap(), "--accel", "tcg", "--memory", "128M"];
    home.ok(["create", "long", "--ttl", "24h"].iter().chain(&machine));
    assert!(home.json(["info", "long"])["expires"].is_string());
    home.ok(["create", "short", "--ttl", "5s"].iter().chain(&machine));
    // By itself: a command that looks would remove it.
    wait_for("its end", LONG, || names(&home.state().join("guests")) == ["long"]);
    assert_eq!(home.json(["list"]).as_array().unwrap().len(), 1);
    home.ok(["destroy", "long"]);
    wait_for("its keeper's end", LONG, || home.processes().is_empty());
    home.assert_nothing_left();
}

#[test]
fn an_image_that_is_not_there_is_fetched_unless_that_is_forbidden() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let keys = ["product=org.example:disk", "version=1", "release=r1", "arch=amd64", "os=linux"];
    let mirror = Mirror::with_image(&home, &image, &keys);
    let source = mirror.sync_args()[1..].to_vec();
    let run = |more: &[&str]| -> Vec<String> {
        let machine = ["run", "release=r1", "--accel", "tcg", "--memory", "128M", "--boot-timeout", "1s"];
        let words = machine.iter().chain(more).map(|word| (*word).to_owned());
        words.chain(source.clone()).chain(["--".into(), "true".into()]).collect()
    };
    let error = home.fails(125, run(&["--offline"]));
    assert!(error.contains("without '--offline' it is fetched"), "{error}");
    let error = home.fails(125, run(&[]));
    assert!(error.contains("not ready within 1s"), "{error}");
    assert_eq!(home.json(["images"]).as_array().unwrap().len(), 1);
    let error = home.fails(125, run(&["--offline"]));
    assert!(error.contains("not ready within 1s"), "{error}");
    home.fails(2, ["run", "release=r1"]);
    drop(mirror);
    home.assert_nothing_left();
}
