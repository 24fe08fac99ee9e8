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
    let there: Vec<&Keys> = there.collect();
    let mut nearest = None;
    let mut blamed: BTreeMap<usize, Vec<&Keys>> = BTreeMap::new();
    for keys in &there {
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
            blamed.entry(n).or_default().push(keys);
        }
    }
    let shown = |assumed: bool| {
        let filters = filters.0.iter().filter(|filter| filter.is_assumed() == assumed);
        filters.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let (asked, assumed) = (shown(false), shown(true));
    let mut message = what.to_owned();
    if !asked.is_empty() {
        message += &format!(" that matches {}", bare(&asked));
    }
    if !assumed.is_empty() {
        let and = if asked.is_empty() { "that matches" } else { "and" };
        message += &format!(" {and} {assumed}, which was assumed");
    }
    let error = Error::new(Kind::NotFound, message);
    let names: Vec<usize> = (0..filters.0.len()).filter(|n| filters.0[*n].is_shorthand()).collect();
    let found = |n: usize| there.iter().any(|keys| filters.only(n).matches(keys));
    if names.len() > 1 && names.iter().all(|n| found(*n)) && names.iter().any(|n| blamed.contains_key(n)) {
        // Each is there: what there is in place of one of them is the other.
        let names: Vec<String> = names.iter().map(|n| quoted(&filters.0[*n].to_string())).collect();
        let both = if names.len() == 2 { "both" } else { "all" };
        return error.hint(format!("{} must {both} match one image: ask for one at a time", names.join(" and ")));
    }
    let hints = blamed.iter().map(|(n, blamed)| match filters.0[*n].is_shorthand() {
        true => name_hint(&filters.0[*n], blamed, &there),
        false => Some(hint(&filters.0[*n], blamed)),
    });
    hints.flatten().fold(error, Error::hint)
}

fn value<'a>(keys: &'a Keys, key: &str) -> &'a str {
    keys.get(key).map_or("", String::as_str)
}

/// Without anything hostile, and without quotes.
fn bare(text: &str) -> String {
    quoted(text).trim_matches('\'').to_owned()
}

/// Some of what there is, each once.
fn list(named: &BTreeSet<String>, between: &str) -> String {
    let more = if named.len() > MOST { " …" } else { "" };
    let named: Vec<&str> = named.iter().take(MOST).map(String::as_str).collect();
    named.join(between) + more
}

/// What there is in place of what a filter wants.
fn hint(filter: &Filter, blamed: &[&Keys]) -> String {
    let key = filter.key();
    let values = blamed.iter().map(|keys| value(keys, key)).filter(|value| !value.is_empty());
    let named: BTreeSet<String> = values.map(|value| format!("{key}={}", bare(value))).collect();
    let there = match named.is_empty() {
        true => format!("what there is has no '{}'", bare(key)),
        false => format!("there is {}", list(&named, " ")),
    };
    match filter.is_assumed() {
        true => format!("{there}: say which, or '{key}~' for any {key}"),
        false => there,
    }
}

/// The names that there are in place of one that nothing has: `None` where nothing has a name.
fn name_hint(filter: &Filter, blamed: &[&Keys], there: &[&Keys]) -> Option<String> {
    let wanted = filter.to_string();
    if let Some(os) = there.iter().map(|keys| value(keys, "os")).find(|os| os.eq_ignore_ascii_case(&wanted)) {
        let of_it = there.iter().filter(|keys| value(keys, "os") == os).map(|keys| value(keys, "release"));
        let releases: BTreeSet<String> = of_it.filter(|release| !release.is_empty()).map(bare).collect();
        let shown = bare(os);
        return Some(match releases.len() {
            0 => format!("'{wanted}' is an os: write os={shown}"),
            1 => format!("'{wanted}' is an os: write os={shown} release={}", list(&releases, "")),
            _ => format!("'{wanted}' is an os: write os={shown} release=…, which may be {}", list(&releases, ", ")),
        });
    }
    let names: BTreeSet<String> = blamed.iter().filter_map(|keys| name(keys)).collect();
    (!names.is_empty()).then(|| format!("there is {}", list(&names, ", ")))
}

/// What people call an image. Of its many names none is the one that was meant: its release's own will do.
fn name(keys: &Keys) -> Option<String> {
    let first_alias = value(keys, "aliases").split(',').next().unwrap_or_default().trim();
    let names = [value(keys, "release"), value(keys, "version"), first_alias];
    names.into_iter().find(|name| !name.is_empty()).map(bare)
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
        assert_eq!(said(&["nobel"], &there).1, ["there is noble"]);
        assert_eq!(said(&["arch~", "ftype~", "release=x"], &[]).1, [""; 0]);
        let many: Vec<Keys> = (0..20).flat_map(|n| images(&[&[("release", &format!("r{n:02}"))]])).collect();
        assert!(said(&["arch~", "ftype~", "release=x"], &many).1[0].ends_with("release=r07 …"));
    }

    #[test]
    fn a_name_is_answered_with_names() {
        let disk = [("arch", "amd64"), ("ftype", "disk1.img")];
        let image = |more: &[(&str, &str)]| images(&[&[&disk[..], more].concat()]).remove(0);
        let there = [
            image(&[("os", "ubuntu"), ("release", "noble"), ("aliases", "24.04,lts")]),
            image(&[("os", "Debian"), ("release", "bookworm")]),
            image(&[("os", "alpine"), ("version", "3.20")]),
            image(&[("os", "none"), ("aliases", "odd, ")]),
        ];
        assert_eq!(said(&["nobel"], &there).1, ["there is 3.20, bookworm, noble, odd"]);
        // One without any name is not told as ''.
        assert_eq!(said(&["nobel"], &[image(&[])]).1, [""; 0]);
        assert_eq!(said(&["release=x"], &[image(&[])]).1, ["what there is has no 'release'"]);

        assert_eq!(said(&["debian"], &there).1, ["'debian' is an os: write os=Debian release=bookworm"]);
        assert_eq!(said(&["alpine"], &there).1, ["'alpine' is an os: write os=alpine"]);
        let two = [there[1].clone(), image(&[("os", "Debian"), ("release", "trixie")])];
        let hints = said(&["debian"], &two).1;
        assert_eq!(hints, ["'debian' is an os: write os=Debian release=…, which may be bookworm, trixie"]);

        let both = "'noble' and 'bookworm' must both match one image: ask for one at a time";
        assert_eq!(said(&["noble", "bookworm"], &there).1, [both]);
        assert_eq!(said(&["nobel", "noble"], &there).1, ["there is noble"]);
    }
}
