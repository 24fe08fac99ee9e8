//! `make bench`: how long a stock image takes to answer over SSH, started cold
//! and warm in turn, and what memory many clones of one template take.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench runs tools and prints a table")]

mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use table::Row;

/// As `make dist` builds it.
const VIRGA: &str = env!("CARGO_BIN_EXE_virga");
const MACHINE: [&str; 6] = ["--accel", "tcg", "--memory", "512M", "--cpus", "2"];
const ROUNDS: usize = 5;
const MANY: usize = 10;

fn main() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let bench = Bench { home: home.path() };
    bench.publish();
    let began = Instant::now();
    bench.ok(&["template", "create"], &MACHINE);
    let made = began.elapsed();

    let (mut cold, mut warm, mut open): (Vec<_>, Vec<_>, Vec<_>) = (Vec::new(), Vec::new(), Vec::new());
    const OPEN: [&str; 3] = ["--warm", "--network", "full"];
    for round in 0..ROUNDS {
        for (kind, options, runs) in
            [("cold", &[][..], &mut cold), ("warm", &["--warm"], &mut warm), ("open", &OPEN[..], &mut open)]
        {
            let name = format!("{kind}{round}");
            runs.push(bench.guest(&name, options));
            bench.ok(&["destroy", &name], &[]);
        }
    }
    table::head();
    let total = |runs: &[Run]| median(runs.iter().map(|run| run.total).collect());
    Row::against("create to a login over SSH", total(&warm), "cold start", total(&cold), 15.0).print();
    Row::against("warm, kept from its host", total(&warm), "--network full", total(&open), 0.9).print();
    println!("\n    a template is made in {made:.1?}");
    stages("cold", &cold);
    stages("warm", &warm);
    density(&bench);
}

/// One guest on its way to a login.
struct Run {
    total: Duration,
    stages: Vec<(String, Duration)>,
}

struct Bench<'a> {
    home: &'a Path,
}

impl Bench<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(VIRGA);
        command
            .args(args)
            .env("HOME", self.home)
            .env("VIRGA_HOME", self.home.join("state"))
            .env("VIRGA_RUNTIME_DIR", self.home.join("run"));
        command
    }

    /// Runs it; returns what it said.
    fn ok(&self, args: &[&str], more: &[&str]) -> String {
        let output = self.command(args).args(more).output().expect("virga");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        said
    }

    /// The image of the tests, taken from a stream as users do.
    fn publish(&self) {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image/build");
        let image = Command::new(build).output().expect("tests/image/build");
        let image = String::from_utf8_lossy(&image.stdout).trim().to_owned();
        let (mirror, key) = (self.home.join("mirror"), self.home.join("key"));
        let (mirror, key) = (mirror.display().to_string(), key.display().to_string());
        self.ok(&["stream", "init", &mirror, "--key", &key], &[]);
        self.ok(&["stream", "add", &mirror, &image, "--key", &key, "release=stable"], &[]);
        let keyring = self.home.join("mirror").join("keyring.gpg").display().to_string();
        let port_file = self.home.join("port");
        let port = port_file.display().to_string();
        let mut server = self
            .command(&["--quiet", "stream", "serve", &mirror, "--port-file", &port])
            .stdout(Stdio::null())
            .spawn()
            .expect("a server");
        while !port_file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let port = std::fs::read_to_string(port_file).expect("a port");
        let source = format!("http://127.0.0.1:{}/", port.trim());
        self.ok(&["sync", "--source", &source, "--keyring", &keyring, "release=stable"], &[]);
        server.kill().and_then(|()| server.wait()).expect("an end");
    }

    fn guest(&self, name: &str, options: &[&str]) -> Run {
        let began = Instant::now();
        let created = self.ok(&["-v", "create", name], &[&MACHINE[..], options].concat());
        let ready = self.ok(&["wait", name, "--for", "ssh"], &[]);
        let total = began.elapsed();
        let mut stages = spans(&created, "' warm: ");
        // Counted from when the wait began.
        let [(_, banner), (_, login)] = spans(&ready, " is ready: ").try_into().expect("two stages");
        stages.extend([("network and sshd".to_owned(), banner), ("login".to_owned(), login.saturating_sub(banner))]);
        Run { total, stages }
    }

    /// Bytes of memory of each guest's process: its share of all, and of that what it shares with nobody.
    fn memory(&self) -> Vec<(u64, u64)> {
        let mark = format!("{}/", self.home.display());
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
        let ours = processes.filter(|process| {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            line.starts_with(b"/usr/bin/qemu") && String::from_utf8_lossy(&line).contains(&mark)
        });
        ours.map(|process| {
            let text = std::fs::read_to_string(process.join("smaps_rollup")).expect("its memory");
            let kib = |key: &str| -> u64 {
                let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
                line.trim().trim_end_matches(" kB").parse().expect("a number")
            };
            (kib("Pss:") << 10, (kib("Private_Clean:") + kib("Private_Dirty:")) << 10)
        })
        .collect()
    }
}

/// Stages as virga prints them: `start 80 ms, renewal 1.2 s`.
fn spans(said: &str, mark: &str) -> Vec<(String, Duration)> {
    let Some(line) = said.lines().find_map(|line| Some(line.split_once(mark)?.1)) else { return Vec::new() };
    let span = |text: &str| -> Option<(String, Duration)> {
        let (stage, span) = text.split_once(' ')?;
        let (number, unit) = span.split_once(' ')?;
        let number: f64 = number.parse().ok()?;
        Some((stage.to_owned(), Duration::from_secs_f64(if unit == "ms" { number / 1e3 } else { number })))
    };
    line.split(", ").map(|text| span(text).expect("a stage")).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn stages(kind: &str, runs: &[Run]) {
    let mut all: BTreeMap<usize, (String, Vec<Duration>)> = BTreeMap::new();
    for run in runs {
        for (number, (stage, took)) in run.stages.iter().enumerate() {
            all.entry(number).or_insert_with(|| (stage.clone(), Vec::new())).1.push(*took);
        }
    }
    let line: Vec<String> =
        all.into_values().map(|(stage, times)| format!("{stage} {} ms", median(times).as_millis())).collect();
    let totals: Vec<String> = runs.iter().map(|run| format!("{:.2?}", run.total)).collect();
    println!("    {kind}: {}; all runs: {}", line.join(", "), totals.join(" "));
}

fn density(bench: &Bench<'_>) {
    let mut names = Vec::new();
    let mut print = |kind: &str, count: usize, options: &[&str]| {
        for number in names.len()..names.len() + count {
            let name = format!("m{number}");
            bench.guest(&name, options);
            names.push(name);
        }
        let memory = bench.memory();
        assert_eq!(memory.len(), count, "processes of ours");
        let mib = |bytes: u64| (bytes / count as u64) >> 20;
        let (share, own) = (memory.iter().map(|it| it.0).sum(), memory.iter().map(|it| it.1).sum());
        println!("    {count} {kind}: {} MiB each, {} MiB of them shared with nobody", mib(share), mib(own));
        let last = names.split_off(0);
        bench.ok(&["destroy"], &last.iter().map(String::as_str).collect::<Vec<_>>());
    };
    print("guests started cold", 2, &[]);
    print("clones of one template", MANY, &["--warm"]);
}
