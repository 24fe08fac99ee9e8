use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::renewal::{Orders, await_ready, renew};
use super::*;
use crate::base::DigestAlgorithm;
use crate::base::poll::{Deadline, LONG};

fn key() -> Key {
    Key {
        image: Digest::from_bytes(DigestAlgorithm::Sha256, &[7; 32]),
        arch: Arch::Amd64,
        memory: ByteSize(128 << 20),
        cpus: 1,
        disk: ByteSize(1 << 30),
        driver: DriverKind::Qemu,
        backend: [("qemu".to_owned(), "10".to_owned())].into(),
        recipe: "ab".into(),
        user: "debian".into(),
    }
}

fn facts() -> Facts {
    Facts { kernel: "6.1".into(), tcp: 0 }
}

fn layout(dir: &Path) -> Layout {
    Layout::new(dir.join("state"), dir.join("run")).unwrap()
}

/// Files as `make` leaves them, in a folder of a guest.
fn staged(layout: &Layout) -> TemplateFiles {
    let files = layout.guest_files(&"maker".parse().unwrap()).template();
    fs::create_private_dir(files.folder()).unwrap();
    for (path, content) in [(files.disk(), "disk"), (files.memory(), "memory"), (files.state(), "state")] {
        fs::write_new(&path, content.as_bytes(), 0o600).unwrap();
    }
    files
}

#[test]
fn every_value_of_the_key_makes_another_template() {
    let id = |change: fn(&mut Key)| {
        let mut key = key();
        change(&mut key);
        key.id().unwrap().to_string()
    };
    let ids: std::collections::BTreeSet<String> = [
        id(|_| {}),
        id(|key| key.image = Digest::from_bytes(DigestAlgorithm::Sha256, &[8; 32])),
        id(|key| key.arch = Arch::Arm64),
        id(|key| key.memory = ByteSize(129 << 20)),
        id(|key| key.cpus = 2),
        id(|key| key.disk = ByteSize(2 << 30)),
        id(|key| key.backend = [("qemu".to_owned(), "11".to_owned())].into()),
        id(|key| key.recipe = "ac".into()),
        id(|key| key.user = "me".into()),
    ]
    .into();
    assert_eq!(ids.len(), 9);
    assert_eq!(id(|_| {}), id(|_| {}));
}

#[test]
fn a_template_is_whole_from_the_moment_it_has_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    assert!(list(&layout).unwrap().is_empty());
    let made = publish(&layout, &staged(&layout), key(), facts()).unwrap();
    assert!(!layout.guest_files(&"maker".parse().unwrap()).template().folder().exists());
    let found = load(&layout, &made.id).unwrap().unwrap();
    assert_eq!(found.record.key, key());
    found.verify().unwrap();

    // A second one of the same name does not take its place.
    let again = staged(&layout);
    fs::write_atomic(&again.memory(), b"other", 0o600).unwrap();
    publish(&layout, &again, key(), facts()).unwrap_err();
    found.verify().unwrap();

    assert!(remove(&layout, &made.id).unwrap());
    assert!(!remove(&layout, &made.id).unwrap());
    assert!(load(&layout, &made.id).unwrap().is_none());
}

#[test]
fn a_record_that_is_not_its_own_is_refused_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let made = publish(&layout, &staged(&layout), key(), facts()).unwrap();
    let text = fs::read_text(&made.files.record(), 1 << 20).unwrap();
    for (before, after, kind) in [
        ("\"cpus\": 1", "\"cpus\": 8", Kind::Refused),
        ("\"version\": 1", "\"version\": 2", Kind::Failed),
        ("{", "[", Kind::Failed),
    ] {
        let changed = text.replacen(before, after, 1);
        assert_ne!(changed, text, "{before}");
        fs::write_atomic(&made.files.record(), changed.as_bytes(), 0o600).unwrap();
        assert_eq!(load(&layout, &made.id).unwrap_err().kind(), kind, "{after}");
        assert!(list(&layout).unwrap()[0].1.is_err());
    }
    fs::remove_file(&made.files.record()).unwrap();
    assert!(list(&layout).unwrap()[0].1.is_err());
}

