#!/usr/bin/env bash
# Fails if the stubs in api/ are not what proto/ generates with the pinned tools.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
go tool -modfile=tools/buf/go.mod buf generate --output "$fresh"
if ! diff -r "$fresh/api/safeconduct" api/safeconduct >/dev/null; then
  echo 'api/ is stale: run make generate and commit the result' >&2
  diff -rq "$fresh/api/safeconduct" api/safeconduct >&2 || true
  exit 1
fi
