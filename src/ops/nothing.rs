//! Why nothing matches: what was asked for, what was assumed, and what there is instead.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::name::quoted;
use crate::base::{Error, Kind};
use crate::stream::filter::{Filter, Filters};

/// How many values are named.
const MOST: usize = 8;

/// The flattened keys of an image.
type Keys = BTreeMap<String, String>;

/// Nothing of `there` passes the filters. `what` is the message's beginning, as in "'ubuntu' offers no image".
///
/// Of what there is, those that fail the fewest filters say which ones are to blame; a filter of the user's weighs more
/// than one that was assumed.
pub(super) fn nothing<'a>(what: &str, filters: &Filters, there: impl Iterator<Item = &'a Keys>) -> Error {
    let value = |keys: &'a Keys, filter: &Filter| keys.get(filter.key()).map_or("", String::as_str);
    let mut nearest = None;
    let mut blamed: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for keys in there {
        let failed: Vec<usize> = (0..filters.0.len()).filter(|n| !filters.only(*n).matches(keys)).collect();
        let assumed = failed.iter().filter(|n| filters.0[**n].is_assumed()).count();
        let distance = (failed.len() - assumed, assumed);
        if nearest.is_some_and(|nearest| distance > nearest) {
            continue;
        }
        if nearest.is_none_or(|nearest| distance < nearest) {
            nearest = Some(distance);
            blamed.clear();
        }
        for n in failed {
            blamed.entry(n).or_default().insert(value(keys, &filters.0[n]));
        }
    }
    let shown = |assumed: bool| {
        let filters = filters.0.iter().filter(|filter| filter.is_assumed() == assumed);
        filters.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let (asked, assumed) = (shown(false), shown(true));
    let mut message = what.to_owned();
    if !asked.is_empty() {
        message += &format!(" that matches {}", quoted(&asked).trim_matches('\''));
    }
    if !assumed.is_empty() {
        let and = if asked.is_empty() { "that matches" } else { "and" };
        message += &format!(" {and} {assumed}, which was assumed");
    }
    let hints = blamed.iter().map(|(n, values)| hint(&filters.0[*n], values));
    hints.fold(Error::new(Kind::NotFound, message), Error::hint)
}

/// What there is in place of what a filter wants.
fn hint(filter: &Filter, values: &BTreeSet<&str>) -> String {
    let key = if filter.is_shorthand() { "release" } else { filter.key() };
    let named: Vec<String> = match filter.is_shorthand() {
        // Of its many names none is the one that was meant.
        true => values.iter().flat_map(|aliases| aliases.split(',')).map(|alias| quoted(alias.trim())).collect(),
        false => values.iter().map(|value| format!("{key}={}", quoted(value).trim_matches('\''))).collect(),
    };
    let more = if named.len() > MOST { " …" } else { "" };
    let there = format!("there is {}{more}", named[..named.len().min(MOST)].join(" "));
    match filter.is_assumed() {
        true => format!("{there}: say which, or '{key}~' for any {key}"),
        false => there,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(list: &[&[(&str, &str)]]) -> Vec<Keys> {
        list.iter().map(|keys| keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()).collect()
    }

    fn said(asked: &[&str], there: &[Keys]) -> (String, Vec<String>) {
        let assumed = Filters::parse(&["ftype=disk1.img", "arch=amd64"]).unwrap();
        let filters = Filters::parse(asked).unwrap().with_defaults(&assumed);
        let error = nothing("'s' offers no image", &filters, there.iter());
        assert_eq!(error.kind(), Kind::NotFound);
        (error.to_string(), error.hints().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn what_was_assumed_is_named_with_what_there_is_and_how_to_get_it() {
        let there = images(&[
            &[("release", "noble"), ("arch", "arm64"), ("ftype", "disk1.img")],
            &[("release", "noble"), ("arch", "riscv64"), ("ftype", "disk1.img")],
            &[("release", "noble"), ("arch", "s390x"), ("ftype", "squashfs")],
            &[("release", "jammy"), ("arch", "amd64"), ("ftype", "disk1.img")],
        ]);
        let (message, hints) = said(&["release=noble"], &there);
        assert_eq!(
            message,
            "'s' offers no image that matches release=noble and ftype=disk1.img arch=amd64, which was assumed"
        );
        assert_eq!(hints, ["there is arch=arm64 arch=riscv64: say which, or 'arch~' for any arch"]);
        let (message, hints) = said(&[], &there[..1]);
        assert!(message.contains("image that matches ftype=disk1.img arch=amd64, which was assumed"), "{message}");
        assert_eq!(hints.len(), 1);
        // The way out that is named is one.
        let lifted = Filters::parse(&["release=noble", "arch~", "ftype~"]).unwrap();
        assert!(there[..3].iter().all(|keys| lifted.matches(keys)));
        let without = images(&[&[("release", "noble")]]);
        assert!(lifted.matches(&without[0]));
    }

    #[test]
    fn what_was_asked_for_is_answered_with_what_there_is() {
        let there = images(&[
            &[("release", "noble"), ("arch", "amd64"), ("ftype", "disk1.img"), ("aliases", "24.04,lts")],
            &[("release", "jammy"), ("arch", "arm64"), ("ftype", "disk1.img"), ("aliases", "22.04")],
        ]);
        let (message, hints) = said(&["release=nobel", "arch=amd64"], &there);
        assert!(message.contains("release=nobel arch=amd64 and ftype=disk1.img, which was assumed"), "{message}");
        assert_eq!(hints, ["there is release=noble"]);
        assert_eq!(said(&["nobel"], &there).1, ["there is '24.04' 'lts'"]);
        assert_eq!(said(&["arch~", "ftype~", "release=x"], &[]).1, [""; 0]);
        let many: Vec<Keys> = (0..20).flat_map(|n| images(&[&[("release", &format!("r{n:02}"))]])).collect();
        assert!(said(&["arch~", "ftype~", "release=x"], &many).1[0].ends_with("release=r07 …"));
    }
}
