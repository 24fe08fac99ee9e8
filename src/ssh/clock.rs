//! Telling a guest the time over SSH: one that was held has missed it.
//!
//! A login takes as long as it takes, so the time is told over a session that stands, and what the telling took is
//! measured: the guest says what its clock shows right after it was set, and is told again, corrected, until it is
//! right within a fraction of a second or cannot be told better.

use std::time::{Duration, SystemTime};

use super::session::{CHANNEL_FAILED, SshTarget, Style, Tty, exit_code, need_ssh, ssh_command};
use crate::base::cmd::{Running, last_words};
use crate::base::poll::{self, Deadline};
use crate::base::{Context as _, Error, Result};

/// As the guest's user, for which `sudo` asks nothing: each line in is a time to be set, each line out what the clock
/// shows after that.
const COMMAND: &str = "sudo -n sh -c 'echo ready; while read -r now; do date -u -s @$now >/dev/null || exit 1; \
                       date +%s.%N; done'";

/// Near enough, in seconds: from here on it is the network's to do better.
const NEAR: f64 = 0.2;

/// Further off than this, in seconds, is not set.
const FAR: f64 = 1.0;

/// How often it is told again.
const ROUNDS: usize = 10;

/// Sets the guest's clock to ours. Returns how far it can be off.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] when nobody answers, [`crate::base::Kind::Failed`] when the guest refuses or its
/// clock cannot be told closer than a second: both may be otherwise a moment later.
pub fn set(target: &SshTarget, deadline: &Deadline) -> Result<Duration> {
    set_by(target, COMMAND, deadline)
}

fn set_by(target: &SshTarget, command: &str, deadline: &Deadline) -> Result<Duration> {
    let mut session = ssh_command(target, Style::Batch, Tty::Never)?.arg(command).spawn().map_err(need_ssh)?;
    answer(&mut session, 0, deadline)?;
    let (mut correction, mut bound) = (0.0, f64::INFINITY);
    for round in 1..=ROUNDS {
        let before = now()?;
        session.send(format!("{:.6}\n", before + correction).as_bytes());
        let shown = answer(&mut session, round, deadline)?;
        let after = now()?;
        let shown: f64 =
            shown.trim().parse().map_err(|error| Error::failed("its clock shows no time").because(error))?;
        // It was read between the two, so this is how far it is off at the least and at the most.
        let (least, most) = (shown - after, shown - before);
        bound = least.abs().max(most.abs());
        if bound <= NEAR {
            break;
        }
        correction -= f64::midpoint(least, most);
    }
    if bound > FAR {
        return Err(Error::failed(format!(
            "it cannot be told closer than {bound:.1} s: the guest is too slow just now"
        )));
    }
    Ok(Duration::from_secs_f64(bound))
}

/// The line with this number.
fn answer(session: &mut Running, number: usize, deadline: &Deadline) -> Result<String> {
    let line = |said: &[u8]| {
        let whole = said.iter().filter(|byte| **byte == b'\n').count() > number;
        whole.then(|| String::from_utf8_lossy(said).lines().nth(number).unwrap_or_default().to_owned())
    };
    let said = poll::until(deadline, Duration::from_millis(1), || {
        if let Some(line) = session.peek(line) {
            return Ok(Some(line));
        }
        let Some(output) = session.poll()? else { return Ok(None) };
        let words = last_words(&output.stderr);
        Err(match exit_code(output.status) {
            CHANNEL_FAILED => Error::timed_out("it does not answer over SSH").because(words),
            _ => Error::failed("it refused the command 'sudo date'").because(words),
        })
    })?;
    said.ok_or_else(|| Error::timed_out("it does not answer over SSH"))
}

fn now() -> Result<f64> {
    Ok(SystemTime::UNIX_EPOCH.elapsed().context(|| "reading the clock".into())?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;
    use crate::base::fs;
    use crate::ssh::testing::Sshd;

    /// A clock that hears of the time a while after it was told, after a login that takes a while: it writes down how
    /// far it is off each time that it is set.
    const SLOW: &str = r#"
import sys, time
time.sleep(0.5)
print("ready", flush=True)
with open(sys.argv[1], "w", buffering=1) as log:
    for line in iter(sys.stdin.readline, ""):
        time.sleep(0.3)
        off = float(line) - time.time()
        print(off, file=log)
        print(time.time() + off, flush=True)
"#;

    #[test]
    fn what_the_telling_takes_is_made_up_for() {
        let sshd = Sshd::start();
        let (script, log) = (sshd.path("clock.py"), sshd.path("log"));
        fs::write_new(&script, SLOW.as_bytes(), 0o600).unwrap();
        let command = format!("python3 '{}' '{}'", script.display(), log.display());
        let bound = set_by(&sshd.login().at(sshd.addr), &command, &Deadline::after(Duration::from_secs(600))).unwrap();
        let log = fs::read_text(&log, 4096).unwrap();
        let off: Vec<f64> = log.lines().map(|line| line.parse().unwrap()).collect();
        assert!(off[0] <= -0.3, "what it was told first was late: {off:?}");
        assert!(off.len() > 1 && off.last().unwrap().abs() <= bound.as_secs_f64(), "{off:?}, said to be {bound:?}");
    }

    #[test]
    fn what_stands_in_the_way_is_told_apart() {
        let sshd = Sshd::start();
        let target = sshd.login().at(sshd.addr);
        let long = Deadline::after(Duration::from_secs(600));
        let error = set_by(&target, "echo no >&2; exit 1", &long).unwrap_err();
        assert_eq!((error.kind(), error.causes()), (Kind::Failed, vec!["no".to_owned()]));
        let error = set_by(&target, "kill -9 $$", &long).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        let error = set_by(&target, "echo ready; read -r now; echo noon; cat", &long).unwrap_err();
        assert!(error.to_string().contains("shows no time"), "{error}");
        let error = set_by(&target, "sleep 1000", &Deadline::after(Duration::from_millis(1500))).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
    }
}
