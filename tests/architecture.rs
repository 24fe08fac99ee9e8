//! The house as code: imports only go down, parts are strangers, files are short.

use std::fs;
use std::path::{Path, PathBuf};

const PARTS: [&str; 11] =
    ["stream", "fetch", "pool", "disk", "rootfs", "seed", "guest", "session", "template", "ssh", "driver"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    sources(&root.join("src"), &mut found);
    found
        .into_iter()
        .map(|path| (path.strip_prefix(root).unwrap().display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// The top-level modules that a file names with `crate::`.
fn imports(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.match_indices("crate::").map(move |(at, found)| &line[at + found.len()..]))
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => list.split(',').map(|one| one.trim().trim_end_matches("};")).collect(),
            None => vec![rest],
        })
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or(""))
        .filter(|name| !name.is_empty() && *name != "self")
        .collect()
}

/// LXC has no storage of its own: what lays out roots in other backends is a part here, and the driver calls it.
fn lays_out_roots(path: &str) -> bool {
    path.starts_with("src/driver/lxc/")
}

fn allowed(room: &str) -> Vec<&str> {
    let mut rooms = vec!["base"];
    match room {
        "base" => {}
        // Settings are plain values: as low as base, but they read the environment.
        "config" => {}
        "cli" => rooms.extend(["cli", "ops", "config", "driver"]),
        "ops" => {
            rooms.extend(["ops", "config"]);
            rooms.extend(PARTS);
        }
        part => rooms.push(part),
    }
    rooms
}

#[test]
fn imports_only_go_down() {
    let mut wrong = Vec::new();
    for (path, text) in all() {
        let Some(room) = path.strip_prefix("src/").and_then(|rest| rest.split(['/', '.']).next()) else { continue };
        if matches!(room, "main" | "lib") {
            continue;
        }
        let rooms = allowed(room);
        for import in imports(&text) {
            let excepted = import == "rootfs" && lays_out_roots(&path);
            if !rooms.contains(&import) && !excepted {
                wrong.push(format!("{path} imports crate::{import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that go up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn the_test_above_can_fail() {
    assert_eq!(imports("use crate::ops::Env;\nuse crate::{base, pool::Pool};"), ["ops", "base", "pool"]);
    assert!(!allowed("seed").contains(&"disk"));
    assert!(!allowed("base").contains(&"guest"));
}

#[test]
fn operations_know_no_driver_by_name() {
    for (path, text) in all().into_iter().filter(|(path, _)| path.starts_with("src/ops/")) {
        for line in text.lines() {
            assert!(!line.contains("match") || !line.contains("DriverKind"), "{path}: {line}");
        }
    }
}

#[test]
fn files_stay_short() {
    for (path, text) in all() {
        assert!(text.lines().count() <= 600, "{path} has {} lines: split it by responsibility", text.lines().count());
    }
}

/// The tests run on one kind of build: what only the other has would not even be compiled before a user does it.
#[test]
fn every_build_has_the_same_code() {
    for (path, text) in all() {
        assert!(!text.contains("#[cfg(debug_assertions)]") && !text.contains("(not(debug_assertions)"), "{path}");
    }
}

#[test]
fn only_the_probe_and_libvirts_raw_calls_are_unsafe() {
    const UNSAFE: [&str; 3] = ["src/driver/kvm.rs", "src/driver/libvirt/library.rs", "src/driver/libvirt/raw.rs"];
    for (path, text) in all() {
        let uses =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| line.contains("unsafe "));
        assert!(!uses || UNSAFE.contains(&path.as_str()), "{path} holds unsafe code");
    }
}

/// Each limit has its reason where all of them stand: a limit that nobody judged decides what is true one day.
#[test]
fn every_limit_is_judged() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md")).unwrap();
    // A file's name, and after it those of its limits, up to the next file's.
    let words: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    let mut judged = Vec::new();
    let mut file = "";
    for word in words {
        if word.ends_with(".rs") {
            file = word;
        } else if word.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            judged.push(format!("{file} {word}"));
        }
    }
    let mut limits = Vec::new();
    for (path, text) in all().iter().filter(|(path, _)| !path.contains("tests")) {
        let names = text.lines().filter(|line| line.contains(": Duration = ") && !line.contains("LONG:"));
        let name = |line: &str| line.split("const ").nth(1)?.split(':').next().map(str::to_owned);
        let path = path.trim_start_matches("src/");
        limits.extend(names.filter_map(name).map(|name| format!("{path} {name}")));
    }
    assert!(limits.len() > 50, "{limits:?}");
    limits.retain(|limit| !judged.contains(limit));
    assert!(limits.is_empty(), "not judged in docs/architecture.md: {limits:?}");
}
