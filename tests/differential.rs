//! The same trees, filters and numbers of versions, read by virga and by the
//! reference implementation's own program: the same items with the same attributes.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

use support::{Home, text};

/// The reference's programs; `None` when they cannot be had, which CI does not accept.
fn reference() -> Option<PathBuf> {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/setup");
    support::watch::begin();
    let output = Command::new(setup).output().unwrap();
    if output.status.success() {
        return Some(text(&output.stdout).trim().into());
    }
    support::skip(&format!("the reference implementation cannot be installed: {}", text(&output.stderr)));
    None
}

/// Writes a stream of one products document; returns its index.
fn write_tree(root: &Path, products: &Value) -> PathBuf {
    let folder = root.join("streams/v1");
    std::fs::create_dir_all(&folder).unwrap();
    let index = json!({"format": "index:1.0", "index": {"c": {
        "format": "products:1.0", "datatype": "image-downloads", "path": "streams/v1/c.json",
    }}});
    std::fs::write(folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    std::fs::write(folder.join("c.json"), serde_json::to_vec(products).unwrap()).unwrap();
    folder.join("index.json")
}

fn items(answer: &str) -> BTreeSet<String> {
    let items: Vec<Map<String, Value>> =
        serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let plain = |mut item: Map<String, Value>| {
        // Each program's own additions.
        item.remove("item_url");
        item.remove("source");
        item.remove("trust");
        item.sort_keys();
        serde_json::to_string(&item).unwrap()
    };
    let set: BTreeSet<String> = items.iter().cloned().map(plain).collect();
    assert_eq!(set.len(), items.len(), "an item twice");
    set
}

fn theirs(bin: &Path, index: &Path, filters: &[String], max: Option<usize>) -> BTreeSet<String> {
    let mut command = Command::new(bin.join("sstream-query"));
    command.args(["--no-verify", "--json"]).args(max.map(|max| format!("--max={max}"))).arg(index).args(filters);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    items(&text(&output.stdout))
}

fn ours(home: &Home, index: &Path, filters: &[String], max: Option<usize>) -> BTreeSet<String> {
    let url = format!("file://{}", index.display());
    let mut args = ["--quiet", "images", "--remote", "--unsigned", "--source", &url, "--format", "json"]
        .map(str::to_owned)
        .to_vec();
    // A bare URL has Ubuntu's filters unless others name the same keys.
    args.extend(["datatype~".into(), "ftype~".into()]);
    args.extend(max.map(|max| format!("--max={max}")));
    args.push("--".into());
    args.extend_from_slice(filters);
    let output = home.output(args);
    // Nothing matches, and a key is none that any item has: virga says so, the reference lists nothing.
    if output.status.code() == Some(2) && text(&output.stderr).contains("no image has the key") {
        return BTreeSet::new();
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
    items(&text(&output.stdout))
}

#[track_caller]
fn compare(home: &Home, bin: &Path, name: &str, tree: &Value, filters: &[&str], max: Option<usize>) -> usize {
    let index = write_tree(&home.path(name), tree);
    let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
    let (ours, theirs) = (ours(home, &index, &filters, max), theirs(bin, &index, &filters, max));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        ours == theirs,
        "{name} {filters:?} max {max:?}\nonly ours:\n{}\nonly theirs:\n{}\n{tree:#}",
        only(&ours, &theirs),
        only(&theirs, &ours)
    );
    ours.len()
}

/// Numbers that look random and come again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }

    /// Some attributes, scalars and others.
    fn attributes(&mut self) -> Map<String, Value> {
        let values = [
            json!("amd64"),
            json!("arm64"),
            json!(""),
            json!("noble"),
            json!("a b "),
            json!("é☂"),
            json!("=x"),
            json!(true),
            json!(false),
            json!(0),
            json!(-7),
            json!(20_240_101),
            json!(1.5),
            json!(2.0),
            json!(null),
            json!([1, "a"]),
            json!({"secureboot": "false"}),
        ];
        let keys = ["arch", "release", "os", "label", "supported", "odd-key", "under_score", "requirements"];
        (0..self.roll(5)).map(|_| (self.pick(&keys).to_owned(), self.pick(&values))).collect()
    }

    fn tree(&mut self) -> Value {
        let mut top = self.attributes();
        let mut products = Map::new();
        for p in 0..self.roll(4) {
            let mut product = self.attributes();
            let mut versions = Map::new();
            for _ in 0..self.roll(5) {
                let mut version = self.attributes();
                let mut items = Map::new();
                let names = ["20240101", "20240101.1", "20240101.10", "20240101.2", "20230909", "v1", "V1", "1"];
                let name = self.pick(&names);
                for i in 0..=self.roll(3) {
                    let mut item = self.attributes();
                    item.insert("path".into(), format!("p{p}/{name}/{i}").into());
                    item.insert("size".into(), self.roll(1000).into());
                    item.insert("sha256".into(), format!("{:064x}", self.roll(1000)).into());
                    item.insert("ftype".into(), self.pick(&["disk1.img", "squashfs", "root.tar.xz"]).into());
                    items.insert(format!("i{i}"), item.into());
                }
                version.insert("items".into(), items.into());
                versions.insert(name.to_owned(), version.into());
            }
            product.insert("versions".into(), versions.into());
            products.insert(format!("p:{p}"), product.into());
        }
        top.extend([
            ("format".to_owned(), json!("products:1.0")),
            ("content_id".to_owned(), json!("c")),
            ("datatype".to_owned(), json!("image-downloads")),
            ("products".to_owned(), products.into()),
        ]);
        top.into()
    }
}

