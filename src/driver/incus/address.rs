//! Addresses of daemons: what `--connect` says, and what a guest's plan keeps.

use std::path::PathBuf;

use crate::base::{BackendName, Error, Result, name};

/// What the address of a daemon begins with, by its socket or by a remote's name.
pub(in crate::driver) const SCHEME: &str = "incus://";

/// What the address of a daemon begins with that has none of our names.
const HTTPS: &str = "https://";

/// The port of a daemon that states none (Incus documentation, "core.https_address").
const PORT: u16 = 8443;

/// A daemon's address, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub place: Place,
    /// The project that guests are in; `None`: the usual one.
    pub project: Option<BackendName>,
}

/// Where a daemon is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a socket of this host.
    Socket(PathBuf),
    /// Where the daemon's own client has it under this name.
    Remote(BackendName),
    /// At a host's port, with this server certificate; `None`: one that the system's authorities vouch for.
    Host(Host, Option<PathBuf>),
}

/// A host and a port on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// A name or an address; an IPv6 one in brackets.
    pub name: String,
    pub port: u16,
}

impl Host {
    /// Reads `HOST[:PORT]`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::base::Kind::Usage) for what is none.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim_end_matches('/');
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
            _ => (text, Some(PORT)),
        };
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let right = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)),
        };
        match port.filter(|_| right) {
            Some(port) => Ok(Host { name: name.to_owned(), port }),
            None => Err(Error::usage(format!("{} is not a host and its port", name::quoted(text)))),
        }
    }

    /// The name as a system's call wants it.
    pub(super) fn bare(&self) -> &str {
        self.name.trim_start_matches('[').trim_end_matches(']')
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

/// Whether it is the address of a daemon of this driver's.
pub(in crate::driver) fn is_ours(uri: &str) -> bool {
    uri.starts_with(SCHEME) || uri.starts_with(HTTPS)
}

/// Reads one.
///
/// # Errors
/// [`Kind::Usage`](crate::base::Kind::Usage) for an address that is none.
pub(super) fn parse(uri: &str) -> Result<Address> {
    let wrong = || {
        Error::usage(format!("{} is not the address of an Incus daemon", name::quoted(uri)))
            .hint("one of: incus:///PATH/unix.socket, incus://REMOTE, https://HOST:8443; with ?project=NAME behind it if need be")
    };
    let (rest, query) = uri.split_once('?').unwrap_or((uri, ""));
    let (mut project, mut certificate) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').ok_or_else(wrong)? {
            ("project", name) => project = Some(name.parse().map_err(|_| wrong())?),
            ("certificate", file) if file.starts_with('/') => certificate = Some(PathBuf::from(file)),
            _ => return Err(wrong()),
        }
    }
    let place = match (rest.strip_prefix(SCHEME), rest.strip_prefix(HTTPS)) {
        (Some(socket), _) if socket.starts_with('/') && certificate.is_none() => Place::Socket(socket.into()),
        (Some(name), _) if certificate.is_none() => Place::Remote(name.parse().map_err(|_| wrong())?),
        (None, Some(host)) => Place::Host(Host::parse(host).map_err(|_| wrong())?, certificate),
        _ => return Err(wrong()),
    };
    Ok(Address { place, project })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let name = |text: &str| text.parse::<BackendName>().unwrap();
        let of = |place, project: Option<&str>| Address { place, project: project.map(name) };
        assert_eq!(
            parse("incus:///run/incus/unix.socket?project=a").unwrap(),
            of(Place::Socket("/run/incus/unix.socket".into()), Some("a"))
        );
        assert_eq!(parse("incus://far").unwrap(), of(Place::Remote(name("far")), None));
        let host = |name: &str, port| Host { name: name.into(), port };
        assert_eq!(parse("https://[::1]").unwrap(), of(Place::Host(host("[::1]", 8443), None), None));
        assert_eq!(
            parse("https://host.example:1?certificate=/a.crt&project=b").unwrap(),
            of(Place::Host(host("host.example", 1), Some("/a.crt".into())), Some("b"))
        );
        for bad in [
            "incus://",
            "incus://../etc",
            "incus://a/b",
            "incus://far?project=../x",
            "incus://far?project",
            "incus://far?certificate=/a.crt",
            "incus:///run/socket?colour=red",
            "https://",
            "https://user@host",
            "https://host:none",
            "https://[::1",
            "https://host/path",
            "qemu:///system",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), crate::base::Kind::Usage, "{bad}");
        }
    }
}
