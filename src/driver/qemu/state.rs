//! How a guest stands, and letting it run, both by QEMU's own word.
//!
//! A QEMU that saves, or whose machine is busy, answers late. No answer is no state: whoever only looks is told so,
//! whoever acts asks until there is an answer or the process is gone.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::process;
use super::qmp::Qmp;
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Result};
use crate::driver::Status;

/// For a look at many guests: a QEMU that is not busy answers in less than a millisecond.
const GLANCE: Duration = Duration::from_millis(200);

/// A QEMU that lives and is silent for so long is given up on: the flush of a slow disk takes a part of that.
const PATIENCE: Duration = Duration::from_secs(300);

/// Longest time for the end of a save that is given up, or of a load: both let go of what they write or read.
const SETTLING: Duration = Duration::from_secs(600);

/// QEMU may refuse to let a guest run while a save comes to its end. One that refuses for so long has another reason.
const REFUSING: Duration = Duration::from_secs(30);

/// How often QEMU is asked how far it is.
const STEP: Duration = Duration::from_millis(3);

/// How a guest stands as far as its QEMU says so at once; `None`: it lives.
///
/// # Errors
/// When the system does not say whether it lives.
pub(super) fn glance(plan: &GuestPlan) -> Result<Option<Status>> {
    Ok(if process::lives(plan)? { asked(plan, GLANCE).ok() } else { Some(gone(plan)) })
}

/// How a guest stands: QEMU's answer, however long that takes, or the end of its process.
///
/// # Errors
/// [`crate::base::Kind::TimedOut`] when it lives and does not answer in minutes; [`crate::base::Kind::Interrupted`].
pub(super) fn of(plan: &GuestPlan) -> Result<Status> {
    let mut limit = GLANCE;
    let answered = poll::until(&Deadline::after(PATIENCE), STEP, || {
        if !process::lives(plan)? {
            return Ok(Some(gone(plan)));
        }
        let status = asked(plan, limit).ok();
        // Short at first, for Ctrl-C and for a process that ends; a busy machine may need longer for the few lines.
        limit = (limit * 2).min(Duration::from_secs(5));
        Ok(status)
    })?;
    answered.ok_or_else(|| {
        let limit = humantime::format_duration(PATIENCE);
        let name = &plan.name;
        Error::timed_out(format!("guest '{name}' lives, and its QEMU has not answered for {limit}"))
            .hint(format!("'virga stop --force {name}' ends it, as if the power were cut"))
    })
}

fn gone(plan: &GuestPlan) -> Status {
    // QEMU removes its pid file when it ends in good order.
    if RuntimeFiles::new(&plan.runtime).pid().exists() { Status::Died } else { Status::Stopped }
}

fn asked(plan: &GuestPlan, limit: Duration) -> Result<Status> {
    let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), limit)?;
    let state = qmp.command("query-status", json!({}))?;
    Ok(if state["running"] == true { Status::Running } else { Status::Paused })
}

/// What brings a guest nearer to running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: it runs.
    Done,
    /// Something comes to its end by itself.
    Wait,
    /// A save goes on, and would hold it again at its end.
    Cancel,
    /// It is held.
    Go,
    /// It has put itself to sleep.
    Wake,
    /// It cannot run any more as it is.
    Never,
}

/// By QEMU's words for the machine (`RunState`, qapi/run-state.json) and for what is being saved or loaded
/// (`MigrationStatus`, qapi/migration.json). That a save is `completed` or has `failed` is said a moment before the
/// machine has left `finish-migrate`; until then QEMU refuses to let it run.
fn next(machine: &str, transfer: &str) -> Step {
    let over = matches!(transfer, "" | "none" | "completed" | "failed" | "cancelled");
    match machine {
        "inmigrate" if matches!(transfer, "" | "none" | "failed" | "cancelled") => Step::Never,
        "inmigrate" | "finish-migrate" | "save-vm" | "restore-vm" if over => Step::Wait,
        "inmigrate" | "restore-vm" => Step::Wait,
        "internal-error" | "guest-panicked" | "shutdown" | "watchdog" | "colo" | "preconfig" => Step::Never,
        _ if transfer == "cancelling" => Step::Wait,
        _ if !over => Step::Cancel,
        "running" => Step::Done,
        "suspended" => Step::Wake,
        _ => Step::Go,
    }
}

/// Lets a guest run that is held, after a save that was finished or not, or a load; a save that goes on is given up.
/// Returns once QEMU says that the guest runs and nothing is being saved. Ctrl-C does not end it: it may be the reason.
///
/// # Errors
/// What QEMU says; [`crate::base::Kind::Failed`] for a machine that cannot run any more.
pub(super) fn let_run(socket: &Path) -> Result<()> {
    let mut qmp = Qmp::connect(socket, SETTLING)?;
    let (mut cancelled, mut failing_disk, mut refused) = (false, false, None::<(Deadline, Error)>);
    let mut machine = String::new();
    let running = poll::to_the_end(&Deadline::after(SETTLING), STEP, || {
        let word = |answer: serde_json::Value| answer["status"].as_str().unwrap_or_default().to_owned();
        let transfer = word(qmp.command("query-migrate", json!({}))?);
        machine = word(qmp.command("query-status", json!({}))?);
        let said = match next(&machine, &transfer) {
            Step::Done => return Ok(Some(())),
            Step::Wait => return Ok(None),
            Step::Cancel if cancelled => return Ok(None),
            Step::Cancel => {
                cancelled = true;
                qmp.command("migrate_cancel", json!({}))
            }
            Step::Wake => qmp.command("system_wakeup", json!({})),
            // Once more may help, when somebody made room; not again and again.
            Step::Go if machine == "io-error" && failing_disk => return Err(stuck(&machine)),
            Step::Go => {
                failing_disk |= machine == "io-error";
                qmp.command("cont", json!({}))
            }
            Step::Never => return Err(stuck(&machine)),
        };
        // Looked at again either way: that it was taken is not that it was done.
        match (said, &mut refused) {
            (Ok(_), _) => refused = None,
            (Err(error), None) => refused = Some((Deadline::after(REFUSING), error)),
            (Err(error), Some((since, _))) if since.passed() => return Err(error),
            (Err(_), Some(_)) => {}
        }
        Ok(None)
    })?;
    running.ok_or_else(|| Error::timed_out("QEMU does not let the guest run").because(format!("it is '{machine}'")))
}

fn stuck(machine: &str) -> Error {
    let why = match machine {
        "inmigrate" => "it was made to go on from saved memory, and has none",
        "io-error" => "its disk cannot be written: is there room on the host?",
        "guest-panicked" => "its kernel panicked",
        _ => "its machine is broken",
    };
    Error::failed("the guest cannot go on")
        .because(format!("{why} (QEMU says '{machine}')"))
        .hint("'virga restart --force' starts it from its disk, as after a power cut")
}

#[cfg(test)]
mod tests;
