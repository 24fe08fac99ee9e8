use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::base::poll::{LONG, wait_for};
use crate::base::{Kind, fs};
use crate::ssh::keys::{HostKeys, own_key};
use crate::ssh::known_hosts;
use crate::ssh::testing::{Sshd, put};

const RESULT: &str = r#"{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}"#;
const FAILED: &str = r#"{"v1": {"stage": null, "modules-final": {"errors": ["('scripts_user', RuntimeError('x'))"]}}}"#;
const DEGRADED: &str =
    r#"{"v1": {"stage": null, "init": {"errors": [], "recoverable_errors": {"WARNING": ["careful"]}}}}"#;

/// What sshd logs of a login that it lets in, and of one that it does not.
const ACCEPTED: &str = "Accepted publickey";
const DENIED: &str = "Connection closed by authenticating user";

#[derive(Default)]
struct Stages(Mutex<Vec<String>>);

impl Stage for Stages {
    fn stage(&self, text: &str) {
        let mut seen = self.0.lock().unwrap();
        if seen.last().is_none_or(|last| last != text) {
            seen.push(text.to_owned());
        }
    }
}

/// A guest: a real sshd, and a folder in place of its root file system.
struct Guest {
    sshd: Sshd,
    root: tempfile::TempDir,
    id: String,
    alive: AtomicBool,
    /// How often it was asked whether it lives, and how often the answer was no.
    asked: AtomicUsize,
    found_dead: AtomicUsize,
    login: Login,
    superuser: String,
    stages: Stages,
}

impl Guest {
    fn new(sshd: Sshd) -> Self {
        let (root, id) = (tempfile::tempdir().unwrap(), "i-0123".to_owned());
        let login = sshd.login();
        let guest = Guest {
            sshd,
            root,
            id,
            alive: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
            found_dead: AtomicUsize::new(0),
            login,
            superuser: "root".into(),
            stages: Stages::default(),
        };
        guest.put("etc/cloud/cloud.cfg", "");
        guest
    }

    fn put(&self, name: &str, text: &str) {
        put(self.root.path(), name, text);
    }

    /// What cloud-init leaves behind, the result last.
    fn finish(&self, status: &str, instance: &str) {
        self.put("var/lib/cloud/data/instance-id", &format!("{instance}\n"));
        self.put("run/cloud-init/status.json", status);
        self.put("run/cloud-init/result.json", RESULT);
    }

    /// Waits, with a limit that only a fault reaches.
    fn wait(&self, goal: Goal) -> Result<Ready> {
        self.wait_until(goal, &Deadline::after(LONG))
    }

    fn wait_until(&self, goal: Goal, deadline: &Deadline) -> Result<Ready> {
        let asked = Cell::new(0);
        let endpoint = || {
            asked.set(asked.get() + 1);
            Ok((asked.get() > 1).then_some(self.sshd.addr))
        };
        let alive = || {
            let alive = self.alive.load(Ordering::SeqCst);
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.found_dead.fetch_add(usize::from(!alive), Ordering::SeqCst);
            Ok(alive)
        };
        let request = WaitRequest {
            goal,
            deadline,
            endpoint: &endpoint,
            alive: &alive,
            login: &self.login,
            instance: &self.id,
            stage: &self.stages,
        };
        let waiter = Waiter::new(&request, self.root.path().to_str().unwrap());
        Waiter { superuser: &self.superuser, ..waiter }.run()
    }

    /// Waits to no avail: the deadline comes after what `event` waits for.
    fn wait_in_vain(&self, goal: Goal, event: impl FnOnce() + Send) -> Error {
        let over: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let then = || {
            event();
            over.store(true, Ordering::SeqCst);
        };
        let error = with(then, || self.wait_until(goal, &Deadline::called_by(over))).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut, "{error}");
        error
    }

    /// Until the user was told that this is waited for.
    fn told(&self, stage: &str) {
        wait_for(stage, || self.stages.0.lock().unwrap().iter().any(|told| told == stage));
    }

    /// Until all that had been done by now was looked at, in whatever stage the wait is.
    fn looked(&self) {
        // The first may have been under way; between that and the next there is a look.
        let asked = self.asked.load(Ordering::SeqCst);
        wait_for("two looks", || self.asked.load(Ordering::SeqCst) >= asked + 2);
    }
}

/// Runs `beside` while it waits.
fn with<T>(beside: impl FnOnce() + Send, wait: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        scope.spawn(beside);
        wait()
    })
}

