//! A publisher's keys: several side by side, from an old to a new one, one that only GnuPG can use. Read by clients that
//! know one of them, and by GnuPG.

#![allow(clippy::disallowed_methods, reason = "tests touch the machine as its users do")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{Home, Mirror, run, small_image, text, wait_for};

const KEYS: [&str; 4] = ["os=debian", "release=bookworm", "version=12", "version_name=20261101"];

/// In this order: the server ends before the folder goes.
struct Publisher {
    mirror: Mirror,
    home: Home,
}

impl Publisher {
    /// Of a stream that is signed with `publisher.key`.
    fn new() -> Self {
        let home = Home::new();
        let image = home.path("image.qcow2");
        small_image(&image, "1M");
        let mirror = Mirror::with_image(&home, &image, &KEYS);
        Publisher { mirror, home }
    }

    fn words<'a>(&'a self, verb: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["stream", verb, self.mirror.dir.to_str().unwrap()], more].concat()
    }

    fn key(&self, name: &str) -> String {
        self.home.path(name).display().to_string()
    }

    /// What clients are given at this moment.
    fn keyring(&self, name: &str) -> PathBuf {
        let copy = self.home.path(name);
        std::fs::copy(self.mirror.dir.join("keyring.gpg"), &copy).unwrap();
        copy
    }

    /// The exit code of a sync by a client that has seen nothing before.
    fn client(&self, keyring: &Path) -> i32 {
        let client = Home::new();
        let args = ["sync", "--source", &self.mirror.url, "--keyring", keyring.to_str().unwrap()];
        client.output(args).status.code().unwrap()
    }

    /// The exit codes of GnuPG for each form of each document.
    fn gpgv(&self, keyring: &Path) -> Vec<i32> {
        let folder = self.mirror.dir.join("streams/v1");
        let mut codes = Vec::new();
        for name in support::names(&folder) {
            let file = folder.join(&name);
            let gpgv = || {
                let mut gpgv = Command::new("gpgv");
                gpgv.arg("--keyring").arg(keyring);
                gpgv
            };
            let output = match name.strip_suffix(".gpg") {
                Some(plain) => gpgv().arg(&file).arg(folder.join(plain)).output().unwrap(),
                None if name.ends_with(".sjson") => gpgv().arg(&file).output().unwrap(),
                None => continue,
            };
            codes.push(output.status.code().unwrap());
        }
        assert!(codes.len() >= 4, "{codes:?}");
        codes.dedup();
        codes
    }
}

#[test]
fn a_stream_moves_to_a_new_key_and_no_client_is_cut_off() {
    let publisher = Publisher::new();
    let home = &publisher.home;
    let (old, new) = (publisher.key("publisher.key"), publisher.key("new.key"));
    let with_old = publisher.keyring("old.gpg");

    // Nobody moves a stream who has not signed it.
    home.ok(["stream", "init", home.path("other").to_str().unwrap(), "--key", &new]);
    let error = home.fails(5, publisher.words("rekey", &["--key", &new]));
    assert!(error.contains("no signature by a trusted key"), "{error}");
    assert_eq!(publisher.keyring("same.gpg"), home.path("same.gpg"));
    assert_eq!((publisher.client(&home.path("same.gpg")), publisher.gpgv(&with_old)), (0, vec![0]));

    // GnuPG wants to know every key that signs: it is given the new one first.
    home.ok(publisher.words("rekey", &["--key", &old, "--announce", &new]));
    let with_both = publisher.keyring("both.gpg");
    assert_eq!((publisher.gpgv(&with_old), publisher.gpgv(&with_both)), (vec![0], vec![0]));
    let image = home.path("image.qcow2");
    let add = |version: &str, keys: &[&str]| -> Vec<String> {
        let version = format!("version_name={version}");
        let words = publisher.words("add", &[image.to_str().unwrap(), "os=debian", "release=bookworm", &version]);
        words.iter().chain(keys).map(|&word| word.to_owned()).collect()
    };
    small_image(&image, "2M");
    home.ok(add("20261102", &["--key", &old]));
    assert_eq!(std::fs::read(publisher.keyring("again.gpg")).unwrap(), std::fs::read(&with_both).unwrap());

    let said = home.ok(publisher.words("rekey", &["--key", &old, "--key", &new]));
    assert_eq!(said.lines().count(), 2, "{said}");
    let only_new = home.path("other/keyring.gpg");
    for keyring in [&with_old, &only_new, &with_both] {
        assert_eq!(publisher.client(keyring), 0, "{keyring:?}");
    }
    assert_eq!((publisher.gpgv(&with_both), publisher.gpgv(&with_old)), (vec![0], vec![2]));

    // A change that one of them does not sign would cut off whoever knows that one alone.
    small_image(&image, "3M");
    for (keys, says) in [
        (vec!["--key", &old], "as well"),
        (vec!["--key", &new], "as well"),
        (vec!["--key", &old, "--key", &old], "twice"),
        (vec![], "which key signs"),
    ] {
        let error = home.fails(2, add("20261103", &keys));
        assert!(error.contains(says), "{keys:?}: {error}");
    }
    home.ok(add("20261103", &["--key", &old, "--key", &new]));

    home.ok(publisher.words("rekey", &["--key", &new]));
    assert_eq!((publisher.client(&with_old), publisher.client(&only_new), publisher.client(&with_both)), (5, 0, 0));
    assert_eq!((publisher.gpgv(&with_both), publisher.gpgv(&publisher.keyring("last.gpg"))), (vec![0], vec![0]));
    assert_eq!(std::fs::read(home.path("last.gpg")).unwrap(), std::fs::read(&only_new).unwrap());
    let error = home.fails(2, add("20261104", &["--key", &old]));
    assert!(error.contains("signed with another key") && error.contains("rekey"), "{error}");
    home.ok(publisher.words("verify", &[]));
}

