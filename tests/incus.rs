//! A mirror as a real Incus daemon reads it, over HTTPS; and virga over HTTPS.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{Home, LONG, run, sha256, text, wait_for, watch, write};

const HTTPS_SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/https-server");

/// A folder over HTTPS, under a certificate authority of the test's own.
struct Server {
    authority: PathBuf,
    url: String,
    child: Child,
}

impl Server {
    fn start(home: &Home, dir: &Path) -> Self {
        let path = |name: &str| home.path(name).display().to_string();
        let (authority, authority_key) = (path("authority.pem"), path("authority.key"));
        let (certificate, key, port_file) = (path("server.pem"), path("server.key"), path("port"));
        let make = |subject: &str, out: [&str; 2], more: &[&str]| {
            let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
            run("openssl", args.iter().chain(&["-subj", subject, "-out", out[0], "-keyout", out[1]]).chain(more));
        };
        make("/CN=authority", [&authority, &authority_key], &[]);
        let names = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
        let signed = ["-CA", authority.as_str(), "-CAkey", &authority_key];
        make("/CN=localhost", [&certificate, &key], &[names, signed].concat());
        let child = Command::new(HTTPS_SERVER).arg(dir).args([&certificate, &key, &port_file]).spawn().unwrap();
        watch::companion(&child);
        wait_for("the server's port", LONG, || Path::new(&port_file).exists());
        let port = std::fs::read_to_string(&port_file).unwrap();
        Server { authority: authority.into(), url: format!("https://localhost:{port}"), child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon with a state of its own. Its mounts are in a namespace that ends with it.
struct Daemon {
    dir: PathBuf,
    config: PathBuf,
    authority: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(home: &Home, authority: &Path) -> Self {
        let (dir, config, log) = (home.path("incus"), home.path("client"), home.path("incus.log"));
        std::fs::create_dir(&dir).unwrap();
        let program =
            ["/usr/libexec/incus/incusd", "/usr/lib/incus/incusd"].into_iter().find(|p| Path::new(p).exists());
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(program.expect("incus is needed by this test (packaging/install-deps)"))
            .env("INCUS_DIR", &dir)
            .env("SSL_CERT_FILE", authority)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        watch::companion(&child);
        let daemon = Daemon { dir, config, authority: authority.to_owned(), child };
        wait_for("the Incus daemon", LONG, || {
            daemon.command(&["admin", "waitready", "--timeout=1"]).output().unwrap().status.success()
        });
        daemon
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("incus");
        command.args(args).env("INCUS_DIR", &self.dir).env("INCUS_CONF", &self.config);
        command.env("SSL_CERT_FILE", &self.authority).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.command(&["admin", "shutdown", "--force", "--timeout=20"]).output();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image as Incus takes it, in LXD's flavour, in an unsigned stream.
fn upstream(home: &Home) -> PathBuf {
    let dir = home.path("upstream");
    let tree = home.path("tree");
    std::fs::create_dir_all(tree.join("rootfs/etc")).unwrap();
    std::fs::create_dir_all(dir.join("streams/v1")).unwrap();
    write(&tree.join("rootfs/etc/hostname"), "tiny\n");
    write(&tree.join("metadata.yaml"), "architecture: x86_64\ncreation_date: 1767225600\nproperties: {os: Debian}\n");
    let pack = |name: &str, from: &Path, what: &str| {
        let file = dir.join(name);
        run("tar", ["-C", from.to_str().unwrap(), "-cJf", file.to_str().unwrap(), what]);
        json!({ "ftype": name, "path": name, "size": file.metadata().unwrap().len(), "sha256": sha256(&file) })
    };
    let items = json!({
        "lxd.tar.xz": pack("lxd.tar.xz", &tree, "metadata.yaml"),
        "root.tar.xz": pack("root.tar.xz", &tree.join("rootfs"), "."),
    });
    let product = json!({
        "arch": "amd64", "os": "Debian", "release": "bookworm", "variant": "default", "aliases": "debian/12,debian/bookworm",
        "versions": { "20260101": { "items": items } },
    });
    let products = json!({
        "format": "products:1.0", "content_id": "lxd", "datatype": "image-downloads", "products": { "debian:bookworm": product },
    });
    let entry = json!({ "format": "products:1.0", "datatype": "image-downloads", "path": "streams/v1/lxd.json" });
    write(&dir.join("streams/v1/lxd.json"), &products.to_string());
    write(&dir.join("streams/v1/index.json"), &json!({ "format": "index:1.0", "index": { "lxd": entry } }).to_string());
    dir
}

#[test]
fn an_incus_daemon_takes_images_from_a_mirror() {
    if run("id", ["-u"]).trim() != "0" {
        return support::skip("only root can start an Incus daemon");
    }
    let home = Home::new();
    let (from, copy, key) = (upstream(&home), home.path("copy"), home.path("mirror.key"));
    let url = format!("file://{}/streams/v1/index.json", from.display());
    home.ok(["mirror", &url, copy.to_str().unwrap(), "--unsigned", "--key", key.to_str().unwrap(), "ftype~."]);
    let server = Server::start(&home, &copy);
    let both = home.path("both");
    let bytes = ["lxd.tar.xz", "root.tar.xz"].map(|name| std::fs::read(from.join(name)).unwrap()).concat();
    std::fs::write(&both, bytes).unwrap();
    let fingerprint = sha256(&both);

    let daemon = Daemon::start(&home, &server.authority);
    daemon.ok(&["remote", "add", "mirror", &server.url, "--protocol", "simplestreams"]);
    let offered: Value = serde_json::from_str(&daemon.ok(&["image", "list", "mirror:", "--format", "json"])).unwrap();
    assert_eq!(offered[0]["fingerprint"], fingerprint);
    // The daemon fetches both files itself and holds them against the fingerprint.
    daemon.ok(&["image", "copy", "mirror:debian/12", "local:", "--alias", "taken"]);
    let held: Value = serde_json::from_str(&daemon.ok(&["image", "list", "local:", "--format", "json"])).unwrap();
    assert_eq!(held[0]["fingerprint"], fingerprint);
    assert_eq!(held[0]["aliases"][0]["name"], "taken");
}

#[test]
fn an_incus_daemon_takes_container_images_that_virga_publishes() {
    if run("id", ["-u"]).trim() != "0" {
        return support::skip("only root can start an Incus daemon");
    }
    let home = Home::new();
    let (dir, key) = (home.path("published"), home.path("publisher.key"));
    let [dir_text, key] = [&dir, &key].map(|path| path.display().to_string());
    home.ok(["stream", "init", &dir_text, "--key", &key]);
    let [squashfs, packed] = support::small_roots(&home, "bookworm").map(|path| path.display().to_string());
    let add = |file: &str, keys: &[&str]| {
        let args =
            ["stream", "add", &dir_text, file, "--key", &key, "os=Debian", "arch=amd64", "version_name=20260101"];
        home.ok([&args[..], keys].concat())
    };
    add(&squashfs, &["release=bookworm", "version=12"]);
    add(&packed, &["release=trixie"]);
    // A disk image beside them is nothing to the daemon.
    let image = home.path("image.qcow2");
    support::small_image(&image, "1M");
    add(image.to_str().unwrap(), &["release=bookworm"]);
    home.ok(["stream", "verify", &dir_text]);

    let server = Server::start(&home, &dir);
    let daemon = Daemon::start(&home, &server.authority);
    daemon.ok(&["remote", "add", "ours", &server.url, "--protocol", "simplestreams"]);
    let offered: Value = serde_json::from_str(&daemon.ok(&["image", "list", "ours:", "--format", "json"])).unwrap();
    assert_eq!(offered.as_array().unwrap().len(), 2, "{offered}");
    for (alias, root, release) in [("debian/12", &squashfs, "bookworm"), ("debian/trixie", &packed, "trixie")] {
        daemon.ok(&["image", "copy", &format!("ours:{alias}"), "local:", "--alias", alias]);
        let held: Value =
            serde_json::from_str(&daemon.ok(&["image", "list", &format!("local:{alias}"), "--format", "json"]))
                .unwrap();
        let files = home.path(&format!("exported-{}", alias.replace('/', "-")));
        std::fs::create_dir(&files).unwrap();
        daemon.ok(&["image", "export", &format!("local:{alias}"), files.to_str().unwrap()]);
        let names = support::names(&files);
        let metadata = names.iter().find(|name| name.starts_with("meta-")).unwrap();
        let both = home.path("both");
        let bytes = [files.join(metadata), root.into()].map(|file| std::fs::read(file).unwrap()).concat();
        std::fs::write(&both, bytes).unwrap();
        assert_eq!(held[0]["fingerprint"], sha256(&both));
        assert_eq!(held[0]["architecture"], "x86_64");
        assert_eq!(held[0]["properties"]["release"], release);
        let list = run("tar", ["-tJf", files.join(metadata).to_str().unwrap()]);
        assert!(list.contains("templates/cloud-init-user.tpl"), "{list}");
    }
}

#[test]
fn https_needs_a_certificate_that_is_trusted() {
    let home = Home::new();
    let (dir, key, image) = (home.path("signed"), home.path("publisher.key"), home.path("image.qcow2"));
    support::small_image(&image, "1M");
    let [dir_text, key, image] = [&dir, &key, &image].map(|path| path.display().to_string());
    home.ok(["stream", "init", &dir_text, "--key", &key]);
    home.ok(["stream", "add", &dir_text, &image, "--key", &key, "os=debian", "release=bookworm"]);
    let server = Server::start(&home, &dir);
    let keyring = dir.join("keyring.gpg").display().to_string();
    let sync = ["sync", "--source", &server.url, "--keyring", &keyring];
    let error = home.fails(1, sync);
    assert!(error.contains("certificate is refused"), "{error}");
    let output = home.virga(sync).env("SSL_CERT_FILE", &server.authority).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("fetched "), "{}", text(&output.stdout));
}
