//! Real guests: a real Debian image under emulation, entered over real SSH.
//! A boot takes about half a minute, so one guest is booted and much is checked
//! in it; where the boot is not the subject a clone of a template will do.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use support::{
    Home, LONG, Mirror, SMALL, SOLO, WARM, cloud_inits_programs_know, image, in_guest, names, os_release, run, sha256,
    text, tiny, wait_for, write,
};

/// A signed stream → sync → create → wait → ssh → stop → start → destroy.
#[test]
fn a_boot_from_a_signed_stream_and_back() {
    let home = Home::with_key();
    let (os, release) = (os_release("ID"), os_release("VERSION_CODENAME"));
    let filter = format!("release={release}");
    let mirror = Mirror::with_image(&home, image(), &[&format!("os={os}"), &filter, "version=0"]);
    home.ok(mirror.sync_args());
    let blobs = home.state().join("pool/blobs/sha256");
    let blob = blobs.join(&names(&blobs)[0]);

    write(
        &home.path("user-data"),
        "#cloud-config\nwrite_files:\n- path: /etc/from-user-data\n  content: \"it's: here\\n\"\n  permissions: '0640'\n",
    );
    write(&home.path("once.sh"), "#!/bin/sh\necho once >>/var/lib/from-script\n");
    let (user_data, once) = (home.path("user-data"), home.path("once.sh"));
    let free = free_port();
    let port = format!("{free}:8080");
    let extra = [
        "--disk",
        "6G",
        "--ephemeral-disk",
        "1G",
        "--port",
        &port,
        "--user-data",
        user_data.to_str().unwrap(),
        "--run-script-once",
        once.to_str().unwrap(),
    ];
    home.ok(["create", "web", &filter].into_iter().chain(SMALL).chain(extra));
    home.ok(["create", "other", "--no-start", &filter].into_iter().chain(SMALL));
    home.ok(["wait", "web", "--timeout", "20m"]);

    identity_and_first_boot(&home, free);
    seed_is_valid_to_cloud_init(&home);
    cloud_inits_programs_know(&home, "web");
    guests_of_one_image_differ(&home);

    home.ok(["destroy", "web", "other"]);
    drop(mirror);
    home.assert_nothing_left();
    assert!(std::net::TcpListener::bind(("127.0.0.1", free)).is_ok(), "the forwarded port is still taken");
    assert_eq!(blob.file_name().unwrap().to_str().unwrap(), sha256(&blob), "guests changed the image");
}

