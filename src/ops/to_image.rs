//! `publish`: a guest's root as an image that others are made of.

use std::collections::BTreeMap;
use std::io::BufWriter;

use jiff::Timestamp;
use tempfile::NamedTempFile;

use super::{Env, change, publish};
use crate::base::{BackendName, Context as _, Digest, Error, GuestName, GuestPlan, ImageId, Kind, Result, Trust, fs};
use crate::driver::Driver;
use crate::pool::{Chain, ImageRecord, Link, PUBLISHED, Pool};
use crate::rootfs;

/// What a guest's own image says of the new one, unless the user does.
const INHERITED: [&str; 5] = ["os", "release", "release_title", "version", "variant"];
const CONTENT_ID: &str = "virga.published";
const ROOT: &str = "root.tar.xz";
const METADATA: &str = "incus.tar.xz";

/// Where the image goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// Into our pool.
    Pool,
    /// Into the store of the guest's daemon, under this name.
    Daemon(BackendName),
}

/// Makes an image of a guest that does not run, and returns its id in the pool, or its fingerprint at the daemon. The
/// guest stays as it is. Left out is what makes it that guest ([`rootfs::repack`]).
///
/// # Errors
/// [`Kind::NotFound`] without such a guest, [`Kind::Failed`] when it runs, [`Kind::Unsupported`] for a machine and for a
/// driver without a daemon, [`Kind::Exists`] for a name that the daemon has already.
pub fn publish(env: Env<'_>, name: &GuestName, keys: &[String], to: &To) -> Result<String> {
    let given = publish::attributes(keys)?;
    let pool = env.pool()?;
    let _pool_lock = pool.lock_shared()?;
    let held = change::hold_stopped(env, name)?;
    let (record, driver) = (&held.record, env.driver(held.record.driver));
    driver.capabilities().publish.demand(|| format!("guest '{name}' cannot be published"))?;
    if matches!(to, To::Daemon(_)) {
        let what = || format!("the {} driver keeps no images", record.driver);
        driver.capabilities().daemon_images.demand(what)?;
    }
    let mut keys: BTreeMap<String, String> = record.origin.keys.clone();
    keys.retain(|key, _| INHERITED.contains(&key.as_str()));
    keys.extend(given);
    keys.insert("arch".into(), record.plan.arch.to_string());
    keys.insert(PUBLISHED.into(), name.to_string());

    // Where a sweep removes what a killed command leaves.
    let root = NamedTempFile::with_prefix_in("import-", env.settings.layout.partials());
    let root = root.context(|| "making a file for the image".into())?;
    let waiting = env.reporter.wait(name.as_str());
    waiting.stage("packing");
    let newest = pack(driver.as_ref(), &record.plan, &root)?;
    let metadata = publish::container::made(newest, &mut keys)?;
    if let To::Daemon(alias) = to {
        waiting.stage("handing over");
        return driver.keep_image(&record.plan, metadata.path(), root.path(), alias);
    }
    waiting.stage("taking in");
    // What nobody vouched for is not vouched for by being packed anew.
    let trust = if record.origin.trust == Some(Trust::Unsigned) { Trust::Unsigned } else { Trust::Own };
    keep(env, &pool, name, keys, [&metadata, &root], trust)
}

/// Returns when the newest of it was made.
fn pack(driver: &dyn Driver, plan: &GuestPlan, root: &NamedTempFile) -> Result<i64> {
    let (reader, mut writer) = std::io::pipe().context(|| "making a pipe".into())?;
    let (packed, sent) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| {
            let mut file = BufWriter::new(root.as_file());
            rootfs::repack(Box::new(reader), "rootfs", &mut file)
        });
        let sent = driver.pack_root(plan, &mut writer);
        drop(writer);
        (packing.join().unwrap_or_else(|_| Err(Error::failed("a worker thread failed"))), sent)
    });
    // A stream that breaks off is the sender's to explain, unless nobody took it any more.
    match (packed, sent) {
        (Ok(packed), Ok(())) => Ok(packed.newest),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(error),
        (Err(packing), Err(sending)) if packing.kind() == Kind::Refused => Err(sending),
        (Err(packing), Err(_)) => Err(packing),
    }
}

fn keep(
    env: Env<'_>,
    pool: &Pool,
    name: &GuestName,
    mut keys: BTreeMap<String, String>,
    [metadata, root]: [&NamedTempFile; 2],
    trust: Trust,
) -> Result<String> {
    let transfer = env.reporter.transfer(name.as_str(), None);
    let import = |file: &NamedTempFile| {
        let blob = pool.import(file.path(), transfer.as_ref())?;
        let size = file.path().metadata().map_err(|error| fs::explain(error, "reading", file.path()))?.len();
        Result::Ok((blob, size))
    };
    let (metadata, root) = (import(metadata)?, import(root)?);
    let fingerprint = pool.hash_joined(&[&metadata.0, &root.0])?;
    let now = Timestamp::now();
    keys.insert("content_id".into(), CONTENT_ID.into());
    keys.entry("product_name".into()).or_insert_with(|| format!("guest:{name}"));
    keys.entry("version_name".into()).or_insert_with(|| now.strftime("%Y%m%d%H%M%S").to_string());
    let record = |ftype: &str, (blob, size): &(Digest, u64), more: Option<(&str, String)>| {
        let mut keys = keys.clone();
        keys.extend([("ftype".into(), ftype.into()), ("item_name".into(), ftype.into())]);
        keys.extend([("sha256".into(), blob.hex()), ("size".into(), size.to_string())]);
        keys.extend(more.map(|(key, value)| (key.to_owned(), value)));
        let link = Link { url: format!("guest '{name}'"), sha256: fingerprint.hex(), signature: None };
        ImageRecord {
            id: ImageId::of(PUBLISHED, CONTENT_ID, &keys["product_name"], &keys["version_name"], ftype),
            source: PUBLISHED.into(),
            keys,
            announced: blob.clone(),
            blob: blob.clone(),
            size: *size,
            disk: None,
            synced_at: now,
            retired_at: None,
            chain: Chain { index: link.clone(), products: link, path: ftype.into() },
            trust: Some(trust),
        }
    };
    let records =
        [record(METADATA, &metadata, Some(("combined_rootxz_sha256", fingerprint.hex()))), record(ROOT, &root, None)];
    let id = records[1].id.to_string();
    pool.commit(PUBLISHED, &[], |generation| {
        for record in &records {
            if generation.images.get(&record.id).is_some_and(|there| there.blob != record.blob) {
                return Err(Error::new(Kind::Exists, format!("there is such an image already: {}", record.id))
                    .hint(format!("give another version_name, or remove it: virga images rm {}", record.id)));
            }
            generation.images.insert(record.id.clone(), record.clone());
        }
        Ok(())
    })?;
    Ok(id)
}
