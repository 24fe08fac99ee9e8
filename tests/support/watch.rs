//! Nothing hangs: a program that a test started and that does not end is told of, with what shows why, and killed
//! with its guests; the test fails.
//!
//! One thread of the test's process looks at that process's children. None is to live for longer than the limit, which
//! is so long that only a fault takes it, but for those that a test keeps by its side ([`companion`]).

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::{names, text};

/// The limit in seconds, where it is not this.
const VARIABLE: &str = "VIRGA_TEST_LIMIT";
const LIMIT: Duration = Duration::from_secs(600);
/// How long the dying may take: the kernel has to give back a guest's memory.
const DYING: Duration = Duration::from_secs(60);
/// How long a QEMU may think about an answer.
const ANSWER: Duration = Duration::from_secs(5);

struct State {
    /// Of the tests that run, each with the thread that it runs in.
    folders: Vec<(PathBuf, String)>,
    companions: Vec<Process>,
    /// What hung, and in which of the folders.
    hung: Vec<(String, Vec<PathBuf>)>,
}

static STATE: Mutex<State> = Mutex::new(State { folders: Vec::new(), companions: Vec::new(), hung: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of a test: what names it is of that test. On drop the test fails if something of it hung, even if it took
/// no notice.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(path: &Path) -> Self {
        begin();
        let this_thread = std::fs::read_link("/proc/thread-self").unwrap();
        state().folders.push((path.to_owned(), this_thread.file_name().unwrap().display().to_string()));
        Folder(path.to_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let mut state = state();
        state.folders.retain(|(path, _)| *path != self.0);
        let of_it = |(_, folders): &&(_, Vec<PathBuf>)| folders.is_empty() || folders.contains(&self.0);
        let hung = state.hung.iter().find(of_it).map(|(said, _)| said.clone());
        drop(state);
        if let Some(said) = hung.filter(|_| !std::thread::panicking()) {
            panic!("a program hung: {said}");
        }
    }
}

/// Declares a program one that lives as long as the test does.
pub fn companion(child: &Child) {
    begin();
    state().companions.extend(Process::read(child.id()));
}

/// Waits until what hangs is told and killed, if something hangs just now: the test's end is not to hide it.
pub fn settled() {
    drop(state());
}

/// Begins to watch, once in a process.
pub fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let told = std::env::var(VARIABLE).ok();
        let limit = told.map_or(LIMIT, |told| Duration::from_secs(told.parse().expect("seconds in VIRGA_TEST_LIMIT")));
        std::thread::spawn(move || watch(limit));
    });
}

fn watch(limit: Duration) {
    // By when they were first seen: a machine that slept in between makes nobody older.
    let mut seen: HashMap<Process, Instant> = HashMap::new();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let mut state = state();
        let watched = watched(&state.companions);
        seen.retain(|process, _| watched.contains_key(process));
        for (process, thread) in watched {
            let age = seen.entry(process).or_insert_with(Instant::now).elapsed();
            // It may have gone with another one just now.
            if age > limit && !process.is_gone() {
                let said = format!("'{}' after {} s", process.line(), age.as_secs());
                state.has_hung(process, &thread, &said);
            }
        }
    }
}

/// The children that are not companions, each with the thread that started it. In place of one that has ended and that
/// nobody has asked after: those to whom it left a pipe that we read, as the test waits for the end of that.
fn watched(companions: &[Process]) -> HashMap<Process, String> {
    let (mut found, mut ended) = (HashMap::new(), None);
    for thread in names(Path::new("/proc/self/task")) {
        let children = std::fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| Process::read(pid.parse().ok()?)) {
            if child.is_dead() {
                ended = Some(thread.clone());
            } else if !companions.contains(&child) {
                found.insert(child, thread.clone());
            }
        }
    }
    let (Some(thread), Some(own)) = (ended, Process::read(std::process::id())) else { return found };
    let all = Process::all();
    let accounted = [below(&all, found.keys().copied()), companions.to_vec(), vec![own]].concat();
    let ours: BTreeSet<PathBuf> =
        pipes("self").filter(|(number, _)| is_read_here_alone(number)).map(|(_, to)| to).collect();
    let holds = |process: &Process| pipes(&process.pid.to_string()).any(|(_, to)| ours.contains(&to));
    let holders = all.into_iter().filter(|one| one.began >= own.began && !accounted.contains(one) && holds(one));
    found.extend(holders.map(|process| (process, thread.clone())));
    found
}

