#!/usr/bin/env python3
"""Makes every clone of a saved guest a machine of its own.

Runs in a guest that is to become a template, from the end of its first boot
on. It strips the guest of identity, stops every other process, says so on the
channel to the host, and is saved as it waits for orders there. In each clone it
goes on from that point: first the random pool, then the clock, then names and
keys, and only then do the others run again and gets the network card its new
address. The host plugs the cable in when it hears that all is done.

It lives in /run and leaves nothing behind in the clone. Both ways one JSON
object on one line: out {"ready": …}, in the orders, out {"asks": "time"} and in
{"time": …}, out {"renewed": …}; or out {"failed": why} at any time.
"""

import base64
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import pwd
import re
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
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCSIFADDR = 0x8916
SIOCSIFNETMASK = 0x891C
SIOCSIFNAME = 0x8923

SSH = ["ssh.service", "sshd.service"]
SSH_SOCKETS = ["ssh.socket", "sshd.socket"]
NETWORK = "systemd-networkd.service"
NETWORK_SOCKET = "systemd-networkd.socket"
# Whatever configures the card names it by its address.
NETWORK_FILES = [
    "/etc/netplan/*", "/run/netplan/*", "/etc/systemd/network/*", "/run/systemd/network/*",
    "/etc/udev/rules.d/*persistent-net*", "/run/udev/rules.d/*",
]
# For udev's time without files that name the clone's card.
LINK = "/run/systemd/network/00-virga.link"
HELD = "/run/systemd/system/%s.d" % NETWORK
HOLD = "/run/virga/hold"
KEEP = "/run/systemd/network/%s.d"
JOURNALS = ["/var/log/journal/", "/run/log/journal/"]
CLOUD = "/var/lib/cloud"
RUN = "/run/cloud-init"
RESULT = RUN + "/result.json"
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
    while not os.path.exists(RESULT):
        time.sleep(0.2)
    errors = json.loads(read(RESULT))["v1"]["errors"]
    if errors:
        raise RuntimeError("cloud-init failed: %s" % errors[0])
    while call("systemctl", "list-jobs", "--no-legend").strip() not in ("", "No jobs running."):
        time.sleep(0.2)


def open_channel():
    call("modprobe", "virtio_console")
    if not os.path.isdir("/sys/bus/virtio/drivers/virtio_console"):
        raise RuntimeError("the kernel has no virtio-serial driver")
    # udev names it when it gets to it. How long that may take is the host's to say.
    while not os.path.exists(PORT):
        time.sleep(0.1)
    return os.open(PORT, os.O_RDWR)


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


def data_source():
    """cloud-init's data source as it keeps it between boots: with this its own code tells a clone's programs of it. None
    where there is no such object: then these know less."""
    try:
        from cloudinit import sources, util

        return sources.pkl_load(CLOUD + "/instance/obj.pkl"), util.load_yaml
    except Exception as error:  # other versions may have it elsewhere
        print("cloud-init's data source cannot be loaded: %r" % error, file=sys.stderr)
        return None, None


def configured_user(source):
    """The default user by the guest's own configuration."""
    try:
        return source.distro.get_default_user()["name"]
    except (AttributeError, KeyError, TypeError):
        return None


def is_active(unit):
    return call("systemctl", "is-active", unit).strip() == "active"


def has_failed(unit):
    return call("systemctl", "is-failed", unit).strip() == "failed"


def main_pid(unit):
    return int(call("systemctl", "show", "--property=MainPID", "--value", unit))


