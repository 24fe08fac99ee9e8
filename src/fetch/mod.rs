//! URL → verified bytes: retries, resuming, size and digest while the bytes
//! stream. Knows plain paths only: no index, no pool.
//!
//! ```text
//! http.rs      client, redirects, what an answer or a broken connection means
//! retry.rs     what is tried again, and when
//! netrc.rs     the login for a host
//! metadata.rs  small documents into memory, conditionally
//! item.rs      items into a file, from one of several places
//! small.rs     the short way for small ones
//! download.rs  the file under way and the note beside it
//! pipeline.rs  network task → hash thread → write thread
//! ```

mod download;
mod http;
mod item;
mod metadata;
mod netrc;
mod pipeline;
mod retry;
mod small;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use reqwest::Url;
use serde::{Deserialize, Serialize};

pub use self::item::{Expected, Fetched};
pub use self::metadata::Metadata;
pub use self::netrc::Logins;
use self::retry::Budget;
use crate::base::proxy::Proxies;
use crate::base::{Error, Kind, Result, interrupt};

/// How patient the network code is. [`Default`] is what virga uses; tests shorten it.
#[derive(Clone, Debug)]
pub struct FetchSettings {
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Longest time for name, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Longest silence of a server; over this time it must also bring 1 KiB/s.
    pub stall_timeout: Duration,
    /// How often a fruitless attempt is tried again. One that brought a MiB of new bytes counts as the first again.
    pub retries: u32,
    /// Wait before the first retry; doubles from there, plus up to as much again at random.
    pub first_delay: Duration,
    /// How many retries all transfers have together: a server that is going
    /// down must not be asked that often for each of thousands of items. What succeeds gives one back.
    pub budget: u32,
    /// For hosts whose URL has no user name and password.
    pub logins: Logins,
    /// The proxies that the environment names, for messages.
    pub proxies: Proxies,
    /// For URLs of these schemes the environment names a proxy that cannot be used, and why.
    pub wrong_proxies: Vec<(&'static str, String)>,
}

impl Default for FetchSettings {
    fn default() -> Self {
        FetchSettings {
            user_agent: concat!("virga/", env!("CARGO_PKG_VERSION")).into(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retries: 4,
            first_delay: Duration::from_millis(500),
            budget: 32,
            logins: Logins::default(),
            proxies: Proxies::default(),
            wrong_proxies: Vec::new(),
        }
    }
}

/// By what a server recognises one state of a document (RFC 9110 section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// The `ETag` header.
    pub etag: Option<String>,
    /// The `Last-Modified` header, as the server wrote it.
    pub last_modified: Option<String>,
}

/// Fetches from `http`, `https` and `file` URLs. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
struct Shared {
    /// One for each [`Way`](http::Way), made when first needed.
    clients: Arc<[OnceLock<reqwest::Client>; 3]>,
    settings: FetchSettings,
    budget: Arc<Budget>,
    stop: Stop,
}

impl Fetcher {
    /// Connects nowhere. Proxies come from the environment (`HTTPS_PROXY`,
    /// `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    #[must_use]
    pub fn new(settings: &FetchSettings) -> Self {
        Self::with_stop(settings, interrupt::requested)
    }

    fn with_stop(settings: &FetchSettings, requested: fn() -> bool) -> Self {
        Fetcher {
            shared: Arc::new(Shared {
                clients: Arc::default(),
                budget: Arc::new(Budget::new(settings.budget)),
                settings: settings.clone(),
                stop: Stop(requested),
            }),
        }
    }

    /// The same fetcher, its connections and its budget, with so many retries of each transfer.
    #[must_use]
    pub fn with_retries(&self, retries: u32) -> Self {
        let mut shared = Shared::clone(&self.shared);
        shared.settings.retries = retries;
        Fetcher { shared: Arc::new(shared) }
    }
}

/// What to fetch, and how messages name it: without credentials.
#[derive(Clone)]
struct Target {
    url: Url,
    shown: String,
    /// For `file` URLs.
    local: Option<PathBuf>,
}

impl Target {
    fn new(url: &Url) -> Result<Self> {
        let shown = http::shown(url);
        let local = match url.scheme() {
            "http" | "https" => None,
            "file" => Some(url.to_file_path().map_err(|()| Error::usage(format!("{shown} names no local file")))?),
            _ => return Err(Error::usage(format!("{shown}: virga fetches from http, https and file URLs"))),
        };
        Ok(Target { url: url.clone(), shown, local })
    }

    fn error(&self, kind: Kind, what: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("{}: {what}", self.shown))
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Target").field(&self.shown).finish()
    }
}

/// Refuses anything but a plain file: a pipe or a device would hang or never end.
fn local_size(target: &Target, path: &Path) -> Result<u64> {
    let meta = path.metadata().map_err(|error| crate::base::fs::explain(error, "opening", path))?;
    if meta.is_file() { Ok(meta.len()) } else { Err(target.error(Kind::Usage, "not a plain file")) }
}

/// Ctrl-C, looked at often enough that nobody waits for it.
#[derive(Clone, Copy, Debug)]
struct Stop(fn() -> bool);

impl Stop {
    const TICK: Duration = Duration::from_millis(50);

    fn check(self) -> Result<()> {
        if !(self.0)() {
            return Ok(());
        }
        Err(Error::new(Kind::Interrupted, "interrupted")
            .hint("what was downloaded is kept: the same command continues from there"))
    }

    /// Runs `work` to its end unless Ctrl-C comes first.
    async fn guard<T>(self, work: impl Future<Output = T>) -> Result<T> {
        self.check()?;
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(Self::TICK) => self.check()?,
            }
        }
    }
}

/// Runs blocking file work on tokio's threads for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::failed("a worker thread failed").because(error)),
    }
}
