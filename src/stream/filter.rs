//! The filter language of simplestreams' tools: `KEY OP VALUE`, as in
//! `release=noble` or `version_name!~^2019`; and a shorthand, as in `noble`,
//! `24.04`, `lts` or `debian/12/arm64`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use regex::Regex;

use crate::base::name::{arch_name, arch_names, is_arch, quoted};
use crate::base::{Error, Result};

/// One condition on the flattened keys of an item. A key that is missing
/// compares as the empty string.
#[derive(Clone, Debug)]
pub struct Filter {
    key: String,
    test: Test,
    /// `!=` and `!~`.
    negated: bool,
    /// Nobody wrote it: it is a default.
    assumed: bool,
}

#[derive(Clone, Debug)]
enum Test {
    Equals(String),
    /// Found anywhere in the value.
    Found(Regex),
    /// One of an item's names: see [`Filters::parse`].
    Named(String),
}

/// The keys whose values are architectures, which go by several names.
const ARCH: [&str; 2] = ["arch", "architecture"];

impl Filter {
    /// The key that it looks at.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether nobody wrote it: see [`Filters::with_defaults`].
    #[must_use]
    pub fn is_assumed(&self) -> bool {
        self.assumed
    }

    /// Whether the value of its key passes. An architecture passes under any of its names.
    #[must_use]
    pub fn accepts(&self, value: &str) -> bool {
        let is_arch = ARCH.contains(&self.key.as_str());
        let holds = match &self.test {
            Test::Equals(wanted) if is_arch => arch_name(wanted) == arch_name(value),
            Test::Equals(wanted) => wanted == value,
            Test::Found(pattern) if is_arch => arch_names(value).any(|name| pattern.is_match(name)),
            Test::Found(pattern) => pattern.is_match(value),
            Test::Named(name) => value.split(',').any(|alias| alias.trim() == name),
        };
        holds != self.negated
    }

    /// Whether it is a shorthand: such a one looks at several keys, and an
    /// item need not have any of them.
    #[must_use]
    pub fn is_shorthand(&self) -> bool {
        matches!(self.test, Test::Named(_))
    }

    /// Whether an item passes, whose flattened keys `get` looks up.
    fn holds<'v>(&self, get: &impl Fn(&str) -> Option<Cow<'v, str>>) -> bool {
        let value = |key: &str| get(key).unwrap_or_default();
        if self.accepts(&value(&self.key)) {
            return true;
        }
        let Test::Named(name) = &self.test else { return false };
        let of_release = |release: Cow<'v, str>| {
            *release == **name
                || name.strip_prefix(&*value("os")).and_then(|rest| rest.strip_prefix('/')) == Some(&release)
        };
        of_release(value("release")) || of_release(value("version"))
    }

    /// The filters that a shorthand means; `None` when `text` is none.
    fn shorthand(text: &str) -> Option<Vec<Filter>> {
        let plain = |segment: &str| {
            segment.starts_with(|c: char| c.is_ascii_alphanumeric())
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'+' | b'-'))
        };
        if !text.split('/').all(plain) {
            return None;
        }
        let filter = |key: &str, test: Test| Filter { key: key.into(), test, negated: false, assumed: false };
        let split = text.rsplit_once('/').filter(|(_, last)| is_arch(last));
        let split = split.map(|(name, last)| (name, filter("arch", Test::Equals(arch_name(last).into()))));
        Some(match split {
            Some((name, arch)) => vec![filter("aliases", Test::Named(name.into())), arch],
            None => vec![filter("aliases", Test::Named(text.into()))],
        })
    }
}

impl FromStr for Filter {
    type Err = Error;

    /// The key is one or more word characters, `-` or `|` at the very start;
    /// blanks may stand around the operator; all after them is the value,
    /// closing blanks included.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::usage(format!("{} is not a filter", quoted(text)))
                .hint("write KEY=VALUE, KEY!=VALUE, KEY~REGEX or KEY!~REGEX, or a name such as noble or 24.04/arm64")
        };
        let end = text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '|'))).ok_or_else(wrong)?;
        let (key, rest) = text.split_at(end);
        let rest = rest.trim_start_matches(' ');
        let (negated, rest) = rest.strip_prefix('!').map_or((false, rest), |rest| (true, rest));
        let operator = rest.chars().next().filter(|c| matches!(c, '=' | '~')).ok_or_else(wrong)?;
        let value = rest[1..].trim_start_matches(' ');
        if key.is_empty() || value.contains('\n') {
            return Err(wrong());
        }
        let test = if operator == '=' {
            Test::Equals(value.to_owned())
        } else {
            Test::Found(Regex::new(value).map_err(|error| {
                Error::usage(format!("{} is not a regular expression", quoted(value)))
                    .because(error)
                    .hint("look-around and back-references are not supported: use two filters")
            })?)
        };
        Ok(Filter { key: key.to_owned(), test, negated, assumed: false })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operator, value) = match &self.test {
            Test::Equals(value) => ('=', value.as_str()),
            Test::Found(pattern) => ('~', pattern.as_str()),
            Test::Named(name) => return f.write_str(name),
        };
        write!(f, "{}{}{operator}{value}", self.key, if self.negated { "!" } else { "" })
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// Filters that must all hold. None at all accepts everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters(pub Vec<Filter>);