def strip():
    """Takes away what makes this guest someone in particular, and what it has logged."""
    if not is_active(NETWORK) or not any(is_active(unit) for unit in SSH + SSH_SOCKETS):
        raise RuntimeError("no SSH server that is known here, or a network that is not systemd-networkd's")
    need("systemctl", "stop", NETWORK_SOCKET, NETWORK)
    call("journalctl", "--rotate")
    call("journalctl", "--vacuum-size=1")
    remove(
        "/etc/ssh/ssh_host_*", "/var/lib/systemd/random-seed", "/var/lib/dhcp/*", "/var/lib/NetworkManager/*",
        "/run/systemd/netif/leases/*", "/run/systemd/netif/lldp/*", "/root/.ssh", "/root/.bash_history",
        "/var/lib/systemd/credential.secret", "/etc/iscsi/initiatorname.iscsi", "/etc/ssl/private/ssl-cert-snakeoil.key",
        "/etc/hostid", "/etc/nvme/hostnqn", "/etc/nvme/hostid",
    )
    for folder, _, files in os.walk("/var/log"):
        for path in (os.path.join(folder, file) for file in files):
            if "/journal/" not in path and os.path.isfile(path) and not os.path.islink(path):
                os.truncate(path, 0)
    write("/etc/machine-id", "")
    instance = os.path.realpath(CLOUD + "/instance")
    for entry in os.listdir(instance):
        # The marks of what ran once stay; what it ran from goes.
        if entry not in ("sem", "boot-finished", "datasource"):
            remove(os.path.join(instance, entry))


