//! Items.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha2::Digest as _;

use super::server::{Reply, Request, Server};
use super::{fetcher, hasty, settings};
use crate::base::progress::{Silent, Transfer};
use crate::base::{Digest, DigestAlgorithm, Kind, Result, fs};
use crate::fetch::{Expected, FetchSettings, Fetched, Fetcher, Url};

/// Not a multiple of any buffer.
const SIZE: usize = 5_000_011;

fn content() -> Vec<u8> {
    (0..SIZE).map(|n| u8::try_from((n * 7 + n / 253) % 251).unwrap()).collect()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_bytes(DigestAlgorithm::Sha256, &sha2::Sha256::digest(bytes))
}

fn expected(bytes: &[u8]) -> Expected {
    Expected { size: bytes.len() as u64, digest: sha256(bytes) }
}

/// A folder with room for one partial.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn partial(&self) -> PathBuf {
        self.folder.path().join("partial")
    }

    /// What an earlier, killed download of `url` would have left.
    fn leave(&self, bytes: &[u8], url: &Url, etag: Option<&str>) {
        fs::write_atomic(&self.partial(), bytes, 0o600).unwrap();
        let note = serde_json::json!({"url": url.as_str(), "etag": etag, "last_modified": null});
        fs::write_json(&self.folder.path().join("partial.json"), &note, 0o600).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.partial(), 1 << 30).unwrap()
    }

    fn names(&self) -> Vec<String> {
        fs::list_dir(self.folder.path()).unwrap()
    }

    async fn fetch(&self, url: &Url, want: &Expected) -> Result<Fetched> {
        fetcher().item(std::slice::from_ref(url), want, &self.partial(), &Silent).await
    }
}

#[tokio::test]
async fn a_whole_item_under_either_digest() {
    let body = content();
    let script = body.clone();
    let server = Server::start(move |_, _| Reply::ok(&script));
    let sha512 = Digest::from_bytes(DigestAlgorithm::Sha512, &sha2::Sha512::digest(&body));
    for digest in [sha256(&body), sha512] {
        let place = Place::new();
        let fetched = place.fetch(&server.url("/i"), &Expected { size: SIZE as u64, digest }).await.unwrap();
        assert_eq!(fetched, Fetched { sha256: sha256(&body), resumed_from: 0, bytes_received: SIZE as u64 });
        assert!(place.bytes() == body);
    }
    let seen = &server.seen()[0];
    assert_eq!((seen.range(), seen.header("accept-encoding")), (None, Some("identity")));
}

#[tokio::test]
async fn a_server_that_cuts_every_body_is_continued_from() {
    let body = content();
    let script = body.clone();
    let server =
        Server::start(move |_, request| Reply::ranged(request, &script).header("ETag", "\"e\"").cut(1_200_000));
    let place = Place::new();
    let fetched = place.fetch(&server.url("/i"), &expected(&body)).await.unwrap();
    assert!(place.bytes() == body);
    assert_eq!((fetched.resumed_from, fetched.bytes_received), (0, SIZE as u64));
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen[1..].iter().all(|request| request.header("if-range") == Some("\"e\"")));
    assert_eq!(seen[4].range(), Some(4_800_000));
}

#[tokio::test]
async fn a_cut_anywhere_is_mended() {
    let body = content()[..100_000].to_vec();
    for ranges in [true, false] {
        for cut in [0, 1, 8_191, 50_000, 99_999] {
            let script = body.clone();
            let server = Server::start(move |number, request| {
                let reply = if ranges { Reply::ranged(request, &script) } else { Reply::ok(&script) };
                if number == 0 { reply.cut(cut) } else { reply }
            });
            let place = Place::new();
            place.fetch(&server.url("/i"), &expected(&body)).await.unwrap();
            assert!(place.bytes() == body, "cut at {cut}, ranges {ranges}");
            assert_eq!(server.seen().len(), 2);
        }
    }
}

