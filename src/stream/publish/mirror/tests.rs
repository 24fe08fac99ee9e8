#![allow(clippy::disallowed_methods)]
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use super::super::tests::{Fixture, KEY};
use super::*;
use crate::base::name::hex;
use crate::stream::parse_products;

/// Its item `(product, version, item)` has the content `P V I` at `P/V/I`.
pub(in super::super) fn tree(id: &str, products: &[(&str, &[&str])], items: &[&str]) -> Value {
    let products: Level = products
        .iter()
        .map(|(product, versions)| {
            let versions: Level = versions
                .iter()
                .map(|version| {
                    let items: Level =
                        items.iter().map(|item| ((*item).to_owned(), item_of(product, version, item))).collect();
                    ((*version).to_owned(), json!({ "label": "release", "items": items }))
                })
                .collect();
            let product_level = json!({
                "arch": product.rsplit(':').next(), "release": product.split(':').next(), "os": "ubuntu",
                "requirements": { "secureboot": "false" }, "versions": versions,
            });
            ((*product).to_owned(), product_level)
        })
        .collect();
    json!({
        "format": "products:1.0", "content_id": id, "datatype": "image-downloads", "license": "l",
        "updated": "Mon, 02 Nov 2026 10:00:00 +0000", "products": products,
    })
}

fn content(product: &str, version: &str, item: &str) -> String {
    format!("{product} {version} {item}")
}

fn item_of(product: &str, version: &str, item: &str) -> Value {
    let content = content(product, version, item);
    json!({
        "ftype": item, "path": format!("{product}/{version}/{item}").replace(':', "-"), "size": content.len(),
        "sha256": sha256(&content), "more": { "list": [1, null] },
    })
}

pub(in super::super) fn sha256(content: &str) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(content.as_bytes()))
}

pub(in super::super) struct Upstreams {
    pub(in super::super) fixture: Fixture,
    pub(in super::super) keep: bool,
    pub(in super::super) max: Option<usize>,
    /// Who signed what is copied.
    signer: Option<&'static str>,
}

const SIGNER: &str = "0123456789ABCDEF0123456789ABCDEF01234567";

impl Upstreams {
    pub(in super::super) fn new() -> Self {
        let fixture = Fixture::empty(Some(&KEY));
        Upstreams { fixture, keep: false, max: None, signer: Some(SIGNER) }
    }

    fn with<T>(
        &self,
        trees: &[&Value],
        filters: &[&str],
        act: impl FnOnce(Publisher<'_>, &[Upstream<'_>]) -> Result<T>,
    ) -> Result<T> {
        let filters = Filters::parse(filters).unwrap();
        let documents: Vec<_> = trees.iter().map(|tree| serde_json::to_vec(tree).unwrap()).collect();
        let chosen: Vec<(String, Vec<Item>)> = documents
            .iter()
            .map(|document| {
                let products = parse_products(document, None, "upstream").unwrap();
                let chosen = products.select(&filters, self.max).map(Result::unwrap).collect();
                (products.content_id().to_owned(), chosen)
            })
            .collect();
        let pairs = chosen.iter().zip(&documents);
        let upstream: Vec<_> = pairs
            .map(|((content_id, chosen), document)| Upstream {
                content_id,
                document,
                chosen,
                filters: &filters,
                signer: self.signer,
            })
            .collect();
        self.fixture.publisher(|publisher| act(publisher, &upstream))
    }

    fn plan(&self, trees: &[&Value], filters: &[&str]) -> Result<Plan> {
        self.with(trees, filters, |publisher, upstream| publisher.plan(upstream, self.keep))
    }

    /// Puts the files of every wanted item in place, as a fetch would, and publishes.
    pub(in super::super) fn run(&self, trees: &[&Value], filters: &[&str]) -> Result<Published> {
        self.with(trees, filters, |publisher, upstream| {
            let _held = publisher.hold()?;
            let plan = publisher.plan(upstream, self.keep)?;
            publisher.announce(plan.wanted.iter().filter_map(|item| item.path.as_ref()))?;
            for item in &plan.wanted {
                self.put(item.path.as_ref().unwrap().as_str(), &content(item.product(), item.version(), item.name()));
            }
            publisher.publish(upstream, self.keep, &BTreeSet::new())
        })
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.fixture.path(path);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write_atomic(&path, content.as_bytes(), 0o644).unwrap();
    }

    /// What the signed document lists.
    pub(in super::super) fn items(&self, id: &str) -> Vec<Item> {
        let bytes = KEY.inline_text(&self.fixture.read(&format!("streams/v1/{id}.sjson")));
        let products = parse_products(&bytes, Some(id), id).unwrap();
        products.select(&Filters::default(), None).map(Result::unwrap).collect()
    }

    fn versions(&self, id: &str) -> Vec<String> {
        self.items(id).iter().map(|item| format!("{} {}", item.product(), item.version())).collect()
    }

    pub(in super::super) fn document(&self, id: &str) -> Value {
        serde_json::from_slice(&self.fixture.read(&format!("streams/v1/{id}.json"))).unwrap()
    }

    /// All that `stream verify` finds wrong.
    pub(in super::super) fn problems(&self) -> Vec<String> {
        self.fixture.problems()
    }
}

