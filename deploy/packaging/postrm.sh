#!/bin/sh
# safeconduct: after removal.
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
[ "$1" = purge ] || exit 0
# The operator's files go only if they are as they were installed (dpkg has removed helper.yaml); a directory with more in it stays, as do the users:
# files may be theirs.
rmdir /etc/safeconduct 2>/dev/null || true
