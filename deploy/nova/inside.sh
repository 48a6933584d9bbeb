#!/usr/bin/env bash
# Runs the tests with the Nova that is installed where it runs: inside.sh WORK NOVA_COMMON, both directories; the latter nova-common unpacked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1 common=$2
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
python=/usr/bin/python3
# Nova's functional tests look for etc/nova beside the package.
mkdir -p "$work/etc/nova" "$work/run"
ln -sfn "$("$python" -c 'import importlib.util as u; print(list(u.find_spec("nova").submodule_search_locations)[0])')" "$work/nova"
cp "$common/usr/share/nova-common/api-paste.ini" "$work/etc/nova/"
cd "$work/run" # not where "nova" is: Python would look here first
run() {
  local name=$1 log=$work/$1.log
  shift
  # A test that hangs is ended with its run.
  if ! timeout 1200 env PYTHONPATH="$PYTHONPATH" "$python" -c "$module" "$@" >"$log" 2>&1; then
    echo "$name: FAILED" >&2
    grep -vE 'tpool.py|my_thread = |setDaemon' "$log" | tail -n 80 >&2
    exit 1
  fi
  echo "$name: $(grep -E '^Ran ' "$log" | tail -n 1), $(tail -n 1 "$log")"
}
export PYTHONPATH=$work:$here
# Nova's tests first: they patch the process for eventlet, or keep it from being patched.
module='import nova.tests.unit, runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)'
run unit testtools.run discover -s "$here/nova_safeconduct/tests" -t "$here"
if grep -q 'def poison_eventlet' "$work/nova/monkey_patch.py"; then
  OS_NOVA_DISABLE_EVENTLET_PATCHING=true run unit-native-threads testtools.run discover -s "$here/nova_safeconduct/tests" -t "$here"
fi
PYTHONPATH=$here "$python" -m nova_safeconduct.overlay "$work/overlay"
NOVA_IS_PATCHED=1 PYTHONPATH=$work/overlay:$PYTHONPATH run api testtools.run nova_safeconduct.tests.test_api
module='import runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)' # it orders its imports itself
run nova-unit nova_safeconduct.tests.substitute nova.tests.unit.virt.libvirt.test_driver \
  'live_migrat|vtpm|migration|create_guest|cleanup|init_host|post_copy|available_resource|destroy|undefine|host_boot|hard_reboot'
run nova-functional nova_safeconduct.tests.substitute nova.tests.functional.libvirt.test_live_migration . nova.tests.functional.libvirt.test_vtpm .
