use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Instant;

use super::*;
use crate::base::cmd::{Cmd, Detached};
use crate::base::poll::{self, LONG};
use crate::base::{Kind, fs};

/// A QEMU that runs nothing; killed when dropped.
struct Empty {
    folder: tempfile::TempDir,
    child: Detached,
}

impl Empty {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let qmp = format!("unix:{}/qmp,server=on,wait=off", folder.path().display());
        let log = fs::create_new(&folder.path().join("log"), 0o600).unwrap();
        let child = Cmd::new("qemu-system-x86_64")
            .args(["-S", "-machine", "none", "-nodefaults", "-display", "none", "-qmp", &qmp])
            .spawn_detached(log)
            .unwrap();
        Empty { folder, child }
    }

    fn connect(&self, limit: Duration) -> Result<Qmp> {
        let path = self.folder.path().join("qmp");
        let connect = || Ok(Qmp::connect(&path, limit).ok());
        poll::until(&Deadline::after(LONG), Duration::from_millis(2), connect)
            .map(|qmp| qmp.expect("QEMU's control socket"))
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        self.child.kill();
    }
}

#[test]
fn talks_to_a_real_qemu() {
    let empty = Empty::start();
    let mut qmp = empty.connect(LONG).unwrap();
    assert_eq!(qmp.command("query-status", json!({})).unwrap()["status"], "prelaunch");
    assert!(qmp.monitor("info version").unwrap().contains('.'));
    let error = qmp.command("no-such-command", json!({})).unwrap_err();
    assert!(error.causes()[0].contains("no-such-command"), "{:?}", error.causes());
    // `stop` and `cont` make events, which come between the answers.
    for _ in 0..3 {
        qmp.command("cont", json!({})).unwrap();
        qmp.command("stop", json!({})).unwrap();
    }
    assert_eq!(qmp.command("query-status", json!({})).unwrap()["status"], "paused");

    // QEMU serves one client: a second one gives up in the end, however many wait before it.
    for _ in 0..6 {
        let error = Qmp::connect(&empty.folder.path().join("qmp"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut, "{error} {:?}", error.causes());
    }
    drop(qmp);

    let begin = Instant::now();
    for _ in 0..100 {
        let mut qmp = empty.connect(LONG).unwrap();
        qmp.command("query-status", json!({})).unwrap();
    }
    let each = begin.elapsed() / 100;
    std::io::stderr().write_all(format!("QMP connect and one command: {each:?}\n").as_bytes()).unwrap();
}

/// A server that answers one connection with `bytes`, one every `pace`, then holds it open.
fn impostor(folder: &Path, bytes: Vec<u8>, pace: Duration) -> std::path::PathBuf {
    let path = folder.join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let size = if pace.is_zero() { bytes.len().max(1) } else { 1 };
        for piece in bytes.chunks(size) {
            if stream.write_all(piece).is_err() {
                return;
            }
            // A receiver that nobody sends to: a pause.
            let _ = std::sync::mpsc::channel::<()>().1.recv_timeout(pace);
        }
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    });
    path
}

#[test]
fn a_hostile_or_silent_peer_holds_nobody_up() {
    let greeting = br#"{"QMP": {}}"#.to_vec();
    let endless = vec![b' '; LINE_LIMIT + 4096];
    // It drips for hours: whoever gave each byte the whole time anew would never come back.
    let drips = [greeting.as_slice(), &vec![b' '; LINE_LIMIT / 2]].concat();
    let cases: [(&str, Vec<u8>, Duration, Kind); 6] = [
        ("silent", vec![], Duration::ZERO, Kind::TimedOut),
        ("not ours", b"SSH-2.0-x\r\n".to_vec(), Duration::ZERO, Kind::Failed),
        ("json, not QMP", b"{}\n".to_vec(), Duration::ZERO, Kind::Failed),
        ("half a line", greeting.clone(), Duration::ZERO, Kind::TimedOut),
        ("drips", drips, Duration::from_millis(5), Kind::TimedOut),
        ("endless", endless, Duration::ZERO, Kind::Failed),
    ];
    for (what, bytes, pace, kind) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = impostor(folder.path(), bytes, pace);
        // Short where only the limit ends it; what the peer says is waited for.
        let limit = if kind == Kind::TimedOut { Duration::from_millis(200) } else { LONG };
        let error = Qmp::connect(&path, limit).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

/// A QEMU that says nothing for many times the limit, and is seen to get on.
#[test]
fn one_that_works_is_waited_for() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    const LOOKS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let looks = Arc::new(AtomicU64::new(0));
    let (seen, stands) = (Arc::clone(&looks), Arc::new(AtomicBool::new(false)));
    let asked_again = Arc::clone(&stands);
    let qemu = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        stream.write_all(b"{\"QMP\": {}}\n").unwrap();
        lines.next().unwrap().unwrap();
        stream.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
        lines.next().unwrap().unwrap();
        poll::wait_for("looks", || seen.load(Ordering::SeqCst) > LOOKS);
        stream.write_all(b"{\"return\": \"done\", \"id\": 2}\n").unwrap();
        lines.next().unwrap().unwrap();
        // It stands still from here on, and never answers.
        asked_again.store(true, Ordering::SeqCst);
        lines.next()
    });
    let still = Arc::clone(&looks);
    let look = move || if stands.load(Ordering::SeqCst) { 0 } else { still.fetch_add(1, Ordering::SeqCst) };
    let mut qmp = Qmp::connect(&path, LONG).unwrap();
    qmp.limit = Duration::from_millis(50);
    let mut qmp = qmp.while_changes(look);
    assert_eq!(qmp.command("slow", json!({})).unwrap(), "done");
    assert_eq!(qmp.command("never", json!({})).unwrap_err().kind(), Kind::TimedOut);
    drop(qmp);
    qemu.join().unwrap();
}

#[test]
fn no_socket_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let error = Qmp::connect(&folder.path().join("qmp"), LONG).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}
