#!/usr/bin/env bash
# Builds the production safeconductd, unsigned, and lays out what sign.sh signs. The same sources, compiler, C compiler and policy keys give
# the same bytes, wherever and whenever this runs. Needs EGo (ego-go) and gcc; see docs/enclave.md.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

usage() {
  cat >&2 <<'USAGE'
usage: build.sh --policy-keys FILE --out DIR [--version VERSION] [--preproduction] [--go COMMAND]

  --policy-keys FILE   public keys whose signature makes a policy count, in PEM; measured into the enclave
  --out DIR            where the result goes: safeconductd, enclave.json, policy-keys.pem, BUILD; must not exist
  --version VERSION    what safeconductd --version prints (default: unknown); part of what is measured
  --preproduction      a DEBUG enclave, which keeps nothing from its host
  --go COMMAND         the compiler (default: ego-go). With plain go the result cannot be signed: for reproduce.sh and tests
USAGE
  exit 2
}

keys='' out='' version=unknown go=ego-go config=enclave.json tags=sgx
while [ $# -gt 0 ]; do
  case $1 in
    --policy-keys) keys=${2:?}; shift 2 ;;
    --out) out=${2:?}; shift 2 ;;
    --version) version=${2:?}; shift 2 ;;
    --go) go=${2:?}; shift 2 ;;
    --preproduction) config=enclave.preproduction.json tags=sgx,insecuredebugenclave; shift ;;
    *) usage ;;
  esac
done
[ -n "$keys" ] && [ -n "$out" ] || usage
[ ! -e "$out" ] || { echo "build.sh: $out exists; give a new directory" >&2; exit 1; }
[[ $version =~ ^[A-Za-z0-9._+-]{1,64}$ ]] || { echo "build.sh: version $version: expected letters, digits and ._+-" >&2; exit 1; }
[ "$(head -c 26 "$keys")" = '-----BEGIN PUBLIC KEY-----' ] || { echo "build.sh: $keys: expected public keys in PEM" >&2; exit 1; }
command -v "$go" >/dev/null || { echo "build.sh: $go not found: install EGo v1.9.0 and add /opt/ego/bin to PATH" >&2; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
keys=$(readlink -f "$keys")
digest=$(sha256sum "$keys" | cut -d ' ' -f 1)
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Nothing of the caller's environment or "go env -w" may reach the compilers.
unset GOFLAGS GOEXPERIMENT CGO_CFLAGS CGO_CPPFLAGS CGO_CXXFLAGS CGO_FFLAGS CGO_LDFLAGS CC CXX CPATH C_INCLUDE_PATH LIBRARY_PATH GOFIPS140
export GOENV=off GOWORK=off GOTOOLCHAIN=local GOOS=linux GOARCH=amd64 GOAMD64=v1 CGO_ENABLED=1 CC=gcc
export SOURCE_DATE_EPOCH=0 # gcc's __DATE__; the Go tool chain writes no time

module=github.com/safeconduct/safeconduct
(cd "$here/../.." && "$go" build -mod=readonly -tags "$tags" -trimpath -buildvcs=false \
  -ldflags "-buildid= -X $module/services/version.Version=$version -X $module/tee/sgx.policyKeysDigest=$digest" \
  -o "$out/safeconductd" ./cmd/safeconductd)
# The linker ignores -X for a name that does not exist.
grep -qF "$digest" "$out/safeconductd" || { echo "build.sh: the digest of the policy keys is not in the executable" >&2; exit 1; }
install -m 644 "$here/$config" "$out/enclave.json"
install -m 644 "$keys" "$out/policy-keys.pem"
{
  echo "version $version"
  echo "tags $tags"
  "$go" version
  gcc --version | head -n 1
  (cd "$out" && sha256sum safeconductd enclave.json policy-keys.pem)
  # MRENCLAVE covers EGo's own enclave image too.
  if ego=$(command -v ego); then sha256sum "$(dirname "$(readlink -f "$ego")")/../share/ego-enclave"; fi
} >"$out/BUILD"
cat "$out/BUILD"
