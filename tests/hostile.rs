//! Mirrors that break the rules, from a cut connection to a forged stream:
//! each gets one clear error with its exit code, or is got along with; and
//! nothing ever has a final name that was not announced and verified.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

#[path = "../src/fetch/tests/server.rs"]
#[allow(dead_code, reason = "the unit tests use all of it")]
mod server;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rstest::rstest;
use serde_json::{Value, json};
use sha2::Digest as _;
use virga::stream::key::SigningKey;

use server::{Reply, Request, Server};
use support::{Home, names, run, sha256, small_image, text};

const INDEX: &str = "streams/v1/index.sjson";
const PRODUCTS: &str = "streams/v1/test.sjson";
const ITEM: &str = "images/one/disk.img";

fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A stream in memory, rightly signed whatever it says.
struct Stream {
    home: Home,
    key: SigningKey,
    index: Value,
    products: Value,
    files: BTreeMap<String, Vec<u8>>,
}

impl Stream {
    fn new() -> Self {
        let home = Home::new();
        let key = SigningKey::generate("test").unwrap();
        std::fs::write(home.path("keyring.gpg"), key.public_binary().unwrap()).unwrap();
        // Not zeros alone, so that a cut and a join show.
        let raw = home.path("raw");
        let bytes: Vec<u8> = (0..3_000_320_u32).map(|n| u8::try_from((n * 7 + n / 253) % 251).unwrap()).collect();
        std::fs::write(&raw, &bytes[..2_999_808]).unwrap();
        let image = home.path("image.qcow2");
        run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
        let image = std::fs::read(image).unwrap();
        let index = json!({"format": "index:1.0", "index": {"test": {
            "format": "products:1.0", "datatype": "image-downloads", "path": PRODUCTS, "products": ["p"],
        }}});
        let arch = virga::base::Arch::host().to_string();
        let products = json!({
            "format": "products:1.0", "content_id": "test", "datatype": "image-downloads", "products": {"p": {
                "arch": arch, "os": "debian", "release": "bookworm", "versions": {"20260101": {"items": {"i": {
                    "ftype": "disk1.img", "path": ITEM, "size": image.len(), "sha256": hex(&image),
                }}}},
            }},
        });
        Stream { home, key, index, products, files: BTreeMap::from([(ITEM.to_owned(), image)]) }
    }

    /// The one item of the products document.
    fn item(&mut self) -> &mut Value {
        &mut self.products["products"]["p"]["versions"]["20260101"]["items"]["i"]
    }

    fn image(&self) -> Vec<u8> {
        self.files[ITEM].clone()
    }

    fn sign(&self, document: &Value) -> Vec<u8> {
        self.key.sign_inline(&serde_json::to_vec_pretty(document).unwrap()).unwrap()
    }

    fn all_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        for (path, document) in [(INDEX, &self.index), (PRODUCTS, &self.products)] {
            files.entry(path.to_owned()).or_insert_with(|| self.sign(document));
        }
        files
    }

    /// Serves everything rightly, but what `fault` answers itself.
    fn serve(&self, fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
        let files = self.all_files();
        Server::start(move |_, request| {
            fault(request).unwrap_or_else(|| match files.get(request.path.trim_start_matches('/')) {
                Some(bytes) => Reply::ranged(request, bytes).header("ETag", "\"one\""),
                None => Reply::status("404 Not Found").header("Content-Length", 0),
            })
        })
    }

    fn sync(&self, server: &Server) -> Output {
        let keyring = self.home.path("keyring.gpg");
        let url = server.url("/");
        self.home.output(["sync", "--source", url.as_str(), "--keyring", keyring.to_str().unwrap()])
    }

    fn blobs(&self) -> Vec<String> {
        names(&self.home.state().join("pool/blobs/sha256"))
    }

    /// A sync that must fail in this way and leave nothing.
    #[track_caller]
    fn refused(&self, server: &Server, code: i32, part: &str) {
        let output = self.sync(server);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        assert!(stderr.contains(part), "{part}\n{stderr}");
        assert!(!stderr.contains("panicked") && stderr.len() < 4000, "{stderr}");
        assert!(self.blobs().is_empty(), "something has a final name");
        assert_eq!(self.home.json(["images"]), json!([]));
    }

    /// A sync that must get along with it.
    #[track_caller]
    fn synced(&self, server: &Server) {
        let output = self.sync(server);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(self.blobs(), [hex(&self.image())]);
        let blob = self.home.state().join("pool/blobs/sha256").join(&self.blobs()[0]);
        assert_eq!(sha256(&blob), self.blobs()[0]);
    }
}

