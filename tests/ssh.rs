//! `virga ssh`, into clones of a template: what is tested here is not the boot.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::process::Stdio;

use support::{Home, WARM, image, sha256, text};

#[test]
fn ssh_knows_its_guest_and_passes_everything_on() {
    let home = Home::with_key().warm();
    for name in ["one", "two"] {
        home.ok(["create", name, "--image", image().to_str().unwrap()].into_iter().chain(WARM));
    }
    home.ok(["wait", "one", "--timeout", "20m"]);
    host_key_is_pinned(&home);
    ssh_keeps_stdin_and_exit_code(&home);
    files_come_and_go(&home);
    home.ok(["destroy", "one", "two"]);
    home.assert_nothing_left();
}

fn host_key_is_pinned(home: &Home) {
    let known = home.state().join("guests/one/known_hosts");
    let right = std::fs::read(&known).unwrap();
    let wrong = std::fs::read(home.state().join("guests/two/known_hosts")).unwrap();
    // The other guest's keys under this guest's alias: what a man in the middle would show.
    let alias = text(&right).split(' ').next().unwrap().to_owned();
    let swapped: String =
        text(&wrong).lines().map(|line| format!("{alias} {}\n", line.split_once(' ').unwrap().1)).collect();
    std::fs::write(&known, swapped).unwrap();
    let output = home.output(["ssh", "one", "--", "true"]);
    assert_eq!(output.status.code(), Some(255), "{}", text(&output.stderr));
    let error = home.fails(5, ["wait", "one", "--timeout", "20m"]);
    assert!(error.contains("host key"), "{error}");
    std::fs::write(&known, right).unwrap();
    home.ok(["ssh", "one", "--", "true"]);
}

/// As the guest's user, over the same pinned connection.
fn files_come_and_go(home: &Home) {
    let tree = home.path("tree");
    std::fs::create_dir(&tree).unwrap();
    let bytes: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(tree.join("it's"), &bytes).unwrap();
    home.ok(["cp", "-r", "tree", "one:"]);
    home.fails(1, ["cp", "-r", "tree", "one:"]);
    home.ok(["cp", "tree/it's", "one:/tmp/a b"]);
    let said = home.ok(["ssh", "one", "--", "cmp tree/*s '/tmp/a b' && stat -c '%U' tree/* && id -un"]);
    let (owner, user) = said.trim().split_once('\n').unwrap();
    assert_eq!(owner, user);
    home.fails(1, ["cp", "tree/it's", "one:/etc/it"]);
    home.fails(3, ["cp", "one:none", "."]);
    home.ok(["cp", "-r", "one:tree", "back"]);
    assert_eq!(std::fs::read(home.path("back/it's")).unwrap(), bytes);
}

fn ssh_keeps_stdin_and_exit_code(home: &Home) {
    use std::io::Write as _;
    assert_eq!(home.output(["ssh", "one", "--", "exit 42"]).status.code(), Some(42));
    let mut child =
        home.virga(["ssh", "one", "--", "sha256sum"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let bytes: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(home.path("sent"), &bytes).unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&bytes).unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout).split(' ').next().unwrap(), sha256(&home.path("sent")));
    // With a terminal on our side the guest's side has one too.
    let command = format!("{} ssh --tty one -- tty", support::VIRGA);
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &command, "/dev/null"]);
    let virga = home.virga([] as [&str; 0]);
    script.env_clear().envs(virga.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let shown = text(&script.output().unwrap().stdout);
    assert!(shown.contains("/dev/pts/"), "{shown}");
}
