//! Other people's streams and servers: without signatures, with odd items, behind logins and proxies, at several
//! addresses. docs/field.md says where each case comes from.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

#[path = "../src/fetch/tests/server.rs"]
#[allow(dead_code, reason = "the unit tests use all of it")]
mod server;
mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};

use rstest::rstest;
use serde_json::{Value, json};
use sha2::Digest as _;

use server::{Reply, Request, Server};
use support::{Home, Mirror, run, small_image, text};

const KEYS: [&str; 4] = ["os=debian", "release=bookworm", "version=12", "version_name=20261101"];
/// Of user `me` at the servers here; nobody may ever see it.
const SECRET: &str = "s3cretWord";
/// `me:s3cretWord`, as it is sent.
const LOGIN: &str = "Basic bWU6czNjcmV0V29yZA==";

fn host_arch() -> &'static str {
    virga::base::Arch::host().name()
}

fn other_arch() -> &'static str {
    if host_arch() == "amd64" { "arm64" } else { "amd64" }
}

fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A stream as a web server without any tool has it: nobody signs it.
struct Plain {
    home: Home,
    files: BTreeMap<String, Vec<u8>>,
    index: Value,
    products: Value,
}

impl Plain {
    /// With these products: name, architecture, file type.
    fn new(products: &[(&str, &str, &str)]) -> Self {
        let index = json!({"format": "index:1.0", "index": {"test": {
            "format": "products:1.0", "datatype": "image-downloads", "path": "streams/v1/test.json",
        }}});
        let document =
            json!({"format": "products:1.0", "content_id": "test", "datatype": "image-downloads", "products": {}});
        let mut plain = Plain { home: Home::with_key(), files: BTreeMap::new(), index, products: document };
        for (number, (name, arch, ftype)) in products.iter().enumerate() {
            let path = plain.home.path(name);
            // No two are the same.
            small_image(&path, &format!("{}M", number + 1));
            let image = std::fs::read(&path).unwrap();
            plain.products["products"][name] = json!({
                "arch": arch, "os": "test", "release": name, "versions": {"20260101": {"items": {"i": {
                    "ftype": ftype, "path": format!("images/{name}"), "size": image.len(), "sha256": hex(&image),
                }}}},
            });
            plain.files.insert(format!("images/{name}"), image);
        }
        plain
    }

    fn item(&mut self, product: &str) -> &mut Value {
        &mut self.products["products"][product]["versions"]["20260101"]["items"]["i"]
    }

    /// Serves everything, but what `other` answers itself.
    fn serve(&self, other: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
        let mut files = self.files.clone();
        files.insert("streams/v1/index.json".into(), serde_json::to_vec(&self.index).unwrap());
        files.insert("streams/v1/test.json".into(), serde_json::to_vec(&self.products).unwrap());
        Server::start(move |_, request| {
            other(request).unwrap_or_else(|| match files.get(request.path.trim_start_matches('/')) {
                Some(bytes) => Reply::ranged(request, bytes),
                None => Reply::status("404 Not Found").header("Content-Length", 0),
            })
        })
    }

    fn sync(&self, url: &str, more: &[&str]) -> Output {
        self.home.output(["sync", "--unsigned", "--source", url].iter().chain(more))
    }
}

#[track_caller]
fn good(output: &Output) -> (String, String) {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn bad(output: &Output, code: i32) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{stderr}", text(&output.stdout));
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    stderr
}

#[test]
fn a_server_without_signatures_is_found_and_said_to_be_one() {
    let plain = Plain::new(&[("one", host_arch(), "disk1.img")]);
    let server = plain.serve(|_| None);
    let url = server.url("/").to_string();
    let error = plain.home.fails(5, ["sync", "--source", &url]);
    // Here or by the keyring, whichever is missing first.
    if !error.contains("keyring of") {
        assert!(error.contains("index.json' is not signed") && error.contains("--unsigned"), "{error}");
    }
    assert!(good(&plain.sync(&url, &[])).0.starts_with("fetched "));
    assert!(good(&plain.sync(&url, &["--offline"])).0.starts_with("present "));
    for way in ["streams/v1/index.json", "streams/v1/", "streams/v1"] {
        assert!(good(&plain.sync(&format!("{url}{way}"), &[])).0.contains("present "), "{way}");
    }
    let error = bad(&plain.sync(&format!("{url}elsewhere/"), &[]), 3);
    assert!(error.contains("elsewhere/streams/v1/index.sjson") && error.contains("404"), "{error}");
}