fn is_item(request: &Request) -> bool {
    request.path.ends_with(ITEM)
}

/// What the server does to the item, and that it is got along with.
#[rstest]
#[case::cut_in_every_answer(|request: &Request, image: &[u8]| Some(Reply::ranged(request, image).header("ETag", "\"one\"").cut(1_100_000)))]
#[case::no_range_support(|request: &Request, image: &[u8]| if request.range().is_some() { Some(Reply::ok(image)) } else { Some(Reply::ok(image).cut(1_500_000)) })]
fn a_bad_line_is_got_along_with(#[case] fault: fn(&Request, &[u8]) -> Option<Reply>) {
    let stream = Stream::new();
    let image = stream.image();
    let server = stream.serve(move |request| if is_item(request) { fault(request, &image) } else { None });
    stream.synced(&server);
}

#[test]
fn a_line_that_always_breaks_at_one_place_is_given_up_and_continued_by_the_next_sync() {
    let stream = Stream::new();
    let image = stream.image();
    let at = image.len() / 2;
    let half = image.clone();
    let broken = stream.serve(move |request| {
        let start = request.range().unwrap_or(0);
        is_item(request).then(|| Reply::ranged(request, &half).header("ETag", "\"one\"").cut(at.saturating_sub(start)))
    });
    stream.refused(&broken, 1, "tried");
    let partials = names(&stream.home.state().join("pool/partial"));
    assert!(partials.contains(&hex(&image)), "{partials:?}");
    // Another port is another URL: the bytes are continued all the same, for their digest is checked.
    let whole = stream.serve(|_| None);
    stream.synced(&whole);
    let ranges: Vec<_> = whole.seen().iter().filter(|request| is_item(request)).map(Request::range).collect();
    assert_eq!(ranges, [Some(at)]);
}

#[test]
fn a_rotten_partial_is_found_and_not_appended_to() {
    let stream = Stream::new();
    let image = stream.image();
    let half = image.clone();
    let broken = stream.serve(move |request| {
        is_item(request)
            .then(|| Reply::ranged(request, &half).cut(1_000_000_usize.saturating_sub(request.range().unwrap_or(0))))
    });
    stream.refused(&broken, 1, "tried");
    let partial = stream.home.state().join("pool/partial").join(hex(&image));
    let mut bytes = std::fs::read(&partial).unwrap();
    bytes[500_000] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    stream.synced(&stream.serve(|_| None));
}

/// The first answer breaks off; how the server then continues.
#[rstest]
#[case::with_another_range(|start: usize, image: &[u8]| Reply::part(start / 2, image).header("ETag", "\"one\""))]
#[case::with_another_file(|start: usize, image: &[u8]| Reply::part(start, image).header("ETag", "\"two\""))]
#[case::with_other_bytes(|start: usize, image: &[u8]| {
    Reply::part(start, image).header("ETag", "\"one\"").body(&vec![7; image.len() - start])
})]
#[case::with_no_range_at_all(|start: usize, image: &[u8]| Reply::part(start, image).replace("Content-Range", "X-Range"))]
fn a_wrong_continuation_is_begun_anew(#[case] continued: fn(usize, &[u8]) -> Reply) {
    let stream = Stream::new();
    let image = stream.image();
    let begun = AtomicBool::new(false);
    let server = stream.serve(move |request| match request.range() {
        _ if !is_item(request) => None,
        Some(start) => Some(continued(start, &image)),
        None if !begun.swap(true, Ordering::SeqCst) => Some(Reply::ok(&image).header("ETag", "\"one\"").cut(1_500_000)),
        None => None,
    });
    stream.synced(&server);
    let asked = server.seen().iter().filter(|request| is_item(request)).map(Request::range).collect::<Vec<_>>();
    assert_eq!(asked.len(), 3, "cut, continued, begun anew: {asked:?}");
    assert!(asked[1].is_some() && asked[2].is_none(), "{asked:?}");
}

