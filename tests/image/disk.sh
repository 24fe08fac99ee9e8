# shellcheck shell=bash
# shellcheck disable=SC2016  # $(REPO_URI) is for apt-get to fill in, not for the shell
# shellcheck disable=SC2034,SC2154  # those who source this set what is not set here, and use what is not used
# What the builders of disk images share: the cache, where packages come from, and a disk.
# Sourced by `build` and `tiny`, which name themselves in $builder first.

export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8   # Debian's users have no sbin in their path

say() { printf 'tests/image/%s: %3ds %s\n' "$builder" $SECONDS "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; shift; [ $# -eq 0 ] || printf 'hint: %s\n' "$@" >&2; exit 1; }

# --- the command line ------------------------------------------------------------------------------------

# read_arguments ARGUMENTS...: sets $print_only and $cache.
read_arguments() {
    print_only=no
    case ${1-} in
        --print) print_only=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
    esac
    [ $# -le 1 ] || { usage >&2; exit 2; }
    cache=${1:-${VIRGA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/virga-test}}
}

# --- which guest -----------------------------------------------------------------------------------------

# read_host: sets $suite, $arch, $origin, $keyring and $kernel, the package. A guest is of the host's distribution.
read_host() {
    # shellcheck source=/dev/null
    . /etc/os-release
    suite=$VERSION_CODENAME
    case $ID in
        debian)
            origin=Debian keyring=/usr/share/keyrings/debian-archive-keyring.gpg
            kernel=linux-image-cloud-amd64
            ;;
        ubuntu)
            origin=Ubuntu keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg
            kernel=linux-image-virtual
            ;;
        *) die "no recipe for a guest of '$ID'" "build the test image on Debian or Ubuntu" ;;
    esac
    arch=$(dpkg --print-architecture)
    [ "$arch" = amd64 ] || die "no recipe for a guest of architecture $arch: the boot loader is a PC's"
}

# --- the cache -------------------------------------------------------------------------------------------

# lock_cache: two builds at once share the work: the second waits for the first and finds its image. The lock file
# names the running build's folder, so that what a killed build left is removed by the next.
lock_cache() {
    mkdir -p "$cache"
    cache=$(cd "$cache" && pwd)
    exec 9<>"$cache/build.lock"
    flock --nonblock 9 || { say "waiting for the build that is running"; flock 9; }
    local left_behind
    left_behind=$(cat "$cache/build.lock")
    [ -z "$left_behind" ] || remove_work "$left_behind"
    : >"$cache/build.lock"
}

remove_work() {
    # The tree belongs to users of the namespace, who alone can remove it.
    mmdebstrap --unshare-helper rm -rf --one-file-system "$1/space/tree" 2>/dev/null || true
    rm -rf --one-file-system "$1"
}

# make_work FILES...: sets $work, a folder that goes when this script ends, as do these files.
# The tree belongs to the user namespace's users, who must be able to walk to it: hence not in the cache
# (home folders are often closed), and not in /tmp (often in memory, and a tree is large).
make_work() {
    partial=("$@")
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/virga-test-image.XXXXXX")
    echo "$work" >"$cache/build.lock"
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    chmod 711 "$work"
    mkdir -m 777 "$work/space"
}

clean_up() {
    remove_work "$work"
    rm -f "${partial[@]}"
    : >"$cache/build.lock"
}

# --- where its packages come from ------------------------------------------------------------------------

