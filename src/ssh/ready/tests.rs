use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::base::{Kind, fs};
use crate::ssh::keys::{HostKeys, own_key};
use crate::ssh::known_hosts;
use crate::ssh::testing::Sshd;

const RESULT: &str = r#"{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}"#;
const FAILED: &str = r#"{"v1": {"stage": null, "modules-final": {"errors": ["('scripts_user', RuntimeError('x'))"]}}}"#;
const DEGRADED: &str =
    r#"{"v1": {"stage": null, "init": {"errors": [], "recoverable_errors": {"WARNING": ["careful"]}}}}"#;

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
    id: InstanceId,
    alive: AtomicBool,
    login: Login,
    stages: Stages,
}

impl Guest {
    fn new(sshd: Sshd) -> Self {
        let (root, id) = (tempfile::tempdir().unwrap(), InstanceId::generate().unwrap());
        let login = sshd.login();
        let guest = Guest { sshd, root, id, alive: AtomicBool::new(true), login, stages: Stages::default() };
        guest.put("etc/cloud/cloud.cfg", "");
        guest
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.root.path().join(name);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write_atomic(&path, text.as_bytes(), 0o644).unwrap();
    }

    /// What cloud-init leaves behind, the result last.
    fn finish(&self, status: &str, instance: &str) {
        self.put("var/lib/cloud/data/instance-id", &format!("{instance}\n"));
        self.put("run/cloud-init/status.json", status);
        self.put("run/cloud-init/result.json", RESULT);
    }

    fn wait(&self, goal: Goal, limit: Duration) -> Result<Ready> {
        let asked = Cell::new(0);
        let endpoint = || {
            asked.set(asked.get() + 1);
            Ok((asked.get() > 1).then_some(self.sshd.addr))
        };
        let request = WaitRequest {
            goal,
            deadline: &Deadline::after(limit),
            endpoint: &endpoint,
            alive: &|| Ok(self.alive.load(Ordering::SeqCst)),
            login: &self.login,
            instance: &self.id,
            stage: &self.stages,
        };
        Waiter::new(&request, self.root.path().to_str().unwrap()).run()
    }
}

const LIMIT: Duration = Duration::from_secs(30);

fn nap(time: Duration) {
    poll::until(&Deadline::after(time), time, || Ok(None::<()>)).unwrap();
}

/// Runs `later` after a while, beside the wait.
fn with<T>(after: Duration, later: impl FnOnce() + Send, wait: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            nap(after);
            later();
        });
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
        guest.finish(status, guest.id.as_str());
        let ready = guest.wait(Goal::CloudInit, LIMIT).unwrap();
        assert_eq!(ready.outcome, Some(outcome));
        let goals: Vec<Goal> = ready.stages.iter().map(|(goal, _)| *goal).collect();
        assert_eq!(goals, [Goal::Boot, Goal::Ssh, Goal::CloudInit]);
        assert!(ready.stages.is_sorted_by_key(|(_, at)| *at));
    }
}

#[test]
fn the_answer_comes_soon_after_the_result() {
    let guest = Guest::new(Sshd::start());
    guest.put("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-config"}}"#);
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = || {
        // A result of another instance must never pass.
        guest.finish("{}", "somebody-else");
        nap(Duration::from_millis(700));
        guest.put("var/lib/cloud/data/instance-id", guest.id.as_str());
        sender.send(Instant::now()).unwrap();
    };
    let ready = with(Duration::from_millis(1500), done, || guest.wait(Goal::CloudInit, LIMIT)).unwrap();
    let late = receiver.recv().unwrap().elapsed();
    assert_eq!(ready.outcome, Some(Outcome::Done));
    // A fifth of a second as a rule; on a busy machine the bench is who tells.
    assert!(late < Duration::from_secs(3), "{late:?}");
    let stages = guest.stages.0.into_inner().unwrap();
    assert!(stages.contains(&"cloud-init (modules-config)".to_owned()), "{stages:?}");
}