#[rstest]
#[case::not_found(3, "404", |_: &[u8]| Reply::status("404 Not Found").header("Content-Length", 0))]
#[case::server_error(1, "500", |_: &[u8]| Reply::status("500 Internal Server Error").header("Content-Length", 0))]
#[case::an_error_page_as_content(1, "503", |image: &[u8]| Reply::status("503 Service Unavailable").header("Content-Length", image.len()).body(image))]
#[case::no_content(1, "204", |_: &[u8]| Reply::status("204 No Content"))]
#[case::other_bytes(5, "not what was announced", |image: &[u8]| Reply::ok(&vec![7; image.len()]))]
#[case::too_long(5, "announced are", |image: &[u8]| Reply::ok(&[image, &b"x"[..]].concat()))]
#[case::too_short(5, "announced are", |image: &[u8]| Reply::ok(&image[1..]))]
#[case::longer_than_its_content_length(5, "not what was announced", |image: &[u8]| Reply::status("200 OK").header("Content-Length", image.len()).body(&[&b"x"[..], image].concat()))]
#[case::endless(5, "longer", |image: &[u8]| Reply::status("200 OK").body(&image.repeat(2)))]
#[case::in_circles(5, "redirects", |_: &[u8]| Reply::status("302 Found").header("Location", format!("/{ITEM}")).header("Content-Length", 0))]
#[case::to_another_scheme(5, "302", |_: &[u8]| Reply::status("302 Found").header("Location", "file:///etc/passwd").header("Content-Length", 0))]
fn an_item_that_is_not_what_was_announced(#[case] code: i32, #[case] part: &str, #[case] answer: fn(&[u8]) -> Reply) {
    let stream = Stream::new();
    let image = stream.image();
    let server = stream.serve(move |request| is_item(request).then(|| answer(&image)));
    stream.refused(&server, code, part);
}

#[test]
fn a_busy_server_is_waited_for() {
    let stream = Stream::new();
    let asked = AtomicBool::new(false);
    let server = stream.serve(move |request| {
        (is_item(request) && !asked.swap(true, Ordering::SeqCst))
            .then(|| Reply::status("503 Service Unavailable").header("Retry-After", 1).header("Content-Length", 0))
    });
    stream.synced(&server);
}

/// Metadata that goes wrong on the way.
#[rstest]
#[case::compressed_unasked(INDEX, 5, "encodes", |_: &[u8]| Reply::ok(&[0x1f, 0x8b, 8]).header("Content-Encoding", "gzip"))]
#[case::cut(INDEX, 1, "broke", |bytes: &[u8]| Reply::ok(bytes).cut(bytes.len() / 2))]
#[case::garbage(INDEX, 5, "not verified", |bytes: &[u8]| Reply::ok(&vec![0; bytes.len()]))]
#[case::one_bit(PRODUCTS, 5, "not verified", |bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    bytes[200] ^= 1;
    Reply::ok(&bytes)
})]
#[case::not_there(PRODUCTS, 3, "404", |_: &[u8]| Reply::status("404 Not Found").header("Content-Length", 0))]
fn metadata_that_goes_wrong(
    #[case] path: &'static str,
    #[case] code: i32,
    #[case] part: &str,
    #[case] answer: fn(&[u8]) -> Reply,
) {
    let stream = Stream::new();
    let bytes = stream.all_files()[path].clone();
    let server = stream.serve(move |request| request.path.ends_with(path).then(|| answer(&bytes)));
    stream.refused(&server, code, part);
}

