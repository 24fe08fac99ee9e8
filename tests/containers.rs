//! What containers can do besides running: with real daemons and programs, and a root file system that boots nothing.
//! Its one process sleeps, its programs are the machine's own.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rstest::rstest;
use support::sandbox::Sandbox;
use support::{Home, LONG, Mirror, bare_root, incus, lxc, names, text, wait_for, write};

struct Rig {
    // Before the sandbox: its guests go while there is still a daemon.
    home: Home,
    sandbox: Sandbox,
    driver: &'static str,
    /// Last: cgroups are the machine's, and a sandbox that ends sweeps those that look empty, another's new ones too.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Rig {
    fn new(driver: &'static str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = Home::with_key();
        std::fs::set_permissions(home.path(""), Permissions::from_mode(0o711)).unwrap();
        let root = bare_root(&home);
        let mirror = Mirror::with_image(&home, &root, &["os=bare", "release=one", "version=1"]);
        home.ok([mirror.sync_args(), vec!["--container".into()]].concat());
        let sandbox = match driver {
            "lxc" => lxc::sandbox(&home.path("home")),
            _ => incus::sandbox(&home.path("home")),
        };
        let profile = match driver {
            "lxc" => {
                "printf 'lxc.init.cmd = /bin/sleep 3000\nlxc.mount.entry = /usr usr none bind,ro,create=dir 0 0\n' >/etc/lxc/bare.conf"
            }
            _ => {
                "incus profile create bare && incus profile set bare raw.lxc='lxc.init.cmd = /bin/sleep 3000' &&
                  incus profile device add bare root disk path=/ pool=default &&
                  incus profile device add bare usr disk path=/usr source=/usr readonly=true"
            }
        };
        sandbox.run("sh", &["-c", profile]);
        Rig { home: home.inside(&sandbox), sandbox, driver, _turn: turn }
    }

