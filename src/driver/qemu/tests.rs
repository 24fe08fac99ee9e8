//! The driver against real QEMU processes, under TCG: a boot sector of 90
//! bytes stands for an operating system.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Instant;

use super::*;
use crate::base::cmd::{Cmd, Detached};
use crate::base::nic::{Mac, Network, Nic};
use crate::base::plan::{Accel, Disk, DiskFormat, InstanceId, Layer};
use crate::base::platform::Platform;
use crate::base::{Arch, ByteSize, Kind, poll};

mod machines;

pub(super) fn plan(name: &str, folder: &Path, runtime: &Path) -> GuestPlan {
    GuestPlan {
        name: name.parse().unwrap(),
        id: InstanceId::generate().unwrap(),
        arch: Arch::Amd64,
        memory: ByteSize(128 << 20),
        cpus: 1,
        accel: Accel::Tcg,
        disks: vec![Disk::own(folder.join("disk.qcow2"), ByteSize(64 << 20), vec![])],
        seed: None,
        nics: vec![Nic { mac: Mac::generate().unwrap(), network: Network::Full }],
        forwards: vec![],
        host_keys: vec![],
        console_log: folder.join("console.log"),
        backend_log: folder.join("backend.log"),
        runtime: runtime.to_owned(),
        daemon: None,
        tuning: crate::base::plan::Tuning::default(),
        platform: Platform::default(),
        container: None,
        volumes: None,
    }
}

/// A state folder with guests in it; whatever runs is killed when dropped.
pub(super) struct Rig {
    pub(super) home: tempfile::TempDir,
    pub(super) driver: Qemu,
}

impl Rig {
    pub(super) fn new() -> Self {
        // A name with all that trips option parsers.
        Self::below("a,b \"c' ")
    }

    fn below(prefix: &str) -> Self {
        let home = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        let layout = Layout::new(home.path().join("home"), home.path().join("run")).unwrap();
        Rig { home, driver: Qemu::over(layout) }
    }

    /// A guest with an empty disk.
    pub(super) fn plan(&self, name: &str) -> GuestPlan {
        let folder = self.driver.layout.guest(&name.parse().unwrap());
        let id = InstanceId::generate().unwrap();
        let plan = GuestPlan { id: id.clone(), ..plan(name, &folder, &self.driver.layout.runtime(id.short())) };
        fs::create_private_dir(&folder).unwrap();
        Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&plan.disks[0].path).arg("64M").run().unwrap();
        plan
    }

    /// A guest that says `text` on its console; a `polite` one ends at the power button.
    pub(super) fn talking(&self, name: &str, text: &[u8], polite: bool) -> GuestPlan {
        let mut plan = self.plan(name);
        let path = self.home.path().join(format!("{name}.raw"));
        fs::write_new(&path, &boot_disk(text, polite), 0o400).unwrap();
        plan.disks[0].chain = vec![Layer { path, format: DiskFormat::Raw }];
        plan
    }

    pub(super) fn up(&self, plan: &GuestPlan) {
        self.driver.create(plan).unwrap();
        self.driver.start(plan, Begin::Boot).unwrap();
    }

    pub(super) fn running(&self) -> Vec<u32> {
        self.driver
            .list_owned(&mut |error| panic!("{error}"))
            .unwrap()
            .into_iter()
            .filter_map(|owned| owned.pid)
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for owned in self.driver.list_owned(&mut |error| panic!("{error}")).unwrap_or_default() {
            let _ = self.driver.remove_owned(&owned);
        }
    }
}

