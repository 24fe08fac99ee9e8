#!/usr/bin/env python3
"""Makes every clone of a saved guest a machine of its own.

Runs in a guest that is to become a template, from the end of its first boot
on. It strips the guest of identity, stops every other process, says so on the
channel to the host, and is saved as it waits for orders there. In each clone it
goes on from that point: first the random pool, then the clock, then names and
keys, and only then do the others, and the network, run again.

It lives in /run and leaves nothing behind in the clone. Both ways one JSON
object on one line: out {"ready": …}, in the orders, out {"renewed": …}, in
{"go": true}, out {"up": {}}; or out {"failed": why} at any time.
"""

import base64
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

PORT = "/dev/virtio-ports/virga.renewal"
# linux/random.h
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
MS_BIND = 4096
# linux/if.h, linux/sockios.h
IFF_UP = 1
SIOCSIFFLAGS = 0x8914

SSH = ["ssh.service", "sshd.service"]
SSH_SOCKETS = ["ssh.socket", "sshd.socket"]
NETWORK = ["systemd-networkd.socket", "systemd-networkd.service", "NetworkManager.service", "networking.service"]
# Whatever configures the card names it by its address.
NETWORK_FILES = [
    "/etc/netplan/*", "/run/netplan/*", "/etc/systemd/network/*", "/run/systemd/network/*",
    "/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/sysconfig/network-scripts/ifcfg-*",
    "/etc/NetworkManager/system-connections/*", "/run/NetworkManager/system-connections/*",
    "/etc/udev/rules.d/*persistent-net*", "/run/udev/rules.d/*",
]
UNITS = "/run/systemd/system"
GO = "/run/virga/go"
CLOUD = "/var/lib/cloud"
RUN = "/run/cloud-init"
CLOUD_FILES = [CLOUD + "/data/*", RUN + "/.instance-id", RUN + "/*.json", RUN + "/cloud.cfg"]


def call(*argv):
    """Runs a program; returns what it says, or nothing when it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def need(*argv):
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text, mode=0o644):
    """Puts text into a file at once or not at all."""
    aside = path + ".virga"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", errors="surrogateescape") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
    os.rename(aside, path)


def remove(*patterns):
    for pattern in patterns:
        for path in glob.glob(pattern):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.remove(path)


def mentions(patterns, *words):
    """The files that have one of the words in them, with content and mode: read now, to be written in a clone."""
    found = []
    for path in [path for pattern in patterns for path in glob.glob(pattern)]:
        if os.path.isfile(path):
            with open(path, errors="surrogateescape") as file:
                text = file.read()
            if any(word in text for word in words):
                found.append((path, text, os.stat(path).st_mode & 0o7777))
    return found


def rewrite(files, pairs):
    for path, text, mode in files:
        for before, after in pairs:
            text = text.replace(before, after)
        write(path, text, mode)


# --- in the guest that is to be saved ---------------------------------------------------------------------


def wait_for_the_boot():
    while not os.path.exists(RUN + "/result.json"):
        time.sleep(0.2)
    errors = json.loads(read(RUN + "/result.json"))["v1"]["errors"]
    if errors:
        raise RuntimeError("cloud-init failed: %s" % errors[0])
    while call("systemctl", "list-jobs", "--no-legend").strip() not in ("", "No jobs running."):
        time.sleep(0.2)


def open_channel():
    call("modprobe", "virtio_console")
    for _ in range(100):
        if os.path.exists(PORT):
            return os.open(PORT, os.O_RDWR)
        time.sleep(0.1)
    raise RuntimeError("there is no %s: the kernel has no virtio-serial driver" % PORT)


def tie(device, action):
    """Gives a PCI device to its driver ("bind"), which resets it and reads everything anew, or takes it away ("unbind")."""
    with open("/sys/bus/pci/drivers/virtio-pci/" + action, "w") as file:
        file.write(device)


def pci_device(path):
    """The PCI device of a card or disk, given its folder in /sys/class."""
    return os.path.basename(os.path.dirname(os.path.realpath(path + "/device")))


def card():
    """The device that is the network card, its name and its address. Given to its driver anew it has the clone's."""
    cards = [name for name in sorted(os.listdir("/sys/class/net")) if os.path.exists("/sys/class/net/%s/device" % name)]
    if len(cards) != 1:
        raise RuntimeError("a guest with %d network cards cannot be renewed" % len(cards))
    path = "/sys/class/net/" + cards[0]
    return pci_device(path), cards[0], read(path + "/address").strip()


def seed_disk():
    """The device with the seed on it. Given to its driver anew it has the clone's content and size."""
    for label in ("cidata", "CIDATA"):
        path = "/dev/disk/by-label/" + label
        if os.path.exists(path):
            return pci_device("/sys/class/block/" + os.path.basename(os.path.realpath(path)))
    raise RuntimeError("the disk with the seed is not there")


