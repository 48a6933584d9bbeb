"""Nova's own tests of the libvirt driver, with ours in its place.

    python3 -m nova_safeconduct.tests.substitute MODULE PATTERN [MODULE ...]

MODULE is one of Nova's test modules, PATTERN a regular expression that the
names of the tests match which are run. There is no node service, as on a host
before safeconductd is installed: what Nova does for servers without a vTPM is
to stay the same.

A test that is about what ours does differently is named in DIFFERENT, with
the reason; it must then fail, or this run does.
"""

import importlib
import re
import sys
import types
import unittest

# nova.tests.unit or nova.tests.functional first: it patches the process for
# eventlet, if Nova does.
importlib.import_module('.'.join(sys.argv[1].split('.')[:3]))

import nova.virt.libvirt
import nova.virt.libvirt.driver as stock

from nova_safeconduct import driver

_TESTS = 'nova.tests.unit.virt.libvirt.test_driver.'
_NO_SERVER = 'its instance is not one: ours looks at the flavor'
_NO_BYTES = 'its passphrase is not bytes: ours gives it to the enclave'
_NO_NODE = 'without a node service a server with a vTPM is not migrated'
DIFFERENT = {_TESTS + name: why for names, why in (
    (('LibvirtConnTestCase.test_live_migration_hostname_invalid',
      'LibvirtConnTestCase.test_live_migration_hostname_valid',
      'LibvirtConnTestCase.test_post_live_migration_at_destination',
      'LibvirtConnTestCase.test_rollback_live_migration_at_dest_not_shared',
      'LibvirtConnTestCase.test_rollback_live_migration_at_dest_shared',
      'LibvirtDriverTestCase.test_cleanup_lvm_encrypted'), _NO_SERVER),
    # From Nova 33 on.
    (('LibvirtConnTestCase.test_get_or_create_secret_for_vtpm_'
      'host_security_found',
      'LibvirtConnTestCase.test_get_or_create_secret_for_vtpm_'
      'host_security_not_found',
      'LibvirtConnTestCase.test_get_or_create_secret_for_vtpm_'
      'security_deployment'), _NO_BYTES),
    (('LibvirtConnTestCase.test_check_can_live_migrate_source_vtpm_1_user',
      'LibvirtConnTestCase.test_check_can_live_migrate_source_vtpm_2_host',
      'LibvirtConnTestCase.test_check_can_live_migrate_source_vtpm_'
      '3_deployment',
      'LibvirtConnTestCase.test_check_can_live_migrate_source_vtpm_legacy'),
     _NO_NODE),
) for name in names}
if driver._NOVA_33:
    DIFFERENT[_TESTS + 'LibvirtConnTestCase.test_spawn_with_vtpm'] = _NO_BYTES


class _Module(types.ModuleType):
    """nova.virt.libvirt.driver, as others see it: LibvirtDriver is ours."""

    LibvirtDriver = driver.SafeconductDriver

    def __getattr__(self, name):
        return getattr(stock, name)

    def __setattr__(self, name, value):
        setattr(stock, name, value)

    def __delattr__(self, name):
        delattr(stock, name)


def substitute():
    ours = driver.SafeconductDriver
    for name, value in vars(stock.LibvirtDriver).items():
        # A fixture that patches one that is inherited makes a method of it.
        if isinstance(value, staticmethod) and name not in vars(ours):
            setattr(ours, name, value)
    module = _Module(stock.__name__)
    sys.modules[stock.__name__] = module
    nova.virt.libvirt.driver = module
    nova.virt.libvirt.LibvirtDriver = driver.SafeconductDriver


def flatten(suite):
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from flatten(each)
        else:
            yield each


def load(args):
    suite = unittest.TestSuite()
    for name, pattern in zip(args[::2], args[1::2]):
        module = importlib.import_module(name)
        wanted = re.compile(pattern)
        suite.addTests(
            t for t in flatten(unittest.defaultTestLoader
                               .loadTestsFromModule(module))
            if wanted.search(t.id()))
    return suite


class Result(unittest.TextTestResult):
    """Counts what must fail as good, and the reverse."""

    def _expected(self, test):
        return test.id() in DIFFERENT

    def addSuccess(self, test):
        if self._expected(test):
            self.addUnexpectedSuccess(test)
        else:
            super().addSuccess(test)

    def addFailure(self, test, err=None, details=None):
        self._failed(super().addFailure, test, err, details)

    def addError(self, test, err=None, details=None):
        self._failed(super().addError, test, err, details)

    def _failed(self, add, test, err, details):
        if self._expected(test):
            self.expectedFailures.append((test, DIFFERENT[test.id()]))
        elif err is not None:
            add(test, err)
        else:
            text = ''.join(c.as_text() for c in details.values())
            self.failures.append((test, text))
            self.stream.write('F')

    def addUnexpectedSuccess(self, test, details=None):
        super().addUnexpectedSuccess(test)

    def addSkip(self, test, reason=None, details=None):
        super().addSkip(test, reason or 'skipped')


def main():
    substitute()
    suite = load(sys.argv[1:])
    if not suite.countTestCases():
        sys.exit('no test matches')
    result = unittest.TextTestRunner(resultclass=Result,
                                     stream=sys.stdout).run(suite)
    sys.exit(not result.wasSuccessful())


if __name__ == '__main__':
    main()
