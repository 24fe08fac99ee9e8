//! SIGKILL at any moment of a sync: the pool is consistent, and what was
//! verified is not fetched again.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Home, Mirror, names, run, sha256};

const ITEMS: usize = 5;
/// Bytes a second of one download: so slow that most kills hit one.
const RATE: usize = 8 << 20;

/// Serves a folder slowly, with ranges, and remembers who asked for what.
struct SlowServer {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl SlowServer {
    fn start(dir: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (dir, log) = (dir.clone(), Arc::clone(&log));
                // A killed client breaks the pipe: that is the point of this test.
                std::thread::spawn(move || drop(answer(stream.unwrap(), &dir, &log)));
            }
        });
        SlowServer { url, asked }
    }
}

fn answer(mut stream: TcpStream, dir: &Path, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let lines: Vec<String> =
        BufReader::new(stream.try_clone()?).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return Ok(()) };
    log.lock().unwrap().push(path.to_owned());
    let mut file = std::fs::File::open(dir.join(path.trim_start_matches('/')))?;
    let size = file.metadata()?.len();
    let range = lines
        .iter()
        .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let start: u64 = range.unwrap_or(0);
    let status = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}", size - 1),
        None => "200 OK".into(),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", size - start)?;
    file.seek(SeekFrom::Start(start))?;
    let mut block = vec![0; RATE / 100];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&block[..read])?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A stream with items of random content that intake accepts.
fn published(home: &Home) -> Mirror {
    let image = |n: usize| {
        let path = home.path(&format!("{n}.qcow2"));
        let raw = home.path("raw");
        run("dd", ["if=/dev/urandom", &format!("of={}", raw.display()), "bs=1M", "count=2", "status=none"]);
        let mut bytes = std::fs::read(&raw).unwrap();
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&raw, bytes).unwrap();
        run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), path.to_str().unwrap()]);
        path
    };
    let keys = |n: usize| ["os=debian".to_owned(), format!("release=r{n}"), "version_name=20261101".into()];
    let first = keys(0);
    let mirror = Mirror::with_image(home, &image(0), &first.each_ref().map(String::as_str));
    for n in 1..ITEMS {
        let (image, dir, key) = (image(n), mirror.dir.to_str().unwrap(), mirror.key.to_str().unwrap());
        let args = ["stream", "add", dir, image.to_str().unwrap(), "--key", key].map(str::to_owned);
        home.ok(args.into_iter().chain(keys(n)));
    }
    mirror
}

/// What the stream announces: digest of each item's path.
fn announced(mirror: &Mirror) -> BTreeMap<String, String> {
    let images = mirror.dir.join("images");
    let file = |digest: String| {
        let name = names(&images.join(&digest)).remove(0);
        (digest.clone(), format!("/images/{digest}/{name}"))
    };
    names(&images).into_iter().map(file).collect()
}

#[test]
fn fifty_kills_lose_nothing_and_fetch_nothing_twice() {
    let home = Home::new();
    let mirror = published(&home);
    let server = SlowServer::start(mirror.dir.clone());
    let announced = announced(&mirror);
    let keyring = mirror.dir.join("keyring.gpg").display().to_string();
    let args = ["--quiet", "sync", "--source", &server.url, "--keyring", &keyring];
    let blobs = home.state().join("pool/blobs/sha256");

    let start = Instant::now();
    home.ok(args);
    let whole = start.elapsed();
    let (mut kills, mut hits, mut finished) = (0, 0, BTreeSet::new());
    let mut seed = std::process::id().wrapping_mul(2_654_435_761) | 1;
    while kills < 50 {
        // Begun anew when a round got through, so that every moment has its turn.
        std::fs::remove_dir_all(home.state()).unwrap();
        finished.clear();
        for _ in 0..5 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let delay = whole.mul_f64(f64::from(seed >> 8) / f64::from(1 << 24) * 0.7);
            server.asked.lock().unwrap().clear();
            let mut child = home.virga(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(delay);
            hits += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;

            for digest in &finished {
                let again = server.asked.lock().unwrap().contains(&announced[digest]);
                assert!(!again, "{digest} was there and was fetched again (after {delay:?}, seed {seed})");
            }
            finished = names(&blobs).into_iter().collect();
            for blob in &finished {
                assert!(announced.contains_key(blob), "{blob} was never announced");
                assert_eq!(sha256(&blobs.join(blob)), *blob, "a final name without its content, seed {seed}");
            }
            // All records or none, and no record without its blob.
            let images = home.json(["images"]);
            let images = images.as_array().unwrap();
            assert!(images.is_empty() || images.len() == ITEMS, "{} records, seed {seed}", images.len());
            assert!(images.iter().all(|image| image["present"] == true), "seed {seed}");
        }
    }
    assert!(hits > 25, "only {hits} kills hit a sync that was at work");
    home.ok(args);
    assert_eq!(home.json(["images"]).as_array().unwrap().len(), ITEMS);
    assert!(home.ok(["images", "verify"]).starts_with("5 sound"));
    home.ok(["prune"]);
    assert_eq!(names(&home.state().join("pool/partial")), Vec::<String>::new());
    assert_eq!(names(&blobs).len(), ITEMS);
}
