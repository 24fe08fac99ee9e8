//! A host for containers of classic LXC: its bridge, its DHCP server, its
//! settings, in namespaces that end with the test. LXC's own folder there holds
//! nothing of the machine's. cgroups are the machine's, which has no others.

use std::path::Path;

use super::sandbox::Sandbox;

/// What runs first in the namespaces. `$1` is the sandbox's folder.
const SET_UP: &str = r#"
set -eu
dir=$1
mkdir "$dir/etc" "$dir/work" "$dir/cgroup"
# The network cards that it shows are those of the network it was mounted in.
mount --rbind /sys/fs/cgroup "$dir/cgroup"
mount -t sysfs sys /sys
mount --rbind "$dir/cgroup" /sys/fs/cgroup
umount -l "$dir/cgroup"
mount -t tmpfs run /run
mount -t tmpfs lxc /var/lib/lxc
# Of the machine's settings a copy that nobody else sees.
mount -t overlay etc -o "lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/work" /etc
for file in /etc/subuid /etc/subgid; do echo root:1000000:65536 >$file; done
ip link set lo up
ip link add lxcbr0 type bridge
ip address add 10.0.3.1/24 dev lxcbr0
ip link set lxcbr0 up
dnsmasq --conf-file=/dev/null --user=root --port=0 --interface=lxcbr0 --bind-interfaces \
    --dhcp-range=10.0.3.2,10.0.3.254 --dhcp-leasefile=/run/leases --pid-file=/run/dnsmasq.pid
touch "$dir/ready"
# The first process of a namespace buries those that nobody waits for.
while :; do sleep 1000 & wait; done
"#;

/// Namespaces with LXC in them. Needs root.
pub fn sandbox(home: &Path) -> Sandbox {
    let mut sandbox = Sandbox::made("the test's own host for LXC", SET_UP, home);
    sandbox.containers = true;
    sandbox
}
