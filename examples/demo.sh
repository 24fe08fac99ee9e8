#!/usr/bin/env bash
# The main job from end to end, each command echoed with its output and time:
# a signed stream is synced, a guest is made, waited for, entered and taken away.
#
#   examples/demo.sh VIRGA [SOURCE]
#
# SOURCE is "local" (default: a Debian image is built from packages, published
# as a signed stream and served on loopback) or the name of a source, as in
# "ubuntu-minimal".
set -euo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.."
virga_bin=$(realpath "$1")
source_name=${2:-local}

# Not /tmp: that is memory on many machines, and images are large.
work=$(mktemp -d "${TMPDIR:-/var/tmp}/virga-demo-XXXXXX")
mkdir "$work/bin"
ln -s "$virga_bin" "$work/bin/virga"
export PATH="$work/bin:$PATH" VIRGA_HOME="$work/home" VIRGA_RUNTIME_DIR="$work/run"
server=

clean_up() {
    status=$?
    trap - EXIT INT TERM
    virga --quiet destroy --if-exists demo || true
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Echoes a command as it would be typed, runs it, says how long it took.
run() {
    printf '\n$ %s\n' "$*"
    local began=${EPOCHREALTIME/./} tenths
    "$@"
    tenths=$(((${EPOCHREALTIME/./} - began + 50000) / 100000))
    printf '  (%d.%d s)\n' $((tenths / 10)) $((tenths % 10))
}

say() { printf '\n# %s\n' "$*"; }

if [ "$source_name" = local ]; then
    # The image is one of the distribution that this machine runs.
    # shellcheck source=/dev/null
    . /etc/os-release
    say "A $ID cloud image, made from packages (cached after the first time)"
    image=$(tests/image/build)
    cd "$work"
    ln -s "$image" "$ID.qcow2"

    say "Publish it as a signed simplestreams tree, and serve that on loopback"
    run virga stream init mirror --key publisher.key
    run virga stream add mirror "$ID.qcow2" --key publisher.key "os=$ID" "release=$VERSION_CODENAME" "version=$VERSION_ID"
    virga stream serve mirror --port-file port 2>serve.log &
    server=$!
    for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done
    url="http://127.0.0.1:$(cat port)/"
    sync=(virga sync --source "$url" --keyring mirror/keyring.gpg)
    filter=("release=$VERSION_CODENAME")
else
    cd "$work"
    sync=(virga sync --source "$source_name" release=noble)
    filter=(release=noble)
fi

say "Sync: fetched, verified, kept in the pool"
run "${sync[@]}"
run virga images

say "A guest of it: an overlay and a cloud-init seed, started at once"
run virga create demo "${filter[@]}" --memory 512M --cpus 2
run virga wait demo
run virga ssh demo -- uname -a
run virga list

say "And it is gone before it costs anybody anything"
run virga destroy demo
run virga list
