#!/usr/bin/env bash
# Builds the container image of the production node service from a signed release (deploy/enclave/build.sh, sign.sh). See docs/kubernetes.md.
set -euo pipefail

usage() {
  cat >&2 <<'USAGE'
usage: enclave.sh --base IMAGE@sha256:DIGEST --release DIR --cli FILE --tag NAME:VERSION [--packages DIR]

  --base      image with EGo v1.9.0 in PATH, by digest
  --release   directory that build.sh and sign.sh have filled: safeconductd, BUILD, SIGNED
  --cli       static executable of the command line: build/bin/safeconduct
  --packages  directory of Intel's .deb packages with their SHA256SUMS, for hosts whose quotes come from a PCCS
  --tag       name of the image. Its digest, not its tag, belongs into the chart's values

ENGINE (default docker) is the program that builds.
USAGE
  exit 2
}

fail() { echo "enclave.sh: $*" >&2; exit 1; }

base='' release='' cli='' tag='' packages=''
while [ $# -gt 0 ]; do
  case $1 in
    --base) base=${2:?}; shift 2 ;;
    --release) release=${2:?}; shift 2 ;;
    --cli) cli=${2:?}; shift 2 ;;
    --tag) tag=${2:?}; shift 2 ;;
    --packages) packages=${2:?}; shift 2 ;;
    *) usage ;;
  esac
done
[ -n "$base" ] && [ -n "$release" ] && [ -n "$cli" ] && [ -n "$tag" ] || usage
[[ $base =~ ^[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}$ ]] || fail "base $base: expected IMAGE@sha256: and 64 hex digits; a tag may be another image tomorrow"
[[ $tag =~ ^[a-z0-9][a-z0-9._:/-]*:[A-Za-z0-9._-]+$ && $tag != *:latest ]] || fail "tag $tag: expected NAME:VERSION, and not latest"
[ -f "$release/SIGNED" ] || fail "$release/SIGNED is missing: sign the release first (deploy/enclave/sign.sh)"
grep -qx 'debug false' "$release/SIGNED" || fail "$release/SIGNED does not say debug false: a DEBUG enclave keeps nothing from its host"
command -v readelf >/dev/null || fail "readelf is missing: install binutils"
if readelf --program-headers --wide "$cli" | grep -q INTERP; then fail "$cli is dynamically linked: give build/bin/safeconduct"; fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir "$context/packages"
if [ -n "$packages" ]; then
  [ -f "$packages/SHA256SUMS" ] || fail "$packages/SHA256SUMS is missing: write down the digests of the packages that you have checked"
  for deb in "$packages"/*.deb; do
    (cd "$packages" && grep -F " ${deb##*/}" SHA256SUMS | sha256sum --check --status) || fail "${deb##*/} is not what SHA256SUMS says"
    cp "$deb" "$context/packages/"
  done
fi
touch "$context/packages/.keep" # a directory that is empty cannot be copied
install -m 755 "$release/safeconductd" "$context/safeconductd"
install -m 755 "$cli" "$context/safeconduct"
install -m 644 "$release/BUILD" "$release/SIGNED" "$here/../../LICENSE" "$context/"
"${ENGINE:-docker}" build --file "$here/enclave.Dockerfile" --build-arg "BASE=$base" --tag "$tag" "$context"
