#!/bin/sh
# Reads C++ files with the checks of .clang-tidy, one at a time and politely; fails when there is a finding.
#
#   tools/tidy.sh [FILE...]      without files: the host, the plugins and the SDK's tools, an hour or so
#
# SLUICE_BUILD_DIR: a configured and built folder (headers are generated there); build/dev without it.
set -eu
cd "$(dirname "$0")/.."

build=${SLUICE_BUILD_DIR:-build/dev}
[ -f "$build/compile_commands.json" ] ||
  { echo "$0: $build is not built; run: cmake --preset dev && cmake --build --preset dev" >&2; exit 2; }
command -v clang-tidy-19 >/dev/null ||
  { echo "$0: needs clang-tidy 19; run: sudo tools/install-dependencies.sh lint" >&2; exit 2; }

if [ $# = 0 ]; then
  # shellcheck disable=SC2046  # no name of ours has a space
  set -- $(git ls-files 'host/*.cpp' 'plugins/*.cpp' 'sdk/tools/*.cpp')
fi
status=0
for file in "$@"; do
  nice -n 19 clang-tidy-19 -quiet -p "$build" "$file" 2>/dev/null || { status=1; echo "$file: see above"; }
done
exit $status
