//! The flavour of streams that LXD and Incus read: an image is two items of
//! one version, metadata and root, and its fingerprint is the SHA-256 of both,
//! one after the other. The fingerprint stands at the metadata.
//!
//! Deltas (`squashfs.vcdiff` with `delta_base`) are items as any other.

use std::collections::BTreeMap;

use crate::base::name::quoted;
use crate::base::{Digest, DigestAlgorithm, Error, Result};

/// File types of metadata, the one that Incus takes first.
pub const METADATA: [&str; 2] = ["incus.tar.xz", "lxd.tar.xz"];

/// File types of roots, with the key of the metadata that has the fingerprint
/// of both. The order is the one in which the daemons prefer them.
pub const ROOTS: [(&str, &str); 5] = [
    ("squashfs", "combined_squashfs_sha256"),
    ("root.tar.xz", "combined_rootxz_sha256"),
    ("disk-kvm.img", "combined_disk-kvm-img_sha256"),
    ("uefi1.img", "combined_uefi1-img_sha256"),
    ("disk1.img", "combined_disk1-img_sha256"),
];

/// File types of roots for containers, the one that daemons prefer first.
pub const CONTAINER_ROOTS: [&str; 2] = [ROOTS[0].0, ROOTS[1].0];

/// The fingerprint that a metadata item announces for a root of type `ftype`:
/// of metadata and root together. `None` when it announces none.
///
/// # Errors
/// [`crate::base::Kind::Refused`] when it is no SHA-256.
pub fn fingerprint(metadata: &BTreeMap<String, String>, ftype: &str) -> Result<Option<Digest>> {
    let is_metadata = metadata.get("ftype").is_some_and(|ftype| METADATA.contains(&ftype.as_str()));
    let Some((_, key)) = ROOTS.iter().find(|(root, _)| is_metadata && *root == ftype) else { return Ok(None) };
    // What old streams call the fingerprint with root.tar.xz.
    let old = (ftype == "root.tar.xz").then_some("combined_sha256");
    let Some(hex) = metadata.get(*key).or_else(|| metadata.get(old?)) else { return Ok(None) };
    Digest::from_hex(DigestAlgorithm::Sha256, hex).map(Some).map_err(|error| {
        let item = metadata.get("item_name").map_or("", String::as_str);
        Error::refused(format!("the item {} has no usable {key}", quoted(item))).because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    #[test]
    fn finds_what_is_announced_for_each_root() {
        let sum = |n: u8| format!("{n:02x}").repeat(32);
        let mut metadata: BTreeMap<String, String> =
            BTreeMap::from([("ftype".into(), "lxd.tar.xz".into()), ("combined_sha256".into(), sum(9))]);
        for (n, (_, key)) in (1..).zip(ROOTS) {
            metadata.insert(key.into(), sum(n));
        }
        for (n, (ftype, _)) in (1..).zip(ROOTS) {
            assert_eq!(fingerprint(&metadata, ftype).unwrap().unwrap().hex(), sum(n), "{ftype}");
        }
        metadata.remove("combined_rootxz_sha256");
        assert_eq!(fingerprint(&metadata, "root.tar.xz").unwrap().unwrap().hex(), sum(9));
        metadata.remove("combined_squashfs_sha256");
        assert_eq!(fingerprint(&metadata, "squashfs").unwrap(), None);
        assert_eq!(fingerprint(&metadata, "squashfs.vcdiff").unwrap(), None);
        metadata.insert("combined_disk1-img_sha256".into(), "abc".into());
        assert_eq!(fingerprint(&metadata, "disk1.img").unwrap_err().kind(), Kind::Refused);
        metadata.insert("ftype".into(), "manifest".into());
        assert_eq!(fingerprint(&metadata, "disk1.img").unwrap(), None);
    }
}
