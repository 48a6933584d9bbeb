#!/usr/bin/env bash
# suite.sh SUITE DIR PACKAGE...: a root directory of another Debian suite, with packages of it, from the mirror that this system uses. Does nothing if it
# is there. Root.
set -euo pipefail
suite=$1 dir=$2
shift 2
[ ! -e "$dir/.complete" ] || exit 0
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
  sed -nE 's/^URIs: +([^ ]*\/debian)\/?( .*)?$/\1/p; s/^deb (\[[^]]*\] )?([^ ]*\/debian)\/? .*/\2/p' | head -n 1)
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid # a suite that is newer than this debootstrap
rm -rf "$dir"
mkdir -p "$(dirname "$dir")"
echo "making $dir from Debian $suite"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! debootstrap --variant=minbase --include="$(IFS=,; echo "$*")" "$suite" "$dir" "${mirror:?no Debian mirror in /etc/apt}" "$script" >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  exit 1
fi
touch "$dir/.complete"
