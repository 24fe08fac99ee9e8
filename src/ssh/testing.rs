//! For tests: a real sshd, in a temporary folder and on a port of its own; files as a guest has them.
#![allow(clippy::disallowed_methods, reason = "tests start sshd on a socket, which base::cmd does not offer")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::keys::{HostKeys, OwnKey, own_key};
use super::known_hosts;
use super::session::Login;
use crate::base::cmd::{Cmd, Running};
use crate::base::fs;
use crate::base::poll::wait_for;

/// A file of a guest's below `root`, with the folders above it.
pub(super) fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write_atomic(&path, text.as_bytes(), 0o644).unwrap();
}

/// One sshd process a connection (`sshd -i`): no port to guess, nothing to stop.
pub(super) struct Sshd {
    pub folder: tempfile::TempDir,
    pub addr: SocketAddr,
    pub keys: HostKeys,
    pub user_key: OwnKey,
    up: Arc<AtomicBool>,
    turned_away: Arc<AtomicUsize>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Sshd {
    pub fn start() -> Self {
        let sshd = Self::down();
        sshd.come_up();
        sshd
    }

    /// Closes every connection until it comes up.
    pub fn down() -> Self {
        let folder = tempfile::Builder::new().prefix("virga sshd%h").tempdir().unwrap();
        let keys = HostKeys::generate("root@test").unwrap();
        let user_key = own_key(&folder.path().join("user").join("id_ed25519")).unwrap();
        let write = |name: &str, text: &str| fs::write_new(&folder.path().join(name), text.as_bytes(), 0o600).unwrap();
        write("host_ed25519", &keys.ed25519.private);
        write("host_ecdsa", &keys.ecdsa.private);
        write("authorized", &user_key.public);
        known_hosts::write(&folder.path().join("known_hosts"), "virga-test", &keys.public_lines()).unwrap();
        // sshd as root wants this folder; packages make it when the service starts.
        let _ = std::fs::create_dir("/run/sshd");
        let file = |name: &str| folder.path().join(name).display().to_string().replace('%', "%%");
        let config = format!(
            "HostKey \"{}\"\nHostKey \"{}\"\nAuthorizedKeysFile \"{}\"\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel VERBOSE\n\
             AcceptEnv *\nX11Forwarding yes\nPermitTunnel yes\n",
            file("host_ed25519").replace("%%", "%"),
            file("host_ecdsa").replace("%%", "%"),
            file("authorized"),
        );
        write("sshd_config", &config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (path, connections) = (folder.path().to_owned(), Arc::new(Mutex::new(Vec::new())));
        let (up, turned_away) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (list, listens, away) = (Arc::clone(&connections), Arc::clone(&up), Arc::clone(&turned_away));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if listens.load(Ordering::SeqCst) {
                    list.lock().unwrap().push(stream.try_clone().unwrap());
                    serve(stream, &path);
                } else {
                    drop(stream);
                    away.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Sshd { folder, addr, keys, user_key, up, turned_away, connections }
    }

    /// Serves from now on.
    pub fn come_up(&self) {
        self.up.store(true, Ordering::SeqCst);
    }

    /// How many connections were closed before it came up.
    pub fn turned_away(&self) -> usize {
        self.turned_away.load(Ordering::SeqCst)
    }

    /// How often its log has these words.
    pub fn logged(&self, words: &str) -> usize {
        // Absent until the first connection.
        let log = fs::read_text(&self.path("sshd.log"), 1 << 20).unwrap_or_default();
        log.matches(words).count()
    }

    /// Breaks every connection that there was.
    pub fn cut(&self) {
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn login(&self) -> Login {
        Login {
            pinned: true,
            user: Cmd::new("id").arg("-un").run().unwrap().text().trim().to_owned(),
            alias: "virga-test".into(),
            known_hosts: self.path("known_hosts"),
            algorithms: known_hosts::algorithms(&self.keys.public_lines()),
            identities: vec![self.user_key.path.clone()],
        }
    }
}

/// A real `ssh-agent` in the foreground, ended with the value.
pub(super) fn agent(socket: &Path) -> Running {
    let agent = Cmd::new("ssh-agent").args(["-D", "-a"]).arg(socket).spawn();
    let agent = agent.expect("needs ssh-agent (package openssh-client)");
    wait_for("ssh-agent's socket", || std::os::unix::net::UnixStream::connect(socket).is_ok());
    agent
}

/// Hands a private key to an agent. The program under test gets the socket as a parameter; `ssh-add` knows only the
/// variable.
pub(super) fn ssh_add(socket: &Path, key: &Path) {
    let set = format!("SSH_AUTH_SOCK={}", socket.display());
    Cmd::new("env").arg(set).args(["ssh-add", "-q"]).arg(key).run().unwrap();
}

fn serve(stream: TcpStream, folder: &Path) {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("sshd.log")).unwrap();
    let socket = OwnedFd::from(stream);
    let mut child = Command::new("/usr/sbin/sshd")
        .args(["-i", "-e", "-f"])
        .arg(folder.join("sshd_config"))
        .stdin(socket.try_clone().unwrap())
        .stdout(socket)
        .stderr(Stdio::from(log))
        .spawn()
        .expect("needs sshd (package openssh-server)");
    std::thread::spawn(move || child.wait());
}