/// Streams that are rightly signed and still lie.
#[rstest]
#[case::another_content_id("content id", |stream: &mut Stream| stream.products["content_id"] = "other".into())]
#[case::content_id_with_a_path("path", |stream: &mut Stream| {
    let entry = stream.index["index"]["test"].take();
    stream.index["index"] = json!({"../../x": entry});
})]
#[case::products_path_upwards("relative path", |stream: &mut Stream| stream.index["index"]["test"]["path"] = "../../etc/passwd".into())]
#[case::products_path_absolute("relative path", |stream: &mut Stream| stream.index["index"]["test"]["path"] = "/etc/passwd".into())]
#[case::products_path_elsewhere("relative path", |stream: &mut Stream| stream.index["index"]["test"]["path"] = "http://other.invalid/x".into())]
#[case::item_path_upwards("path", |stream: &mut Stream| stream.item()["path"] = "a/../../x".into())]
#[case::item_path_encoded("path", |stream: &mut Stream| stream.item()["path"] = "a/%2e%2e/x".into())]
#[case::item_path_with_a_query("path", |stream: &mut Stream| stream.item()["path"] = "a/x?y".into())]
#[case::no_size("size", |stream: &mut Stream| drop(stream.item().as_object_mut().unwrap().remove("size")))]
#[case::negative_size("size", |stream: &mut Stream| stream.item()["size"] = (-1).into())]
#[case::no_digest("digest", |stream: &mut Stream| drop(stream.item().as_object_mut().unwrap().remove("sha256")))]
#[case::only_md5("MD5", |stream: &mut Stream| {
    stream.item().as_object_mut().unwrap().remove("sha256");
    stream.item()["md5"] = "d41d8cd98f00b204e9800998ecf8427e".into();
})]
#[case::short_digest("digest", |stream: &mut Stream| stream.item()["sha256"] = "abcd".into())]
#[case::one_path_two_digests("two items", |stream: &mut Stream| {
    let mut other = stream.item().clone();
    other["sha256"] = hex(b"other").into();
    stream.products["products"]["p"]["versions"]["20260101"]["items"]["j"] = other;
})]
#[case::empty_version("empty", |stream: &mut Stream| {
    let version = stream.products["products"]["p"]["versions"]["20260101"].take();
    stream.products["products"]["p"]["versions"] = json!({"": version});
})]
#[case::no_products("products", |stream: &mut Stream| drop(stream.products.as_object_mut().unwrap().remove("products")))]
#[case::no_index("index", |stream: &mut Stream| drop(stream.index.as_object_mut().unwrap().remove("index")))]
#[case::another_format("format", |stream: &mut Stream| stream.products["format"] = "products:9".into())]
#[case::list_for_a_map("products", |stream: &mut Stream| stream.products["products"] = json!([]))]
fn a_signed_stream_that_lies(#[case] part: &str, #[case] change: fn(&mut Stream)) {
    let mut stream = Stream::new();
    change(&mut stream);
    stream.refused(&stream.serve(|_| None), 5, part);
}

/// Names are shown and compared, never used as paths.
#[test]
fn names_with_paths_in_them_lead_nowhere() {
    let mut stream = Stream::new();
    let item = stream.item().clone();
    let arch = stream.products["products"]["p"]["arch"].clone();
    stream.products["products"] = json!({"../../p": {
        "arch": arch, "os": "../../o", "release": "../../r",
        "versions": {"../../v": {"items": {"../../i": item}}},
    }});
    let before: BTreeSet<String> = names(&stream.home.path("")).into_iter().collect();
    stream.synced(&stream.serve(|_| None));
    let after: BTreeSet<String> = names(&stream.home.path("")).into_iter().collect();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), ["state"], "only the state folder is new");
    let found = run("find", [stream.home.state().to_str().unwrap(), "-name", "*.img", "-o", "-name", "[iprov]"]);
    assert_eq!(found, "");
}

/// What nobody may find in what the program prints: orders to a terminal, and to a CI service that reads the log.
#[track_caller]
fn harmless(what: &str, output: &Output) {
    for shown in [text(&output.stdout), text(&output.stderr)] {
        let unfit = |c: char| (c.is_control() && c != '\n') || "\u{61c}\u{200f}\u{202e}\u{2028}\u{2066}".contains(c);
        assert!(!shown.contains(unfit), "{what}: {shown:?}");
        let ordered =
            |line: &str| line.trim_start().starts_with("::") || line.contains("##[") || line.contains("##vso[");
        assert!(!shown.lines().any(ordered), "{what}: {shown}");
    }
}

