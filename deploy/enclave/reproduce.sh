#!/usr/bin/env bash
# Builds the enclave's executable twice from the sources of this checkout, as different as two machines' builds are that can be had on one: in
# directories of different names and depths, with empty build caches, other file times, time zones, locales and umasks, and with variables in
# the environment that must have no effect. Compares the bytes. usage: reproduce.sh [go|ego-go]
set -euo pipefail
go=${1:-ego-go}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
# Any public key does.
openssl genpkey -algorithm ed25519 2>/dev/null | openssl pkey -pubout -out "$work/keys.pem"

once() { # SOURCES OUT
  mkdir -p "$1" "$work/cache-$(basename "$2")"
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done |
    tar -c --null -T -) | tar -x -C "$1" "${touch[@]}"
  (cd / && GOCACHE="$work/cache-$(basename "$2")" "$1/deploy/enclave/build.sh" --policy-keys "$work/keys.pem" --out "$2" --version reproduce --go "$go" >/dev/null)
}
modules=$("$go" env GOMODCACHE)
touch=(--touch)
(umask 077; TZ=Asia/Tokyo LC_ALL=C CGO_CFLAGS=-O0 GOFLAGS=-tags=other once "$work/a" "$work/first")
touch=()
(umask 002; TZ=America/Lima HOME="$work" GOMODCACHE=$modules once "$work/a/longer/name/of/a/directory" "$work/second")
sha256sum "$work"/{first,second}/safeconductd | sed "s|$work/||"
cmp "$work/first/safeconductd" "$work/second/safeconductd" || { echo 'reproduce.sh: the builds differ' >&2; exit 1; }
echo "reproduced with $("$go" version)"
