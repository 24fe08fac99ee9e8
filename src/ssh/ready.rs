//! Waiting until a guest is ready: the process lives, its SSH server answers,
//! a login works with the pinned host key, cloud-init is through. One
//! deadline for all; every 100 ms at the latest it is asked whether the guest
//! still lives.
//!
//! Who the guest's user is may have been guessed. A guest that refuses that one is asked, as root, who it is.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::cloud_init::{self, End, Outcome, Report};
use super::probe::{Answered, Prober, TICK};
use super::relay;
use super::session::{Login, SshTarget, Style, Tty, need_ssh, shell_word, ssh_command};
use crate::base::cmd::{Output, Running, last_words};
use crate::base::name::quoted;
use crate::base::poll::{self, Deadline};
use crate::base::progress::Stage;
use crate::base::{Error, Result, UserName};

/// How often the guest is asked whether it lives, where it is, and how far cloud-init is.
const STEP: Duration = Duration::from_millis(100);
/// How often a guest that does not answer is asked where it is.
const AGAIN: Duration = Duration::from_secs(1);
/// A refused login costs us 5 s of OpenSSH's patience (`PerSourcePenalties`,
/// sshd_config(5)), which ends at 15 s: so no more than one in 5 s for long.
const AUTH_PAUSE: Duration = Duration::from_secs(5);
/// First pause after refused logins, of which there were two: as whom we took for the user, and as root.
const DENIED_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause after a session that broke off.
const LOST_PAUSE: Duration = Duration::from_secs(1);

/// How far a guest is to be, each including the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Goal {
    /// Its SSH server answers: the guest has booted.
    Boot,
    /// A login works, and it is the guest that was made here.
    Ssh,
    /// cloud-init is through.
    CloudInit,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Goal::Boot => "boot",
            Goal::Ssh => "ssh",
            Goal::CloudInit => "cloud-init",
        })
    }
}

impl FromStr for Goal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Goal::Boot, Goal::Ssh, Goal::CloudInit].into_iter().find(|goal| goal.to_string() == text).ok_or_else(|| {
            Error::usage(format!("{} is nothing to wait for", quoted(text))).hint("one of: boot, ssh, cloud-init")
        })
    }
}

/// What to wait for, and whom to ask.
pub struct WaitRequest<'a> {
    /// How far the guest is to be.
    pub goal: Goal,
    /// When waiting is over.
    pub deadline: &'a Deadline,
    /// Where the guest's SSH is; `None` while that is not known.
    pub endpoint: &'a dyn Fn() -> Result<Option<SocketAddr>>,
    /// Whether the guest still runs. Asked often: should answer within milliseconds.
    pub alive: &'a dyn Fn() -> Result<bool>,
    /// Who logs in.
    pub login: &'a Login,
    /// The instance whose cloud-init result counts.
    pub instance: &'a str,
    /// Told what is being waited for.
    pub stage: &'a dyn Stage,
}

impl fmt::Debug for WaitRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitRequest").field("goal", &self.goal).field("login", &self.login).finish_non_exhaustive()
    }
}

/// A guest that is as far as was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// cloud-init's own result; `None` when it was not waited for.
    pub outcome: Option<Outcome>,
    /// When each stage was reached, counted from when the deadline was set.
    pub stages: Vec<(Goal, Duration)>,
    /// Whom the guest lets in, where that is another than who was to log in.
    pub user: Option<UserName>,
}

/// Waits until the guest is ready: until the next login works, also where the guest restarts by itself before. That
/// cloud-init failed is an [`Outcome`], not an error: the wait itself went well.
///
/// # Errors
/// - [`crate::base::Kind::TimedOut`] at the deadline, with the stage reached and the last trouble;
/// - [`crate::base::Kind::Failed`] as soon as the guest runs no more, and when cloud-init is absent or disabled;
/// - [`crate::base::Kind::Refused`] at once when the host key is not the guest's;
/// - what `endpoint` and `alive` return, and [`crate::base::Kind::Interrupted`] on Ctrl-C.
pub fn wait(request: &WaitRequest) -> Result<Ready> {
    Waiter::new(request, "").run()
}

