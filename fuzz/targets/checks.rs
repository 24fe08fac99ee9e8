//! What must hold for any bytes whatever. Shared by the fuzz targets and by
//! `tests/corpus.rs`, which replays what fuzzing found.

use std::path::Path;

use virga::base::RelPath;
use virga::stream::filter::Filters;
use virga::stream::index::parse_index;
use virga::stream::key::Keyring;
use virga::stream::product::parse_products;
use virga::stream::signed;

/// A clear-signed text: what is taken for the signed text reads the same when
/// it stands alone, and nothing verifies that the keys did not sign.
#[allow(dead_code, reason = "each target uses one of these")]
pub fn clearsigned(bytes: &[u8], keyring: &Keyring) {
    if let Ok(text) = signed::unsigned_text(bytes)
        && signed::is_inline(bytes)
    {
        assert!(text.ends_with(b"\n"));
        assert!(!text.split(|byte| *byte == b'\n').any(|line| line.ends_with(b" ") || line.ends_with(b"\r")));
    }
    if let Ok(verified) = signed::verify_inline(bytes, keyring, jiff::Timestamp::UNIX_EPOCH) {
        assert!(!verified.signers.is_empty());
    }
}

/// An index: every path stays below the root, every error names the document.
#[allow(dead_code, reason = "each target uses one of these")]
pub fn index(bytes: &[u8]) {
    match parse_index(bytes, "the index") {
        Ok(index) => {
            for entry in index.entries {
                assert!(!entry.content_id.contains(['/', '\\']) && !entry.content_id.starts_with('.'));
                assert!(entry.path.as_str().parse::<RelPath>().is_ok());
            }
        }
        Err(error) => assert!(error.to_string().starts_with("the index") && error.to_string().len() < 1000),
    }
}

/// Products: an item with a path has a size and a digest, and is listed once.
#[allow(dead_code, reason = "each target uses one of these")]
pub fn products(bytes: &[u8]) {
    let Ok(products) = parse_products(bytes, None, "the products") else { return };
    let every = Filters::default();
    let mut seen = std::collections::HashSet::new();
    for item in products.select(&every, None).filter_map(Result::ok) {
        assert!(item.path.is_none() || (item.size.is_some() && item.digest.is_some()));
        let place = [item.product(), item.version(), item.name()].map(str::to_owned);
        assert!(place.iter().all(|name| !name.is_empty()) && seen.insert(place));
    }
    let newest = products.select(&every, Some(1)).filter_map(Result::ok).count();
    assert!(newest <= seen.len());
}

/// A disk image: whatever is let in is a whole number of sectors and not
/// larger than what is accepted.
#[allow(dead_code, reason = "each target uses one of these")]
pub fn qcow2(path: &Path) {
    if let Ok(facts) = virga::disk::inspect(path, None) {
        assert!(facts.virtual_size % virga::disk::SECTOR == 0);
        assert!(facts.virtual_size <= virga::disk::MAX_VIRTUAL_SIZE);
    }
}
