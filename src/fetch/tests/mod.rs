//! The fetch part against a real, faulty server on the loopback.

mod item;
mod metadata;
mod server;

use std::time::{Duration, Instant};

use super::http::{Way, redirect_verdict, retry_after, shown, unconnected};
use super::retry::Pace;
use super::{FetchSettings, Fetcher, Url};
use crate::base::poll::LONG;
use crate::base::proxy::Proxy;

/// Quick at trying again, and patient with a server that is only slow to run.
fn settings() -> FetchSettings {
    FetchSettings { stall_timeout: LONG, retries: 2, first_delay: Duration::from_millis(5), ..FetchSettings::default() }
}

fn fetcher() -> Fetcher {
    Fetcher::new(&settings())
}

/// For servers that go silent or trickle: a test of patience needs none. Whoever asks it may also give up a server
/// that a busy machine did not let run, so nothing but that may be told of what it did.
fn hasty() -> Fetcher {
    Fetcher::new(&FetchSettings { stall_timeout: Duration::from_millis(400), ..settings() })
}

#[test]
fn a_trickle_is_told_from_a_slow_line() {
    let begun = Instant::now();
    let pace = |pieces: &[(u64, usize)]| {
        let mut pace = Pace::begun(Duration::from_secs(2), begun);
        let mut keeps_up = |(at, bytes): &(u64, usize)| pace.keeps_up_at(*bytes, begun + Duration::from_millis(*at));
        pieces.iter().map(&mut keeps_up).collect::<Vec<bool>>()
    };
    assert_eq!(pace(&[(0, 1), (1_000, 1), (1_999, 1), (2_000, 1)]), [true, true, true, false]);
    assert_eq!(pace(&[(2_000, 2_047)]), [false]);
    assert_eq!(pace(&[(2_000, 2_048)]), [true]);
    // What came before does not make up for what comes no more.
    assert_eq!(pace(&[(2_000, 1 << 30), (4_000, 1)]), [true, false]);
    assert_eq!(pace(&[(2_000, 4_096), (3_000, 1), (4_000, 2_047)]), [true, true, true]);
}

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

#[test]
fn redirects_never_leave_tls_nor_go_round_for_ever() {
    let (http, https) = (url("http://a/x"), url("https://a/x"));
    assert!(redirect_verdict(std::slice::from_ref(&http), &https).is_ok());
    assert!(redirect_verdict(std::slice::from_ref(&http), &http).is_ok());
    assert!(redirect_verdict(std::slice::from_ref(&https), &https).is_ok());
    assert!(redirect_verdict(std::slice::from_ref(&https), &http).unwrap_err().contains("from https to plain"));
    assert!(redirect_verdict(&[http.clone(), https.clone()], &http).is_err());
    for other in ["file:///etc/passwd", "ftp://a/x", "data:,x"] {
        assert!(redirect_verdict(std::slice::from_ref(&http), &url(other)).is_err(), "{other}");
    }
    assert!(redirect_verdict(&vec![http.clone(); 5], &http).is_ok());
    assert!(redirect_verdict(&vec![http.clone(); 6], &http).unwrap_err().contains("more than 5"));
}

#[test]
fn messages_show_no_credentials() {
    assert_eq!(shown(&url("https://user:secret@h:8443/a%20b?token=secret#secret")), "https://h:8443/a%20b?…");
    assert_eq!(shown(&url("file:///a/b")), "file:///a/b");
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now: jiff::Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
    let asked = |text: &str| {
        let headers = [(reqwest::header::RETRY_AFTER, text.parse().unwrap())];
        retry_after(&headers.into_iter().collect(), now)
    };
    assert_eq!(asked("12"), Some(Duration::from_secs(12)));
    assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
    assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
    assert_eq!(asked("soon"), None);
}

#[test]
fn loopback_hosts_bypass_the_proxy() {
    let fetcher = fetcher();
    let way = |text: &str| {
        let client = fetcher.client_for(&url(text)).unwrap();
        fetcher.shared.clients.iter().position(|slot| slot.get().is_some_and(|made| std::ptr::eq(made, client)))
    };
    for host in ["http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost/"] {
        assert_eq!(way(host), Some(Way::Plain as usize), "{host}");
    }
    assert_eq!(way("https://localhost/"), Some(Way::Direct as usize));
    for host in ["http://example.org/", "http://10.0.0.1/", "http://localhost.example.org/"] {
        assert_eq!(way(host), Some(Way::Any as usize), "{host}");
    }
}

#[test]
fn a_connection_that_did_not_come_about_is_told_by_what_stood_in_its_way() {
    let proxy = |value: &str| Proxy::new("https", "https_proxy", value);
    let said = |proxy: Option<Proxy>, cause: &str| unconnected(&url("https://h/x"), proxy.as_ref(), cause);
    assert!(said(None, "Connection refused").contains("set HTTPS_PROXY"));
    let hint = said(Some(proxy("u:secret@p:1")), "Connection refused (os error 111)");
    assert!(hint.starts_with("https_proxy names the proxy http://p:1:") && !hint.contains("secret"), "{hint}");
    let unresolved = "failed to lookup address information: Name or service not known";
    assert!(said(Some(proxy("socks5://p:1")), unresolved).contains("socks5h://"));
    assert!(!said(Some(proxy("socks5h://p:1")), unresolved).contains("socks5h:// "));
    assert!(said(Some(proxy("p:1")), "tunnel error: unsuccessful").contains("does not let it through"));
    let plain = "received corrupt message of type InvalidContentType";
    assert_eq!(said(None, plain), "does it speak http only? then write http://h/x");
    assert!(said(Some(proxy("https://p:1")), plain).starts_with("does the proxy speak http only?"));
    assert!(said(Some(proxy("p:1")), "proxy authorization required").contains("wants a login: set https_proxy"));
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_one_that_is_not_there() {
    let (listener, settings) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), settings());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let error =
        Fetcher::new(&settings).metadata(&url(&format!("https://{address}/x")), None, 1 << 10).await.unwrap_err();
    assert!(error.hints()[0].contains("speak http only"), "{error}: {:?}", error.hints());
}
