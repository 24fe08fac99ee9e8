use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::base::Kind;

const LINE: &[u8] = b"SSH-2.0-Test_1\r\n";

fn nap(time: Duration) {
    poll::until(&Deadline::after(time), time, || Ok(None::<()>)).unwrap();
}

/// A server on a free port that treats its nth connection as `serve` says;
/// connections stay open as long as the value that it returns.
fn server<T: Send + 'static>(serve: impl Fn(usize, TcpStream) -> T + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for (n, stream) in listener.incoming().enumerate() {
            kept.push(serve(n, stream.unwrap()));
        }
    });
    addr
}

fn say(mut stream: TcpStream, text: &[u8]) -> Option<TcpStream> {
    let _ = stream.write_all(text);
    Some(stream)
}

fn probe(addr: SocketAddr, millis: u64) -> Result<Banner> {
    banner(addr, &Deadline::after(Duration::from_millis(millis)))
}

/// The last answer from a server that never becomes one of SSH.
fn no_banner(addr: SocketAddr) -> String {
    let error = probe(addr, 350).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    error.causes().concat()
}

#[test]
fn version_lines() {
    for (text, line) in [
        ("SSH-2.0-OpenSSH_9.2p1\r\n", Some("SSH-2.0-OpenSSH_9.2p1")),
        ("SSH-1.99-x\n", Some("SSH-1.99-x")),
        ("hello\r\nSSH-2.0-x\r\n", Some("SSH-2.0-x")),
        ("SSH-2.0-x", None),
        ("SSH-1.5-x\r\n", None),
        ("xSSH-2.0-x\r\n", None),
        ("", None),
    ] {
        assert_eq!(version_line(text.as_bytes()), line.map(|line| Banner(line.into())), "{text:?}");
    }
    assert_eq!(version_line(&[b"SSH-2.0-", [b'x'; 300].as_slice(), b"\n"].concat()), None);
}

#[test]
fn the_ways_of_not_answering_are_told_apart() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(no_banner(port).contains("refused"));
    assert!(no_banner(server(|_, stream| stream)).contains("nothing answers"));
    assert!(no_banner(server(|_, _| ())).contains("closed at once"));
    assert!(no_banner(server(|_, stream| say(stream, b"220 ftp\x1b[1m\r\n").map(drop))).contains("says '220 ftp\\u"));
    let flood = vec![b'x'; 100_000];
    assert!(no_banner(server(move |_, stream| say(stream, &flood))).contains("no SSH server"));
}

#[test]
fn a_slow_banner_is_waited_for() {
    // 600 ms for each connection; every further connection makes all slower, as in an emulated guest.
    let busy = Arc::new(AtomicUsize::new(0));
    let addr = server(move |_, stream| {
        let busy = Arc::clone(&busy);
        std::thread::spawn(move || {
            let others = busy.fetch_add(1, Ordering::SeqCst) as u32;
            nap(Duration::from_millis(600) + Duration::from_millis(50) * others);
            say(stream, b"SSH-2.0-").and_then(|stream| {
                nap(Duration::from_millis(50));
                say(stream, b"Test_1\r\n")
            })
        })
    });
    let deadline = Deadline::after(Duration::from_secs(10));
    assert_eq!(banner(addr, &deadline).unwrap(), Banner("SSH-2.0-Test_1".into()));
    assert!(deadline.elapsed() < Duration::from_millis(1000), "{:?}", deadline.elapsed());
}

/// As QEMU's user network: what is connected before the guest is up is never
/// answered, or answered late.
#[test]
fn early_connections_that_hang_do_not_delay() {
    let up = Instant::now() + Duration::from_millis(1500);
    let addr = server(move |_, stream| if Instant::now() < up { Some(stream) } else { say(stream, LINE) });
    probe(addr, 10_000).unwrap();
    let late = up.elapsed();
    assert!(late < Duration::from_millis(200), "{late:?} after the guest was ready");
}

/// What a real client begins with is sent once, and then the server that waited for it answers.
#[test]
fn a_way_that_waits_for_the_clients_first_word_gets_it() {
    let addr = server(|_, mut stream| {
        let mut word = [0; 8];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(word, *GREETING);
        say(stream, LINE)
    });
    assert!(tick_until_answered(addr).greeted);
    assert!(!tick_until_answered(server(|_, stream| say(stream, LINE))).greeted, "who speaks first is not spoken to");
}

fn tick_until_answered(addr: SocketAddr) -> Answered {
    let mut prober = Prober::new(addr);
    poll::until(&Deadline::after(Duration::from_secs(5)), TICK, || prober.tick()).unwrap().unwrap()
}

#[test]
fn a_server_that_comes_up_is_seen_at_once() {
    let up = Instant::now() + Duration::from_millis(700);
    let addr = server(move |_, stream| if Instant::now() < up { None } else { say(stream, LINE) });
    probe(addr, 10_000).unwrap();
    let late = up.elapsed();
    assert!(late < Duration::from_millis(200), "{late:?} after the guest was ready");
}

/// One that closed and then keeps silent is busy: hardly anything is opened beside.
#[test]
fn a_busy_server_is_not_flooded() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let addr = server(move |n, stream| {
        count.fetch_add(1, Ordering::SeqCst);
        (n >= 2).then_some(stream)
    });
    let _ = probe(addr, 2_700);
    let made = made.load(Ordering::SeqCst);
    assert!((4..=6).contains(&made), "two closed, one silent, one more a second: {made}");
}

#[test]
fn what_stays_open_is_few_and_spread_over_all_ages() {
    let addr = server(|_, stream| stream);
    let mut prober = Prober::new(addr);
    let begun = Instant::now();
    poll::until(&Deadline::after(Duration::from_secs(3)), TICK, || prober.tick()).unwrap();
    let ages: Vec<u128> = prober.open.iter().map(|attempt| attempt.begun.duration_since(begun).as_millis()).collect();
    assert!(ages.len() <= OPEN_LIMIT);
    assert!(ages[0] < 100 && ages[1] < 2000 && *ages.last().unwrap() > 2700, "{ages:?}");
}
