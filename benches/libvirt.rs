//! `make bench`: what scripts written for uvtool do all day, at a libvirt of
//! the bench's own. Needs root, as the tests with libvirt do.
//!
//! Commands are timed by this program as it runs in that libvirt's namespaces:
//! the way there is none of their time.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench runs tools and prints a table")]

#[path = "../tests/support/mod.rs"]
mod support;
mod table;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::uvt::{KVM, STREAMS, Uvt};
use support::{Mirror, image, os_release, text};
use table::Row;

/// Guests that are there while the others are made and listed.
const GUESTS: usize = 20;

/// How often everything else is done.
const ROUNDS: usize = 20;

/// With this word in front the bench times one command, and says how many nanoseconds it took.
const TIME: &str = "time-one-command";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((word, command)) if word == TIME => time(command),
        _ => bench(),
    }
}

fn time(command: &[String]) {
    let began = Instant::now();
    let status = Command::new(&command[0]).args(&command[1..]).stdout(Stdio::null()).status();
    let took = began.elapsed();
    assert!(status.unwrap().success(), "{command:?}");
    println!("{}", took.as_nanos());
}

/// How long a command takes in the namespaces.
fn timed(uvt: &Uvt, command: &[&str]) -> Duration {
    let this = std::env::current_exe().unwrap();
    let output = uvt.program(&this, &[&[TIME], command].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    Duration::from_nanos(text(&output.stdout).trim().parse().unwrap())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The median times of two commands, done in turn.
fn in_turn(uvt: &Uvt, ours: &[&str], theirs: &[&str]) -> (Duration, Duration) {
    let (ours, theirs) = (0..ROUNDS).map(|_| (timed(uvt, ours), timed(uvt, theirs))).unzip();
    (median(ours), median(theirs))
}

fn bench() {
    let uvt = Uvt::new();
    let (os, release) = (os_release("ID"), format!("release={}", os_release("VERSION_CODENAME")));
    let keys = [&format!("os={os}"), &release, "version=0", "arch=amd64", "label=release"];
    let mirror = Mirror::with_image(&uvt.home, image(), &keys);
    let keyring = mirror.dir.join("keyring.gpg").display().to_string();
    uvt.ok(STREAMS, &["sync", "--source", &mirror.url, "--keyring", &keyring, "arch=amd64", &release]);

    let kvm = uvt.home.path("bin").join(KVM).display().to_string();
    let create = |number| timed(&uvt, &[&kvm, "create", "--no-start", &format!("vu-{number}"), &release]);
    let mut made: Vec<Duration> = (0..GUESTS).map(create).collect();
    made.sort();
    uvt.ok(KVM, &["create", "vu-up", "--cpu", "2", &release]);
    uvt.ok(KVM, &["wait", "--timeout", "400", "vu-up"]);

    table::head();
    Row::under("uvt-kvm create --no-start", made[GUESTS / 2], Duration::from_millis(60)).print();
    let limit = Duration::from_millis(20);
    for (what, ours, tool, theirs) in [
        ("uvt-kvm list", &["list"][..], "virsh list", &["list", "--all", "--name"][..]),
        ("uvt-kvm ip", &["ip", "vu-up"], "virsh domifaddr", &["domifaddr", "vu-up"]),
    ] {
        let theirs = [&["virsh", "-c", "qemu:///system"], theirs].concat();
        let (ours, theirs) = in_turn(&uvt, &[&[kvm.as_str()], ours].concat(), &theirs);
        Row::under(what, ours, limit).print();
        Row::against("the same", ours, tool, theirs, 1.0).print();
    }
    let (ours, theirs) = in_turn(&uvt, &[support::VIRGA, "--version"], &["virsh", "--version"]);
    Row::against("virga --version", ours, "virsh --version", theirs, 1.0).print();
    println!("\n    {GUESTS} guests are there and one runs; each create: {made:.1?}");
}
