//! Which images are in the pool, and which one a request means.

use std::collections::BTreeSet;

use super::Env;
use super::nothing::nothing;
use crate::base::container::Packing;
use crate::base::name::quoted;
use crate::base::{Arch, Error, ImageId, Result};
use crate::pool::{ImageRecord, PUBLISHED, Pool};
use crate::stream::filter::Filters;

/// The filter that asks for images that nobody vouched for.
pub(super) const ASK_UNSIGNED: &str = "trust=unsigned";

/// One line of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The image's record.
    pub record: ImageRecord,
    /// How many guests stand on it.
    pub guests: usize,
    /// Whether its bytes are in the pool.
    pub present: bool,
}

/// Images of the pool that match all filters, by product, newest first; or those with these ids.
/// Touches no network.
///
/// # Errors
/// [`crate::base::Kind::Usage`] for a filter that is none.
pub fn images(env: Env<'_>, filters: &[String]) -> Result<Vec<Listed>> {
    let pool = env.pool()?;
    let records = pool.records()?;
    let ids: BTreeSet<ImageId> = filters.iter().map_while(|filter| filter.parse().ok()).collect();
    if !filters.is_empty() && ids.len() == filters.iter().collect::<BTreeSet<_>>().len() {
        return with_guests(env, &pool, records.into_iter().filter(|record| ids.contains(&record.id)));
    }
    let filters = Filters::parse(filters)?;
    let described: Vec<_> = records.iter().map(ImageRecord::described).collect();
    let unknown = unknown_keys(&filters, described.iter().flat_map(|keys| keys.keys().map(String::as_str)));
    let matching = records.into_iter().zip(&described).filter(|(_, keys)| filters.matches(keys));
    let mut listed = with_guests(env, &pool, matching.map(|(record, _)| record))?;
    if let (Some(error), true) = (unknown, listed.is_empty()) {
        return Err(error);
    }
    listed.sort_by(|a, b| order(&a.record).cmp(&order(&b.record)));
    Ok(listed)
}

/// Records with the number of guests that were made of each.
fn with_guests(env: Env<'_>, pool: &Pool, records: impl Iterator<Item = ImageRecord>) -> Result<Vec<Listed>> {
    let guests = crate::guest::list(&env.settings.layout)?;
    let made_of = |entry: &crate::guest::Entry, record: &ImageRecord| match entry {
        crate::guest::Entry::Known(guest) => guest.origin.image.as_ref() == Some(&record.id),
        crate::guest::Entry::Broken(..) => false,
    };
    let count = |record: &ImageRecord| guests.iter().filter(|entry| made_of(entry, record)).count();
    let listed = |record: ImageRecord| {
        let (guests, present) = (count(&record), pool.has_blob(&record.blob));
        Listed { record, guests, present }
    };
    Ok(records.map(listed).collect())
}

/// Sort key: product upwards, version downwards.
fn order(record: &ImageRecord) -> (&str, std::cmp::Reverse<&str>, &str) {
    (record.key("product_name"), std::cmp::Reverse(record.key("version_name")), record.key("item_name"))
}

/// Filters with the host's architecture added, unless they speak of one.
///
/// # Errors
/// [`crate::base::Kind::Usage`] for a filter that is none.
pub fn with_default_arch(filters: &[String]) -> Result<Filters> {
    let parsed = Filters::parse(filters)?;
    if parsed.names("arch") {
        return Ok(parsed);
    }
    Ok(parsed.with_defaults(&Filters::parse(&[format!("arch={}", Arch::host())])?))
}

/// Says which keys of the filters none of the images has: most likely a slip
/// of the pen. `None` when all are known.
pub(super) fn unknown_keys<'a>(filters: &Filters, keys: impl Iterator<Item = &'a str>) -> Option<Error> {
    let known: BTreeSet<&str> = keys.collect();
    let asked = filters.0.iter().filter(|filter| !filter.is_shorthand() && !filter.is_assumed());
    let asked = asked.map(|filter| filter.key());
    let unknown: Vec<String> = asked.filter(|key| !known.contains(key)).map(quoted).collect();
    if known.is_empty() || unknown.is_empty() {
        return None;
    }
    let known: Vec<&str> = known.into_iter().collect();
    Some(
        Error::usage(format!("no image has the key {}", unknown.join(" or ")))
            .hint(format!("keys there are: {}", known.join(" "))),
    )
}

/// What kind of image a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A whole disk.
    Disk,
    /// A container's root file system.
    Container,
}

impl Wanted {
    fn title(self) -> &'static str {
        match self {
            Wanted::Disk => "no disk image",
            Wanted::Container => "no image of a container",
        }
    }

    /// The command that fetches such images.
    fn sync(self) -> &'static str {
        match self {
            Wanted::Disk => "virga sync",
            Wanted::Container => "virga sync --container",
        }
    }
}