def is_active(unit):
    return call("systemctl", "is-active", unit).strip() == "active"


def main_pid(unit):
    return int(call("systemctl", "show", "--property=MainPID", "--value", unit))


def strip():
    """Takes away what makes this guest someone in particular, and what it has logged."""
    network = [unit for unit in NETWORK if is_active(unit)]
    if not network or not any(is_active(unit) for unit in SSH + SSH_SOCKETS):
        raise RuntimeError("no SSH server or no network service that is known here")
    need("systemctl", "stop", *network)
    call("journalctl", "--rotate")
    call("journalctl", "--vacuum-size=1")
    remove(
        "/etc/ssh/ssh_host_*", "/var/lib/systemd/random-seed", "/var/lib/dhcp/*", "/var/lib/NetworkManager/*",
        "/run/systemd/netif/leases/*", "/run/systemd/netif/lldp/*", "/root/.ssh", "/root/.bash_history",
    )
    for folder, _, files in os.walk("/var/log"):
        for path in (os.path.join(folder, file) for file in files):
            if "/journal/" not in path and os.path.isfile(path) and not os.path.islink(path):
                os.truncate(path, 0)
    write("/etc/machine-id", "")
    instance = os.path.realpath(CLOUD + "/instance")
    for entry in os.listdir(instance):
        # The marks of what ran once stay; what it ran from goes.
        if entry not in ("sem", "boot-finished"):
            remove(os.path.join(instance, entry))
    return network


def start_later(units):
    """Has PID 1 start these as soon as GO is there: asking it through systemctl takes the clone longer than all else."""
    os.makedirs(UNITS, exist_ok=True)
    write(UNITS + "/virga-go.target", "[Unit]\nWants=%s\n" % " ".join(units))
    write(UNITS + "/virga-go.path", "[Path]\nPathExists=%s\nUnit=virga-go.target\n" % GO)
    need("systemctl", "daemon-reload")
    need("systemctl", "start", "virga-go.path")


def tidy():
    """Nothing of ours stays; not at once, for the clone has better things to do."""
    time.sleep(5)
    call("systemctl", "stop", "virga-go.path", "virga-go.target")
    remove(UNITS + "/virga-go.*", GO, "/run/virga/renew.py")
    call("systemctl", "daemon-reload")
    # It writes under the machine-id that it began with.
    call("systemctl", "try-restart", "systemd-journald.service")


def tcp_used():
    """Connections made so far. The kernel draws the secret of its sequence numbers at the first one."""
    names, values = [line.split() for line in read("/proc/net/snmp").splitlines() if line.startswith("Tcp:")]
    counts = dict(zip(names, values))
    return int(counts["ActiveOpens"]) + int(counts["PassiveOpens"])


# --- in a clone ---------------------------------------------------------------------------------------------


def line_from(channel):
    line = b""
    while not line.endswith(b"\n"):
        try:
            piece = os.read(channel, 65536)
        except OSError:
            piece = b""
        # Nothing comes while nobody is connected.
        if not piece:
            time.sleep(0.005)
        line += piece
    return line


def reseed(entropy):
    """New entropy into the kernel's pool and out into its generator. Returns a hash of the first 4 KiB drawn."""
    with open("/dev/urandom", "r+b", buffering=0) as device:
        fcntl.ioctl(device, RNDADDENTROPY, bytearray(struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy))
        fcntl.ioctl(device, RNDRESEEDCRNG)
        return hashlib.sha256(device.read(4096)).hexdigest()


def become(orders, old):
    """Names, keys and addresses."""
    socket.sethostname(orders["hostname"])
    write("/etc/hostname", orders["hostname"] + "\n")
    rewrite(old["hosts"], [(old["hostname"], orders["hostname"])])
    write("/etc/machine-id", orders["machine_id"] + "\n", 0o444)
    if os.path.isfile("/var/lib/dbus/machine-id") and not os.path.islink("/var/lib/dbus/machine-id"):
        write("/var/lib/dbus/machine-id", orders["machine_id"] + "\n", 0o444)
    write("/run/virga/boot_id", orders["boot_id"] + "\n", 0o444)
    # The kernel's own cannot be set: everybody reads it under this name.
    if LIBC.mount(b"/run/virga/boot_id", b"/proc/sys/kernel/random/boot_id", None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "covering the boot id")
    for key in orders["host_keys"]:
        path = "/etc/ssh/ssh_host_%s_key" % key["kind"]
        write(path, key["private"], 0o600)
        write(path + ".pub", key["public"].rstrip() + "\n")
    authorize(orders["user"], orders["authorized_keys"])
    instance(orders, old)
    rewrite(old["network"], [(old["mac"], orders["mac"]), (old["mac"].upper(), orders["mac"].upper())])


