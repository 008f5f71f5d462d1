#!/bin/sh
# Formats every C and C++ file as .clang-format says; with --check, changes nothing and names those that it would change.
#
#   tools/format.sh [--check] [FILE...]      without files: all that git tracks
set -eu
cd "$(dirname "$0")/.."

wanted=14 # .clang-format is pinned to it: another release breaks lines elsewhere
format=
for name in clang-format-$wanted clang-format; do
  if command -v "$name" >/dev/null && "$name" --version | grep -q "version $wanted\."; then
    format=$name
    break
  fi
done
[ -n "$format" ] || { echo "$0: needs clang-format $wanted (Debian 12: clang-format; later: clang-format-$wanted)" >&2; exit 2; }

mode=-i
if [ "${1:-}" = --check ]; then
  mode="--dry-run -Werror"
  shift
fi
if [ $# = 0 ]; then
  # shellcheck disable=SC2046  # no name of ours has a space
  set -- $(git ls-files '*.c' '*.cpp' '*.h' '*.hpp')
fi
exec "$format" $mode "$@"