/// A partial of an earlier run, and how a server may answer to its range.
#[tokio::test]
async fn resuming() {
    type Answer = fn(&Request, &[u8]) -> Reply;
    let body = content();
    let half = SIZE / 2;
    let right: Answer = |request, body| Reply::ranged(request, body).header("ETag", "\"e\"");
    let cases: [(&str, bool, Answer, usize, usize); 10] = [
        // (name, is the left half right?, answer, resumed from, requests)
        ("continued", true, right, half, 1),
        ("corrupt prefix: once more from zero", false, right, 0, 2),
        ("range ignored", true, |_, body| Reply::ok(body), 0, 1),
        (
            "other range",
            true,
            |request, body| Reply::ranged(request, body).replace("bytes 2500005-", "bytes 2500004-"),
            0,
            2,
        ),
        (
            "no Content-Range",
            true,
            |request, body| Reply::ranged(request, body).replace("Content-Range", "X-Nothing"),
            0,
            2,
        ),
        ("other total", true, |request, body| Reply::ranged(request, body).replace("/5000011", "/5000012"), 0, 2),
        (
            "file changed, If-Range ignored",
            true,
            |request, body| Reply::ranged(request, body).header("ETag", "\"f\""),
            0,
            2,
        ),
        (
            "file changed, If-Range kept",
            true,
            |request, body| match request.header("if-range") {
                Some("\"f\"") => Reply::ranged(request, body),
                _ => Reply::ok(body).header("ETag", "\"f\""),
            },
            0,
            1,
        ),
        (
            "416",
            true,
            |request, body| match request.range() {
                Some(_) => Reply::status("416 Range Not Satisfiable"),
                None => Reply::ok(body),
            },
            0,
            2,
        ),
        ("no validator", true, |request, body| Reply::ranged(request, body), half, 1),
    ];
    for (name, intact, answer, resumed_from, requests) in cases {
        let script = body.clone();
        let server = Server::start(move |_, request| answer(request, &script));
        let url = server.url("/i");
        let place = Place::new();
        let mut left = body[..half].to_vec();
        if !intact {
            left[1000] ^= 1;
        }
        place.leave(&left, &url, Some("\"e\""));
        let fetched = place.fetch(&url, &expected(&body)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(place.bytes() == body, "{name}");
        assert_eq!(fetched.resumed_from, resumed_from as u64, "{name}");
        assert_eq!(fetched.sha256, sha256(&body), "{name}");
        let seen = server.seen();
        assert_eq!(seen.len(), requests, "{name}: {seen:?}");
        assert_eq!((seen[0].range(), seen[0].header("if-range")), (Some(half), Some("\"e\"")), "{name}");
    }
}

#[tokio::test]
async fn partials_that_are_of_no_use_or_complete() {
    let body = content();
    let script = body.clone();
    let server = Server::start(move |_, request| Reply::ranged(request, &script));
    let url = server.url("/i");
    let other: Url = "http://elsewhere/i".parse().unwrap();
    let longer = [&body[..], b"x"].concat();
    // (left, of this URL?, with a note?, resumed from, requests)
    for (left, url_left, note, resumed_from, requests) in [
        (&body[..], &url, true, SIZE, 0),
        (&longer[..], &url, true, 0, 1),
        (&body[..9], &url, false, 0, 1),
        (&body[..9], &other, true, 9, 1),
    ] {
        let place = Place::new();
        place.leave(left, url_left, Some("\"e\""));
        if !note {
            fs::remove_file(&place.folder.path().join("partial.json")).unwrap();
        }
        let before = server.seen().len();
        let fetched = place.fetch(&url, &expected(&body)).await.unwrap();
        assert_eq!(fetched.resumed_from, resumed_from as u64);
        assert!(place.bytes() == body);
        let seen = server.seen();
        assert_eq!(seen.len() - before, requests);
        // Another server's entity tag means nothing here.
        assert!(seen.iter().all(|request| request.header("if-range").is_none()));
    }
}

#[tokio::test]
async fn what_is_not_the_item_is_refused_and_nothing_stays() {
    let body = content();
    let mut altered = body.clone();
    altered[SIZE - 1] ^= 1;
    let short = body[..SIZE - 1].to_vec();
    let long = [&body[..], b"x"].concat();
    for (name, reply, requests, says) in [
        ("wrong digest", Reply::ok(&altered), 1, format!("announced {}, received {}", sha256(&body), sha256(&altered))),
        ("longer, told", Reply::ok(&long), 1, "the server has 5000012 bytes, announced are 5000011".into()),
        ("shorter, told", Reply::ok(&short), 1, "the server has 5000010 bytes, announced are 5000011".into()),
        (
            "longer, not told",
            Reply::status("200 OK").body(&long),
            1,
            "the body is longer, announced are 5000011".into(),
        ),
        ("shorter, not told", Reply::status("200 OK").body(&short), 3, "the body ended after 5000010 bytes".into()),
        ("redirected for ever", Reply::status("302 Found").header("Location", "/i"), 6, "more than 5 redirects".into()),
    ] {
        let server = Server::start(move |_, _| reply.clone());
        let place = Place::new();
        let error = place.fetch(&server.url("/i"), &expected(&body)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{name}: {error}");
        assert!(error.to_string().contains(&says), "{name}: {error}");
        assert_eq!(server.seen().len(), requests, "{name}");
        assert_eq!(place.names(), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn a_wrong_item_in_pieces_is_fetched_afresh_once_only() {
    let body = content();
    let mut altered = body.clone();
    altered[0] ^= 1;
    let server = Server::start(move |_, request| Reply::ranged(request, &altered).cut(3_000_000));
    let place = Place::new();
    let error = place.fetch(&server.url("/i"), &expected(&body)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert_eq!(server.seen().len(), 4);
    assert_eq!(place.names(), [""; 0]);
}

#[tokio::test]
async fn failures_that_pass_leave_the_partial_for_the_next_call() {
    let body = content();
    for (name, reply, kind, says, left) in [
        ("cut each time at one place", Reply::ok(&body).cut(70_000), Kind::Failed, "the connection broke", 70_000),
        ("cut each time far in", Reply::ok(&body).cut(2_000_000), Kind::Failed, "(tried 3 times)", 2_000_000),
        ("always busy", Reply::status("503 Service Unavailable"), Kind::Failed, "503 Service Unavailable (tried 3", 0),
        ("gone", Reply::status("404 Not Found"), Kind::NotFound, "404 Not Found", 0),
    ] {
        let server = Server::start(move |_, _| reply.clone());
        let place = Place::new();
        let error = place.fetch(&server.url("/i"), &expected(&body)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        match left {
            0 => assert_eq!(place.names(), [""; 0], "{name}"),
            left => {
                let found = place.bytes();
                assert!(found.len() >= left && body.starts_with(&found), "{name}: {} bytes", found.len());
                assert_eq!(place.names(), ["partial", "partial.json"], "{name}");
            }
        }
    }
}

#[tokio::test]
async fn silence_ends_a_try_and_leaves_what_had_come() {
    let body = content();
    for (name, reply, left) in
        [("silent", Reply::ok(&body).cut(70_000).hang(), 70_000), ("trickling", Reply::ok(&body).trickle(), 1)]
    {
        let server = Server::start(move |_, _| reply.clone());
        let (place, url, want) = (Place::new(), server.url("/i"), expected(&body));
        // On a busy machine the server may not even begin within the time; then the next call gets it.
        loop {
            let asked = std::slice::from_ref(&url);
            let error = hasty().item(asked, &want, &place.partial(), &Silent).await.unwrap_err();
            assert_eq!(error.kind(), Kind::TimedOut, "{name}: {error}");
            assert!(error.to_string().contains("next to nothing for 400ms"), "{name}: {error}");
            if place.names() == ["partial", "partial.json"] && place.bytes().len() >= left {
                break;
            }
        }
        assert!(body.starts_with(&place.bytes()), "{name}");
    }
}

/// Raises a flag when so many bytes have come.
struct Interrupter {
    at: u64,
    flag: &'static AtomicBool,
    last: AtomicU64,
}

impl Transfer for Interrupter {
    fn at(&self, bytes: u64) {
        self.last.store(bytes, Ordering::SeqCst);
        if bytes >= self.at {
            self.flag.store(true, Ordering::SeqCst);
        }
    }
}

#[tokio::test]
async fn ctrl_c_ends_a_silent_download_at_once_and_the_next_call_continues() {
    static FLAG: AtomicBool = AtomicBool::new(false);
    let body = content();
    let script = body.clone();
    let server = Server::start(move |number, request| match number {
        0 => Reply::ok(&script).cut(3_000_000).hang(),
        _ => Reply::ranged(request, &script),
    });
    let place = Place::new();
    let fetcher = Fetcher::with_stop(&settings(), || FLAG.load(Ordering::SeqCst));
    let transfer = Interrupter { at: 3_000_000, flag: &FLAG, last: AtomicU64::new(0) };
    let (url, want) = (server.url("/i"), expected(&body));
    let error = fetcher.item(std::slice::from_ref(&url), &want, &place.partial(), &transfer).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
    // The server holds on, and so does the patience with it: nothing but Ctrl-C ended this.
    assert_eq!(server.seen().len(), 1);
    assert!(place.bytes() == body[..3_000_000]);

    FLAG.store(false, Ordering::SeqCst);
    let transfer = Interrupter { at: u64::MAX, ..transfer };
    let fetched = fetcher.item(std::slice::from_ref(&url), &want, &place.partial(), &transfer).await.unwrap();
    assert_eq!((fetched.resumed_from, fetched.bytes_received), (3_000_000, SIZE as u64 - 3_000_000));
    assert_eq!(transfer.last.load(Ordering::SeqCst), SIZE as u64);
}

#[tokio::test]
async fn space_is_asked_for_before_the_network() {
    let place = Place::new();
    let server = Server::start(|_, _| Reply::status("500 Internal Server Error"));
    let want = Expected { size: 1 << 60, digest: sha256(b"") };
    let error = place.fetch(&server.url("/i"), &want).await.unwrap_err();
    assert!(error.to_string().contains("needs 1048576 TiB and"), "{error}");
    assert!(error.hints()[0].contains("virga prune"), "{:?}", error.hints());
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn local_items() {
    let body = content();
    let place = Place::new();
    let source = place.folder.path().join("source");
    fs::write_atomic(&source, &body, 0o600).unwrap();
    let url = Url::from_file_path(&source).unwrap();
    let fetched = place.fetch(&url, &expected(&body)).await.unwrap();
    assert_eq!((fetched.resumed_from, fetched.bytes_received), (0, SIZE as u64));
    assert!(place.bytes() == body);
    place.leave(&body[..77], &url, None);
    assert_eq!(place.fetch(&url, &expected(&body)).await.unwrap().resumed_from, 77);
    for (size, digest) in [(7, sha256(&body)), (SIZE as u64, sha256(b"other"))] {
        let error = place.fetch(&url, &Expected { size, digest }).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        assert_eq!(place.names(), ["source"]);
    }
}

#[tokio::test]
async fn any_place_that_has_the_bytes_will_do() {
    let body = content();
    let script = body.clone();
    let good = Server::start(move |_, request| Reply::ranged(request, &script));
    let half = body[..SIZE / 2].to_vec();
    let script = body.clone();
    // Gives half of it and then nothing more.
    let tired = Server::start(move |number, request| {
        if number == 0 { Reply::ranged(request, &script).cut(SIZE / 2) } else { Reply::status("500 No") }
    });
    let gone = Server::start(|_, _| Reply::status("404 Not Found"));
    let liar = Server::start(|_, _| Reply::ok(&vec![7; SIZE]));
    let want = expected(&body);
    for (places, ranges) in [
        (vec![gone.url("/i"), good.url("/i")], vec![None]),
        (vec![liar.url("/i"), good.url("/i")], vec![None]),
        (vec![tired.url("/i"), gone.url("/i"), good.url("/i")], vec![Some(half.len())]),
    ] {
        let place = Place::new();
        let before = good.seen().len();
        let fetched = fetcher().item(&places, &want, &place.partial(), &Silent).await.unwrap();
        assert!(place.bytes() == body && fetched.sha256 == sha256(&body));
        assert_eq!(good.seen()[before..].iter().map(Request::range).collect::<Vec<_>>(), ranges);
    }
    // The first place's error counts; the others' are told.
    let place = Place::new();
    let error = fetcher().item(&[gone.url("/i"), liar.url("/i")], &want, &place.partial(), &Silent).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hints().iter().any(|hint| hint.starts_with("elsewhere: ")), "{:?}", error.hints());
    assert!(place.names().is_empty());
    let error = fetcher().item(&[], &want, &place.partial(), &Silent).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[tokio::test]
async fn retries_are_shared_by_all_transfers() {
    let body = content()[..1000].to_vec();
    let server = Server::start(|_, _| Reply::status("500 No"));
    let fetcher = Fetcher::new(&FetchSettings { budget: 3, ..settings() });
    for number in 0..4 {
        let place = Place::new();
        let url = server.url("/i");
        let error = fetcher.item(&[url], &expected(&body), &place.partial(), &Silent).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Failed, "{number}");
    }
    // Four first tries, and three more in all.
    assert_eq!(server.seen().len(), 7);
    let other = Server::start(|_, _| Reply::status("500 No"));
    let place = Place::new();
    let hasty = fetcher.with_retries(0);
    assert!(hasty.item(&[other.url("/i")], &expected(&body), &place.partial(), &Silent).await.is_err());
    assert_eq!(other.seen().len(), 1);
}

/// Small items take the short way: the same checks hold there.
#[tokio::test]
async fn small_items() {
    let body = content()[..100_000].to_vec();
    let sha512 = Digest::from_bytes(DigestAlgorithm::Sha512, &sha2::Sha512::digest(&body));
    type Answer = fn(usize, &[u8]) -> Reply;
    let cases: [(&str, Answer, Option<Kind>); 9] = [
        ("right", |_, body| Reply::ok(body), None),
        ("without a length", |_, body| Reply::status("200 OK").body(body), None),
        ("cut at first", |number, body| if number == 0 { Reply::ok(body).cut(5) } else { Reply::ok(body) }, None),
        ("cut for ever", |_, body| Reply::ok(body).cut(5), Some(Kind::Failed)),
        ("longer", |_, body| Reply::status("200 OK").body(&body.repeat(2)), Some(Kind::Refused)),
        ("announced longer", |_, body| Reply::ok(&body.repeat(2)), Some(Kind::Refused)),
        ("shorter", |_, body| Reply::ok(&body[1..]), Some(Kind::Refused)),
        ("other bytes", |_, body| Reply::ok(&vec![1; body.len()]), Some(Kind::Refused)),
        ("silent", |_, body| Reply::ok(body).cut(7).hang(), Some(Kind::TimedOut)),
    ];
    for (what, answer, refused) in cases {
        let script = body.clone();
        let server = Server::start(move |number, _| answer(number, &script));
        for digest in [sha256(&body), sha512.clone()] {
            let place = Place::new();
            let want = Expected { size: body.len() as u64, digest };
            let fetcher = if refused == Some(Kind::TimedOut) { hasty() } else { fetcher() };
            let url = [server.url("/i")];
            let fetched = fetcher.item(&url, &want, &place.partial(), &Silent).await;
            match refused {
                None => {
                    assert_eq!(fetched.unwrap().sha256, sha256(&body), "{what}");
                    assert!(place.bytes() == body && place.names() == ["partial"], "{what}");
                }
                Some(kind) => {
                    assert_eq!(fetched.unwrap_err().kind(), kind, "{what}");
                    assert!(place.names().is_empty(), "{what}");
                }
            }
        }
    }
}
