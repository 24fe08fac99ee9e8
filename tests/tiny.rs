//! The tiny guest itself: what other tests take for granted in it.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::time::Duration;

use support::{Home, SOLO, clock_is_right, in_guest, tiny, wait_for, write};

const USER_DATA: &str = "#cloud-config
write_files:
- path: /etc/from/user-data
  content: |
    it's: here

      \"further in\"
  permissions: '0640'
- {path: /etc/second, content: \"a\\tb\\n\", owner: 'nobody:nogroup'}
runcmd:
- [sh, -c, 'echo \"$0\" >>/var/lib/from-runcmd', \"two words\"]
- echo line >>/var/lib/from-runcmd
";

/// From its seed to its end, twice: what is for the first start is not done at the second.
#[test]
fn a_tiny_guest_is_what_its_seed_says() {
    let home = Home::with_key();
    write(&home.path("user-data"), USER_DATA);
    write(&home.path("once.sh"), "#!/bin/sh\necho once >>/var/lib/from-script\n");
    write(&home.path("odd"), "#cloud-config\npackages: [git]\n");
    let image = tiny().to_str().unwrap();
    let create =
        |name: &str, more: &[&str]| home.ok(["create", name, "--image", image].iter().chain(&SOLO).chain(more));
    create("one", &["--user-data", "user-data", "--run-script-once", "once.sh"]);
    create("odd", &["--user-data", "odd"]);
    home.ok(["wait", "one", "--timeout", "20m"]);

    // What it cannot do it says, and does not call itself ready.
    let error = home.fails(1, ["wait", "odd", "--timeout", "20m"]);
    assert!(error.contains("packages"), "{error}");
    home.ok(["destroy", "odd"]);

    assert_eq!(in_guest(&home, "one", "hostname; sudo -n id -u; sudo -n hostname"), "one\n0\none\n");
    let key = in_guest(&home, "one", "sudo cat /etc/ssh/ssh_host_ed25519_key.pub");
    let known = std::fs::read_to_string(home.state().join("guests/one/known_hosts")).unwrap();
    assert!(known.contains(key.split(' ').nth(1).unwrap()), "its host key is not the one made for it");
    let files = "sudo cat /etc/from/user-data /etc/second; sudo stat -c '%a %U' /etc/from/user-data /etc/second";
    assert_eq!(in_guest(&home, "one", files), "it's: here\n\n  \"further in\"\na\tb\n640 root\n644 nobody\n");
    let ran = "cat /var/lib/from-runcmd /var/lib/from-script";
    assert_eq!(in_guest(&home, "one", ran), "two words\nline\nonce\n");
    let route = in_guest(&home, "one", "ip -4 route show default; cat /etc/resolv.conf");
    assert!(route.contains("10.0.2.2") && route.contains("nameserver"), "{route}");

    // The clock is set as for a guest that was held.
    home.ok(["suspend", "one"]);
    std::thread::sleep(Duration::from_secs(2));
    home.ok(["resume", "one"]);
    clock_is_right(&home, "one");
    files_come_and_go(&home);

    let boot = in_guest(&home, "one", "cat /proc/sys/kernel/random/boot_id");
    home.ok(["stop", "one"]);
    assert_eq!(home.json(["list"])[0]["state"], "stopped");
    home.ok(["start", "one"]);
    home.ok(["wait", "one", "--timeout", "20m"]);
    let now = in_guest(&home, "one", "cat /proc/sys/kernel/random/boot_id");
    assert_ne!(now, boot);
    assert_eq!(in_guest(&home, "one", ran), "two words\nline\nonce\n", "something ran at the second start too");
    assert_eq!(in_guest(&home, "one", "cat copied"), "content\n", "its disk is another one");
    wait_for("a login on its console", support::LONG, || home.ok(["console", "one"]).contains("one login:"));

    // It restarts itself. The session may end before its command does.
    home.output(["ssh", "one", "--", "sudo systemctl reboot"]);
    wait_for("another boot", support::LONG, || {
        let output = home.output(["ssh", "one", "--", "cat /proc/sys/kernel/random/boot_id"]);
        output.status.success() && support::text(&output.stdout) != now
    });
    home.ok(["destroy", "one"]);
    home.assert_nothing_left();
}

fn files_come_and_go(home: &Home) {
    write(&home.path("copied"), "content\n");
    home.ok(["cp", "copied", "one:"]);
    home.ok(["cp", "one:copied", "back"]);
    assert_eq!(std::fs::read_to_string(home.path("back")).unwrap(), "content\n");
    std::fs::create_dir(home.path("tree")).unwrap();
    write(&home.path("tree/it's"), "here\n");
    home.ok(["cp", "-r", "tree", "one:"]);
    assert_eq!(in_guest(home, "one", "cat tree/*; stat -c %U tree/* | grep -cx \"$(id -un)\""), "here\n1\n");

    // The programs of others, by what virga tells them.
    let config = home.path("ssh_config");
    write(&config, &home.ok(["ssh-config", "one"]));
    let config = config.to_str().unwrap();
    let there = home.path("there");
    support::run("scp", ["-q", "-F", config, "one.virga:copied", there.to_str().unwrap()]);
    let shell = format!("ssh -F {config}");
    support::run("rsync", ["-e", &shell, there.to_str().unwrap(), "one.virga:by-rsync"]);
    assert_eq!(in_guest(home, "one", "cat by-rsync"), "content\n");
}