/// One MiB that a BIOS boots: writes `text` to the first serial port, switches
/// the power button on if `polite`, and waits for it to power off.
fn boot_disk(text: &[u8], polite: bool) -> Vec<u8> {
    let mut code = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0xfc, // xor ax,ax; mov ds,ax; cld
        0xbe, 0x40, 0x7c, 0xba, 0xf8, 0x03, // mov si,0x7c40; mov dx,0x3f8
        0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // lodsb; test al,al; jz on; out dx,al; jmp lodsb
        0xfb, // on: sti
        0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, // PM1_EN (0x602) = power button
        0xf4, 0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf6, // hlt until PM1_STS (0x600) says it
        0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // PM1_CNT (0x604) = sleep enable, type 0: off
        0xf4, 0xeb, 0xfd, // hlt for good
    ];
    if !polite {
        // In place of the enable value.
        code[0x19] = 0x00;
    }
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(&code);
    disk[0x40..0x40 + text.len()].copy_from_slice(text);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

pub(super) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let deadline = Deadline::after(Duration::from_secs(60));
    let found = poll::until(&deadline, Duration::from_millis(10), || Ok(test().then_some(()))).unwrap();
    assert!(found.is_some(), "never came: {what}");
}

fn told(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

#[test]
fn a_guest_from_start_to_finish() {
    let rig = Rig::new();
    let mut plan = rig.talking("web", b"\x1b[31mhello\x1b[0m from\r\nthe guest\r\n\0", true);
    let seed = rig.home.path().join("se,ed.img");
    fs::write_new(&seed, &[0; 4096], 0o600).unwrap();
    plan.seed = Some(seed);
    plan.forwards = vec![Forward { host: 0, guest: 80 }, Forward { host: 0, guest: 22 }];
    let driver = &rig.driver;
    driver.create(&plan).unwrap();
    driver.create(&plan).unwrap();
    let begin = Instant::now();
    for _ in 0..100 {
        assert_eq!(driver.status(&plan).unwrap(), Status::Stopped);
    }
    told(&format!("status of a stopped guest: {:?}", begin.elapsed() / 100));
    assert_eq!(driver.endpoint(&plan).unwrap(), None);

    let begin = Instant::now();
    driver.start(&plan, Begin::Boot).unwrap();
    told(&format!("start: {:?}", begin.elapsed()));
    let pids = rig.running();
    assert_eq!(pids.len(), 1);
    driver.start(&plan, Begin::Boot).unwrap();
    assert_eq!(rig.running(), pids, "starting what runs starts nothing");
    let begin = Instant::now();
    for _ in 0..100 {
        assert_eq!(driver.status(&plan).unwrap(), Status::Running);
    }
    told(&format!("status: {:?}", begin.elapsed() / 100));

    // The console is logged with nobody connected, privately, and shown without colours.
    eventually("the console's text", || driver.console_tail(&plan, 2).unwrap() == ["hello from", "the guest"]);
    use std::os::unix::fs::PermissionsExt as _;
    for file in [&plan.console_log, &plan.backend_log] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    assert_eq!(std::fs::metadata(&plan.runtime).unwrap().permissions().mode() & 0o777, 0o700);

    // The port that QEMU chose takes connections; the others are filled in and differ.
    let ssh = driver.endpoint(&plan).unwrap().unwrap();
    assert!(ssh.ip().is_loopback());
    std::net::TcpStream::connect(ssh).unwrap();
    let forwards = driver.forwards(&plan).unwrap();
    assert_eq!(forwards.iter().map(|f| f.guest).collect::<Vec<_>>(), [80, 22]);
    assert!(forwards.iter().all(|f| f.host != 0 && f.host != ssh.port()));

    // A held guest is seen as such.
    let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER).unwrap();
    qmp.command("stop", json!({})).unwrap();
    drop(qmp);
    assert_eq!(driver.status(&plan).unwrap(), Status::Paused);
    let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER).unwrap();
    qmp.command("cont", json!({})).unwrap();
    drop(qmp);

    let begin = Instant::now();
    driver.stop(&plan, Stop::Graceful(Duration::from_secs(60))).unwrap();
    told(&format!("graceful stop: {:?}", begin.elapsed()));
    assert_eq!(driver.status(&plan).unwrap(), Status::Stopped);
    driver.stop(&plan, Stop::Graceful(Duration::ZERO)).unwrap();
    driver.stop(&plan, Stop::Force).unwrap();
    assert!(TcpListener::bind(ssh).is_ok(), "the port is free again");

    // A second life; the first one's console stays in the log.
    driver.start(&plan, Begin::Boot).unwrap();
    eventually("the second greeting", || driver.console_tail(&plan, 4).unwrap().len() == 4);
    driver.remove(&plan).unwrap();
    driver.remove(&plan).unwrap();
    assert!(!plan.runtime.exists());
    assert!(driver.list_owned(&mut |error| panic!("{error}")).unwrap().is_empty());
    driver.start(&plan, Begin::Boot).unwrap();
    assert!(plan.runtime.exists(), "the folder of sockets comes back as after a restart of the host");
}

