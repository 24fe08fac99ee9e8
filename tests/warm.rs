//! Warm starts with real guests: what clones of one template share and what
//! they must not, and which templates are refused.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use support::{
    Home, SMALL, WARM, clock_is_right, cloud_inits_programs_know, image, in_guest, names, run, sha256, text, write,
};

/// What a clone is asked, one line an answer. The last one: for three connections the remainder of a TCP sequence number
/// once the clock is taken off (`net/core/secure_seq.c` adds one for every 64 ns), before and after.
const QUESTIONS: &str = r#"
hostname
cat /etc/machine-id /proc/sys/kernel/random/boot_id
cat /var/lib/cloud/data/instance-id
cat /sys/class/net/e*/address
sudo cut -d" " -f2 /etc/ssh/ssh_host_ed25519_key.pub
rm -f /tmp/k; ssh-keygen -q -t ed25519 -N "" -f /tmp/k; cut -d" " -f2 /tmp/k.pub
date +%s.%N
sudo python3 -c '
import socket, struct, time
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.bind(("lo", 0))
for port in (40001, 40002, 40003):
    tcp = socket.socket()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("127.0.0.1", port))
    before = time.time_ns() >> 6
    tcp.connect(("127.0.0.1", 22))
    after = time.time_ns() >> 6
    while True:
        packet = raw.recv(2048)
        if packet[23] == 6 and packet[34:36] == struct.pack(">H", port) and packet[47] & 2:
            break
    number = struct.unpack(">I", packet[38:42])[0]
    print((number - after) % 2**32, (number - before) % 2**32, end=" ")
print()
'
"#;

struct Clone {
    answers: Vec<String>,
    vmgenid: String,
    drawn: String,
}

