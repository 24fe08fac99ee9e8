//! An Incus of the test's own, in namespaces that end with it.

use std::path::{Path, PathBuf};

use super::sandbox::Sandbox;
use super::{Home, Mirror, image, os_release};

/// What runs first in the namespaces. `$1` is the sandbox's folder.
const SET_UP: &str = r#"
set -eu
dir=$1
mount -t tmpfs tmpfs /run
# The network cards that it shows are those of the network it was mounted in; cgroups are the machine's.
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sys /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
for place in var/lib/incus var/log/incus var/cache/incus; do
    mkdir -p "$dir/$place" "/$place"
    mount --bind "$dir/$place" "/$place"
done
# Containers' users, who are not root here, must find the way to their own root.
chmod 711 "$dir" "$dir/var" "$dir/var/lib" "$dir/var/lib/incus"
ip link set lo up
for daemon in /usr/libexec/incus/incusd /usr/lib/incus/incusd; do
    [ ! -x $daemon ] || break
done
"$daemon" >"$dir/incusd.log" 2>&1 &
echo $! >"$dir/incusd.pid"
incus admin waitready --timeout=600
incus admin init --preseed <<END
storage_pools: [{name: default, driver: btrfs, config: {size: 4GiB}}]
networks: [{name: virga0, type: bridge, config: {ipv4.address: 10.97.0.1/24, ipv4.nat: "false", ipv6.address: none}}]
profiles:
- name: default
  devices:
    root: {type: disk, path: /, pool: default}
    eth0: {type: nic, network: virga0, name: eth0}
END
touch "$dir/ready"
# The first process of a namespace buries those that nobody waits for.
while :; do sleep 1000 & wait; done
"#;

/// Namespaces with an Incus in them. Needs root.
pub fn sandbox(home: &Path) -> Sandbox {
    let mut sandbox = Sandbox::made("the test's own Incus", SET_UP, home);
    sandbox.containers = true;
    sandbox
}

/// The test image's root file system, as the build leaves it beside the disk.
pub fn root() -> PathBuf {
    image().with_extension("root.tar.xz")
}

/// Publishes that root and takes it into the home's pool, as users do.
pub fn sync(home: &Home) {
    let (os, release) = (os_release("ID"), format!("release={}", os_release("VERSION_CODENAME")));
    let mirror = Mirror::with_image(home, &root(), &[&format!("os={os}"), &release, "version=0", "arch=amd64"]);
    home.ok(mirror.sync_args().into_iter().chain(["--container".to_owned()]));
}

/// Kills the sandbox's daemon and starts it again, as its service manager does.
pub fn restart(sandbox: &Sandbox) {
    let dir = sandbox.outside("");
    let script = r#"
        kill -KILL "$(cat "$1/incusd.pid")"
        for daemon in /usr/libexec/incus/incusd /usr/lib/incus/incusd; do
            [ ! -x $daemon ] || break
        done
        "$daemon" >>"$1/incusd.log" 2>&1 &
        echo $! >"$1/incusd.pid"
    "#;
    sandbox.run("sh", &["-c", script, "restart", dir.to_str().unwrap()]);
}
