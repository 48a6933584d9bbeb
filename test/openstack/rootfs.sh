#!/usr/bin/env bash
# rootfs.sh SUITE DIR: the file system that the machines of the suite share, read-only: Debian SUITE with OpenStack, libvirt, QEMU and swtpm.
# Made once and kept; remove DIR to have it made anew. MIRROR names another Debian mirror than debootstrap's own.
set -euo pipefail
suite=$1 root=$2 mirror=${MIRROR:-}

packages=(
  # The control plane. Debian's python3-* hold the code alone: no users, no start scripts, nothing asked.
  python3-keystone python3-placement python3-glance python3-barbican python3-nova python3-openstackclient python3-pymysql python3-memcache
  mariadb-server rabbitmq-server uwsgi-core uwsgi-plugin-python3
  # A compute node.
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients python3-libvirt qemu-system-x86 qemu-utils ovmf swtpm swtpm-tools bindfs
  python3-grpcio python3-protobuf
  # The guests' kernel, and what the suite looks around with.
  linux-image-cloud-amd64 iproute2 kmod procps util-linux patch
)
# Their code needs these files, whose packages would set up a service.
unpacked=(nova-common glance-common barbican-common)
[ "$suite" = bookworm ] || packages+=(libvirt-daemon-driver-secret libvirt-daemon-driver-nodedev libvirt-daemon-driver-network libvirt-daemon-driver-storage)

recipe=$(sha256sum <"$0")
[ "$(cat "$root/.complete" 2>/dev/null)" != "$recipe" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "root is needed to make $root" >&2; exit 1; }
echo "making $root: Debian $suite with OpenStack; a few minutes, once"
mkdir -p "$root"
log=$root.log
trap 'tail -n 30 "$log" >&2' ERR
exec 3>&1 >"$log" 2>&1

script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid # newer than this machine's debootstrap
[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase "$suite" "$root" "$mirror" "$script"

printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing is started by being installed
chmod +x "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf"
apt() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -y \
  -o Acquire::Check-Valid-Until=false -o Dpkg::Options::=--force-unsafe-io "$@"; } # a mirror may be a snapshot of another day
apt update
apt install --no-install-recommends "${packages[@]}"
for package in "${unpacked[@]}"; do
  chroot "$root" sh -c "cd /tmp && apt-get -q download $package && dpkg-deb -x $package*.deb /opt/$package && rm $package*.deb"
done

# libvirtd looks its user up before it reads that qemu.conf names another; the package that makes it also starts services. Debian's ids.
chroot "$root" sh -c 'getent passwd libvirt-qemu >/dev/null || { groupadd --system --gid 64055 libvirt-qemu &&
  useradd --system --uid 64055 --gid kvm -G libvirt-qemu -M -d /var/lib/libvirt -s /usr/sbin/nologin libvirt-qemu; }'

# QEMU emulates the processor here, which survives migration with one thread only (see test/vm), and libvirt has no word for that.
qemu=/usr/bin/qemu-system-x86_64
chroot "$root" dpkg-divert --quiet --add --rename --divert $qemu.real $qemu
cat >"$root$qemu" <<'END'
#!/bin/bash
args=()
for a in "$@"; do [ "$a" = tcg ] && a=tcg,thread=single; args+=("$a"); done
exec /usr/bin/qemu-system-x86_64.real "${args[@]}"
END
chmod +x "$root$qemu"
rm -rf "$root.libvirt" # what libvirt knew of the other one
apt clean
echo "$recipe" >"$root/.complete"
exec >&3