/// A signature beside a document is one, and what was newer under one name stays newer under the other.
#[test]
fn either_name_of_a_document_must_show_the_same() {
    let home = Home::new();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let mirror = Mirror::with_image(&home, &image, &KEYS);
    let streams = mirror.dir.join("streams/v1");
    let old = home.path("old");
    run("cp", ["-a", streams.to_str().unwrap(), old.to_str().unwrap()]);
    // `updated` counts seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (dir, key) = (mirror.dir.to_str().unwrap(), mirror.key.to_str().unwrap());
    small_image(&image, "2M");
    home.ok(["stream", "add", dir, image.to_str().unwrap(), "--key", key, "os=debian", "release=bookworm"]);
    assert!(home.ok(mirror.sync_args()).starts_with("fetched "));

    let new = home.path("new");
    run("cp", ["-a", streams.to_str().unwrap(), new.to_str().unwrap()]);
    let show = |from: &std::path::Path, without: &str| {
        run("rm", ["-r", streams.to_str().unwrap()]);
        run("cp", ["-a", from.to_str().unwrap(), streams.to_str().unwrap()]);
        run("sh", ["-c", &format!("rm -f {}/{without}", streams.display())]);
    };
    show(&new, "index.sjson");
    assert!(home.ok(mirror.sync_args()).starts_with("present "));
    show(&new, "index.*son.gpg");
    run("rm", [streams.join("index.sjson")]);
    let error = home.fails(5, mirror.sync_args());
    assert!(error.contains("is not signed") && error.contains("--unsigned"), "{error}");
    show(&old, "index.sjson");
    let error = home.fails(5, mirror.sync_args());
    assert!(error.contains("older than"), "{error}");
}

#[rstest]
#[case::md5_alone("MD5", |item: &mut Value| {
    item.as_object_mut().unwrap().remove("sha256");
    item["md5"] = "d41d8cd98f00b204e9800998ecf8427e".into();
})]
#[case::no_size("size", |item: &mut Value| drop(item.as_object_mut().unwrap().remove("size")))]
#[case::size_in_words("size", |item: &mut Value| item["size"] = "1 MB".into())]
#[case::a_way_out("path", |item: &mut Value| item["path"] = "../odd".into())]
#[case::a_whole_url("path", |item: &mut Value| item["path"] = "https://cdn.invalid/odd".into())]
fn one_item_that_is_unfit_is_named_and_passed_over(#[case] part: &str, #[case] spoil: fn(&mut Value)) {
    let mut plain = Plain::new(&[("odd", host_arch(), "disk1.img"), ("one", host_arch(), "disk1.img")]);
    spoil(plain.item("odd"));
    let server = plain.serve(|_| None);
    let url = server.url("/").to_string();
    let remote = ["images", "--remote", "--unsigned", "--source", &url, "--template", "{release}"];
    let (listed, said) = good(&plain.home.output(remote));
    assert_eq!(listed, "one\n");
    assert!(
        said.contains("warning: passed over") && said.contains("'odd 20260101 i'") && said.contains(part),
        "{said}"
    );
    let (fetched, said) = good(&plain.sync(&url, &[]));
    assert_eq!((fetched.matches("fetched ").count(), said.matches("passed over").count()), (1, 1), "{said}");
    let (dir, key) = (plain.home.path("mirror"), plain.home.path("key"));
    let mirror = |dir: &std::path::Path, more: &[&str]| {
        let dir = dir.to_str().unwrap();
        plain.home.output(["mirror", &url, dir, "--unsigned"].iter().chain(more))
    };
    let with_key = ["--key", key.to_str().unwrap()];
    assert!(good(&mirror(&dir, &with_key)).1.contains("passed over"));
    plain.home.ok(["stream", "verify", dir.to_str().unwrap()]);
    assert!(good(&mirror(&plain.home.path("whole"), &["--as-is"])).1.contains("passed over"));
    // Who asks for it is told that it is refused.
    let remote = remote.iter().chain(&["release=odd"]);
    for output in [
        plain.home.output(remote),
        plain.sync(&url, &["release=odd"]),
        mirror(&dir, &[&with_key[..], &["release=odd"]].concat()),
    ] {
        let error = bad(&output, 5);
        assert!(error.contains("'odd 20260101 i'") && error.contains(part), "{error}");
    }
}

