//! Guests on networks with addresses of their own: a bridge of the test's,
//! libvirt's networks, IPv6, several cards. All of it in namespaces.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::Path;

use support::sandbox::Sandbox;
use support::{Home, SMALL, SOLO, image, in_guest, tiny, write};

const BRIDGE: &str = "\
    ip link add name br7 type bridge && ip address add 10.77.0.1/24 dev br7 && ip link set br7 up && \
    dnsmasq --conf-file=/dev/null --interface=br7 --bind-interfaces --port=0 --dhcp-range=10.77.0.50,10.77.0.99 \
            --dhcp-leasefile=/run/libvirt/br7.leases --pid-file=/run/libvirt/br7.pid";

/// Addresses by DHCPv6 alone.
const SIX: &str = "<network><name>six</name><bridge name='virbr6'/>\
    <ip family='ipv6' address='fd00:77::1' prefix='64'><dhcp><range start='fd00:77::100' end='fd00:77::1ff'/></dhcp></ip>\
    </network>";

#[test]
fn guests_are_found_on_bridges_and_networks_by_both_families() {
    let home = Home::with_key();
    let sandbox = Sandbox::new(&home.path("home"));
    let home = home.inside(&sandbox);
    sandbox.run("sh", &["-ec", BRIDGE]);
    let definition = home.path("six.xml");
    write(&definition, SIX);
    sandbox.run("virsh", &["net-define", definition.to_str().unwrap()]);
    nonsense_is_refused(&home);

    let create = |name: &str, image: &Path, more: &[&str]| {
        let args = ["create", name, "--image", image.to_str().unwrap()];
        home.ok(args.iter().chain(&SOLO).chain(more));
    };
    let mac = "52:54:00:77:00:01";
    create("direct", tiny(), &["--network", "bridge=br7", "--network", "user", "--mac", mac]);
    // One that says nothing by itself: its host asks where it is, and libvirt names it only in between.
    create("kept", tiny(), &["--driver", "libvirt", "--network", "bridge=br7"]);
    create("six", image(), &["--driver", "libvirt", "--network", "network=six"]);
    assert!(sandbox.run("virsh", &["net-list"]).contains("six"), "the network was not started");

    for (name, address) in [("direct", "10.77.0."), ("kept", "10.77.0."), ("six", "[fd00:77::1")] {
        home.ok(["wait", name, "--timeout", "20m", "--for", "ssh"]);
        assert_eq!(in_guest(&home, name, "hostname"), format!("{name}\n"));
        assert!(home.ok(["ip", name]).starts_with(address), "{name} is at {}", home.ok(["ip", name]));
    }
    // The second card is there and gets an address of its own; what leaves the guest goes by the first.
    let cards = in_guest(&home, "direct", "cat /sys/class/net/e*/address; ip -4 route show default");
    assert!(cards.starts_with(mac) && cards.matches("52:54:00:").count() == 2, "{cards}");
    assert!(!cards.contains("10.0.2.2"), "{cards}");
    home.ok(["destroy", "direct", "kept", "six"]);
    home.assert_nothing_left();
}

fn nonsense_is_refused(home: &Home) {
    let fails = |code: i32, driver: &str, network: &[&str]| {
        let args = ["create", "no", "--no-start", "--image", image().to_str().unwrap(), "--driver", driver];
        home.fails(code, args.iter().chain(&SMALL).chain(network))
    };
    let error = fails(3, "qemu", &["--network", "bridge=nowhere"]);
    assert!(error.contains("ip link show type bridge"), "{error}");
    let error = fails(1, "qemu", &["--network", "network=six"]);
    assert!(error.contains("libvirt"), "{error}");
    let error = fails(2, "qemu", &["--network", "bridge=br7", "--port", "0:80"]);
    assert!(error.contains("--port"), "{error}");
    fails(2, "qemu", &["--mac", "52:54:00:00:00:01", "--mac", "52:54:00:00:00:02"]);
    fails(2, "qemu", &["--network", "bridge=a,b"]);
    home.ok([
        "create",
        "late",
        "--image",
        image().to_str().unwrap(),
        "--driver",
        "libvirt",
        "--network",
        "network=none",
        "--no-start",
    ]);
    let error = home.fails(3, ["start", "late"]);
    assert!(error.contains("net-list"), "{error}");
    home.ok(["destroy", "late"]);
}
