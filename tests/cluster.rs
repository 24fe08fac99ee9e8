//! Incus daemons elsewhere, several of them as one, and daemons that go away in
//! the midst of something. No guest boots more than a shell here.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::process::{Child, Stdio};

use serde_json::Value;
use support::cluster::{self, Cluster};
use support::sandbox::Sandbox;
use support::{Home, LONG, incus, names, run, text, wait_for};

/// Options of a container that is made and not started.
fn made<'a>(name: &'a str, connect: &'a str, more: &'a [&'a str]) -> Vec<&'a str> {
    let mine = ["create", name, "--driver", "incus", "--no-start", "--connect", connect];
    let release = if more.iter().any(|word| word.starts_with("release=")) { None } else { Some("release=tiny") };
    mine.into_iter().chain(more.iter().copied()).chain(release).collect()
}

/// How the guests stand, and where they are.
fn states(home: &Home) -> Vec<(String, String, Option<String>)> {
    let listed = home.json(["list"]);
    let word = |guest: &Value, key: &str| guest[key].as_str().map(str::to_owned);
    let line = |guest: &Value| (word(guest, "name").unwrap(), word(guest, "state").unwrap(), word(guest, "location"));
    listed.as_array().unwrap().iter().map(line).collect()
}

fn is(name: &str, state: &str, location: Option<&str>) -> (String, String, Option<String>) {
    (name.into(), state.into(), location.map(str::to_owned))
}

/// A command in the background, and what it said in the end.
fn begun(home: &Home, args: &[&str]) -> Child {
    home.virga(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether a daemon with these operations makes an instance; those that have ended are among them for a while.
fn is_making(operations: &str) -> bool {
    let operations: Value = serde_json::from_str(operations).unwrap();
    let running = operations["running"].as_array();
    running.is_some_and(|all| all.iter().any(|operation| operation["description"] == "Creating instance"))
}

fn no_guests(home: &Home) {
    assert_eq!(names(&home.state().join("guests")), Vec::<String>::new());
    assert_eq!(states(home), []);
}

#[test]
fn a_cluster_is_reached_by_any_member_and_outlives_one() {
    if run("id", ["-u"]).trim() != "0" {
        return support::skip("only root can start Incus daemons");
    }
    let home = Home::with_key();
    cluster::sync(&home);
    let cluster = Cluster::new(&home.path("home"));
    let home = home.inside(&cluster.sandbox);
    cluster.trusts(&home);

    placed(&home, &cluster);
    only_who_is_trusted(&home);
    the_way_there_is_lost(&home, &cluster);
    a_member_is_down(&home, &cluster);
    home.ok(["destroy", "far", "free", "near"]);
    assert_eq!(cluster.instances(1), []);
    no_guests(&home);
}

/// Where it was asked for, and where the daemon wants it; either member says the same, by either client.
fn placed(home: &Home, cluster: &Cluster) {
    home.ok(made("far", "incus://m1", &["--target", "m2"]));
    home.ok(made("near", "incus://m1", &["--target", "m1"]));
    home.ok(made("free", "incus://m2", &[]));
    let there = cluster.instances(1);
    assert_eq!(cluster.instances(2), there);
    assert_eq!(there.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["far", "free", "near"]);
    assert_eq!((there[0].1.as_str(), there[2].1.as_str()), ("m2", "m1"));
    let said: Vec<_> = there.iter().map(|(name, member)| is(name, "stopped", Some(member))).collect();
    assert_eq!(states(home), said);
    assert_eq!(home.json(["info", "far"])["location"], "m2");
    // The image went over once; the members have it from each other.
    let images: Value = serde_json::from_str(&cluster.incus(2, &["image", "list", "--format", "json"])).unwrap();
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");

    let record = std::fs::read_to_string(home.state().join("guests/far/guest.json")).unwrap();
    assert!(record.contains("incus://m1?project=default") && !record.contains("PRIVATE"), "{record}");
    home.ok(["start", "far"]);
    let output = home.output(["exec", "far", "--", "sh", "-c", "id -u; exit 3"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), "0\n".into()), "{}", text(&output.stderr));
    wait_for("its console", LONG, || home.ok(["console", "far"]).contains("up"));
    let error = home.fails(1, made("port", "incus://m1", &["--port", "0:80"]));
    assert!(error.contains("loopback"), "{error}");
    let error = home.fails(3, made("nowhere", "incus://m1", &["--target", "m9"]));
    assert!(error.contains("m9"), "{error}");
    let doctor = home.output(["doctor", "--connect", "incus://m2"]);
    assert!(text(&doctor.stdout).contains("the member 'm2' of a cluster of 2"), "{}", text(&doctor.stdout));
}

/// The server's certificate is the one that was accepted, and the client's one that the daemon trusts.
fn only_who_is_trusted(home: &Home) {
    let client = home.path("home/.config/incus");
    let other = home.path("other");
    run("cp", ["-r", client.to_str().unwrap(), other.to_str().unwrap()]);
    let certify = |certificate: &str, key: &str| {
        let (certificate, key) = (other.join(certificate), other.join(key));
        let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "2"];
        let files = ["-subj", "/CN=other", "-out", certificate.to_str().unwrap(), "-keyout", key.to_str().unwrap()];
        run("openssl", args.iter().chain(&files));
    };
    let fails = |code: i32, args: &[&str]| {
        let output = home.virga(args).env("INCUS_CONF", &other).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    certify("servercerts/m1.crt", "unused.key");
    let error = fails(5, &made("no", "incus://m1", &[]));
    assert!(error.contains("another certificate") && error.contains("incus remote add"), "{error}");
    fails(5, &["start", "near"]);
    // Guests that are reached by another way are none the worse.
    let listed = home.virga(["list", "--format", "json"]).env("INCUS_CONF", &other).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["state"], &listed[1]["state"]), (&"unknown".into(), &"stopped".into()), "{listed}");

    certify("client.crt", "client.key");
    let error = fails(6, &made("no", "incus://m2", &[]));
    assert!(error.contains("does not trust") && error.contains("incus config trust add"), "{error}");
    let error = fails(6, &["start", "free"]);
    assert!(error.contains("incus config trust add"), "{error}");
    fails(6, &made("no", "incus://m3", &[]));

    // By its address: with the certificate that it has, and without one that anybody vouches for.
    fails(5, &made("no", "https://10.98.0.2", &[]));
    let certificate = client.join("servercerts/m1.crt");
    home.ok(made("direct", &format!("https://10.98.0.2:8443?certificate={}", certificate.display()), &[]));
    home.ok(["destroy", "direct"]);
    assert_eq!(names(&home.state().join("guests")), ["far", "free", "near"]);
}

