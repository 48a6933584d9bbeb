#!/usr/bin/env bash
# build.sh OUT VERSION: the Debian packages, from the binaries in build/bin. Called by `make deb`. With ENCLAVE=DIR, a directory that
# deploy/enclave/build.sh and sign.sh have filled, the production node service becomes a package too; without, the simulated one only.
set -euo pipefail
out=$1 version=$2
nfpm=(go tool -modfile=tools/nfpm/go.mod nfpm)
rm -rf "$out"
mkdir -p "$out"/{bin,man,doc,completion,node-simulated,optional/bin,optional/units}
cp build/bin/safeconduct build/bin/safeconduct-swtpm build/bin/safeconduct-tunnel "$out/bin/"
if [ -e build/bin/safeconduct-agent ]; then
  cp build/bin/safeconduct-agent "$out/optional/bin/"
  cp deploy/systemd/safeconduct-agent.service "$out/optional/units/"
fi
build/bin/safeconduct man "$out/man"
gzip -9n "$out"/man/*
for shell in bash zsh fish; do build/bin/safeconduct completion "$shell" >"$out/completion/$shell"; done
cp docs/*.md SECURITY.md "$out/doc/"
cp build/bin/safeconductd "$out/node-simulated/safeconductd"
package() { # package CONFIG [NODE DESCRIPTION]
  sed -e "s#\${OUT}#$out#g" -e "s#\${VERSION}#$version#g" -e "s#\${NODE}#${2:-}#g" -e "s#\${NODE_DESCRIPTION}#'${3:-}'#g" "deploy/packaging/$1" >"$out/$1"
  "${nfpm[@]}" package --packager deb --config "$out/$1" --target "$out/" >/dev/null
}
package safeconduct.yaml
package safeconduct-node.yaml simulated 'SIMULATED Safeconduct node service: for tests, protects nothing'
if [ -n "${ENCLAVE:-}" ]; then
  mkdir "$out/node-enclave"
  cp "$ENCLAVE/safeconductd" "$out/node-enclave/safeconductd.signed"
  printf '#!/bin/sh\n# EGo runs the signed enclave; its host process is what systemd sees.\nexec ego run /usr/lib/safeconduct/safeconductd.signed "$@"\n' \
    >"$out/node-enclave/safeconductd"
  chmod 755 "$out/node-enclave/safeconductd"
  package safeconduct-node.yaml enclave 'Safeconduct node service, in an SGX enclave'
fi
