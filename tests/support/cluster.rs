//! A cluster of two Incus daemons on this one machine, each in a network and
//! mounts of its own, and what a user's client has of them. All of it is in
//! namespaces that end with the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::sandbox::Sandbox;
use super::{Home, LONG, Mirror, run, text, wait_for, write};

/// What runs first in the namespaces. `$1` is the sandbox's folder. The members are at 10.98.0.1 and 10.98.0.2.
const SET_UP: &str = r#"
set -eu
dir=$1
export dir
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add br0 type bridge
ip address add 10.98.0.254/24 dev br0
ip link set br0 up
cat >"$dir/member" <<'END'
set -eu
mount -t tmpfs tmpfs /run
# The network cards that it shows are those of the network it was mounted in; cgroups are the machine's.
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sys /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
for place in var/lib/incus var/log/incus var/cache/incus; do
    mkdir -p "$dir/$1/$place" "/$place"
    mount --bind "$dir/$1/$place" "/$place"
done
# Containers' users, who are not root here, must find the way to their own root.
chmod 711 "$dir" "$dir/$1" "$dir/$1/var" "$dir/$1/var/lib" "$dir/$1/var/lib/incus"
touch "$dir/unshared-$1"
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip address add "10.98.0.$1/24" dev eth0
ip link set eth0 up
for daemon in /usr/libexec/incus/incusd /usr/lib/incus/incusd; do
    [ ! -x $daemon ] || break
done
# One that is killed is there again, unless it is to stay down.
while :; do
    while [ -e "$dir/down-$1" ]; do sleep 0.05; done
    "$daemon" >>"$dir/incusd-$1.log" 2>&1 &
    echo $! >"$dir/incusd-$1.pid"
    wait || true
done
END
for number in 1 2; do
    unshare --mount --net --propagation private sh "$dir/member" $number &
    echo $! >"$dir/member-$number"
    until [ -e "$dir/unshared-$number" ]; do sleep 0.02; done
    ip link add "out$number" type veth peer name eth0 netns $!
    ip link set "out$number" master br0 up
done
at() { member=$1; shift; nsenter --target "$(cat "$dir/member-$member")" --mount --net -- "$@"; }
at 1 incus admin waitready --timeout=600
at 1 incus admin init --preseed <<END
config: {core.https_address: "10.98.0.1:8443"}
cluster: {server_name: m1, enabled: true}
storage_pools: [{name: default, driver: dir}]
profiles:
- name: default
  devices:
    root: {type: disk, path: /, pool: default}
END
token=$(at 1 incus cluster add m2 | tail -n 1)
at 2 incus admin waitready --timeout=600
at 2 incus admin init --preseed <<END
cluster: {enabled: true, server_address: "10.98.0.2:8443", cluster_token: "$token", member_config: []}
END
touch "$dir/ready"
# The first process of a namespace buries those that nobody waits for.
while :; do sleep 1000 & wait; done
"#;

/// The cluster.
pub struct Cluster {
    pub sandbox: Sandbox,
}

impl Cluster {
    /// Needs root.
    pub fn new(home: &Path) -> Self {
        let mut sandbox = Sandbox::made("the test's own cluster", SET_UP, home);
        sandbox.containers = true;
        Cluster { sandbox }
    }

    fn file(&self, name: &str, member: u8) -> PathBuf {
        self.sandbox.outside(&format!("{name}-{member}"))
    }

    /// A program of one member's.
    pub fn command(&self, member: u8, program: &str) -> Command {
        let pid = std::fs::read_to_string(self.file("member", member)).unwrap();
        let mut command = self.sandbox.command("nsenter");
        command.args(["--target", pid.trim(), "--mount", "--net", "--", program]);
        command
    }

