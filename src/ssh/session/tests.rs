use std::os::unix::process::ExitStatusExt as _;

use rstest::rstest;

use super::*;
use crate::base::fs;
use crate::base::poll::LONG;
use crate::ssh::keys::HostKeys;
use crate::ssh::known_hosts;
use crate::ssh::testing::{Sshd, agent, ssh_add};

const LIMIT: Duration = LONG;

fn target(sshd: &Sshd) -> SshTarget {
    sshd.login().at(sshd.addr)
}

#[test]
fn a_command_gets_its_input_and_gives_output_and_exit_code() {
    // The folder's name has a blank and a '%': both must reach ssh whole.
    let sshd = Sshd::start();
    let script = ["cat; echo oops >&2; exit 7"];
    let output = run(&target(&sshd), &script, b"one\ntwo", LIMIT).unwrap();
    assert_eq!(output.text(), "one\ntwo", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((exit_code(output.status), output.stderr.as_slice()), (7, &b"oops\n"[..]));

    // Words are joined and read by the shell there, unless quoted.
    let output = run(&target(&sshd), &["echo", "$((1+1))", &shell_word("$a 'b'")], b"", LIMIT).unwrap();
    assert_eq!(output.text(), "2 $a 'b'\n");
    let output = run(&target(&sshd), &["-V"], b"", LIMIT).unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!words.contains("OpenSSH"), "never taken for an option of ssh itself: {words}");
    let output = run(&target(&sshd), &["kill -9 $$"], b"", LIMIT).unwrap();
    assert_eq!(exit_code(output.status), 255, "the channel has no exit code then");
}

#[test]
fn an_interactive_command_gives_its_exit_code() {
    let sshd = Sshd::start();
    let argv = |text: &str| vec![text.to_owned()];
    assert_eq!(interactive(&target(&sshd), &argv("exit 7"), Tty::Never).unwrap(), 7);
    assert_eq!(interactive(&target(&sshd), &argv("test -t 0"), Tty::Always).unwrap(), 0, "a terminal there");
    let mut nobody = target(&sshd);
    nobody.addr.set_port(1);
    assert_eq!(interactive(&nobody, &argv("true"), Tty::Never).unwrap(), 255);
}

#[test]
fn any_other_host_key_is_refused() {
    let sshd = Sshd::start();
    let other = HostKeys::generate("root@test").unwrap();
    let known = |name: &str, lines: &[&str]| {
        let path = sshd.path(name);
        known_hosts::write(&path, "virga-test", lines).unwrap();
        let mut target = target(&sshd);
        target.login.known_hosts = path;
        run(&target, &["echo", "in"], b"", LIMIT).unwrap()
    };
    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for (name, lines) in [("changed", &other.public_lines()[..]), ("none", &[])] {
        let output = known(name, lines);
        assert_eq!((exit_code(output.status), output.text().as_str()), (255, ""));
        assert!(words(&output).contains("Host key verification failed"), "{}", words(&output));
    }
    assert_eq!(known("right", &sshd.keys.public_lines()).text(), "in\n");
}