def hold_network():
    """Has PID 1 start the network service up to the last step, its program; a byte into the pipe that comes back lets
    it go on. What comes before that (its sandbox) takes longer than all else in a clone."""
    argv = re.search(r"argv\[\]=(.*?) ;", call("systemctl", "show", "--property=ExecStart", NETWORK)).group(1)
    os.mkfifo(HOLD)
    os.chmod(HOLD, 0o644)
    os.makedirs(HELD)
    # Without the pipe, as when it is restarted later, nothing holds it.
    line = "ExecStart=!!/bin/sh -c '[ ! -p %s ] || read go <%s; exec %s'" % (HOLD, HOLD, argv)
    write(HELD + "/virga.conf", "[Service]\nExecStart=\n%s\n" % line)
    need("systemctl", "daemon-reload")
    need("systemctl", "start", "--no-block", NETWORK)
    while not has_failed(NETWORK):
        for _ in range(50):
            try:
                # Fails until somebody reads.
                return os.open(HOLD, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                time.sleep(0.02)
    raise RuntimeError("the network service cannot be held: it failed")


def keep_name_and_address(name, files):
    """udev has read the files that name the old card, and looks for new ones only now and then. And the network service
    takes away what addresses it finds."""
    for folder in {KEEP % os.path.basename(path) for path, _, _ in files if path.endswith(".network")}:
        os.makedirs(folder)
        write(folder + "/virga.conf", "[Network]\nKeepConfiguration=static\n")
    write(LINK, "[Match]\nDriver=virtio_net\n[Link]\nName=%s\nMACAddressPolicy=none\n" % name)
    need("udevadm", "control", "--reload")


def tidy():
    """Nothing of ours stays."""
    remove(HELD, HOLD, KEEP % "*.network", "/run/virga/renew.py")
    call("systemctl", "daemon-reload")
    # It knows the machine-id that it began with.
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


def set_clock(channel):
    """Asks for the time and sets it. The answer is of some moment between asking and hearing, so the clock is off by half
    of that at the most. Returns that, in seconds."""
    for _ in range(5):
        asked = time.monotonic()
        os.write(channel, b'{"asks": "time"}\n')
        told = json.loads(line_from(channel))["time"]
        took = time.monotonic() - asked
        time.clock_settime(time.CLOCK_REALTIME, told + took / 2)
        if took < 0.2:
            break
    return took / 2


def server_keys(orders):
    for key in orders["host_keys"]:
        path = "/etc/ssh/ssh_host_%s_key" % key["kind"]
        write(path, key["private"], 0o600)
        write(path + ".pub", key["public"].rstrip() + "\n")


def machine_ids(orders):
    write("/etc/machine-id", orders["machine_id"] + "\n", 0o444)
    if os.path.isfile("/var/lib/dbus/machine-id") and not os.path.islink("/var/lib/dbus/machine-id"):
        write("/var/lib/dbus/machine-id", orders["machine_id"] + "\n", 0o444)
    write("/run/virga/boot_id", orders["boot_id"] + "\n", 0o444)
    # The kernel's own cannot be set: everybody reads it under this name.
    if LIBC.mount(b"/run/virga/boot_id", b"/proc/sys/kernel/random/boot_id", None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "covering the boot id")


def network_files(orders, old):
    remove(LINK)
    rewrite(old["network"], [(old["mac"], orders["mac"]), (old["mac"].upper(), orders["mac"].upper())])


def names_and_logins(orders, old):
    write("/etc/hostname", orders["hostname"] + "\n")
    rewrite(old["hosts"], [(old["hostname"], orders["hostname"])])
    authorize(old["user"], orders["authorized_keys"])
    for folder in JOURNALS:
        if os.path.isdir(folder + old["machine"]):
            os.rename(folder + old["machine"], folder + orders["machine_id"])
    instance(orders, old)


def known(user):
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


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
        remove(RESULT, RUN + "/status.json", CLOUD + "/instance", CLOUD + "/data/*", instances + old["instance"])
        return
    os.rename(RESULT, RESULT + ".virga")
    os.rename(instances + old["instance"], instances + orders["instance"])
    os.remove(CLOUD + "/instance")
    os.symlink(instances + orders["instance"], CLOUD + "/instance")
    pairs = [(old["instance"], orders["instance"]), (old["hostname"], orders["hostname"]), (old["mac"], orders["mac"])]
    rewrite(old["cloud"], pairs)
    write(CLOUD + "/data/instance-id", orders["instance"] + "\n")
    write(CLOUD + "/data/previous-instance-id", orders["instance"] + "\n")


def tell_cloud_init(source, load_yaml, documents, names):
    """Has cloud-init's programs (query, schema, collect-logs) find of the clone's seed what they find after a boot from
    it."""
    try:
        raw = {name: text.encode() for name, text in documents.items()}
        for key in ("public-keys", "public_keys", "hostname", "local-hostname"):
            source.metadata.pop(key, None)
        source.metadata.update(load_yaml(raw["meta-data"]) or {})
        source.userdata_raw, source.vendordata_raw = raw["user-data"], raw["vendor-data"]
        source.userdata = source.vendordata = None
        if getattr(source, "_network_config", None):
            source._network_config = load_yaml(raw["network-config"])
        folder = CLOUD + "/instance/"
        for name, text, parts in (
            ("user-data", raw["user-data"], source.get_userdata),
            ("vendor-data", raw["vendor-data"], source.get_vendordata),
            ("vendor-data2", b"", source.get_vendordata2),
        ):
            write(folder + name + ".txt", text.decode(errors="surrogateescape"), 0o600)
            write(folder + name + ".txt.i", str(parts()), 0o600)
        # Made anew: the one that is there it would take for an old one, and remove what that leads to.
        remove(RUN + "/cloud-id")
        source.persist_instance_data()
        # This process has asked for the host's name before.
        rewrite(mentions([RUN + "/instance-data*.json"], names[0]), [names])
    except Exception as error:  # the guest is whole without it
        print("cloud-init's programs know less of this guest: %r" % error, file=sys.stderr)


def network_card(device, name, address):
    """Gives the card back under its name, switched on: a cable that is plugged in after that is seen at once, and one
    that was there before a second later (the kernel's link watch). An address that is known beforehand is there at
    once; the network service, which takes a third of a second, finds it and goes on."""
    tie(device, "bind")
    (path,) = glob.glob("/sys/bus/pci/devices/%s/virtio*/net/*" % device)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        now = os.path.basename(path)
        if now != name:
            fcntl.ioctl(any_socket, SIOCSIFNAME, struct.pack("16s16s8x", now.encode(), name.encode()))
        request = struct.pack("16s24x", name.encode())
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | IFF_UP))
        for request, value in zip((SIOCSIFADDR, SIOCSIFNETMASK), address or ()):
            value = struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(any_socket, request, struct.pack("16s8s16x", name.encode(), value))


