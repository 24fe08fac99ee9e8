//! A libvirt of the test's own: daemons, networks and folders in namespaces
//! that end with it, so that nothing of it is ever left on the machine, and
//! nothing of the machine's own libvirt is touched.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{LONG, run, text, wait_for, watch};

/// The ordinary user `virga-test`, who exists in the namespaces alone.
const UID: &str = "54321";

/// What runs first in the namespaces. `$1` is the sandbox's folder.
const SET_UP: &str = r#"
set -eu
dir=$1
mkdir "$dir/etc" "$dir/work"
# The network cards that it shows are those of the network it was mounted in.
mount -t sysfs sys /sys
# Of the machine's settings a copy that nobody else sees.
mount -t overlay etc -o "lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/work" /etc
for place in var/lib/libvirt var/cache/libvirt var/log/libvirt run/libvirt var/log/swtpm var/lib/swtpm-localca; do
    mkdir -p "$dir/$place" "/$place"
    mount --bind "$dir/$place" "/$place"
done
# Who signs the certificates of TPMs there is no root.
chown tss /var/lib/swtpm-localca
mkdir -p /var/lib/libvirt/images /etc/qemu
# What the machine's own libvirt knows is none of ours.
find /etc/libvirt -name '*.xml' ! -path '*/networks/default.xml' -delete
rm -rf /etc/libvirt/storage /etc/libvirt/qemu/networks/autostart
echo "virga-test:x:54321:54321::$USER_HOME:/bin/sh" >>/etc/passwd
echo "virga-test:x:54321:" >>/etc/group
echo 'allow all' >/etc/qemu/bridge.conf
# No cgroups: they are the machine's. No security drivers: nothing here may depend on them.
printf 'cgroup_controllers = []\nsecurity_driver = "none"\n' >>/etc/libvirt/qemu.conf
ip link set lo up
# passt takes addresses and routes from a network that leads somewhere; this one leads nowhere.
ip link add name out0 type veth peer name out1
ip link set out1 up
ip address add 10.99.0.2/24 dev out0
ip link set out0 up
ip route add default via 10.99.0.1
virtlogd -d -p "$dir/virtlogd.pid"
libvirtd -d -p "$dir/libvirtd.pid"
touch "$dir/ready"
# The first process of a namespace buries those that nobody waits for.
while :; do sleep 1000 & wait; done
"#;

/// Namespaces with a libvirt in them.
pub struct Sandbox {
    dir: tempfile::TempDir,
    child: Child,
    inside: u32,
    /// Whether containers run there: they leave cgroups on the machine.
    pub containers: bool,
}

impl Sandbox {
    /// Needs root, for the namespaces and for `qemu:///system`. `home`: the home folder of the user there.
    pub fn new(home: &Path) -> Self {
        let sandbox = Sandbox::made("the test's own libvirt", SET_UP, home);
        wait_for("libvirtd", LONG, || {
            sandbox.command("virsh").args(["-c", "qemu:///system", "uri"]).output().unwrap().status.success()
        });
        sandbox
    }

    /// Namespaces in which this script ran as far as to the file `ready`.
    pub fn made(what: &str, set_up: &str, home: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("vs-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "--propagation", "private"])
            .args(["sh", "-c", set_up, "sandbox"])
            .arg(dir.path())
            .env("PATH", super::path())
            // Not as an argument: processes are told by their arguments.
            .env("USER_HOME", home)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        watch::companion(&child);
        let mut sandbox = Sandbox { dir, child, inside: 0, containers: false };
        wait_for(what, LONG, || {
            assert!(sandbox.child.try_wait().unwrap().is_none(), "the namespaces could not be made: is this root?");
            sandbox.dir.path().join("ready").exists()
        });
        let children = format!("/proc/{0}/task/{0}/children", sandbox.child.id());
        sandbox.inside = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        sandbox
    }

    /// A program in the namespaces, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program).env("PATH", super::path()).stdin(Stdio::null());
        command
    }

    /// Runs a program that must succeed; returns what it says.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The words that bring a command into the namespaces.
    pub fn enter(&self) -> Vec<String> {
        let words = ["--target", &self.inside.to_string(), "--mount", "--net", "--pid", "--"];
        words.map(str::to_owned).into()
    }

    /// The words that bring a command there as the user there, behind `nsenter`.
    pub fn enter_as_user(&self) -> Vec<String> {
        let user = ["setpriv", "--reuid", UID, "--regid", UID, "--clear-groups", "--"].map(str::to_owned);
        [self.enter(), user.into()].concat()
    }

    /// Gives files to the user there.
    pub fn give(&self, path: &Path) {
        run("chown", ["-R", &format!("{UID}:{UID}"), path.to_str().unwrap()]);
    }

    pub fn outside(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside.trim_start_matches('/'))
    }
}

impl Sandbox {
    /// What libvirt and its QEMUs said last: it goes with the folder.
    #[allow(clippy::print_stderr, reason = "whoever looks at the failure is to read it")]
    fn show_logs(&self) {
        let folder = self.outside("/var/log/libvirt/qemu");
        for name in super::names(&folder) {
            let log = std::fs::read(folder.join(&name)).unwrap_or_default();
            let log = text(&log);
            let lines: Vec<&str> = log.lines().collect();
            // The command line itself is long, and known.
            let last = lines[lines.len().saturating_sub(8)..].iter().map(|line| line.get(..300).unwrap_or(line));
            eprintln!("{name}:\n{}", last.collect::<Vec<_>>().join("\n"));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // The first process of the namespace takes all others with it.
        let _ = Command::new("kill").args(["-KILL", &self.inside.to_string()]).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.containers {
            forget_cgroups();
        }
    }
}

/// What containers leave that are killed with their namespaces. Cgroups with somebody in them cannot be removed.
fn forget_cgroups() {
    let find = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*/lxc.*", "-exec", "rmdir", "{}", "+"];
    let _ = Command::new("find").args(find).stderr(Stdio::null()).status();
}
