//! URLs that may hold secrets: a user's name and password, a token in the query. Whoever prints one, in whatever way,
//! prints it without them.

use std::fmt;

use super::RelPath;

/// A URL as its user wrote it. `Display` and `Debug` leave the secrets out; [`reveal`](Self::reveal) is for connecting.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(String);

impl Address {
    /// Of any text: whether it is a URL shows when it is used.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Address(text.into())
    }

    /// With all secrets. Never to be printed, logged or stored.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What lies at `path` below it, odd characters percent-encoded (RFC 3986 section 3.3: all but `pchar` and `/`).
    #[must_use]
    pub fn join(&self, path: &RelPath) -> Self {
        use fmt::Write as _;
        let mut url = self.0.clone();
        for byte in path.as_str().bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
                url.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(url, "%{byte:02X}");
            }
        }
        Address(url)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&shown(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&shown(&self.0), f)
    }
}

impl PartialEq<&str> for Address {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// A URL, or what was meant to be one, fit for messages and notes: no user's name, password, query or fragment.
#[must_use]
pub fn shown(text: &str) -> String {
    // With one stroke it is no URL, and was meant to be one.
    let start = ["://", ":/"].iter().find_map(|mark| Some(text.find(mark)? + mark.len())).unwrap_or(0);
    let (scheme, rest) = text.split_at(start);
    let rest = &rest[secret(rest)..];
    match rest.find(['?', '#']) {
        Some(at) if rest[at..].starts_with('?') => format!("{scheme}{}?…", &rest[..at]),
        Some(at) => format!("{scheme}{}", &rest[..at]),
        None => text[..start].to_owned() + rest,
    }
}

/// How long the secret is that stands before the host, its `@` included.
fn secret(rest: &str) -> usize {
    let authority = &rest[..rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len())];
    if let Some(at) = authority.rfind('@') {
        return at + 1;
    }
    // A password in which these were not encoded: what looks like a port is none.
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    match (port, rest.rfind('@')) {
        (Some(port), Some(at)) if !authority.ends_with(']') && !port.bytes().all(|b| b.is_ascii_digit()) => at + 1,
        _ => 0,
    }
}

/// A text of any kind, the secrets of all URLs in it left out: for what a library says of a file of the user's.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        // Back to the scheme's beginning, on to what no URL holds.
        let begin = rest[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '+').map_or(0, |found| found + 1);
        let begin = (begin..=at).find(|place| rest.is_char_boundary(*place)).unwrap_or(at);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`');
        let end = rest[at..].find(ends).map_or(rest.len(), |end| at + end);
        out.push_str(&rest[..begin]);
        out.push_str(&shown(&rest[begin..end]));
        rest = &rest[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_printed_in_any_way() {
        for (text, printed) in [
            ("https://h/a/", "https://h/a/"),
            ("https://user:s3cret@h:8443/a%20b?token=s3cret#s3cret", "https://h:8443/a%20b?…"),
            ("https://s3cret@h/", "https://h/"),
            ("https://user:s3@cret@h/", "https://h/"),
            ("https://user:s3/cret@h/x", "https://h/x"),
            ("https://user:s3?cret@h/x", "https://h/x"),
            ("https://user:s3#cret@h/x", "https://h/x"),
            ("user:s3cret@h/x", "h/x"),
            ("https:/user:s3cret@h/x", "https:/h/x"),
            ("https://h/a@b/c:d", "https://h/a@b/c:d"),
            ("https://h:80/a@b/", "https://h:80/a@b/"),
            ("https://[::1]:80/a@b", "https://[::1]:80/a@b"),
            ("https://[::1]/a@b", "https://[::1]/a@b"),
            ("file:///srv/a@b/", "file:///srv/a@b/"),
            ("https://h/x#s3cret", "https://h/x"),
            ("", ""),
        ] {
            let address = Address::new(text);
            assert_eq!(address.to_string(), printed);
            assert_eq!(format!("{address:?}"), format!("{printed:?}"));
            assert_eq!(address.reveal(), text);
        }
    }

    #[test]
    fn urls_within_other_texts_lose_their_secrets_too() {
        let text = "line 2\n  | mirrors = [\"https://u:s3cret@h/x\", 'http://s3cret@k?s3cret'] é://ü@s3cret ://";
        let text = without_secrets(text);
        assert!(!text.contains("s3cret@") && !text.contains("u:"), "{text}");
        assert!(text.starts_with("line 2\n  | mirrors = [\"https://h/x\", 'http://k?…'] "), "{text}");
        assert_eq!(without_secrets("no URL: a/b?c@d"), "no URL: a/b?c@d");
    }

    #[test]
    fn odd_characters_are_encoded() {
        let path = "a[1]/{x}/b+c~d:e.img".parse().unwrap();
        assert_eq!(Address::new("https://h/").join(&path), "https://h/a%5B1%5D/%7Bx%7D/b+c~d:e.img");
    }
}
