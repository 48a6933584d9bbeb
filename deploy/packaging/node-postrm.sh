#!/bin/sh
# safeconduct-node-*: after removal.
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ] && [ -d /var/lib/safeconduct ]; then
  # The escrowed secrets of VMs are in it, and a VM whose secret is gone does not start again. That is for the operator to decide.
  echo "/var/lib/safeconduct is left: it holds the sealed secrets of this host's VMs. Remove it by hand when no VM needs them." >&2
fi