#[test]
fn cloud_inits_three_results() {
    let guest = Guest::new(Sshd::start());
    let trouble = |stage: &str, module: Option<&str>, text: &str| {
        vec![cloud_init::Trouble { stage: stage.into(), module: module.map(str::to_owned), text: text.into() }]
    };
    for (status, outcome) in [
        ("{}", Outcome::Done),
        (DEGRADED, Outcome::Degraded(trouble("init", None, "warning: careful"))),
        (FAILED, Outcome::Error(trouble("modules-final", Some("scripts_user"), "RuntimeError('x')"))),
    ] {
        guest.finish(status, &guest.id);
        let ready = guest.wait(Goal::CloudInit).unwrap();
        assert_eq!(ready.outcome, Some(outcome));
        let goals: Vec<Goal> = ready.stages.iter().map(|(goal, _)| *goal).collect();
        assert_eq!(goals, [Goal::Boot, Goal::Ssh, Goal::CloudInit]);
        assert!(ready.stages.is_sorted_by_key(|(_, at)| *at));
    }
}

/// In the session that is open, and at the script's next look.
#[test]
fn the_answer_comes_soon_after_the_result() {
    let guest = Guest::new(Sshd::start());
    // A result of another instance must never pass.
    guest.finish(r#"{"v1": {"stage": "modules-config"}}"#, "somebody-else");
    let done = || {
        guest.told("cloud-init (modules-config)");
        guest.put("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-final"}}"#);
        guest.told("cloud-init (modules-final)");
        guest.put("run/cloud-init/status.json", "{}");
        guest.put("var/lib/cloud/data/instance-id", &guest.id);
    };
    let ready = with(done, || guest.wait(Goal::CloudInit)).unwrap();
    assert_eq!(ready.outcome, Some(Outcome::Done));
    assert_eq!(guest.sshd.logged(ACCEPTED), 1, "nothing is looked at by logging in again");
    let stages = guest.stages.0.into_inner().unwrap();
    let told = ["the guest's address", "the SSH server", "a login", "cloud-init"];
    assert_eq!(stages[..4], told);
}

#[test]
fn the_script_looks_ten_times_a_second_and_tells_its_stage_once() {
    let (mut pace, begun) = (Pace::default(), Instant::now());
    let asked: Vec<_> = (0..=2500)
        .step_by(10)
        .filter_map(|at| pace.due(begun + Duration::from_millis(at)).map(|line| (at, line)))
        .collect();
    assert!(asked.iter().map(|(at, _)| *at).eq((0..=2500).step_by(100)), "{asked:?}");
    let told: Vec<u64> = asked.iter().filter(|(_, line)| *line == b"status\n").map(|(at, _)| *at).collect();
    assert_eq!(told, [0, 1000, 2000]);
    assert!(asked.iter().all(|(_, line)| matches!(*line, b"status\n" | b"\n")));
    // However late it comes to it, it asks once and not for each that it missed.
    assert!(pace.due(begun + Duration::from_secs(60)).is_some());
    assert!(pace.due(begun + Duration::from_secs(60)).is_none());
}

#[test]
fn at_the_deadline_the_stage_and_the_last_trouble_are_told() {
    let guest = Guest::new(Sshd::start());
    guest.put("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-config"}}"#);
    let error = guest.wait_in_vain(Goal::CloudInit, || guest.told("cloud-init (modules-config)"));
    assert!(error.to_string().contains("could log in, but cloud-init (modules-config) was not through"), "{error}");

    // The script looks for a result before it tells its stage.
    guest.finish(r#"{"v1": {"stage": "modules-final"}}"#, "somebody-else");
    let error = guest.wait_in_vain(Goal::CloudInit, || guest.told("cloud-init (modules-final)"));
    assert!(error.causes()[0].contains("another instance: 'somebody-else'"), "{:?}", error.causes());

    let down = Guest::new(Sshd::down());
    let closed = || {
        wait_for("a connection", || down.sshd.turned_away() > 0);
        down.looked();
    };
    let error = down.wait_in_vain(Goal::Ssh, closed);
    assert!(error.to_string().ends_with("within 10m: no SSH server answered"), "{error}");
    assert!(error.causes()[0].contains("closed at once"), "{:?}", error.causes());
}

