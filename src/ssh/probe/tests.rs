use std::net::TcpListener;

use super::*;
use crate::base::Kind;
use crate::base::poll::{LONG, wait_for};

const LINE: &[u8] = b"SSH-2.0-Test_1\r\n";

/// A server on a free port that treats its nth connection as `serve` says;
/// connections stay open as long as the value that it returns.
fn server<T: Send + 'static>(mut serve: impl FnMut(usize, TcpStream) -> T + Send + 'static) -> SocketAddr {
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

/// The real probing, by the real clock; the limit is one that only a fault reaches.
fn probe(addr: SocketAddr) -> Banner {
    banner(addr, &Deadline::after(LONG)).unwrap()
}

/// Probing by a clock of its own, so that the schedule is the same on every machine, and a server that does
/// only what a test has it do. Times are in milliseconds since probing began.
struct Played {
    prober: Prober,
    server: TcpListener,
    begun: Instant,
}

impl Played {
    fn new() -> Self {
        // A listener that takes nothing is QEMU before the guest is up: all connections succeed, none is answered.
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let begun = Instant::now();
        Played { prober: Prober::begun(server.local_addr().unwrap(), begun), server, begun }
    }

    fn tick(&mut self, at: u64) -> Option<Answered> {
        self.prober.tick_at(self.begun + Duration::from_millis(at)).unwrap()
    }

    /// Looks again and again at the same moment until what the server did has arrived.
    fn tick_until(&mut self, at: u64, what: &str, holds: impl Fn(&Prober) -> bool) {
        wait_for(what, || {
            assert!(self.tick(at).is_none(), "an answer before {what}");
            holds(&self.prober)
        });
    }

    fn answered(&mut self, at: u64) -> Answered {
        let mut answered = None;
        wait_for("the answer", || {
            answered = self.tick(at);
            answered.is_some()
        });
        answered.unwrap()
    }

    /// Looks every 10 ms, as [`banner`] does, while the server keeps silent: when it connected.
    fn silence(&mut self, from: u64, to: u64) -> Vec<u64> {
        let mut connected = Vec::new();
        for at in (from..=to).step_by(10) {
            assert!(self.tick(at).is_none());
            assert!(self.prober.open.len() <= OPEN_LIMIT, "{} connections at {at}", self.prober.open.len());
            connected.extend(self.connected_at(at).then_some(at));
        }
        connected
    }

    fn connected_at(&self, at: u64) -> bool {
        self.prober.last == Some(self.begun + Duration::from_millis(at))
    }

    /// When the connections that are still open began.
    fn ages(&self) -> Vec<u128> {
        self.prober.open.iter().map(|attempt| attempt.begun.duration_since(self.begun).as_millis()).collect()
    }

    /// The server takes the oldest connection that it has not taken yet.
    fn take(&self) -> TcpStream {
        self.server.accept().unwrap().0
    }
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
    let told = |addr: SocketAddr, words: &str| {
        let mut prober = Prober::new(addr);
        wait_for(words, || prober.tick().unwrap().is_none() && prober.answer().to_string().contains(words));
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    told(port, "refused");
    told(server(|_, _| ()), "closed at once");
    told(server(|_, stream| say(stream, b"220 ftp\x1b[1m\r\n").map(drop)), "says '220 ftp\\u");
    let flood = vec![b'x'; 100_000];
    told(server(move |_, stream| say(stream, &flood)), "no SSH server");
    // Silence is what there is until something else is heard: it is the deadline that ends it.
    let error = banner(server(|_, stream| stream), &Deadline::after(Duration::from_millis(350))).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    assert!(error.to_string().ends_with("within 350ms"), "{error}");
    assert!(error.causes().concat().contains("nothing answers"), "{:?}", error.causes());
}

/// A server may need long for its first line, and longer the more connections there are: the oldest is not given up.
#[test]
fn a_slow_banner_is_waited_for() {
    let mut played = Played::new();
    played.silence(0, 60_000);
    let first = say(played.take(), b"SSH-2.0-").unwrap();
    played.tick_until(60_000, "half a line", |prober| !prober.open[0].received.is_empty());
    let _first = say(first, b"Test_1\r\n");
    let answered = played.answered(60_000);
    assert_eq!(answered.banner, Banner("SSH-2.0-Test_1".into()));
    assert_eq!(answered.received, LINE);

    // The same by the real clock: only the first is ever answered, when others have come after it.
    let mut kept = Vec::new();
    let addr = server(move |n, stream| {
        kept.push(stream);
        if n == OPEN_LIMIT + 1 {
            kept[0].write_all(LINE).unwrap();
        }
    });
    assert_eq!(probe(addr), Banner("SSH-2.0-Test_1".into()));
}

/// As QEMU's user network: what is connected before the guest is up is never
/// answered, or answered late. So whenever the guest comes up, a new connection soon follows.
#[test]
fn early_connections_that_hang_do_not_delay() {
    let connected = Played::new().silence(0, 100_000);
    assert_eq!(connected[..4], [0, 50, 100, 150]);
    for pair in connected.windows(2) {
        // Two per cent of the silence so far, and one look more.
        let longest = (pair[1] / 50).clamp(50, 500) + 10;
        assert!(pair[1] - pair[0] <= longest, "{pair:?}");
    }
    assert!(*connected.last().unwrap() > 99_000, "{connected:?}");

    let addr = server(|n, stream| if n < OPEN_LIMIT + 3 { Some(stream) } else { say(stream, LINE) });
    probe(addr);
}

/// What a real client begins with is sent once, and a server that waits for it answers.
#[test]
fn a_way_that_waits_for_the_clients_first_word_gets_it() {
    let mut played = Played::new();
    played.tick(0);
    let mut first = played.take();
    played.tick_until(10, "the greeting", |prober| prober.open[0].greeted);
    let mut word = [0; 8];
    first.read_exact(&mut word).unwrap();
    assert_eq!(word, *GREETING);
    played.silence(20, 40);
    first.set_nonblocking(true).unwrap();
    assert_eq!(first.read(&mut word).unwrap_err().kind(), io::ErrorKind::WouldBlock, "sent once");
    let _first = say(first, LINE);
    assert!(played.answered(40).greeted);

    let mut played = Played::new();
    played.tick(0);
    let _first = say(played.take(), LINE);
    wait_for("the line", || played.prober.open[0].stream.peek(&mut [0; 64]).is_ok_and(|there| there == LINE.len()));
    assert!(!played.answered(10).greeted, "who has spoken is not spoken to");
}

#[test]
fn a_server_that_comes_up_is_seen_at_once() {
    // However often it was closed, the next look is a step away: the guest is there, only its server is not.
    let mut played = Played::new();
    for at in (0..60_000).step_by(50) {
        assert!(played.tick(at).is_none());
        assert!(played.connected_at(at), "no connection at {at}");
        drop(played.take());
        played.tick_until(at, "its end", |prober| prober.open.is_empty());
    }
    played.tick(60_000);
    let _first = say(played.take(), LINE);
    played.answered(60_000);

    probe(server(|n, stream| if n < 10 { None } else { say(stream, LINE) }));
}

/// One that closed and then keeps silent is busy: hardly anything is opened beside.
#[test]
fn a_busy_server_is_not_flooded() {
    let mut played = Played::new();
    for at in [0, 50] {
        played.tick(at);
        drop(played.take());
        played.tick_until(at, "its end", |prober| prober.open.is_empty());
    }
    assert_eq!(played.silence(60, 8_000), [100, 1100, 2150, 4250]);
}

/// As a guest that has just come up and is slow: as soon as it has one of many, there is that one, and hardly another.
#[test]
fn one_that_is_taken_is_waited_for() {
    let mut played = Played::new();
    played.silence(0, 4_000);
    let ages = played.ages();
    assert_eq!(ages.len(), OPEN_LIMIT);
    let mut slow = played.take();
    slow.read_exact(&mut [0; 8]).unwrap();
    played.tick(4_100);
    assert_eq!(played.ages(), ages[..1]);
    assert_eq!(played.silence(4_110, 20_000), [4_950, 5_950, 7_800, 11_500, 18_900]);
    let _slow = say(slow, LINE);
    assert!(played.answered(20_000).greeted);
}

#[test]
fn what_stays_open_is_few_and_spread_over_all_ages() {
    let mut played = Played::new();
    played.silence(0, 3_000);
    let ages = played.ages();
    assert_eq!(ages.len(), OPEN_LIMIT);
    assert!(ages[0] == 0 && ages[1] < 2000 && *ages.last().unwrap() > 2900, "{ages:?}");
}
