//! The user's own cloud-init documents: what cloud-init takes by itself, the program takes, and knows what came of it.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;
use support::{Home, SOLO, in_guest, run, small_image, text, tiny, write};

fn image(home: &Home) -> PathBuf {
    let image = home.path("small.qcow2");
    small_image(&image, "64M");
    image
}

/// Runs the program with this on its standard input.
fn fed(home: &Home, args: &[&str], input: &[u8]) -> Output {
    let mut child = home.virga(args);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that reads nothing closes it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A document of a guest's seed.
fn seed(home: &Home, name: &str, document: &str) -> String {
    let image = std::fs::read(home.state().join("guests").join(name).join("seed.img")).unwrap();
    let files = virga::seed::iso::read_iso(&image).unwrap();
    text(&files.into_iter().find(|(file, _)| file == document).unwrap().1)
}

fn record(home: &Home, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(home.state().join("guests").join(name).join("guest.json")).unwrap()).unwrap()
}

#[test]
fn what_is_piped_in_is_read() {
    let home = Home::with_key();
    let image = image(&home);
    let key = std::fs::read_to_string(home.path("home/.ssh/id_ed25519.pub")).unwrap();
    for (option, document, input, there) in [
        ("--user-data", "user-data", "#cloud-config\nruncmd: [piped]\n", "piped"),
        ("--meta-data", "meta-data", "instance-id: piped\n", "piped"),
        ("--network-config", "network-config", "version: 2\nethernets: {piped: {}}\n", "piped"),
        ("--run-script-once", "user-data", "#!/bin/sh\necho piped\n", "echo piped"),
        ("--ssh-public-key-file", "meta-data", key.as_str(), key.split(' ').nth(1).unwrap()),
    ] {
        // By the usual sign, and by the name that shells give what they pipe in.
        for path in ["-", "/dev/stdin"] {
            let args = ["create", "g", "--no-start", "--image", image.to_str().unwrap(), option, path];
            let output = fed(&home, &args, input.as_bytes());
            assert!(output.status.success(), "{option} {path}: {}", text(&output.stderr));
            assert!(seed(&home, "g", document).contains(there), "{option} {path}");
            if option == "--ssh-public-key-file" {
                // What was piped in is no file to log in with: the guest keeps a copy, beside virga's own key.
                let own = home.state().join("ssh/id_ed25519");
                assert_eq!(record(&home, "g")["identities"], serde_json::json!([own, "keys/1.pub"]));
                let kept = std::fs::read_to_string(home.state().join("guests/g/keys/1.pub")).unwrap();
                assert!(kept.contains(there), "{kept}");
            }
            home.ok(["destroy", "g"]);
        }
    }
    home.assert_nothing_left();
}

/// Two at once: each has a pipe of its own.
#[test]
fn what_a_shell_substitutes_is_read() {
    let home = Home::with_key();
    let image = image(&home);
    let line = "exec \"$0\" create g --no-start --image \"$1\" --user-data <(printf '#cloud-config\\nruncmd: [one]\\n') \
                --meta-data <(echo instance-id: two)";
    let mut shell = home.beside("bash");
    let shell = shell.args(["-c", line, support::VIRGA]).arg(&image).env("HOME", home.path("home"));
    let output = shell.env("VIRGA_HOME", home.state()).env("VIRGA_RUNTIME_DIR", home.path("run")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(seed(&home, "g", "user-data").contains("one"));
    assert_eq!(record(&home, "g")["instance"], "two");
    home.ok(["destroy", "g"]);
}

#[test]
fn standard_input_is_for_one_option() {
    let home = Home::with_key();
    let image = image(&home);
    let create = ["create", "g", "--no-start", "--image", image.to_str().unwrap()];
    for (first, second) in [
        ("--user-data", "--user-data"),
        ("--user-data", "--meta-data"),
        ("--run-script-once", "--network-config"),
        ("--user-data", "--ssh-public-key-file"),
    ] {
        let args = [&create[..], &[first, "-", second, "-"]].concat();
        let output = fed(&home, &args, b"#!/bin/sh\n");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(first) && error.contains(second) && error.contains("hint: "), "{error}");
    }
    let large = vec![b' '; (16 << 20) + 1];
    let output = fed(&home, &[&create[..], &["--user-data", "-"]].concat(), &large);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("'--user-data -'"), "{}", text(&output.stderr));
    // Nothing is there to be read: as an empty file.
    home.ok([&create[..], &["--user-data", "-"]].concat());
    home.ok(["destroy", "g"]);
    home.assert_nothing_left();
}