#[test]
fn a_dead_guest_ends_the_wait_at_once() {
    let (up, down) = (Guest::new(Sshd::start()), Guest::new(Sshd::down()));
    let in_session = || up.told("cloud-init");
    let probed = || wait_for("a connection", || down.sshd.turned_away() > 0);
    let cases: [(&Guest, &(dyn Fn() + Sync)); 2] = [(&up, &in_session), (&down, &probed)];
    for (guest, event) in cases {
        let die = || {
            event();
            // It is asked again and again in this stage too, not when the stage changes.
            guest.looked();
            guest.alive.store(false, Ordering::SeqCst);
        };
        let error = with(die, || guest.wait(Goal::CloudInit)).unwrap_err();
        assert_eq!(guest.found_dead.load(Ordering::SeqCst), 1, "the first answer counts");
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().starts_with("the guest ended: "), "{error}");
    }
}

#[test]
fn a_foreign_host_key_is_refused_at_once() {
    let guest = Guest::new(Sshd::start());
    let other = HostKeys::generate("x").unwrap();
    known_hosts::write(&guest.login.known_hosts, "virga-test", &other.public_lines()).unwrap();
    let error = guest.wait(Goal::CloudInit).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.causes()[0].contains("Host key verification failed"), "{:?}", error.causes());
    let told = guest.stages.0.lock().unwrap().clone();
    assert_eq!(told, ["the guest's address", "the SSH server", "a login"], "and the server is not probed again");
    assert!(guest.wait(Goal::Boot).is_ok(), "the banner alone says nothing about the key");
}

#[test]
fn refused_logins_are_tried_again() {
    let mut guest = Guest::new(Sshd::start());
    let late = own_key(&guest.sshd.path("late")).unwrap();
    guest.login.identities = vec![late.path];
    let refused_again = || {
        // The second begins when the first is over.
        let before = guest.sshd.logged(DENIED);
        wait_for("two refused logins", || guest.sshd.logged(DENIED) >= before + 2);
    };
    let error = guest.wait_in_vain(Goal::Ssh, refused_again);
    assert!(error.to_string().contains("could not log in"), "{error}");
    assert!(error.causes()[0].contains("Permission denied"), "{:?}", error.causes());
    assert!(error.hints()[0].contains("agent"), "{:?}", error.hints());

    let key_comes = || {
        refused_again();
        fs::write_atomic(&guest.sshd.path("authorized"), late.public.as_bytes(), 0o600).unwrap();
    };
    let ready = with(key_comes, || guest.wait(Goal::Ssh)).unwrap();
    assert_eq!(ready.outcome, None);
    assert_eq!(guest.sshd.logged(ACCEPTED), 1);
    assert_eq!(ready.stages.iter().map(|(goal, _)| *goal).collect::<Vec<_>>(), [Goal::Boot, Goal::Ssh]);
}

#[test]
fn a_broken_session_is_taken_up_again() {
    let guest = Guest::new(Sshd::down());
    let restart = || {
        wait_for("a connection", || guest.sshd.turned_away() > 0);
        guest.sshd.come_up();
        guest.told("cloud-init");
        guest.sshd.cut();
        guest.finish("{}", &guest.id);
    };
    let ready = with(restart, || guest.wait(Goal::CloudInit)).unwrap();
    assert_eq!(ready.outcome, Some(Outcome::Done));
    assert_eq!(guest.sshd.logged(ACCEPTED), 2, "one was cut, one saw the result");
    let goals: Vec<Goal> = ready.stages.iter().map(|(goal, _)| *goal).collect();
    assert_eq!(goals, [Goal::Boot, Goal::Ssh, Goal::CloudInit], "each was reached once");
}

