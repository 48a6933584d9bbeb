#!/bin/bash
# host-init.sh NAME DIR UUID BIN: PID 1 of a compute host, inside fresh mount, UTS, IPC, PID and network namespaces. It makes the machine look like
# another one to libvirt and runs libvirtd, again whenever it ends (unless DIR/libvirtd.stop is there). Killing it ends the whole host.
set -u
name=$1 dir=$2 uuid=$3 bin=$4
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root
hostname "$name"
mount --make-rprivate /
# Own copies of everything that libvirt, swtpm and the helper keep state in.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/libvirt /run/safeconduct
chmod 755 /run/safeconduct
own() { mkdir -p "$dir/root$1" "$1" && mount --bind "$dir/root$1" "$1"; }
for d in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /var/lib/swtpm-localca /var/log/swtpm /etc/safeconduct; do own $d; done
cp "$dir/qemu" /run/qemu-tcg && chmod 755 /run/qemu-tcg
chown tss:root /var/lib/swtpm-localca
echo "${uuid//-/}" >"$dir/machine-id" && mount --bind "$dir/machine-id" /etc/machine-id
# Without cgroups two libvirtd would fight over /machine/qemu-1-VM.
umount -R -l /sys/fs/cgroup 2>/dev/null
cp "$dir/libvirtd.conf" "$dir/qemu.conf" /etc/libvirt/
[ ! -e "$dir/helper.yaml" ] || cp "$dir/helper.yaml" /etc/safeconduct/helper.yaml
trap 'exit 0' TERM
while :; do
  if [ ! -e "$dir/libvirtd.stop" ]; then
    # What "safeconduct helper install" has systemd do: the drop-in swtpm comes before the real one.
    PATH=$bin:$PATH /usr/sbin/libvirtd --listen -f /etc/libvirt/libvirtd.conf >>"$dir/libvirtd.out" 2>&1 &
    echo $! >/run/libvirtd.test.pid
    wait $!
    echo "$(date +%T.%N) libvirtd ended: $?" >>"$dir/libvirtd.out"
  fi
  sleep 0.2
done