const TWO: [(&str, &[&str]); 2] = [("noble:amd64", &["20260101", "20260102"]), ("trixie:arm64", &["20260101"])];

#[test]
fn the_copy_lists_exactly_what_was_chosen_with_all_its_attributes() {
    let run = Upstreams { max: Some(1), ..Upstreams::new() };
    let mut upstream = tree("u:d", &TWO, &["disk1.img", "squashfs"]);
    // Said above the item, where the copy must not leave it.
    let version = &mut upstream["products"]["noble:amd64"]["versions"]["20260102"];
    version["sha256"] = version["items"]["disk1.img"]["sha256"].take();
    version["items"]["disk1.img"].as_object_mut().unwrap().remove("sha256");
    let published = run.run(&[&upstream], &["arch=amd64", "ftype=disk1.img"]).unwrap();
    assert_eq!(published, Published { documents: vec!["u:d".into()], deleted: vec![] });
    assert_eq!(run.problems(), [""; 0]);

    let copy = run.document("u:d");
    let mut expected = tree("u:d", &[("noble:amd64", &["20260102"])], &["disk1.img"]);
    let version = &mut expected["products"]["noble:amd64"]["versions"]["20260102"];
    version["sha256"] = version["items"]["disk1.img"]["sha256"].clone();
    // What the copy adds: who vouched for it.
    version["items"]["disk1.img"]["upstream_trust"] = "signed".into();
    version["items"]["disk1.img"]["upstream_key"] = SIGNER.into();
    assert_eq!(copy, expected);
    let index: Value = serde_json::from_slice(&run.fixture.read("streams/v1/index.json")).unwrap();
    assert_eq!(index["index"]["u:d"]["products"], json!(["noble:amd64"]));
    assert_eq!(index["updated"], expected["updated"]);
    assert!(!run.fixture.path(PENDING).exists());
}

#[test]
fn narrow_runs_add_up_and_each_clears_what_it_covers() {
    let mut run = Upstreams { max: Some(1), ..Upstreams::new() };
    let upstream = tree("u:d", &TWO, &["disk1.img"]);
    run.run(&[&upstream], &["arch=amd64"]).unwrap();
    run.run(&[&upstream], &["arch=arm64"]).unwrap();
    assert_eq!(run.versions("u:d"), ["noble:amd64 20260102", "trixie:arm64 20260101"]);

    let newer = tree("u:d", &[("noble:amd64", &["20260102", "20260103"])], &["disk1.img"]);
    let plan = run.plan(&[&newer], &["arch=amd64"]).unwrap();
    let places = |items: &[Item]| items.iter().map(|item| item.version().to_owned()).collect::<Vec<_>>();
    assert_eq!(places(&plan.wanted), ["20260103"]);
    assert_eq!((places(&plan.remove), plan.held.len()), (vec!["20260102".to_owned()], 1));
    let published = run.run(&[&newer], &["arch=amd64"]).unwrap();
    assert_eq!(published.deleted.iter().map(RelPath::as_str).collect::<Vec<_>>(), ["noble-amd64/20260102/disk1.img"]);
    assert!(!run.fixture.path("noble-amd64/20260102").exists());
    // Held although the source has it no longer: this run was not about it.
    assert_eq!(run.versions("u:d"), ["noble:amd64 20260103", "trixie:arm64 20260101"]);

    run.keep = true;
    let newest = tree("u:d", &[("noble:amd64", &["20260104"])], &["disk1.img"]);
    run.run(&[&newest], &[]).unwrap();
    assert_eq!(run.versions("u:d"), ["noble:amd64 20260104", "noble:amd64 20260103", "trixie:arm64 20260101"]);
    run.keep = false;
    run.run(&[&newest], &[]).unwrap();
    assert_eq!(run.versions("u:d"), ["noble:amd64 20260104"]);
    assert!(!run.fixture.path("trixie-arm64").exists());
    assert_eq!(run.problems(), [""; 0]);
}

