use super::*;
use crate::base::cmd::{Cmd, Output, Running};
use crate::base::fs;
use crate::base::poll::wait_for;
use crate::ssh::testing::put;

const HEALTHY: &str = r#"{"v1": {"datasource": "DataSourceNoCloud", "stage": null,
    "init": {"errors": [], "recoverable_errors": {}, "start": 1.0, "finished": 2.0},
    "modules-final": {"errors": [], "start": 1.0, "finished": 2.0}}}"#;
const RESULT: &str = r#"{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}"#;

fn said(status: &str, result: &str) -> String {
    format!("virga:in\nvirga:status\n{status}\nvirga:end\nvirga:result\n{result}\nvirga:end\n")
}

fn result_of(status: &str, result: &str) -> Outcome {
    match Report::read(said(status, result).as_bytes()).end {
        Some(End::Result(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_three_outcomes() {
    assert_eq!(result_of(HEALTHY, RESULT), Outcome::Done);

    let degraded = r#"{"v1": {"stage": null, "init": {"errors": [], "recoverable_errors": {
        "WARNING": ["Running module locale (<module 'cloudinit.config.cc_locale' from '/x'>) failed"],
        "DEPRECATED": ["a\n  b"]}}}}"#;
    let Outcome::Degraded(troubles) = result_of(degraded, RESULT) else { panic!() };
    assert_eq!(troubles[0].module.as_deref(), Some("locale"));
    assert_eq!(troubles[1].to_string(), "in stage init: deprecated: a b");

    // As cloud-init 22.4 writes it, which knows no recoverable errors.
    let text = r#"('scripts_user', RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands'))"#;
    let failed =
        format!(r#"{{"v1": {{"stage": null, "init": {{"errors": []}}, "modules-final": {{"errors": ["{text}"]}}}}}}"#);
    let result = format!(r#"{{"v1": {{"datasource": null, "errors": ["{text}"]}}}}"#);
    let Outcome::Error(troubles) = result_of(&failed, &result) else { panic!() };
    assert_eq!(troubles.len(), 1);
    assert_eq!(
        troubles[0].to_string(),
        "module scripts_user in stage modules-final: \
         RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands')"
    );
    let Outcome::Error(troubles) = result_of("", &result) else { panic!() };
    assert_eq!(troubles[0].stage, "unknown", "without a status the result alone counts");
}

#[test]
fn hostile_and_broken_answers() {
    for bad in ["", "{", "[]", r#"{"v1": 3}"#, r#"{"v1": {"errors": "x"}}"#] {
        assert_eq!(Report::read(said(HEALTHY, bad).as_bytes()).end, Some(End::Unreadable), "{bad}");
    }
    let nasty = r#"{"v1": {"errors": ["\u001b[31m('x', ", 3, "('"]}}"#;
    let Outcome::Error(troubles) = result_of("[]", nasty) else { panic!() };
    assert!(troubles.iter().all(|trouble| !trouble.to_string().contains('\u{1b}')));
    // Every text of the guest's, wherever it stands.
    let bad = r"x\u001b]52;c;aGk=\u0007\n::error file=a.c::y\u202e";
    let status = format!(
        r#"{{"v1": {{"stage": "{bad}", "{bad}": {{"errors": ["('{bad}', {bad})"], "recoverable_errors": {{"{bad}": ["{bad}"]}}}}}}}}"#
    );
    let report = Report::read(said(&status, RESULT).as_bytes());
    let Some(End::Result(Outcome::Error(troubles))) = report.end else { panic!() };
    let texts = troubles.iter().map(ToString::to_string).chain(report.stage);
    let texts: Vec<String> = texts.collect();
    assert_eq!(texts.len(), 3);
    for text in texts {
        assert!(text.contains("::error file=a.c::y") && !text.contains(is_unfit), "{text:?}");
    }
    let long = format!(r#"{{"v1": {{"stage": "{}"}}}}"#, "x".repeat(1 << 20));
    assert_eq!(Report::read(said(&long, RESULT).as_bytes()).stage.unwrap().len(), 300);
    let whole = said(HEALTHY, RESULT);
    for cut in 0..whole.len() - 1 {
        assert_eq!(Report::read(&whole.as_bytes()[..cut]).end, None, "not before it is whole: {cut}");
    }
}

#[test]
fn what_the_login_shell_says_is_passed_over() {
    let report = Report::read(
        b"Welcome!\nvirga:in\nvirga:other i-1\x07\nvirga:status\n{\"v1\":{\"stage\":\"init\"}}\nvirga:end\n",
    );
    assert!(report.logged_in);
    assert_eq!(report.stage.as_deref(), Some("init"));
    assert_eq!(report.other_instance.as_deref(), Some("i-1"));
    assert_eq!(report.end, None);
}

fn end_of(running: &mut Running) -> Output {
    let mut output = None;
    wait_for("the script's end", || {
        output = running.poll().unwrap();
        output.is_some()
    });
    output.unwrap()
}

/// A result is not taken for ours before it is, and then at the very next look.
#[test]
fn one_line_is_one_look() {
    let folder = tempfile::tempdir().unwrap();
    let (id, root) = ("i-1", folder.path().to_str().unwrap());
    let put = |name: &str, text: &str| put(folder.path(), name, text);
    put("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-config"}}"#);
    put("run/cloud-init/result.json", RESULT);
    put("var/lib/cloud/data/instance-id", "other\n");
    let mut running = Cmd::new("sh").args(["-c", &script(root, id)]).spawn().unwrap();
    running.send(b"status\n");
    wait_for("its stage", || running.peek(|said| Report::read(said).stage).is_some());
    put("run/cloud-init/status.json", HEALTHY);
    put("var/lib/cloud/data/instance-id", &format!("{id}\n"));
    // Its last look may have been before that, or after: a line more is enough for either.
    running.send(b"\n");
    assert_eq!(Report::read(&end_of(&mut running).stdout).end, Some(End::Result(Outcome::Done)));
}

/// The script in every POSIX shell that is here.
#[test]
fn the_script_reads_the_documented_files() {
    let id = "00000000-0000-4000-8000-000000000001";
    for shell in ["dash", "bash", "sh"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let put = |name: &str, text: &str| put(folder.path(), name, text);
        let run = || {
            let mut running = Cmd::new(shell).args(["-c", &script(root, id)]).spawn().unwrap();
            running.feed(b"\nstatus\n\nstatus\n".to_vec());
            let output = end_of(&mut running);
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{shell}");
            (Report::read(&output.stdout), output.text())
        };
        assert_eq!(run().0.end, Some(End::Absent));
        put("etc/cloud/cloud.cfg", "");
        assert_eq!(run().0, Report { logged_in: true, ..Report::default() }, "not begun");
        put("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-config"}}"#);
        let (report, text) = run();
        assert_eq!((report.stage.as_deref(), report.end), (Some("modules-config"), None));
        assert_eq!(text.matches("virga:status").count(), 1, "only when it changed");
        put("run/cloud-init/status.json", HEALTHY);
        put("run/cloud-init/result.json", RESULT);
        assert_eq!(run().0.other_instance, None, "no instance id at all");
        put("var/lib/cloud/data/instance-id", "other\n");
        assert_eq!(run().0.other_instance.as_deref(), Some("other"));
        put("var/lib/cloud/data/instance-id", &format!("{id}\n"));
        assert_eq!(run().0.end, Some(End::Result(Outcome::Done)));
        fs::remove_file(&folder.path().join("run/cloud-init/result.json")).unwrap();
        put("etc/cloud/cloud-init.disabled", "");
        assert_eq!(run().0.end, Some(End::Disabled));
    }
}

#[test]
fn the_script_survives_one_pair_of_quotes() {
    let script = script("", "it's \\ my 'id'");
    assert!(!script.contains('\'') && !script.contains('\\'));
}

/// Whatever a user calls an instance, in every POSIX shell that is here: it is known by its own name, and another is not.
#[test]
fn any_instance_id_is_known_again() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| put(folder.path(), name, text);
    put("run/cloud-init/status.json", HEALTHY);
    put("run/cloud-init/result.json", RESULT);
    for id in
        ["i-0abc", "iid-local01", "12", "~me", "it's", "a b; exit", " x ", "a\\b$HOME`ls`", "[!a]", "über", "!!", "*"]
    {
        for shell in ["dash", "bash", "sh"] {
            let end = |there: &str| {
                put("var/lib/cloud/data/instance-id", &format!("{there}\n"));
                let script = script(folder.path().to_str().unwrap(), id);
                assert!(!script.contains(['\'', '\\']), "{id}");
                let mut running = Cmd::new(shell).args(["-c", &script]).spawn().unwrap();
                running.feed(b"\n".to_vec());
                Report::read(&end_of(&mut running).stdout).end
            };
            assert_eq!(end(id), Some(End::Result(Outcome::Done)), "{id} in {shell}");
            if id.chars().any(char::is_alphanumeric) {
                assert_eq!(end("who-else"), None, "{id} in {shell}");
            }
        }
    }
}