/// The one image that a request means: by id, or the newest version of the
/// one product that matches and is of the kind that is wanted. One that nobody
/// vouched for is meant by its id, or by filters that name `trust`.
///
/// # Errors
/// [`crate::base::Kind::NotFound`] when none matches, [`crate::base::Kind::Usage`] when several products do.
pub(super) fn resolve(
    pool: &Pool,
    filters: &[String],
    wanted: Wanted,
    is_kind: impl Fn(&ImageRecord) -> bool,
) -> Result<ImageRecord> {
    if let [only] = filters
        && let Ok(id) = only.parse::<ImageId>()
    {
        return pool.record(&id)?.ok_or_else(|| {
            Error::not_found(format!("there is no image {id}")).hint("'virga images' shows the images in the pool")
        });
    }
    let parsed = with_default_arch(filters)?;
    let mut matching = pool.records()?;
    // Retired ones and files of another kind are there for whoever names them by id.
    matching.retain(|record| record.retired_at.is_none() && is_kind(record) && parsed.matches(&record.described()));
    if !parsed.names("trust") {
        let unsigned =
            matching.iter().find(|record| record.trust().must_be_asked_for()).map(|record| record.id.clone());
        matching.retain(|record| !record.trust().must_be_asked_for());
        if let (Some(id), true) = (unsigned, matching.is_empty()) {
            return Err(only_unsigned(filters, &id));
        }
    }
    if !parsed.names(PUBLISHED) && matching.iter().any(|record| !record.is_own()) {
        // Of the same system, but meant only by who says so.
        matching.retain(|record| !record.is_own());
    }
    matching
        .sort_by(|a, b| order(a).cmp(&order(b)).then(a.trust().cmp(&b.trust())).then(b.synced_at.cmp(&a.synced_at)));
    once_each(&mut matching);
    one_packing(&mut matching);
    let kinds: BTreeSet<(&str, &str, &str)> = matching
        .iter()
        .map(|record| (publisher(record), record.key("product_name"), record.key("item_name")))
        .collect();
    match kinds.len() {
        0 => {
            let mut records = pool.records()?;
            let described: Vec<_> = records.iter().map(ImageRecord::described).collect();
            let keys = described.iter().flat_map(|keys| keys.keys().map(String::as_str));
            if let Some(error) = unknown_keys(&parsed, keys) {
                return Err(error);
            }
            records.retain(|record| record.retired_at.is_none());
            let others = !records.is_empty();
            records.retain(is_kind);
            Err(no_match(&records, others, &parsed, filters, wanted))
        }
        1 => Ok(matching.swap_remove(0)),
        _ => Err(ambiguous(filters, &matching)),
    }
}

/// One product, version and blob is one image, from wherever it came: of those that are sorted, the one that is trusted
/// most wins, then the newest sync.
fn once_each(matching: &mut Vec<ImageRecord>) {
    let mut seen = BTreeSet::new();
    matching.retain(|record| {
        seen.insert([record.key("product_name"), record.key("version_name"), &record.blob.hex()].map(str::to_owned))
    });
}

/// Whose product it is: that of who signed it, at whatever address it was; else only the address tells.
fn publisher(record: &ImageRecord) -> &str {
    record.signer().unwrap_or(&record.source)
}

/// Of one version's root file systems, packed in several ways, the one that is taken first.
fn one_packing(matching: &mut Vec<ImageRecord>) {
    let rank = |record: &ImageRecord| Packing::FTYPES.iter().position(|(ftype, _)| *ftype == record.key("ftype"));
    let version = |record: &ImageRecord| {
        [publisher(record), record.key("product_name"), record.key("version_name")].map(str::to_owned)
    };
    let better: BTreeSet<_> = matching.iter().filter(|record| rank(record) == Some(0)).map(version).collect();
    matching.retain(|record| rank(record).is_none_or(|rank| rank == 0 || !better.contains(&version(record))));
}

/// Why none matches of those that are there. `others` says whether there are some of any kind.
fn no_match(there: &[ImageRecord], others: bool, parsed: &Filters, filters: &[String], wanted: Wanted) -> Error {
    let described: Vec<_> = there.iter().map(ImageRecord::described).collect();
    let error = match others && there.is_empty() {
        // Whatever the filters are: what there is, is something else.
        true => Error::not_found(format!("there is {} in the pool", wanted.title())),
        false => nothing("there is no image in the pool", parsed, described.iter()),
    };
    let filters = if filters.is_empty() { "release=noble".into() } else { filters.join(" ") };
    error.hint(format!("fetch one: {} {filters}", wanted.sync())).hint("'virga images' shows the images in the pool")
}

fn only_unsigned(filters: &[String], id: &ImageId) -> Error {
    let given = if filters.is_empty() { "no filter was given".into() } else { filters.join(" ") };
    Error::not_found(format!("only unsigned images match ({given}): whoever was on the way could have replaced them"))
        .hint(format!("take one all the same with the filter {ASK_UNSIGNED}, or by its id: {id}"))
}

fn ambiguous(filters: &[String], matching: &[ImageRecord]) -> Error {
    let names: Vec<String> = matching
        .iter()
        .take(5)
        .map(|record| format!("{} ({} {})", record.id, record.key("product_name"), record.key("version_name")))
        .collect();
    let more = if matching.len() > names.len() { ", …" } else { "" };
    let given = if filters.is_empty() { "no filter was given".into() } else { filters.join(" ") };
    Error::usage(format!("several images match ({given}): {}{more}", names.join(", ")))
        .hint("add a filter such as release=noble, or give one image's id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_told_how_its_images_are_fetched() {
        let filters = ["release=noble".to_owned()];
        let parsed = with_default_arch(&filters).unwrap();
        let error = no_match(&[], true, &parsed, &filters, Wanted::Container);
        assert_eq!(error.to_string(), "there is no image of a container in the pool");
        assert_eq!(error.hints()[0], "fetch one: virga sync --container release=noble");
        let error = no_match(&[], true, &parsed, &[], Wanted::Disk);
        assert_eq!(error.to_string(), "there is no disk image in the pool");
        let error = no_match(&[], false, &parsed, &filters, Wanted::Disk);
        assert!(error.to_string().starts_with("there is no image in the pool that matches release=noble"), "{error}");
        assert_eq!(error.hints()[0], "fetch one: virga sync release=noble");
    }
}
