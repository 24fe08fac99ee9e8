//! A guest that never stops talking, and a disk that is full. What is booted is one sector.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::{Path, PathBuf};

use support::{Home, LONG, boot_sector, run, text, wait_for};

const SMALL: [&str; 4] = ["--accel", "tcg", "--memory", "64M"];
/// Most bytes of a console's log.
const BOUND: u64 = 1 << 20;

/// A disk whose boot sector writes numbers from 1 to `last` on the first serial port, a line each, eight letters from A
/// for 0 to P for 15.
fn talker(home: &Home, last: u32) -> PathBuf {
    let mut code = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0xba, 0xf8, 0x03, // xor ax,ax; mov ds,ax; mov dx,0x3f8
        0x66, 0x31, 0xdb, // xor ebx,ebx
        0x66, 0x43, 0xb9, 0x08, 0x00, // next: inc ebx; mov cx,8
        0x66, 0xc1, 0xc3, 0x04, 0x88, 0xd8, // digit: rol ebx,4; mov al,bl
        0x24, 0x0f, 0x04, 0x41, 0xee, 0xe2, 0xf3, // and al,15; add al,'A'; out dx,al; loop digit
        0xb0, 0x0a, 0xee, // mov al,10; out dx,al
        0x66, 0x81, 0xfb, // cmp ebx,last
    ];
    code.extend(last.to_le_bytes());
    code.extend([0x72, 0xe2, 0xf4, 0xeb, 0xfd]); // jb next; hang: hlt; jmp hang
    boot_sector(&home.path("talker.qcow2"), code)
}

fn number(line: &str) -> u32 {
    assert!(line.len() == 8 && line.bytes().all(|b| (b'A'..=b'P').contains(&b)), "{line:?}");
    line.bytes().fold(0, |number, b| number << 4 | u32::from(b - b'A'))
}

#[test]
fn a_guest_that_never_stops_talking_has_a_log_of_bounded_size() {
    const LAST: u32 = 200_000;
    let home = Home::with_key();
    let image = talker(&home, LAST);
    let log = home.state().join("guests/g/console.log");
    home.ok(["create", "g", "--image", image.to_str().unwrap()].into_iter().chain(SMALL));
    let mut most = 0;
    wait_for("the last line", LONG, || {
        most = most.max(log.metadata().unwrap().len());
        home.ok(["console", "g", "-n", "1"]).lines().next().is_some_and(|line| line.len() == 8 && number(line) == LAST)
    });
    assert!(most <= BOUND && most > BOUND / 4, "{most}");
    let kept = std::fs::read_to_string(&log).unwrap();
    let kept: Vec<u32> = kept.lines().map(number).collect();
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1) && kept.last() == Some(&LAST), "{:?}", kept.first());
    // Who keeps it goes with its guest, and the next one adds to what is there.
    home.ok(["stop", "--force", "g"]);
    assert_eq!(home.processes(), Vec::<String>::new());
    home.ok(["start", "g"]);
    wait_for("the first line", LONG, || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().any(|line| line.len() == 8 && number(line) == 1) || text.len() as u64 > BOUND / 2
    });
    // One that is killed holds nothing up.
    for pid in run("pgrep", ["-f", &format!("__console {}", log.display())]).split_whitespace() {
        run("kill", ["-KILL", pid]);
    }
    assert!(home.json(["list"])[0]["state"] == "running");
    home.ok(["destroy", "g"]);
    home.assert_nothing_left();
}

/// Runs a script in a mount namespace of its own, with a file system of 12 MiB as the state.
fn on_a_small_disk(home: &Home, script: &str) -> String {
    let state = home.state();
    std::fs::create_dir_all(&state).unwrap();
    let user = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let command = home.virga([] as [&str; 0]);
    let output = std::process::Command::new("unshare")
        .args([user, "--", "sh", "-eu", "-c"])
        .arg(format!("mount -t tmpfs -o size=12m tmpfs \"$STATE\"\n{script}"))
        .env_clear()
        .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .env("STATE", &state)
        .env("VIRGA", Path::new(support::VIRGA))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn on_a_full_disk_guests_can_be_seen_stopped_and_removed() {
    let home = Home::with_key();
    let image = talker(&home, u32::MAX);
    let small = SMALL.join(" ");
    let script = format!(
        r#"
        trap '"$VIRGA" destroy g h >/dev/null 2>&1' EXIT
        "$VIRGA" create g --image {0} {small}
        "$VIRGA" create h --image {0} {small} --no-start
        until [ -n "$("$VIRGA" console g -n 1)" ]; do sleep 0.1; done
        head -c 100m /dev/zero >"$STATE/fill" 2>/dev/null && exit 9
        "$VIRGA" list
        "$VIRGA" info g >/dev/null
        before=$("$VIRGA" console g -n 1)
        new() {{ [ "$("$VIRGA" console g -n 1)" != "$before" ]; }}
        until new; do sleep 0.1; done
        "$VIRGA" stop --force g
        "$VIRGA" list
        "$VIRGA" destroy g h
        trap - EXIT
        echo "left: $(ls "$STATE/guests")""#,
        image.display()
    );
    let said = on_a_small_disk(&home, &script);
    assert!(said.contains("running") && said.contains("stopped") && said.ends_with("left: \n"), "{said}");
}