/// A wrong guess costs one login: cloud-init's own refusal of root names the user.
#[test]
fn a_guest_that_has_another_user_says_who_it_is() {
    let mut guest = Guest::new(Sshd::start());
    let user = std::mem::replace(&mut guest.login.user, "guessed".into());
    guest.superuser.clone_from(&user);
    let refusal = format!(
        "echo 'Please login as the user \\\"{user}\\\" rather than the user \\\"root\\\".'; echo; sleep 10; exit 142"
    );
    // There is one user here for both: root, who names who is asked for, and the one named.
    let command =
        format!("case $SSH_ORIGINAL_COMMAND in *virga:root*) {refusal};; *) eval \\\"$SSH_ORIGINAL_COMMAND\\\";; esac");
    let authorized = format!("no-port-forwarding,command=\"{}\" {}", command, guest.sshd.user_key.public);
    fs::write_atomic(&guest.sshd.path("authorized"), authorized.as_bytes(), 0o600).unwrap();
    guest.finish("{}", guest.id.as_str());
    let ready = guest.wait(Goal::CloudInit).unwrap();
    assert_eq!(ready.user.map(|user| user.to_string()), Some(user.clone()));
    assert_eq!(ready.outcome, Some(Outcome::Done));
    assert_eq!(guest.sshd.logged("Connection closed by invalid user guessed"), 1, "one login was for nothing");

    // A name that attacks names nobody: the guess is tried again.
    let hostile = authorized
        .replace(&format!("\"{user}\\\" rather"), "\"-oProxyCommand=x\\\" rather")
        .replace("sleep 10", "true");
    assert_ne!(hostile, authorized);
    fs::write_atomic(&guest.sshd.path("authorized"), hostile.as_bytes(), 0o600).unwrap();
    let again = || {
        let refused = || guest.sshd.logged("Connection closed by invalid user guessed");
        let before = refused();
        wait_for("two refused logins", || refused() >= before + 2);
    };
    let error = guest.wait_in_vain(Goal::Ssh, again);
    assert!(error.to_string().contains("'guessed' could not log in"), "{error}");
}

/// `power_state: {mode: reboot}`: the result is there, and a moment later the guest is not.
#[test]
fn a_guest_that_restarts_after_its_result_is_not_ready() {
    let guest = Guest::new(Sshd::start());
    guest.put("proc/42/cmdline", "/usr/bin/python3\0/usr/bin/cloud-init\0modules\0--mode=final\0");
    guest.finish("{}", guest.id.as_str());
    let restart = || {
        guest.told("cloud-init's end");
        fs::remove_dir_all(&guest.root.path().join("proc")).unwrap();
        fs::remove_dir_all(&guest.root.path().join("run")).unwrap();
        guest.sshd.cut();
        // In the next boot.
        wait_for("another login", || guest.sshd.logged(ACCEPTED) == 2);
        guest.finish("{}", guest.id.as_str());
    };
    let ready = with(restart, || guest.wait(Goal::CloudInit)).unwrap();
    assert_eq!((ready.outcome, ready.user), (Some(Outcome::Done), None));

    // `mode: poweroff`: there is nothing to be ready.
    guest.put("proc/42/cmdline", "/usr/bin/python3\0/usr/bin/cloud-init\0modules\0--mode=final\0");
    guest.stages.0.lock().unwrap().clear();
    let end = || {
        guest.told("cloud-init's end");
        guest.alive.store(false, Ordering::SeqCst);
    };
    let error = with(end, || guest.wait(Goal::CloudInit)).unwrap_err();
    assert!(error.to_string().contains("cloud-init was through, but the guest did not stay up"), "{error}");
}

#[test]
fn a_guest_without_cloud_init_is_told() {
    let guest = Guest::new(Sshd::start());
    guest.put("run/cloud-init/disabled", "");
    let error = guest.wait(Goal::CloudInit).unwrap_err();
    assert!(error.to_string().contains("disabled"), "{error}");
    for folder in ["etc", "run"] {
        fs::remove_dir_all(&guest.root.path().join(folder)).unwrap();
    }
    let error = guest.wait(Goal::CloudInit).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("no cloud-init"), "{error}");
    assert_eq!(guest.wait(Goal::Ssh).unwrap().stages.len(), 2);
}

#[test]
fn goals_by_name() {
    for goal in [Goal::Boot, Goal::Ssh, Goal::CloudInit] {
        assert_eq!(goal.to_string().parse::<Goal>().unwrap(), goal);
    }
    assert_eq!("x".parse::<Goal>().unwrap_err().kind(), Kind::Usage);
}

/// As `restart` does it to a guest that is waited for.
#[test]
fn another_port_is_found() {
    let guest = Guest::new(Sshd::start());
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let asked = Cell::new(0);
    let endpoint = || {
        asked.set(asked.get() + 1);
        Ok(Some(if asked.get() > 2 { guest.sshd.addr } else { nobody }))
    };
    let deadline = Deadline::after(LONG);
    let request = WaitRequest {
        goal: Goal::Ssh,
        deadline: &deadline,
        endpoint: &endpoint,
        alive: &|| Ok(true),
        login: &guest.login,
        instance: &guest.id,
        stage: &guest.stages,
    };
    Waiter::new(&request, guest.root.path().to_str().unwrap()).run().unwrap();
    assert_eq!(asked.get(), 3);
}
