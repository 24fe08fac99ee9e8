use std::os::unix::net::UnixListener;

use super::super::tests::Rig;
use super::*;
use crate::base::cmd::Cmd;
use crate::driver::{Begin, Driver as _, Saved, Session as _};

#[test]
fn each_state_has_its_next_step() {
    let table: [(&str, &str, Step); 20] = [
        ("running", "", Step::Done),
        ("running", "completed", Step::Done),
        ("running", "active", Step::Cancel),
        ("running", "cancelling", Step::Wait),
        ("paused", "", Step::Go),
        ("paused", "active", Step::Cancel),
        ("paused", "cancelling", Step::Wait),
        ("paused", "cancelled", Step::Go),
        ("prelaunch", "", Step::Go),
        // The gap: QEMU refuses to go on, although the save is over.
        ("finish-migrate", "completed", Step::Wait),
        ("finish-migrate", "failed", Step::Wait),
        ("finish-migrate", "device", Step::Cancel),
        ("postmigrate", "completed", Step::Go),
        ("inmigrate", "active", Step::Wait),
        ("inmigrate", "completed", Step::Wait),
        ("inmigrate", "", Step::Never),
        ("inmigrate", "failed", Step::Never),
        ("suspended", "", Step::Wake),
        ("io-error", "", Step::Go),
        ("internal-error", "", Step::Never),
    ];
    for (machine, transfer, step) in table {
        assert_eq!(next(machine, transfer), step, "{machine} {transfer}");
    }
}

fn signal(rig: &Rig, name: &str) {
    for pid in rig.running() {
        Cmd::new("kill").args([name, &pid.to_string()]).run().unwrap();
    }
}

/// A QEMU that is stopped stands for one on a machine that has no time for it.
#[test]
fn silence_is_no_state_and_an_answer_is_waited_for() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.up(&plan);
    rig.driver.suspend(&plan).unwrap();
    signal(&rig, "-STOP");
    assert_eq!(rig.driver.glance(&plan).unwrap(), None, "silence was taken for a state");
    let status = std::thread::scope(|scope| {
        let asked = scope.spawn(|| rig.driver.status(&plan));
        // It asks meanwhile, and has no answer.
        assert_eq!(rig.driver.glance(&plan).unwrap(), None);
        assert!(!asked.is_finished(), "{:?}", asked.join());
        signal(&rig, "-CONT");
        asked.join().unwrap()
    });
    assert_eq!(status.unwrap(), Status::Paused);
}

/// The same for one that ends instead.
#[test]
fn the_end_of_a_silent_process_is_an_answer() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.up(&plan);
    signal(&rig, "-STOP");
    let status = std::thread::scope(|scope| {
        let asked = scope.spawn(|| rig.driver.status(&plan));
        assert_eq!(rig.driver.glance(&plan).unwrap(), None);
        signal(&rig, "-KILL");
        asked.join().unwrap()
    });
    assert_eq!(status.unwrap(), Status::Died);
}

#[test]
fn another_client_at_the_socket_is_waited_for() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.up(&plan);
    let held = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), PATIENCE).unwrap();
    assert_eq!(rig.driver.glance(&plan).unwrap(), None);
    let status = std::thread::scope(|scope| {
        let asked = scope.spawn(|| rig.driver.status(&plan));
        assert_eq!(rig.driver.glance(&plan).unwrap(), None);
        drop(held);
        asked.join().unwrap()
    });
    assert_eq!(status.unwrap(), Status::Running);
}

#[test]
fn what_was_never_loaded_cannot_be_let_go() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.driver.create(&plan).unwrap();
    rig.driver.start(&plan, Begin::Empty(None)).unwrap();
    let error = rig.driver.release(&plan).unwrap_err();
    assert!(error.causes()[0].contains("has none") && error.hints()[0].contains("restart --force"), "{error}");
}

/// A save that goes on, as one leaves it that was killed: it is given up, and the guest runs.
#[test]
fn a_save_that_goes_on_is_given_up() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.up(&plan);
    let state = rig.home.path().join("state");
    let begin = |slow: bool| {
        let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), PATIENCE).unwrap();
        qmp.command("stop", json!({})).unwrap();
        let speed = if slow { 1 } else { 1_u64 << 40 };
        qmp.command("migrate-set-parameters", json!({"max-bandwidth": speed})).unwrap();
        let address = json!({"transport": "file", "filename": state, "offset": 0});
        let channel = json!([{"channel-type": "main", "addr": address}]);
        qmp.command("migrate", json!({"channels": channel})).unwrap();
    };
    for slow in [true, false, true] {
        begin(slow);
        // Without a moment's wait: a fast one is about to be over.
        rig.driver.release(&plan).unwrap();
        assert_eq!(rig.driver.status(&plan).unwrap(), Status::Running);
    }
    let saved = Saved { state: rig.home.path().join("whole"), memory: None };
    rig.driver.save(&plan, &saved).unwrap();
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Paused);
}

/// A QEMU that says the save is over, and refuses to go on for a while: what it says is scripted, so that the gap is
/// there on every machine.
#[test]
fn a_refusal_in_the_gap_is_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    let asked = std::thread::scope(|scope| {
        let qemu = scope.spawn(|| scripted(&listener));
        let_run(&socket).unwrap();
        qemu.join().unwrap()
    });
    let went: Vec<&str> = asked.iter().map(String::as_str).filter(|word| !word.starts_with("query")).collect();
    assert_eq!(went, ["qmp_capabilities", "cont", "cont", "cont"], "{asked:?}");
    assert!(asked.last().unwrap() == "query-status", "it was not read back: {asked:?}");
}

/// Answers one client as QEMU 10 does at the end of a save: `cont` is refused once, taken once without effect, and
/// then done. Returns what was asked.
fn scripted(listener: &UnixListener) -> Vec<String> {
    use std::io::{BufRead as _, BufReader, Write as _};
    let (mut stream, _) = listener.accept().unwrap();
    writeln!(stream, "{}", json!({"QMP": {}})).unwrap();
    let (mut asked, mut went) = (Vec::new(), 0);
    for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::io::Result::ok) {
        let order: serde_json::Value = serde_json::from_str(&line).unwrap();
        let word = order["execute"].as_str().unwrap().to_owned();
        went += usize::from(word == "cont");
        let answer = match (word.as_str(), went) {
            ("query-migrate", _) => json!({"return": {"status": "completed"}}),
            ("query-status", 3) => json!({"return": {"status": "running", "running": true}}),
            ("query-status", _) => json!({"return": {"status": "postmigrate", "running": false}}),
            ("cont", 1) => json!({"error": {"class": "GenericError", "desc": "Migration is not finalized yet"}}),
            _ => json!({"return": {}}),
        };
        let mut answer = answer;
        answer["id"] = order["id"].clone();
        writeln!(stream, "{answer}").unwrap();
        asked.push(word);
    }
    asked
}
