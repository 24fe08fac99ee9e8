use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::base::plan::DiskFormat;
use crate::base::progress::Silent;
use crate::base::{ImageId, RelPath};

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
        disk: Some(DiskFacts { format: DiskFormat::Raw, virtual_size: 512 }),
        synced_at: jiff::Timestamp::UNIX_EPOCH,
        retired_at: None,
        chain: Chain { index: link(), products: link(), path: "p".into() },
        trust: None,
    }
}

fn link() -> Link {
    Link { url: "https://h/i".into(), sha256: "00".into(), signature: None }
}

fn put(pool: &Pool, record: &ImageRecord) {
    pool.commit(&record.source, &[], |generation| {
        generation.images.insert(record.id.clone(), record.clone());
        Ok(())
    })
    .unwrap();
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
    put(&pool, &record(&listed, "v1"));
    fs::write_new(&pool.layout.partials().join("ab"), b"half", 0o600).unwrap();
    fs::write_new(&pool.layout.stream("s").join(".virga-tmp-x"), b"half", 0o600).unwrap();
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
fn a_sweep_takes_retired_images_that_no_guest_needs() {
    let (_folder, pool) = pool();
    let (old, used) = (adopt(&pool, b"old"), adopt(&pool, b"used"));
    for (blob, version) in [(&old, "v1"), (&used, "v2")] {
        put(&pool, &ImageRecord { retired_at: Some(jiff::Timestamp::UNIX_EPOCH), ..record(blob, version) });
    }
    let in_use = BTreeSet::from([used.clone()]);
    let alone = pool.lock_exclusive().unwrap();
    assert_eq!(pool.sweep(&alone, &in_use, true).unwrap().retired.len(), 1);
    assert_eq!(pool.records().unwrap().len(), 2, "a dry run removes nothing");
    pool.sweep(&alone, &in_use, false).unwrap();
    let left = pool.records().unwrap();
    assert_eq!(left.iter().map(|record| &record.blob).collect::<Vec<_>>(), [&used]);
    assert!(pool.has_blob(&used) && !pool.has_blob(&old));
}

#[test]
fn records_come_back_and_a_broken_source_hides_no_other() {
    let (_folder, pool) = pool();
    let one = record(&sha256(b"1"), "v1");
    put(&pool, &one);
    assert_eq!(pool.record(&one.id).unwrap(), Some(one.clone()));
    fs::create_private_dir(&pool.layout.stream("torn")).unwrap();
    fs::write_atomic(&pool.layout.stream("torn").join("generation.json"), b"{", 0o644).unwrap();
    assert_eq!(pool.records().unwrap(), std::slice::from_ref(&one));
    let alone = pool.lock_exclusive().unwrap();
    assert!(pool.sweep(&alone, &BTreeSet::new(), true).is_err(), "nobody knows what the torn one names");
    fs::remove_file(&pool.layout.stream("torn").join("generation.json")).unwrap();
    pool.forget(std::slice::from_ref(&one.id)).unwrap();
    pool.forget(std::slice::from_ref(&one.id)).unwrap();
    assert!(pool.record(&one.id).unwrap().is_none());
}

#[test]
fn a_commit_is_all_or_nothing() {
    let (_folder, pool) = pool();
    let path: RelPath = "streams/v1/index.sjson".parse().unwrap();
    let kept = Kept::new(b"signed", "https://h/streams/v1/index.sjson".into(), None);
    let one = record(&sha256(b"1"), "v1");
    pool.commit("s", &[b"signed"], |generation| {
        generation.metadata.insert(path.clone(), kept.clone());
        generation.images.insert(one.id.clone(), one.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(pool.metadata("s", &kept).unwrap(), b"signed");
    let before = pool.generation("s").unwrap();

    let newer = Kept::new(b"newer", "https://h/streams/v1/index.sjson".into(), None);
    let failed = pool.commit("s", &[b"newer"], |generation| {
        generation.metadata.insert(path.clone(), newer.clone());
        generation.images.clear();
        Err(crate::base::Error::failed("no"))
    });
    assert!(failed.is_err());
    assert_eq!(pool.generation("s").unwrap(), before);
    assert!(pool.metadata("s", &newer).is_none());

    pool.commit("s", &[b"newer"], |generation| {
        generation.metadata.insert(path.clone(), newer.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(pool.metadata("s", &newer).unwrap(), b"newer");
    assert!(pool.metadata("s", &kept).is_none(), "what no generation names is gone");

    fs::write_atomic(&pool.layout.stream("s").join(&newer.sha256), b"torn", 0o600).unwrap();
    assert!(pool.metadata("s", &newer).is_none(), "bytes that are not whole are as good as none");
}

#[test]
fn a_rotten_blob_is_out_of_the_way() {
    let (_folder, pool) = pool();
    let digest = adopt(&pool, b"image");
    let path = pool.blob_path(&digest);
    fs::set_mode(&path, 0o644).unwrap();
    fs::write_atomic(&path, b"rotten", 0o444).unwrap();
    assert!(!pool.verify_blob(&digest, &Silent).unwrap());
    let aside = pool.quarantine(&digest).unwrap();
    assert!(!pool.has_blob(&digest) && aside.is_file());
    let alone = pool.lock_exclusive().unwrap();
    assert_eq!(pool.sweep(&alone, &BTreeSet::new(), false).unwrap().quarantined, 1);
    assert!(!aside.exists());
}

#[test]
fn a_blob_is_found_by_its_sha_512() {
    let (_folder, pool) = pool();
    let (one, _other) = (adopt(&pool, b"one"), adopt(&pool, b"two"));
    let sha512 = |bytes: &[u8]| Digest::from_bytes(DigestAlgorithm::Sha512, &sha2::Sha512::digest(bytes));
    assert_eq!(pool.find_sha512(3, &sha512(b"one")).unwrap(), Some(one));
    assert_eq!(pool.find_sha512(4, &sha512(b"one")).unwrap(), None);
    assert_eq!(pool.find_sha512(3, &sha512(b"six")).unwrap(), None);
}
