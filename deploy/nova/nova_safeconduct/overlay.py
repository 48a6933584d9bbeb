"""Makes an overlay of Nova: a directory that, first in PYTHONPATH, gives
Safeconduct's driver and API change to the installed Nova. No installed file is
touched.

    python3 -m nova_safeconduct.overlay /usr/lib/safeconduct/nova

It has the module nova.virt.safeconduct, which nova-compute needs where this
package is not in the directory that Nova is in, and a patched copy of
nova/compute/api.py for nova-api. It is made of the Nova that is installed, so
it must be made again whenever Nova is upgraded.
"""

import argparse
import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile

EXTEND = '''"""Made by nova_safeconduct.overlay: this before Nova's own."""

__path__ = __import__('pkgutil').extend_path(__path__, __name__)
'''

SHIM = '''"""Made by nova_safeconduct.overlay."""

from nova_safeconduct.driver import SafeconductDriver  # noqa: F401
'''

PATCHED = 'nova/compute/api.py'
PACKAGES = ('nova', 'nova/compute', 'nova/virt')


class Unsuited(Exception):
    """The installed Nova is not one that an overlay can be made for."""


def installed_nova():
    """The directory that the package nova is in."""
    # Without importing it, which may patch this process for eventlet.
    spec = importlib.util.find_spec('nova')
    if spec is None or not spec.submodule_search_locations:
        raise Unsuited('there is no Nova in the path of %s' % sys.executable)
    return os.path.dirname(list(spec.submodule_search_locations)[-1])


def shipped_patches():
    """The directory of the patches: in the source tree, or as installed."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path in (os.path.join(here, 'patches'),
                 os.path.join(sys.prefix, 'share/nova-safeconduct/patches'),
                 '/usr/local/share/nova-safeconduct/patches'):
        if os.path.isdir(path):
            return path
    return '/usr/share/nova-safeconduct/patches'


def release_of(parent):
    """Nova's major version, from the metadata beside it; None if unknown."""
    for name in sorted(os.listdir(parent)):
        m = re.match(r'nova-(\d+)\.[^-]*\.(egg-info|dist-info)$', name)
        if m:
            return m.group(1)
    return None


def _says_something(path):
    """Whether a package's __init__.py has code that an overlay would hide."""
    with open(path) as f:
        body = ast.parse(f.read(), path).body
    for statement in body:
        if not isinstance(statement, ast.Expr):
            return True
        value = statement.value
        if isinstance(value, ast.Constant):
            continue
        if 'declare_namespace' not in ast.dump(value):
            return True
    return False


def _apply(series_dir, root, dry_run):
    with open(os.path.join(series_dir, 'series')) as f:
        names = [line.strip() for line in f if line.strip()]
    for name in names:
        command = ['patch', '--strip=1', '--fuzz=0', '--force', '--silent',
                   '--no-backup-if-mismatch', '--directory', root,
                   '--input', os.path.join(series_dir, name)]
        done = subprocess.run(command + (['--dry-run'] if dry_run else []),
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            return done.stdout
    return None


def choose(patches, release, root):
    """The directory of the patches that apply to a copy of Nova under root:
    those of its release, or else those of the nearest one.
    """
    known = sorted((d for d in os.listdir(patches) if d.isdigit()), key=int)
    if release is not None:
        known.sort(key=lambda d: abs(int(d) - int(release)))
    said = []
    for name in known:
        path = os.path.join(patches, name)
        error = _apply(path, root, dry_run=True)
        if error is None:
            return path
        said.append('%s: %s' % (name, error.strip()))
    raise Unsuited('no patch applies to %s of Nova %s:\n%s'
                   % (PATCHED, release or 'of unknown release',
                      '\n'.join(said)))


def make(out, parent, patches):
    """Makes the overlay at out; returns the patches' directory."""
    for package in PACKAGES:
        init = os.path.join(parent, package, '__init__.py')
        if _says_something(init):
            raise Unsuited('%s has code of its own, which an overlay would '
                           'hide: patch this Nova instead' % init)
    if os.path.exists(out) and not os.path.exists(
            os.path.join(out, 'nova', 'virt', 'safeconduct.py')):
        raise Unsuited('%s exists and is no overlay' % out)
    out = os.path.abspath(out)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    fresh = tempfile.mkdtemp(prefix='.overlay-', dir=os.path.dirname(out))
    try:
        for package in PACKAGES:
            os.makedirs(os.path.join(fresh, package), exist_ok=True)
            with open(os.path.join(fresh, package, '__init__.py'), 'w') as f:
                f.write(EXTEND)
        with open(os.path.join(fresh, 'nova/virt/safeconduct.py'), 'w') as f:
            f.write(SHIM)
        shutil.copyfile(os.path.join(parent, PATCHED),
                        os.path.join(fresh, PATCHED))
        chosen = choose(patches, release_of(parent), fresh)
        error = _apply(chosen, fresh, dry_run=False)
        if error is not None:
            raise Unsuited(error)
        for base, dirs, files in os.walk(fresh):
            os.chmod(base, 0o755)
            for name in files:
                os.chmod(os.path.join(base, name), 0o644)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(fresh, out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return chosen


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog='python3 -m nova_safeconduct.overlay',
        description='Make an overlay of the installed Nova.')
    parser.add_argument('out', help='directory to make, or to make again')
    parser.add_argument('--nova', metavar='DIR',
                        help='directory that the package nova is in (default: '
                             'that of this Python)')
    parser.add_argument('--patches', metavar='DIR', default=shipped_patches(),
                        help='directory of the patches (default: %(default)s)')
    args = parser.parse_args(argv)
    try:
        parent = args.nova or installed_nova()
        chosen = make(args.out, parent, os.path.abspath(args.patches))
    except (Unsuited, OSError) as e:
        print('%s: %s' % (parser.prog, e), file=sys.stderr)
        return 1
    print('%s: of %s, with the patches for Nova %s. Put it first in '
          'PYTHONPATH of nova-api and nova-compute, and make it again when '
          'Nova is upgraded.' % (args.out, os.path.join(parent, 'nova'),
                                 os.path.basename(chosen)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
