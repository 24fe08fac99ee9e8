//! Which driver runs a guest, where the user leaves that open.

use super::Env;
use super::machine::{self, MachineRequest};
use super::origin::Base;
use crate::base::plan::{DriverChoice, DriverKind};
use crate::base::{Error, Kind, Result};
use crate::driver::Boots;

/// The driver that is asked for; else the first that boots what the image is and is usable here, and says why.
///
/// # Errors
/// [`Kind::NotFound`] without such an image, [`Kind::Unavailable`] when no driver can be used.
pub(super) fn driver(env: Env<'_>, request: &MachineRequest) -> Result<DriverKind> {
    match request.driver.unwrap_or(env.settings.defaults.driver) {
        DriverChoice::Kind(kind) => Ok(kind),
        DriverChoice::Auto => first(env, request),
    }
}

fn first(env: Env<'_>, request: &MachineRequest) -> Result<DriverKind> {
    let pool = env.pool()?;
    let (mut passed, mut missing) = (Vec::new(), None);
    for kind in DriverKind::ALL {
        let driver = env.driver(*kind);
        match Base::offered(&pool, request, driver.capabilities().boots) {
            // What several images fit is for the user to settle, whatever runs them.
            Err(error) if error.kind() == Kind::NotFound => {
                let what = if driver.capabilities().boots.contains(&Boots::DiskImage) { "disk" } else { "container" };
                passed.push(format!("{kind}: no {what} image matches"));
                missing = missing.or(Some(error));
                continue;
            }
            _ => {}
        }
        match machine::usable(driver.as_ref()) {
            Ok(()) => {
                let why = if passed.is_empty() { "the first".into() } else { passed.join("; ") };
                env.reporter.note(&format!("driver {kind} ({why})"));
                return Ok(*kind);
            }
            Err(error) => passed.push(format!("{kind}: {error}")),
        }
    }
    match missing {
        Some(error) if passed.len() == DriverKind::ALL.len() => Err(error.hint(passed.join("; "))),
        _ => Err(Error::unavailable("no driver can run this guest here").because(passed.join("; "))),
    }
}
