//! Two commands at once.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Stdio};

use support::{Holder, Home, SOLO, small_image, text};

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
