use super::*;
use crate::base::cmd::Cmd;
use crate::ssh::keys::HostKeys;
use crate::ssh::testing::{agent, ssh_add};

fn key() -> String {
    HostKeys::generate("me@here").unwrap().ed25519.public
}

/// A key of the given type, made by ssh-keygen.
fn keygen(folder: &Path, name: &str, kind: &[&str]) -> String {
    let path = folder.join(name);
    let made = Cmd::new("ssh-keygen").args(["-q", "-N", "", "-C", "a b", "-f"]).arg(&path).arg("-t").args(kind).run();
    made.expect("needs ssh-keygen (package openssh-client)");
    fs::read_text(&folder.join(format!("{name}.pub")), 10_000).unwrap().trim_end().to_owned()
}

fn nothing(own: &Path) -> Sources<'_> {
    Sources { files: &[], agent: None, home: None, own }
}

#[test]
fn lines_that_sshd_takes() {
    let key = key();
    let bare = key.strip_suffix(" me@here").unwrap();
    for (line, tidy) in [
        (key.clone(), key.clone()),
        (bare.to_owned(), bare.to_owned()),
        (bare.replace(' ', "\t"), bare.to_owned()),
        (format!("{bare}  two  words"), format!("{bare} two  words")),
        (format!("no-pty {key}"), format!("no-pty {key}")),
        (
            format!(r#"command="echo \"a b\" ssh-rsa c",no-pty   {key}"#),
            format!(r#"command="echo \"a b\" ssh-rsa c",no-pty {key}"#),
        ),
        (format!("environment=\"A=1 2\"\t{bare}"), format!("environment=\"A=1 2\" {bare}")),
    ] {
        assert_eq!(parse_line(&line).unwrap().text, tidy, "{line}");
        assert_eq!(parse_line(&line).unwrap().key, bare);
    }
}

#[test]
fn lines_that_sshd_does_not_take() {
    let key = key();
    let words: Vec<&str> = key.split(' ').collect();
    for bad in [
        "x".to_owned(),
        "ssh-ed25519".to_owned(),
        format!("ssh-ed25519 {}", &words[1][..words[1].len() - 4]),
        format!("ssh-ed25519 {}", &words[1][..words[1].len() - 3]),
        format!("ssh-rsa {}", words[1]),
        format!("ssh-ed25519 {}=", words[1]),
        format!("no-pty no-pty {key}"),
        format!("command=\"echo {key}"),
        format!("ssh-ed25519-cert-v01@openssh.com {}", words[1]),
        format!("ssh-dss {}", words[1]),
        format!("{key}\u{1b}[31m"),
    ] {
        assert!(parse_line(&bad).is_err(), "{bad}");
    }
}

#[test]
fn every_type_that_ssh_keygen_makes() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [&["ed25519"][..], &["rsa", "-b", "2048"], &["ecdsa", "-b", "384"], &["ecdsa", "-b", "521"]] {
        let line = keygen(folder.path(), &kind.concat(), kind);
        assert_eq!(parse_line(&line).unwrap().text, line);
    }
}

#[test]
fn named_files_exclude_everything_else() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two, own) = (key(), key(), folder.path().join("own"));
    let file = folder.path().join("work.pub");
    fs::write_new(&file, format!("# mine\n\n{one}\r\n{two}\n{one} again\n").as_bytes(), 0o644).unwrap();
    let sources = Sources { files: std::slice::from_ref(&file), home: Some(folder.path()), ..nothing(&own) };
    let found = collect(&sources).unwrap();
    // Several keys, none of them here: it takes virga's own to get in.
    let ours = keys::own_key(&own).unwrap().public;
    assert_eq!((found.keys, found.origin), (vec![one.clone(), two.clone(), ours], Origin::Files));
    let [one, two] = [one, two].map(|line| Identity::Public(line.strip_suffix(" me@here").unwrap().to_owned()));
    assert_eq!(found.identities, [Identity::Private(own), one, two]);
    assert!(found.notes[0].contains("no private half"), "{:?}", found.notes);

    let own = folder.path().join("other");
    let line = keygen(folder.path(), "mine", &["ed25519"]);
    let files = [folder.path().join("mine.pub"), file];
    let found = collect(&Sources { files: &files, ..nothing(&own) }).unwrap();
    assert_eq!((found.keys.len(), &found.keys[0]), (3, &line));
    assert_eq!(found.identities[0], Identity::Private(folder.path().join("mine")));
    assert!(found.notes.is_empty() && !own.exists(), "{:?}", found.notes);
}

