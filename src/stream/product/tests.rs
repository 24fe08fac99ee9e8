use super::*;
use crate::base::Kind;

const SUM: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";

fn document(top: &str, products: &str) -> String {
    format!(
        r#"{{"format":"products:1.0","content_id":"c:d","datatype":"image-downloads",{top}"products":{{{products}}}}}"#
    )
}

/// A document of one item with these fields.
fn one(item: &str) -> String {
    document("", &format!(r#""p":{{"versions":{{"1":{{"items":{{"i":{{{item}}}}}}}}}}}"#))
}

fn select(text: &str, filters: &[&str], max: Option<usize>) -> Result<Vec<Item>> {
    parse_products(text.as_bytes(), None, "the document")?.select(&Filters::parse(filters)?, max).collect()
}

fn names(items: &[Item]) -> Vec<String> {
    items.iter().map(|item| format!("{}/{}/{}", item.product(), item.version(), item.name())).collect()
}

fn why(text: &str) -> String {
    let error = select(text, &[], None).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    format!("{error}: {}", error.causes().join(": "))
}

#[test]
fn flattens_with_the_nearest_level_winning() {
    let text = document(
        r#""updated":"u","license":"l","_x":{"a":1},"#,
        r#""p":{"arch":"amd64","supported":true,"version":24.04,"requirements":{"secureboot":"false"},"size":7,
            "sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","product_name":"fake",
            "versions":{"20260101":{"label":"release","arch":"arm64","items":{
                "disk1.img":{"path":"a/b.img","ftype":"disk1.img","label":"own","n":-3,"x":null,"y":[1],"content_id":"fake"}}}}}"#,
    );
    let items = select(&text, &[], None).unwrap();
    let item = &items[0];
    let expected = [
        ("arch", "arm64"),
        ("content_id", "c:d"),
        ("datatype", "image-downloads"),
        ("format", "products:1.0"),
        ("ftype", "disk1.img"),
        ("item_name", "disk1.img"),
        ("label", "own"),
        ("license", "l"),
        ("n", "-3"),
        ("path", "a/b.img"),
        ("product_name", "p"),
        ("sha256", &SUM.to_lowercase()),
        ("size", "7"),
        ("supported", "True"),
        ("updated", "u"),
        ("version", "24.04"),
        ("version_name", "20260101"),
    ];
    let seen: Vec<(&str, &str)> = item.keys.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(seen, expected);
    assert_eq!((item.size, item.path.as_ref().map(RelPath::as_str)), (Some(7), Some("a/b.img")));
}

#[test]
fn takes_the_strongest_digest_in_either_case() {
    let text = one(&format!(r#""path":"x","size":1,"md5":"z","sha256":"{SUM}","sha512":"{SUM}{SUM}""#));
    let item = select(&text, &[], None).unwrap().remove(0);
    assert_eq!(item.digest.unwrap().to_string(), format!("sha512:{}", format!("{SUM}{SUM}").to_lowercase()));
    assert_eq!(item.sha256.unwrap().hex(), SUM.to_lowercase());
}

#[test]
fn items_without_a_file_need_no_sums_and_mirrors_are_inherited() {
    let text = document("", r#""p":{"mirrors":["https://m/"],"versions":{"1":{"items":{"i":{"id":"ami-1"}}}}}"#);
    let item = select(&text, &[], None).unwrap().remove(0);
    assert_eq!((item.path, item.size, item.digest), (None, None, None));
    assert_eq!(item.mirrors, ["https://m/"]);
}

fn versions(versions: &[(&str, &[&str])]) -> String {
    let item = |name: &&str| format!(r#""{name}":{{"ftype":"{name}"}}"#);
    let version = |(name, items): &(&str, &[&str])| {
        format!(r#""{name}":{{"items":{{{}}}}}"#, items.iter().map(item).collect::<Vec<_>>().join(","))
    };
    versions.iter().map(version).collect::<Vec<_>>().join(",")
}

#[test]
fn filters_first_and_takes_the_newest_afterwards() {
    let p = versions(&[("20260101", &["a", "b"]), ("20260102", &["b"]), ("20251231.1", &["a"]), ("20251231", &["a"])]);
    let q = versions(&[("2", &["a"]), ("10", &["a"])]);
    let text = document("", &format!(r#""q":{{"versions":{{{q}}}}},"p":{{"versions":{{{p}}}}},"empty":{{}}"#));
    for (filters, max, expected) in [
        (&["ftype=a"][..], Some(1), &["p/20260101/a", "q/2/a"][..]),
        (&["ftype=a"], Some(2), &["p/20260101/a", "p/20251231.1/a", "q/2/a", "q/10/a"]),
        (&[], Some(1), &["p/20260102/b", "q/2/a"]),
        (&["product_name=p"], Some(2), &["p/20260102/b", "p/20260101/a", "p/20260101/b"]),
        (&["version_name~^2025", "product_name=p"], None, &["p/20251231.1/a", "p/20251231/a"]),
        (&["item_name=zzz"], None, &[]),
        (&[], Some(0), &[]),
    ] {
        assert_eq!(names(&select(&text, filters, max).unwrap()), expected, "{filters:?} {max:?}");
    }
    let products = parse_products(text.as_bytes(), Some("c:d"), "x").unwrap();
    assert_eq!(products.names().collect::<Vec<_>>(), ["empty", "p", "q"]);
}

#[test]
fn aliases_are_merged_over_the_own_values() {
    let text = document(
        r#""_aliases":{"crsn":{"E1":{"region":"east-1","endpoint":"https://e1/"},"W1":{"region":"west-1"}}},"#,
        r#""p":{"versions":{"1":{"crsn":"W1","items":{"a":{"crsn":"E1","region":"own"},"b":{}}}}}"#,
    );
    let items = select(&text, &[], None).unwrap();
    let seen: Vec<_> = items.iter().map(|item| (item.get("crsn"), item.get("region"), item.get("endpoint"))).collect();
    assert_eq!(seen, [("E1", "east-1", "https://e1/"), ("W1", "west-1", "")]);
    assert!(!items[0].keys.contains_key("_aliases"));
    assert!(why(&text.replace("\"W1\",\"items", "\"X\",\"items")).contains("uses 'crsn' = 'X'"));
}

#[test]
fn refuses_malformed_documents_with_the_place() {
    for (text, part) in [
        (r#"{"format":"products:1.0","products":{}}"#.to_owned(), "has no 'content_id'"),
        (r#"{"format":"products:1.0","content_id":3,"products":{}}"#.to_owned(), "has no 'content_id'"),
        (r#"{"format":"products:1.0","content_id":"a"}"#.to_owned(), "has no 'products'"),
        (r#"{"content_id":"a","products":{}}"#.to_owned(), "says nothing as its format"),
        (r#"{"format":"products:2.0","content_id":"a","products":{}}"#.to_owned(), "says 'products:2.0'"),
        (r#"{"format":"products:1.0","content_id":"../../x","products":{}}"#.to_owned(), "looks like a path"),
        (r#"{"format":"products:1.0","content_id":"a\u001bb","products":{}}"#.to_owned(), "control character"),
        (r#"{"format":"products:1.0","content_id":"a","products":null}"#.to_owned(), "at 'products'"),
        (r#"{"format":"products:1.0","content_id":"a","products":[]}"#.to_owned(), "at 'products'"),
        (document("", r#""p":{"versions":[]}"#), "at 'products.p.versions'"),
        (document("", r#""p":{"versions":null}"#), "at 'products.p.versions'"),
        (document("", r#""p":{"versions":{"1":{"items":{"i":"x"}}}}"#), "at 'products.p.versions.1.items.i'"),
        (document("", r#""p":{"versions":{"":{"items":{}}}}"#), "the name '' is empty"),
        (document("", r#""p":{"versions":{"a\nb":{}}}"#), "control character"),
        (document("", r#""p":{},"p":{}"#), "at 'products': the key 'p' stands twice"),
        (document("", r#""p":{"x":{"a":1,"a":2}}"#), "at 'products.p.x'"),
        (document("", r#""p":{"mirrors":"https://m/"}"#), "at 'products.p.mirrors'"),
        (document(r#""_aliases":[],"#, ""), "at '_aliases'"),
        ("\u{feff}{}".to_owned(), "byte order mark"),
    ] {
        let said = why(&text);
        assert!(said.contains(part), "{text}\n{said}");
    }
    let other = parse_products(document("", "").as_bytes(), Some("c:e"), "x").unwrap_err();
    assert_eq!(other.kind(), Kind::Refused);
    assert!(other.to_string().contains("'c:d', not 'c:e'"), "{other}");
}

#[test]
fn refuses_items_that_cannot_be_verified() {
    let sum = format!(r#""sha256":"{SUM}""#);
    for (item, part) in [
        (format!(r#""path":"x",{sum}"#), "has no size"),
        (r#""path":"x","size":1"#.to_owned(), "has no digest"),
        (r#""path":"x","size":1,"md5":"0123"}"#.replace('}', ""), "no digest but MD5"),
        (format!(r#""path":"x","size":"1",{sum}"#), "not a whole number"),
        (format!(r#""path":"x","size":-1,{sum}"#), "not a whole number"),
        (format!(r#""path":"x","size":1.5,{sum}"#), "not a whole number"),
        (format!(r#""path":"x","size":1e400,{sum}"#), "number out of range"),
        (r#""path":"x","size":1,"sha256":"abc""#.to_owned(), "'abc' is not a sha256 digest"),
        (format!(r#""path":"x","size":1,{sum},"sha512":"""#), "'' is not a sha512 digest"),
    ] {
        let said = why(&one(&item));
        assert!(said.contains(part), "{item}\n{said}");
    }
    for path in [
        "/x",
        "../x",
        "a/../x",
        ".../../x",
        "..",
        "d/..",
        "",
        "./d/f",
        "d//f",
        "a\\\\b",
        "%2e%2e/x",
        "d/f?x",
        "http://x/y",
        "file:x",
    ] {
        let said = why(&one(&format!(r#""path":"{path}","size":1,{sum}"#)));
        assert!(said.contains("is not a plain relative path"), "{path}\n{said}");
    }
}

#[test]
fn one_bad_item_spoils_only_itself() {
    let text = document("", r#""p":{"versions":{"1":{"items":{"good":{},"bad":{"path":"../x"}}}}}"#);
    assert_eq!(names(&select(&text, &["item_name=good"], None).unwrap()), ["p/1/good"]);
    assert!(select(&text, &["item_name=bad"], None).is_err());
}

#[test]
fn two_items_of_one_path_must_agree() {
    let text = |second: &str| {
        let item = |sums: &str| format!(r#"{{"path":"x",{sums}}}"#);
        let first = format!(r#""size":1,"sha256":"{SUM}""#);
        document(
            "",
            &format!(r#""p":{{"versions":{{"1":{{"items":{{"a":{},"b":{}}}}}}}}}"#, item(&first), item(second)),
        )
    };
    let same = format!(r#""size":1,"sha256":"{}""#, SUM.to_lowercase());
    assert_eq!(select(&text(&same), &[], None).unwrap().len(), 2);
    for other in [format!(r#""size":1,"sha256":"{}""#, "0".repeat(64)), format!(r#""size":2,"sha256":"{SUM}""#)] {
        let said = why(&text(&other));
        assert!(said.contains("two items for 'x' whose "), "{said}");
    }
}

proptest::proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic(at in 0usize..600, byte: u8, cut in 0usize..600) {
        let item = format!(r#""path":"a/b","size":7,"sha256":"{SUM}","x":[{{"y":1.5e3}}],"n":-1,"crsn":"E""#);
        let aliases = r#""_aliases":{"crsn":{"E":{"r":"\u00e9"}}},"#;
        let products = format!(r#""p":{{"versions":{{"1":{{"items":{{"i":{{{item}}}}}}}}}}}"#);
        let whole = document(aliases, &products).into_bytes();
        assert!(parse_products(&whole, None, "x").is_ok());
        let mut damaged = whole.clone();
        damaged[at % whole.len()] = byte;
        for text in [&damaged[..], &whole[..cut % whole.len()]] {
            if let Ok(products) = parse_products(text, None, "x") {
                let _ = products.select(&Filters::default(), None).collect::<Vec<_>>();
            }
        }
    }
}

mod properties {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use crate::stream::filter::Filters;
    use crate::stream::product::parse_products;

    type Attributes = BTreeMap<String, String>;

    /// Attributes of one level; few names, so that levels overwrite each other.
    fn attributes() -> impl Strategy<Value = Attributes> {
        prop::collection::btree_map("[a-d]", "[x-z]{0,2}", 0..4)
    }

    fn level(attributes: &Attributes, children: &str, below: Map<String, Value>) -> Value {
        let mut fields: Map<String, Value> =
            attributes.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        fields.insert(children.to_owned(), below.into());
        fields.into()
    }

    fn document(versions: &BTreeMap<String, BTreeMap<String, Attributes>>, above: [&Attributes; 3]) -> Vec<u8> {
        let [top, product, version] = above;
        let item =
            |attributes: &Attributes| attributes.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>();
        let items = |items: &BTreeMap<String, Attributes>| {
            items.iter().map(|(name, attributes)| (name.clone(), item(attributes).into())).collect::<Map<_, _>>()
        };
        let versions =
            versions.iter().map(|(name, below)| (name.clone(), level(version, "items", items(below)))).collect();
        let products = Map::from_iter([("p".to_owned(), level(product, "versions", versions))]);
        let mut document = level(top, "products", products);
        (document["format"], document["content_id"]) = (json!("products:1.0"), json!("c"));
        serde_json::to_vec(&document).unwrap()
    }

    proptest! {
        #[test]
        fn an_item_has_the_nearest_of_each_attribute(
            top in attributes(), product in attributes(), version in attributes(), item in attributes(),
        ) {
            let versions = BTreeMap::from([("v".to_owned(), BTreeMap::from([("i".to_owned(), item.clone())]))]);
            let bytes = document(&versions, [&top, &product, &version]);
            let products = parse_products(&bytes, None, "x").unwrap();
            let found = products.select(&Filters::default(), None).next().unwrap().unwrap();
            for key in ["a", "b", "c", "d"] {
                let nearest = [&item, &version, &product, &top].into_iter().find_map(|level| level.get(key));
                prop_assert_eq!(found.keys.get(key), nearest, "{}", key);
                // Filters see the same, and an absent key as an empty one.
                let value = nearest.map_or("", String::as_str);
                let filter = Filters::parse(&[format!("{key}={value}")]).unwrap();
                prop_assert_eq!(products.select(&filter, None).count(), 1);
            }
        }

        #[test]
        fn the_newest_versions_that_offer_something_are_chosen(
            names in prop::collection::btree_set("[0-9a-zA-Z.é]{1,4}", 1..8), max in 1..5_usize, wanted in "[x-z]",
            values in prop::collection::vec("[x-z]", 8),
        ) {
            let versions = names.iter().zip(&values).map(|(name, value)| {
                (name.clone(), BTreeMap::from([("i".to_owned(), BTreeMap::from([("a".to_owned(), value.clone())]))]))
            });
            let none = Attributes::new();
            let bytes = document(&versions.collect(), [&none; 3]);
            let filters = Filters::parse(&[format!("a={wanted}")]).unwrap();
            let products = parse_products(&bytes, None, "x").unwrap();
            let found: Vec<String> =
                products.select(&filters, Some(max)).map(|item| item.unwrap().version().to_owned()).collect();
            // The naive model: those that match, by their bytes, newest first, so many.
            let matching: BTreeSet<&[u8]> =
                names.iter().zip(&values).filter(|(_, value)| **value == wanted).map(|(name, _)| name.as_bytes()).collect();
            let expected: Vec<&[u8]> = matching.into_iter().rev().take(max).collect();
            prop_assert_eq!(found.iter().map(String::as_bytes).collect::<Vec<_>>(), expected);
        }
    }
}