/// The member that was asked dies while another one works: what goes on there is followed to its end, be it good or bad.
fn the_way_there_is_lost(home: &Home, cluster: &Cluster) {
    let making = begun(home, &made("lost", "incus://m1", &["--target", "m2", "release=large"]));
    wait_for("the operation", LONG, || is_making(&cluster.incus(2, &["query", "/1.0/operations?recursion=1"])));
    cluster.kill(1);
    let said = making.wait_with_output().unwrap();
    cluster.whole();
    let there = cluster.instances(1).contains(&("lost".into(), "m2".into()));
    if said.status.success() {
        assert!(there);
        home.ok(["destroy", "lost"]);
    } else {
        // The dead member led the daemons' database. Where it died within a transaction, the other one repeats it and
        // fails by its own first try ("UNIQUE constraint failed"): that is told, and taken back.
        let words = text(&said.stderr);
        assert!(words.contains("error: making the guest 'lost'") && words.contains("caused by: "), "{words}");
        assert!(!there && !names(&home.state().join("guests")).contains(&"lost".into()), "{words}");
    }
}

/// What is there is unknown and not lost; what is elsewhere works; it says which member it is.
fn a_member_is_down(home: &Home, cluster: &Cluster) {
    cluster.take_down(2);
    let free = cluster.instances(1).into_iter().find(|(name, _)| name == "free").unwrap().1;
    let free = if free == "m2" { is("free", "unknown", None) } else { is("free", "stopped", Some("m1")) };
    assert_eq!(states(home), [is("far", "unknown", None), free, is("near", "stopped", Some("m1"))]);
    for args in
        [&["stop", "far"][..], &["info", "far"], &["destroy", "far"], &made("no", "incus://m1", &["--target", "m2"])]
    {
        let error = home.fails(6, args);
        assert!(error.contains("the member 'm2' of the cluster does not answer"), "{args:?}: {error}");
    }
    home.ok(["start", "near"]);
    assert_eq!(home.ok(["exec", "near", "--", "id", "-u"]), "0\n");
    // The remote is away; its cluster is not.
    home.ok(made("more", "incus://m2", &["--target", "m1"]));
    home.ok(["destroy", "more"]);
    assert_eq!(names(&home.state().join("guests")), ["far", "free", "near"]);
    cluster.bring_up(2);
    let far = states(home).into_iter().find(|(name, ..)| name == "far").unwrap();
    assert_eq!(far.2.as_deref(), Some("m2"));
    home.ok(["start", "far"]);
    assert_eq!(home.ok(["exec", "far", "--", "id", "-u"]), "0\n");
}