/// The pipes that a process has open, by the numbers of their files there.
fn pipes(pid: &str) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let links =
        names(&folder).into_iter().filter_map(move |name| Some((std::fs::read_link(folder.join(&name)).ok()?, name)));
    links.filter(|(to, _)| to.to_string_lossy().starts_with("pipe:")).map(|(to, name)| (name, to))
}

/// Whether this is the end to read of a pipe made here. What whoever runs the tests left open for all is not: it has no
/// O_CLOEXEC.
fn is_read_here_alone(number: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 0o2_000_003 == 0o2_000_000)
}

impl State {
    /// Tells and kills. All who want the state wait meanwhile, the end of the test among them.
    fn has_hung(&mut self, hung: Process, thread: &str, said: &str) {
        let is_named = |folder: &Path| {
            let named = |file| hung.file(file).contains(folder.to_str().unwrap_or("\0"));
            named("cmdline") || named("environ")
        };
        let of_it = |(folder, of): &&(PathBuf, String)| of == thread || is_named(folder);
        let mut folders: Vec<PathBuf> = self.folders.iter().filter(of_it).map(|(folder, _)| folder.clone()).collect();
        if folders.is_empty() {
            // Of which test it is cannot be told.
            folders.extend(self.folders.iter().map(|(folder, _)| folder.clone()));
        }
        self.hung.push((said.to_owned(), folders.clone()));

        let all = Process::all();
        let of_the_test = |process: &Process| folders.iter().any(|folder| process.is_of(folder));
        let others = all.iter().copied().filter(|process| *process != hung && of_the_test(process));
        let shown = below(&all, [hung].into_iter().chain(others));
        say(&format!("a program hung: {said}\n{}", tree(&shown)));
        let silent = shown.iter().filter_map(Process::monitor).filter(|monitor| !answers(monitor)).collect::<Vec<_>>();
        last_lines(&folders, &shown);

        // It first, so that nobody makes new what goes; and who it spoke to may be free then for others.
        let first = below(&all, [hung]);
        first.iter().for_each(Process::kill);
        for monitor in silent {
            say("without the program that hung:");
            answers(&monitor);
        }
        // Nothing from before this process can be of its tests, whatever it names.
        let own = Process::read(std::process::id());
        let is_ours = |process: &Process| own.is_some_and(|own| process.pid != own.pid && process.began >= own.began);
        let is_doomed = |process: &Process| is_ours(process) && !self.companions.contains(process);
        let doomed = [first, shown.into_iter().filter(is_doomed).collect()].concat();
        let began = Instant::now();
        loop {
            let left: Vec<Process> = doomed.iter().copied().filter(|process| !process.is_gone()).collect();
            if left.is_empty() {
                return say("all of it is killed");
            }
            if began.elapsed() > DYING {
                say(&format!("not even SIGKILL ended these:\n{}", tree(&left)));
                // The tests that come after are to have their turn.
                std::process::abort();
            }
            left.iter().for_each(Process::kill);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Past what catches the output of tests: it is that of the test that happened to begin the watch.
fn say(what: &str) {
    let _ = std::io::stderr().write_all(format!("{}\n", what.trim_end()).as_bytes());
}

/// Of one number; numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    pid: u32,
    began: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let began = Process { pid, began: 0 }.stat(22)?.parse().ok()?;
        Some(Process { pid, began })
    }

    fn all() -> Vec<Self> {
        names(Path::new("/proc")).iter().filter_map(|name| Process::read(name.parse().ok()?)).collect()
    }

    fn file(self, name: &str) -> String {
        text(&std::fs::read(format!("/proc/{}/{name}", self.pid)).unwrap_or_default())
    }

    /// A field of `stat` by its number in proc(5), behind the name, which may hold anything.
    fn stat(self, field: usize) -> Option<String> {
        Some(self.file("stat").rsplit_once(')')?.1.split_whitespace().nth(field - 3)?.to_owned())
    }

    fn parent(self) -> u32 {
        self.stat(4).and_then(|parent| parent.parse().ok()).unwrap_or(0)
    }

    fn is_dead(self) -> bool {
        self.stat(3).is_none_or(|state| state == "Z" || state == "X")
    }

    fn is_gone(&self) -> bool {
        self.is_dead() || Process::read(self.pid) != Some(*self)
    }

    /// As [`Home::processes`](super::Home::processes) sees it.
    fn is_of(self, folder: &Path) -> bool {
        let mark = folder.to_str().unwrap_or("\0");
        let line = self.file("cmdline");
        line.contains(mark) || (line.contains("\0__keep\0") && self.file("environ").contains(mark))
    }

    fn line(self) -> String {
        let line = self.file("cmdline").replace(['\0', '\n'], " ");
        let line = if line.is_empty() { self.file("comm") } else { line };
        line.trim_end().chars().take(300).collect()
    }

    /// Where a QEMU of ours can be asked. libvirt has its monitors to itself.
    fn monitor(&self) -> Option<PathBuf> {
        let line = self.file("cmdline");
        let rest = line.split('\0').find_map(|word| word.strip_prefix("socket,id=qmp,path="))?;
        Some(rest.split(',').next()?.into())
    }

    fn kill(&self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw)
            && !self.is_gone()
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// These processes and all that came of them; each is there once.
fn below(all: &[Process], roots: impl IntoIterator<Item = Process>) -> Vec<Process> {
    let mut found: Vec<Process> = roots.into_iter().collect();
    let parents: Vec<u32> = all.iter().map(|process| process.parent()).collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        let children = all.iter().zip(&parents).filter(|(_, of)| **of == parent).map(|(process, _)| *process);
        let new: Vec<Process> = children.filter(|process| !found.contains(process)).collect();
        found.extend(new);
        next += 1;
    }
    found
}

/// With what each does: its state, and where in the kernel it waits.
fn tree(processes: &[Process]) -> String {
    fn grow(tree: &mut String, processes: &[Process], depth: usize, is_next: &dyn Fn(&Process) -> bool) {
        for process in processes.iter().filter(|process| is_next(process)) {
            let (state, place) = (process.stat(3).unwrap_or_default(), process.file("wchan"));
            let _ = writeln!(tree, "{:depth$}{} {state} {place} {}", "", process.pid, process.line());
            grow(tree, processes, depth + 2, &|child| child.parent() == process.pid);
        }
    }
    let mut tree = String::new();
    grow(&mut tree, processes, 2, &|process| !processes.iter().any(|other| other.pid == process.parent()));
    tree
}

/// Whether this QEMU does; says what.
fn answers(monitor: &Path) -> bool {
    let (path, (tell, told)) = (monitor.to_owned(), mpsc::channel());
    // In a thread of its own: even to connect may take for ever.
    std::thread::spawn(move || tell.send(ask(&path)));
    let answer = told.recv_timeout(ANSWER).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    let said = answer.as_ref().map_or_else(|error| format!("does not answer: {error}"), Clone::clone);
    say(&format!("QEMU at {}: {said}", monitor.display()));
    answer.is_ok()
}

fn ask(monitor: &Path) -> Result<String, Error> {
    let mut stream = UnixStream::connect(monitor)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut answers = String::new();
    for command in ["qmp_capabilities", "query-status", "query-migrate"] {
        stream.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes())?;
        // Between the greeting and answers there are events.
        let answer = loop {
            let line = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
            if line.starts_with("{\"return\"") || line.starts_with("{\"error\"") {
                break line;
            }
        };
        let _ = write!(answers, "\n  {command}: {}", answer.trim_end());
    }
    Ok(answers)
}

/// What the guests' consoles and what runs them said last. Templates have a state folder of their own.
fn last_lines(folders: &[PathBuf], shown: &[Process]) {
    let environments = shown.iter().map(|process| process.file("environ"));
    let mut states: BTreeSet<PathBuf> = environments
        .filter_map(|all| Some(all.split('\0').find_map(|word| word.strip_prefix("VIRGA_HOME="))?.into()))
        .collect();
    states.extend(folders.iter().map(|folder| folder.join("state")));
    for guests in states.iter().map(|state| state.join("guests")) {
        for log in names(&guests)
            .iter()
            .flat_map(|guest| ["console.log", "backend.log"].map(|log| guests.join(guest).join(log)))
        {
            let Ok(content) = std::fs::read(&log) else { continue };
            let content = text(&content);
            let lines: Vec<&str> = content.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n  ");
            // What a guest writes is not to command a terminal.
            let plain: String = last.chars().filter(|letter| *letter == '\n' || !letter.is_control()).collect();
            say(&format!("the end of {}:\n  {plain}", log.display()));
        }
    }
}
