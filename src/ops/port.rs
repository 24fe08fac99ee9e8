//! Ports of a guest that is there, on the host's loopback.

use super::{Env, change};
use crate::base::plan::Forward;
use crate::base::{Error, GuestName, Kind, Result};
use crate::driver::Driver;
use crate::guest::Held;

/// Makes a port reachable on 127.0.0.1, as the guest runs or not, and returns it with the host's port filled in.
///
/// # Errors
/// [`Kind::NotFound`] without such a guest, [`Kind::Unsupported`] when its driver cannot, [`Kind::Exists`] for a host's
/// port that leads to the guest already. It has no new one then.
pub fn add(env: Env<'_>, name: &GuestName, forward: Forward) -> Result<Forward> {
    let (mut held, driver, mut ports) = held(env, name)?;
    if forward.host != 0 && ports.iter().any(|port| port.host == forward.host) {
        return Err(Error::new(Kind::Exists, format!("port {} leads to '{name}' already", forward.host)));
    }
    ports.push(forward);
    apply(env, &mut held, ports)?;
    driver.forwards(&held.record.plan)?.last().copied().ok_or_else(|| Error::failed("the guest has no such port"))
}

/// Takes a port away again.
///
/// # Errors
/// As [`add`]; [`Kind::NotFound`] for one that does not lead to the guest. It still does then.
pub fn remove(env: Env<'_>, name: &GuestName, forward: Forward) -> Result<()> {
    let (mut held, _, mut ports) = held(env, name)?;
    let before = ports.len();
    ports.retain(|port| *port != forward);
    if ports.len() == before {
        let there: Vec<String> = ports.iter().map(|port| format!("{}:{}", port.host, port.guest)).collect();
        let error = Error::not_found(format!("guest '{name}' has no port {}:{}", forward.host, forward.guest));
        return Err(if there.is_empty() { error } else { error.hint(format!("it has: {}", there.join(", "))) });
    }
    apply(env, &mut held, ports)
}

/// The guest, and its ports as they are: what was chosen once stays.
fn held(env: Env<'_>, name: &GuestName) -> Result<(Held, Box<dyn Driver>, Vec<Forward>)> {
    let held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    let what = || format!("the {} driver cannot change a guest's ports", held.record.driver);
    driver.capabilities().ports.demand(what)?;
    change::runs(env, &held)?;
    let ports = driver.forwards(&held.record.plan)?;
    Ok((held, driver, ports))
}

fn apply(env: Env<'_>, held: &mut Held, ports: Vec<Forward>) -> Result<()> {
    let plan = crate::base::GuestPlan { forwards: ports, ..held.record.plan.clone() };
    change::apply(env, held, plan)
}
