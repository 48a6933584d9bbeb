#!/usr/bin/env bash
# Runs the unit tests of nova_safeconduct under the installed Nova's own fixtures.
set -euo pipefail
cd "$(dirname "$0")"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$PWD
cd "$work"
/usr/bin/python3 -m testtools.run discover -s "$here/nova_safeconduct/tests" -t "$here" "$@"
