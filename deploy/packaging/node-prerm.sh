#!/bin/sh
# safeconduct-node-*: before removal. Stopping drains: open sessions get their time.
set -e
[ "$1" = remove ] || exit 0
if [ -d /run/systemd/system ]; then systemctl disable --now safeconductd.service || true; fi
