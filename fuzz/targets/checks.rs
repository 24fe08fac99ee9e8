//! What must hold for any bytes whatever. Shared by the fuzz targets and by
//! `tests/corpus.rs`, which replays what fuzzing found.

use std::net::IpAddr;
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

/// A frame of a guest's: none passes that begins a connection into QEMU's network, or goes where no guest is to reach. Read
/// here by place alone, as it lies on the wire.
#[allow(dead_code, reason = "each target uses one of these")]
pub fn frame(bytes: &[u8]) {
    const HOST: [u8; 4] = [192, 0, 2, 7];
    let passes = virga::driver::frame_may_pass(bytes, &mut |addr| addr == IpAddr::from(HOST));
    if !passes {
        return;
    }
    let kind = &bytes[12..14];
    assert!(kind == [0x08, 0x06] || kind == [0x08, 0x00] || kind == [0x86, 0xdd]);
    if kind != [0x08, 0x00] {
        return;
    }
    let packet = &bytes[14..];
    let to: [u8; 4] = packet[16..20].try_into().unwrap();
    assert!(to != HOST && to[0] != 127 && to[..2] != [169, 254] && (to[0] < 224 || to == [255; 4]));
    if to[..3] == [10, 0, 2] {
        let content = &packet[usize::from(packet[0] & 15) * 4..];
        let dns = to[3] == 3 && content.get(2..4) == Some(&[0, 53]);
        assert!(packet[9] != 6 || dns || content[13] & 0x12 != 0x02);
        assert!(packet[9] != 17 || dns || (to[3] == 2 && content[2..4] == [0, 67]));
    }
}

/// Text of whoever: what is shown has nothing that a terminal obeys or that begins a command of a CI service, also for those
/// who read over what is not seen; and is shown as it is the second time.
#[allow(dead_code, reason = "each target uses one of these")]
pub fn harmless(bytes: &[u8]) {
    use virga::base::harmless;
    let text = String::from_utf8_lossy(bytes);
    let (line, lines) = (harmless::line(&text), harmless::lines(&text));
    assert_eq!((harmless::line(&line), harmless::lines(&lines)), (line.clone(), lines.clone()));
    assert!(!line.chars().any(harmless::is_unfit));
    for line in std::iter::once(line.as_str()).chain(lines.split('\n')) {
        let plain: String =
            line.chars().filter(|c| !"\u{ad}\u{200b}\u{200d}\u{2060}\u{feff}\u{fe0f}".contains(*c)).collect();
        let command = plain.trim_start().strip_prefix("::").is_some_and(|rest| rest.contains("::"));
        assert!(!command && !plain.contains("##[") && !plain.contains("##vso["), "{line:?}");
    }
    let json = serde_json::to_string(&text).unwrap();
    assert_eq!(serde_json::from_str::<String>(&harmless::json(&json)).unwrap(), text);
}