/// The greeting comes once: whatever is loaded went on from where it was saved.
#[rstest::rstest]
#[case::with_its_memory_beside(true)]
#[case::all_in_one_file(false)]
fn what_was_saved_goes_on_elsewhere(#[case] beside: bool) {
    let rig = Rig::new();
    let driver = &rig.driver;
    let one = rig.talking("one", b"hello\r\n\0", true);
    // `,offset=` has a meaning in QEMU's addresses of files.
    let saved = Saved {
        state: rig.home.path().join("st,offset=4,ate"),
        memory: beside.then(|| rig.home.path().join("mem,ory")),
    };
    let memory = saved.memory.as_deref();
    if let Some(path) = memory {
        fs::write_new(path, b"", 0o600).unwrap();
    }
    driver.create(&one).unwrap();
    assert!(driver.save(&one, &saved).unwrap_err().to_string().contains("not running"));
    driver.start(&one, memory.map_or(Begin::Boot, Begin::BootInto)).unwrap();
    eventually("its greeting", || driver.console_tail(&one, 2).unwrap() == ["hello"]);
    driver.release(&one).unwrap();
    assert_eq!(driver.status(&one).unwrap(), Status::Running, "nothing was to be released");

    // A save that fails lets it run on.
    let nowhere = Saved { state: rig.home.path().join("no/state"), ..saved.clone() };
    driver.save(&one, &nowhere).unwrap_err();
    assert_eq!(driver.status(&one).unwrap(), Status::Running);
    driver.save(&one, &saved).unwrap();
    assert_eq!(driver.status(&one).unwrap(), Status::Paused);
    driver.release(&one).unwrap();
    assert_eq!(driver.status(&one).unwrap(), Status::Running, "a save can be called off until the end");
    fs::remove_file(&saved.state).unwrap();
    driver.save(&one, &saved).unwrap();
    driver.stop(&one, Stop::Force).unwrap();
    let content = |path: &Path| fs::read(path, 1 << 30).unwrap();
    let before = memory.map(content);

    let two = GuestPlan { disks: one.disks.clone(), ..rig.plan("two") };
    driver.create(&two).unwrap();
    driver.start(&two, Begin::Empty(memory)).unwrap();
    driver.load(&two, &saved).unwrap();
    assert_eq!(driver.status(&two).unwrap(), Status::Paused);
    driver.release(&two).unwrap();
    driver.connect(&two).unwrap();
    assert_eq!(driver.status(&two).unwrap(), Status::Running);
    driver.stop(&two, Stop::Graceful(Duration::from_secs(60))).unwrap();
    assert_eq!(driver.console_tail(&two, 2).unwrap(), Vec::<String>::new());
    assert!(memory.map(content) == before, "a clone changed the memory that it maps");
}

