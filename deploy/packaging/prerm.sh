#!/bin/sh
# safeconduct: before removal. libvirt gets its swtpm back first; VMs that run keep their helper, whose file the kernel keeps for them.
set -e
[ "$1" = remove ] || exit 0
safeconduct helper uninstall
if [ -d /run/systemd/system ]; then
  for unit in safeconduct-agent.service safeconduct-tunnel.service; do systemctl disable --now "$unit" 2>/dev/null || true; done
fi