/// Of whatever kind the user gave the guest, and with a certificate beside it.
#[rstest]
#[case::rsa(&["-t", "rsa", "-b", "2048"], false)]
#[case::p384(&["-t", "ecdsa", "-b", "384"], false)]
#[case::p521(&["-t", "ecdsa", "-b", "521"], false)]
#[case::rsa_with_a_certificate(&["-t", "rsa", "-b", "2048"], true)]
fn a_host_key_of_any_kind_is_known_again(#[case] options: &[&str], #[case] certified: bool) {
    let sshd = Sshd::start();
    let (key, ca) = (sshd.path("own"), sshd.path("ca"));
    let keygen = |path: &Path, options: &[&str]| {
        Cmd::new("ssh-keygen").args(["-q", "-N", "", "-f"]).arg(path).args(options).run().unwrap();
    };
    keygen(&key, options);
    let private = fs::read(&key, 10_000).unwrap();
    for name in ["host_ed25519", "host_ecdsa"] {
        fs::write_atomic(&sshd.path(name), &private, 0o600).unwrap();
    }
    if certified {
        keygen(&ca, &["-t", "ed25519"]);
        let sign = Cmd::new("ssh-keygen").args(["-q", "-h", "-I", "x", "-n", "virga-test", "-s"]).arg(&ca);
        sign.arg(sshd.path("own.pub")).run().unwrap();
        let config = fs::read_text(&sshd.path("sshd_config"), 10_000).unwrap();
        let config = format!("{config}HostCertificate \"{}\"\n", sshd.path("own-cert.pub").display());
        fs::write_atomic(&sshd.path("sshd_config"), config.as_bytes(), 0o600).unwrap();
    }
    let public = fs::read_text(&sshd.path("own.pub"), 10_000).unwrap();
    let mut target = target(&sshd);
    let before = run(&target, &["echo", "in"], b"", LIMIT).unwrap();
    assert_eq!(exit_code(before.status), 255, "that is no key of ours");
    known_hosts::write(&target.login.known_hosts, "virga-test", &[&public]).unwrap();
    target.login.algorithms = known_hosts::algorithms(&[public]);
    let output = run(&target, &["echo", "in"], b"", LIMIT).unwrap();
    assert_eq!(output.text(), "in\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn another_user_key_is_refused() {
    let sshd = Sshd::start();
    let other = crate::ssh::keys::own_key(&sshd.path("other")).unwrap();
    let mut target = target(&sshd);
    target.login.identities = vec![other.path];
    let output = run(&target, &["echo", "in"], b"", LIMIT).unwrap();
    assert_eq!((exit_code(output.status), output.text().as_str()), (255, ""));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let sshd = Sshd::start();
    // One that was waited for after all would end otherwise, or never.
    let error = run(&target(&sshd), &["sleep", "36000"], b"", Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
}

/// As QEMU's user network does for a guest that stands still: it takes the connection, and nobody says anything.
#[test]
fn a_server_that_says_nothing_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sshd = Sshd::start();
    let mut target = target(&sshd);
    target.addr = silent.local_addr().unwrap();
    assert_eq!(interactive(&target, &["true".to_owned()], Tty::Never).unwrap(), CHANNEL_FAILED);
    let (taken, _) = silent.accept().unwrap();
    drop(taken);
}

/// What a user's configuration may contain, against which our options must hold (`ssh -G` shows what counts).
#[test]
fn the_users_configuration_does_not_weaken_ours() {
    let sshd = Sshd::start();
    let hostile = sshd.path("config");
    let text = "Host *\nStrictHostKeyChecking no\nUserKnownHostsFile /tmp/x\nProxyJump bastion\nRemoteCommand true\n\
                ControlMaster auto\nControlPath ~/.ssh/%r@%h:%p\nHostKeyAlgorithms ssh-rsa\nVerifyHostKeyDNS yes\n\
                NoHostAuthenticationForLocalhost yes\nPort 99\nUser nobody\nHostName example\nCanonicalizeHostname always\n\
                KnownHostsCommand /bin/true\nForwardAgent yes\nForwardX11 yes\n\
                ForwardX11Trusted yes\nTunnel yes\nPermitLocalCommand yes\nLocalCommand true\nSetEnv SECRET=1\nGlobalKnownHostsFile /tmp/y\nAddKeysToAgent yes\nPKCS11Provider /tmp/z\n\
                Host virga-test\nCompression yes\n";
    fs::write_new(&hostile, text.as_bytes(), 0o600).unwrap();
    let target = target(&sshd);
    let mut args = vec!["-G".to_owned(), "-F".into(), hostile.display().to_string()];
    for (key, value) in options(&target, Style::User).unwrap() {
        args.extend(["-o".into(), format!("{key}={value}")]);
    }
    args.extend(["-l".into(), target.login.user.clone(), "--".into(), target.login.alias.clone()]);
    let shown = Cmd::new("ssh").args(args).run().expect("needs ssh (package openssh-client)").text();
    let known = format!("userknownhostsfile {}", target.login.known_hosts.display());
    let port = format!("port {}", target.addr.port());
    let user = format!("user {}", target.login.user);
    for line in [
        "stricthostkeychecking true",
        &known,
        &port,
        &user,
        "hostname 127.0.0.1",
        "hostkeyalias virga-test",
        "hostkeyalgorithms ssh-ed25519,ecdsa-sha2-nistp256",
        "globalknownhostsfile /dev/null",
        "controlmaster false",
        "verifyhostkeydns false",
        "nohostauthenticationforlocalhost no",
        "canonicalizehostname false",
        "identitiesonly yes",
        "addkeystoagent false",
        "forwardagent no",
        "forwardx11 no",
        "forwardx11trusted no",
        "tunnel false",
        "permitlocalcommand no",
        "setenv VIRGA_GUEST=1",
        // That a connection broke is told.
        "loglevel INFO",
        "compression yes",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    for key in ["proxyjump", "proxycommand", "controlpath", "remotecommand", "knownhostscommand", "pkcs11provider"] {
        let set = shown.lines().find(|shown| shown.split(' ').next() == Some(key));
        assert!(set.is_none_or(|line| line.ends_with(" none")), "{set:?}");
    }
}

/// Settings that people have for other machines; each alone would keep them out of a guest on loopback.
const AGAINST: [&str; 14] = [
    "IdentitiesOnly yes",
    "IdentityAgent none",
    "IdentityAgent /nonexistent/agent",
    "IdentityFile /nonexistent/key",
    "PubkeyAuthentication no",
    "PreferredAuthentications password",
    "PubkeyAcceptedAlgorithms ssh-rsa",
    "AddressFamily inet6",
    "BindAddress 192.0.2.1",
    "BindInterface nonexistent0",
    "ProxyJump bastion.example",
    "Ciphers aes128-cbc\nMACs hmac-md5",
    "KexAlgorithms diffie-hellman-group1-sha1",
    "HostKeyAlgorithms ssh-rsa",
];

/// An agent with more keys than a server has patience for, of which the last is the one.
#[test]
fn the_authorized_key_is_offered_whatever_the_agent_holds_and_the_configuration_says() {
    let sshd = Sshd::start();
    let socket = sshd.path("agent");
    let _agent = agent(&socket);
    for number in 0..8 {
        let other = crate::ssh::keys::own_key(&sshd.path(&format!("other/{number}"))).unwrap();
        ssh_add(&socket, &other.path);
    }
    ssh_add(&socket, &sshd.user_key.path);
    let public = sshd.path("keys.pub");
    fs::write_new(&public, format!("{}\n", sshd.user_key.public).as_bytes(), 0o600).unwrap();
    let mut target = target(&sshd);
    let login = |target: &SshTarget, config: &Path| {
        let environment = Cmd::new("env").arg(format!("SSH_AUTH_SOCK={}", socket.display())).arg("ssh");
        let options = arguments(target, Style::User, Tty::Never, &[]).unwrap();
        let command = environment.arg("-F").arg(config).args(options);
        command.args(["-oBatchMode=yes", "--", "virga-test", "echo in"]).output().unwrap()
    };
    let config = sshd.path("config");
    // As ssh finds keys by itself, the agent's are too many.
    fs::write_atomic(&config, b"", 0o600).unwrap();
    target.login.identities = Vec::new();
    let output = login(&target, &config);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Too many authentication failures"), "{output:?}");

    target.login.identities = vec![public];
    for setting in AGAINST.iter().chain([&"Compression yes"]) {
        fs::write_atomic(&config, format!("Host *\n{setting}\n").as_bytes(), 0o600).unwrap();
        let output = login(&target, &config);
        assert_eq!(output.text(), "in\n", "{setting}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let all = AGAINST.map(|setting| format!("{setting}\n")).concat();
    fs::write_atomic(&config, format!("Host virga-*\n{all}").as_bytes(), 0o600).unwrap();
    let output = login(&target, &config);
    assert_eq!(output.text(), "in\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// A configuration as people have it for the machines that they trust, an agent with a key in it, and a guest whose root
/// looks around.
#[test]
fn a_guest_gets_nothing_of_the_users_that_was_not_asked_for() {
    let (sshd, folder) = (Sshd::start(), tempfile::tempdir().unwrap());
    let (socket, ran, config) = (sshd.path("agent"), folder.path().join("ran"), folder.path().join("config"));
    let _agent = agent(&socket);
    ssh_add(&socket, &sshd.user_key.path);
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Free again at once: the server takes it.
    let port = listen().local_addr().unwrap().port();
    let service = listen();
    let led_to = service.local_addr().unwrap();
    // One that hangs up: ssh stays until all that it leads is closed.
    std::thread::spawn(move || service.incoming().for_each(drop));
    let theirs = format!(
        "Host *\nForwardAgent yes\nForwardX11 yes\nForwardX11Trusted yes\nSendEnv VIRGA_TEST_*\nTunnel no\n\
         SetEnv VIRGA_TEST_SET=set\nPermitLocalCommand yes\nLocalCommand touch {}\nRemoteForward {port} {led_to}\n",
        ran.display()
    );
    fs::write_new(&config, theirs.as_bytes(), 0o600).unwrap();
    let line = format!(
        "echo agent=${{SSH_AUTH_SOCK:+$(ssh-add -l | wc -l)}} x=${{DISPLAY:+1}} one=$VIRGA_TEST_ONE \
         two=$VIRGA_TEST_TWO set=$VIRGA_TEST_SET port=$(bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port} && echo 1' 2>&-)"
    );
    let target = target(&sshd);
    let look = |ssh: Cmd| {
        let ssh = ssh.env("SSH_AUTH_SOCK", &socket).env("DISPLAY", ":77");
        let ssh = ssh.env("VIRGA_TEST_ONE", "one").env("VIRGA_TEST_TWO", "two");
        let output = ssh.args(["-oBatchMode=yes", "--", "virga-test"]).arg(&line).output().unwrap();
        let said = output.text();
        assert!(said.starts_with("agent="), "{}", String::from_utf8_lossy(&output.stderr));
        // The server ends a moment after the client, and what it led with it.
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            crate::base::poll::sleep(std::time::Duration::from_millis(10));
        }
        said.trim_end().to_owned()
    };
    let ours = |asked: &[&str]| {
        let asked: Vec<String> = asked.iter().map(|&word| word.to_owned()).collect();
        let program = program_with(&[config.to_str().unwrap()], &asked).unwrap();
        look(program.args(arguments(&target, Style::User, Tty::Never, &asked).unwrap()))
    };
    let x = if crate::base::cmd::find("xauth").is_some() { "1" } else { "" };

    // Else this shows nothing.
    let mut plain = Cmd::new("ssh").arg("-F").arg(&config).arg("-i").arg(&sshd.user_key.path);
    for (key, value) in whom(&target).unwrap() {
        plain = plain.arg(format!("-o{key}={value}"));
    }
    let plain = plain.args(["-l", &target.login.user]);
    assert_eq!(look(plain), format!("agent=1 x={x} one=one two=two set=set port=1"));
    assert!(ran.exists());
    fs::remove_file(&ran).unwrap();

    assert_eq!(ours(&[]), "agent= x= one= two= set= port=");
    assert_eq!(ours(&["-A"]), "agent=1 x= one= two= set= port=");
    assert_eq!(ours(&["-Y"]), format!("agent= x={x} one= two= set= port="));
    assert_eq!(ours(&["-o", "sendenv = VIRGA_TEST_TWO"]), "agent= x= one= two=two set= port=");
    assert_eq!(ours(&["-o", "ForwardAgent=yes", "-o", "SetEnv=VIRGA_TEST_SET=x"]), "agent=1 x= one= two= set=x port=");
    assert!(!ran.exists(), "a command of the user's for another machine");
}

#[test]
fn words_of_a_command_are_no_options() {
    let read = |line: &str| option_words(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let pair = |option, value: &str| (option, value.to_owned());
    assert_eq!(read("-NL 80:a:80 -oSendEnv=X ls -R /"), [pair('N', ""), pair('L', "80:a:80"), pair('o', "SendEnv=X")]);
    for line in
        ["ls -R /", "curl -L x", "-t -- -L 1:a:1", "-o Compression=yes grep -R x", "- -L", "-oLogLevel=DEBUG -L1"]
    {
        let leads = read(line).iter().any(leads_ports);
        assert_eq!(leads, line.ends_with("-L1"), "{line}");
    }
    assert!(
        read("-TL8080:localhost:80").iter().any(leads_ports) && read("-o localforward=1 x").iter().any(leads_ports)
    );
    let text = configuration(&[], &read("-oSendEnv=ONE -o SendEnv TWO echo SendEnv=THREE"));
    assert!(text.contains("ONE") && !text.contains("THREE"), "{text}");
}

/// What was asked for on the command line counts, but not against the host key.
#[test]
fn options_that_were_asked_for() {
    let sshd = Sshd::start();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let target = target(&sshd);
    let asked = words("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ServerAliveInterval=7 -N");
    let args = arguments(&target, Style::User, Tty::Auto, &asked).unwrap();
    let shown = Cmd::new("ssh").args(["-G", "-F", "/dev/null"]).args(args).arg("virga-test").run().unwrap().text();
    for line in ["stricthostkeychecking true", "serveraliveinterval 7", "sessiontype none"] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    // A port of ours that leads through the guest to a server there.
    let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let asked = words(&format!("-L {here}:{}", there.local_addr().unwrap()));
    std::thread::spawn(move || std::io::Write::write_all(&mut there.accept().unwrap().0, b"led there"));
    let read = shell_word(&format!("cat </dev/tcp/127.0.0.1/{}", here.port()));
    let command = command_with(&target, Style::User, Tty::Never, &asked).unwrap();
    let output = command.args(["exec bash -c", &read]).output().unwrap();
    assert_eq!(output.text(), "led there", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn paths_that_ssh_would_read_otherwise() {
    for (path, quoted) in
        [("/a b", "\"/a b\""), ("/50%", "\"/50%%\""), ("/a\"b\\", "\"/a\\\"b\\\\\""), ("/$x", "\"/$x\"")]
    {
        assert_eq!(quoted_path(Path::new(path)).unwrap(), quoted);
    }
    for bad in ["/${HOME}", "/a\nb"] {
        assert_eq!(quoted_path(Path::new(bad)).unwrap_err().kind(), Kind::Usage);
    }
}

#[test]
fn exit_codes_count_as_in_shells() {
    for (raw, code) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (9, 137), (2, 130)] {
        assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
    }
}
