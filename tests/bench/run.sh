#!/bin/bash
# Installs what is missing, builds with optimisation, and prints every benchmark as a table: the figure, its budget, and what
# its peers took in the same run.
#
#   sudo ./tests/bench/run.sh            everything, about twenty minutes
#   sudo ./tests/bench/run.sh --quick    smaller sets and fewer rounds, about six
#   sudo ./tests/bench/run.sh [--quick] SECTION...   only these: policy, program, filter, calls, publish, learn, attach,
#                                                        daemon, dns
#
# A missed budget is marked OVER; the exit code says only whether everything could be measured. docs/benchmarks.md says how
# each figure is taken.
set -euo pipefail

quick=()
sections=()
for argument in "$@"; do
  case "$argument" in
    --quick) quick=(--quick) ;;
    policy | program | filter | calls | publish | learn | attach | daemon | dns) sections+=("$argument") ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

if [ "$(id -u)" != 0 ]; then
  echo "tests/bench/run.sh: the benchmarks make network namespaces and load BPF programs, which takes root; run: sudo $0" >&2
  exit 1
fi
cd "$(dirname "$(readlink -f "$0")")/../.."

tools/install-dependencies.sh bench
if ! command -v iptables-legacy >/dev/null; then # only ipset's benchmark takes it
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends iptables >/dev/null 2>&1 ||
    echo "tests/bench/run.sh: iptables could not be installed; ipset is left out of the table" >&2
fi
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
build=$(readlink -m "${SLUICE_BUILD_DIR:-build/release}")
# Also where the quickstart has configured it without tests.
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSLUICE_WITH_TESTS=ON -DSLUICE_WITH_BENCHMARKS=ON "${launcher[@]}" >/dev/null
cmake --build "$build" --target bench_dataplane bench_policy | tail -n 1

kernel_sections=()
policy=0
daemon=0
dns=0
[ ${#sections[@]} -gt 0 ] || policy=1 daemon=1 dns=1
for section in "${sections[@]}"; do
  case "$section" in
    policy) policy=1 ;;
    daemon) daemon=1 ;;
    dns) dns=1 ;;
    *) kernel_sections+=("$section") ;;
  esac
done
if [ ${#sections[@]} -eq 0 ] || [ ${#kernel_sections[@]} -gt 0 ]; then
  "$build/tests/bench/dataplane/bench_dataplane" "${quick[@]}" "${kernel_sections[@]}"
fi
if [ "$policy" = 1 ]; then
  echo
  "$build/tests/bench/policy/bench_policy" ${quick:+compile}
fi
if [ "$daemon" = 1 ] || [ "$dns" = 1 ]; then
  echo
  cmake --build "$build" --target sluiced interfaces static_policy dns | tail -n 1
  export SLUICE_BUILD_DIR=$build PYTHONDONTWRITEBYTECODE=1
fi
if [ "$daemon" = 1 ]; then
  python3 tests/bench/daemon/daemon.py "${quick[@]}"
fi
if [ "$dns" = 1 ]; then
  python3 tests/bench/dns/dns.py "${quick[@]}"
fi
