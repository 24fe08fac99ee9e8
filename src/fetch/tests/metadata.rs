//! Documents.

use std::time::{Duration, Instant};

use super::server::{Reply, Server};
use super::{fetcher, hasty, url};
use crate::base::Kind;
use crate::base::poll::wait_for;
use crate::fetch::{Metadata, Validators};

const LIMIT: u64 = 1000;

fn fresh(answer: Metadata) -> (Vec<u8>, Validators) {
    match answer {
        Metadata::Fresh { bytes, validators } => (bytes.to_vec(), validators),
        Metadata::NotModified => panic!("not modified"),
    }
}

#[tokio::test]
async fn asks_conditionally_and_takes_304() {
    let server = Server::start(|_, request| match request.header("if-none-match") {
        Some("\"one\"") => Reply::status("304 Not Modified").header("ETag", "\"one\""),
        _ => Reply::ok(b"document").header("ETag", "\"one\"").header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
    });
    let fetcher = fetcher();
    let (bytes, validators) = fresh(fetcher.metadata(&server.url("/d"), None, LIMIT).await.unwrap());
    assert_eq!(bytes, b"document");
    let again = fetcher.metadata(&server.url("/d"), Some(&validators), LIMIT).await.unwrap();
    assert_eq!(again, Metadata::NotModified);
    let seen = server.seen();
    assert_eq!(seen[0].header("if-none-match"), None);
    assert_eq!(seen[1].header("if-modified-since"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!(seen[0].header("user-agent"), Some(concat!("virga/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(seen[0].header("accept-encoding"), None);
}

#[tokio::test]
async fn what_is_no_document_is_an_error_of_its_kind() {
    for (reply, kind, requests, says) in [
        (Reply::status("404 Not Found"), Kind::NotFound, 1, "404 Not Found"),
        (Reply::status("403 Forbidden"), Kind::Failed, 1, "403 Forbidden"),
        (Reply::status("304 Not Modified"), Kind::Failed, 1, "304"),
        (Reply::status("206 Partial Content").header("Content-Length", 1).body(b"x"), Kind::Failed, 1, "206"),
        (Reply::status("500 Internal Server Error"), Kind::Failed, 3, "(tried 3 times)"),
        (Reply::status("200 OK").header("Content-Length", 1001), Kind::Refused, 1, "longer than 1000 B"),
        (Reply::status("200 OK").body(&[b'x'; 1001]), Kind::Refused, 1, "longer than 1000 B"),
        (Reply::ok(b"x").header("Content-Encoding", "gzip"), Kind::Refused, 1, "gzip"),
        (Reply::ok(b"document").cut(3), Kind::Failed, 3, "the connection broke"),
        (Reply::ok(b"document").trickle(), Kind::Failed, 0, ""),
        (Reply::status("301 Moved").header("Location", "/again"), Kind::Refused, 6, "more than 5 redirects"),
        (Reply::status("302 Found").header("Location", "file:///etc/passwd"), Kind::Refused, 1, "302 Found"),
    ] {
        let script = reply.clone();
        let server = Server::start(move |_, _| script.clone());
        let asked = server.url("/d");
        let answer = fetcher().metadata(&asked, None, LIMIT).await;
        if says.is_empty() {
            // Slow, but not too slow for so short a document.
            assert_eq!(fresh(answer.unwrap()).0, b"document");
            continue;
        }
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), kind, "{reply:?}: {error}");
        assert!(error.to_string().contains(says), "{reply:?}: {error}");
        assert!(error.to_string().contains(asked.as_str()), "{error}");
        assert_eq!(server.seen().len(), requests, "{reply:?}");
    }
}

#[tokio::test]
async fn a_server_that_trickles_is_given_up() {
    for (reply, says) in [
        // Never the last byte, however late it is looked at.
        (Reply::ok(&[b'x'; 900]).cut(899).trickle().hang(), "next to nothing for 400ms"),
        (Reply::ok(b"document").cut(3).hang(), "(tried 3 times)"),
    ] {
        let server = Server::start(move |_, _| reply.clone());
        let asked = server.url("/d");
        let error = hasty().metadata(&asked, None, LIMIT).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut, "{error}");
        assert!(error.to_string().contains(says) && error.to_string().contains(asked.as_str()), "{error}");
        // The last try's request may be read when it was given up already.
        wait_for("three requests", || server.seen().len() == 3);
    }
}

#[tokio::test]
async fn a_passing_fault_is_overcome() {
    let server = Server::start(|number, _| match number {
        0 => Reply::status("500 Internal Server Error"),
        1 => Reply::status("503 Service Unavailable").header("Retry-After", 1),
        _ => Reply::ok(b"document"),
    });
    let start = Instant::now();
    let (bytes, _) = fresh(fetcher().metadata(&server.url("/d"), None, LIMIT).await.unwrap());
    assert_eq!(bytes, b"document");
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After was not waited for: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_redirect_is_followed_and_named_when_it_ends_badly() {
    let server = Server::start(|_, request| match request.path.as_str() {
        "/gone" => Reply::status("302 Found").header("Location", "/nowhere").header("Content-Length", 0),
        "/old" => Reply::status("302 Found").header("Location", "/new").header("Content-Length", 0),
        "/new" => Reply::ok(b"document"),
        _ => Reply::status("404 Not Found"),
    });
    let (bytes, _) = fresh(fetcher().metadata(&server.url("/old"), None, LIMIT).await.unwrap());
    assert_eq!(bytes, b"document");
    let error = fetcher().metadata(&server.url("/gone"), None, LIMIT).await.unwrap_err();
    assert!(error.to_string().contains(&format!("(redirected to {})", server.url("/nowhere"))), "{error}");
}

#[tokio::test]
async fn an_absent_server_is_named_with_a_hint() {
    let asked = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        url(&format!("http://user:secret@{}/d", listener.local_addr().unwrap()))
    };
    let error = fetcher().metadata(&asked, None, LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("cannot connect: Connection refused"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(error.hints()[0].contains("online"), "{:?}", error.hints());
}

#[tokio::test]
async fn local_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a b");
    crate::base::fs::write_atomic(&path, b"local", 0o600).unwrap();
    let fetcher = fetcher();
    let local = crate::fetch::Url::from_file_path(&path).unwrap();
    assert_eq!(fresh(fetcher.metadata(&local, None, LIMIT).await.unwrap()).0, b"local");
    assert_eq!(fetcher.metadata(&local, None, 4).await.unwrap_err().kind(), Kind::Refused);
    let absent = crate::fetch::Url::from_file_path(folder.path().join("absent")).unwrap();
    assert_eq!(fetcher.metadata(&absent, None, LIMIT).await.unwrap_err().kind(), Kind::NotFound);
    for bad in ["file:///dev/zero", "ftp://h/d", "data:,x"] {
        assert_eq!(fetcher.metadata(&url(bad), None, LIMIT).await.unwrap_err().kind(), Kind::Usage, "{bad}");
    }
}