    /// What one member's own client says.
    #[track_caller]
    pub fn incus(&self, member: u8, args: &[&str]) -> String {
        let output = self.command(member, "incus").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Instances as one member sees them: name and the member they are on, sorted.
    pub fn instances(&self, member: u8) -> Vec<(String, String)> {
        let all: Value = serde_json::from_str(&self.incus(member, &["list", "--format", "json"])).unwrap();
        let word = |instance: &Value, key: &str| instance[key].as_str().unwrap().to_owned();
        let mut all: Vec<_> =
            all.as_array().unwrap().iter().map(|one| (word(one, "name"), word(one, "location"))).collect();
        all.sort();
        all
    }

    /// Sets up a user's client as users do: a token of the first member's, and the second one's address.
    pub fn trusts(&self, home: &Home) {
        let token = self.incus(1, &["config", "trust", "add", "virga"]);
        let token = token.lines().last().unwrap();
        let client = |args: &[&str]| {
            let output = self.sandbox.command("incus").args(args).env("HOME", home.path("home")).output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        };
        client(&["remote", "add", "m1", token]);
        client(&["remote", "add", "m2", "https://10.98.0.2:8443", "--accept-certificate"]);
    }

    /// Kills a member's daemon; it is there again by itself.
    pub fn kill(&self, member: u8) {
        let pid = std::fs::read_to_string(self.file("incusd", member).with_extension("pid")).unwrap();
        self.sandbox.run("kill", &["-KILL", pid.trim()]);
    }

    /// Kills a member's daemon, which stays away.
    pub fn take_down(&self, member: u8) {
        write(&self.file("down", member), "");
        self.kill(member);
    }

    /// Starts it again, and waits until the other members know of that.
    pub fn bring_up(&self, member: u8) {
        std::fs::remove_file(self.file("down", member)).unwrap();
        self.whole();
    }

    /// Waits until every member answers, and every one through every other.
    pub fn whole(&self) {
        wait_for("the cluster's members", LONG, || {
            [(1, "m2"), (2, "m1")].iter().all(|(member, other)| {
                let state = format!("/1.0/cluster/members/{other}/state");
                self.command(*member, "timeout")
                    .args(["60", "incus", "query", &state])
                    .output()
                    .unwrap()
                    .status
                    .success()
            })
        });
    }
}

/// A root that runs a shell and little more, packed, and one that takes a while to unpack.
pub fn roots(home: &Home) -> [PathBuf; 2] {
    let tree = home.path("tiny.tree");
    for folder in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var"] {
        std::fs::create_dir_all(tree.join(folder)).unwrap();
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), tree.join(link)).unwrap();
    }
    for program in ["sh", "cat", "sleep", "id"] {
        let file = PathBuf::from("/usr/bin").join(program);
        let libraries = run("ldd", [&file]);
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain(file.to_str()) {
            // Where it is with the links that are above.
            let to = tree.join("usr").join(file.trim_start_matches("/usr").trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(file, to).unwrap();
        }
    }
    let init = tree.join("usr/sbin/init");
    write(&init, "#!/bin/sh\necho up >/dev/console\nwhile :; do sleep 1000; done\n");
    run("chmod", ["+x", init.to_str().unwrap()]);
    let pack = |name: &str| {
        let packed = home.path(&format!("{name}.root.tar.xz"));
        let args =
            ["-C", tree.to_str().unwrap(), "--numeric-owner", "--owner=0", "--group=0", "--use-compress-program=xz -0"];
        run("tar", args.iter().chain(&["-cf", packed.to_str().unwrap(), "."]));
        packed
    };
    let tiny = pack("tiny");
    std::fs::File::create(tree.join("root/zeros")).unwrap().set_len(300 << 20).unwrap();
    let large = pack("large");
    std::fs::remove_file(tree.join("root/zeros")).unwrap();
    [tiny, large]
}

/// Publishes those roots, `release=tiny` and `release=large`, and takes them into the home's pool.
pub fn sync(home: &Home) {
    let keys = ["os=Debian", "version=0", "arch=amd64", "version_name=1"];
    let [tiny, large] = roots(home);
    let mirror = Mirror::with_image(home, &tiny, &[&keys[..], &["release=tiny"]].concat());
    let [dir, key, large] = [&mirror.dir, &mirror.key, &large].map(|path| path.to_str().unwrap());
    home.ok([&["stream", "add", dir, large, "--key", key, "release=large"][..], &keys].concat());
    home.ok(mirror.sync_args().into_iter().chain(["--container".to_owned()]));
}
