use super::*;
use crate::base::cmd::{Cmd, Running};
use crate::base::poll::wait_for;
use crate::ssh::keys::HostKeys;

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
    assert_eq!((found.keys, found.origin), (vec![one.clone(), two], Origin::Files));
    assert_eq!(found.identities, [] as [PathBuf; 0], "several keys, none of them here");

    let private = folder.path().join("work");
    fs::write_new(&private, b"", 0o600).unwrap();
    assert_eq!(collect(&sources).unwrap().identities, [private]);

    let alone = [folder.path().join("agent-holds-it.pub")];
    fs::write_new(&alone[0], one.as_bytes(), 0o644).unwrap();
    assert_eq!(collect(&Sources { files: &alone, ..sources }).unwrap().identities, alone);
    assert!(!own.exists());
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
    assert_eq!(found.identities, std::slice::from_ref(&own));
    assert!(found.notes[0].contains("agent"), "{:?}", found.notes);
    assert_eq!(collect(&sources).unwrap().origin, Origin::Own { path: own.clone(), made: false });

    let write = |name: &str, text: &str| fs::write_new(&home.join(".ssh").join(name), text.as_bytes(), 0o644).unwrap();
    let (one, two) = (key(), key());
    write("id_b.pub", &one);
    write("id_b", "");
    write("id_a.pub", &two);
    write("id_broken.pub", "rubbish");
    write("id_b-cert.pub", "ssh-ed25519-cert-v01@openssh.com AAAA");
    write("other.pub", &key());
    let found = collect(&sources).unwrap();
    assert_eq!((found.keys, found.origin), (vec![two, one], Origin::Home));
    assert_eq!(found.identities, [home.join(".ssh/id_b")]);
    assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
    assert!(found.notes[1].contains("id_broken.pub':1"), "{:?}", found.notes);
}

/// A real `ssh-agent` in the foreground, ended with the value.
fn agent(socket: &Path) -> Running {
    let agent = Cmd::new("ssh-agent").args(["-D", "-a"]).arg(socket).spawn();
    let agent = agent.expect("needs ssh-agent (package openssh-client)");
    wait_for("ssh-agent's socket", || std::os::unix::net::UnixStream::connect(socket).is_ok());
    agent
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
        // The program under test gets the socket as a parameter; ssh-add knows only the variable.
        let set = format!("SSH_AUTH_SOCK={}", socket.display());
        Cmd::new("env").arg(set).args(["ssh-add", "-q"]).arg(folder.path().join(name)).run().unwrap();
    }
    let found = collect(&sources).unwrap();
    assert_eq!((found.keys, found.origin), (lines.to_vec(), Origin::Agent));
    assert!(found.identities.is_empty() && !own.exists());
}
