#!/usr/bin/env bash
# packaging.sh DIR: installs, upgrades, removes and purges the packages of build/deb in a root directory of Debian 12 made for it under DIR, and checks after
# each step what a host would have. Root. Prints one line a check.
set -euo pipefail
dir=$1 base=$1/base root=$1/root
here=$(cd "$(dirname "$0")" && pwd)
"$here/suite.sh" bookworm "$base" systemd swtpm swtpm-tools adduser man-db
teardown() { for m in proc dev; do ! mountpoint -q "$root/$m" || umount "$root/$m"; done; rm -rf "$root"; }
trap teardown EXIT
teardown
cp -a "$base" "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
check() { # check TEXT COMMAND...
  local text=$1
  shift
  if "$@" >"$dir/check.log" 2>&1; then echo "ok    $text"; else
    echo "FAIL  $text"
    cat "$dir/check.log"
    exit 1
  fi
}
has() { [ -e "$root$1" ]; }
has_not() { [ ! -e "$root$1" ] && [ ! -L "$root$1" ]; }
fails() { ! "$@"; }
dpkg_in() { in_root dpkg "$@"; }

# A later version of the same, for the upgrade, and an enclave's node service that does not fit beside the simulated one.
next=$dir/next
rm -rf "$next" && mkdir -p "$next" "$root/debs"
for deb in build/deb/safeconduct_*.deb build/deb/safeconduct-node-simulated_*.deb; do
  tmp=$(mktemp -d)
  dpkg-deb -R "$deb" "$tmp"
  sed -i 's/^Version: .*/Version: 99/' "$tmp/DEBIAN/control"
  dpkg-deb --root-owner-group -b "$tmp" "$next/" >/dev/null
  case $deb in *node-simulated*)
    sed -i 's/^Package: .*/Package: safeconduct-node-enclave/' "$tmp/DEBIAN/control"
    dpkg-deb --root-owner-group -b "$tmp" "$next/enclave.deb" >/dev/null
    ;;
  esac
  rm -rf "$tmp"
done
cp build/deb/*.deb "$root/debs/"
mkdir "$root/debs/next"
cp "$next"/*.deb "$root/debs/next/"
glob() { (cd "$root" && ls debs/$1 | sed 's#^#/#'); }
in_root adduser --system --group --quiet nova
real=$(sha256sum <"$root/usr/bin/swtpm")

echo '# install'
check 'the packages install' dpkg_in -i $(glob 'safeconduct_*.deb') $(glob 'safeconduct-node-simulated_*.deb')
check 'the services have users' in_root sh -c 'id safeconduct && id safeconduct-tunnel && id safeconduct-agent'
check 'nova and tss are in the group of the socket' in_root sh -c 'id -nG nova | grep -qw safeconduct && id -nG tss | grep -qw safeconduct'
check 'the programs run' in_root sh -c 'safeconduct --version && safeconduct-swtpm --version && safeconduct-tunnel --version && /usr/lib/safeconduct/safeconductd --version'
check 'the manual is there' in_root man -w safeconduct-policy-sign
check 'no service is enabled before there is a configuration' fails in_root systemctl is-enabled safeconductd.service
check 'the units are valid' in_root systemd-analyze verify --man=no /usr/lib/systemd/system/safeconductd.service /usr/lib/systemd/system/safeconduct-tunnel.service
for unit in safeconductd safeconduct-tunnel; do
  check "systemd-analyze security rates $unit below 3" in_root systemd-analyze security --offline=true --threshold=30 "/usr/lib/systemd/system/$unit.service"
done
check 'the settings of the helper are read' in_root sh -c 'setpriv --reuid tss --regid tss --clear-groups cat /etc/safeconduct/helper.yaml'
check 'the enclave and the simulation do not stand side by side' fails dpkg_in --dry-run -i /debs/next/enclave.deb

echo '# the helper'
check 'it installs' in_root safeconduct helper install
check 'swtpm answers through it' in_root sh -c 'swtpm socket --print-capabilities | grep -q tpm-2.0 && [ "$(readlink /usr/bin/swtpm)" = /usr/bin/safeconduct-swtpm ]'

echo '# upgrade'
echo 'log_level: DEBUG' >>"$root/etc/safeconduct/helper.yaml"
mkdir -p "$root/var/lib/safeconduct/sealed"
echo secret >"$root/var/lib/safeconduct/sealed/x"
check 'the packages upgrade' dpkg_in --force-confold -i $(glob 'next/safeconduct_*.deb') $(glob 'next/safeconduct-node-simulated_*.deb')
check 'the version is the new one' in_root sh -c '[ "$(dpkg-query -W -f \${Version} safeconduct)" = 99 ]'
check "the operator's settings stay" grep -q DEBUG "$root/etc/safeconduct/helper.yaml"
check 'the helper stays in its place' in_root sh -c '[ "$(readlink /usr/bin/swtpm)" = /usr/bin/safeconduct-swtpm ]'
check "swtpm's own upgrade does not undo it" in_root sh -c 'cd /tmp && apt-get -qq update && apt-get -qq install --reinstall -y swtpm && [ "$(readlink /usr/bin/swtpm)" = /usr/bin/safeconduct-swtpm ]'

echo '# remove'
check 'the packages go' dpkg_in -r safeconduct-node-simulated safeconduct
check 'swtpm is itself again' sh -c "[ '$(sha256sum <"$root/usr/bin/swtpm")' = '$real' ]"
check 'nothing is diverted' in_root sh -c '[ -z "$(dpkg-divert --list "*swtpm*")" ]'
check 'the settings stay' has /etc/safeconduct/helper.yaml

echo '# purge'
check 'the packages are purged' dpkg_in -P safeconduct-node-simulated safeconduct
check 'the configuration is gone' has_not /etc/safeconduct
check 'the programs are gone' has_not /usr/lib/safeconduct
check "the VMs' sealed secrets are left for the operator" has /var/lib/safeconduct/sealed/x
echo 'PASS'