/// It is rightly signed, and means the people who look at it.
#[test]
fn what_a_stream_says_is_shown_and_nobody_obeys_it() {
    const NASTY: &str =
        "::error file=a::b\u{1b}]52;c;aGk=\u{7}\n::set-output name=a::b\u{9b}2J\u{202e}\u{2028}##[warning]##vso[x]";
    let mut stream = Stream::new();
    let item = stream.item().clone();
    let arch = stream.products["products"]["p"]["arch"].clone();
    stream.products["products"] = json!({NASTY: {
        "arch": arch, "os": NASTY, "release": NASTY, "release_title": NASTY, "aliases": NASTY, "x": NASTY,
        "versions": {NASTY: {"label": NASTY, "items": {NASTY: item}}},
    }});
    let server = stream.serve(|_| None);
    let synced = stream.sync(&server);
    harmless("sync", &synced);
    if synced.status.success() {
        let listed = stream.home.output(["images"]);
        assert!(text(&listed.stdout).contains('\u{fffd}'), "{}", text(&listed.stdout));
    }
    let (url, keyring) = (server.url("/"), stream.home.path("keyring.gpg"));
    let remote = ["images", "--remote", "--source", url.as_str(), "--keyring", keyring.to_str().unwrap()];
    for more in [&[][..], &["--format", "json"], &["--template", "{x}"], &["--template", "{os}{nothing}"]] {
        harmless("a listing from afar", &stream.home.output(remote.iter().chain(more)));
        harmless("a listing", &stream.home.output(["images"].iter().chain(more)));
    }
    harmless("an explanation", &stream.home.output(["images", "--explain"]));
    // A file that is not what it should be is quoted.
    let config = stream.home.path("config.toml");
    std::fs::write(&config, format!("memory = 1\n{NASTY}\n")).unwrap();
    let quoted = stream.home.virga(["list"]).env("VIRGA_CONFIG", &config).output().unwrap();
    assert_eq!(quoted.status.code(), Some(2));
    harmless("a configuration", &quoted);
    // And with everything that the log has to say.
    let logged = stream.home.virga(remote).env("VIRGA_LOG", "trace").output().unwrap();
    harmless("a log", &logged);
}

#[test]
fn an_index_that_names_itself_comes_to_an_end() {
    let mut stream = Stream::new();
    stream.index["index"]["again"] = json!({"format": "index:1.0", "path": INDEX});
    stream.synced(&stream.serve(|_| None));
}

#[test]
fn a_hundred_megabytes_of_nesting_are_refused() {
    let mut stream = Stream::new();
    let deep = format!("{{\"format\":\"index:1.0\",\"index\":{}", "{\"a\":".repeat(20 << 20));
    // Lines of a signed text are not that long: the line is broken where JSON does not mind.
    let lines: Vec<u8> = deep.as_bytes().chunks(10_000).collect::<Vec<_>>().join(&b'\n');
    stream.files.insert(INDEX.into(), stream.key.sign_inline(&lines).unwrap());
    stream.refused(&stream.serve(|_| None), 5, "recursion limit");
}

#[test]
fn a_hostile_image_behind_a_right_signature_never_gets_in() {
    let mut stream = Stream::new();
    let base = stream.home.path("base.qcow2");
    small_image(&base, "1M");
    let overlay = stream.home.path("overlay.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.to_str().unwrap(), overlay.to_str().unwrap()];
    run("qemu-img", args);
    let image = std::fs::read(overlay).unwrap();
    stream.item()["size"] = image.len().into();
    stream.item()["sha256"] = hex(&image).into();
    stream.files.insert(ITEM.into(), image);
    stream.refused(&stream.serve(|_| None), 5, "backing");
    assert!(names(&stream.home.state().join("pool/partial")).iter().all(|name| name.ends_with(".lock")));
}

/// Metadata and root of a container's image, as LXD and Incus read them.
#[test]
fn metadata_and_root_must_belong_together() {
    let mut stream = Stream::new();
    let (metadata, root) = (b"metadata".to_vec(), b"root".to_vec());
    let joined = [metadata.clone(), root.clone()].concat();
    let item = |ftype: &str, path: &str, bytes: &[u8]| json!({"ftype": ftype, "path": path, "size": bytes.len(), "sha256": hex(bytes)});
    let mut first = item("lxd.tar.xz", "a/lxd.tar.xz", &metadata);
    first["combined_squashfs_sha256"] = hex(&joined).into();
    let items = &mut stream.products["products"]["p"]["versions"]["20260101"]["items"];
    *items = json!({"lxd.tar.xz": first, "squashfs": item("squashfs", "a/squashfs", &root)});
    stream.files.extend([("a/lxd.tar.xz".into(), metadata), ("a/squashfs".into(), root)]);
    let sync = |stream: &Stream| {
        let server = stream.serve(|_| None);
        let (keyring, url) = (stream.home.path("keyring.gpg"), server.url("/"));
        stream.home.output(["sync", "--source", url.as_str(), "--keyring", keyring.to_str().unwrap(), "ftype~."])
    };
    let output = sync(&stream);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("fetched").count(), 2);
    assert_eq!(stream.home.ok(["images", "--template", "{ftype} {state}"]), "lxd.tar.xz metadata\nsquashfs root\n");
    let error = stream.home.fails(3, ["create", "g", "bookworm", "--no-start"]);
    assert!(error.contains("there is no disk image in the pool"), "{error}");

    std::fs::remove_dir_all(stream.home.state()).unwrap();
    stream.products["products"]["p"]["versions"]["20260101"]["items"]["lxd.tar.xz"]["combined_squashfs_sha256"] =
        hex(b"other").into();
    let output = sync(&stream);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("do not belong together"));
    assert_eq!(stream.home.json(["images"]), json!([]));
}

