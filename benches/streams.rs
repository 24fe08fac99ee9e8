//! `make bench`: syncing and mirroring against `curl`, `sha256sum` and the
//! reference implementation's `sstream-mirror`, all from one loopback server.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench runs tools and prints a table")]

mod table;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sha2::Digest as _;
use table::{Row, in_turn, median, tool};
use virga::stream::key::SigningKey;

/// The program as installing it leaves it: what the linker has just written
/// lies in the page cache in small pieces and starts half a millisecond slower.
static VIRGA: LazyLock<PathBuf> = LazyLock::new(|| {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("virga");
    std::fs::copy(env!("CARGO_BIN_EXE_virga"), &copy).expect("a copy of the program");
    copy
});
/// Bytes of the large item.
const LARGE: usize = 1 << 30;

fn main() {
    let bin = reference();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mirror = bin.join("sstream-mirror").display().to_string();
    table::head();
    large(dir.path(), &mirror).iter().for_each(Row::print);
    for row in small(dir.path(), &mirror) {
        row.print();
    }
}

/// Installs the reference implementation; returns the folder of its programs.
fn reference() -> PathBuf {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/setup");
    let output = Command::new(setup).output().expect("tests/python/setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().into()
}

/// A stream in a folder, signed, and served.
struct Stream {
    dir: PathBuf,
    url: String,
    server: Child,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn virga(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(&*VIRGA);
    command
        .args(["--quiet"])
        .args(args)
        .env("HOME", dir)
        .env("VIRGA_HOME", dir.join("state"))
        .env("VIRGA_RUNTIME_DIR", dir.join("run"))
        .stdout(Stdio::null());
    command
}

fn ok(mut command: Command) {
    assert!(command.status().expect("a program").success(), "{command:?}");
}

impl Stream {
    /// `items`: path and content of each, one product and version an item.
    fn new(dir: &Path, items: impl Iterator<Item = (String, Vec<u8>)>) -> Self {
        std::fs::create_dir_all(dir.join("streams/v1")).expect("a folder");
        let mut products = Map::new();
        for (path, bytes) in items {
            let file = dir.join(&path);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            std::fs::write(file, &bytes).expect("written");
            let sha256: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            let item = json!({"ftype": "root.tar.xz", "path": path, "size": bytes.len(), "sha256": sha256});
            products.insert(
                format!("p:{path}"),
                json!({"arch": "amd64", "release": "r", "versions": {"20260101": {"items": {"i": item}}}}),
            );
        }
        let products =
            json!({"format": "products:1.0", "content_id": "c", "datatype": "image-downloads", "products": products});
        let index = json!({"format": "index:1.0", "index": {"c": {
            "format": "products:1.0", "datatype": "image-downloads", "path": "streams/v1/c.json",
        }}});
        let key = SigningKey::generate("bench").expect("a key");
        std::fs::write(dir.join("keyring.gpg"), key.public_binary().expect("a key")).expect("written");
        let write = |name: &str, value: &Value| {
            let plain = serde_json::to_string_pretty(value).expect("JSON");
            let file = dir.join("streams/v1").join(name);
            std::fs::write(file.with_extension("json"), &plain).expect("written");
            let signed = key.sign_inline(plain.replace("c.json", "c.sjson").as_bytes()).expect("signed");
            std::fs::write(file.with_extension("sjson"), signed).expect("written");
        };
        write("c", &products);
        write("index", &index);
        let port_file = dir.with_extension("port");
        let (root, port) = (dir.display().to_string(), port_file.display().to_string());
        let server = virga(dir, &["stream", "serve", &root, "--port-file", &port]).spawn().expect("a server");
        let began = Instant::now();
        while !port_file.exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "no server");
            std::thread::sleep(Duration::from_millis(5));
        }
        let port = std::fs::read_to_string(port_file).expect("a port");
        Stream { dir: dir.to_owned(), url: format!("http://127.0.0.1:{}/", port.trim()), server }
    }

    fn keyring(&self) -> String {
        self.dir.join("keyring.gpg").display().to_string()
    }

    fn sync(&self, home: &Path) -> Command {
        virga(home, &["sync", "--source", &self.url, "--keyring", &self.keyring(), "ftype~", "arch~"])
    }

    fn mirror(&self, home: &Path, to: &Path) -> Command {
        let (to, key) = (to.display().to_string(), home.join("key").display().to_string());
        virga(home, &["mirror", &self.url, &to, "--keyring", &self.keyring(), "--key", &key, "ftype~"])
    }

    /// The reference's own copy, its signatures checked as ours are.
    fn theirs(&self, tool: &str, to: &Path) -> Command {
        let mut command = Command::new(tool);
        command.args(["--keyring", &self.keyring(), &format!("{}streams/v1/index.sjson", self.url)]).arg(to);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// Makes a folder anew. What it held is kept aside unless that is a few files:
/// ext4 goes through all that were removed in the last seconds whenever it makes another.
fn fresh(path: &Path) -> &Path {
    static ASIDE: AtomicU32 = AtomicU32::new(0);
    if path.join("copy").exists() {
        let aside = path.with_extension(ASIDE.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::rename(path, aside).expect("set aside");
    }
    let _ = std::fs::remove_dir_all(path);
    std::fs::create_dir_all(path).expect("a folder");
    // What the last round wrote is not to slow this one down.
    rustix::fs::sync();
    path
}

/// The median of three rounds, each in a fresh folder; what makes it fresh is not timed.
fn rounds(home: &Path, mut work: impl FnMut(&Path)) -> Duration {
    let mut times: Vec<Duration> = (0..3)
        .map(|_| {
            fresh(home);
            let began = Instant::now();
            work(home);
            began.elapsed()
        })
        .collect();
    times.sort();
    times[1]
}

fn large(dir: &Path, mirror: &str) -> Vec<Row> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(LARGE);
    while bytes.len() < LARGE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    let stream = Stream::new(&dir.join("large"), std::iter::once(("item".to_owned(), bytes)));
    let home = dir.join("home");
    let ours = rounds(&home, |home| ok(stream.sync(home)));
    let url = format!("{}item", stream.url);
    let curl = rounds(&home, |home| {
        let file = home.join("item").display().to_string();
        tool("curl", &["-s", "-f", "-o", &file, &url]);
        tool("sha256sum", &[&file]);
    });
    let reference = rounds(&home, |home| ok(stream.theirs(mirror, home)));
    let rows = vec![
        Row::against("item of 1 GiB", ours, "curl, sha256sum", curl, 2.5),
        Row::against("item of 1 GiB", ours, "sstream-mirror", reference, 1.5),
    ];
    let peak = peak_memory(stream.sync(fresh(&home)));
    let met = if peak < 64 << 10 { "met" } else { "MISSED" };
    println!("most memory while fetching 1 GiB: {:.1} MiB (limit 64: {met})\n", f64::from(peak) / 1024.0);
    table::head();
    rows
}

/// Most KiB that a program had in memory (`VmHWM` of proc(5)).
fn peak_memory(mut command: Command) -> u32 {
    let mut child = command.spawn().expect("a program");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().expect("a program").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = line.unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().expect("a program").success() && peak > 0);
    peak
}

fn small(dir: &Path, mirror: &str) -> Vec<Row> {
    let stream = |name: &str, count: usize| {
        let items = (0..count).map(|n| (format!("d{}/{n}", n / 100), format!("{n:06}").into_bytes()));
        Stream::new(&dir.join(name), items)
    };
    let (half, whole) = (stream("half", 2000), stream("whole", 4000));
    let home = dir.join("home");
    let half_time = rounds(&home, |home| ok(half.mirror(home, &home.join("copy"))));
    let ours = rounds(&home, |home| ok(whole.mirror(home, &home.join("copy"))));
    let theirs = {
        fresh(&home);
        let began = Instant::now();
        ok(whole.theirs(mirror, &home.join("copy")));
        began.elapsed()
    };
    print_growth(half_time, ours);

    let one = stream("one", 1);
    let copy = fresh(&home).join("copy");
    let (nothing, reference) = in_turn(9, || ok(one.sync(&home)), || ok(one.theirs(mirror, &copy)));
    let again = {
        ok(whole.mirror(&home, &home.join("again")));
        median(3, || ok(whole.mirror(&home, &home.join("again"))))
    };
    vec![
        Row::against("mirror of 4,000 small items", ours, "sstream-mirror", theirs, 6.0),
        Row::under("the same", ours, Duration::from_secs(2)),
        Row::under("the same, nothing new, all verified", again, Duration::from_secs(1)),
        Row::against("sync with nothing new", nothing, "sstream-mirror", reference, 20.0),
        Row::under("the same", nothing, Duration::from_millis(20)),
    ]
}

fn print_growth(half: Duration, whole: Duration) {
    let growth = whole.as_secs_f64() / half.as_secs_f64();
    let met = if growth < 2.5 { "met" } else { "MISSED" };
    let line =
        format!("mirror of 2,000 items {half:.2?}, of 4,000 {whole:.2?}: {growth:.1} times (linear is 2: {met})\n");
    std::io::stdout().write_all(line.as_bytes()).expect("stdout");
}