def authorize(user, keys):
    entry = pwd.getpwnam(user)
    folder = os.path.join(entry.pw_dir, ".ssh")
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    path = os.path.join(folder, "authorized_keys")
    write(path, "".join(key + "\n" for key in keys), 0o600)
    os.chown(path, entry.pw_uid, entry.pw_gid)


def instance(orders, old):
    """cloud-init takes the clone for an instance that it is through with, or for one that it has not seen yet."""
    instances = CLOUD + "/instances/"
    if orders["first_boot"]:
        remove(RUN + "/result.json", RUN + "/status.json", CLOUD + "/instance", CLOUD + "/data/*", instances + old["instance"])
        return
    os.rename(instances + old["instance"], instances + orders["instance"])
    os.remove(CLOUD + "/instance")
    os.symlink(instances + orders["instance"], CLOUD + "/instance")
    pairs = [(old["instance"], orders["instance"]), (old["hostname"], orders["hostname"]), (old["mac"], orders["mac"])]
    rewrite(old["cloud"], pairs)
    write(CLOUD + "/data/instance-id", orders["instance"] + "\n")
    write(CLOUD + "/data/previous-instance-id", orders["instance"] + "\n")


def switch_on(device, name):
    """Switches the card on, unless it is yet to be renamed: then the network service does it. A cable that is
    plugged in after that is seen at once, and one that was there before a second later (the kernel's link watch)."""
    for _ in range(1000):
        for path in glob.glob("/sys/bus/pci/devices/%s/virtio*/net/*" % device):
            flags = int(read(path + "/flags"), 16)
            if os.path.basename(path) == name:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                    request = struct.pack("16sH14x", name.encode(), (flags | IFF_UP) & 0xFFFF)
                    fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
                return
            if flags & IFF_UP:
                # It says so a moment before it is so.
                time.sleep(0.03)
                return
        time.sleep(0.005)


def first_boot():
    for stage in (["init", "--local"], ["init"], ["modules", "--mode=config"], ["modules", "--mode=final"]):
        call("cloud-init", *stage)


def main():
    global LIBC
    channel = None
    try:
        # All that is needed later is loaded now: a clone waits for no disk.
        LIBC = ctypes.CDLL(None, use_errno=True)
        wait_for_the_boot()
        channel = open_channel()
        device, name, mac = card()
        hostname, instance_id = socket.gethostname(), read(CLOUD + "/data/instance-id").strip()
        old = {
            "card": device,
            "name": name,
            "mac": mac,
            "hostname": hostname,
            "instance": instance_id,
            "seed": seed_disk(),
            "hosts": mentions(["/etc/hosts"], hostname),
            "network": mentions(NETWORK_FILES, mac, mac.upper()),
            "cloud": mentions(CLOUD_FILES, hostname, instance_id),
        }
        # Both have read what is written anew in a clone, and read it again on this signal: sshd(8) by executing itself.
        readers = [main_pid(unit) for unit in SSH + ["systemd-udevd.service"] if is_active(unit)]
        start_later(strip())
        tie(old["card"], "unbind")
        tie(old["seed"], "unbind")
        call("udevadm", "settle")
        ready = {"kernel": os.uname().release, "tcp": tcp_used()}
        os.sync()
        # When this guest runs again, in a clone, nobody runs before us (but PID 1, which sleeps).
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        os.kill(-1, signal.SIGSTOP)
        os.write(channel, json.dumps({"ready": ready}).encode() + b"\n")

        orders = json.loads(line_from(channel))
        drawn = reseed(base64.b64decode(orders["entropy"]))
        time.clock_settime(time.CLOCK_REALTIME, orders["time"])
        become(orders, old)
        os.write(channel, json.dumps({"renewed": {"drawn": drawn}}).encode() + b"\n")
        line_from(channel)
        os.kill(-1, signal.SIGCONT)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        for pid in readers:
            os.kill(pid, signal.SIGHUP)
        tie(old["card"], "bind")
        write(GO, "")
        switch_on(old["card"], old["name"])
        os.write(channel, json.dumps({"up": {}}).encode() + b"\n")
        os.close(channel)
        tie(old["seed"], "bind")
        if orders["first_boot"]:
            first_boot()
        tidy()
    except Exception as error:  # whatever it is, the host is to hear of it
        if channel is None:
            channel = open_channel()
        os.write(channel, json.dumps({"failed": "%s: %s" % (type(error).__name__, error)}).encode() + b"\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