const FILTERS: [&[&str]; 12] = [
    &[],
    &["arch=amd64"],
    &["arch!=amd64", "supported~rue"],
    &["release~^no", "ftype=disk1.img"],
    &["label!~a"],
    &["label="],
    &["label!="],
    &["os=a b "],
    &["version_name~^2024"],
    &["version_name!=20240101", "item_name=i0"],
    &["odd-key=é☂"],
    &["supported = True"],
];

#[test]
fn generated_trees() {
    let Some(bin) = reference() else { return };
    let home = Home::new();
    let mut dice = Dice(20_261_124);
    let mut found = 0;
    for n in 0..60 {
        let (tree, filters) = (dice.tree(), dice.pick(&FILTERS));
        let max = [None, Some(1), Some(2)][dice.roll(3)];
        found += compare(&home, &bin, &format!("t{n}"), &tree, filters, max);
    }
    assert!(found > 100, "the trees were empty: {found} items");
}

fn item(path: &str) -> Value {
    json!({"path": path, "size": 1, "sha256": "0".repeat(64), "ftype": "disk1.img"})
}

fn tree(top: Value, products: Value) -> Value {
    let mut tree = json!({"format": "products:1.0", "content_id": "c", "datatype": "image-downloads"});
    let fields = tree.as_object_mut().unwrap();
    fields.extend(top.as_object().unwrap().clone());
    fields.insert("products".into(), products);
    tree
}