#[test]
fn what_virga_assumed_is_said_with_the_way_out() {
    let plain = Plain::new(&[("there", other_arch(), "disk1.img"), ("raw", host_arch(), "qcow2")]);
    let server = plain.serve(|_| None);
    let url = server.url("/").to_string();
    let error = bad(&plain.sync(&url, &["release=there"]), 3);
    let (other, host) = (other_arch(), host_arch());
    assert!(error.contains("that matches release=there and arch="), "{error}");
    assert!(error.contains(&format!("arch={host}")) && error.contains("which was assumed"), "{error}");
    assert!(error.contains(&format!("there is arch={other}: say which, or 'arch~'")), "{error}");
    let error = bad(&plain.sync(&url, &["release=raw"]), 3);
    assert!(error.contains("there is ftype=qcow2: say which, or 'ftype~' for any ftype"), "{error}");
    // Each way out is one.
    good(&plain.sync(&url, &["release=there", &format!("arch={other}"), "--dry-run"]));
    good(&plain.sync(&url, &["release=raw", "ftype=qcow2", "--dry-run"]));
    assert_eq!(good(&plain.sync(&url, &["arch~", "ftype~"])).0.matches("fetched ").count(), 2);
    let remote = ["images", "--remote", "--unsigned", "--source", &url, "release=raw", "--format", "json"];
    let (listed, said) = good(&plain.home.output(remote));
    assert_eq!(listed.trim(), "[]");
    assert!(said.contains("which was assumed") && said.contains("ftype=qcow2"), "{said}");
    // Also of what is in the pool.
    let error = plain.home.fails(3, ["create", "g", "release=there", "--no-start"]);
    assert!(error.contains("which was assumed") && error.contains(&format!("arch={other}")), "{error}");
    let error = plain.home.fails(3, ["create", "g", "release=thre", "arch~", "--no-start"]);
    assert!(error.contains("there is release=raw release=there") && !error.contains("assumed"), "{error}");
}

#[test]
fn documents_of_another_kind_are_told_of_and_those_of_no_kind_are_read() {
    let mut plain = Plain::new(&[("one", host_arch(), "disk1.img")]);
    plain.index["index"]["test"]["datatype"] = "image-lab".into();
    plain.products["datatype"] = "image-lab".into();
    let server = plain.serve(|_| None);
    let url = server.url("/").to_string();
    let error = bad(&plain.sync(&url, &["release=one"]), 3);
    assert!(error.contains("datatype=image-downloads") && error.contains("assumed"), "{error}");
    assert!(error.contains("datatype=image-lab; 'datatype~' reads all"), "{error}");
    good(&plain.sync(&url, &["release=one", "datatype~", "--dry-run"]));
    drop(plain.index["index"]["test"].as_object_mut().unwrap().remove("datatype"));
    plain.products["datatype"] = "image-downloads".into();
    let server = plain.serve(|_| None);
    good(&plain.sync(server.url("/").as_str(), &["release=one"]));
}