fn state(home: &Home, name: &str) -> String {
    let listed = home.json(["list"]);
    let guest = listed.as_array().unwrap().iter().find(|guest| guest["name"] == name).unwrap().clone();
    guest["state"].as_str().unwrap().to_owned()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn identity_and_first_boot(home: &Home, port: u16) {
    let web = in_guest(home, "web", "hostname; id -un; sudo cat /etc/from-user-data; cat /var/lib/from-script");
    assert_eq!(web, format!("web\n{}\nit's: here\nonce\n", os_release("ID")));
    let size = in_guest(home, "web", "df --output=size -BM / | tail -1");
    let mib: u64 = size.trim().trim_end_matches('M').parse().unwrap();
    assert!((5400..6144).contains(&mib), "the root file system did not grow: {size}");
    let disks = in_guest(home, "web", "lsblk -bdno SIZE,RO");
    assert!(disks.lines().any(|line| line.trim().starts_with("1073741824")), "no ephemeral disk: {disks}");
    assert!(disks.lines().any(|line| line.trim().ends_with('1')), "the seed is not read-only: {disks}");
    let key = in_guest(home, "web", "sudo cat /etc/ssh/ssh_host_ed25519_key.pub");
    let known = std::fs::read_to_string(home.state().join("guests/web/known_hosts")).unwrap();
    assert!(known.contains(key.split(' ').nth(1).unwrap()), "the injected host key is not in use");

    // The forward: something in the guest answers on the host's loopback, and only there.
    in_guest(home, "web", "nohup python3 -m http.server 8080 --directory /etc >/dev/null 2>&1 &");
    let mut page = String::new();
    wait_for("the forwarded port", LONG, || {
        // QEMU accepts the connection before anybody in the guest does.
        let args = ["-s", "--max-time", "60", &format!("http://127.0.0.1:{port}/hostname")];
        let output = std::process::Command::new("curl").args(args).output();
        page = text(&output.unwrap().stdout);
        page == "web\n"
    });
    let listening = run("ss", ["-Hltn", "sport", "=", &format!(":{port}")]);
    let local = listening.split_whitespace().nth(3).unwrap();
    assert!(local.starts_with("127.0.0.1:"), "the port is open to others: {listening}");
}

/// What makes a guest someone in particular: the one that runs has it from its record, and no two records share any.
fn guests_of_one_image_differ(home: &Home) {
    let [web, other] = ["web", "other"].map(|name| {
        let record = std::fs::read(home.state().join("guests").join(name).join("guest.json")).unwrap();
        let plan = serde_json::from_slice::<serde_json::Value>(&record).unwrap()["plan"].take();
        let keys = plan["host_keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().split(' ').nth(1));
        let keys = keys.map(|key| key.unwrap().to_owned());
        ["/id", "/nics/0/mac"]
            .map(|at| plan.pointer(at).unwrap().as_str().unwrap().to_owned())
            .into_iter()
            .chain(keys)
            .collect::<Vec<_>>()
    });
    assert_eq!((web.len(), other.len()), (4, 4));
    assert_eq!(web.iter().find(|one| other.contains(one)), None, "two guests share it");
    let ask = "cat /var/lib/cloud/data/instance-id /sys/class/net/e*/address; \
               for kind in ed25519 ecdsa; do sudo cut -d' ' -f2 /etc/ssh/ssh_host_${kind}_key.pub; done";
    assert_eq!(in_guest(home, "web", ask).lines().collect::<Vec<_>>(), web, "it is not who its record says");
    let machine = in_guest(home, "web", "cat /etc/machine-id; sudo cat /sys/class/dmi/id/product_uuid");
    let (id, uuid) = machine.split_once('\n').unwrap();
    assert!(id.len() == 32 && web[0].contains(uuid.trim()), "{machine}");
}

/// cloud-init's own verdict on what we wrote, in the guest that read it.
fn seed_is_valid_to_cloud_init(home: &Home) {
    let verdict = in_guest(home, "web", "sudo cloud-init schema --system 2>&1");
    assert!(verdict.contains("Valid") && !verdict.to_lowercase().contains("invalid"), "{verdict}");
    let seed = home.state().join("guests/web/seed.img");
    let there = home.path("there");
    let log = ["-osirrox", "on", "-indev", seed.to_str().unwrap(), "-extract", "/meta-data", there.to_str().unwrap()];
    run("xorriso", log);
    assert!(std::fs::read_to_string(&there).unwrap().contains("instance-id"));
}

/// What happens when a guest does not come up, or goes down: the end of the
/// wait, its reason, and what is left.
#[test]
fn a_failing_guest_is_explained() {
    let home = Home::with_key().warm();
    let image = image().to_str().unwrap();
    write(&home.path("bad.sh"), "#!/bin/sh\necho this goes wrong >&2\nexit 3\n");
    let bad = home.path("bad.sh");
    home.ok(["create", "sad", "--image", image, "--run-script-once", bad.to_str().unwrap()].into_iter().chain(WARM));

    // cloud-init's failure is told apart from a guest that does not answer.
    let error = home.fails(1, ["wait", "sad", "--timeout", "20m"]);
    assert!(error.contains("bad.sh") || error.contains("scripts"), "the failing module is not named: {error}");
    home.ok(["wait", "sad", "--for", "ssh", "--timeout", "20m"]);
    let console = home.ok(["console", "sad"]);
    assert!(console.contains("login:") || console.contains("cloud-init"), "{console}");

    // Too short a deadline: the stage, the console's words and a hint, and the guest stays. No machine boots in
    // that time.
    home.ok(["restart", "--force", "sad"]);
    let error = home.fails(4, ["wait", "sad", "--timeout", "1ms"]);
    assert!(error.contains("was not ready within 1ms") && error.contains("hint: "), "{error}");
    assert_eq!(state(&home, "sad"), "running");

    // A guest that dies ends a wait at once.
    home.ok(["restart", "--force", "sad"]);
    let mut waiting = home.virga(["wait", "sad", "--timeout", "20m"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap()).lines().map(Result::unwrap);
    let before = told.by_ref().find(|line| line.ends_with(": the SSH server"));
    assert!(before.is_some(), "it did not come to wait");
    let qemu = home.processes().into_iter().find(|line| line.contains("qemu-system")).unwrap();
    run("kill", ["-KILL", qemu.split(':').next().unwrap()]);
    // That it ended is what is said, and not that it was not ready within so and so long.
    let rest: Vec<String> = told.collect();
    assert_eq!(waiting.wait().unwrap().code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("the guest ended: ")), "{rest:?}");
    assert_eq!(state(&home, "sad"), "died", "it was not shut down");
    home.ok(["destroy", "sad"]);
    home.assert_nothing_left();
}

/// Nobody's key is there: virga makes its own, says so, and gets in with it.
#[test]
fn a_user_without_keys_gets_in() {
    let home = Home::new();
    write(&home.path("ud"), "#cloud-config\nruncmd:\n- [touch, /ran]\n");
    let ud = home.path("ud");
    let args = ["create", "solo", "--image", tiny().to_str().unwrap(), "--user-data", ud.to_str().unwrap(), "--wait"];
    let output = home.output(args.into_iter().chain(["--timeout", "20m"]).chain(SOLO));
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("key"), "it does not say that it made a key: {stderr}");
    assert_eq!(in_guest(&home, "solo", "hostname; ls /ran"), "solo\n/ran\n");
    home.ok(["destroy", "solo"]);
    home.assert_nothing_left();
}
