//! Two commands at once.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Stdio};

use support::{Holder, Home, LONG, SOLO, names, run, small_image, text, wait_for};

fn image(home: &Home) -> PathBuf {
    let image = home.path("small.qcow2");
    small_image(&image, "64M");
    image
}

/// One that is not there yet may come, as long as a command is at work on it; then it is waited for.
#[test]
fn a_guest_that_is_being_started_is_waited_for() {
    let home = Home::with_key();
    home.ok(["create", "guest", "--no-start", "--image", image(&home).to_str().unwrap()].iter().chain(&SOLO));
    let error = home.fails(1, ["wait", "guest", "--timeout", "1h"]);
    assert!(error.contains("virga start guest"), "{error}");
    let holder = Holder::of(&home.state().join("guests/guest/lock"));
    let wait = || home.virga(["wait", "guest", "--timeout", "1h"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut waiting = wait();
    let error = home.fails(4, ["wait", "guest", "--timeout", "1s"]);
    assert!(error.contains("running"), "{error}");
    assert!(waiting.try_wait().unwrap().is_none(), "it was given up");
    drop(holder);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    home.ok(["destroy", "guest"]);
}

/// Whoever makes the key, both streams are signed with the one that is there afterwards.
#[test]
fn two_first_runs_share_one_key() {
    let home = Home::new();
    for round in 0..5 {
        let key = home.path(&format!("{round}.key"));
        let streams: Vec<PathBuf> = (0..4).map(|number| home.path(&format!("stream-{round}-{number}"))).collect();
        let init = |dir: &PathBuf| {
            home.virga(["stream", "init", dir.to_str().unwrap(), "--key", key.to_str().unwrap()]).spawn().unwrap()
        };
        let all: Vec<Child> = streams.iter().map(init).collect();
        all.into_iter().for_each(|mut one| assert!(one.wait().unwrap().success()));
        let keyrings: Vec<Vec<u8>> =
            streams.iter().map(|dir| std::fs::read(dir.join("keyring.gpg")).unwrap()).collect();
        assert!(keyrings.iter().all(|keyring| *keyring == keyrings[0]), "round {round}");
        for dir in &streams {
            home.ok(["stream", "verify", dir.to_str().unwrap()]);
        }
    }
}

/// A name that one makes and another one takes away: what is there in the end is whole or nothing.
#[test]
fn create_and_destroy_of_one_name() {
    let home = Home::with_key();
    let image = image(&home);
    let create: Vec<&str> = ["create", "guest", "--image", image.to_str().unwrap()].into_iter().chain(SOLO).collect();
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let made = |_| {
                let output = home.output(&create);
                assert!([Some(0), Some(1), Some(4)].contains(&output.status.code()), "{}", text(&output.stderr));
                usize::from(output.status.success())
            };
            (0..12).map(made).sum::<usize>()
        });
        while !maker.is_finished() {
            let output = home.output(["destroy", "guest", "--if-exists"]);
            assert!([Some(0), Some(4)].contains(&output.status.code()), "{}", text(&output.stderr));
        }
        assert!(maker.join().unwrap() > 0, "none was made");
    });
    home.ok(["destroy", "guest", "--if-exists"]);
    home.assert_nothing_left();
}

/// A guest that does not heed the power button keeps the command that waits for it to go; whoever wants it gone at once
/// need not wait as well.
#[test]
fn a_stop_is_cut_short() {
    let home = Home::with_key();
    let image = image(&home);
    for end in [["stop", "--force", "guest"].as_slice(), &["destroy", "guest"]] {
        home.ok(["create", "guest", "--image", image.to_str().unwrap()].iter().chain(&SOLO));
        let record = home.state().join("guests/guest/guest.json");
        let mut stop = home.virga(["stop", "guest", "--timeout", "1h"]).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the power button", LONG, || {
            std::fs::read_to_string(&record).unwrap().contains("stopping") || stop.try_wait().unwrap().is_some()
        });
        assert!(home.fails(4, ["start", "guest"]).contains("virga stop"));
        home.ok(end);
        let output = stop.wait_with_output().unwrap();
        assert!([Some(0), Some(3)].contains(&output.status.code()), "{end:?}: {}", text(&output.stderr));
        assert_eq!(home.machines(), 0);
        home.output(["destroy", "guest"]);
    }
    home.assert_nothing_left();
}

/// The boot that a template takes is no time in which nobody may tidy up; what it stands on stays.
#[test]
fn the_pool_is_free_while_a_template_boots() {
    let home = Home::with_key();
    let image = image(&home);
    let create: Vec<&str> =
        ["template", "create", "--image", image.to_str().unwrap()].into_iter().chain(SOLO).collect();
    let mut making = home.virga(&create).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("its guest", LONG, || home.machines() > 0 || making.try_wait().unwrap().is_some());
    home.ok(["prune"]);
    assert!(making.try_wait().unwrap().is_none(), "it ended by itself");
    assert_eq!(home.machines(), 1);
    assert_eq!(names(&home.state().join("pool/blobs/sha256")).len(), 1);
    run("kill", ["-INT".to_owned(), making.id().to_string()]);
    assert_eq!(making.wait_with_output().unwrap().status.code(), Some(130));
    home.ok(["prune"]);
    assert_eq!(names(&home.state().join("pool/blobs/sha256")), Vec::<String>::new());
    home.assert_nothing_left();
}
