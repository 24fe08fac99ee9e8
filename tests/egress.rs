//! What a guest reaches: the world, and not the host that it runs on. A host of its own with services on all its addresses,
//! a world behind it with the address that clouds have for their logins, and guests that try every door.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::Path;

use support::sandbox::Sandbox;
use support::{Home, LONG, SOLO, in_guest, text, tiny, wait_for};

/// `$1` is the sandbox's folder. The host is 10.88.0.1, the world 10.88.0.2; both answer on port 7 at every address that
/// they have, and write down at which one they were asked.
const SET_UP: &str = r#"
set -eu
dir=$1
cat >"$dir/answer.py" <<'END'
import socket, sys, threading
log = open(sys.argv[1], 'a', buffering=1)
def answer(family, any):
    server = socket.create_server((any, 7), family=family, backlog=1000)
    while True:
        client, _ = server.accept()
        print(client.getsockname()[0], file=log)
        client.send(b'here\n')
        client.close()
threading.Thread(target=answer, args=(socket.AF_INET6, '::')).start()
answer(socket.AF_INET, '0.0.0.0')
END
ip link set lo up
ip link add host0 type veth peer name world0
unshare --net sh -c 'touch "$0/world"; exec sleep infinity' "$dir" &
world=$!
until [ -e "$dir/world" ]; do sleep 0.1; done
ip link set world0 netns $world
ip address add 10.88.0.1/24 dev host0
ip address add fd88::1/64 dev host0 nodad
ip link set host0 up
in_world() { nsenter --target $world --net -- "$@"; }
in_world ip link set lo up
for address in 10.88.0.2/24 169.254.169.254/32 fd88::2/64; do
    in_world ip address add $address dev world0
done
in_world ip link set world0 up
ip route add default via 10.88.0.2
ip route add default via fd88::2
python3 "$dir/answer.py" "$dir/asked.host" &
in_world python3 "$dir/answer.py" "$dir/asked.world" &
# As systemd-resolved: the host's name server is on its loopback.
echo 'nameserver 127.0.0.1' >"$dir/resolv.conf"
mount --bind "$dir/resolv.conf" "$(readlink -f /etc/resolv.conf)"
dnsmasq --conf-file=/dev/null --no-hosts --no-resolv --listen-address=127.0.0.1 --bind-interfaces \
    --address=/host.test/10.88.0.1 --address=/world.test/10.88.0.2 --pid-file="$dir/dnsmasq.pid"
touch "$dir/ready"
while :; do sleep 1000 & wait; done
"#;

/// Who is asked at every address of QEMU's network, and at those that the host has besides: nobody says what is shut.
const TRY_ALL: &str = "for to in $(seq -f 10.0.2.%g 0 255) 255.255.255.255 127.0.0.1 10.88.0.1 169.254.169.254 host.test \
    fec0::2 fec0::3 fec0::7 fe80::2 fd88::1; do nc -w 20 $to 7 </dev/null & done 2>/dev/null; wait";

