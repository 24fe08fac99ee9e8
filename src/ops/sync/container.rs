//! Which items of a product are its container image: metadata, and one root.

use crate::base::{Error, Result};
use crate::ops::catalog::Offer;
use crate::stream::filter::Filters;
use crate::stream::incus::{CONTAINER_ROOTS, METADATA, fingerprint};

/// The user's filters, and one for the types that container images are made of.
///
/// # Errors
/// [`crate::base::Kind::Usage`] when the user chose types too.
pub(super) fn filters(mut given: Filters) -> Result<Filters> {
    if given.names("ftype") {
        return Err(Error::usage("--container chooses the file types, and so does a filter")
            .hint("leave one of them out; ftype=root.tar.xz alone takes just these files"));
    }
    let types = METADATA.iter().chain(&CONTAINER_ROOTS).map(|ftype| ftype.replace('.', "\\."));
    let types = types.collect::<Vec<_>>().join("|");
    given.0.extend(Filters::parse(&[format!("ftype~^({types})$")])?.0);
    Ok(given)
}

/// The pairs among what is offered, product by product, newest version first:
/// those of the newest `max` versions that have one.
///
/// # Errors
/// [`crate::base::Kind::Refused`] for a fingerprint that is none.
pub(super) fn choose(offers: Vec<Offer>, max: usize) -> Result<Vec<Offer>> {
    let mut chosen: Vec<Offer> = Vec::new();
    for product in offers.chunk_by(|a, b| same(a, b, &["content_id", "product_name"])) {
        let mut versions = 0;
        for version in product.chunk_by(|a, b| same(a, b, &["version_name"])) {
            let Some([metadata, root]) = pair(version)? else { continue };
            versions += 1;
            // The same image in another document: a mirror lists it for Incus once more.
            let known = |other: &Offer| {
                same(other, root, &["product_name", "version_name"]) && other.item.digest == root.item.digest
            };
            if versions <= max && !chosen.iter().any(known) {
                chosen.extend([metadata.clone(), root.clone()]);
            }
        }
    }
    Ok(chosen)
}

fn same(a: &Offer, b: &Offer, keys: &[&str]) -> bool {
    keys.iter().all(|key| a.item.get(key) == b.item.get(key))
}

/// The root that the daemons prefer, with the metadata that announces the fingerprint of both.
fn pair(version: &[Offer]) -> Result<Option<[&Offer; 2]>> {
    let of = |ftype: &str| {
        let ftype = ftype.to_owned();
        version.iter().filter(move |offer| offer.item.get("ftype") == ftype && offer.item.path.is_some())
    };
    for root in CONTAINER_ROOTS.iter().flat_map(|ftype| of(ftype)) {
        for metadata in METADATA.iter().flat_map(|ftype| of(ftype)) {
            if fingerprint(&metadata.item.keys, root.item.get("ftype"))?.is_some() {
                return Ok(Some([metadata, root]));
            }
        }
    }
    Ok(None)
}