struct Waiter<'a> {
    request: &'a WaitRequest<'a>,
    /// Before the guest's file names; empty but in tests.
    root: &'a str,
    /// Who is asked for the user: root, but in tests.
    superuser: &'a str,
    login: Login,
    /// Whom the guest named.
    user: Option<UserName>,
    /// cloud-init's result, before the guest is settled.
    outcome: Option<Outcome>,
    asked: Cell<Option<Instant>>,
    stages: Vec<(Goal, Duration)>,
    /// What went wrong last, for the error at the deadline.
    last: Option<String>,
    /// What cloud-init is at.
    progress: Option<String>,
    denied: bool,
    /// What was told last.
    told: String,
    /// How long to wait before the next session when this one breaks off.
    lost_pause: Duration,
}

/// How a session ended.
enum Session {
    /// As far as was asked for.
    Ready(Option<Outcome>),
    /// The server does not let us in.
    Denied,
    /// It broke off.
    Lost,
}

impl<'a> Waiter<'a> {
    fn new(request: &'a WaitRequest<'a>, root: &'a str) -> Self {
        let asked = Cell::new(None);
        let lost_pause = LOST_PAUSE / 8;
        Waiter {
            request,
            root,
            superuser: "root",
            login: request.login.clone(),
            user: None,
            outcome: None,
            asked,
            stages: Vec::new(),
            last: None,
            progress: None,
            denied: false,
            told: String::new(),
            lost_pause,
        }
    }

    fn run(mut self) -> Result<Ready> {
        self.tell("the guest's address");
        let mut addr = self.until(STEP, || (self.request.endpoint)())?;
        let outcome = loop {
            let answered = self.answer(&mut addr)?;
            if self.request.goal == Goal::Boot {
                break None;
            }
            if let Some(outcome) = self.log_in(relay::offer(answered)?, addr)? {
                break outcome;
            }
        };
        Ok(Ready { outcome, stages: self.stages, user: self.user })
    }

    /// Polls until `probe` finds something; `None` at the deadline. The guest's death ends it.
    fn watch<T>(&self, step: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        poll::until(self.request.deadline, step, || {
            // First what the guest says: it may have said it and then ended.
            if let Some(found) = probe()? {
                return Ok(Some(found));
            }
            self.check_alive().map(|()| None)
        })
    }

    /// As [`watch`](Self::watch); the deadline is an error.
    fn until<T>(&self, step: Duration, probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        self.watch(step, probe)?.ok_or_else(|| self.timed_out())
    }

    fn check_alive(&self) -> Result<()> {
        if self.asked.get().is_some_and(|asked| asked.elapsed() < STEP) {
            return Ok(());
        }
        let alive = (self.request.alive)()?;
        self.asked.set(Some(Instant::now()));
        if alive {
            Ok(())
        } else {
            Err(self.because_last(Error::failed(format!("the guest ended: {}", self.reached()))))
        }
    }

    /// Says what is being waited for, each thing once.
    fn tell(&mut self, text: &str) {
        if self.told != text {
            text.clone_into(&mut self.told);
            self.request.stage.stage(text);
        }
    }

    fn reach(&mut self, goal: Goal) {
        if self.stages.last().is_none_or(|(last, _)| *last < goal) {
            self.stages.push((goal, self.request.deadline.elapsed()));
        }
    }

    fn answer(&mut self, addr: &mut SocketAddr) -> Result<Answered> {
        self.tell("the SSH server");
        let mut prober = Prober::new(*addr);
        let mut asked = Instant::now();
        let answered = self.watch(TICK, || {
            // One that was started anew meanwhile has another port.
            if asked.elapsed() >= AGAIN {
                asked = Instant::now();
                if let Some(now) = (self.request.endpoint)()?.filter(|now| now != addr) {
                    *addr = now;
                    prober = Prober::new(now);
                }
            }
            prober.tick()
        })?;
        let Some(answered) = answered else {
            self.last.get_or_insert(prober.answer().to_string());
            return Err(self.timed_out());
        };
        self.reach(Goal::Boot);
        Ok(answered)
    }