#[test]
fn what_a_killed_removal_left_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let made = publish(&layout, &staged(&layout), key(), facts()).unwrap();
    let aside = layout.templates().join(format!("{REMOVING}{}-1", made.id));
    fs::rename(made.files.folder(), &aside).unwrap();
    assert!(list(&layout).unwrap().is_empty());
    assert_eq!(sweep(&layout, true).unwrap(), 1);
    assert!(aside.exists());
    assert_eq!(sweep(&layout, false).unwrap(), 1);
    assert!(!aside.exists());
}

fn orders() -> Orders {
    Orders {
        entropy: "QUJD".into(),
        hostname: "web".into(),
        machine_id: "0".repeat(32),
        boot_id: "b".into(),
        instance: "i".into(),
        mac: "52:54:00:00:00:01".into(),
        address: None,
        host_keys: Vec::new(),
        user: "debian".into(),
        authorized_keys: Vec::new(),
        first_boot: false,
        documents: BTreeMap::new(),
    }
}

/// What we make of a guest that says this.
fn heard(says: &'static [u8]) -> Result<Facts> {
    let (mut ours, mut guest) = UnixStream::pair().unwrap();
    let talk = std::thread::spawn(move || {
        let _ = guest.write_all(says);
        guest
    });
    let result = await_ready(&mut ours, &Deadline::after(LONG), &|| Ok(()));
    drop(ours);
    talk.join().unwrap();
    result
}

#[test]
fn a_guest_is_heard_but_not_believed() {
    assert_eq!(heard(b"{\"ready\": {\"kernel\": \"6.1\", \"tcp\": 0}}\n{\"renewed\"").unwrap(), facts());
    let error = heard(b"{\"failed\": \"no \\u001b[31mkey\"}\n").unwrap_err();
    let why = error.causes().concat();
    assert!(why.contains("key") && !why.contains('\x1b'), "{why:?}");
    for nonsense in
        [&b"\n"[..], b"{}\n", b"[1]\n", b"\xff\xfe\n", b"{\"ready\": {}}\n", b"{\"renewed\": {\"drawn\": \"\"}}\n"]
    {
        let error = heard(nonsense).unwrap_err();
        assert!(error.to_string().contains("no sense"), "{error}");
    }
    let endless: &'static [u8] = vec![b'x'; 1 << 20].leak();
    assert!(heard(endless).unwrap_err().to_string().contains("no sense"));
}

#[test]
fn silence_and_death_end_the_wait() {
    let (mut ours, guest) = UnixStream::pair().unwrap();
    let short = Deadline::after(Duration::from_millis(250));
    assert_eq!(await_ready(&mut ours, &short, &|| Ok(())).unwrap_err().kind(), Kind::TimedOut);
    let long = Deadline::after(LONG);
    let dead = || Err(Error::failed("dead"));
    assert_eq!(await_ready(&mut ours, &long, &dead).unwrap_err().to_string(), "dead");
    drop(guest);
    assert!(await_ready(&mut ours, &long, &|| Ok(())).is_err());
}

#[test]
fn a_clone_gets_its_orders_and_the_time_when_it_asks() {
    let (mut ours, guest) = UnixStream::pair().unwrap();
    let talk = std::thread::spawn(move || {
        let mut lines = BufReader::new(&guest).lines();
        let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
        let said = next();
        // Twice: a guest that was slow to hear asks again.
        let times = [(); 2].map(|()| {
            let before = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            (&guest).write_all(b"{\"asks\": \"time\"}\n").unwrap();
            (before, next()["time"].as_f64().unwrap())
        });
        (&guest).write_all(b"{\"renewed\": {\"drawn\": \"ab\", \"clock\": 0.1}}\n").unwrap();
        (said, times)
    });
    let receipt = renew(&mut ours, &orders(), LONG, &|| Ok(())).unwrap();
    assert_eq!(receipt.drawn, "ab");
    let (said, times) = talk.join().unwrap();
    assert_eq!((&said["hostname"], &said["entropy"]), (&"web".into(), &"QUJD".into()));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert_eq!(said["time"], serde_json::Value::Null, "told before it asked");
    assert!(times.iter().all(|(asked, told)| asked <= told && *told <= now), "{times:?} {now}");
    assert!(!format!("{:?}", orders()).contains("QUJD"), "entropy in a debug print");
}
