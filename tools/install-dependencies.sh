#!/bin/sh
# Installs every Debian package that building, testing, benchmarking and fuzzing Sluice takes. Says nothing and asks no network when
# all are there. Works on Debian 12 and later, Ubuntu 24.04 and later.
#
#   tools/install-dependencies.sh          what building and testing take
#   tools/install-dependencies.sh build    what the daemon, its plugins and the quickstart take
#   tools/install-dependencies.sh bench    that of the tests, and the peers that only benchmarks run
#   tools/install-dependencies.sh lint     what formats and reads the code: tools/format.sh and tools/tidy.sh
#   tools/install-dependencies.sh fuzz     that of the tests, and the compiler that only the fuzzers take
#
# Name servers among them are started by the tests, in namespaces of their own: none is left running or enabled on this machine.
set -eu

build="g++ cmake ninja-build pkg-config clang bpftool libbpf-dev libelf-dev zlib1g-dev libcap-dev libidn2-dev libspdlog-dev libtoml11-dev
  libpsl-dev libsodium-dev linux-libc-dev iproute2 iputils-ping util-linux procps python3 dnsmasq-base"
tests="doctest-dev ccache python3-pytest python3-scapy python3-dnspython liburing-dev libcap2-bin libldns-dev libbenchmark-dev
  nftables ipset bind9-dnsutils nsd musl-tools"
bench="unbound dnsdist dnsperf"
lint="clang-format-14 clang-tidy-19" # other releases break lines elsewhere, and find other things
fuzz="clang-19 libclang-rt-19-dev"   # some 400 MB; the first clang that can read libstdc++'s <expected>

case "${1:-all}" in
  build) wanted=$build ;;
  all) wanted="$build $tests" ;;
  bench) wanted="$build $tests $bench" ;;
  lint) wanted="$build $lint" ;;
  fuzz) wanted="$build $tests $fuzz" ;;
  *) echo "usage: $0 [build|all|bench|lint|fuzz]" >&2; exit 2 ;;
esac

missing=
for package in $wanted; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "$0: missing:$missing" >&2
  echo "$0: installing them takes root; run: sudo $0" >&2
  exit 1
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
  policy=
else # a service whose package asks here is told not to start
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
trap 'rm -f "$log" $policy' EXIT
trap 'exit 130' INT TERM
# shellcheck disable=SC2086  # a list of words
if ! apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1; then
  apt-get update -q >>"$log" 2>&1 || true
  # shellcheck disable=SC2086
  if ! apt-get install -y -q --no-install-recommends $missing >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "$0: apt-get could not install:$missing" >&2
    exit 1
  fi
fi
for service in nsd unbound dnsdist; do
  case "$missing " in
    *" $service "*) [ ! -d /run/systemd/system ] || systemctl disable -q "$service" 2>/dev/null || true ;;
  esac
done
