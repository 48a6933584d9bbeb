#!/bin/sh
# safeconduct-node-*: after installation or upgrade. The service is not enabled: it needs a configuration first (safeconductd.yaml).
set -e
[ "$1" = configure ] || exit 0
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # A node service that runs is drained and started in its new version: docs/upgrade.md says what the policy needs before.
  systemctl try-restart safeconductd.service || true
fi
