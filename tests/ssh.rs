//! `virga ssh`, into clones of a template and tiny guests: what is tested here is not the boot.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::Read as _;
use std::process::Stdio;

use support::{Home, LONG, Mirror, SOLO, WARM, image, in_guest, os_release, run, sha256, text, tiny, wait_for, write};

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

/// A stream that says nothing of the image's user but a wrong name, a user whose only key has a passphrase, and nobody
/// who waits.
#[test]
fn the_first_login_waits_and_finds_out_who_is_let_in() {
    let home = Home::new();
    std::fs::create_dir(home.path("home/.ssh")).unwrap();
    let key = home.path("home/.ssh/id_ed25519");
    run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "secret", "-f", key.to_str().unwrap()]);
    let user = os_release("ID");
    let other = if user == "ubuntu" { "debian" } else { "ubuntu" };
    let mirror = Mirror::with_image(&home, tiny(), &[&format!("os={other}"), "release=one", "version=1"]);
    home.ok(mirror.sync_args());
    let created = home.output(["create", "one", "release=one"].iter().chain(&SOLO));
    let said = text(&created.stderr);
    assert!(created.status.success() && said.contains("has a passphrase"), "{said}");
    assert!(said.contains("virga's own key gets in as well"), "{said}");

    let output = home.output(["ssh", "--timeout", "20m", "one", "--", "id", "-un"]);
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), format!("{user}\n"), "{said}");
    assert!(said.contains("one: the SSH server") && said.contains(&format!("the user of 'one' is '{user}'")), "{said}");
    assert_eq!(home.json(["info", "one"])["user"], user.as_str());
    options_are_sshs_or_refused(&home);

    // Once more, for it is another start.
    home.ok(["restart", "one"]);
    assert_eq!(in_guest(&home, "one", "id -un"), format!("{user}\n"));
    home.ok(["restart", "one"]);
    assert_eq!(home.ok(["exec", "-T", "one", "id", "-un"]), format!("{user}\n"));
    home.ok(["destroy", "one"]);
    drop(mirror);
    home.assert_nothing_left();
}

/// The same of a clone, which is not let in by cloud-init but by what it is told: its own configuration knows its user.
#[test]
fn a_clone_knows_who_its_user_is() {
    let home = Home::with_key();
    let user = os_release("ID");
    let other = if user == "ubuntu" { "debian" } else { "ubuntu" };
    let mirror = Mirror::with_image(&home, image(), &[&format!("os={other}"), "release=one", "version=1"]);
    home.ok(mirror.sync_args());
    let output = home.output(["create", "one", "release=one"].iter().chain(&WARM));
    let said = text(&output.stderr);
    assert!(output.status.success() && !said.contains("starting cold"), "{said}");
    assert_eq!(in_guest(&home, "one", "id -un"), format!("{user}\n"));
    assert_eq!(home.json(["info", "one"])["user"], user.as_str(), "{said}");
    home.ok(["destroy", "one"]);
    drop(mirror);
    home.assert_nothing_left();
}

fn options_are_sshs_or_refused(home: &Home) {
    for refused in [&["-p", "22"][..], &["-F", "none"], &["-J", "host"], &["-4"], &["-NM"]] {
        let error = home.fails(2, ["ssh", "one"].iter().chain(refused));
        assert!(error.contains("virga ssh-config --install") && error.contains("'--'"), "{error}");
    }
    let error = home.fails(2, ["ssh", "one", "-z"]);
    assert!(error.contains("'-- -z'"), "{error}");
    home.ok(["ssh", "-A", "one", "-C", "-o", "LogLevel=ERROR", "-T", "--", "true"]);
    assert_eq!(
        home.ok(["ssh", "one", "echo", "-n", "-L", "--", "x"]),
        "-L -- x",
        "behind the command they are its own"
    );

    // A port of ours leads to the guest's own SSH server for as long as the command takes.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{port}:127.0.0.1:22");
    let mut child = home.virga(["ssh", "one", "-L", &forward, "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 8];
    wait_for("the port", LONG, || {
        let there = std::net::TcpStream::connect(("127.0.0.1", port));
        there.and_then(|mut stream| stream.read_exact(&mut said)).is_ok()
    });
    assert_eq!(text(&said), "SSH-2.0-");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Ready is a guest whose next login works: not one that is about to go down.
#[test]
fn a_guest_that_restarts_by_itself_is_ready_after_that() {
    let home = Home::with_key();
    let user_data = |name: &str, mode: &str| {
        let text = format!("#cloud-config\nbootcmd:\n- echo boot >>/var/lib/boots\npower_state:\n  mode: {mode}\n");
        write(&home.path(name), &text);
        home.ok(["create", name, "--image", tiny().to_str().unwrap(), "--user-data", name].iter().chain(&SOLO));
    };
    user_data("again", "reboot");
    home.ok(["wait", "again", "--timeout", "20m"]);
    assert_eq!(in_guest(&home, "again", "cat /var/lib/boots"), "boot\nboot\n");
    home.ok(["destroy", "again"]);
    user_data("off", "poweroff");
    let error = home.fails(1, ["wait", "off", "--timeout", "20m"]);
    // How far it had come by then, and whether a login was quick enough to see it, is the machine's affair.
    assert!(error.contains("the guest ended: "), "{error}");
    home.ok(["destroy", "off"]);
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
