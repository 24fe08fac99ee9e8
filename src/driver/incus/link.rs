//! The way to a daemon: a socket of this host, or HTTPS to another one. Requests
//! and web sockets take the same way.

use std::net::{TcpStream as Blocking, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::{Address, Host, Place};
use super::remotes::{self, Far, Remote};
use super::tls;
use crate::base::{BackendName, Context as _, Error, Result};

/// How long a host may take to answer at all.
const CONNECT: Duration = Duration::from_secs(10);

/// The same where the next member of the cluster may answer in its place.
const GLIMPSE: Duration = Duration::from_secs(3);

/// A host that is silent is asked whether it is there after this long, and again, and is given up after [`TRIES`].
const SILENT: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;

/// What is said to a daemon over its socket needs a host's name all the same.
const NOBODY: &str = "incus";

/// A way to a daemon.
pub(super) enum Link {
    /// This socket.
    Socket(PathBuf),
    /// HTTPS to this host, and the file of the certificate that we show there.
    Far { host: Host, config: Arc<ClientConfig>, identity: PathBuf },
}

/// A connection's bytes.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

impl Link {
    /// Finds the way, and the project. `folders`: where clients keep their remotes; `usual`: the usual socket.
    /// Of several members of a cluster it takes the first that lets itself be connected to.
    ///
    /// # Errors
    /// As [`remotes::find`]; for a certificate that cannot be used.
    pub(super) fn find(
        address: Address,
        folders: &[PathBuf],
        usual: impl FnOnce() -> PathBuf,
    ) -> Result<(Self, Option<BackendName>)> {
        let far = match address.place {
            Place::Socket(socket) => return Ok((Link::Socket(socket), address.project)),
            Place::Remote(name) => match remotes::find(folders, &name)? {
                Remote::Local(socket) => return Ok((Link::Socket(socket.unwrap_or_else(usual)), address.project)),
                Remote::Far(far) => far,
            },
            Place::Host(host, certificate) => Far {
                hosts: vec![host],
                pinned: certificate.as_deref().map(remotes::certificate).transpose()?,
                identity: remotes::identity(folders)?,
                project: None,
            },
        };
        let host = nearest(&far.hosts);
        let identity = far.identity.file.clone();
        let config = Arc::new(tls::config(far.pinned, far.identity)?);
        Ok((Link::Far { host, config, identity }, address.project.or(far.project)))
    }

    /// Whether guests of the daemon are on another host.
    pub(super) fn is_far(&self) -> bool {
        matches!(self, Link::Far { .. })
    }

    /// What requests are made with. Talks to nobody yet.
    ///
    /// # Errors
    /// When the system has nothing to give for it.
    pub(super) fn client(&self) -> Result<reqwest::Client> {
        crate::base::tls::provider();
        let builder = reqwest::Client::builder().no_proxy().http1_only();
        let builder = match self {
            Link::Socket(socket) => builder.unix_socket(socket.clone()),
            Link::Far { config, .. } => builder
                .tls_backend_preconfigured(ClientConfig::clone(config))
                .connect_timeout(CONNECT)
                .tcp_keepalive(SILENT)
                .tcp_keepalive_interval(SILENT)
                .tcp_keepalive_retries(TRIES),
        };
        builder.build().context(|| "setting up the connection to the daemon".into())
    }

    /// What requests' paths are put behind.
    pub(super) fn base(&self) -> String {
        match self {
            Link::Socket(_) => format!("http://{NOBODY}"),
            Link::Far { host, .. } => format!("https://{host}"),
        }
    }

    /// A connection for a web socket.
    ///
    /// # Errors
    /// As [`unreachable`](Self::unreachable).
    pub(super) async fn dial(&self) -> Result<Box<dyn Bytes>> {
        let away = |error: std::io::Error| self.unreachable(&error);
        match self {
            Link::Socket(socket) => Ok(Box::new(UnixStream::connect(socket).await.map_err(away)?)),
            Link::Far { host, config, .. } => {
                let dialled = async {
                    let stream = TcpStream::connect((host.bare(), host.port)).await?;
                    keep_alive(&stream)?;
                    let name = ServerName::try_from(host.bare().to_owned()).map_err(std::io::Error::other)?;
                    TlsConnector::from(Arc::clone(config)).connect(name, stream).await
                };
                match tokio::time::timeout(CONNECT, dialled).await {
                    Ok(stream) => Ok(Box::new(stream.map_err(away)?)),
                    Err(_) => Err(away(std::io::ErrorKind::TimedOut.into())),
                }
            }
        }
    }

    /// Why nobody could be talked to.
    pub(super) fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        if tls::is_refusal(error) {
            return Error::refused(format!("the daemon at '{self}' shows another certificate than it should"))
                .hint("somebody may be in between; if it was given a new one, 'incus remote remove' and 'incus remote add' accept that");
        }
        let why = innermost(error);
        let answer = Error::unavailable(format!("no Incus or LXD daemon answers at '{self}'"));
        let answer = match self {
            Link::Socket(_) if why.contains("ermission denied") => answer.hint(self.entry()),
            Link::Socket(_) => answer.hint("is it installed and running?"),
            Link::Far { .. } => {
                answer.hint("does it listen there? 'incus config set core.https_address :8443' has it do so")
            }
        };
        answer.because(why)
    }

    /// How one is let in.
    pub(super) fn entry(&self) -> String {
        match self {
            Link::Socket(_) => "its socket is for members of the group 'incus-admin' (LXD: 'lxd')".into(),
            Link::Far { identity, .. } => format!(
                "'incus config trust add-certificate {}' on the daemon's host lets this client in",
                identity.display()
            ),
        }
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Link::Socket(socket) => Path::display(socket).fmt(f),
            Link::Far { host, .. } => write!(f, "https://{host}"),
        }
    }
}

/// The first host that lets itself be connected to; the first of all when none does.
fn nearest(hosts: &[Host]) -> Host {
    let there = |host: &&Host| {
        let mut all = (host.bare(), host.port).to_socket_addrs().into_iter().flatten();
        all.any(|address| Blocking::connect_timeout(&address, GLIMPSE).is_ok())
    };
    let found = if hosts.len() > 1 { hosts.iter().find(there) } else { None };
    found.unwrap_or(&hosts[0]).clone()
}

/// So that a host that is gone without a word is found out.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, SILENT)?;
    sockopt::set_tcp_keepintvl(stream, SILENT)?;
    sockopt::set_tcp_keepcnt(stream, TRIES)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

/// The deepest cause's own words: those over it say that something was wrong, it says what.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = cause.to_string();
        source = cause.source();
    }
    words
}
