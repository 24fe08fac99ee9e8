//! A guest's TPM: a process of `swtpm` that is started before QEMU and ends
//! when QEMU lets go of its socket, however that ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{self, Process};
use crate::base::cmd::{self, Cmd, Detached};
use crate::base::layout::RuntimeFiles;
use crate::base::poll::{self, Deadline};
use crate::base::{Error, GuestPlan, Result, fs};

const PROGRAM: &str = "swtpm";

/// It needs a few milliseconds to be there.
const PATIENCE: Duration = Duration::from_secs(20);

/// It ends within milliseconds of QEMU.
const ENDING: Duration = Duration::from_secs(1);

/// Where the program is.
///
/// # Errors
/// [`crate::base::Kind::Unavailable`] with how to install it.
pub(super) fn program() -> Result<PathBuf> {
    cmd::find(PROGRAM).ok_or_else(|| {
        Error::unavailable(format!("'{PROGRAM}', which is a guest's TPM, is not on the PATH"))
            .hint("install it: 'apt install swtpm' on Debian and Ubuntu; or do without '--tpm'")
    })
}

/// Starts the TPM of a guest that has one, and returns once QEMU can connect to it. Nobody may be using it.
///
/// # Errors
/// What stands in the way; nothing of it runs then.
pub(super) fn start(plan: &GuestPlan, state: &Path) -> Result<Option<Detached>> {
    if !plan.platform.tpm {
        return Ok(None);
    }
    end(plan)?;
    fs::create_private_dir(state)?;
    let socket = RuntimeFiles::new(&plan.runtime).tpm();
    let log = fs::open_log(&plan.backend_log)?;
    let mut child = Cmd::new(program()?)
        .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
        .arg(format!("dir={},mode=0600", text(state)?))
        .arg("--ctrl")
        .arg(control(&socket)?)
        .spawn_detached(log)?;
    let up = poll::until(&Deadline::after(PATIENCE), Duration::from_millis(2), || match child.ended()? {
        Some(status) => Err(Error::failed(format!("the guest's TPM ended at once ({status})"))
            .hint(format!("what it said is in '{}'", plan.backend_log.display()))),
        None => Ok(socket.exists().then_some(())),
    });
    match up {
        Ok(Some(())) => Ok(Some(child)),
        failed => {
            child.kill();
            failed?;
            Err(Error::timed_out("the guest's TPM did not come up"))
        }
    }
}

/// Ends the TPM of a guest whose QEMU is gone, should it not have ended by itself: a command may have been killed before
/// QEMU was there.
///
/// # Errors
/// When the system does not say, or it cannot be ended.
pub(super) fn end(plan: &GuestPlan) -> Result<()> {
    if !plan.platform.tpm {
        return Ok(());
    }
    let socket = RuntimeFiles::new(&plan.runtime).tpm();
    let control = control(&socket)?;
    let ours = |args: &[String]| args.contains(&control);
    for (pid, _) in process::scan(ours)? {
        if let Some(process) = Process::open(pid, ours)?
            && !process.wait(ENDING)
        {
            process.end(Duration::ZERO)?;
        }
    }
    fs::remove_file(&socket)
}

fn control(socket: &Path) -> Result<String> {
    Ok(format!("type=unixio,path={}", text(socket)?))
}

/// A path in an option of swtpm's, which has no way to say a comma.
fn text(path: &Path) -> Result<&str> {
    path.to_str().filter(|text| !text.contains(',')).ok_or_else(|| {
        Error::usage(format!("a guest with a TPM cannot be in '{}': the path has a comma", path.display()))
            .hint("set VIRGA_HOME and VIRGA_RUNTIME_DIR to other folders")
    })
}