/// `power_state` is carried out by a process of cloud-init's that waits for the rest of it to be gone; what others left that
/// only speak of cloud-init may stay for ever.
#[test]
fn a_result_is_not_the_end() {
    let id = crate::base::plan::InstanceId::generate().unwrap();
    let stopping = "systemctl() { echo stopping; }\n";
    let running = "systemctl() { echo running; }\nbusctl() { echo b false; }\n";
    // Without D-Bus root alone is told.
    let to_root = "systemctl() { return 1; }\nsudo() { [ $1 = -n ] && echo stopping; }\n";
    let gone = "systemctl() { [ ! -e $r/asked ] || return; echo running; : >$r/asked; }\nsudo() { return 1; }\n";
    let never = "systemctl() { return 1; }\nsudo() { return 1; }\nbusctl() { return 1; }\n";
    let prepares = "systemctl() { echo running; }\nbusctl() { echo b true; }\n";
    for (before, command, settled) in [
        (running, "/usr/bin/python3\0/usr/bin/cloud-init\0modules\0--mode=final\0", false),
        (running, "/usr/bin/python3\0/usr/bin/cloud-init\0--all-stages\0", false),
        (stopping, "/sbin/init\0", false),
        (to_root, "/sbin/init\0", false),
        (prepares, "/sbin/init\0", false),
        (gone, "/sbin/init\0", false),
        (never, "/sbin/init\0", true),
        (running, "tee\0-a\0/var/log/cloud-init-output.log\0", true),
        (running, "/bin/sh\0/var/lib/cloud/instance/scripts/runcmd\0", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| put(folder.path(), name, text);
        put("run/cloud-init/status.json", HEALTHY);
        put("run/cloud-init/result.json", RESULT);
        put("var/lib/cloud/data/instance-id", &format!("{id}\n"));
        put("proc/42/cmdline", command);
        // Its own command line is there too.
        let script = format!("{before}{}", script(folder.path().to_str().unwrap(), id.as_str()));
        put("proc/43/cmdline", &format!("sh\0-c\0{script}\0"));
        let mut running = Cmd::new("sh").args(["-c", &script]).spawn().unwrap();
        running.feed(b"\n\n".to_vec());
        let output = end_of(&mut running);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
        let report = Report::read(&output.stdout);
        assert_eq!((report.end, report.settled), (Some(End::Result(Outcome::Done)), settled), "{command:?}");
    }
}

#[test]
fn whom_a_guest_names() {
    let named = |said: &str| user_in(said.as_bytes()).map(|user| user.to_string());
    // As cloud-init's module `ssh` puts it before root's key, since 0.7 and before.
    for (said, user) in [
        ("Please login as the user \"debian\" rather than the user \"root\".\n\n", Some("debian")),
        ("Please login as the user \"ec2-user\" rather than the user \"root\".\n", Some("ec2-user")),
        ("Please login as the ubuntu user rather than root user.\n", Some("ubuntu")),
        ("Please login as the user \"NONE\" rather than the user \"root\".\n", None),
        // Not whole yet, and what attacks.
        ("Please login as the user \"deb", None),
        ("Please login as the user \"-oProxyCommand=reboot\" rather than the user \"root\".\n", None),
        ("Please login as the user \"a b\" rather than the user \"root\".\n", None),
        ("Please login as the user \"\u{1b}[31m\" rather than\n", None),
        // Root is let in.
        ("Welcome!\nvirga:user cloud\nvirga:user other\nvirga:root\n", Some("cloud")),
        ("virga:user -x\nvirga:root\n", Some("root")),
        ("virga:root\n", Some("root")),
        ("virga:user cloud\n", None),
        ("virga:root", None),
        ("Permission denied\n", None),
        ("", None),
    ] {
        assert_eq!(named(said).as_deref(), user, "{said:?}");
    }
    for shell in ["dash", "bash", "sh"] {
        let output = Cmd::new(shell).args(["-c", WHO]).run().unwrap();
        assert!(user_in(&output.stdout).is_some(), "{}", output.text());
    }
    assert!(!WHO.contains('\'') && !WHO.contains('\\'));
}