#[test]
fn an_architecture_may_be_written_in_any_way() {
    let plain = Plain::new(&[("kernel", "x86_64", "disk1.img"), ("debian", "amd64", "disk1.img")]);
    let server = plain.serve(|_| None);
    let url = server.url("/").to_string();
    for arch in ["arch=amd64", "arch=x86_64", "arch~^(x86_64|s390x)$", "arch!=aarch64"] {
        let (listed, _) = good(&plain.sync(&url, &[arch, "--dry-run"]));
        assert_eq!(listed.matches("would fetch").count(), 2, "{arch}: {listed}");
    }
    bad(&plain.sync(&url, &["arch=aarch64"]), 3);
    if host_arch() == "amd64" {
        // By what is assumed, too, and in the pool.
        assert_eq!(good(&plain.sync(&url, &[])).0.matches("fetched ").count(), 2);
        plain.home.ok(["create", "g", "kernel/amd64", "trust=unsigned", "--no-start"]);
        plain.home.ok(["create", "h", "debian", "trust=unsigned", "--arch", "x86_64", "--no-start"]);
    }
}

/// Asks for a login before anything else.
fn locked(request: &Request) -> Option<Reply> {
    let refused = Reply::status("401 Unauthorized").header("WWW-Authenticate", "Basic").header("Content-Length", 0);
    (request.header("authorization") != Some(LOGIN)).then_some(refused)
}

/// What was printed, and all that is left in the state folder.
#[track_caller]
fn shows_no_secret(home: &Home, outputs: &[Output]) {
    for output in outputs {
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains(SECRET) && !said.contains(&LOGIN[6..]), "{said}");
    }
    let mut grep = std::process::Command::new("grep");
    grep.args(["-rlF", "-e", SECRET, "-e", &LOGIN[6..]]).arg(home.state());
    assert_eq!(text(&grep.output().unwrap().stdout), "");
}

#[test]
fn a_password_in_a_url_is_shown_and_stored_nowhere() {
    let plain = Plain::new(&[("one", host_arch(), "disk1.img")]);
    let server = plain.serve(locked);
    let bare = server.url("/").to_string();
    let url = bare.replace("http://", &format!("http://me:{SECRET}@"));
    let sources = plain.home.path("home/.config/virga/streams");
    std::fs::create_dir_all(&sources).unwrap();
    std::fs::write(sources.join("lab.toml"), format!("url = '{url}'\nsigned = false\nmirrors = ['{url}x/']\n"))
        .unwrap();
    let mut outputs = Vec::new();
    let mut run = |args: &[&str], code: i32| {
        for log in ["warn", "trace"] {
            let output = plain.home.virga(args).env("VIRGA_LOG", log).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{args:?} {}", text(&output.stderr));
            outputs.push(output);
        }
    };
    let remote = ["images", "--remote", "--unsigned", "--source", &url];
    run(&[&remote[..], &["--format", "json"]].concat(), 0);
    run(&[&remote[..], &["--template", "{item_url}"]].concat(), 0);
    run(&["-vv", "sync", "--unsigned", "--source", &url], 0);
    run(&["sync", "--source", "lab", "--explain"], 0);
    run(&["sync", "--list-sources"], 0);
    run(&["images", "--format", "json"], 0);
    run(&["images", "--explain"], 0);
    run(&["sync", "--unsigned", "--source", &format!("{url}absent/")], 3);
    run(&["sync", "--unsigned", "--source", &url, "release=none"], 3);
    // Not understood at all.
    run(&["sync", "--source", &format!("{url}?token={SECRET}")], 2);
    run(&["sync", "--source", &url.replace("http://", "http:/")], 3);
    run(&["sync", "--source", &url.replace('@', "/w@")], 2);
    let dir = plain.home.path("mirror");
    run(&["mirror", &url, dir.to_str().unwrap(), "--as-is", "--unsigned"], 0);
    std::fs::write(sources.join("lab.toml"), format!("url = '{url}'\nmirrorz = ['{url}']\n")).unwrap();
    run(&["sync", "--list-sources"], 2);
    shows_no_secret(&plain.home, &outputs);
    let named = text(&outputs[0].stderr);
    assert!(named.contains("is taken unsigned") && named.contains(&bare), "{named}");
}