#[test]
fn nonsense_is_not_loaded_and_nothing_is_left() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    let saved = Saved { state: rig.home.path().join("state"), memory: None };
    fs::write_new(&saved.state, &[7; 5000], 0o600).unwrap();
    rig.driver.create(&plan).unwrap();
    rig.driver.start(&plan, Begin::Empty(None)).unwrap();
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Paused);
    let error = rig.driver.load(&plan, &saved).unwrap_err();
    assert!(!error.causes().is_empty(), "{error}");
    rig.driver.stop(&plan, Stop::Force).unwrap();
    assert!(rig.running().is_empty());
}

#[test]
fn a_deaf_guest_times_out_and_goes_by_force() {
    let rig = Rig::new();
    let plan = rig.talking("deaf", b"up\r\n\0", false);
    rig.up(&plan);
    eventually("the console's text", || rig.driver.console_tail(&plan, 1).unwrap() == ["up"]);
    let error = rig.driver.stop(&plan, Stop::Graceful(Duration::from_millis(300))).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    assert!(error.hints()[0].contains("--force"), "{error}");
    let begin = Instant::now();
    rig.driver.stop(&plan, Stop::Force).unwrap();
    told(&format!("forced stop: {:?}", begin.elapsed()));
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Stopped);
    assert!(fs::list_dir(&plan.runtime).unwrap() == ["guest"], "no socket, no pid file");
}

#[test]
fn the_power_button_is_pressed_again() {
    let rig = Rig::new();
    let plan = rig.talking("early", b"\0", true);
    rig.up(&plan);
    // The firmware is still at work and does not hear the first press.
    rig.driver.stop(&plan, Stop::Graceful(Duration::from_secs(60))).unwrap();
    assert!(rig.running().is_empty());
}

#[test]
fn two_guests_share_a_layer_and_stay_apart() {
    let rig = Rig::new();
    let one = rig.talking("one", b"shared\r\n\0", true);
    let mut two = rig.plan("two");
    two.disks[0].chain.clone_from(&one.disks[0].chain);
    rig.up(&one);
    rig.up(&two);
    for plan in [&one, &two] {
        eventually("the console's text", || rig.driver.console_tail(plan, 1).unwrap() == ["shared"]);
    }
    assert_ne!(rig.driver.endpoint(&one).unwrap(), rig.driver.endpoint(&two).unwrap());
    rig.driver.remove(&one).unwrap();
    assert_eq!(rig.driver.status(&two).unwrap(), Status::Running);
    assert_eq!(rig.driver.status(&one).unwrap(), Status::Stopped);
    let owned = rig.driver.list_owned(&mut |error| panic!("{error}")).unwrap();
    assert_eq!(owned.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["two"]);
}

#[test]
fn a_killed_guest_is_seen_dead_and_starts_again() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.up(&plan);
    let process = Process::of(&plan).unwrap().unwrap();
    process.end(Duration::ZERO).unwrap();
    assert!(!rig.driver.status(&plan).unwrap().is_alive());
    rig.up(&plan);
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Running);
    // SIGKILL leaves sockets and pid file; they are in nobody's way.
    for pid in rig.running() {
        Cmd::new("kill").args(["-9", &pid.to_string()]).run().unwrap();
    }
    eventually("its death", || rig.driver.status(&plan).unwrap() == Status::Died);
    assert!(RuntimeFiles::new(&plan.runtime).qmp().exists());
    rig.up(&plan);
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Running);
}

/// A foreign process, killed when dropped.
struct Sleep(Detached);

impl Sleep {
    fn start(folder: &Path) -> Self {
        let log = fs::open_or_create(&folder.join("sleep.log")).unwrap();
        Sleep(Cmd::new("sleep").arg("600").spawn_detached(log).unwrap())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.0.kill();
    }
}