    /// Logs in, over the connection that was answered first, again and again while
    /// that is refused. `None` when the session broke off: then the server is to be probed again.
    fn log_in(&mut self, first: SocketAddr, addr: SocketAddr) -> Result<Option<Option<Outcome>>> {
        let asks = self.login.user != self.superuser;
        let mut pause = if asks { DENIED_PAUSE } else { LOST_PAUSE };
        let mut target = self.login.at(first);
        loop {
            self.tell("a login");
            match self.session(&target)? {
                Session::Ready(outcome) => return Ok(Some(outcome)),
                Session::Denied => {
                    if std::mem::replace(&mut self.denied, true) && asks {
                        self.pause(pause)?;
                        pause = (pause * 2).min(AUTH_PAUSE);
                    }
                    if !asks || !self.ask_who(addr)? {
                        self.pause(pause)?;
                        pause = (pause * 2).min(AUTH_PAUSE);
                    }
                    target = self.login.at(addr);
                }
                Session::Lost => {
                    self.lost_pause = (self.lost_pause * 2).min(LOST_PAUSE);
                    self.pause(self.lost_pause)?;
                    return Ok(None);
                }
            }
        }
    }

    /// Asks the guest who its user is. `true` when it named another, as whom to log in from now on.
    fn ask_who(&mut self, addr: SocketAddr) -> Result<bool> {
        let root = Login { user: self.superuser.to_owned(), ..self.login.clone() };
        let command = ssh_command(&root.at(addr), Style::Batch, Tty::Never)?;
        let mut ssh = command.args(["exec sh -c", &shell_word(cloud_init::WHO)]).spawn().map_err(need_ssh)?;
        // cloud-init's refusal holds the connection for ten seconds after it has said all.
        let named = self.until(TICK, || {
            let named = ssh.peek(cloud_init::user_in);
            Ok(match (named, ssh.poll()?) {
                (None, Some(output)) => Some(cloud_init::user_in(&output.stdout)),
                (None, None) => None,
                (named, _) => Some(named),
            })
        })?;
        let Some(user) = named.filter(|user| user.as_str() != self.login.user) else { return Ok(false) };
        user.as_str().clone_into(&mut self.login.user);
        self.user = Some(user);
        Ok(true)
    }

    fn pause(&self, time: Duration) -> Result<()> {
        let pause = Deadline::after(time);
        self.until(TICK, || Ok(pause.passed().then_some(())))
    }

    /// One session, which stays in the guest until cloud-init is through.
    fn session(&mut self, target: &SshTarget) -> Result<Session> {
        let script = cloud_init::script(self.root, self.request.instance);
        let command = ssh_command(target, Style::Batch, Tty::Never)?.args(["exec sh -c", &shell_word(&script)]);
        let mut talk = Talk { ssh: command.spawn().map_err(need_ssh)?, seen: 0, pace: Pace::default(), ended: None };
        loop {
            match self.until(TICK, || talk.listen())? {
                Heard::Ended(output) => return self.broke_off(&output),
                Heard::Said(report) => {
                    if let Some(session) = self.said(report)? {
                        return Ok(session);
                    }
                }
            }
        }
    }

    fn said(&mut self, report: Report) -> Result<Option<Session>> {
        if report.logged_in {
            self.reach(Goal::Ssh);
            (self.denied, self.last, self.lost_pause) = (false, None, LOST_PAUSE / 8);
            self.outcome = None;
            if self.request.goal == Goal::Ssh {
                return Ok(Some(Session::Ready(None)));
            }
            let stage = report.stage.map(|stage| format!("cloud-init ({stage})"));
            if report.end.is_none() {
                self.tell(stage.as_deref().unwrap_or("cloud-init"));
            }
            self.progress = stage.or(self.progress.take());
        }
        if let Some(other) = report.other_instance {
            self.last = Some(format!("cloud-init's result is that of another instance: {}", quoted(&other)));
        }
        let hint = "'--for ssh' waits without it";
        match report.end {
            None => Ok(None),
            Some(End::Result(outcome)) if !report.settled => {
                // It may be about to restart: then this breaks off, and counts for nothing.
                self.outcome = Some(outcome);
                self.tell("cloud-init's end");
                Ok(None)
            }
            Some(End::Result(outcome)) => {
                self.reach(Goal::CloudInit);
                Ok(Some(Session::Ready(Some(outcome))))
            }
            Some(End::Disabled) => Err(Error::failed("cloud-init is disabled in the guest").hint(hint)),
            Some(End::Absent) => Err(Error::failed("the guest has no cloud-init").hint(hint)),
            Some(End::Unreadable) => Err(Error::failed("cloud-init's result in the guest cannot be read").hint(hint)),
        }
    }