/// Whoever pipes something in that does not come can still leave.
#[test]
fn waiting_for_standard_input_can_be_interrupted() {
    let home = Home::with_key();
    let image = image(&home);
    let mut child = home.virga(["create", "g", "--no-start", "--image", image.to_str().unwrap(), "--user-data", "-"]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than a pipe holds: it is at the reading.
    let mut silent = child.stdin.take().unwrap();
    silent.write_all(&vec![b' '; 1 << 20]).unwrap();
    run("kill", ["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap();
    drop(silent);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    home.assert_nothing_left();
}

#[test]
fn an_instance_id_of_the_users_own_is_recorded_and_stays_with_the_guest() {
    let home = Home::with_key();
    let image = image(&home);
    let create = ["create", "one", "--no-start", "--image", image.to_str().unwrap()];
    write(&home.path("own"), "instance-id: 0815\nlocal-hostname: one\n");
    write(&home.path("none"), "instance-id:\n");
    home.ok([&create[..], &["--meta-data", "own"]].concat());
    assert_eq!(record(&home, "one")["instance"], "0815");
    assert_eq!(home.json(["info", "one"])["instance_id"], "0815");
    assert!(home.ok(["info", "one"]).contains("0815"));
    home.ok(["rename", "one", "two"]);
    assert_eq!(record(&home, "two")["instance"], "0815");
    assert!(seed(&home, "two", "meta-data").contains("0815"));
    // A copy is somebody else.
    home.ok(["clone", "two", "three"]);
    let three = record(&home, "three");
    assert!(three.get("instance").is_none());
    assert!(seed(&home, "three", "meta-data").contains(three["plan"]["id"].as_str().unwrap()));
    home.ok([&create[..], &["--meta-data", "none"]].concat());
    let one = record(&home, "one");
    assert!(
        one.get("instance").is_none() && seed(&home, "one", "meta-data").contains(one["plan"]["id"].as_str().unwrap())
    );
    for name in ["one", "two", "three"] {
        home.ok(["destroy", name]);
    }
}

/// What cannot be known is said when the guest is made, not when it does not let anyone in.
#[test]
fn users_that_only_the_guest_knows_are_told_of() {
    let home = Home::with_key();
    let image = image(&home);
    write(&home.path("j"), "## template: jinja\n#cloud-config\nusers:\n- name: {{ v1.region }}\n");
    let output = home.output(["create", "g", "--no-start", "--image", image.to_str().unwrap(), "--user-data", "j"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("'j'") && said.contains("'users'"), "{said}");
    home.ok(["destroy", "g"]);
}

/// Its id and its host keys are the user's own, and are waited for and known.
#[test]
fn a_guest_with_an_identity_of_the_users_own_is_ready() {
    let home = Home::with_key();
    let mut keys = String::new();
    for (name, options) in [("rsa", ["-t", "rsa", "-b", "2048"]), ("ecdsa", ["-t", "ecdsa", "-b", "384"])] {
        let path = home.path(name);
        run("ssh-keygen", ["-q", "-N", "", "-f", path.to_str().unwrap()].iter().chain(&options));
        let lines = std::fs::read_to_string(&path).unwrap().replace('\n', "\n    ");
        keys.push_str(&format!("  {name}_private: |\n    {}\n", lines.trim_end()));
    }
    write(&home.path("meta-data"), "instance-id: iid-local01\n");
    let user_data = format!("#cloud-config\nssh_keys:\n{keys}");
    let image = tiny().to_str().unwrap();
    let args = ["create", "g", "--image", image, "--meta-data", "meta-data", "--user-data", "-"];
    let output = fed(&home, &[&args[..], &SOLO[..]].concat(), user_data.as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
    home.ok(["wait", "g", "--timeout", "20m"]);
    assert_eq!(
        in_guest(&home, "g", "cat /var/lib/cloud/data/instance-id; ls /etc/ssh | grep -c _key"),
        "iid-local01\n2\n"
    );
    let known = std::fs::read_to_string(home.state().join("guests/g/known_hosts")).unwrap();
    assert!(known.contains(" ssh-rsa ") && known.contains(" ecdsa-sha2-nistp384 "), "{known}");
}