impl Filters {
    /// Parses every one of `texts`: filters, or a name without an operator as
    /// a shorthand. Such a name is one of an item's `aliases`, its `release` or
    /// `version`, or one of these after `os/`; an architecture may follow it after a slash.
    ///
    /// # Errors
    /// [`crate::base::Kind::Usage`] for the first that is neither.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self> {
        let mut filters = Vec::new();
        for text in texts.iter().map(AsRef::as_ref) {
            match Filter::shorthand(text) {
                Some(meant) => filters.extend(meant),
                None => filters.push(text.parse()?),
            }
        }
        Ok(Filters(filters))
    }

    /// Whether an item with these flattened keys passes all filters.
    #[must_use]
    pub fn matches(&self, keys: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| keys.get(key).map(|value| Cow::Borrowed(value.as_str())))
    }

    /// As [`matches`](Self::matches), for keys that are looked up one by one.
    pub fn matches_by<'v>(&self, get: impl Fn(&str) -> Option<Cow<'v, str>>) -> bool {
        self.0.iter().all(|filter| filter.holds(&get))
    }

    /// Whether any filter looks at `key`: a default for that key must then stay away.
    #[must_use]
    pub fn names(&self, key: &str) -> bool {
        self.0.iter().any(|filter| filter.key == key)
    }

    /// These filters, and those of `defaults` whose key none of these looks
    /// at: who asks for `ftype=squashfs` is not to get disk images only. What is added counts as assumed.
    #[must_use]
    pub fn with_defaults(mut self, defaults: &Filters) -> Self {
        let more = defaults.0.iter().filter(|filter| !self.names(&filter.key)).cloned();
        let more: Vec<Filter> = more.map(|filter| Filter { assumed: true, ..filter }).collect();
        self.0.extend(more);
        self
    }

    /// One of these alone.
    #[must_use]
    pub fn only(&self, number: usize) -> Filters {
        Filters(vec![self.0[number].clone()])
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Filters {
    /// As they would be typed, blanks between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, filter) in self.0.iter().enumerate() {
            write!(f, "{}{filter}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::Kind;

    fn passes(filter: &str, keys: &[(&str, &str)]) -> bool {
        let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Filters::parse(&[filter]).unwrap().matches(&keys)
    }

    #[test]
    fn means_what_the_python_tools_mean() {
        let keys = [("arch", "amd64"), ("release", "noble"), ("supported", "True"), ("note", "a b "), ("eq", "=b")];
        for (filter, expected) in [
            ("arch=amd64", true),
            ("arch=amd", false),
            ("arch=Amd64", false),
            ("arch!=amd64", false),
            ("arch!=arm64", true),
            ("arch~md6", true),
            ("arch~^md6", false),
            ("arch~(arm|amd)64$", true),
            ("arch!~md6", false),
            ("arch!~arm", true),
            ("arch = amd64", true),
            ("arch   !=   arm64", true),
            ("arch= amd64", true),
            ("arch=amd64 ", false),
            ("note=a b ", true),
            ("note=a b", false),
            ("eq==b", true),
            ("supported=True", true),
            ("supported=true", false),
            ("missing=", true),
            ("missing!=x", true),
            ("missing=x", false),
            ("missing~^$", true),
            ("missing~x", false),
            ("missing!~x", true),
            ("a|b=", true),
            ("product-name!=é", true),
        ] {
            assert_eq!(passes(filter, &keys), expected, "{filter}");
        }
    }

    #[test]
    fn a_text_that_is_no_filter_is_a_usage_error() {
        for text in [
            "",
            "noble",
            "=x",
            " arch=x",
            "a.b=x",
            "a b=x",
            "arch!x",
            "arch!",
            "arch<2",
            "a=b\nc",
            "arch~(",
            "arch~(?=x)",
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert_eq!((error.kind(), error.hints().is_empty()), (Kind::Usage, false), "{text}");
        }
    }

    #[test]
    fn a_name_means_what_people_call_an_image() {
        let ubuntu = [
            ("aliases", "24.04,noble,default,lts"),
            ("os", "ubuntu"),
            ("release", "noble"),
            ("version", "24.04"),
            ("arch", "amd64"),
        ];
        let debian = [("os", "debian"), ("release", "bookworm"), ("version", "12"), ("arch", "arm64")];
        let incus = [("aliases", "debian/12/cloud, debian/bookworm/cloud"), ("os", "Debian"), ("arch", "amd64")];
        for (name, expected) in [
            ("noble", [true, false, false]),
            ("24.04", [true, false, false]),
            ("lts", [true, false, false]),
            ("lt", [false, false, false]),
            ("lts/amd64", [true, false, false]),
            ("lts/x86_64", [true, false, false]),
            ("lts/arm64", [false, false, false]),
            ("bookworm", [false, true, false]),
            ("12", [false, true, false]),
            ("debian/12", [false, true, false]),
            ("debian/bookworm/aarch64", [false, true, false]),
            ("ubuntu/noble", [true, false, false]),
            ("debian/12/cloud", [false, false, true]),
            ("debian/bookworm/cloud/amd64", [false, false, true]),
            ("debian/bookworm/cloud/arm64", [false, false, false]),
        ] {
            let found = [passes(name, &ubuntu), passes(name, &debian), passes(name, &incus)];
            assert_eq!(found, expected, "{name}");
        }
        let filters = Filters::parse(&["24.04/aarch64"]).unwrap();
        assert!(filters.names("arch") && filters.0[0].is_shorthand());
        assert_eq!(filters.to_string(), "24.04 arch=arm64");
        for wrong in ["", "/noble", "noble/", "a//b", "../x", "a b", "-x", "é"] {
            assert_eq!(Filters::parse(&[wrong]).unwrap_err().kind(), Kind::Usage, "{wrong}");
        }
    }

    #[test]
    fn an_architecture_is_the_same_under_each_of_its_names() {
        for (one, other) in [("x86_64", "amd64"), ("aarch64", "arm64"), ("ppc64le", "ppc64el"), ("i686", "i386")] {
            for (name, value) in [(one, other), (other, one), (one, one)] {
                for (filter, expected) in [
                    (format!("arch={name}"), true),
                    (format!("arch!={name}"), false),
                    (format!("arch~^{name}$"), true),
                    (format!("arch~^(riscv64|{name})$"), true),
                    (format!("arch!~{name}"), false),
                    (format!("architecture={name}"), true),
                    // Of other keys nobody knows that they are architectures.
                    (format!("label={name}"), name == value),
                ] {
                    let keys = [("arch", value), ("architecture", value), ("label", value)];
                    assert_eq!(passes(&filter, &keys), expected, "{filter} on {value}");
                }
            }
        }
        assert!(passes("noble/i686", &[("release", "noble"), ("arch", "i386")]));
        assert!(!passes("arch=x86_64", &[("arch", "arm64")]) && !passes("arch=x86_64", &[]));
        assert!(!passes("arch~^arm64$", &[("arch", "armhf")]) && passes("arch=vax", &[("arch", "vax")]));
    }

    #[test]
    fn defaults_give_way_to_what_is_asked_for() {
        let defaults = Filters::parse(&["datatype=image-downloads", "ftype=disk1.img"]).unwrap();
        let asked = |text: &str| Filters::parse(&[text]).unwrap().with_defaults(&defaults).to_string();
        assert_eq!(asked("ftype=squashfs"), "ftype=squashfs datatype=image-downloads");
        assert_eq!(asked("noble"), "noble datatype=image-downloads ftype=disk1.img");
        let filters = Filters::parse(&["noble"]).unwrap().with_defaults(&defaults);
        assert_eq!(filters.0.iter().map(Filter::is_assumed).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn tells_whether_a_key_is_named() {
        let filters = Filters::parse(&["release=noble", "arch!~arm"]).unwrap();
        assert!(filters.names("arch") && filters.names("release") && !filters.names("arc"));
        assert_eq!(filters.to_string(), "release=noble arch!~arm");
    }

    proptest! {
        #[test]
        fn any_key_operator_and_value_parse_back(
            key in "[a-zA-Z0-9_é|-]{1,12}", before in " {0,3}", after in " {0,3}",
            operator in "!?=", value in r"([^ \n]\PC{0,20})?",
        ) {
            let filter: Filter = format!("{key}{before}{operator}{after}{value}").parse().unwrap();
            prop_assert_eq!(filter.key(), &key);
            prop_assert_eq!(filter.accepts(&value), operator == "=");
            prop_assert_eq!(filter.accepts(&format!("{value}x")), operator == "!=");
            prop_assert_eq!(&filter.to_string().parse::<Filter>().unwrap(), &filter);
        }

        #[test]
        fn a_pattern_is_searched_and_its_negation_is_the_opposite(value in "[a-c]{0,6}", part in "[a-c]{0,2}") {
            let found: Filter = format!("k~{part}").parse().unwrap();
            let absent: Filter = format!("k!~{part}").parse().unwrap();
            prop_assert_eq!(found.accepts(&value), value.contains(&part));
            prop_assert_ne!(found.accepts(&value), absent.accepts(&value));
        }

        #[test]
        fn no_text_panics(text in r"\PC{0,30}") {
            let _ = text.parse::<Filter>();
        }
    }
}