    /// The words that make a guest; it is started unless they say otherwise.
    fn create<'a>(&'a self, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let words = ["create", name, "--driver", self.driver, "--memory", "128M", "--cpus", "1", "--profile", "bare"];
        let image = if more.iter().any(|word| word.starts_with("os=")) { &[][..] } else { &["os=bare"] };
        [&words[..], image, more].concat()
    }

    /// A command in a guest; returns what it says.
    #[track_caller]
    fn within(&self, name: &str, command: &str) -> String {
        self.home.ok(["exec", name, "--", "sh", "-c", command])
    }

    /// Nothing of any guest.
    #[track_caller]
    fn nothing_left(&self) {
        assert_eq!(names(&self.home.state().join("guests")), Vec::<String>::new());
        match self.driver {
            "lxc" => assert_eq!(names(&self.home.path("lxc")), Vec::<String>::new()),
            _ => assert_eq!(self.sandbox.run("incus", &["list", "--format", "csv"]), ""),
        }
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

#[rstest]
fn programs_run_and_files_come_and_go_without_ssh(#[values("lxc", "incus")] driver: &'static str) {
    let rig = Rig::new(driver);
    rig.home.ok(rig.create("web", &[]));
    programs(&rig);
    files(&rig);
    hostile(&rig);
    stopped(&rig);
    rig.home.ok(["destroy", "web"]);
    rig.nothing_left();
}

/// Input and output byte for byte, arguments as they are, nothing of our environment, its exit code, its terminal.
fn programs(rig: &Rig) {
    let home = &rig.home;
    let said = home.ok(["exec", "web", "-e", "A=b c", "--", "sh", "-c", "id -u; echo \"$A\" \"$1\"", "sh", "x  y"]);
    assert_eq!(said, "0\nb c x  y\n");
    assert!(!rig.within("web", "env").contains("VIRGA"), "{}", rig.within("web", "env"));
    let failed = home.output(["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    let said = (failed.status.code(), text(&failed.stdout), text(&failed.stderr));
    assert_eq!(said, (Some(7), "out\n".into(), "err\n".into()));
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let mut child = home.virga(["exec", "web", "--", "cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, &sent).unwrap());
    let back = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(back.status.success() && back.stdout == bytes, "{} bytes came back", back.stdout.len());
    let error = home.fails(1, ["exec", "web", "--", "/nowhere"]);
    assert!(error.contains("/nowhere"), "{error}");
    if rig.driver == "lxc" {
        // A program's own code is told from that; Incus takes 127 for one that is not there.
        assert_eq!(home.output(["exec", "web", "--", "sh", "-c", "exit 127"]).status.code(), Some(127));
    }
    let at_terminal = home.ok(["exec", "web", "-t", "--", "sh", "-c", "tty; stty size; exit 0"]);
    assert!(at_terminal.starts_with("/dev/") && at_terminal.contains("24 80"), "{at_terminal}");
    assert_eq!(home.output(["exec", "web", "-t", "--", "sh", "-c", "exit 9"]).status.code(), Some(9));

    // Ctrl-C is the program's.
    let trap = "trap 'echo heard; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let mut child = home.virga(["exec", "web", "--", "sh", "-c", trap]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    for pid in support::children(child.id()) {
        support::run("kill", ["-INT", &pid]);
    }
    line.clear();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("heard\n", Some(3)));
}

fn files(rig: &Rig) {
    let home = &rig.home;
    let tree = home.path("tree");
    std::fs::create_dir_all(tree.join("sub dir")).unwrap();
    write(&tree.join("sub dir/it's"), "one\n");
    let large: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    std::fs::write(tree.join("large"), &large).unwrap();
    symlink("/etc/hostname", tree.join("link")).unwrap();
    for (file, mode) in [("sub dir/it's", 0o4751), ("sub dir", 0o2750), ("large", 0o600)] {
        std::fs::set_permissions(tree.join(file), Permissions::from_mode(mode)).unwrap();
    }
    // A folder by its own name, and by another; a file into a folder, as a name, over another file.
    home.fails(2, ["cp", "tree", "web:/tmp"]);
    home.ok(["cp", "-r", "tree", "web:/tmp"]);
    home.ok(["cp", "-r", "tree", "web:/tmp/other"]);
    let error = home.fails(1, ["cp", "-r", "tree", "web:/tmp"]);
    assert!(error.contains("already"), "{error}");
    let listed = rig
        .within("web", "cd /tmp/tree && stat -c '%n %a %u %g' . 'sub dir' 'sub dir/it'\"'\"'s' large && readlink link");
    assert_eq!(listed, ". 755 0 0\nsub dir 750 0 0\nsub dir/it's 751 0 0\nlarge 600 0 0\n/etc/hostname\n");
    write(&home.path("file"), "first\n");
    home.ok(["cp", "file", "web:new"]);
    write(&home.path("file"), "second\n");
    home.ok(["cp", "file", "web:"]);
    home.ok(["cp", "file", "web:/root/new"]);
    assert_eq!(rig.within("web", "cd; cat file new; ls -A | sort | tr '\\n' ' '"), "second\nsecond\nfile new ");
    home.fails(3, ["cp", "file", "web:/no/where"]);
    home.fails(3, ["cp", "missing", "web:/tmp"]);
    home.fails(3, ["cp", "file", "nobody:/tmp"]);

    // And back.
    let back = home.path("back");
    std::fs::create_dir(&back).unwrap();
    home.fails(2, ["cp", "web:/tmp/tree", "back"]);
    home.ok(["cp", "-r", "web:/tmp/tree", "back"]);
    home.ok(["cp", "-r", "web:/tmp/tree", "back/named"]);
    home.fails(1, ["cp", "-r", "web:/tmp/tree", "back/named/../named/../"]);
    for folder in ["tree", "named"] {
        let folder = back.join(folder);
        assert_eq!(std::fs::read(folder.join("large")).unwrap(), large);
        assert_eq!((mode(&folder.join("sub dir")), mode(&folder.join("sub dir/it's"))), (0o750, 0o751));
        assert_eq!(std::fs::read_link(folder.join("link")).unwrap(), Path::new("/etc/hostname"));
    }
    home.ok(["cp", "web:new", "back"]);
    home.ok(["cp", "web:/tmp/tree/link", "back/new"]);
    assert_eq!(std::fs::read_to_string(back.join("new")).unwrap(), "web\n");
    home.fails(3, ["cp", "web:/no/where", "back"]);
    home.fails(3, ["cp", "web:/root/new", "no/where"]);
    home.fails(2, ["cp", "-r", "web:/", "back"]);
    assert_eq!(names(&back), ["named", "new", "tree"]);
}

/// Nothing that a guest does leads out of the folder that it is copied to.
fn hostile(rig: &Rig) {
    let home = &rig.home;
    let (into, outside) = (home.path("into"), home.path("outside"));
    std::fs::create_dir(&into).unwrap();
    std::fs::create_dir(&outside).unwrap();
    write(&outside.join("theirs"), "theirs\n");
    // A link and, on the way of a second copy, a file that would go through it.
    rig.within("web", &format!("mkdir -p /tmp/bad && ln -s {} /tmp/bad/link", outside.display()));
    home.ok(["cp", "-r", "web:/tmp/bad", "into"]);
    rig.within("web", "rm /tmp/bad/link; mkdir /tmp/bad/link; echo ours >/tmp/bad/link/theirs");
    home.fails(1, ["cp", "-r", "web:/tmp/bad", "into"]);
    // A link of ours where the file goes is replaced, not followed.
    symlink(outside.join("theirs"), into.join("new")).unwrap();
    home.ok(["cp", "web:/root/new", "into"]);
    assert!(into.join("new").symlink_metadata().unwrap().is_file());
    if rig.driver == "lxc" {
        forged(rig);
    }
    assert_eq!(names(&outside), ["theirs"]);
    assert_eq!(std::fs::read_to_string(outside.join("theirs")).unwrap(), "theirs\n");
}

/// The guest's `tar` says what it likes: names that lead out, other names, links and pipes in place of a file.
fn forged(rig: &Rig) {
    rig.within("web", "mount -t tmpfs none /usr/local/sbin; ln -s / /tmp/wanted-link; mkfifo /tmp/wanted-pipe");
    let before = names(&rig.home.path("into"));
    for forge in [
        "-cPf - --transform s,.*,../outside/evil, /root/new",
        "-cPf - --transform s,.*,/tmp/evil, /root/new",
        "-cf - -C /root --transform s,new,other, new",
        "-cf - -C /tmp --transform s,wanted-link,wanted, wanted-link",
        "-cf - -C /tmp --transform s,wanted-pipe,wanted, wanted-pipe",
        "-cf - -C / --transform s,^dev,wanted, dev/null",
        "-cf - -C /root --transform s,new,wanted, new new",
        "-cf - -C /root --transform s,new,wanted, new file",
    ] {
        let script = format!("#!/bin/sh\nexec /usr/bin/tar {forge}\n");
        let make = "cat >/usr/local/sbin/tar; chmod 755 /usr/local/sbin/tar; mkdir -p /tmp/wanted";
        let mut child = rig.home.virga(["exec", "web", "--", "sh", "-c", make]).stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        let error = rig.home.fails(5, ["cp", "-r", "web:/tmp/wanted", "into"]);
        assert_eq!(names(&rig.home.path("into")), before, "{forge}: {error}");
    }
    rig.within("web", "umount /usr/local/sbin");
}

/// What does not run is entered by whoever keeps its files; the others say so.
fn stopped(rig: &Rig) {
    let home = &rig.home;
    home.ok(["suspend", "web"]);
    assert!(home.fails(1, ["cp", "web:new", "back"]).contains("virga resume web"));
    home.ok(["stop", "--force", "web"]);
    assert!(home.fails(1, ["exec", "web", "true"]).contains("virga start web"));
    if rig.driver == "lxc" {
        assert!(home.fails(1, ["cp", "web:new", "back"]).contains("virga start web"));
        return;
    }
    home.ok(["cp", "file", "web:/root/later"]);
    home.ok(["cp", "web:later", "back/later"]);
    assert_eq!(std::fs::read_to_string(home.path("back/later")).unwrap(), "second\n");
    home.ok(["start", "web"]);
    assert_eq!(rig.within("web", "cat /root/later"), "second\n");
}

#[rstest]
fn a_container_becomes_an_image_without_being_itself(#[values("lxc", "incus")] driver: &'static str) {
    let rig = Rig::new(driver);
    let home = &rig.home;
    home.ok(rig.create("web", &[]));
    let dress = "cd /; echo 0123 >etc/machine-id; ln etc/machine-id etc/again; echo key >etc/ssh/ssh_host_ed25519_key; \
                 echo line >var/log/auth.log; mkdir -p root/.ssh srv; echo key >root/.ssh/authorized_keys; \
                 echo kept >srv/file; chown 1000:50 srv/file; chmod 4751 srv/file; ln srv/file srv/linked; ln -s ../srv srv/up; \
                 touch tmp/left; setcap cap_net_raw+ep srv/file";
    rig.within("web", dress);
    let error = home.fails(1, ["publish", "web"]);
    assert!(error.contains("virga stop web"), "{error}");
    home.ok(["stop", "--force", "web"]);
    home.fails(2, ["publish", "web", "nonsense"]);
    let id = home.ok(["publish", "web", "role=front"]);

    let listed = home.json(["images", "role=front"]);
    let kinds: Vec<&str> = listed.as_array().unwrap().iter().map(|image| image["ftype"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["incus.tar.xz", "root.tar.xz"], "{listed}");
    assert_eq!((&listed[1]["keys"]["os"], &listed[1]["keys"]["published"]), (&"bare".into(), &"web".into()));
    assert_eq!(listed[1]["id"], id.trim());
    assert!(home.ok(["images"]).contains(" own "), "{}", home.ok(["images"]));
    home.ok(["prune"]);
    assert!(home.ok(["images", "verify"]).contains("4 sound"));

    // The image of the same system is still the one that is meant unless the new one is named.
    home.ok(rig.create("plain", &["--no-start"]));
    for (name, filter) in [("one", "os=bare published=web"), ("two", "os=bare role=front")] {
        home.ok(rig.create(name, &filter.split(' ').collect::<Vec<_>>()));
        let look = "cd /; wc -c <etc/machine-id; ls etc/ssh tmp root/.ssh var/log; stat -c '%a %u %g %h' srv/file; \
                    cat srv/linked; readlink srv/up; getcap srv/file; cat etc/hostname";
        let expected =
            "0\netc/ssh:\n\nroot/.ssh:\n\ntmp:\n\nvar/log:\n4751 1000 50 2\nkept\n../srv\nsrv/file cap_net_raw=ep\n";
        let said = home.output(["exec", name, "--", "sh", "-c", look]);
        assert_eq!(text(&said.stdout), format!("{expected}{name}\n"), "{}", text(&said.stderr));
    }
    home.ok(["start", "plain"]);
    assert_eq!(home.output(["exec", "plain", "--", "test", "-e", "/srv/file"]).status.code(), Some(1));

    if driver == "incus" {
        let fingerprint = home.ok(["publish", "web", "--to", "daemon", "--alias", "front"]);
        let said = rig.sandbox.run("incus", &["image", "info", "front"]);
        assert!(said.contains(fingerprint.trim()) && said.contains("os: bare"), "{said}");
        home.fails(1, ["publish", "web", "--to", "daemon", "--alias", "front"]);
        // The daemon's copies of what passes through it do not stay; the one that was asked for does.
        home.ok(["destroy", "one", "two", "plain"]);
        home.ok(["prune"]);
        assert!(rig.sandbox.run("incus", &["image", "list", "--format", "csv", "-c", "l"]).contains("front"));
    } else {
        assert!(home.fails(1, ["publish", "web", "--to", "daemon"]).contains("no daemon"));
        home.ok(["destroy", "one", "two", "plain"]);
    }
    home.ok(["destroy", "web"]);
    rig.nothing_left();
}

#[rstest]
fn folders_ports_and_limits(#[values("lxc", "incus")] driver: &'static str) {
    let rig = Rig::new(driver);
    let home = &rig.home;
    let incus = driver == "incus";
    let shared = home.path("a folder");
    std::fs::create_dir(&shared).unwrap();
    write(&shared.join("file"), "ours\n");
    // Through the folder of the test, which lets only its owner list it.
    let (first, second) = ("a folder:/srv/www", format!("{}:/srv/read only", shared.display()));
    let create = rig.create("web", &["--no-start"]);
    let create: Vec<&str> =
        create.into_iter().filter(|word| !["--memory", "128M", "--cpus", "1"].contains(word)).collect();
    for wrong in ["cpu=2,cpu=1", "cpu=x", "cpu", "memory=no", "swap=1G"] {
        home.fails(2, [&create[..], &["--limit", wrong]].concat());
    }
    home.fails(2, [&create[..], &["--limit", "cpu=1", "--memory", "1G"]].concat());
    home.ok(
        [&create[..], &["--limit", if incus { "cpu=1,memory=96MiB,disk=1GiB" } else { "cpu=1,memory=96MiB" }]].concat()
    );

    home.ok(["attach", "web", "--folder", first]);
    home.fails(1, ["attach", "web", "--folder", first]);
    home.fails(2, ["attach", "web", "--folder", "a folder:/"]);
    home.fails(2, ["attach", "web", "--folder", "a folder:../x"]);
    home.fails(3, ["attach", "web", "--folder", "nowhere:/srv/x"]);
    home.fails(1, ["attach", "web", "--size", "1G"]);
    home.ok(["attach", "web", "--folder", &second, "--read-only"]);
    home.ok(["start", "web"]);
    assert_eq!(rig.within("web", "cat '/srv/www/file' '/srv/read only/file'; nproc"), "ours\nours\n1\n");
    // Its root is the folder's owner there, and the host's owner here.
    assert_eq!(rig.within("web", "echo theirs >/srv/www/made; stat -c %u /srv/www/file /srv/www/made"), "0\n0\n");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&shared.join("made").metadata().unwrap()), 0);
    assert_ne!(home.output(["exec", "web", "--", "touch", "/srv/read only/made"]).status.code(), Some(0));
    if !incus {
        assert!(home.fails(1, ["detach", "web", "/srv/www"]).contains("virga stop web"));
        assert!(home.fails(1, ["port", "add", "web", "0:80"]).contains("forwards"));
        assert!(home.fails(1, ["resize", "web", "--memory", "64M"]).contains("virga stop web"));
        home.ok(["stop", "--force", "web"]);
        home.fails(1, ["resize", "web", "--disk", "1G"]);
    }
    home.ok(["resize", "web", "--memory", "64M"]);
    home.ok(["detach", "web", "/srv/read only"]);
    home.fails(3, ["detach", "web", "/srv/read only"]);
    if !incus {
        home.ok(["start", "web"]);
    }
    assert_eq!(rig.within("web", "cat '/srv/read only/file' 2>/dev/null; cat /srv/www/file"), "ours\n");
    // What its one process is held to; nothing mounts cgroups in it.
    let limit = "pid=$(pgrep -f '^/bin/sleep 3000') && for place in $(cut -d: -f3 /proc/$pid/cgroup); do
        cat /sys/fs/cgroup/$place/memory.max /sys/fs/cgroup/memory/$place/memory.limit_in_bytes 2>/dev/null; done; true";
    let limits = rig.sandbox.run("sh", &["-c", limit]);
    assert!(limits.lines().any(|limit| limit == (64 << 20).to_string()), "{limits}");
    if incus {
        ports(&rig);
    }
    home.ok(["stop", "--force", "web"]);
    home.ok(["destroy", "web"]);
    assert_eq!(names(&shared), ["file", "made"]);
    rig.nothing_left();
}

/// Ports that come and go as it runs; those that stay lead where they led.
fn ports(rig: &Rig) {
    let home = &rig.home;
    let serve = "ip link set lo up; nohup python3 -c 'import socket\ns = socket.create_server((\"127.0.0.1\", 80))\nwhile 1: c, _ = s.accept(); c.send(b\"hello\"); c.close()' >/dev/null 2>&1 &";
    rig.within("web", serve);
    let ask = |port: &str| {
        let ask =
            "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(9).decode())";
        text(&rig.sandbox.command("python3").args(["-c", ask, port]).output().unwrap().stdout)
    };
    let chosen = home.ok(["port", "add", "web", "0:80"]);
    let (host, guest) = chosen.trim().split_once(':').unwrap();
    assert_eq!(guest, "80");
    wait_for("an answer", LONG, || ask(host) == "hello\n");
    home.ok(["port", "add", "web", "18080:80"]);
    home.fails(1, ["port", "add", "web", "18080:81"]);
    assert_eq!((ask(host), ask("18080")), ("hello\n".into(), "hello\n".into()));
    home.ok(["resize", "web", "--memory", "96M"]);
    home.ok(["port", "remove", "web", chosen.trim()]);
    home.fails(3, ["port", "remove", "web", chosen.trim()]);
    assert_eq!((ask(host), ask("18080")), (String::new(), "hello\n".into()));
    home.ok(["port", "remove", "web", "18080:80"]);
    home.ok(["resize", "web", "--memory", "64M"]);
}

#[test]
fn a_container_goes_into_a_file_and_another_comes_out_of_it() {
    let rig = Rig::new("incus");
    let home = &rig.home;
    home.ok(rig.create("web", &["--nesting"]));
    rig.within("web", "echo kept >/root/kept; chown 7:8 /root/kept");
    assert!(home.fails(1, ["export", "web", "web.virga"]).contains("virga stop web"));
    home.ok(["stop", "--force", "web"]);
    // What somebody gave it at the daemon must not come with it: the file may be anybody's.
    rig.sandbox.run("incus", &["config", "set", "web", "raw.lxc=lxc.hook.pre-start = /bin/true", "user.theirs=x"]);
    rig.sandbox.run("incus", &["config", "device", "add", "web", "host", "disk", "source=/", "path=/host"]);
    home.ok(["export", "web", "web.virga"]);
    assert_eq!(mode(&home.path("web.virga")), 0o600);
    home.fails(1, ["export", "web", "web.virga"]);
    home.fails(1, ["import", "web.virga"]);
    home.ok(["import", "web.virga", "other"]);
    let shown = rig.sandbox.run("incus", &["config", "show", "other"]);
    assert!(!shown.contains("raw.lxc") && !shown.contains("user.theirs") && !shown.contains("path: /host"), "{shown}");
    assert!(shown.contains("security.nesting: \"true\"") && shown.contains("- bare"), "{shown}");
    let who = |name: &str| home.json(["info", name])["id"].as_str().unwrap().to_owned();
    assert_ne!(who("web"), who("other"));
    home.ok(["start", "other"]);
    assert_eq!(
        rig.within("other", "cat /root/kept; stat -c '%u %g' /root/kept; cat /etc/hostname"),
        "kept\n7 8\nother\n"
    );
    let keys =
        ["web", "other"].map(|name| std::fs::read(home.state().join("guests").join(name).join("known_hosts")).unwrap());
    assert_ne!(keys[0], keys[1]);
    assert!(rig.within("other", "cat /var/lib/cloud/seed/nocloud-net/meta-data").contains(&who("other")));

    // Under its own name once that is free; not what is cut short or something else.
    home.ok(["destroy", "web"]);
    home.ok(["import", "web.virga"]);
    let whole = std::fs::read(home.path("web.virga")).unwrap();
    std::fs::write(home.path("cut"), &whole[..whole.len() / 2]).unwrap();
    home.fails(1, ["import", "cut", "third"]);
    home.fails(5, ["import", "bare.root.tar.xz", "third"]);
    home.fails(3, ["import", "none", "third"]);
    home.ok(["stop", "--force", "other"]);
    home.ok(["destroy", "web", "other"]);
    home.ok(rig.create("bare", &["--no-start", "--privileged"]));
    home.ok(["export", "bare", "bare.virga"]);
    assert!(home.fails(5, ["import", "bare.virga", "other"]).contains("--privileged"));
    home.ok(["import", "bare.virga", "other", "--privileged"]);
    home.ok(["destroy", "bare", "other"]);
    rig.nothing_left();
}

#[rstest]
fn a_container_starts_with_its_host_in_order_and_with_a_delay(#[values("lxc", "incus")] driver: &'static str) {
    let rig = Rig::new(driver);
    let home = &rig.home;
    for name in ["late", "early", "never"] {
        home.ok(rig.create(name, &["--no-start"]));
    }
    home.fails(2, ["start", "never", "--order", "1"]);
    home.ok(["start", "late", "--autostart", "--order", "7", "--delay", "1"]);
    let said = home.output(["start", "early", "--autostart", "--order", "3"]);
    home.ok(["start", "never", "--autostart"]);
    home.ok(["start", "never", "--no-autostart"]);
    let on = |name: &str| home.json(["info", name])["autostart"].clone();
    assert_eq!([on("late"), on("early"), on("never")], [true, true, false].map(serde_json::Value::from));
    home.ok(["stop", "--force", "late", "early", "never"]);
    if driver == "lxc" {
        let path = home.path("lxc").join(std::fs::read_to_string(home.state().join("id")).unwrap().trim());
        let path = path.to_str().unwrap();
        assert!(text(&said.stderr).contains(&format!("lxc-autostart -P {path}")), "{}", text(&said.stderr));
        let listed = rig.sandbox.run("lxc-autostart", &["-P", path, "--list"]);
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["early", "0", "late", "1"], "name and delay");
        rig.sandbox.run("lxc-autostart", &["-P", path]);
        let states = home.json(["list"]);
        let states: Vec<&str> =
            states.as_array().unwrap().iter().map(|guest| guest["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["running", "running", "stopped"]);
    } else {
        let key = |name: &str, key: &str| rig.sandbox.run("incus", &["config", "get", name, key]).trim().to_owned();
        assert_eq!(key("late", "boot.autostart.delay"), "1");
        let priority = |name: &str| key(name, "boot.autostart.priority").parse::<i64>().unwrap();
        assert!(priority("early") > priority("late"));
        assert_eq!(key("never", "boot.autostart"), "false");
    }
    home.ok(["stop", "--force", "late", "early"]);
    home.ok(["destroy", "late", "early", "never"]);
    rig.nothing_left();
}
