use super::super::tests::{Fixture, KEY};
use super::*;
use crate::base::Kind;
use crate::base::name::hex;
use crate::stream::filter::Filters;

const KEYS: [(&str, &str); 3] = [("os", "Debian"), ("release", "bookworm"), ("arch", "amd64")];

fn sum(text: &str) -> String {
    hex(&sha2::Sha256::digest(text))
}

fn add(
    fixture: &Fixture,
    ftype: &str,
    root: &str,
    metadata: &str,
    version: Option<&str>,
) -> Result<super::super::Added> {
    let file = fixture.path("../metadata");
    fs::write_atomic(&file, metadata.as_bytes(), 0o600)?;
    let request = AddRequest {
        ftype: ftype.into(),
        inspect: None,
        metadata: Some(file),
        version: version.map(str::to_owned),
        ..fixture.request(root, &KEYS)
    };
    fixture.publisher(|p| p.add(&request))
}

fn listed(fixture: &Fixture) -> Vec<Item> {
    let documents = fixture.publisher(|p| p.load()).unwrap();
    documents.iter().flat_map(|document| document.select(&Filters::default()).unwrap()).collect()
}

#[test]
fn a_pair_is_listed_under_the_names_that_daemons_look_for() {
    let fixture = Fixture::new(Some(&KEY));
    let added = add(&fixture, "squashfs", "root", "meta", None).unwrap();
    assert!(added.new && added.item.get("ftype") == "squashfs");
    assert!(!add(&fixture, "squashfs", "root", "meta", None).unwrap().new, "twice is once");
    let items = listed(&fixture);
    let names: Vec<&str> = items.iter().map(Item::name).collect();
    assert_eq!(names, ["incus.tar.xz", "lxd.tar.xz", "squashfs"]);
    for metadata in &items[..2] {
        assert_eq!(metadata.get("combined_squashfs_sha256"), sum("metaroot"));
        assert_eq!(metadata.path.as_ref().unwrap().as_str(), format!("images/{}/incus.tar.xz", sum("meta")));
        assert_eq!(metadata.get("aliases"), "debian/bookworm");
        assert_eq!(metadata.get("release_title"), "bookworm");
    }
    assert!(fixture.problems().is_empty(), "{:?}", fixture.problems());

    // Another root of the same version has the same metadata, and both fingerprints stand there.
    let version = items[0].version().to_owned();
    assert!(add(&fixture, "root.tar.xz", "tar", "meta", Some(&version)).unwrap().new);
    let items = listed(&fixture);
    assert_eq!(items[0].get("combined_squashfs_sha256"), sum("metaroot"));
    assert_eq!(items[0].get("combined_rootxz_sha256"), sum("metatar"));
    let error = add(&fixture, "squashfs", "root", "other", Some(&version)).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert_eq!(add(&fixture, "squashfs", "root", "other", None).unwrap().item.version(), "20261103.1");
    assert_eq!(add(&fixture, "disk1.img", "root", "meta", None).unwrap_err().kind(), Kind::Usage);
    assert!(fixture.problems().is_empty(), "{:?}", fixture.problems());
}

#[test]
fn one_goes_with_the_other() {
    for (filter, left) in [
        ("version_name~.", vec![]),
        ("ftype=squashfs", vec!["incus.tar.xz", "lxd.tar.xz", "root.tar.xz"]),
        ("ftype~squashfs|root", vec![]),
        ("ftype~tar.xz", vec![]),
        ("ftype=lxd.tar.xz", vec!["incus.tar.xz", "root.tar.xz", "squashfs"]),
        ("ftype~(lxd|incus).tar.xz", vec![]),
    ] {
        let fixture = Fixture::new(Some(&KEY));
        add(&fixture, "squashfs", "root", "meta", Some("20260101")).unwrap();
        add(&fixture, "root.tar.xz", "tar", "meta", Some("20260101")).unwrap();
        // A disk of the same version is nobody's partner.
        let disk = AddRequest { version: Some("20260101".into()), ..fixture.request("disk", &KEYS) };
        fixture.publisher(|p| p.add(&disk)).unwrap();
        fixture.remove(&[filter, "ftype!=disk1.img"]);
        let listed = listed(&fixture);
        let names: Vec<&str> = listed.iter().map(Item::name).filter(|name| *name != "disk1.img").collect();
        assert_eq!(names, left, "{filter}");
        assert!(listed.iter().any(|item| item.name() == "disk1.img"));
        assert!(fixture.problems().is_empty(), "{filter}: {:?}", fixture.problems());
    }
}

#[test]
fn a_wrong_fingerprint_is_found() {
    let fixture = Fixture::new(Some(&KEY));
    add(&fixture, "squashfs", "root", "meta", None).unwrap();
    let mut documents = fixture.publisher(|p| p.load()).unwrap();
    let [product, version] = [listed(&fixture)[0].product().to_owned(), listed(&fixture)[0].version().to_owned()];
    for name in METADATA {
        let mut item = documents[0].item(&product, &version, name).unwrap().clone();
        item["combined_squashfs_sha256"] = sum("another").into();
        documents[0].put([&product, &version, name], &BTreeMap::new(), item);
    }
    fixture.publisher(|p| p.save(&documents)).unwrap();
    let problems = fixture.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("do not have the fingerprint"), "{problems:?}");
}
