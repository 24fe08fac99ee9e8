//! The login that a netrc file has for a host, in the form that ftp(1) gave it and curl, git and wget read.

use std::fmt;

use reqwest::Url;

/// What a netrc file says. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Logins(Vec<Entry>);

#[derive(Clone, Default, PartialEq, Eq)]
struct Entry {
    /// `None` for `default`.
    host: Option<String>,
    login: Option<String>,
    password: Option<String>,
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Logins(for {} hosts)", self.0.len())
    }
}

impl Logins {
    /// Words that make no sense are passed over, as all other readers do.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (mut entries, mut rest) = (Vec::<Entry>::new(), text);
        while let Some((word, after)) = word(rest) {
            rest = after;
            let mut value = || {
                let (value, after) = self::word(rest)?;
                rest = after;
                Some(value)
            };
            match (word.as_str(), entries.last_mut()) {
                ("machine", _) => entries.push(Entry { host: value(), ..Entry::default() }),
                ("default", _) => entries.push(Entry::default()),
                ("login", Some(entry)) => entry.login = value(),
                ("password", Some(entry)) => entry.password = value(),
                ("account", _) => drop(value()),
                // A macro ends with an empty line.
                ("macdef", _) => rest = rest.find("\n\n").map_or("", |end| &rest[end..]),
                _ => {}
            }
        }
        Logins(entries)
    }

    /// User name and password for a URL: its own always win. One that names the user has that one's password.
    pub(super) fn of(&self, url: &Url) -> Option<(&str, &str)> {
        if url.password().is_some() {
            return None;
        }
        let host = url.host_str()?.trim_matches(['[', ']']);
        let fits = |entry: &&Entry| {
            entry.host.as_ref().is_none_or(|named| named.eq_ignore_ascii_case(host))
                && (url.username().is_empty() || entry.login.as_deref() == Some(url.username()))
        };
        let entry = self.0.iter().find(fits)?;
        Some((entry.login.as_deref()?, entry.password.as_deref().unwrap_or_default()))
    }
}

/// The next word, and what is after it: in quotes, with `\` before what is meant as it is, or up to a blank.
fn word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    if text.starts_with('#') {
        return word(text.find('\n').map_or("", |end| &text[end..]));
    }
    let quoted = text.starts_with('"');
    let mut chars = text.char_indices().skip(usize::from(quoted));
    let mut word = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if quoted => return Some((word, &text[at + 1..])),
            '\\' if quoted => word.extend(chars.next().map(|(_, c)| c)),
            c if !quoted && c.is_whitespace() => return Some((word, &text[at..])),
            c => word.push(c),
        }
    }
    (!word.is_empty() || quoted).then_some((word, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\nmachine One.example login me password s3cret\n\
        machine two.example\n\tlogin \"a b\"\n\tpassword \"s3\\\"cret\" account x\n\
        macdef init\nmachine three.example login no password no\n\n\
        machine ::1 login six password s3cret#1\nmachine one.example login other password 0ther\n\
        default login anonymous password user@site";

    #[test]
    fn a_host_has_the_login_that_curl_finds() {
        let logins = Logins::parse(FILE);
        let of = |url: &str| logins.of(&url.parse().unwrap());
        assert_eq!(of("https://one.example/x"), Some(("me", "s3cret")));
        assert_eq!(of("http://one.example:8080/x"), Some(("me", "s3cret")));
        assert_eq!(of("https://two.example/"), Some(("a b", "s3\"cret")));
        assert_eq!(of("https://other@one.example/"), Some(("other", "0ther")));
        assert_eq!(of("https://mine:own@one.example/"), None);
        assert_eq!(of("https://[::1]/"), Some(("six", "s3cret#1")));
        assert_eq!(of("https://three.example/"), Some(("anonymous", "user@site")));
        assert_eq!(of("https://nobody@one.example/"), None);
        assert_eq!(of("file:///x"), None);
        assert!(!format!("{logins:?}").contains("s3cret"));
    }

    #[test]
    fn what_makes_no_sense_is_passed_over() {
        for text in ["", "machine", "login x", "machine a login", "machine \"a", "macdef", "é \"\\", "#"] {
            assert_eq!(Logins::parse(text).of(&"https://h/".parse().unwrap()), None, "{text}");
        }
    }
}
