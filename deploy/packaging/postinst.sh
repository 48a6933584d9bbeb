#!/bin/sh
# safeconduct: after installation. VMs that run are not touched, and libvirt is not: `safeconduct helper install` is the operator's to run.
set -e
[ "$1" = configure ] || exit 0
if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers safeconduct.conf
else
  for user in safeconduct safeconduct-tunnel safeconduct-agent; do
    getent passwd "$user" >/dev/null || adduser --system --group --quiet --no-create-home --home /nonexistent "$user"
  done
  for user in safeconduct-tunnel safeconduct-agent; do adduser --quiet "$user" safeconduct; done
fi
# Those that call the node service open its socket as members of its group.
for user in nova tss; do
  if getent passwd "$user" >/dev/null; then adduser --quiet "$user" safeconduct; fi
done
if [ -d /run/systemd/system ]; then
  systemd-tmpfiles --create safeconduct.conf || true # the group libvirt-qemu may not be there yet
  systemctl daemon-reload
  # After an upgrade, what ran runs in its new version. An unfinished migration breaks off and its VM stays on the source.
  for unit in safeconduct-tunnel.service safeconduct-agent.service; do systemctl try-restart "$unit" || true; done
fi
