//! Operations: one file a promise. They put the parts together, in order,
//! with locks and undo; they know neither clap nor the terminal nor any
//! driver by name.

mod catalog;
pub mod control;
pub mod create;
pub mod destroy;
pub mod doctor;
pub mod images;
mod intake;
pub mod list;
mod machine;
pub mod mirror;
pub mod prune;
pub mod publish;
pub mod remote;
pub mod serve;
pub mod ssh;
pub mod sync;
pub mod template;
pub mod upkeep;
pub mod wait;
mod warm;

use crate::base::plan::DriverKind;
use crate::base::progress::Reporter;
use crate::base::{Result, state};
use crate::config::Settings;
use crate::driver::{self, Driver, DriverSettings};
use crate::pool::Pool;

/// What every operation works in: the settings, and somebody who listens.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Validated settings.
    pub settings: &'a Settings,
    /// Hears notes and progress.
    pub reporter: &'a dyn Reporter,
}

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("settings", self.settings).finish_non_exhaustive()
    }
}

impl Env<'_> {
    /// Opens a driver; no I/O.
    #[must_use]
    pub fn driver(&self, kind: DriverKind) -> Box<dyn Driver> {
        driver::open(kind, &DriverSettings { layout: self.settings.layout.clone() })
    }

    /// Opens the pool, making the state folder where there is none.
    ///
    /// # Errors
    /// When it cannot be made, or was made by a newer virga.
    pub fn pool(&self) -> Result<Pool> {
        state::prepare(&self.settings.layout)?;
        Pool::open(&self.settings.layout)
    }
}
