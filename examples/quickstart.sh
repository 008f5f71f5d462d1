#!/bin/bash
# Sluice in one command: installs what is missing, builds, makes a guest and an "internet" in network namespaces, starts sluiced
# on examples/quickstart/sluice.toml, and shows what gets through and what does not. Then everything is gone again, but for the
# build in build/release.
#
#   sudo ./examples/quickstart.sh
#
# Works from any folder and as often as one likes; touches no network of the machine's own.
set -euo pipefail
umask 022

if [ "$(id -u)" != 0 ]; then
  echo "quickstart: network namespaces and BPF programs take root; run: sudo $0" >&2
  exit 1
fi
cd "$(dirname "$(readlink -f "$0")")/.."

exec 9>/run/sluice-quickstart.lock
if ! flock --nonblock 9; then
  echo "quickstart: another one is running; wait for its end" >&2
  exit 1
fi

run=/run/sluice-quickstart
pins=/sys/fs/bpf/sluice-quickstart
name=sluice-quickstart
daemon=
name_server=

clean_up() {
  for process in $daemon $name_server; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  for role in guest host internet; do
    ip netns delete "$name-$role" 2>/dev/null || true
  done
  rm -rf "$pins" "$run"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
clean_up # what a killed run left

step() { printf '%s\n' "$*"; }

tools/install-dependencies.sh build
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

step "Building (build/release) ..."
cmake --preset release -DSLUICE_WITH_TESTS=OFF -DSLUICE_WITH_BENCHMARKS=OFF >/dev/null
cmake --build --preset release --target sluiced interfaces cgroups static_policy dns journal -- --quiet

mkdir -p "$run/plugins"
find build/release/plugins -name '*.so' -exec install -o root -g root -m 755 -t "$run/plugins" {} +
sluiced=$(find build/release/host -type f -name sluiced -perm -u+x -print -quit)

step "Making a guest, a host and an internet ..."
for role in guest host internet; do
  ip netns add "$name-$role"
  ip -n "$name-$role" link set lo up
  nsenter --net=/run/netns/$name-$role sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 \
    net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
done
ip -n $name-host -batch - <<END
link add uplink type veth peer name eth0 netns $name-internet
addr add 198.19.0.1/24 dev uplink
addr add 2001:db8:ffff::1/64 dev uplink nodad
link set uplink up
link add veth-guest type veth peer name eth0 netns $name-guest
addr add 198.18.1.1/24 dev veth-guest
addr add 2001:db8:1::1/64 dev veth-guest nodad
link set veth-guest up
END
ip -n $name-internet -batch - <<END
addr add 198.19.0.2/24 dev eth0
addr add 2001:db8:ffff::2/64 dev eth0 nodad
link set eth0 up
route add default via 198.19.0.1
route add default via 2001:db8:ffff::1
route add local 198.51.100.0/24 dev lo
route add local 203.0.113.0/24 dev lo
route add local 192.0.2.0/24 dev lo
route add local 10.20.0.0/16 dev lo
route add local 169.254.169.254/32 dev lo
route add local 2001:db8:a::/48 dev lo
route add local 2001:db8:c::/48 dev lo
route add local 2001:db8:bad::/48 dev lo
END
ip -n $name-host -batch - <<END
route add default via 198.19.0.2
route add default via 2001:db8:ffff::2
END
ip -n $name-guest -batch - <<END
addr add 198.18.1.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
link set eth0 up
route add default via 198.18.1.1
route add default via 2001:db8:1::1
END

# The internet's name server. The guest is told of it as of any other; with Sluice its questions do not get there.
cat >"$run/dnsmasq.conf" <<END
no-resolv
no-hosts
keep-in-foreground
bind-interfaces
user=root
pid-file=
listen-address=198.19.0.2,203.0.113.53
host-record=packages.example,192.0.2.20,2001:db8:c::20
host-record=cdn.files.example,192.0.2.21,2001:db8:c::21
host-record=inside.files.example,10.20.0.7
address=/exfil.example/203.0.113.66
END
echo "nameserver 203.0.113.53" >"$run/resolv.conf"
nsenter --net=/run/netns/$name-internet dnsmasq -C "$run/dnsmasq.conf" >"$run/dnsmasq.log" 2>&1 9>&- &
name_server=$!

tour=examples/quickstart/tour.py
python3 $tour without "$run"

step "Starting sluiced --config examples/quickstart/sluice.toml ..."
nsenter --net=/run/netns/$name-host "$sluiced" --config examples/quickstart/sluice.toml >"$run/log" 2>&1 9>&- &
daemon=$!
python3 $tour wait "$run" "$daemon"
python3 $tour with "$run"

kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || true
daemon=
python3 $tour dead "$run"
python3 $tour table "$run"