    fn broke_off(&mut self, output: &Output) -> Result<Session> {
        let words = last_words(&output.stderr);
        let has = |needles: &[&str]| needles.iter().any(|needle| words.contains(needle));
        if has(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED", "no matching host key type"]) {
            return Err(Error::refused("the guest shows a host key that is not the one made for it")
                .because(words)
                .hint("another machine answers at that address, or the guest did not take its seed (an image without cloud-init?)"));
        }
        let denied = has(&["Permission denied", "Too many authentication failures"]);
        self.last = Some(words);
        Ok(if denied { Session::Denied } else { Session::Lost })
    }

    fn reached(&self) -> String {
        match self.stages.last() {
            None => "no SSH server answered".into(),
            Some((Goal::Boot, _)) => format!("its SSH server answered, but {} could not log in", self.user()),
            Some(_) if self.outcome.is_some() => "cloud-init was through, but the guest did not stay up".into(),
            Some(_) => {
                let progress = self.progress.as_deref().unwrap_or("cloud-init");
                format!("{} could log in, but {progress} was not through", self.user())
            }
        }
    }

    fn user(&self) -> String {
        quoted(&self.login.user)
    }

    fn timed_out(&self) -> Error {
        let limit = humantime::format_duration(self.request.deadline.limit());
        let error = Error::timed_out(format!("the guest was not ready within {limit}: {}", self.reached()));
        let error = if self.denied {
            error.hint("is the key that was let in still here, in ~/.ssh or in the agent, and does the image have another user?")
        } else {
            error.hint("the guest goes on running: wait again, longer with --timeout")
        };
        self.because_last(error)
    }

    fn because_last(&self, error: Error) -> Error {
        match &self.last {
            Some(last) => error.because(last.clone()),
            None => error,
        }
    }
}

/// The conversation with the script in the guest.
struct Talk {
    ssh: Running,
    /// Bytes of its output that were read already.
    seen: usize,
    pace: Pace,
    ended: Option<Output>,
}

/// When the script is asked what.
#[derive(Default)]
struct Pace {
    asked: u32,
    last: Option<Instant>,
}

impl Pace {
    /// The line that is due at this moment: to look again every [`STEP`], to tell its stage too every second.
    fn due(&mut self, now: Instant) -> Option<&'static [u8]> {
        if self.last.is_some_and(|last| now.duration_since(last) < STEP) {
            return None;
        }
        self.last = Some(now);
        self.asked += 1;
        Some(if self.asked % 10 == 1 { b"status\n" } else { b"\n" })
    }
}

enum Heard {
    Said(Report),
    Ended(Output),
}

impl Talk {
    /// What is new; has the script look again at its [`Pace`].
    fn listen(&mut self) -> Result<Option<Heard>> {
        let seen = self.seen;
        let said = self.ssh.peek(|bytes| (bytes.len() > seen).then(|| (bytes.len(), Report::read(bytes))));
        if let Some((length, report)) = said {
            self.seen = length;
            return Ok(Some(Heard::Said(report)));
        }
        if let Some(output) = self.ended.take() {
            return Ok(Some(Heard::Ended(output)));
        }
        if let Some(output) = self.ssh.poll()? {
            // The last words may have come between the two looks.
            let report = Report::read(&output.stdout);
            self.ended = Some(output);
            return Ok(Some(Heard::Said(report)));
        }
        // Nothing is sent before the login works: it would only pile up.
        if self.seen > 0
            && let Some(line) = self.pace.due(Instant::now())
        {
            self.ssh.send(line);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
