#![allow(clippy::disallowed_methods)]
use serde_json::json;

use super::super::mirror::tests::{Upstreams, sha256, tree};
use super::*;
use crate::base::Kind;

const ITEMS: [&str; 4] = ["lxd.tar.xz", "squashfs", "disk1.img", "manifest"];

/// The metadata and a root of a version, as the tree's files have them, one after the other.
fn combined(version: &str, root: &str) -> String {
    sha256(&format!("noble:amd64 {version} lxd.tar.xznoble:amd64 {version} {root}"))
}

fn upstream() -> Value {
    let mut upstream = tree("u:d", &[("noble:amd64", &["20260101", "20260102"])], &ITEMS);
    let product = &mut upstream["products"]["noble:amd64"];
    product["aliases"] = "24.04,lts".into();
    product["supported"] = true.into();
    // Inherited: Incus would not see them there.
    upstream["os"] = product["os"].take();
    upstream["products"]["noble:amd64"].as_object_mut().unwrap().remove("os");
    upstream
}

#[test]
fn an_incus_daemon_finds_all_it_reads() {
    let run = Upstreams::new();
    let published = run.run(&[&upstream()], &["ftype!=manifest"]).unwrap();
    assert_eq!(published.documents, ["u:d", "images"]);
    assert_eq!(run.problems(), [""; 0]);

    let images = run.document("images");
    assert_eq!((&images["datatype"], &images["content_id"]), (&json!("image-downloads"), &json!("images")));
    let mut product = images["products"]["noble:amd64"].clone();
    let versions = product["versions"].take();
    assert_eq!(
        product,
        json!({
            "arch": "amd64", "os": "ubuntu", "release": "noble", "release_title": "noble", "aliases": "24.04,lts",
            "supported": true, "requirements": { "secureboot": "false" }, "versions": null,
        })
    );
    let file = |item: &str| {
        let content = format!("noble:amd64 20260101 {item}");
        json!({
            "path": format!("noble-amd64/20260101/{item}"), "size": content.len(), "sha256": sha256(&content), "ftype": item,
        })
    };
    let mut metadata = file("lxd.tar.xz");
    metadata["ftype"] = "incus.tar.xz".into();
    metadata["combined_squashfs_sha256"] = combined("20260101", "squashfs").into();
    metadata["combined_disk1-img_sha256"] = combined("20260101", "disk1.img").into();
    let expected = json!({ "incus.tar.xz": metadata, "squashfs": file("squashfs"), "disk1.img": file("disk1.img") });
    assert_eq!(versions["20260101"]["items"], expected);
    assert_eq!(versions.as_object().unwrap().len(), 2);
    let index: Value = serde_json::from_slice(&run.fixture.read("streams/v1/index.json")).unwrap();
    assert_eq!(index["index"]["images"]["path"], "streams/v1/images.json");
}

#[test]
fn the_export_follows_what_the_folder_lists() {
    let mut run = Upstreams::new();
    run.run(&[&upstream()], &["version_name=20260101"]).unwrap();
    // Known fingerprints are not made again: a file that is gone would be seen.
    let file = run.fixture.path("noble-amd64/20260101/squashfs");
    let away = run.fixture.path(".virga-away");
    fs::rename(&file, &away).unwrap();
    run.run(&[&upstream()], &["version_name=20260102"]).unwrap();
    fs::rename(&away, &file).unwrap();
    let versions = |run: &Upstreams| {
        let images = run.document("images");
        images["products"]["noble:amd64"]["versions"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(versions(&run), ["20260101", "20260102"]);
    assert_eq!(run.run(&[&upstream()], &[]).unwrap().documents, [""; 0], "all was there");

    assert_eq!(run.fixture.remove(&["version_name=20260101"]).len(), 4);
    assert_eq!(versions(&run), ["20260102"]);
    run.max = Some(1);
    run.run(&[&upstream()], &["ftype=manifest"]).unwrap();
    assert_eq!(versions(&run), ["20260102"], "another run's files");
    run.fixture.remove(&["ftype=lxd.tar.xz"]);
    assert!(!run.fixture.path("streams/v1/images.json").exists());
    assert_eq!(run.problems(), [""; 0]);
}

#[test]
fn a_fingerprint_that_upstream_announces_must_be_ours() {
    for (key, value, sound) in [
        ("combined_squashfs_sha256", combined("20260102", "squashfs").to_uppercase(), true),
        ("combined_squashfs_sha256", combined("20260101", "squashfs"), false),
        // Said of root.tar.xz, which is not there.
        ("combined_sha256", combined("20260101", "squashfs"), true),
    ] {
        let run = Upstreams::new();
        let mut upstream = upstream();
        upstream["products"]["noble:amd64"]["versions"]["20260102"]["items"]["lxd.tar.xz"][key] = value.into();
        let published = run.run(&[&upstream], &[]).map(|_| ()).map_err(|error| error.kind());
        assert_eq!(published, if sound { Ok(()) } else { Err(Kind::Refused) }, "{key}");
        assert_eq!(run.fixture.path("streams/v1/index.json").exists(), sound);
    }
}

#[test]
fn what_is_for_incus_already_is_left_alone() {
    let run = Upstreams::new();
    let own = tree("images", &[("noble:amd64", &["20260101"])], &["incus.tar.xz", "lxd.tar.xz", "squashfs"]);
    run.run(&[&upstream()], &["version_name=20260102"]).unwrap();
    assert!(run.document("images").get(EXPORT).is_some());
    run.run(&[&own], &[]).unwrap();
    assert!(run.document("images").get(EXPORT).is_none());
    assert_eq!(run.items("images").len(), 3);
    assert_eq!(run.problems(), [""; 0]);
}