fn warm(home: &Home, name: &str, more: &[&str]) -> String {
    let args = ["-v", "create", name, "--warm", "--image", image().to_str().unwrap()];
    let output = home.output(args.iter().chain(&SMALL).chain(more));
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// QEMU's own word for the generation id that the guest is shown.
fn vmgenid(home: &Home, name: &str) -> String {
    let record = std::fs::read(home.state().join("guests").join(name).join("guest.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let socket = Path::new(record["plan"]["runtime"].as_str().unwrap()).join("qmp");
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for command in ["qmp_capabilities", "query-vm-generation-id"] {
        writeln!(stream, "{{\"execute\": \"{command}\", \"id\": 1}}").unwrap();
    }
    lines.find_map(|line| Some(line.unwrap().split_once("\"guid\": \"")?.1.split('"').next()?.to_owned())).unwrap()
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    names(folder).into_iter().map(|name| (name.clone(), sha256(&folder.join(name)))).collect()
}

fn template_folder(home: &Home) -> PathBuf {
    let listed = home.json(["template", "list"]);
    PathBuf::from(listed[0]["folder"].as_str().unwrap())
}

#[test]
fn clones_are_machines_of_their_own_and_bad_templates_are_refused() {
    let home = Home::with_key().warm_apart();
    let folder = template_folder(&home);
    let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let before = files(&folder);

    write(&home.path("once.sh"), "#!/bin/sh\necho once >>/var/lib/from-script\n");
    let once = home.path("once.sh");
    let more = |name: &str| if name == "three" { vec!["--run-script-once", once.to_str().unwrap()] } else { vec![] };
    let clones: Vec<Clone> =
        ["one", "two", "three", "four", "five"].map(|name| clone_of(&home, name, &more(name))).into();
    all_differ(&clones);
    assert_eq!(files(&folder), before, "a clone changed the template");
    home.ok(["destroy", "one"]);
    home.ok(["stop", "three"]);
    home.fails(1, ["wait", "three", "--timeout", "20m"]);
    assert_eq!(in_guest(&home, "two", "hostname"), "two\n");
    cloud_inits_programs_know(&home, "two");
    home.ok(["rename", "three", "drei"]);
    started_again(&home, "drei", &clones[2]);
    for (name, clone) in [("four", &clones[3]), ("five", &clones[4])] {
        assert_eq!(in_guest(&home, name, "cat /etc/machine-id").trim(), clone.answers[1], "{name}");
    }
    let error = home.fails(1, ["template", "remove", &id]);
    assert!(error.contains("five"), "its clones are not named: {error}");
    saved_and_restored(&home);
    home.ok(["destroy", "two", "drei", "four", "five"]);

    user_data_runs_in_a_clone(&home);
    damaged_files_are_refused(&home, &folder);
    another_qemu_is_refused(&home);
    home.ok(["template", "remove", &id]);
    assert_eq!(home.json(["template", "list"]), serde_json::json!([]));
    home.assert_nothing_left();
}

/// Its orders never reach it: it is killed, and never handed out.
#[test]
fn a_clone_that_does_not_renew_is_killed() {
    let home = Home::with_key().warm();
    let deaf = r#"case " $* " in *" -incoming "*)
  for arg; do
    shift
    case $arg in socket,id=renewal,*) arg=socket,id=nobody,${arg#socket,id=renewal,} ;; esac
    set -- "$@" "$arg"
  done
  set -- "$@" -chardev null,id=renewal ;;
esac"#;
    let output = home
        .virga(["create", "cold", "--image", image().to_str().unwrap()].into_iter().chain(WARM))
        .env("PATH", wrapped(&home, deaf))
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("said nothing") && said.contains("starting cold"), "{said}");
    let machines: Vec<String> = home.processes().into_iter().filter(|line| line.contains("qemu-system")).collect();
    assert!(machines.len() == 1 && !machines[0].contains("-incoming"), "{machines:?}");
    assert_eq!(names(&home.state().join("guests")), ["cold"]);
    home.ok(["destroy", "cold"]);
    home.assert_nothing_left();
}

/// A `PATH` with a QEMU that does this first.
fn wrapped(home: &Home, first: &str) -> String {
    let real = run("sh", ["-c", "command -v qemu-system-x86_64"]);
    let wrapper = home.path("bin/qemu-system-x86_64");
    std::fs::create_dir(home.path("bin")).unwrap();
    write(&wrapper, &format!("#!/bin/sh\n{first}\nexec {} \"$@\"\n", real.trim()));
    run("chmod", ["755", wrapper.to_str().unwrap()]);
    format!("{}:{}", home.path("bin").display(), std::env::var("PATH").unwrap())
}

fn clone_of(home: &Home, name: &str, more: &[&str]) -> Clone {
    let said = warm(home, name, more);
    let drawn = said.split("drawn=\"").nth(1).unwrap_or_else(|| panic!("no warm start: {said}"));
    home.ok(["wait", name, "--timeout", "20m"]);
    clock_is_right(home, name);
    let answers: Vec<String> = in_guest(home, name, QUESTIONS).lines().map(str::to_owned).collect();
    assert_eq!((answers.len(), answers[0].as_str()), (9, name), "{answers:?}");
    Clone { answers, vmgenid: vmgenid(home, name), drawn: drawn.split('"').next().unwrap().to_owned() }
}

fn all_differ(clones: &[Clone]) {
    for (number, one) in clones.iter().enumerate() {
        for other in &clones[..number] {
            let same = one.answers.iter().zip(&other.answers).find(|(a, b)| a == b);
            assert_eq!(same, None, "two clones share it");
            assert_ne!(one.vmgenid, other.vmgenid);
            assert_ne!(one.drawn, other.drawn, "the same random bytes after the resume");
            let all: Vec<_> = ranges(one).into_iter().zip(ranges(other)).collect();
            // One pair may meet by chance, the likelier the slower the machine is.
            assert!(!all.iter().all(|(a, b)| meet(*a, *b)), "the sequence numbers come from one secret: {all:?}");
        }
    }
}

/// Where each connection's number began: it counts around, in 32 bits.
fn ranges(clone: &Clone) -> Vec<(u32, u32)> {
    let numbers: Vec<u32> = clone.answers[8].split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 6, "{numbers:?}");
    numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

fn meet(a: (u32, u32), b: (u32, u32)) -> bool {
    let within = |low: u32, other: (u32, u32)| low.wrapping_sub(other.0) <= other.1.wrapping_sub(other.0);
    within(a.0, b) || within(b.0, a)
}

/// A clone boots from its disk as the machine that it became, under the name that it was given since: the first boot of
/// its own, in which cloud-init finds nothing to do anew.
fn started_again(home: &Home, name: &str, before: &Clone) {
    home.ok(["start", name]);
    home.ok(["start", name]);
    home.ok(["wait", name, "--timeout", "20m"]);
    let ask = "hostname; cat /etc/machine-id /var/lib/cloud/data/instance-id /sys/class/net/e*/address; \
               sudo cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; cat /var/lib/from-script; \
               cat /proc/sys/kernel/random/boot_id; ls -d /run/virga /etc/systemd/network/*virga* 2>/dev/null || true";
    let answers = in_guest(home, name, ask);
    let [host, machine, instance, mac, key, script, boot] = answers.lines().collect::<Vec<_>>().try_into().unwrap();
    let was = &before.answers;
    assert_eq!([host, machine, instance, mac, key], [name, &was[1], &was[3], &was[4], &was[5]]);
    assert_eq!(script, "once", "a script runs once, not once a boot");
    assert_ne!(boot, was[2], "it did not boot");
}

fn saved_and_restored(home: &Home) {
    let ask = "cat /proc/sys/kernel/random/boot_id";
    in_guest(home, "two", "echo here >/dev/shm/note");
    let before = in_guest(home, "two", ask);
    home.ok(["save", "two"]);
    home.ok(["save", "two"]);
    let listed = home.json(["list"]);
    assert!(listed.as_array().unwrap().iter().any(|guest| guest["name"] == "two" && guest["state"] == "saved"));
    // The time that it misses.
    std::thread::sleep(std::time::Duration::from_secs(3));
    home.ok(["start", "two"]);
    assert_eq!(in_guest(home, "two", &format!("{ask}; cat /dev/shm/note")), format!("{before}here\n"));
    clock_is_right(home, "two");
    assert_eq!(names(&home.state().join("guests/two")).iter().filter(|name| name.starts_with("saved")).count(), 0);

    // What is in a saved guest's memory goes by force alone.
    let state = || {
        let listed = home.json(["list"]);
        let two = listed.as_array().unwrap().iter().find(|guest| guest["name"] == "two").unwrap().clone();
        two["state"].as_str().unwrap().to_owned()
    };
    home.ok(["save", "two"]);
    home.ok(["stop", "two"]);
    assert_eq!(state(), "saved");
    home.ok(["stop", "--force", "two"]);
    assert_eq!(state(), "stopped");
    home.fails(1, ["save", "two"]);
}

fn user_data_runs_in_a_clone(home: &Home) {
    let document = "#cloud-config\nhostname: elsewhere\nwrite_files:\n- path: /etc/mine\n  content: here\n";
    write(&home.path("ud"), document);
    write(&home.path("late"), "#cloud-config\nbootcmd: [[touch, /early]]\n");
    let ud = home.path("ud");
    let more = ["--user-data", ud.to_str().unwrap(), "--wait", "--timeout", "20m"];
    let args = ["-v", "create", "data", "--warm", "--image", image().to_str().unwrap()];
    let output = home.output(args.into_iter().chain(SMALL).chain(more));
    assert!(text(&output.stderr).contains("renewed") && output.status.success(), "{}", text(&output.stderr));
    assert_eq!(in_guest(home, "data", "hostname; cat /etc/mine"), "elsewhere\nhere");
    home.ok(["destroy", "data"]);
    let late = home.path("late");
    let args =
        ["create", "late", "--warm", "--image", image().to_str().unwrap(), "--user-data", late.to_str().unwrap()];
    let output = home.output(args.into_iter().chain(SMALL));
    assert!(text(&output.stderr).contains("starting cold") && text(&output.stderr).contains("bootcmd"));
    home.ok(["destroy", "late"]);
}

/// A start that must be a cold one, and says why.
fn cold(home: &Home, why: &str) {
    let said = warm(home, "cold", &[]);
    assert!(!said.contains("renewed") && said.contains(why), "{said}");
    home.ok(["destroy", "cold"]);
}

fn damaged_files_are_refused(home: &Home, folder: &Path) {
    for name in ["memory", "disk.qcow2", "state"] {
        let path = folder.join(name);
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let error = home.fails(5, ["template", "verify"]);
        assert!(error.contains(name), "{error}");
        cold(home, "is not what was saved");
        file.write_all_at(&byte, at).unwrap();
    }
    let (memory, aside) = (folder.join("memory"), folder.join("aside"));
    let size = memory.metadata().unwrap().len();
    std::fs::rename(&memory, &aside).unwrap();
    cold(home, "is missing");
    // Shorter, and as long as it was but somebody else's.
    for length in [size - 4096, size] {
        std::fs::File::create(&memory).unwrap().set_len(length).unwrap();
        cold(home, "is not what was saved");
    }
    std::fs::rename(&aside, &memory).unwrap();
    let record = folder.join("template.json");
    let good = std::fs::read_to_string(&record).unwrap();
    write(&record, &good.replace("\"cpus\": 2", "\"cpus\": 3"));
    home.fails(5, ["template", "verify"]);
    cold(home, "is that of another");
    write(&record, &good);
    home.ok(["template", "verify"]);
}

fn another_qemu_is_refused(home: &Home) {
    let path = wrapped(home, "[ \"$1\" != --version ] || { echo 'QEMU emulator version 99'; exit; }");
    let args = ["create", "cold", "--warm", "--image", image().to_str().unwrap()];
    let output = home.virga(args.into_iter().chain(SMALL)).env("PATH", path).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("qemu was") && said.contains("version 99"), "{said}");
    home.ok(["destroy", "cold"]);
}