/// Killed at whatever step: who could read the stream before or can afterwards can read it now, and a second try ends it.
#[test]
fn a_killed_rekey_cuts_nobody_off() {
    let publisher = Publisher::new();
    let home = &publisher.home;
    let (old, new) = (publisher.key("publisher.key"), publisher.key("new.key"));
    let with_old = publisher.keyring("old.gpg");
    let other = home.path("other");
    home.ok(["stream", "init", other.to_str().unwrap(), "--key", &new]);
    let both = publisher.words("rekey", &["--key", &old, "--key", &new]);
    let one = publisher.words("rekey", &["--key", &old]);
    let mut steps = 0;
    loop {
        steps += 1;
        let killed = home.virga(&both).env("VIRGA_TEST_AT_STEP", format!("KILL {steps}")).output().unwrap();
        assert_eq!(
            (publisher.client(&with_old), publisher.gpgv(&publisher.keyring("now.gpg"))),
            (0, vec![0]),
            "{steps}"
        );
        if killed.status.success() {
            break;
        }
        home.ok(&both);
        assert_eq!(publisher.client(&other.join("keyring.gpg")), 0, "{steps}");
        home.ok(&one);
    }
    assert!(steps > 5, "{steps} steps");
}

/// One under a passphrase: GnuPG's agent has it, as it has those on cards, and no file of it could be read by us.
#[test]
fn a_key_that_only_gnupg_can_use_signs() {
    let publisher = Publisher::new();
    let home = &publisher.home;
    let gpg = home.path("gpg");
    std::fs::create_dir(&gpg).unwrap();
    run("chmod", ["700", gpg.to_str().unwrap()]);
    support::write(&gpg.join("gpg-agent.conf"), "allow-preset-passphrase\n");
    let gnupg = |program: &str, args: &[&str]| {
        let output = Command::new(program).env("GNUPGHOME", &gpg).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    for name in ["card", "twin"] {
        let owner = format!("{name} <{name}@example.com>");
        let secret = ["--batch", "--pinentry-mode=loopback", "--passphrase=secret"];
        gnupg("gpg", &[&secret[..], &["--quick-generate-key", &owner, "ed25519", "sign", "never"]].concat());
    }
    let forget = || gnupg("gpgconf", &["--kill", "gpg-agent"]);
    forget();
    let shown = gnupg("gpg", &["--batch", "--with-colons", "--with-keygrip", "--list-secret-keys", "card@example.com"]);
    let field = |record: &str| {
        let line = shown.lines().find(|line| line.starts_with(record)).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    };
    let ours = |words: &[&str]| home.virga(words).env("GNUPGHOME", &gpg).output().unwrap();
    let old = publisher.key("publisher.key");
    let rekey = publisher.words("rekey", &["--key", &old, "--sign-with", "card@example.com"]);

    // Nobody is there to type the passphrase.
    let failed = ours(&rekey);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    assert!(text(&failed.stderr).contains("GnuPG did not sign"), "{}", text(&failed.stderr));
    assert_eq!(publisher.client(&publisher.keyring("old.gpg")), 0);

    let preset = format!("PRESET_PASSPHRASE {} -1 {}", field("grp"), "736563726574");
    gnupg("gpg-connect-agent", &[&preset, "/bye"]);
    let said = ours(&rekey);
    assert!(said.status.success() && text(&said.stdout).contains(&field("fpr")), "{}", text(&said.stderr));
    let ring = home.path("card.gpg").display().to_string();
    gnupg("gpg", &["--batch", "--output", &ring, "--export", "card@example.com"]);
    assert_eq!((publisher.client(Path::new(&ring)), publisher.gpgv(&publisher.keyring("both.gpg"))), (0, vec![0]));

    let image = home.path("image.qcow2");
    small_image(&image, "2M");
    let add = [image.to_str().unwrap(), "os=debian", "release=bookworm", "version_name=20261102", "--key", &old];
    let added = ours(&publisher.words("add", &[&add[..], &["--sign-with", &field("fpr")]].concat()));
    assert!(added.status.success(), "{}", text(&added.stderr));
    assert_eq!(publisher.client(Path::new(&ring)), 0);

    for (name, code, says) in [("nobody@example.com", 3, "no key"), ("example.com", 2, "several keys")] {
        let failed = ours(&publisher.words("rekey", &["--key", &old, "--sign-with", name]));
        assert_eq!(failed.status.code(), Some(code), "{}", text(&failed.stderr));
        assert!(text(&failed.stderr).contains(says), "{}", text(&failed.stderr));
    }
    forget();
    wait_for("GnuPG's agent to end", Duration::from_secs(60), || {
        !home.processes().iter().any(|line| line.contains("gpg-agent"))
    });
}
