//! Images in uvtool's pool: which there are, and removing what nobody needs.

use std::collections::BTreeSet;

use super::metadata::{self, Image, Store};
use super::{POOL, libvirt};
use crate::base::lock::Mode;
use crate::base::{Kind, Result};
use crate::driver::libvirt::uvtool::{Uvtool, Volume};
use crate::ops::Env;
use crate::stream::filter::Filters;

/// The images that can be used and match all filters, a line each, sorted bytewise.
///
/// # Errors
/// [`Kind::Usage`] for a filter that is none; [`Kind::Unavailable`] without a daemon.
pub fn query(env: Env<'_>, pool: &str, filters: &[String]) -> Result<Vec<String>> {
    let images = usable(env, &libvirt(env), pool, &Filters::parse(filters)?)?;
    let line = |(image, _): &(Image, Volume)| {
        let key = |key| image.key(key);
        format!("release={} arch={} label={} ({})", key("release"), key("arch"), key("label"), key("version_name"))
    };
    for image in images.iter().filter(|(image, _)| image.trust().must_be_asked_for()) {
        env.reporter.warn(&format!("unsigned: {}", line(image)));
    }
    let mut lines: Vec<String> = images.iter().map(line).collect();
    lines.sort();
    Ok(lines)
}

/// Images that match and have both their metadata and their volume.
pub(super) fn usable(env: Env<'_>, libvirt: &Uvtool, pool: &str, filters: &Filters) -> Result<Vec<(Image, Volume)>> {
    let mut images = Store::of(env).images(env)?;
    images.retain(|image| filters.matches(&image.keys));
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = images.iter().map(|image| image.volume.as_str()).collect();
    let volumes = libvirt.named_volumes(pool, &names)?;
    let with_volume = |image: Image| {
        let volume = volumes.iter().find(|volume| volume.name == image.volume)?.clone();
        Some((image, volume))
    };
    Ok(images.into_iter().filter_map(with_volume).collect())
}

/// Removes every image that nobody needs, volume and metadata. Whatever else lies in the pool stays: guests' disks, and
/// what users put there.
///
/// # Errors
/// [`Kind::Unavailable`] without a daemon; what cannot be removed.
pub fn purge(env: Env<'_>) -> Result<()> {
    let (libvirt, store) = (libvirt(env), Store::of(env));
    libvirt.existing_folder(POOL).map_err(|error| error.with_kind(Kind::Failed))?;
    let _lock = store.lock(env, Mode::Exclusive)?;
    let used = libvirt.used()?;
    let volumes = libvirt.volumes(POOL)?;
    for volume in volumes.iter().filter(|volume| metadata::decoded(&volume.name).is_some()) {
        if let Some(who) = used.by(&volume.path) {
            let (product, version) = metadata::decoded(&volume.name).unwrap_or_default();
            env.reporter.warn(&format!("{product} {version} stays: {who} stands on it"));
            continue;
        }
        // In this order: what is left by a killed command is a volume that the next sync sweeps.
        store.remove(&volume.name)?;
        libvirt.delete(POOL, std::slice::from_ref(&volume.name))?;
    }
    drop_lonely(&libvirt, &store)
}

/// Deletes images' volumes that have no metadata any more and that nobody needs, and metadata without a volume. Volumes
/// that are no images' are never touched.
pub(super) fn sweep(libvirt: &Uvtool, store: &Store, pool: &str) -> Result<()> {
    drop_lonely(libvirt, store)?;
    let known: BTreeSet<String> = store.names()?.into_iter().collect();
    let mut retired = libvirt.volumes(pool)?;
    retired.retain(|volume| metadata::decoded(&volume.name).is_some() && !known.contains(&volume.name));
    if retired.is_empty() {
        return Ok(());
    }
    let used = libvirt.used()?;
    for volume in retired {
        match used.by(&volume.path) {
            Some(who) => tracing::info!(volume = volume.name, who, "a retired image is still needed"),
            None => libvirt.delete(pool, &[volume.name])?,
        }
    }
    Ok(())
}

/// Metadata whose volume lies in none of the pools is an error that somebody left.
fn drop_lonely(libvirt: &Uvtool, store: &Store) -> Result<()> {
    let Some(there) = libvirt.volume_names()? else { return Ok(()) };
    store.names()?.iter().filter(|name| !there.contains(*name)).try_for_each(|name| store.remove(name))
}
