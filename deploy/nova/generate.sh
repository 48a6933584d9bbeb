#!/usr/bin/env bash
# Generates nova_safeconduct/rpc from proto/ with Debian 12's protoc and gRPC plugin. With --check it changes nothing and fails if what is checked in
# is stale.
set -euo pipefail
cd "$(dirname "$0")"
version=$(/usr/bin/protoc --version)
if [ "$version" != 'libprotoc 3.21.12' ]; then
  # A newer protoc writes code that the python3-protobuf of Debian 12 cannot load.
  echo "protoc is $version, expected libprotoc 3.21.12 (Debian 12: protobuf-compiler)" >&2
  exit 1
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for name in common migration secret admin; do
  grpc=(--grpc_python_out="$out" --plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin)
  [ "$name" != common ] || grpc=() # it has no service
  /usr/bin/protoc -I ../../proto --python_out="$out" "${grpc[@]}" "safeconduct/v1/$name.proto"
done
mv "$out"/safeconduct/v1/*.py "$out"
rm -r "$out/safeconduct"
/usr/bin/protoc -I . --python_out="$out" status.proto
sed -i 's/^from safeconduct\.v1 import/from nova_safeconduct.rpc import/' "$out"/*.py
echo '"""What protoc made of proto/: run generate.sh, do not edit."""' >"$out/__init__.py"
if [ "${1:-}" != --check ]; then
  rm -rf nova_safeconduct/rpc
  cp -r "$out" nova_safeconduct/rpc
  chmod -R a+rX nova_safeconduct/rpc
elif ! diff -rq -x __pycache__ "$out" nova_safeconduct/rpc >&2; then
  echo 'deploy/nova/nova_safeconduct/rpc is stale: run make generate-nova and commit the result' >&2
  exit 1
fi

# The sample of nova.conf's section. The generator finds the options by an entry point, as in an installed package.
info=$out/../safeconduct-entry-point.$$
trap 'rm -rf "$out" "$info"' EXIT
mkdir -p "$info/nova_safeconduct-0.dist-info"
printf 'Metadata-Version: 2.1\nName: nova-safeconduct\nVersion: 0\n' >"$info/nova_safeconduct-0.dist-info/METADATA"
printf '[oslo.config.opts]\nnova_safeconduct = nova_safeconduct.conf:list_opts\n' >"$info/nova_safeconduct-0.dist-info/entry_points.txt"
PATH=/usr/bin:/bin PYTHONPATH=$PWD:$info PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore \
  /usr/bin/python3 -m oslo_config.generator --namespace nova_safeconduct --wrap-width 79 --output-file "$out/sample"
if [ "${1:-}" != --check ]; then
  cp "$out/sample" etc/nova-safeconduct.conf.sample
elif ! diff -q "$out/sample" etc/nova-safeconduct.conf.sample >&2; then
  echo 'deploy/nova/etc/nova-safeconduct.conf.sample is stale: run make generate-nova and commit the result' >&2
  exit 1
fi