#[test]
fn a_run_without_news_rewrites_nothing_and_mends_what_a_crash_left() {
    let mut run = Upstreams::new();
    let mut upstream = tree("u:d", &TWO, &["disk1.img"]);
    upstream.as_object_mut().unwrap().remove("updated");
    run.run(&[&upstream], &[]).unwrap();
    run.fixture.now = "2026-12-24T00:00:00Z".parse().unwrap();
    let forms = ["u:d.sjson", "u:d.json", "u:d.json.gpg", "index.sjson", "index.json", "index.json.gpg"];
    let inodes = || forms.map(|form| run.fixture.path(&format!("streams/v1/{form}")).metadata().unwrap().ino());
    let before = inodes();
    assert_eq!(run.run(&[&upstream], &[]).unwrap(), Published::default());
    assert_eq!(inodes(), before);

    run.put("streams/v1/u:d.json.gpg", "torn");
    run.put("streams/v1/index.json", "torn");
    run.put(PENDING, "left/behind.img\nstreams/v1/index.json\n../x\nnoble-amd64/20260101/disk1.img\n");
    run.put("left/behind.img", "x");
    let published = run.run(&[&upstream], &[]).unwrap();
    assert_eq!(published.documents, ["u:d"]);
    assert_eq!(published.deleted, ["left/behind.img".parse().unwrap()]);
    assert_eq!(run.problems(), [""; 0]);
    assert_eq!(run.document("u:d")["updated"], "Tue, 03 Nov 2026 12:00:00 +0000");
}

#[test]
fn the_time_is_upstreams_and_never_goes_back() {
    let run = Upstreams::new();
    let mut upstream = tree("u:d", &TWO, &["disk1.img"]);
    run.run(&[&upstream], &["arch=amd64"]).unwrap();
    for (theirs, ours) in [
        ("Mon, 02 Nov 2026 12:00:00 -0400", "Mon, 02 Nov 2026 12:00:00 -0400"),
        ("Mon, 02 Nov 2026 15:59:00 +0000", "Mon, 02 Nov 2026 12:00:00 -0400"),
        ("yesterday", "Tue, 03 Nov 2026 12:00:00 +0000"),
    ] {
        upstream["updated"] = theirs.into();
        upstream["license"] = theirs.into();
        run.run(&[&upstream], &["arch=arm64"]).unwrap();
        assert_eq!(run.document("u:d")["updated"], ours, "{theirs}");
    }
}

#[test]
fn what_is_held_keeps_what_upstream_no_longer_says() {
    let run = Upstreams { keep: true, ..Upstreams::new() };
    let mut upstream = tree("u:d", &[("noble:amd64", &["1"])], &["disk1.img"]);
    upstream["products"]["noble:amd64"]["aliases"] = "lts".into();
    upstream["products"]["noble:amd64"]["versions"]["1"]["size_class"] = "s".into();
    upstream["_aliases"] = json!({ "size_class": { "s": { "label": "small" } } });
    run.run(&[&upstream], &[]).unwrap();

    let mut newer = tree("u:d", &[("noble:amd64", &["2"])], &["disk1.img"]);
    let product = newer["products"]["noble:amd64"].as_object_mut().unwrap();
    let arch = product.remove("arch").unwrap();
    product["versions"]["2"]["items"]["disk1.img"]["arch"] = arch;
    product.insert("release".into(), "noble2".into());
    run.run(&[&newer], &[]).unwrap();
    let items = run.items("u:d");
    let seen: Vec<_> =
        items.iter().map(|item| ["arch", "aliases", "release", "label"].map(|key| item.get(key).to_owned())).collect();
    assert_eq!(seen, [["amd64", "", "noble2", "release"], ["amd64", "lts", "noble2", "small"]]);
    assert!(run.document("u:d")["products"]["noble:amd64"].get("aliases").is_none());
    assert_eq!(run.problems(), [""; 0]);
}