#[test]
fn a_netrc_file_serves_in_the_place_of_a_password_in_a_url() {
    let plain = Plain::new(&[("one", host_arch(), "disk1.img")]);
    let server = plain.serve(locked);
    let url = server.url("/").to_string();
    let error = bad(&plain.sync(&url, &[]), 1);
    assert!(error.contains("machine 127.0.0.1 login USER password PASSWORD") && error.contains("netrc"), "{error}");
    let netrc =
        format!("machine other.example login no password no\nmachine 127.0.0.1\n login me\n password {SECRET}\n");
    let elsewhere = plain.home.path("logins");
    std::fs::write(&elsewhere, &netrc).unwrap();
    let args = ["sync", "--unsigned", "--source", &url];
    let with = |path: &std::path::Path| plain.home.virga(args).env("NETRC", path).output().unwrap();
    let outputs = [with(&elsewhere), {
        std::fs::write(plain.home.path("home/.netrc"), &netrc).unwrap();
        plain.sync(&url, &[])
    }];
    assert!(good(&outputs[0]).0.starts_with("fetched ") && good(&outputs[1]).0.starts_with("present "));
    shows_no_secret(&plain.home, &outputs);
    let error = bad(&with(&plain.home.path("absent")), 2);
    assert!(error.contains("absent") && error.contains("NETRC"), "{error}");
    // One user's name in the URL: that one's password.
    let mine = url.replace("http://", "http://me@");
    assert!(good(&plain.sync(&mine, &[])).0.starts_with("present "));
    let hers = plain.sync(&url.replace("http://", "http://she@"), &[]);
    assert!(text(&hers.stderr).contains("401 Unauthorized"), "{}", text(&hers.stderr));
}

#[test]
fn a_redirect_takes_no_login_along_and_its_token_is_not_shown() {
    let plain = Plain::new(&[("one", host_arch(), "disk1.img")]);
    let other = plain.serve(|request| {
        let forbidden = Reply::status("403 Forbidden").header("Content-Length", 0);
        request.path.starts_with("/images").then_some(forbidden)
    });
    let target = other.url("/").to_string();
    let server = plain.serve(move |request| {
        let to = format!("{target}{}?X-Amz-Signature={SECRET}", &request.path[1..]);
        let moved = Reply::status("302 Found").header("Location", to).header("Content-Length", 0);
        locked(request).or_else(|| request.path.starts_with("/images").then_some(moved))
    });
    let url = server.url("/").to_string().replace("http://", &format!("http://me:{SECRET}@"));
    let output = plain.home.virga(["sync", "--unsigned", "--source", &url]).env("VIRGA_LOG", "trace").output().unwrap();
    let error = bad(&output, 1);
    assert!(error.contains("403 Forbidden") && error.contains("?…"), "{error}");
    assert!(other.seen().iter().all(|request| request.header("authorization").is_none()));
    assert!(!other.seen().is_empty());
    shows_no_secret(&plain.home, &[output]);
}

#[test]
fn one_image_at_several_addresses_is_one() {
    let home = Home::with_key();
    let image = home.path("image.qcow2");
    small_image(&image, "1M");
    let mirror = Mirror::with_image(&home, &image, &KEYS);
    let keyring = mirror.dir.join("keyring.gpg").display().to_string();
    let sync = |url: &str| home.ok(["sync", "--source", url, "--keyring", &keyring]);
    let near = mirror.url.replace("127.0.0.1", "localhost");
    assert!(sync(&mirror.url).starts_with("fetched "));
    let second = sync(&near);
    assert!(second.starts_with("present "), "{second}");
    home.ok(["create", "g", "release=bookworm", "--no-start"]);
    let made_of = |name: &str| home.ok(["info", name, "--format", "json"]);
    let newest = second.split(' ').nth(1).unwrap();
    assert!(made_of("g").contains(newest), "the newest sync wins: {}", made_of("g"));
    // A changed password makes no other source.
    let with = |login: &str| mirror.url.replace("http://", &format!("http://{login}@"));
    for login in ["me:one", "me:two", "she"] {
        assert!(sync(&with(login)).starts_with("present "));
    }
    assert_eq!(support::names(&home.state().join("pool/streams")).len(), 2);
    // A newer version at one of them is the same product's.
    small_image(&image, "2M");
    let (dir, key) = (mirror.dir.to_str().unwrap(), mirror.key.to_str().unwrap());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let version = "version_name=20261102";
    home.ok(["stream", "add", dir, image.to_str().unwrap(), "--key", key, "os=debian", "release=bookworm", version]);
    let newer = sync(&mirror.url);
    home.ok(["create", "h", "release=bookworm", "--no-start"]);
    assert!(made_of("h").contains(newer.split(' ').nth(1).unwrap()), "{newer} {}", made_of("h"));
}

