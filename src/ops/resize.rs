//! Giving a guest more or less memory and processors, and a larger disk.

use super::{Env, change, machine};
use crate::base::{ByteSize, Error, GuestName, Result};
use crate::disk;
use crate::driver::Ability;

/// What is to change; `None` stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizeRequest {
    /// Memory.
    pub memory: Option<ByteSize>,
    /// Processors.
    pub cpus: Option<u32>,
    /// The size of the first disk; it only grows.
    pub disk: Option<ByteSize>,
}

/// Resizes a guest: one that runs if its driver can. `false` when it was that large already.
/// What is on the disk stays; the guest makes use of the room at its next boot.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] without such a guest, [`crate::base::Kind::Usage`] for a size that cannot be or a
/// disk that would shrink, [`crate::base::Kind::Failed`] when it runs and must not, or is saved.
pub fn resize(env: Env<'_>, name: &GuestName, request: &ResizeRequest) -> Result<bool> {
    let mut held = change::hold(env, name)?;
    let driver = env.driver(held.record.driver);
    if !change::runs(env, &held)? || driver.capabilities().resize_when_running != Ability::Yes {
        change::stopped(env, &held)?;
    }
    let mut plan = held.record.plan.clone();
    plan.memory = request.memory.unwrap_or(plan.memory);
    plan.cpus = request.cpus.unwrap_or(plan.cpus);
    machine::check_size(plan.memory, plan.cpus)?;
    if let (Some(size), Some(container)) = (request.disk, &mut plan.container) {
        container.wish.size = Some(size);
    }
    if let (Some(size), Some(root)) = (request.disk, plan.disks.first_mut()) {
        disk::check_size(size)?;
        if size < root.size {
            return Err(Error::usage(format!("the disk of '{name}' has {} and cannot shrink to {size}", root.size))
                .hint("what is on it would be lost: make a new guest with a smaller disk"));
        }
        root.size = size;
    }
    if plan == held.record.plan {
        return Ok(false);
    }
    if plan.container.is_some() {
        // What it could not be made with it cannot be given.
        driver.complete(&mut plan)?;
    }
    change::apply(env, &mut held, plan)?;
    Ok(true)
}