#[test]
fn a_path_is_one_file_and_never_the_streams_own() {
    let run = Upstreams::new();
    let first = tree("a", &TWO, &["disk1.img"]);
    let at = |tree: &mut Value, path: &str| {
        tree["products"]["noble:amd64"]["versions"]["9"]["items"]["disk1.img"]["path"] = path.into();
    };
    let mut other = tree("b", &[("noble:amd64", &["9"])], &["disk1.img"]);
    at(&mut other, "noble-amd64/20260101/disk1.img");
    let refused = |trees: &[&Value], part: &str| {
        let error = run.plan(trees, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(&[&first, &other], "would be two files");
    refused(&[&first, &first], "two documents have the content id 'a'");
    run.run(&[&first], &[]).unwrap();
    refused(&[&other], "would be two files");
    for path in ["noble-amd64/20260101", "noble-amd64/20260101/disk1.img/x"] {
        at(&mut other, path);
        refused(&[&other], "a file and the folder");
    }
    let own = ["streams/v1/index.sjson", "streams", "streams/v1", "keyring.gpg", ".virga-lock", "x/.virga-tmp-y/z"];
    for path in own {
        at(&mut other, path);
        refused(&[&other], "the stream's own files");
    }
    let named = tree("index", &TWO, &["disk1.img"]);
    assert_eq!(run.run(&[&named], &[]).unwrap_err().kind(), Kind::Refused);
}

#[test]
fn nothing_is_listed_that_is_not_there() {
    let run = Upstreams::new();
    let upstream = tree("u:d", &TWO, &["disk1.img"]);
    run.run(&[&upstream], &["arch=amd64"]).unwrap();
    let before = run.fixture.read("streams/v1/u:d.sjson");
    let publish =
        || run.with(&[&upstream], &[], |publisher, upstream| publisher.publish(upstream, false, &BTreeSet::new()));
    assert_eq!(publish().unwrap_err().kind(), Kind::NotFound);
    run.put("trixie-arm64/20260101/disk1.img", "short");
    assert_eq!(publish().unwrap_err().kind(), Kind::Refused);
    assert_eq!(run.fixture.read("streams/v1/u:d.sjson"), before);
}

#[test]
fn a_mirror_is_a_stream_like_any_other() {
    let run = Upstreams::new();
    let mut upstream = tree("u:d", &TWO, &["disk1.img", "squashfs"]);
    let strong = &mut upstream["products"]["noble:amd64"]["versions"]["20260101"]["items"]["squashfs"];
    // printf %s 'noble:amd64 20260101 squashfs' | sha512sum
    strong["sha512"] = SHA512.into();
    strong.as_object_mut().unwrap().remove("sha256");
    run.run(&[&upstream], &[]).unwrap();
    assert_eq!(run.problems(), [""; 0]);
    run.put("noble-amd64/20260101/squashfs", &"x".repeat(29));
    assert!(run.problems()[0].contains("SHA-512"), "{:?}", run.problems());
    run.put("stray/file", "x");
    assert!(run.problems().iter().any(|problem| problem.contains("'stray/file' belongs to nothing")));

    assert_eq!(run.fixture.remove(&["arch=arm64"]).len(), 2);
    assert!(!run.fixture.path("trixie-arm64").exists());
    assert_eq!(run.versions("u:d").len(), 4);
}

const SHA512: &str = "16a61a8d2cc10ae0a975499311fc42d61e1c1b21347e538bc6cd7dd62a4d638633b12d11b5fe0496969d2d5374a5ce0e8105f6529a9d40ac1f5d3cabaffe81df";