/// The index still tells of the old file when the new one is there already.
#[test]
fn a_mirror_in_the_middle_of_an_update_is_no_error() {
    let mut stream = Stream::new();
    let old = stream.all_files();
    let mut image = stream.image();
    image.extend([0; 65_536]);
    stream.item()["size"] = image.len().into();
    stream.item()["sha256"] = hex(&image).into();
    stream.files.insert(ITEM.into(), image);
    let updated = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&updated);
    let server = stream.serve(move |request| {
        // The items come first on the mirror, the metadata after the first request for one.
        if is_item(request) {
            flag.store(true, Ordering::SeqCst);
            return None;
        }
        let bytes = old.get(request.path.trim_start_matches('/'))?;
        (!flag.load(Ordering::SeqCst)).then(|| Reply::ok(bytes))
    });
    stream.synced(&server);
    assert!(updated.load(Ordering::SeqCst));
}

#[test]
fn proxies_come_from_the_environment() {
    let stream = Stream::new();
    let files = stream.all_files();
    let proxy = stream.serve(move |request| {
        let path = request.path.strip_prefix("http://mirror.invalid/")?;
        Some(files.get(path).map_or_else(|| Reply::status("404 Not Found"), |bytes| Reply::ranged(request, bytes)))
    });
    let keyring = stream.home.path("keyring.gpg");
    let args = ["sync", "--source", "http://mirror.invalid/", "--keyring", keyring.to_str().unwrap()];
    let sync = |name: &str| stream.home.virga(args).env(name, proxy.url("/").as_str()).output().unwrap();
    let output = sync("HTTP_PROXY");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(stream.blobs(), [hex(&stream.image())]);
    assert!(proxy.seen().iter().all(|request| request.path.starts_with("http://mirror.invalid/")));
    // A server of this machine is asked itself, whatever the proxy.
    let before = proxy.seen().len();
    let direct = stream.serve(|_| None);
    let (keyring, url) = (stream.home.path("keyring.gpg"), direct.url("/"));
    let args = ["sync", "--source", url.as_str(), "--keyring", keyring.to_str().unwrap()];
    assert!(stream.home.virga(args).env("HTTP_PROXY", proxy.url("/").as_str()).output().unwrap().status.success());
    assert_eq!(proxy.seen().len(), before);
}

#[test]
fn nothing_new_costs_one_question_a_file() {
    let stream = Stream::new();
    let server = stream.serve(|request| {
        (request.header("if-none-match") == Some("\"one\""))
            .then(|| Reply::status("304 Not Modified").header("ETag", "\"one\""))
    });
    stream.synced(&server);
    let before = server.seen().len();
    let output = stream.sync(&server);
    assert!(text(&output.stdout).starts_with("present "), "{}", text(&output.stderr));
    let asked: Vec<String> = server.seen()[before..].iter().map(|request| request.path.clone()).collect();
    assert_eq!(asked, [format!("/{INDEX}"), format!("/{PRODUCTS}")]);
}