/// Why a private key is of no use to a program that can ask nobody, and the beginning of what is said of it.
type Shut = (&'static str, &'static str, fn(&Path));

/// However few of the user's keys can be used: virga gets in, and `create` says why by another key.
#[test]
fn virga_gets_in_where_no_key_of_the_users_can_be_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let keygen = |args: &[&str], file: &Path| {
        Cmd::new("ssh-keygen").args(["-q"]).args(args).arg("-f").arg(file).run().expect("needs ssh-keygen");
    };
    let cases: [Shut; 5] = [
        ("passphrase", "has a passphrase", |file| {
            Cmd::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "secret", "-f"]).arg(file).run().unwrap();
        }),
        // Others may read it: ssh refuses such a key.
        ("open", "cannot be used", |file| {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("another", "is not the other half", |file| {
            let other = HostKeys::generate("x").unwrap().ed25519;
            fs::write_atomic(file, other.private.as_bytes(), 0o600).unwrap();
        }),
        ("damaged", "cannot be used", |file| fs::write_atomic(file, b"rubbish", 0o600).unwrap()),
        ("absent", "no private half", |file| fs::remove_file(file).unwrap()),
    ];
    for (name, said, spoil) in cases {
        let home = tempfile::tempdir().unwrap();
        let (own, private) = (home.path().join("own"), home.path().join(".ssh/id_ed25519"));
        fs::create_dir(&home.path().join(".ssh")).unwrap();
        keygen(&["-t", "ed25519", "-N", ""], &private);
        let sources = Sources { home: Some(home.path()), ..nothing(&own) };
        let sure = collect(&sources).unwrap();
        assert_eq!((sure.keys.len(), own.exists(), sure.notes.is_empty()), (1, false, true), "{name}");

        spoil(&private);
        let file = [home.path().join(".ssh/id_ed25519.pub")];
        for sources in [sources, Sources { files: &file, ..nothing(&own) }] {
            let found = collect(&sources).unwrap();
            assert_eq!(found.keys.len(), 2, "{name}");
            assert_eq!(found.keys[0], sure.keys[0], "the user gets in by theirs: {name}");
            assert_eq!(found.identities[0], Identity::Private(own.clone()), "{name}");
            assert!(found.notes[0].contains(said) && found.notes[0].contains("virga's own key"), "{:?}", found.notes);
        }
    }
    // Any form of key that ssh reads, and one that opens is enough.
    let home = tempfile::tempdir().unwrap();
    let (own, folder) = (home.path().join("own"), home.path().join(".ssh"));
    fs::create_dir(&folder).unwrap();
    keygen(&["-t", "ed25519", "-N", "secret"], &folder.join("id_a"));
    keygen(&["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""], &folder.join("id_b.old"));
    let found = collect(&Sources { home: Some(home.path()), ..nothing(&own) }).unwrap();
    assert_eq!((found.keys.len(), found.notes.len(), own.exists()), (2, 0, false), "{:?}", found.notes);
}

#[test]
fn a_bad_named_file_is_a_usage_error_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    let private = HostKeys::generate("x").unwrap().ed25519.private;
    for (name, text, needle) in [
        ("broken", Some(format!("{}\n\nrubbish\n", key())), "broken':3 "),
        ("blank", Some(" \n# nothing\n".to_owned()), "blank'"),
        ("private", Some(private), "private key"),
        ("absent", None, "absent'"),
    ] {
        let file = [folder.path().join(name)];
        if let Some(text) = text {
            fs::write_new(&file[0], text.as_bytes(), 0o644).unwrap();
        }
        let error = collect(&Sources { files: &file, ..nothing(&own) }).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{name}");
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn home_keys_come_after_the_agent_and_before_our_own() {
    let folder = tempfile::tempdir().unwrap();
    let (home, own) = (folder.path().join("home"), folder.path().join("state").join("id_ed25519"));
    fs::create_dir(&home.join(".ssh")).unwrap();
    let sources = Sources { home: Some(&home), agent: Some(Path::new("/nonexistent")), ..nothing(&own) };

    let found = collect(&sources).unwrap();
    assert_eq!(found.origin, Origin::Own { path: own.clone(), made: true });
    assert_eq!(found.identities, [Identity::Private(own.clone())]);
    assert!(found.notes[0].contains("agent"), "{:?}", found.notes);
    assert_eq!(collect(&sources).unwrap().origin, Origin::Own { path: own.clone(), made: false });

    let write = |name: &str, text: &str| fs::write_new(&home.join(".ssh").join(name), text.as_bytes(), 0o644).unwrap();
    let (one, two) = (keygen(&home.join(".ssh"), "id_b", &["ed25519"]), key());
    write("id_a.pub", &two);
    write("id_broken.pub", "rubbish");
    write("id_b-cert.pub", "ssh-ed25519-cert-v01@openssh.com AAAA");
    write("other.pub", &key());
    let found = collect(&sources).unwrap();
    assert_eq!((found.keys, found.origin), (vec![two, one], Origin::Home));
    assert_eq!(found.identities[1], Identity::Private(home.join(".ssh/id_b")));
    assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
    assert!(found.notes[1].contains("id_broken.pub':1"), "{:?}", found.notes);
}

#[test]
fn a_real_agent_is_asked_first() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let _agent = agent(&socket);
    let home = folder.path().join("home");
    fs::create_dir(&home.join(".ssh")).unwrap();
    let at_home = keygen(&home.join(".ssh"), "id_ed25519", &["ed25519"]);
    let own = folder.path().join("own");
    let sources = Sources { agent: Some(&socket), home: Some(&home), ..nothing(&own) };
    assert_eq!(collect(&sources).unwrap().keys, [at_home], "an empty agent counts as none");

    let lines = [keygen(folder.path(), "one", &["ed25519"]), keygen(folder.path(), "two", &["rsa", "-b", "2048"])];
    for name in ["one", "two"] {
        ssh_add(&socket, &folder.path().join(name));
    }
    // The agent may be gone when virga has to get in: nobody has to be told as long as it is there.
    let found = collect(&sources).unwrap();
    let ours = keys::own_key(&own).unwrap().public;
    assert_eq!((found.keys, found.origin), ([&lines[..], &[ours]].concat(), Origin::Agent));
    let public = |line: &String| Identity::Public(line.strip_suffix(" a b").unwrap().to_owned());
    assert_eq!(found.identities, [Identity::Private(own.clone()), public(&lines[0]), public(&lines[1])]);
    assert!(found.notes.is_empty(), "{:?}", found.notes);

    // Who names a key that the agent holds wants no other.
    fs::remove_file(&folder.path().join("one")).unwrap();
    let file = [folder.path().join("one.pub")];
    let found = collect(&Sources { files: &file, ..sources }).unwrap();
    assert_eq!((found.keys, found.notes), (lines[..1].to_vec(), Vec::new()));
}

#[test]
fn what_cannot_be_read_is_told_with_its_reason_and_is_not_called_absent() {
    let folder = tempfile::tempdir().unwrap();
    let (home, own) = (folder.path().join("home"), folder.path().join("own"));
    fs::create_dir(&home.join(".ssh")).unwrap();
    let sources = Sources { home: Some(&home), ..nothing(&own) };
    assert_eq!(find(&sources).unwrap().none(), "no SSH key of yours was found");
    // A link to nowhere: that not even root can read.
    std::os::unix::fs::symlink(home.join("gone"), home.join(".ssh/id_rsa.pub")).unwrap();
    let found = find(&sources).unwrap();
    assert!(found.notes[0].contains("id_rsa.pub'") && found.notes[0].contains("No such file"), "{:?}", found.notes);
    assert_eq!(found.none(), "no SSH key of yours was found that can be read");
}