#[test]
fn at_the_deadline_the_stage_and_the_last_trouble_are_told() {
    let guest = Guest::new(Sshd::start());
    guest.put("run/cloud-init/status.json", r#"{"v1": {"stage": "modules-config"}}"#);
    let error = guest.wait(Goal::CloudInit, Duration::from_secs(3)).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    assert!(error.to_string().contains("could log in, but cloud-init (modules-config) was not through"), "{error}");

    guest.finish("{}", "somebody-else");
    let error = guest.wait(Goal::CloudInit, Duration::from_secs(2)).unwrap_err();
    assert!(error.causes()[0].contains("another instance: 'somebody-else'"), "{:?}", error.causes());

    let down = Guest::new(Sshd::start_at(Instant::now() + Duration::from_secs(3600), ""));
    let error = down.wait(Goal::Ssh, Duration::from_millis(500)).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    assert!(error.to_string().ends_with("within 500ms: no SSH server answered"), "{error}");
    assert!(error.causes()[0].contains("closed at once"), "{:?}", error.causes());
}

#[test]
fn a_dead_guest_ends_the_wait_at_once() {
    for up in [Duration::ZERO, Duration::from_secs(3600)] {
        let guest = Guest::new(Sshd::start_at(Instant::now() + up, ""));
        let (sender, receiver) = std::sync::mpsc::channel();
        let die = || {
            guest.alive.store(false, Ordering::SeqCst);
            sender.send(Instant::now()).unwrap();
        };
        let error = with(Duration::from_secs(1), die, || guest.wait(Goal::CloudInit, LIMIT)).unwrap_err();
        let late = receiver.recv().unwrap().elapsed();
        assert!(late < Duration::from_millis(250), "{late:?}");
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().starts_with("the guest ended: "), "{error}");
    }
}

#[test]
fn a_foreign_host_key_is_refused_at_once() {
    let guest = Guest::new(Sshd::start());
    let other = HostKeys::generate("x").unwrap();
    known_hosts::write(&guest.login.known_hosts, "virga-test", &other.public_lines()).unwrap();
    let deadline = Deadline::after(Duration::from_secs(10));
    let error = guest.wait(Goal::CloudInit, LIMIT).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.causes()[0].contains("Host key verification failed"), "{:?}", error.causes());
    assert!(!deadline.passed());
    assert!(guest.wait(Goal::Boot, LIMIT).is_ok(), "the banner alone says nothing about the key");
}

#[test]
fn refused_logins_are_tried_again() {
    let mut guest = Guest::new(Sshd::start());
    let late = own_key(&guest.sshd.path("late")).unwrap();
    guest.login.identities = vec![late.path];
    let error = guest.wait(Goal::Ssh, Duration::from_secs(2)).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    assert!(error.to_string().contains("could not log in"), "{error}");
    assert!(error.causes()[0].contains("Permission denied"), "{:?}", error.causes());
    assert!(error.hints()[0].contains("agent"), "{:?}", error.hints());

    let key_comes = || fs::write_atomic(&guest.sshd.path("authorized"), late.public.as_bytes(), 0o600).unwrap();
    let ready = with(Duration::from_millis(800), key_comes, || guest.wait(Goal::Ssh, LIMIT)).unwrap();
    assert_eq!(ready.outcome, None);
    assert!(ready.stages[1].1 > Duration::from_millis(800));
}

#[test]
fn a_broken_session_is_taken_up_again() {
    let guest = Guest::new(Sshd::start_at(Instant::now() + Duration::from_millis(600), ""));
    let restart = || {
        guest.sshd.cut();
        guest.finish("{}", guest.id.as_str());
    };
    let ready = with(Duration::from_secs(3), restart, || guest.wait(Goal::CloudInit, LIMIT)).unwrap();
    assert_eq!(ready.outcome, Some(Outcome::Done));
    assert!(ready.stages[0].1 >= Duration::from_millis(500), "{:?}", ready.stages);
    assert!(ready.stages[2].1 >= Duration::from_secs(3));
}

#[test]
fn a_guest_without_cloud_init_is_told() {
    let guest = Guest::new(Sshd::start());
    guest.put("run/cloud-init/disabled", "");
    let error = guest.wait(Goal::CloudInit, LIMIT).unwrap_err();
    assert!(error.to_string().contains("disabled"), "{error}");
    for folder in ["etc", "run"] {
        fs::remove_dir_all(&guest.root.path().join(folder)).unwrap();
    }
    let error = guest.wait(Goal::CloudInit, LIMIT).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("no cloud-init"), "{error}");
    assert_eq!(guest.wait(Goal::Ssh, LIMIT).unwrap().stages.len(), 2);
}

#[test]
fn goals_by_name() {
    for goal in [Goal::Boot, Goal::Ssh, Goal::CloudInit] {
        assert_eq!(goal.to_string().parse::<Goal>().unwrap(), goal);
    }
    assert_eq!("x".parse::<Goal>().unwrap_err().kind(), Kind::Usage);
}
