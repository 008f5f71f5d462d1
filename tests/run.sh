#!/bin/bash
# Installs what is missing, builds, and runs every test; the last lines are ctest's own summary.
#
#   sudo ./tests/run.sh                  all tests, a short number of rounds where a test repeats itself
#   sudo ./tests/run.sh --full           the full number of rounds (1,000 guests, 1,000 replacements, 200 deaths)
#   sudo ./tests/run.sh --asan | --tsan  the same under AddressSanitizer and UBSan, or ThreadSanitizer
#   sudo ./tests/run.sh ... -- ARGS      ARGS go to ctest: -R system/guard
#
# Works from any folder and as often as one likes. Fails when a test fails or takes longer than 15 minutes (--full: 2 hours), and
# also when one was skipped: a test that did not run has shown nothing.
set -euo pipefail
umask 022  # plugins that others may write are refused

preset=dev
patience=()
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --asan) preset=asan ;;
    --tsan) preset=tsan ;;
    --full) export SLUICE_FULL=1; patience=(--timeout 7200) ;;
    --) shift; arguments=("$@"); break ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

if [ "$(id -u)" != 0 ]; then
  echo "tests/run.sh: the tests make network namespaces and load BPF programs, which takes root; run: sudo $0" >&2
  exit 1
fi
cd "$(dirname "$(readlink -f "$0")")/.."

tools/install-dependencies.sh
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf

launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
cmake --preset "$preset" "${launcher[@]}" >/dev/null
cmake --build --preset "$preset" -- --quiet

# Leaks are looked for in every process but those that drop privileges, where the leak checker cannot work.
export ASAN_OPTIONS="${ASAN_OPTIONS:-abort_on_error=0:halt_on_error=1:exitcode=99}"
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1:exitcode=99}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}"
export SLUICE_NO_SKIPS=1

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
ctest --preset "$preset" -j "$(nproc)" "${patience[@]}" "${arguments[@]}" 2>&1 | tee "$log" || status=$?
if grep -Eq '\*\*\*(Skipped|Not Run)' "$log"; then
  echo "tests/run.sh: a test was skipped; every test must run here, see the list above" >&2
  status=1
fi
if grep -q '^No tests were found' "$log"; then
  status=1
fi
exit "$status"
