//! What a guest can do to its host, and other users of the host to a guest: nothing is lent to either that was not asked for.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::{Home, names, run, text, wait_for};
use virga::base::{Kind, fs};

const SMALL: [&str; 4] = ["--accel", "tcg", "--memory", "64M"];

/// A disk whose boot sector halts.
fn image(home: &Home) -> PathBuf {
    let mut code = vec![0xfa, 0xf4, 0xeb, 0xfd]; // cli; hang: hlt; jmp hang
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code.resize(1 << 20, 0);
    let (raw, image) = (home.path("halt.raw"), home.path("halt.qcow2"));
    std::fs::write(&raw, code).unwrap();
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
    image
}

/// `command` as a CI job would run it: a token in the environment, and files open that are nobody else's affair.
fn in_a_job(command: &Command, token: &str, secret: &Path) -> Command {
    let mut job = Command::new("sh");
    job.args(["-c", "exec 7<\"$0\" 9>>\"$0\"; exec \"$@\""]).arg(secret);
    job.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()).env_clear();
    job.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("CI_TOKEN", token);
    job
}

/// Processes, other than this one, that have the token in their environment or the file open.
fn knowing(token: &str, secret: &Path) -> Vec<String> {
    let knows = |pid: &String| {
        let folder = Path::new("/proc").join(pid);
        let told = std::fs::read(folder.join("environ")).is_ok_and(|all| text(&all).contains(token));
        let fds = names(&folder.join("fd"));
        told || fds.iter().any(|fd| std::fs::read_link(folder.join("fd").join(fd)).is_ok_and(|to| to == secret))
    };
    let others = names(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok());
    let others = others.filter(|pid| *pid != std::process::id().to_string());
    let line =
        |pid: String| text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ");
    others.filter(knows).map(line).collect()
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        support::end(&mut self.0);
    }
}

#[test]
fn who_outlives_a_command_knows_nothing_of_its_caller() {
    let home = Home::with_key();
    let (image, secret, token) = (image(&home), home.path("secret"), format!("s3cret-{}", std::process::id()));
    std::fs::write(&secret, "secret").unwrap();
    // Else this shows nothing.
    let mut sleep = Command::new("sleep");
    sleep.arg("36000");
    let other = Ended(in_a_job(&sleep, &token, &secret).env("PATH", std::env::var("PATH").unwrap()).spawn().unwrap());
    wait_for("one who knows", support::LONG, || !knowing(&token, &secret).is_empty());
    drop(other);
    wait_for("its end", support::LONG, || knowing(&token, &secret).is_empty());

    let create = ["create", "g", "--ttl", "10h", "--image", image.to_str().unwrap()];
    let create = home.virga(create.iter().chain(&SMALL));
    let created = in_a_job(&create, &token, &secret).output().unwrap();
    assert!(created.status.success(), "{}", text(&created.stderr));
    let consoles = home.processes().iter().filter(|line| line.contains("__console")).count();
    assert_eq!((home.machines(), home.keepers().len(), consoles), (1, 1, 1), "{:?}", home.processes());
    assert_eq!(knowing(&token, &secret), Vec::<String>::new());
    home.ok(["destroy", "g"]);
    // It goes by itself, a moment later.
    wait_for("the end of the session's keeper", support::LONG, || home.keepers().is_empty());
    home.assert_nothing_left();
}

#[test]
fn a_folder_that_others_could_use_is_refused() {
    let home = Home::with_key();
    let image = image(&home);
    let (root, inner) = (home.path("run"), home.path("run/one"));
    fs::create_guarded_dir(&inner).unwrap();
    fs::create_guarded_dir(&inner).unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let refused = |what: &str| {
        let error = fs::create_guarded_dir(&inner).unwrap_err();
        assert!(error.kind() == Kind::Refused && error.to_string().contains(what), "{error}");
    };
    mode(&root, 0o755);
    fs::create_guarded_dir(&inner).unwrap();
    mode(&root, 0o700);
    for open in [0o750, 0o701] {
        mode(&inner, open);
        refused(&format!("mode {open:04o}"));
    }
    mode(&inner, 0o700);
    // Sticky or not: whoever is first has the name.
    for open in [0o777, 0o770, 0o702, 0o1777] {
        mode(&root, open);
        refused(&format!("mode {open:04o}"));
    }
    let create = |name: &str| -> Vec<String> {
        let words = ["create", name, "--image", image.to_str().unwrap()];
        words.into_iter().chain(SMALL).map(str::to_owned).collect()
    };
    let error = home.fails(5, create("g"));
    assert!(error.contains("is open to other users (mode 1777)") && error.contains("chmod go-rwx"), "{error}");
    let checked = home.output(["doctor"]);
    assert!(text(&checked.stdout).contains("is open to other users"), "{}", text(&checked.stdout));
    if rustix::process::geteuid().is_root() {
        mode(&root, 0o755);
        std::os::unix::fs::chown(&root, Some(54321), None).unwrap();
        let error = home.fails(5, create("g"));
        assert!(error.contains("belongs to another user (uid 54321, not 0)"), "{error}");
        std::os::unix::fs::chown(&root, Some(0), None).unwrap();
    }
    std::fs::remove_dir(&inner).unwrap();
    mode(&root, 0o700);
    home.assert_nothing_left();
}

/// Whether a file below the folder has the bytes in it.
fn is_written(folder: &Path, word: &str) -> bool {
    let found = Command::new("grep").args(["-rlaF", word]).arg(folder).output().unwrap();
    !found.stdout.is_empty()
}

#[test]
fn a_password_is_written_nowhere() {
    const WORD: &str = "correct horse battery";
    let home = Home::with_key();
    let image = image(&home);
    let create = |option: &str, value: &str, input: &str| {
        let mut child = home.virga(["create", "g", "--no-start", "--image", image.to_str().unwrap(), option, value]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // One that reads nothing closes it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    std::fs::write(home.path("word"), format!("{WORD}\r\n")).unwrap();
    for (option, value, input) in
        [("--password", WORD, ""), ("--password-file", "word", ""), ("--password-file", "-", "correct horse battery\n")]
    {
        let created = create(option, value, input);
        let said = text(&created.stderr);
        assert!(created.status.success(), "{said}");
        assert_eq!(said.contains("--password-file keeps it out"), option == "--password", "{said}");
        assert!(!said.contains(WORD) && !is_written(&home.state(), WORD), "{option} {value}");
        let seed = std::fs::read(home.state().join("guests/g/seed.img")).unwrap();
        let files = virga::seed::iso::read_iso(&seed).unwrap();
        let user_data = text(&files.into_iter().find(|(file, _)| file == "user-data").unwrap().1);
        let hash = user_data.split(['"', '\'', ' ', '\n']).find(|word| word.starts_with("$6$")).expect(&user_data);
        // As another program makes it.
        let salt = hash.split('$').nth(2).unwrap();
        assert_eq!(run("openssl", ["passwd", "-6", "-salt", salt, WORD]).trim(), hash);
        home.ok(["destroy", "g"]);
    }
    for (value, part) in [("nothing-there", "nothing-there"), ("home", "home")] {
        let failed = create("--password-file", value, "");
        assert!(failed.status.code() == Some(2) && text(&failed.stderr).contains(part), "{}", text(&failed.stderr));
    }
    for wrong in ["", "two\nlines\n"] {
        let failed = create("--password-file", "-", wrong);
        assert!(
            failed.status.code() == Some(2) && text(&failed.stderr).contains("password"),
            "{}",
            text(&failed.stderr)
        );
    }
    home.fails(2, ["create", "g", "--password", "x", "--password-file", "word"]);
    home.assert_nothing_left();
}
