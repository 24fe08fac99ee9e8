use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::base::plan::DiskFormat;
use crate::base::progress::Silent;
use crate::base::{ImageId, RelPath, name};

fn pool() -> (tempfile::TempDir, Pool) {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path().join("home"), folder.path().join("run")).unwrap();
    (folder, Pool::open(&layout).unwrap())
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(bytes))
}

fn adopt(pool: &Pool, bytes: &[u8]) -> Digest {
    let digest = sha256(bytes);
    let partial = pool.try_partial(&digest).unwrap().unwrap();
    fs::write_new(&partial.path, bytes, 0o600).unwrap();
    pool.adopt(&partial, &digest).unwrap();
    digest
}

fn record(blob: &Digest, version: &str) -> ImageRecord {
    ImageRecord {
        id: ImageId::of("s", "c", "p", version, "i"),
        source: "s".into(),
        keys: BTreeMap::from([("version_name".into(), version.into())]),
        announced: blob.clone(),
        blob: blob.clone(),
        size: 1,
        format: DiskFormat::Raw,
        virtual_size: 512,
        synced_at: jiff::Timestamp::UNIX_EPOCH,
        signer: None,
    }
}

#[test]
fn an_adopted_download_is_read_only_and_leaves_no_trace() {
    let (_folder, pool) = pool();
    let digest = adopt(&pool, b"image");
    assert!(pool.has_blob(&digest));
    assert!(pool.verify_blob(&digest, &Silent).unwrap());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(pool.blob_path(&digest)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    let alone = pool.lock_exclusive().unwrap();
    pool.sweep(&alone, &BTreeSet::from([digest.clone()]), false).unwrap();
    assert!(fs::list_dir(&pool.layout.partials()).unwrap().is_empty());
}

#[test]
fn a_download_has_one_writer() {
    let (_folder, pool) = pool();
    let digest = sha256(b"x");
    let held = pool.try_partial(&digest).unwrap().unwrap();
    assert!(pool.try_partial(&digest).unwrap().is_none());
    drop(held);
    assert!(pool.try_partial(&digest).unwrap().is_some());
}

#[test]
fn a_file_is_imported_once_by_its_content() {
    let (folder, pool) = pool();
    let file = folder.path().join("image");
    fs::write_new(&file, b"content", 0o600).unwrap();
    let digest = pool.import(&file, &Silent).unwrap();
    assert_eq!(digest, sha256(b"content"));
    assert_eq!(pool.import(&file, &Silent).unwrap(), digest);
    assert!(pool.verify_blob(&digest, &Silent).unwrap());
    assert!(fs::list_dir(&pool.layout.partials()).unwrap().is_empty());
}

#[test]
fn a_sweep_keeps_what_a_record_or_a_guest_needs() {
    let (_folder, pool) = pool();
    let (listed, used, loose) = (adopt(&pool, b"1"), adopt(&pool, b"2"), adopt(&pool, b"3"));
    pool.put_record(&record(&listed, "v1")).unwrap();
    fs::write_new(&pool.layout.partials().join("ab"), b"half", 0o600).unwrap();
    fs::write_new(&pool.layout.images().join(".virga-tmp-x"), b"half", 0o600).unwrap();
    let in_use = BTreeSet::from([used.clone()]);

    let alone = pool.lock_exclusive().unwrap();
    let would = pool.sweep(&alone, &in_use, true).unwrap();
    assert_eq!(would.blobs.iter().map(|(digest, _)| digest).collect::<Vec<_>>(), [&loose]);
    assert!(pool.has_blob(&loose), "a dry run removes nothing");
    let swept = pool.sweep(&alone, &in_use, false).unwrap();
    assert_eq!((swept.blobs.len(), swept.partials, swept.temporaries), (1, 1, 1));
    assert!(pool.has_blob(&listed) && pool.has_blob(&used) && !pool.has_blob(&loose));
}

#[test]
fn records_come_back_and_a_broken_one_hides_no_other() {
    let (_folder, pool) = pool();
    let one = record(&sha256(b"1"), "v1");
    pool.put_record(&one).unwrap();
    assert_eq!(pool.record(&one.id).unwrap(), Some(one.clone()));
    fs::write_atomic(&pool.layout.images().join("000000000000.json"), b"{", 0o644).unwrap();
    fs::write_atomic(&pool.layout.images().join("README"), b"x", 0o644).unwrap();
    assert_eq!(pool.records().unwrap(), std::slice::from_ref(&one));
    pool.remove_record(&one.id).unwrap();
    pool.remove_record(&one.id).unwrap();
    assert!(pool.record(&one.id).unwrap().is_none());
}

#[test]
fn cached_metadata_is_whole_or_absent() {
    let (_folder, pool) = pool();
    let cache = pool.stream_cache("ubuntu").unwrap();
    let path: RelPath = "streams/v1/index.sjson".parse().unwrap();
    assert!(cache.get(&path).unwrap().is_none());
    cache.put(&path, b"signed", Some("\"e\""), None).unwrap();
    let cached = cache.get(&path).unwrap().unwrap();
    assert_eq!((cached.bytes.as_slice(), cached.etag.as_deref()), (&b"signed"[..], Some("\"e\"")));
    // Notes of another time than the file's.
    let data = pool.layout.stream("ubuntu").join(format!("{}.data", name::hex(&Sha256::digest(path.as_str())[..16])));
    fs::write_atomic(&data, b"torn", 0o600).unwrap();
    assert!(cache.get(&path).unwrap().is_none());
}
