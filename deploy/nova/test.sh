#!/usr/bin/env bash
# Tests nova_safeconduct under Nova's own fixtures, and Nova's own tests with our driver in place of Nova's: with the Nova of this machine, or with that of
# another Debian suite in a chroot (SUITE=trixie, forky or sid; root). All that is made is under build/nova.
set -euo pipefail
cd "$(dirname "$0")"
build=$(cd ../.. && pwd)/build/nova
suite=${SUITE:-}
mkdir -p "$build"
if [ -z "$suite" ]; then
  if [ ! -e "$build/nova-common" ]; then
    (cd "$build" && apt-get download -q nova-common && dpkg-deb -x nova-common_*.deb nova-common && rm nova-common_*.deb)
  fi
  rm -rf "$build/work"
  exec ./inside.sh "$build/work" "$build/nova-common"
fi
root=$build/$suite
[ -e "$root/.complete" ] || { echo "making a chroot with Nova of $suite: $root"; ./chroot.sh "$suite" "$root" >"$build/$suite.log" 2>&1; } ||
  { tail -n 20 "$build/$suite.log" >&2; exit 1; }
rm -rf "$root/root/work" "$root/root/deploy"
mkdir -p "$root/root/deploy"
cp -r ./*.sh nova_safeconduct patches hooks "$root/root/deploy/"
exec chroot "$root" /usr/bin/env -i HOME=/root /root/deploy/inside.sh /root/work /root/nova-common
