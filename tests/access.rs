//! Guests for programs that are not virga: the real ssh, scp, rsync and
//! Ansible get in by what virga writes for them.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::process::Command;

use support::{Home, WARM, image, text, write};

/// A program with the environment of the user whose home this is, which must succeed; what it says.
#[track_caller]
fn as_user(home: &Home, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("HOME", home.path("home"))
        .env("VIRGA_HOME", home.state())
        .env("VIRGA_RUNTIME_DIR", home.path("run"))
        .env("ANSIBLE_LOCAL_TEMP", home.path("ansible"))
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed by this test (packaging/install-deps): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn foreign_programs_reach_guests_by_name() {
    let home = Home::with_key().warm();
    for name in ["one", "two"] {
        home.ok(["create", name, "--image", image().to_str().unwrap()].into_iter().chain(WARM));
        // OpenSSH by itself does not wait for a login, as `virga ssh` does.
        home.ok(["wait", name]);
    }
    let user = home.path("home/.ssh/config");
    write(&user, "Host elsewhere\n    Port 1\n");
    home.ok(["ssh-config", "--install"]);
    home.ok(["ssh-config", "--install"]);
    let config = user.to_str().unwrap();
    let written = std::fs::read_to_string(&user).unwrap();
    assert_eq!(written.matches("Include").count(), 1, "{written}");
    let port = |host| {
        as_user(&home, "ssh", &["-G", "-F", config, host]).lines().find(|l| l.starts_with("port ")).map(str::to_owned)
    };
    assert_eq!(port("elsewhere").unwrap(), "port 1", "what was there stays what it was");
    assert_eq!(port("nobody").unwrap(), "port 22");

    assert_eq!(as_user(&home, "ssh", &["-F", config, "one.virga", "hostname"]), "one\n");
    let file = home.path("file");
    write(&file, "content\n");
    let path = file.to_str().unwrap();
    as_user(&home, "scp", &["-q", "-F", config, path, "two.virga:here"]);
    let shell = format!("ssh -F {config}");
    as_user(&home, "rsync", &["-e", &shell, "two.virga:here", home.path("back").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(home.path("back")).unwrap(), "content\n");
    as_user(&home, "rsync", &["-e", &shell, path, "one.virga:there"]);
    assert_eq!(home.ok(["ssh", "one", "--", "cat there"]), "content\n");

    // Another key under its name is refused, as by virga itself.
    let known = home.state().join("guests/one/known_hosts");
    let wrong = std::fs::read_to_string(home.state().join("guests/two/known_hosts")).unwrap();
    std::fs::write(&known, wrong.replace("virga-two", "virga-one")).unwrap();
    let output = Command::new("ssh").args(["-F", config, "one.virga", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("Host key verification failed"), "{}", text(&output.stderr));

    ansible(&home);

    home.ok(["ssh-config", "--uninstall"]);
    assert_eq!(std::fs::read_to_string(&user).unwrap(), "Host elsewhere\n    Port 1\n");
    home.fails(3, ["ssh-config", "nobody"]);
    home.fails(3, ["inventory", "--host", "nobody"]);
    home.ok(["destroy", "one", "two"]);
    assert_eq!(home.ok(["ssh-config"]), "");
    home.assert_nothing_left();
}

/// The guest `two`, whose keys are right: as a script's answer and as a file.
fn ansible(home: &Home) {
    let script = home.path("virga-inventory");
    std::os::unix::fs::symlink(support::VIRGA, &script).unwrap();
    let file = home.path("hosts.json");
    home.ok(["inventory", "--write", file.to_str().unwrap()]);
    for inventory in [&script, &file] {
        let inventory = inventory.to_str().unwrap();
        let graph = as_user(home, "ansible-inventory", &["-i", inventory, "--graph", "driver_qemu"]);
        assert!(graph.contains("one") && graph.contains("two"), "{graph}");
        let said = as_user(home, "ansible", &["-i", inventory, "two", "-m", "command", "-a", "hostname"]);
        assert!(said.contains("rc=0") && said.lines().any(|line| line == "two"), "{said}");
    }
}