#[test]
fn a_guest_reaches_the_world_and_not_its_host() {
    let home = Home::with_key();
    let sandbox = Sandbox::made("a host and a world", SET_UP, &home.path("home"));
    let asked = |who: &str| {
        let log = sandbox.outside(&format!("asked.{who}"));
        let mut all: Vec<String> = std::fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
        std::fs::write(&log, "").unwrap();
        all.sort();
        all.dedup();
        all
    };
    wait_for("the services", LONG, || {
        ["host", "world"].iter().all(|who| sandbox.outside(&format!("asked.{who}")).exists())
    });
    let home = home.inside(&sandbox);
    let create = |name: &str, network: &[&str]| {
        let args = ["create", name, "--image", tiny().to_str().unwrap()];
        let output = home.output(args.iter().chain(&SOLO).chain(network));
        assert!(output.status.success(), "{}", text(&output.stderr));
        home.ok(["wait", name, "--timeout", "20m"]);
        text(&output.stderr)
    };

    // Else this shows nothing.
    let said = create("open", &["--network", "full"]);
    assert!(said.contains("'open' reaches the services of this host"), "{said}");
    in_guest(&home, "open", TRY_ALL);
    assert_eq!(asked("host"), ["10.88.0.1", "127.0.0.1", "::1", "fd88::1"]);
    assert_eq!(asked("world"), ["169.254.169.254"]);
    // Its exit code says that there is no address of IPv6.
    let ask = |name: &str| in_guest(&home, name, "nslookup world.test 10.0.2.2 || true");
    assert!(ask("open").contains("10.88.0.2"));

    let said = create("shut", &[]);
    assert!(!said.contains("reaches"), "{said}");
    in_guest(&home, "shut", TRY_ALL);
    assert_eq!(asked("host"), Vec::<String>::new());
    assert_eq!(asked("world"), Vec::<String>::new());
    assert!(!ask("shut").contains("10.88.0.2"));
    // By its name, which the host's own name server knows.
    assert_eq!(
        in_guest(&home, "shut", "nc -w 60 world.test 7 </dev/null; nc -w 60 fd88::2 7 </dev/null"),
        "here\nhere\n"
    );
    assert_eq!(asked("world"), ["10.88.0.2", "fd88::2"]);

    each_others_ports(&home);
    home.ok(["stop", "shut"]);
    home.ok(["start", "shut"]);
    home.ok(["wait", "shut", "--timeout", "20m"]);
    in_guest(&home, "shut", TRY_ALL);
    assert_eq!(asked("host"), Vec::<String>::new());
    assert_eq!(in_guest(&home, "shut", "nc -w 60 10.88.0.2 7 </dev/null"), "here\n");
    asked("world");

    create("alone", &["--network", "none"]);
    in_guest(&home, "alone", &format!("({TRY_ALL}); ! nc -w 20 10.88.0.2 7 </dev/null"));
    assert_eq!((asked("host"), asked("world")), (vec![], vec![]));
    home.ok(["destroy", "open", "shut", "alone"]);
    home.assert_nothing_left();
}

/// Another guest's SSH is at a port of the host's loopback.
fn each_others_ports(home: &Home) {
    let listed: Vec<serde_json::Value> = serde_json::from_str(&home.ok(["list", "--format", "json"])).unwrap();
    let banner = |from: &str, of: &str| {
        let guest = listed.iter().find(|guest| guest["name"] == of).unwrap();
        let port = guest["ssh"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
        in_guest(home, from, &format!("sleep 3 | nc -w 20 10.0.2.2 {port} | head -c 8"))
    };
    assert_eq!((banner("open", "shut").as_str(), banner("shut", "open").as_str()), ("SSH-2.0-", ""));
}

/// A guest's network is what its keeper lets it be: without one nothing goes out, and nobody waits for it.
#[test]
fn without_its_keeper_a_guest_reaches_nobody() {
    let home = Home::with_key();
    home.ok(["create", "g", "--image", tiny().to_str().unwrap()].iter().chain(&SOLO));
    home.ok(["wait", "g", "--timeout", "20m"]);
    let keepers: Vec<String> = home.processes().into_iter().filter(|line| line.contains("__console")).collect();
    assert_eq!(keepers.len(), 1, "{keepers:?}");
    let pid = keepers[0].split(':').next().unwrap();
    support::run("kill", ["-KILL", pid]);
    wait_for("its end", LONG, || !Path::new("/proc").join(pid).exists());
    home.fails(4, ["wait", "g", "--timeout", "5s"]);
    // QEMU does not mind.
    home.ok(["stop", "g", "--timeout", "5m"]);
    home.ok(["start", "g"]);
    home.ok(["wait", "g", "--timeout", "20m"]);
    home.ok(["destroy", "g"]);
    home.assert_nothing_left();
}
