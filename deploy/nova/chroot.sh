#!/usr/bin/env bash
# Makes a Debian suite in a directory, with its Nova, Nova's tests and what they need: chroot.sh SUITE DIRECTORY. Root. It does nothing if it is there.
set -euo pipefail
suite=$1 root=$2
[ ! -e "$root/.complete" ] || exit 0
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
mkdir -p "$(dirname "$root")"
rm -rf --one-file-system "$root"
# Signatures are checked with the keyring of this machine; a mirror that has been still for a while is taken as it is.
debootstrap --variant=minbase "$suite" "$root" '' "/usr/share/debootstrap/scripts/sid"
echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90still"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get update -q
chroot "$root" apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
  python3-nova python3-libvirt python3-grpcio python3-protobuf patch python3-oslotest python3-stestr python3-testtools python3-ddt \
  python3-requests-mock python3-gabbi python3-testresources python3-testscenarios python3-wsgi-intercept python3-osprofiler python3-placement
chroot "$root" sh -c 'cd /root && apt-get download -q nova-common && dpkg-deb -x nova-common_*.deb /root/nova-common && rm nova-common_*.deb'
touch "$root/.complete"