/// Nobody else's image passes for it.
#[test]
fn the_same_names_of_another_publisher_are_another_image() {
    let [mut one, other] = [(); 2].map(|()| Plain::new(&[("one", host_arch(), "disk1.img")]));
    let server = other.serve(|_| None);
    good(&one.sync(server.url("/").as_str(), &[]));
    // A qcow2 image that is another one.
    let path = one.home.path("second");
    small_image(&path, "2M");
    let image = std::fs::read(&path).unwrap();
    (one.item("one")["size"], one.item("one")["sha256"]) = (image.len().into(), hex(&image).into());
    one.files.insert("images/one".into(), image);
    let second = one.serve(|_| None);
    good(&one.sync(second.url("/").as_str(), &[]));
    let error = one.home.fails(2, ["create", "g", "release=one", "trust=unsigned", "--no-start"]);
    assert!(error.contains("several images match"), "{error}");
}

/// A SOCKS5 proxy (RFC 1928) to `to`, whatever is asked for; it notes what was.
fn socks(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let notes = Arc::clone(&asked);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let notes = Arc::clone(&notes);
            std::thread::spawn(move || speak_socks(client, to, &notes));
        }
    });
    (address, asked)
}

fn speak_socks(mut client: TcpStream, to: SocketAddr, notes: &Mutex<Vec<String>>) -> Option<()> {
    let mut from = client.try_clone().ok()?;
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        from.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let methods = take(2)?[1];
    take(usize::from(methods))?;
    client.write_all(&[5, 0]).ok()?;
    let kind = take(4)?[3];
    let host = match kind {
        1 => take(4)?.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        _ => {
            let length = take(1)?[0];
            text(&take(usize::from(length))?)
        }
    };
    take(2)?;
    notes.lock().unwrap().push(host);
    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).ok()?;
    let mut server = TcpStream::connect(to).ok()?;
    let (mut from_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    std::io::copy(&mut server, &mut client).ok()?;
    client.shutdown(std::net::Shutdown::Both).ok()
}

#[test]
fn a_socks_proxy_is_spoken_to_and_one_of_no_kind_is_refused_at_once() {
    let plain = Plain::new(&[("one", host_arch(), "disk1.img")]);
    let server = plain.serve(|_| None);
    let to = server.url("/").socket_addrs(|| None).unwrap()[0];
    let (proxy, asked) = socks(to);
    let sync = |url: &str, name: &str, proxy: &str| {
        plain.home.virga(["sync", "--unsigned", "--source", url]).env(name, proxy).output().unwrap()
    };
    // The proxy looks the name up.
    good(&sync("http://mirror.invalid/", "ALL_PROXY", &format!("socks5h://{proxy}")));
    assert!(asked.lock().unwrap().iter().all(|host| host == "mirror.invalid") && !asked.lock().unwrap().is_empty());
    // Or it gets an address, of documentation here.
    good(&sync("http://192.0.2.7/", "http_proxy", &format!("socks5://{proxy}")));
    assert!(asked.lock().unwrap().iter().any(|host| host == "192.0.2.7"));
    let error = bad(&sync("http://mirror.invalid/", "all_proxy", &format!("socks://u:{SECRET}@{proxy}/")), 2);
    assert!(error.contains(&format!("all_proxy is 'socks://{proxy}/'")) && error.contains("socks5h://"), "{error}");
    assert!(!error.contains(SECRET) && !error.contains("online"), "{error}");
    // What is not asked through a proxy is not held up by one.
    good(&sync(server.url("/").as_str(), "all_proxy", "socks://127.0.0.1:1/"));
}