#[test]
fn odd_trees() {
    let Some(bin) = reference() else { return };
    let home = Home::new();
    let check = |name: &str, tree: &Value, filters: &[&str], max: Option<usize>, count: usize| {
        assert_eq!(compare(&home, &bin, name, tree, filters, max), count, "{name} {filters:?}");
    };

    let versions = ["20240101", "20240101.1", "20240101.10", "20240101.2", "20231231"];
    let versions: Map<String, Value> =
        versions.iter().map(|name| ((*name).to_owned(), json!({"items": {"i": item(name)}}))).collect();
    let numbers = tree(json!({}), json!({"p": {"versions": versions}}));
    check("numbers", &numbers, &[], Some(2), 2);
    // Filtered first: the newest of those that pass.
    check("numbers", &numbers, &["version_name!~[.]"], Some(1), 1);

    let inherited = tree(
        json!({"size": 5, "release": "top", "license": "l"}),
        json!({"p": {"sha256": "1".repeat(64), "release": "product", "versions": {
            "v": {"release": "version", "items": {"i": {"path": "a"}, "j": {"path": "b", "release": "item"}}},
        }}}),
    );
    check("inherited", &inherited, &["release=version"], None, 1);
    check("inherited", &inherited, &["release~o", "size=5", "license=l"], None, 1);

    let aliases = tree(
        json!({"_aliases": {"crsn": {"one": {"region": "r1", "endpoint": "e1"}, "two": {"region": "r2"}}}, "region": "top"}),
        json!({"p": {"crsn": "one", "versions": {"v": {"items": {
            "i": item("a"),
            "j": {"path": "b", "size": 1, "sha256": "0".repeat(64), "crsn": "two"},
        }}}}}),
    );
    check("aliases", &aliases, &["region=r1"], None, 1);
    check("aliases", &aliases, &["region=r2"], None, 1);
    check("aliases", &aliases, &["endpoint=e1"], None, 2);

    let ids = tree(json!({}), json!({"p": {"versions": {"v": {"items": {"i": {"id": "ami-1", "virt": "hvm"}}}}}}));
    check("ids", &ids, &["virt=hvm"], None, 1);

    let empty = tree(json!({}), json!({"p": {"versions": {}}, "q": {"versions": {"v": {"items": {}}}}}));
    check("empty", &empty, &[], None, 0);
}

/// Where virga differs on purpose: the reference takes what it should not, or fails without saying what is wrong.
#[test]
fn deliberate_differences() {
    let Some(bin) = reference() else { return };
    let home = Home::new();
    let one = |item: Value| tree(json!({}), json!({"p": {"versions": {"v": {"items": {"i": item}}}}}));
    let mut md5 = item("a");
    md5.as_object_mut().unwrap().remove("sha256");
    md5["md5"] = "0".repeat(32).into();
    let cases = [
        ("only MD5, which can be forged", one(md5), true),
        ("a path that leads elsewhere", one(item("../a")), false),
        ("a size that is text", one(json!({"path": "a", "size": "1", "sha256": "0".repeat(64)})), true),
        (
            "a version without a name",
            tree(json!({}), json!({"p": {"versions": {"": {"items": {"i": item("a")}}}}})),
            true,
        ),
        ("a list where a map is due", tree(json!({}), json!([])), false),
    ];
    for (n, (what, tree, theirs_take_it)) in cases.into_iter().enumerate() {
        let index = write_tree(&home.path(&format!("d{n}")), &tree);
        let url = format!("file://{}", index.display());
        home.fails(5, ["images", "--remote", "--unsigned", "--source", &url, "ftype~"]);
        let output =
            Command::new(bin.join("sstream-query")).args(["--no-verify", "--json"]).arg(&index).output().unwrap();
        assert_eq!(output.status.success(), theirs_take_it, "{what}: {}", text(&output.stderr));
    }

    // An item that calls itself another one: names are what the tree says.
    let shadow = json!({"path": "a", "size": 1, "sha256": "0".repeat(64), "product_name": "x", "item_name": "y"});
    let index = write_tree(&home.path("shadow"), &one(shadow));
    assert_eq!(ours(&home, &index, &["product_name=p".into(), "item_name=i".into()], None).len(), 1);
    assert!(theirs(&bin, &index, &[], None).iter().all(|item| item.contains("\"product_name\":\"x\"")));

    // A newest version without any item: with us it does not use up one of the versions that are asked for.
    let hollow = tree(json!({}), json!({"p": {"versions": {"2": {"items": {}}, "1": {"items": {"i": item("a")}}}}}));
    let index = write_tree(&home.path("hollow"), &hollow);
    assert_eq!(ours(&home, &index, &[], Some(1)).len(), 1);
    assert_eq!(theirs(&bin, &index, &[], Some(1)).len(), 0);
}
