use super::*;
use crate::stream::{parse_index, parse_products};

/// Stands for a key: what it "signs" can be told from what others made.
pub(super) struct FakeKey(&'static str);

impl Sign for FakeKey {
    fn inline(&self, document: &[u8]) -> Result<Vec<u8>> {
        Ok([b"signed by ", self.0.as_bytes(), b"\n", document].concat())
    }
    fn detached(&self, document: &[u8]) -> Result<Vec<u8>> {
        Ok(format!("{} {}", self.0, document.len()).into_bytes())
    }
}

impl Check for FakeKey {
    fn inline(&self, message: &[u8]) -> Result<Vec<u8>> {
        let header = format!("signed by {}\n", self.0);
        message.strip_prefix(header.as_bytes()).map(<[u8]>::to_vec).ok_or_else(|| Error::refused("bad signature"))
    }
    fn detached(&self, document: &[u8], signature: &[u8]) -> Result<()> {
        let expected = Sign::detached(self, document)?;
        if expected == signature { Ok(()) } else { Err(Error::refused("bad signature")) }
    }
}

pub(super) const KEY: FakeKey = FakeKey("k");

pub(super) struct Fixture {
    folder: tempfile::TempDir,
    pub(super) now: Timestamp,
    key: Option<&'static FakeKey>,
}

impl Fixture {
    pub(super) fn new(key: Option<&'static FakeKey>) -> Self {
        let fixture = Self::empty(key);
        fixture.publisher(|p| p.init(DEFAULT_CONTENT_ID)).unwrap();
        fixture
    }

    pub(super) fn empty(key: Option<&'static FakeKey>) -> Self {
        Fixture { folder: tempfile::tempdir().unwrap(), now: "2026-11-03T12:00:00Z".parse().unwrap(), key }
    }

    pub(super) fn publisher<T>(&self, act: impl FnOnce(Publisher<'_>) -> T) -> T {
        let dir = self.folder.path().join("stream");
        let sign = self.key.map(|key| key as &dyn Sign);
        let check = self.key.map(|key| key as &dyn Check);
        act(Publisher { dir: &dir, sign, check, now: self.now })
    }

    pub(super) fn request(&self, content: &str, attributes: &[(&str, &str)]) -> AddRequest {
        let file = self.folder.path().join("image.qcow2");
        fs::write_atomic(&file, content.as_bytes(), 0o600).unwrap();
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        AddRequest {
            file,
            content_id: None,
            product: None,
            version: None,
            ftype: DEFAULT_FTYPE.into(),
            attributes: attributes.iter().map(own).collect(),
            inspect: Some(|_| Ok(Facts { format: DiskFormat::Qcow2, virtual_size: ByteSize(ByteSize::GIB) })),
            metadata: None,
        }
    }

    fn add(&self, content: &str, attributes: &[(&str, &str)]) -> Result<Added> {
        let request = self.request(content, attributes);
        self.publisher(|p| p.add(&request))
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("stream").join(path)
    }

    pub(super) fn read(&self, path: &str) -> Vec<u8> {
        fs::read(&self.path(path), 1 << 20).unwrap()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.publisher(|p| p.verify()).unwrap().problems
    }

    pub(super) fn remove(&self, filters: &[&str]) -> Vec<Item> {
        let filters = Filters::parse(filters).unwrap();
        self.publisher(|p| p.remove(&filters)).unwrap()
    }
}

const NOBLE: [(&str, &str); 6] = [
    ("os", "ubuntu"),
    ("release", "noble"),
    ("arch", "amd64"),
    ("label", "release"),
    ("supported", "true"),
    ("aliases", "24.04,noble,lts"),
];

fn doc(form: &str) -> String {
    format!("streams/v1/{DEFAULT_CONTENT_ID}.{form}")
}

#[test]
fn what_is_added_is_read_back_through_the_signed_index() {
    let fixture = Fixture::new(Some(&KEY));
    let added = fixture.add("an image", &NOBLE).unwrap();
    assert!(added.new);

    let index = KEY.inline_text(&fixture.read("streams/v1/index.sjson"));
    let index = parse_index(&index, "index").unwrap();
    assert_eq!(index.updated.as_deref(), Some("Tue, 03 Nov 2026 12:00:00 +0000"));
    let entry = &index.entries[0];
    assert!(entry.is_products());
    assert_eq!(entry.path.as_str(), doc("sjson"));
    assert_eq!(entry.products, ["local.virga:server:noble:amd64"]);
    let products = KEY.inline_text(&fixture.read(entry.path.as_str()));
    let products = parse_products(&products, Some(&entry.content_id), "products").unwrap();
    let items: Vec<Item> = products.select(&Filters::default(), None).map(Result::unwrap).collect();
    assert_eq!(items, [added.item]);
    let item = &items[0];
    for (key, value) in [
        ("version_name", "20261103"),
        ("item_name", "disk1.img"),
        ("ftype", "disk1.img"),
        ("label", "release"),
        ("supported", "True"),
        ("disk_format", "qcow2"),
        ("virtual_size", "1073741824"),
        ("datatype", "image-downloads"),
    ] {
        assert_eq!(item.get(key), value, "{key}");
    }
    // printf %s "an image" | sha256sum
    assert_eq!(item.get("sha256"), "a5df3fde7b200c3fa2791144c7e05c5c2bced4c6ad863d3a4cf76c972c1712f9");
    assert_eq!(fixture.read(item.path.as_ref().unwrap().as_str()), b"an image");

    let plain = parse_index(&fixture.read("streams/v1/index.json"), "index").unwrap();
    assert_eq!(plain.entries[0].path.as_str(), doc("json"));
    let report = fixture.publisher(|p| p.verify()).unwrap().into_result().unwrap();
    assert_eq!((report.documents, report.items, report.bytes, report.signed), (1, 1, 8, true));
}

impl FakeKey {
    pub(super) fn inline_text(&self, message: &[u8]) -> Vec<u8> {
        Check::inline(self, message).unwrap()
    }
}

#[test]
fn adding_the_same_again_changes_nothing() {
    let mut fixture = Fixture::new(Some(&KEY));
    fixture.add("an image", &NOBLE).unwrap();
    let before = fixture.read("streams/v1/index.sjson");
    fixture.now = "2026-12-24T00:00:00Z".parse().unwrap();
    let again = fixture.add("an image", &NOBLE).unwrap();
    assert!(!again.new);
    assert_eq!(again.item.version(), "20261103");
    assert_eq!(fixture.read("streams/v1/index.sjson"), before);
    assert!(fixture.problems().is_empty());
}

#[test]
fn versions_of_a_day_sort_in_the_order_of_adding() {
    let fixture = Fixture::new(None);
    let names: Vec<String> =
        (0..22).map(|n| fixture.add(&format!("image {n}"), &NOBLE).unwrap().item.version().to_owned()).collect();
    assert_eq!(names[..3], ["20261103", "20261103.1", "20261103.2"]);
    assert!(names.is_sorted() && names[9] < names[10], "{names:?}");
    let now = fixture.now;
    assert_eq!(next_version(["20261103_0900"].into_iter(), now), "20261103_0900~");
    assert_eq!(next_version(["20261103.1", "20261104"].into_iter(), now), "20261103.2");
}

#[test]
fn published_content_never_changes() {
    let fixture = Fixture::new(None);
    let versioned = |content: &str| AddRequest { version: Some("20260101".into()), ..fixture.request(content, &NOBLE) };
    let first = versioned("one");
    fixture.publisher(|p| p.add(&first)).unwrap();
    let second = versioned("two");
    let error = fixture.publisher(|p| p.add(&second)).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert!(fixture.problems().is_empty(), "the refused file is gone: {:?}", fixture.problems());
    // Another item of the same version is welcome.
    let manifest = AddRequest { ftype: "manifest".into(), inspect: None, ..versioned("list") };
    assert!(fixture.publisher(|p| p.add(&manifest)).unwrap().new);
}

#[test]
fn removal_keeps_what_others_need() {
    let mut fixture = Fixture::new(Some(&KEY));
    let shared = fixture.add("shared", &NOBLE).unwrap().item.path.unwrap();
    fixture.add("shared", &[("release", "trixie"), ("arch", "amd64")]).unwrap();
    fixture.add("alone", &[("release", "trixie"), ("arch", "arm64")]).unwrap();
    fixture.now = "2026-11-02T12:00:00Z".parse().unwrap();
    assert_eq!(fixture.remove(&["release=nothing"]).len(), 0);
    assert_eq!(fixture.remove(&["release=trixie"]).len(), 2);
    assert_eq!(fixture.read(shared.as_str()), b"shared");
    assert!(fixture.problems().is_empty(), "{:?}", fixture.problems());
    let index = parse_index(&fixture.read("streams/v1/index.json"), "index").unwrap();
    assert_eq!(index.entries[0].products, ["local.virga:server:noble:amd64"]);
    assert_eq!(
        index.updated.as_deref(),
        Some("Tue, 03 Nov 2026 12:00:00 +0000"),
        "the clock went back, the stream did not"
    );
    assert_eq!(fixture.remove(&["arch~"]).len(), 1);
    assert_eq!(fs::list_dir(&fixture.path("images")).unwrap(), [""; 0]);
    let error = fixture.publisher(|p| p.remove(&Filters::default())).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[test]
fn verify_sees_every_kind_of_damage() {
    let overwrite =
        |fixture: &Fixture, path: &str, bytes: &[u8]| fs::write_atomic(&fixture.path(path), bytes, 0o644).unwrap();
    type Damage<'a> = (&'a str, &'a dyn Fn(&Fixture, &str));
    let damages: [Damage<'_>; 10] = [
        ("has 3 bytes, not 8", &|f, image| overwrite(f, image, b"an ")),
        ("has other content", &|f, image| overwrite(f, image, b"an imagf")),
        ("No such file", &|f, image| fs::remove_file(&f.path(image)).unwrap()),
        ("belongs to nothing", &|f, _| overwrite(f, "images/left.img", b"x")),
        ("bad signature", &|f, _| overwrite(f, &doc("sjson"), b"signed by another\n{}")),
        ("bad signature", &|f, _| overwrite(f, &doc("json.gpg"), b"x")),
        ("is missing", &|f, _| fs::remove_file(&f.path(&doc("json.gpg"))).unwrap()),
        ("and its signed form differ", &|f, _| {
            let text = String::from_utf8(f.read(&doc("json"))).unwrap();
            overwrite(f, &doc("json"), text.replace("\"noble\"", "\"nobly\"").as_bytes());
        }),
        ("tells other products", &|f, _| {
            let text = String::from_utf8(f.read("streams/v1/index.json")).unwrap();
            overwrite(f, "streams/v1/index.json", text.replace(":noble:", ":nobly:").as_bytes());
        }),
        ("the index does not have", &|f, _| overwrite(f, "streams/v1/more.json", b"{}")),
    ];
    for (part, damage) in damages {
        let fixture = Fixture::new(Some(&KEY));
        let item = fixture.add("an image", &NOBLE).unwrap().item;
        damage(&fixture, item.path.unwrap().as_str());
        let problems = fixture.problems();
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        let error = fixture.publisher(|p| p.verify()).unwrap().into_result().unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
    }
}

#[test]
fn a_change_starts_from_what_verifies_and_mends_the_rest() {
    let fixture = Fixture::new(Some(&KEY));
    fixture.add("one", &NOBLE).unwrap();
    // As after a crash between the forms, with temporary files left.
    fs::write_atomic(&fixture.path(&doc("json")), b"{\"torn\":1}", 0o644).unwrap();
    let left = ["", "images/", "streams/v1/"].map(|folder| fixture.path(&format!("{folder}.virga-tmp-x")));
    left.iter().for_each(|path| fs::write_atomic(path, b"", 0o644).unwrap());
    fs::remove_file(&fixture.path("streams/v1/index.sjson")).unwrap();
    fixture.add("two", &NOBLE).unwrap();
    let report = fixture.publisher(|p| p.verify()).unwrap().into_result().unwrap();
    assert_eq!(report.items, 2);
    assert!(!left.iter().any(|path| path.exists()), "a temporary file is left");

    fs::write_atomic(&fixture.path(&doc("sjson")), b"signed by another\n{}", 0o644).unwrap();
    assert_eq!(fixture.add("three", &NOBLE).unwrap_err().kind(), Kind::Refused);
}

#[test]
fn a_signed_stream_is_not_changed_without_its_key() {
    let mut fixture = Fixture::new(Some(&KEY));
    fixture.key = None;
    assert_eq!(fixture.add("x", &NOBLE).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn wrong_requests_are_explained() {
    let fixture = Fixture::empty(None);
    assert_eq!(fixture.add("x", &NOBLE).unwrap_err().kind(), Kind::NotFound);
    for id in ["", "../x", "a/b", "index", "a b", "a\nb"] {
        assert_eq!(fixture.publisher(|p| p.init(id)).unwrap_err().kind(), Kind::Usage, "{id}");
    }
    let fixture = Fixture::new(None);
    for (attributes, part) in [
        (&[("release", "noble")][..], "nothing says the 'arch'"),
        (&[("release", ""), ("arch", "amd64")], "nothing says the 'release'"),
        (&[("release", "a\nb"), ("arch", "amd64")], "control character"),
        (&[("release", "a"), ("arch", "amd64"), ("path", "x")], "'path' cannot be set"),
        (&[("release", "a"), ("arch", "amd64"), ("a.b", "x")], "'a.b' cannot be set"),
    ] {
        let error = fixture.add("x", attributes).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(part), "{error}");
    }
    for ftype in ["", "a/b", "..", "a b"] {
        let request = AddRequest { ftype: ftype.into(), ..fixture.request("x", &NOBLE) };
        assert_eq!(fixture.publisher(|p| p.add(&request)).unwrap_err().kind(), Kind::Usage, "{ftype}");
    }
    assert_eq!(fixture.add("", &NOBLE).unwrap_err().kind(), Kind::Usage);
    let product = |arch: &'static str| AddRequest {
        product: Some("p".into()),
        ..fixture.request("x", &[("release", "a"), ("arch", arch)])
    };
    fixture.publisher(|p| p.add(&product("amd64"))).unwrap();
    assert!(fixture.publisher(|p| p.add(&product("arm64"))).unwrap_err().to_string().contains("has arch 'amd64'"));
    fixture.publisher(|p| p.init("second:id")).unwrap();
    let error = fixture.add("x", &NOBLE).unwrap_err();
    assert!(error.hints()[0].contains("'second:id'"), "{error}");
    assert!(fixture.problems().is_empty(), "{:?}", fixture.problems());
}

#[test]
fn two_at_once_lose_nothing() {
    let fixture = Fixture::new(None);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let fixture = &fixture;
            scope.spawn(move || {
                let file = fixture.folder.path().join(format!("image-{n}"));
                fs::write_atomic(&file, format!("image {n}").as_bytes(), 0o600).unwrap();
                let request = AddRequest { file, ..fixture.request("unused", &NOBLE) };
                fixture.publisher(|p| p.add(&request)).unwrap();
            });
        }
    });
    let report = fixture.publisher(|p| p.verify()).unwrap().into_result().unwrap();
    assert_eq!((report.items, report.documents), (4, 1));
}