/// What a killed sync took in without writing its record: nothing names its SHA-256.
#[test]
fn an_item_known_by_its_sha_512_alone_is_not_fetched_twice() {
    let mut stream = Stream::new();
    let image = stream.image();
    let sha512: String = sha2::Sha512::digest(&image).iter().map(|byte| format!("{byte:02x}")).collect();
    stream.item()["sha512"] = sha512.into();
    stream.item().as_object_mut().unwrap().remove("sha256");
    let server = stream.serve(|_| None);
    stream.synced(&server);
    std::fs::remove_dir_all(stream.home.state().join("pool/streams")).unwrap();
    stream.synced(&server);
    assert_eq!(server.seen().iter().filter(|request| is_item(request)).count(), 1);
    assert_eq!(stream.home.json(["images"])[0]["present"], true);
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_fetched() {
    if run("id", ["-u"]).trim() != "0" {
        return support::skip("only root can mount a small disk");
    }
    let stream = Stream::new();
    let server = stream.serve(|_| None);
    let (small, url, keyring) = (stream.home.path("small"), server.url("/"), stream.home.path("keyring.gpg"));
    std::fs::create_dir(&small).unwrap();
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@""#;
    for command in ["sync --source URL --keyring RING", "mirror URL DIR/copy --keyring RING --key KEY"] {
        let before = server.seen().iter().filter(|request| is_item(request)).count();
        let args = command
            .replace("URL", url.as_str())
            .replace("RING", keyring.to_str().unwrap())
            .replace("KEY", stream.home.path("key").to_str().unwrap())
            .replace("DIR", small.to_str().unwrap());
        let mut inside = std::process::Command::new("unshare");
        inside.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&small).arg(support::VIRGA);
        inside.args(args.split(' ')).env("HOME", stream.home.path("home")).env("VIRGA_HOME", small.join("state"));
        let output = inside.env("VIRGA_RUNTIME_DIR", stream.home.path("run")).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(" free"), "{stderr}");
        assert_eq!(server.seen().iter().filter(|request| is_item(request)).count(), before, "it was asked for");
    }
}

/// The index is of today, the products of yesterday: both rightly signed.
#[test]
fn products_that_are_older_than_the_index_says() {
    let mut stream = Stream::new();
    stream.index["index"]["test"]["updated"] = "Tue, 03 Nov 2026 12:00:00 +0000".into();
    stream.products["updated"] = "Mon, 02 Nov 2026 12:00:00 +0000".into();
    stream.refused(&stream.serve(|_| None), 5, "the index speaks of one of");
    stream.products["updated"] = "Tue, 03 Nov 2026 12:00:00 +0000".into();
    stream.synced(&stream.serve(|_| None));
}

/// Nothing in the document says how old it is, and its signature does.
#[test]
fn an_older_signature_is_no_newer_document() {
    let mut stream = Stream::new();
    let older = stream.sign(&stream.index);
    // A signature's time counts seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let current = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&current);
    let newer = stream.sign(&stream.index);
    stream.files.insert(INDEX.into(), newer);
    let server = stream.serve(move |request| {
        (request.path.ends_with(INDEX) && !flag.load(Ordering::SeqCst)).then(|| Reply::ok(&older))
    });
    stream.synced(&server);
    current.store(false, Ordering::SeqCst);
    let output = stream.sync(&server);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("older than the one that was verified last"));
}

/// A source of the user's that waives signatures: keys on the command line ask for them again.
#[test]
fn keys_that_are_given_are_never_ignored() {
    let mut stream = Stream::new();
    stream.files.insert("streams/v1/index.json".into(), stream.index.to_string().replace(".sjson", ".json").into());
    stream.files.insert("streams/v1/test.json".into(), stream.products.to_string().into());
    let server = stream.serve(|_| None);
    let config = stream.home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&config).unwrap();
    let url = server.url("/");
    support::write(
        &config.join("lab.toml"),
        &format!("url = \"{url}\"\npath = \"streams/v1/index.json\"\nsigned = false\n"),
    );
    stream.home.ok(["sync", "--source", "lab"]);
    let keyring = stream.home.path("keyring.gpg");
    let error = stream.home.fails(5, ["sync", "--source", "lab", "--keyring", keyring.to_str().unwrap()]);
    assert!(error.contains("is not signed"), "{error}");
}

#[test]
fn several_ids_are_several_images() {
    let mut stream = Stream::new();
    let items = &mut stream.products["products"]["p"]["versions"];
    items["20260102"] = items["20260101"].clone();
    let server = stream.serve(|_| None);
    let (keyring, url) = (stream.home.path("keyring.gpg"), server.url("/"));
    let args = ["sync", "--source", url.as_str(), "--max", "2", "--keyring", keyring.to_str().unwrap()];
    stream.home.ok(args);
    let ids = stream.home.ok(["images", "--template", "{id}"]);
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), 2);
    stream.home.ok(["images", "rm", ids[0], ids[1]]);
    assert_eq!(stream.home.json(["images"]), json!([]));
}
