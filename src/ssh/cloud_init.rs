//! What cloud-init says of itself, read from its own documented files in the
//! guest (cloud-init, "Failure states" and "Reported status"):
//!
//! - `/run/cloud-init/status.json`: every stage with its errors, and since
//!   23.4 the recoverable ones;
//! - `/run/cloud-init/result.json`: written last, once all stages are through;
//! - `/var/lib/cloud/data/instance-id`: for which instance.
//!
//! `/run` is empty after a boot, so nothing of an earlier boot is taken for
//! this one's; the instance id guards against a guest that was resumed from
//! another one's memory. All three can be read without privileges.
//! `cloud-init status` is not used: it starts Python, which takes seconds in
//! an emulated guest.
//!
//! A result is not the end: cloud-init's last module may have asked for a restart (`power_state`), which a process of
//! cloud-init's carries out when the rest of it is gone. So the guest is ready when no such process is left and the
//! guest is not on its way down.
//!
//! Whom a guest lets in it says itself, to whoever comes as root.

use std::fmt;

use serde_json::Value;

use crate::base::UserName;
use crate::base::harmless::is_unfit;

/// cloud-init's own result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All went well.
    Done,
    /// Done, but with recoverable errors.
    Degraded(Vec<Trouble>),
    /// It failed.
    Error(Vec<Trouble>),
}

/// One thing that cloud-init complains about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// cloud-init's stage, as in `modules-final`.
    pub stage: String,
    /// The module that failed, where cloud-init says which.
    pub module: Option<String>,
    /// What it says, in one line.
    pub text: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(module) = &self.module {
            write!(f, "module {module} ")?;
        }
        write!(f, "in stage {}: {}", self.stage, self.text)
    }
}

/// A script for the guest's POSIX `sh`. It looks each time a line comes in on
/// its standard input, and ends with that input: no process is started while
/// waiting, and none is left when the connection breaks. `root` is where the
/// guest's files are; empty but in tests.
///
/// What cloud-init wrote is on the disk before the guest counts as ready: host
/// keys that are still in memory alone are empty files, and its SSH server
/// dead, when the guest is cut off and started again.
///
/// Whether the guest is on its way down systemd says: to everybody over D-Bus, without that to root alone. Where a service
/// asked to be given time (an inhibitor of logind's), logind knows it first. Who answered before and does not now is on its
/// way down.
///
/// No single quotes and no backslashes: the login shell that gets it as one
/// quoted word may be another than `sh`. In the brackets is a name that must not be found in the script's own command line.
pub(super) fn script(root: &str, instance: &str) -> String {
    let instance = pattern(instance);
    format!(
        r#"r={root}/run/cloud-init v={root}/var/lib/cloud e={root}/etc/cloud old= other=
system() {{
  state=$(systemctl is-system-running 2>/dev/null)
  case $state in ""|unknown) state=$(sudo -n systemctl is-system-running 2>/dev/null);; esac
}}
busy() {{
  grep -qs "[b]in/cloud-init" {root}/proc/[0-9]*/cmdline && return
  system
  case $state in stopping) return;; "") [ -z "$before" ] || return 0;; esac
  [ "$(busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager PreparingForShutdown 2>/dev/null)" = "b true" ]
}}
echo virga:in
while :; do
  if [ -e $r/result.json ]; then
    id=; {{ read -r id <$v/data/instance-id; }} 2>/dev/null
    case $id in {instance})
      sync
      echo virga:status; cat $r/status.json; echo; echo virga:end
      echo virga:result; cat $r/result.json; echo; echo virga:end
      system; before=$state
      while busy; do read -r ask || exit 0; done
      echo virga:settled; exit 0
    esac
    [ "$id" = "$other" ] || echo "virga:other $id"; other=$id
  elif [ -e $r/disabled ] || [ -e $e/cloud-init.disabled ]; then
    echo virga:disabled; exit 0
  elif [ ! -e $r ] && [ ! -e $v ] && [ ! -e $e ]; then
    echo virga:absent; exit 0
  fi
  read -r ask || exit 0
  if [ "$ask" = status ] && [ -e $r/status.json ]; then
    new=$(cat $r/status.json)
    [ "$new" = "$old" ] || {{ echo virga:status; echo "$new"; echo virga:end; }}; old=$new
  fi
done
"#
    )
}

/// An instance id as a pattern of the shell's. What any shell might give a meaning to is left open: an id of the user's
/// may be any text, and `read` takes blanks off its ends.
fn pattern(instance: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:/+=@,%".contains(c);
    let mut pattern: String = instance.trim().chars().map(|c| if plain(c) { c } else { '*' }).collect();
    while pattern.contains("**") {
        pattern = pattern.replace("**", "*");
    }
    pattern
}

/// What the script has said so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// The script runs: login works.
    pub logged_in: bool,
    /// The stage that cloud-init is in.
    pub stage: Option<String>,
    /// There is a result, but of another instance.
    pub other_instance: Option<String>,
    /// How it ended.
    pub end: Option<End>,
    /// Nothing of cloud-init is left after its result, and the guest stays up.
    pub settled: bool,
}

/// How the script ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With cloud-init's result.
    Result(Outcome),
    /// cloud-init will not run.
    Disabled,
    /// The guest has no cloud-init.
    Absent,
    /// There is a result, but it cannot be read.
    Unreadable,
}

