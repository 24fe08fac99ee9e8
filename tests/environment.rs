//! The environment that su, sudo -E, cron and containers leave: what is another user's, missing or of no use is passed
//! over, with a word, and every hint names what would help.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use support::{Home, names, run, small_image, text, write};

/// A user who exists nowhere else.
const UID: &str = "54321";

/// A home whose program runs as an ordinary user; as root it would be in nobody's way.
struct User {
    home: Home,
    root: bool,
}

impl User {
    fn new() -> Self {
        let user = User { home: Home::new(), root: rustix::process::geteuid().is_root() };
        std::fs::copy(support::VIRGA, user.path("virga")).unwrap();
        small_image(&user.path("image"), "1M");
        user.give(&user.path(""));
        user
    }

    fn path(&self, rest: &str) -> std::path::PathBuf {
        self.home.path(rest)
    }

    fn give(&self, path: &Path) {
        if self.root {
            run("chown", ["-R", &format!("{UID}:{UID}"), path.to_str().unwrap()]);
        }
    }

    /// The user's program with nothing set but the home folder.
    fn virga(&self, args: &[&str]) -> Command {
        let drop = ["setpriv", "--reuid", UID, "--regid", UID, "--clear-groups", "--"];
        let program = self.path("virga");
        let words = if self.root { &drop[..] } else { &["env", "--"] };
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(program).args(args).env_clear();
        command.env("PATH", std::env::var("PATH").unwrap()).env("HOME", self.path("home")).current_dir(self.path(""));
        command
    }

    fn create(&self, name: &str) -> Command {
        let image = self.path("image");
        self.virga(&["create", name, "--no-start", "--image", image.to_str().unwrap()])
    }

    /// A folder that this user may not enter: root's, or where there is no root one that is closed.
    fn closed(&self, name: &str) -> std::path::PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.join("below")).unwrap();
        if self.root {
            run("chown", ["-R", "0:0", path.to_str().unwrap()]);
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(if self.root { 0o700 } else { 0o000 }))
            .unwrap();
        path
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for name in names(&self.path("")) {
            let _ = std::fs::set_permissions(self.path(&name), std::fs::Permissions::from_mode(0o700));
        }
    }
}

#[track_caller]
fn good(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

#[track_caller]
fn bad(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    stderr
}

#[test]
fn a_runtime_folder_that_is_of_no_use_is_passed_over_with_a_word() {
    let user = User::new();
    let closed = user.closed("another");
    write(&user.path("file"), "");
    user.give(&user.path("file"));
    let below = closed.join("below");
    let cases =
        [closed.as_path(), &below, &user.path("file"), &user.path("absent"), Path::new("run/user/7"), Path::new("/")];
    for (number, folder) in cases.into_iter().enumerate() {
        let mut create = user.create("guest");
        create.env("XDG_RUNTIME_DIR", folder);
        let said = good(create);
        let word = format!("XDG_RUNTIME_DIR is '{}', which ", folder.display());
        assert!(said.contains(&word) && said.contains(".local/share/virga/run'"), "{number} {said}");
        let mut destroy = user.virga(&["destroy", "guest"]);
        destroy.env("XDG_RUNTIME_DIR", folder);
        good(destroy);
    }
    assert!(!good(user.create("none")).contains("XDG_RUNTIME_DIR"), "not set is nothing unusual");
    let own = user.path("own");
    std::fs::create_dir(&own).unwrap();
    user.give(&own);
    let mut create = user.create("own");
    create.env("XDG_RUNTIME_DIR", &own);
    assert!(!good(create).contains("XDG_RUNTIME_DIR"));
    // --quiet is about notes too.
    let mut list = user.virga(&["--quiet", "list"]);
    list.env("XDG_RUNTIME_DIR", "relative");
    assert_eq!(good(list), "");
}

#[test]
fn keys_that_may_not_be_read_are_passed_over_with_a_word() {
    let user = User::new();
    let ssh = user.closed("home/.ssh");
    let said = good(user.create("guest"));
    assert!(said.contains(&format!("'{}'", ssh.display())) && said.contains("not used"), "{said}");
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn the_home_of_another_user_is_no_home() {
    let user = User::new();
    let closed = user.closed("another");
    let with_home = |mut command: Command| {
        command.env("HOME", &closed);
        command
    };
    let error = bad(with_home(user.create("guest")), 2);
    let word = format!("HOME is '{}', and nothing there is used", closed.display());
    assert!(error.contains(&word) && error.contains("su -") && error.contains("VIRGA_HOME"), "{error}");
    // What the hint names helps.
    let mut create = with_home(user.create("guest"));
    create.env("VIRGA_HOME", user.path("state"));
    let said = good(create);
    assert!(said.contains(&word), "{said}");
    let mut create = user.create("relative");
    create.env("HOME", "home").env("VIRGA_HOME", user.path("state"));
    assert!(good(create).contains("HOME is 'home', and nothing there is used: it is not an absolute path"));
}

#[test]
fn a_state_folder_of_another_user_is_named_with_what_would_help() {
    let user = User::new();
    let closed = user.closed("another");
    for folder in [closed.clone(), closed.join("below/state")] {
        let mut list = user.virga(&["list"]);
        list.env("VIRGA_HOME", &folder);
        let error = bad(list, 1);
        assert!(error.contains(&format!("'{}' cannot be used", folder.display())), "{error}");
        assert!(error.contains("hint: VIRGA_HOME=FOLDER"), "{error}");
        assert_eq!(error.contains("belongs to another user"), user.root, "{error}");
    }
    // Configuration that may not be read is as good as none.
    std::fs::create_dir(user.path("home/.config")).unwrap();
    user.give(&user.path("home/.config"));
    let config = user.closed("home/.config/virga");
    let said = good(user.virga(&["sync", "--list-sources"]));
    assert!(said.contains(&format!("'{}' is not used", config.display())), "{said}");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn another_user_is_blamed_only_where_there_is_one() {
    let user = User::new();
    let data = user.path("user-data");
    write(&data, "#cloud-config\n");
    user.give(&data);
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o000)).unwrap();
    let create = |name: &str| {
        let mut create = user.create(name);
        create.args(["--user-data", data.to_str().unwrap()]);
        create
    };
    let error = bad(create("guest"), 2);
    assert!(error.contains("user-data'") && error.contains("its mode does not allow it"), "{error}");
    assert!(!error.contains("another user") && !error.contains("VIRGA_HOME"), "{error}");
    if user.root {
        run("chown", ["0:0", data.to_str().unwrap()]);
        let error = bad(create("guest"), 2);
        assert!(error.contains("belongs to another user (uid 0)"), "{error}");
        assert!(!error.contains("VIRGA_HOME"), "{error}");
    }
}
