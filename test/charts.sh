#!/usr/bin/env bash
# charts.sh: helm lint, helm-unittest, schema, strict types and rules of charts/; the README is not stale. TOOLS is the directory of helm and its companions.
set -euo pipefail
tools=$(cd "${TOOLS:?}" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
chart=$root/charts/safeconduct
# helm tells of every link that it follows; ours are meant.
quiet() { "$@" 2> >(grep -v 'found symbolic link in path' >&2); }
for values in "$chart"/ci/*-values.yaml; do
  quiet "$tools/helm" lint --strict --quiet --kube-version 1.34.4 "$chart" -f "$values"
done
quiet "$tools/helm-unittest" "$chart"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -rL "$chart" "$work/safeconduct"
"$tools/helm-docs" --chart-search-root "$work" --log-level warning
diff -u "$chart/README.md" "$work/safeconduct/README.md" || { echo 'charts/safeconduct/README.md is stale: make generate-charts' >&2; exit 1; }
cd "$root/test/kubernetes" && go test -count=1 ./chart ./handover
