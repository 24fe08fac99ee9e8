//! Connections to libvirt daemons, and libvirt's errors as ours.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::enumutil::Enum;
use virt::error::{ErrorDomain, ErrorNumber};
use virt::storage_pool::StoragePool;

use super::library;
use crate::base::{Error, Kind, Result};

/// How long a daemon that was not reached is not asked again: over the network each try may take a minute.
const AWAY: Duration = Duration::from_secs(5);

/// Open connections, by URI: one command asks a daemon many things. Whoever has them has the same ones, which are
/// closed when nobody has them any more.
#[derive(Clone)]
pub(super) struct Connections(Arc<Open>);

#[derive(Default)]
struct Open {
    open: Mutex<HashMap<String, Arc<Connection>>>,
    away: Mutex<HashMap<String, (Instant, String)>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl Connections {
    /// Those that somebody in this process has; none is open yet where nobody has any.
    pub(super) fn shared() -> Self {
        static SHARED: Mutex<Weak<Open>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = shared.upgrade().unwrap_or_default();
        *shared = Arc::downgrade(&pool);
        Connections(pool)
    }

    /// The connection to this daemon, opened where there is none yet.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the daemon cannot be reached, or libvirt is not installed here.
    pub(super) fn get(&self, uri: &str) -> Result<Arc<Connection>> {
        library::load()?;
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = open.get(uri)
            && connection.is_alive().unwrap_or(false)
        {
            return Ok(Arc::clone(connection));
        }
        let mut away = self.0.away.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, why)) = away.get(uri).filter(|(since, _)| since.elapsed() < AWAY) {
            return Err(unreachable(uri, why));
        }
        let connect = connect(uri).map_err(|error| {
            away.insert(uri.to_owned(), (Instant::now(), words(&error)));
            unreachable(uri, &words(&error))
        })?;
        let connection = Arc::new(Connection { connect, pools: Mutex::default() });
        open.insert(uri.to_owned(), Arc::clone(&connection));
        Ok(connection)
    }
}

/// A connection, and those of the daemon's storage pools that were found and run.
pub(super) struct Connection {
    connect: Connect,
    pools: Mutex<HashMap<String, Arc<StoragePool>>>,
}

impl Connection {
    /// A pool that was [kept](Self::keep): no command lives so long that it is looked for again.
    pub(super) fn kept(&self, pool: &str) -> Option<Arc<StoragePool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(pool).cloned()
    }

    /// Keeps a pool.
    pub(super) fn keep(&self, name: &str, pool: StoragePool) -> Arc<StoragePool> {
        let pool = Arc::new(pool);
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::clone(&pool));
        pool
    }
}

impl Deref for Connection {
    type Target = Connect;

    fn deref(&self) -> &Connect {
        &self.connect
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for (uri, connection) in self.open.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            tracing::trace!(uri, users = Arc::strong_count(&connection), "closing the connection to libvirt");
        }
    }
}

fn connect(uri: &str) -> std::result::Result<Connect, virt::error::Error> {
    static QUIET: Once = Once::new();
    // libvirt prints every error by itself otherwise.
    QUIET.call_once(virt::error::clear_error_callback);
    Connect::open(Some(uri))
}

fn unreachable(uri: &str, why: &str) -> Error {
    let error = Error::unavailable(format!("libvirt at '{uri}' cannot be reached")).because(why);
    error.hint(match uri {
        "qemu:///system" => "is libvirtd installed and running, and are you in the group 'libvirt'?",
        "qemu:///session" => "is libvirtd installed?",
        _ => "'--connect URI' names another daemon, as in qemu+ssh://host/system",
    })
}

/// libvirt's own words, without its numbers.
fn words(error: &virt::error::Error) -> String {
    error.message().to_owned()
}

/// Says what was being done over an error of libvirt's, under the kind that fits.
pub(super) fn explain(error: &virt::error::Error, doing: impl Into<String>) -> Error {
    Error::new(kind(error), doing).because(words(error))
}

/// For `map_err`.
pub(super) fn doing(what: impl Into<String>) -> impl FnOnce(virt::error::Error) -> Error {
    move |error| explain(&error, what)
}

fn kind(error: &virt::error::Error) -> Kind {
    use ErrorNumber as E;
    match error.code() {
        // The way to it broke; what a daemon itself says has the domain of who said it.
        _ if matches!(error.domain(), Enum::Known(ErrorDomain::Rpc)) => Kind::Unavailable,
        Enum::Known(E::NoDomain | E::NoStorageVolume | E::NoStoragePool | E::NoNetwork | E::NoDomainSnapshot) => {
            Kind::NotFound
        }
        Enum::Known(E::DomExist | E::StorageVolExist | E::NetworkExist) => Kind::Exists,
        Enum::Known(E::AuthFailed | E::AuthCancelled | E::NoConnect | E::AccessDenied) => Kind::Unavailable,
        Enum::Known(E::OperationTimeout | E::AgentUnresponsive) => Kind::TimedOut,
        Enum::Known(E::NoSupport | E::ArgumentUnsupported | E::ConfigUnsupported | E::OperationUnsupported) => {
            Kind::Unsupported
        }
        _ => Kind::Failed,
    }
}

/// `None` for what is not there.
pub(super) fn found<T>(
    answer: std::result::Result<T, virt::error::Error>,
    doing: impl FnOnce() -> String,
) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if kind(&error) == Kind::NotFound => Ok(None),
        Err(error) => Err(explain(&error, doing())),
    }
}