#[test]
fn a_stale_pid_file_harms_nobody() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.driver.create(&plan).unwrap();
    let mut sleep = Sleep::start(rig.home.path());
    let pid_file = RuntimeFiles::new(&plan.runtime).pid();
    for content in [sleep.0.pid().to_string(), std::process::id().to_string(), "1".into(), "-1".into(), "x".into()] {
        fs::write_atomic(&pid_file, content.as_bytes(), 0o600).unwrap();
        assert_eq!(rig.driver.status(&plan).unwrap(), Status::Died, "{content}");
        rig.driver.stop(&plan, Stop::Force).unwrap();
    }
    // A guest whose pid file names another process is still found, by its arguments.
    rig.driver.start(&plan, Begin::Boot).unwrap();
    fs::write_atomic(&pid_file, sleep.0.pid().to_string().as_bytes(), 0o600).unwrap();
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Running);
    rig.driver.remove(&plan).unwrap();
    assert!(rig.running().is_empty());
    assert!(sleep.0.ended().unwrap().is_none(), "the foreign process lives");
}

#[test]
fn a_guest_without_any_of_its_files_is_still_found() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.up(&plan);
    fs::remove_file(&plan.backend_log).unwrap();
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Running);
    rig.driver.start(&plan, Begin::Boot).unwrap();
    assert_eq!(rig.running().len(), 1);
    fs::remove_dir_all(&plan.runtime).unwrap();
    fs::remove_dir_all(&rig.driver.layout.guest(&plan.name)).unwrap();
    let owned = rig.driver.list_owned(&mut |error| panic!("{error}")).unwrap();
    assert_eq!(owned.len(), 1);
    assert_eq!(owned[0].name, plan.name);
    rig.driver.remove_owned(&owned[0]).unwrap();
    rig.driver.remove_owned(&owned[0]).unwrap();
    assert!(rig.driver.list_owned(&mut |error| panic!("{error}")).unwrap().is_empty());
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Stopped);
}

/// Between its birth and its first instruction, and again while it is buried, a process cannot be told by its arguments.
/// What the kernel says counts: whoever holds the log is the guest's QEMU.
#[test]
fn one_that_has_no_name_yet_is_there() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.driver.create(&plan).unwrap();
    let life = Life::claim(&plan).unwrap().unwrap();
    let mut nameless = Cmd::new("sleep").arg("36000").spawn_detached(life.into_log()).unwrap();
    assert_eq!(rig.driver.glance(&plan).unwrap(), None, "one that lives was not seen");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| rig.driver.status(&plan));
        let started = scope.spawn(|| rig.driver.start(&plan, Begin::Boot));
        assert_eq!(rig.driver.glance(&plan).unwrap(), None);
        assert!(!asked.is_finished(), "{:?}", asked.join());
        assert!(!started.is_finished() && rig.running().is_empty(), "a second one was started: {:?}", started.join());
        nameless.kill();
        started.join().unwrap().unwrap();
        asked.join().unwrap().unwrap();
    });
    assert_eq!((rig.driver.status(&plan).unwrap(), rig.running().len()), (Status::Running, 1));
}

#[test]
fn a_guest_has_one_process_whoever_starts_it() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.driver.create(&plan).unwrap();
    std::thread::scope(|scope| {
        let start = || rig.driver.start(&plan, Begin::Boot);
        let all: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        all.into_iter().for_each(|one| drop(one.join().unwrap().unwrap()));
    });
    assert_eq!(rig.running().len(), 1);
    rig.driver.stop(&plan, Stop::Force).unwrap();
    assert!(rig.running().is_empty() && !process::lives(&plan).unwrap());
}

/// A QEMU that ends in good order takes its pid file with it before anything else.
#[test]
fn one_that_is_stopped_is_one_that_is_gone() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    for _ in 0..10 {
        rig.up(&plan);
        let pid_file = RuntimeFiles::new(&plan.runtime).pid();
        Cmd::new("kill").arg(fs::read_text(&pid_file, 32).unwrap().trim()).run().unwrap();
        poll::wait_for("the end of its pid file", || !pid_file.exists());
        // Its disk is free, and the next one has it.
        assert_ne!(rig.driver.status(&plan).unwrap(), Status::Paused);
    }
}

