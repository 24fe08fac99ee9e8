//! Network cards and what they are plugged into.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::quoted;
use super::plan::random;
use super::{BackendName, Error, Result};

/// One network card of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address.
    pub mac: Mac,
    /// What it is plugged into.
    pub network: Network,
}

/// What a card is plugged into. Text form: `user`, `full`, `none`, `nat`, `network=NAME`, `bridge=NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Network {
    /// A network of the guest's own, in user space: it reaches the world and not its host, and in come only forwarded
    /// ports. Needs no privileges.
    #[default]
    User,
    /// The same, and the host's services are reached as well, those of its loopback too.
    Full,
    /// The same, and nothing is reached: forwarded ports lead in.
    None,
    /// The daemon's default network, with addresses by DHCP.
    Nat,
    /// A network that the daemon knows by this name.
    Named(BackendName),
    /// A bridge of the host's.
    Bridge(BackendName),
}

impl Network {
    /// Whether it is the guest's own, in user space: its ports are reached by ports of the host.
    #[must_use]
    pub fn in_user_space(&self) -> bool {
        matches!(self, Network::User | Network::Full | Network::None)
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.split_once('=')) {
            ("user", _) => Ok(Network::User),
            ("full", _) => Ok(Network::Full),
            ("none", _) => Ok(Network::None),
            ("nat", _) => Ok(Network::Nat),
            (_, Some(("network", name))) => Ok(Network::Named(name.parse()?)),
            (_, Some(("bridge", name))) => Ok(Network::Bridge(name.parse()?)),
            _ => Err(Error::usage(format!("{} is not a network", quoted(text)))
                .hint("one of: user, full, none, nat, network=NAME, bridge=NAME")),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::User => f.pad("user"),
            Network::Full => f.pad("full"),
            Network::None => f.pad("none"),
            Network::Nat => f.pad("nat"),
            Network::Named(name) => write!(f, "network={name}"),
            Network::Bridge(name) => write!(f, "bridge={name}"),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

/// A network card's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// A random address under QEMU's prefix 52:54:00.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn generate() -> Result<Self> {
        let [a, b, c] = random::<3>()?;
        Ok(Mac([0x52, 0x54, 0x00, a, b, c]))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?).collect();
        bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            // The lowest bit of the first byte marks a group address (IEEE 802).
            .filter(|bytes| bytes[0] & 1 == 0)
            .map(Mac)
            .ok_or_else(|| Error::usage(format!("{} is not a network card's address", quoted(text))))
    }
}

impl TryFrom<String> for Mac {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        let mac = Mac::generate().unwrap();
        assert_eq!(Mac::try_from(mac.to_string()).unwrap(), mac);
        for bad in ["", "52:54:00:1:2:3", "53:54:00:01:02:03", "52:54:00:01:02:03:04", "52-54-00-01-02-03"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_round_trip_and_hostile_names_are_refused() {
        for good in ["user", "nat", "network=default", "bridge=br0.12"] {
            assert_eq!(good.parse::<Network>().unwrap().to_string(), good);
        }
        for bad in
            ["", "br0", "network=", "bridge=-x", "network=a'b", "bridge=a/b", "network=..", "bridge=a,b", "user=x"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