impl Report {
    /// Reads what came so far; what is not whole yet is left for later, and
    /// what the login shell put before it is passed over.
    pub fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let (mut report, mut status) = (Report::default(), Value::Null);
        let mut lines = whole.lines();
        while let Some(line) = lines.next() {
            match line {
                "virga:in" => report.logged_in = true,
                "virga:disabled" => report.end = Some(End::Disabled),
                "virga:absent" => report.end = Some(End::Absent),
                "virga:settled" => report.settled = true,
                "virga:status" | "virga:result" => {
                    let Some(document) = document(&mut lines) else { break };
                    let document = serde_json::from_str::<Value>(&document);
                    if line == "virga:status" {
                        status = document.unwrap_or_default();
                        report.stage = status["v1"]["stage"].as_str().map(one_line).or(report.stage);
                    } else {
                        let end = document.ok().and_then(|result| outcome(&result, &status));
                        report.end = Some(end.map_or(End::Unreadable, End::Result));
                    }
                }
                _ => {
                    if let Some(id) = line.strip_prefix("virga:other ") {
                        report.other_instance = Some(one_line(id));
                    }
                }
            }
        }
        report
    }
}

/// A script for root's shell, where root is let in: says whose keys let somebody in, ordinary users first, then that it was
/// all. Where root is not let in, cloud-init has put a command before root's key that names the user in its place (its
/// module `ssh`, `disable_root_opts`), and this is never run.
///
/// As [`script`], without single quotes and backslashes.
pub(super) const WHO: &str = r#"while IFS=: read -r name x id x x home x; do
  [ "$id" -ge 1000 ] && [ "$id" -lt 60000 ] && [ -s "$home/.ssh/authorized_keys" ] && echo "virga:user $name"
done </etc/passwd 2>/dev/null
echo virga:root
"#;

/// Whom the answer to [`WHO`], or cloud-init's refusal of root, names; `None` while it names nobody, or nobody that a
/// name could be of.
pub(super) fn user_in(said: &[u8]) -> Option<UserName> {
    let text = String::from_utf8_lossy(said);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    if let Some((_, rest)) = whole.split_once("Please login as the ") {
        let name = match rest.strip_prefix("user \"") {
            Some(quoted) => quoted.split('"').next(),
            // Of before 2018.
            None => rest.split(' ').next().filter(|_| rest.contains(" user rather than ")),
        };
        // Where there is no default user.
        return name?.parse().ok().filter(|name: &UserName| name.as_str() != "NONE");
    }
    let all = whole.lines().any(|line| line == "virga:root");
    let first = whole.lines().find_map(|line| line.strip_prefix("virga:user ")?.parse().ok());
    if all { first.or_else(|| "root".parse().ok()) } else { None }
}

/// The lines up to `virga:end`; `None` when that has not come.
fn document(lines: &mut std::str::Lines) -> Option<String> {
    let mut text = String::new();
    for line in lines {
        if line == "virga:end" {
            return Some(text);
        }
        text.push_str(line);
        text.push('\n');
    }
    None
}

/// The outcome as cloud-init counts: any error is an error, any recoverable
/// one makes it degraded. `None` when `result` is no result.
fn outcome(result: &Value, status: &Value) -> Option<Outcome> {
    let all = result["v1"]["errors"].as_array()?;
    let (mut errors, mut recoverable) = (Vec::new(), Vec::new());
    for (stage, info) in status["v1"].as_object().into_iter().flatten() {
        errors.extend(texts(&info["errors"]).map(|text| trouble(stage, text)));
        for (level, messages) in info["recoverable_errors"].as_object().into_iter().flatten() {
            let level = one_line(level).to_lowercase();
            recoverable.extend(texts(messages).map(|text| {
                let mut trouble = trouble(stage, text);
                trouble.text = format!("{level}: {}", trouble.text);
                trouble
            }));
        }
    }
    if errors.is_empty() {
        // The status could not be read, or is older than its errors.
        errors.extend(all.iter().filter_map(Value::as_str).map(|text| trouble("unknown", text)));
    }
    Some(match (errors.is_empty(), recoverable.is_empty()) {
        (false, _) => {
            errors.extend(recoverable);
            Outcome::Error(errors)
        }
        (true, false) => Outcome::Degraded(recoverable),
        (true, true) => Outcome::Done,
    })
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Finds the module in what cloud-init wrote: either the text form of a Python
/// pair, `('scripts_user', RuntimeError('…'))`, or a line of its log,
/// `Running module scripts_user (<module …>) failed`.
fn trouble(stage: &str, text: &str) -> Trouble {
    let (stage, text) = (one_line(stage), one_line(text));
    let pair = text.strip_prefix("('").and_then(|rest| rest.split_once("', "));
    if let Some((module, rest)) = pair {
        let rest = rest.strip_suffix(')').unwrap_or(rest);
        return Trouble { stage, module: Some(module.into()), text: rest.into() };
    }
    let module = text.split_once("unning module ").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned);
    Trouble { stage, module, text }
}

/// Blanks and what is not fit to be shown become single blanks; cut at 300 characters, for it is the guest that says it.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c| char::is_whitespace(c) || is_unfit(c)).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests;