#[test]
fn a_folder_without_a_process_is_found_and_only_ours_are_removed() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.driver.create(&plan).unwrap();
    let foreign = rig.driver.layout.runtime("foreign");
    fs::create_private_dir(&foreign).unwrap();
    let owned = rig.driver.list_owned(&mut |error| panic!("{error}")).unwrap();
    assert_eq!(owned.len(), 1);
    assert_eq!((owned[0].pid, owned[0].runtime.as_ref()), (None, Some(&plan.runtime)));
    rig.driver.remove_owned(&Owned { runtime: Some(foreign.clone()), ..owned[0].clone() }).unwrap();
    rig.driver.remove_owned(&owned[0]).unwrap();
    assert!(foreign.exists() && !plan.runtime.exists());
    // Another state folder's guests are not ours.
    let other = Qemu::over(Layout::new(rig.home.path().join("other"), rig.home.path().join("run")).unwrap());
    rig.up(&plan);
    assert!(other.list_owned(&mut |error| panic!("{error}")).unwrap().is_empty());
    assert_eq!(rig.driver.list_owned(&mut |error| panic!("{error}")).unwrap().len(), 1);
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left() {
    let rig = Rig::new();
    let mut plan = rig.plan("web");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    plan.forwards = vec![Forward { host: port, guest: 80 }];
    rig.driver.create(&plan).unwrap();
    let error = rig.driver.start(&plan, Begin::Boot).unwrap_err();
    assert_eq!(error.to_string(), format!("host port {port} is taken by another program"));
    assert!(rig.running().is_empty());
    assert_eq!(rig.driver.status(&plan).unwrap(), Status::Stopped);
    drop(taken);
    rig.driver.start(&plan, Begin::Boot).unwrap();
    assert_eq!(rig.driver.forwards(&plan).unwrap(), plan.forwards);

    plan.forwards.push(Forward { host: port, guest: 81 });
    assert_eq!(rig.driver.create(&plan).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn what_qemu_says_is_in_the_error() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    rig.driver.create(&plan).unwrap();
    fs::remove_file(&plan.disks[0].path).unwrap();
    let error = rig.driver.start(&plan, Begin::Boot).unwrap_err();
    assert!(error.causes().iter().any(|cause| cause.contains("No such file")), "{error} {:?}", error.causes());
    assert!(error.causes().iter().all(|cause| !cause.contains("qemu-system")), "{:?}", error.causes());
    assert!(error.hints().iter().any(|hint| hint.contains("backend.log")), "{:?}", error.hints());
    assert!(rig.running().is_empty());

    let one = rig.plan("one");
    rig.up(&one);
    let two = GuestPlan { disks: one.disks.clone(), ..rig.plan("two") };
    rig.driver.create(&two).unwrap();
    let error = rig.driver.start(&two, Begin::Boot).unwrap_err();
    assert!(error.hints().iter().any(|hint| hint.contains("open")), "{error} {:?}", error.causes());
}

#[test]
fn a_disk_that_names_another_file_is_not_believed() {
    let rig = Rig::new();
    let mut plan = rig.talking("web", b"must not boot\r\n\0", true);
    let base = plan.disks[0].chain.remove(0);
    fs::remove_file(&plan.disks[0].path).unwrap();
    Cmd::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&base.path, &plan.disks[0].path])
        .run()
        .unwrap();
    rig.up(&plan);
    let mut qmp = Qmp::connect(&RuntimeFiles::new(&plan.runtime).qmp(), ANSWER).unwrap();
    let nodes = qmp.command("query-named-block-nodes", json!({"flat": true})).unwrap();
    let names: Vec<&str> = nodes.as_array().unwrap().iter().filter_map(|node| node["file"].as_str()).collect();
    assert!(!names.is_empty() && names.iter().all(|name| !name.contains("web.raw")), "{names:?}");
}

