//! What uvtool promises, kept over virga's own parts: the same pool, volume
//! names, metadata files and domains, so that each tool sees what the other
//! made. `docs/uvtool.md` says where we do better than the original.

pub mod create;
pub mod guests;
pub mod images;
mod metadata;
pub mod sync;
pub mod wait;

use super::Env;
use crate::base::GuestName;
use crate::driver::libvirt::uvtool::{Machine, Uvtool};
use crate::guest::{self, Record};

/// uvtool's storage pool.
pub use crate::driver::libvirt::uvtool::POOL;

/// The daemon that the settings name.
fn libvirt(env: Env<'_>) -> Uvtool {
    Uvtool::new(&env.settings.uvtool.connect)
}

/// Our own record of a domain, where virga made it.
fn record_of(env: Env<'_>, machine: &Machine) -> Option<Record> {
    let name: GuestName = machine.name.parse().ok()?;
    // One that cannot be read helps nobody here; `virga list` shows it as broken.
    let record = guest::load(&env.settings.layout, &name).ok()??;
    (record.plan.id.as_str() == machine.uuid).then_some(record)
}