# find_packages TOOLS...: checks that these programs are there; sets $sources and $aptopts.
find_packages() {
    local tool line
    for tool in "$@"; do
        command -v "$tool" >/dev/null || die "$tool is not there" "packaging/install-deps installs it"
    done
    if [ "$(id -u)" -ne 0 ]; then
        mmdebstrap --unshare-helper true 2>/dev/null || die "user namespaces are not usable for $(id -un)" \
            "needed: newuidmap (package uidmap), lines for $(id -un) in /etc/subuid and /etc/subgid" \
            "(usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)); or build as root"
    fi

    # The distribution's own archive as apt knows it on this host; other people's archives are left out.
    sources=$(apt-get indextargets --format \
        'deb [signed-by='"$keyring"'] $(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' "Origin: $origin" "Architecture: $arch" |
        grep -E " $suite(-updates|-security|/updates)? (main|universe)\$" | sort -u) || true
    [ -n "$sources" ] || die "apt has no lists of the archive of $origin $suite" "sudo apt-get update"

    # A proxy and the like that the host's apt needs, the build's apt needs too.
    aptopts=()
    while read -r line; do
        aptopts+=("--aptopt=$line")
    done < <(apt-config dump | grep -E '^Acquire::(http|https)::Proxy |^Acquire::Check-(Valid-Until|Date) ' || true)
}

# --- the disk --------------------------------------------------------------------------------------------

loader_start=2048   # in sectors of 512 bytes

# make_disk MIB LOADER_MIB TREE: puts a partition table and this tree on the plain file $disk. Partition numbers and order
# as on the distributions' images: the boot loader's first on the disk, the root last, so that it can grow.
make_disk() {
    local root_start=$((loader_start + $2 * 1024 * 2)) disk_sectors=$(($1 * 1024 * 2)) root_sectors
    root_sectors=$((disk_sectors - root_start - 2048))
    disk=$work/space/disk.raw
    truncate -s $((disk_sectors * 512)) "$disk"
    chmod 666 "$disk"
    sfdisk --quiet "$disk" <<PARTITIONS
label: gpt
14: start=$loader_start size=$((root_start - loader_start)) type=21686148-6449-6E6F-744E-656564454649 name=bios
1: start=$root_start size=$root_sectors type=0FC63DAF-8483-4772-8E79-3D69D8477DE4 name=root
PARTITIONS

    # GRUB 2.06 can't read the two newest ext4 features. Tables are written now rather than by the guest's
    # kernel in its first minutes.
    mmdebstrap --unshare-helper mke2fs -q -t ext4 -L cloudimg-rootfs \
        -O ^metadata_csum_seed,^orphan_file -E "offset=$((root_start * 512)),lazy_itable_init=0" \
        -d "$3" "$disk" $((root_sectors / 2))k
}

# load_by_grub FOLDER: what grub-bios-setup does, on a plain file: boot.img of this folder into the first sector, told where
# core.img starts; core.img into its partition, its first sector told where the rest is.
load_by_grub() {
    local core_sectors
    core_sectors=$((($(stat -c %s "$1/core.img") + 511) / 512))
    [ $core_sectors -le 2048 ] || die "GRUB's core image does not fit its partition"
    head -c 440 "$1/boot.img" | write_at 0
    little_endian $loader_start 8 | write_at $((0x5c))
    write_at $((loader_start * 512)) <"$1/core.img"
    { little_endian $((loader_start + 1)) 8; little_endian $((core_sectors - 1)) 2; } |
        write_at $((loader_start * 512 + 500))
}

little_endian() { # VALUE BYTES
    local value=$1 bytes=$2
    while [ "$((bytes--))" -gt 0 ]; do
        printf %b "\\x$(printf %02x $((value & 255)))"
        value=$((value >> 8))
    done
}

write_at() { # BYTE_OFFSET
    dd of="$disk" bs=64k seek="$1" oflag=seek_bytes conv=notrunc status=none
}

# compress_disk FILE
compress_disk() {
    say "compressing it"
    # zlib, not zstd: every tool that reads qcow2 reads it.
    qemu-img convert -q -f raw -O qcow2 -c -m 8 -W "$disk" "$1"
}

# tell_older IMAGE PATTERN: images of older recipes are never deleted.
tell_older() {
    local others
    others=$(find "$cache" -maxdepth 1 -name "$2" ! -name "${1##*/}" | wc -l)
    [ "$others" -eq 0 ] || say "$others older image(s) stay in $cache; delete them as you like"
}