#[test]
fn what_fails_at_the_daemon_is_taken_back() {
    if run("id", ["-u"]).trim() != "0" {
        return support::skip("only root can start an Incus daemon");
    }
    let home = Home::with_key();
    cluster::sync(&home);
    let sandbox = incus::sandbox(&home.path("home"));
    let home = home.inside(&sandbox);
    let here = "incus:///var/lib/incus/unix.socket";
    let nothing_is_left = |home: &Home| {
        no_guests(home);
        assert_eq!(sandbox.run("incus", &["list", "--all-projects", "--format", "csv"]), "");
        let volumes =
            sandbox.run("incus", &["storage", "volume", "list", "default", "--all-projects", "--format", "csv"]);
        assert!(!volumes.contains("container"), "{volumes}");
    };

    restarted_in_the_midst(&home, &sandbox, here);
    nothing_is_left(&home);

    // No room: btrfs counts late, and the daemon may have made it by then.
    let full = home.output(made("full", here, &["--disk", "20M", "release=large"]));
    match full.status.code() {
        Some(0) => drop(home.ok(["destroy", "full"])),
        code => assert_eq!(code, Some(1), "{}", text(&full.stderr)),
    }
    nothing_is_left(&home);
    // No such profile, no such network, a device that is not there once it is started.
    let error = home.fails(3, made("none", here, &["--profile", "nowhere"]));
    assert!(error.contains("no profile 'nowhere'"), "{error}");
    home.fails(3, made("none", here, &["--network", "network=nowhere"]));
    sandbox.run("incus", &["profile", "create", "broken"]);
    let device = ["profile", "device", "add", "broken", "gone", "unix-char", "source=/dev/nowhere", "path=/dev/gone"];
    sandbox.run("incus", &device);
    let broken = ["create", "none", "--driver", "incus", "--profile", "default", "--profile", "broken", "release=tiny"];
    let error = home.fails(1, broken);
    assert!(error.contains("cannot be started") && error.contains("Failed to start device"), "{error}");
    nothing_is_left(&home);

    in_a_project(&home, &sandbox, here);
    nothing_is_left(&home);
}

/// The daemon is killed while it makes a guest, and is there again a moment later.
fn restarted_in_the_midst(home: &Home, sandbox: &Sandbox, here: &str) {
    let making = begun(home, &made("half", here, &["release=large"]));
    wait_for("the operation", LONG, || is_making(&sandbox.run("incus", &["query", "/1.0/operations?recursion=1"])));
    incus::restart(sandbox);
    let said = making.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(6), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("restarted in the midst"), "{}", text(&said.stderr));
    assert!(!text(&said.stderr).contains("undoing failed"), "{}", text(&said.stderr));
}

/// All of it is there and nothing of it elsewhere: image, instance, the operations that are followed.
fn in_a_project(home: &Home, sandbox: &Sandbox, here: &str) {
    let there = format!("{here}?project=ours");
    let error = home.fails(6, made("guest", &there, &[]));
    assert!(error.contains("no project 'ours'"), "{error}");
    sandbox.run("incus", &["project", "create", "ours", "-c", "features.profiles=false"]);
    home.ok(["prune"]);
    let images = |project: &str| {
        let images = sandbox.run("incus", &["image", "list", "--project", project, "--format", "json"]);
        serde_json::from_str::<Value>(&images).unwrap().as_array().unwrap().len()
    };
    let before = images("default");
    home.ok(made("guest", &there, &[]));
    assert_eq!((images("ours"), images("default")), (1, before));
    assert_eq!(sandbox.run("incus", &["list", "--project", "ours", "--format", "csv", "-c", "n"]), "guest\n");
    assert_eq!(sandbox.run("incus", &["list", "--format", "csv"]), "");
    home.ok(["start", "guest"]);
    assert_eq!(home.ok(["exec", "guest", "--", "id", "-u"]), "0\n");
    home.ok(["destroy", "guest"]);
}