def online(name):
    """Waits until the network service is through, be it in vain. Only then cloud-init's result is there again, as after a
    boot: whoever waits for it has a limit."""
    state = "/run/systemd/netif/links/" + read("/sys/class/net/%s/ifindex" % name).strip()
    while not has_failed(NETWORK):
        for _ in range(20):
            said = read(state) if os.path.exists(state) else ""
            if re.search("^ADMIN_STATE=(configured|failed|unmanaged)$", said, re.M):
                break
            time.sleep(0.1)
        else:
            continue
        break
    os.rename(RESULT + ".virga", RESULT)


def first_boot():
    for stage in (["init", "--local"], ["init"], ["modules", "--mode=config"], ["modules", "--mode=final"]):
        call("cloud-init", *stage)


def main():
    global LIBC
    channel = orders = None
    try:
        # All that is needed later is loaded now: a clone waits for no disk.
        LIBC = ctypes.CDLL(None, use_errno=True)
        wait_for_the_boot()
        channel = open_channel()
        device, name, mac = card()
        hostname, instance_id = socket.gethostname(), read(CLOUD + "/data/instance-id").strip()
        source, load_yaml = data_source()
        old = {
            "card": device,
            "name": name,
            "machine": read("/etc/machine-id").strip(),
            "mac": mac,
            "hostname": hostname,
            "instance": instance_id,
            "user": configured_user(source),
            "seed": seed_disk(),
            "hosts": mentions(["/etc/hosts"], hostname),
            "network": mentions(NETWORK_FILES, mac, mac.upper()),
            "cloud": mentions(CLOUD_FILES, hostname, instance_id),
        }
        # It has read what is written anew in a clone, and reads it again on this signal by executing itself (sshd(8)).
        readers = [main_pid(unit) for unit in SSH if is_active(unit)]
        strip()
        tie(old["card"], "unbind")
        tie(old["seed"], "unbind")
        keep_name_and_address(name, old["network"])
        call("udevadm", "settle")
        held = hold_network()
        network = main_pid(NETWORK)
        ready = {"kernel": os.uname().release, "tcp": tcp_used()}
        os.sync()
        # When this guest runs again, in a clone, nobody runs before us (but PID 1, which sleeps).
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        os.kill(-1, signal.SIGSTOP)
        os.write(channel, json.dumps({"ready": ready}).encode() + b"\n")

        orders = json.loads(line_from(channel))
        if not old["user"] or known(orders["user"]):
            old["user"] = orders["user"]
        drawn = reseed(base64.b64decode(orders["entropy"]))
        # Each that is waited for goes on as soon as all that it reads is there.
        socket.sethostname(orders["hostname"])
        server_keys(orders)
        for pid in readers:
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGCONT)
        machine_ids(orders)
        # Not before: it wakes the timers of PID 1, and what they start is to find this machine and no other.
        clock = set_clock(channel)
        network_files(orders, old)
        os.write(held, b"\n")
        os.close(held)
        os.remove(HOLD)
        os.kill(network, signal.SIGCONT)
        names_and_logins(orders, old)
        os.kill(-1, signal.SIGCONT)
        network_card(old["card"], name, orders["address"])
        os.write(channel, json.dumps({"renewed": {"drawn": drawn, "clock": clock, "user": old["user"]}}).encode() + b"\n")
        os.close(channel)
        channel = None
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if not orders["first_boot"]:
            if source:
                tell_cloud_init(source, load_yaml, orders["documents"], (old["hostname"], orders["hostname"]))
            online(name)
            # The clone has better things to do at first.
            time.sleep(5)
        tie(old["seed"], "bind")
        if orders["first_boot"]:
            first_boot()
        tidy()
    except Exception as error:  # whatever it is, the host is to hear of it
        why = "%s: %s" % (type(error).__name__, error)
        if orders and channel is None:
            # It was handed out. Whoever waits for cloud-init's result gets one.
            write(RESULT, json.dumps({"v1": {"datasource": None, "errors": ["renewal of the clone: " + why]}}))
            sys.exit(1)
        if channel is None:
            channel = open_channel()
        os.write(channel, json.dumps({"failed": why}).encode() + b"\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
