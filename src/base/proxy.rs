//! The proxies that the environment names: which one a server is asked through, for messages. What is asked through them
//! is decided by the library that does it; this says the same.

use super::address;

/// A proxy, and where it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// For URLs of this scheme.
    pub scheme: &'static str,
    /// The variable that names it.
    pub variable: &'static str,
    /// Itself, without a login.
    pub address: String,
}

impl Proxy {
    /// From a variable's value, which may lack `http://`.
    #[must_use]
    pub fn new(scheme: &'static str, variable: &'static str, value: &str) -> Self {
        let address = match value.contains("://") {
            true => address::shown(value),
            false => address::shown(&format!("http://{value}")),
        };
        Proxy { scheme, variable, address: address.trim_end_matches('/').to_owned() }
    }

    /// What kind of proxy it is, as in `socks5`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.address.split_once("://").map_or("", |(kind, _)| kind)
    }
}

/// All of them, and the servers that are asked without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// One for each scheme of URLs at most.
    pub named: Vec<Proxy>,
    /// `NO_PROXY`: names of hosts and domains, addresses and networks, separated by commas.
    pub without: String,
}

impl Proxies {
    /// The proxy that a host is asked through. `None` too where that cannot be told: an address that may lie in a network
    /// of `NO_PROXY`.
    #[must_use]
    pub fn of(&self, scheme: &str, host: &str) -> Option<&Proxy> {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let address = host.parse::<std::net::IpAddr>().is_ok();
        let passed = self.without.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
            let domain = entry.trim_start_matches('.');
            match entry.as_str() {
                "" => false,
                "*" => true,
                entry if address => entry == host || entry.contains('/'),
                _ => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
            }
        });
        self.named.iter().find(|proxy| proxy.scheme == scheme && !passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_named_without_its_login_and_only_where_it_is_asked() {
        let proxy = Proxy::new("https", "HTTPS_PROXY", "user:s3cret@proxy:3128");
        assert_eq!((proxy.address.as_str(), proxy.kind()), ("http://proxy:3128", "http"));
        let named = vec![proxy, Proxy::new("http", "all_proxy", "socks5://h:1/")];
        let proxies = Proxies { named, without: "Example.org, .lab,10.0.0.0/8,192.0.2.1".into() };
        let of = |scheme, host| proxies.of(scheme, host).map(|proxy| proxy.variable);
        assert_eq!(of("https", "h.example.com"), Some("HTTPS_PROXY"));
        assert_eq!(of("http", "notexample.org"), Some("all_proxy"));
        for host in ["example.org", "a.EXAMPLE.org", "x.lab", "10.1.2.3", "192.0.2.1"] {
            assert_eq!(of("https", host), None, "{host}");
        }
        assert_eq!(Proxies { without: "*".into(), ..proxies.clone() }.of("http", "h"), None);
        assert_eq!(Proxies::default().of("http", "h"), None);
    }
}
