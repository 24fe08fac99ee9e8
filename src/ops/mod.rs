//! Operations: one file a promise. They put the parts together, in order,
//! with locks and undo; they know neither clap nor the terminal nor any
//! driver by name.

pub mod access;
pub mod attach;
mod catalog;
mod change;
mod choose;
mod clock;
pub mod console;
pub mod control;
pub mod copy;
pub mod cp;
pub mod create;
pub mod destroy;
pub mod doctor;
pub mod exec;
mod footing;
mod identity;
pub mod images;
pub mod info;
mod intake;
pub mod list;
mod machine;
pub mod mirror;
mod nothing;
mod origin;
pub mod port;
pub mod prune;
pub mod publish;
pub mod remote;
pub mod rename;
pub mod resize;
pub mod run;
mod saved;
pub mod screen;
pub mod serve;
pub mod session;
pub mod snapshot;
pub mod ssh;
pub mod sync;
pub mod template;
pub mod to_image;
pub mod transport;
pub mod upgrade;
pub mod upkeep;
#[cfg(feature = "libvirt")]
pub mod uvt;
pub mod wait;
mod warm;

use crate::base::plan::DriverKind;
use crate::base::progress::Reporter;
use crate::base::{Kind, Result, fs, state};
use crate::config::{Netrc, Settings};
use crate::driver::{self, Driver, DriverSettings};
use crate::fetch::{FetchSettings, Fetcher, Logins};
use crate::pool::Pool;

/// More than any netrc file of a person has.
const NETRC_LIMIT: u64 = 1 << 20;

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
        let Settings { layout, connect, pool, incus, incus_clients, incus_pool, lxc, .. } = self.settings;
        let settings = DriverSettings {
            layout: layout.clone(),
            connect: connect.clone(),
            pool: pool.clone(),
            incus: incus.clone(),
            incus_clients: incus_clients.clone(),
            incus_pool: incus_pool.clone(),
            lxc: lxc.clone(),
        };
        driver::open(kind, &settings)
    }

    /// What fetches from servers, with the user's own logins. Connects nowhere.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a netrc file that is named and cannot be read.
    pub fn fetcher(&self) -> Result<Fetcher> {
        let (settings, mut fetch) = (self.settings, FetchSettings::default());
        fetch.wrong_proxies = settings.wrong_proxies.clone();
        fetch.proxies = settings.proxies.clone();
        if let Some(Netrc { path, named }) = &settings.netrc {
            match fs::read_text(path, NETRC_LIMIT) {
                Ok(text) => fetch.logins = Logins::parse(&text),
                Err(error) if *named => return Err(error.with_kind(Kind::Usage).hint("the variable NETRC names it")),
                Err(error) => tracing::debug!(%error, "no logins are taken from the netrc file"),
            }
        }
        Ok(Fetcher::new(&fetch))
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