#[test]
fn requests_that_cannot_be_are_refused_at_once() {
    let rig = Rig::new();
    let plan = rig.plan("web");
    let long = GuestPlan { runtime: rig.home.path().join("r".repeat(100)), ..plan.clone() };
    let error = rig.driver.create(&long).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.hints()[0].contains("VIRGA_RUNTIME_DIR"));
    assert!(!long.runtime.exists());
    let foreign = GuestPlan { arch: Arch::Arm64, ..plan.clone() };
    assert_eq!(rig.driver.create(&foreign).unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(rig.driver.create(&GuestPlan { cpus: 0, ..plan.clone() }).unwrap_err().kind(), Kind::Usage);
    assert_eq!(rig.driver.create(&GuestPlan { disks: vec![], ..plan }).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn auto_falls_back_with_a_reason_and_kvm_does_not() {
    use crate::driver::kvm::Kvm;
    let emulated = Kvm::Emulated { micros: 10_000 };
    let (accel, note) = accel::decide(Accel::Auto, &emulated).unwrap();
    assert_eq!(accel, Accelerator::Tcg);
    assert_eq!(note.unwrap(), "KVM is there but runs code 2000 times too slowly (emulated): using TCG");
    assert_eq!(accel::decide(Accel::Auto, &Kvm::Fast { micros: 50 }).unwrap(), (Accelerator::Kvm, None));
    for bad in [emulated, Kvm::Absent, Kvm::Denied, Kvm::Broken { reason: "x".into() }] {
        let error = accel::decide(Accel::Kvm, &bad).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.hints().iter().any(|hint| hint.contains("--accel tcg")), "{bad:?}");
    }
}

#[test]
fn the_probe_finds_qemu() {
    let rig = Rig::new();
    let begin = Instant::now();
    let quick = rig.driver.probe(ProbeDepth::Quick);
    told(&format!("quick probe: {:?}", begin.elapsed()));
    assert!(quick.iter().all(|finding| finding.level == crate::driver::Level::Ok), "{quick:?}");
    let full = rig.driver.probe(ProbeDepth::Full);
    let checks: Vec<&str> = full.iter().map(|finding| finding.check.as_str()).collect();
    assert_eq!(checks, ["qemu", "qemu sandbox", "sockets", "kvm"]);
    assert!(full[..3].iter().all(|finding| finding.level == crate::driver::Level::Ok), "{full:?}");
    assert!(full[0].detail.contains("version"), "{full:?}");
}

#[test]
fn forwards_are_read_and_told_apart() {
    let usernet = "Hub -1 (net0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n\
        \x20 TCP[HOST_FORWARD]  16       127.0.0.1 43521       10.0.2.15    22     0     0\r\n\
        \x20 TCP[ESTABLISHED]   17       10.0.2.15 40000       192.0.2.1    80     0     0\r\n\
        \x20 UDP[HOST_FORWARD]  18       127.0.0.1 5353        10.0.2.15    53     0     0\r\n\
        \x20 TCP[HOST_FORWARD]  15               * 2222        10.0.2.15    22     0     0\r\n\
        \x20 TCP[HOST_FORWARD]\r\n  TCP[HOST_FORWARD] 1 2 99999 4 5 6\r\n";
    let actual = network::parse(usernet);
    assert_eq!(actual, [Forward { host: 2222, guest: 22 }, Forward { host: 43521, guest: 22 }]);
    let mut plan = plan("web", Path::new("/g"), Path::new("/r"));
    plan.forwards = vec![Forward { host: 2222, guest: 22 }];
    assert_eq!(network::assign(&plan, actual.clone()).unwrap(), (43521, plan.forwards.clone()));
    plan.forwards = vec![Forward { host: 0, guest: 22 }];
    assert_eq!(network::assign(&plan, actual.clone()).unwrap(), (2222, vec![Forward { host: 43521, guest: 22 }]));
    plan.forwards = vec![Forward { host: 8080, guest: 80 }];
    assert!(network::assign(&plan, actual).is_err());
}
