"""A server with a vTPM, and the drivers of two hosts."""

import contextlib
from unittest import mock

from nova.compute import power_state
from nova.compute import task_states
from nova.compute import vm_states
from nova import context
from nova import objects
from nova import test
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import fake
import os_vif
from oslo_utils.fixture import uuidsentinel as uuids

import nova.conf
from nova_safeconduct import driver
from nova_safeconduct import secrets
from nova_safeconduct.tests import world

CONF = nova.conf.CONF

STATS = {'stats': dict(driver.CAPABILITY)}
PASSPHRASE = b'correct horse battery staple'


class TestCase(test.NoDBTestCase):

    REQUIRES_LOCKING = True

    def setUp(self):
        super().setUp()
        os_vif.initialize()
        self.context = context.RequestContext('user', 'project',
                                              auth_token='token')
        self.useFixture(nova_fixtures.LibvirtFixture())
        vtpm_usage = mock.patch.object(
            fakelibvirt, 'VIR_SECRET_USAGE_TYPE_VTPM', 5, create=True)
        vtpm_usage.start()
        self.addCleanup(vtpm_usage.stop)
        self.flags(swtpm_enabled=True, group='libvirt')
        self.world = world.World()
        self.src = self.driver('src')
        self.dst = self.driver('dst')
        for each in (self.src, self.dst):
            self.world.node(each.name).attached = [uuids.server]
        self.world.node('src').escrows[uuids.server] = {
            uuids.secret: PASSPHRASE}
        self.stock = _Stock(self)
        self.server = self.make_server()
        # Watchers wait on their event; nothing here waits for their clock.
        self.stub_out('nova_safeconduct.secrets.POLL', 3600)
        # What threads are started runs, or not, as each test says.
        self.started = []
        self.stub_out(
            'nova_safeconduct.threads.start',
            lambda name, function, *args: self.started.append(
                (function, args)))

    def driver(self, name):
        made = driver.SafeconductDriver(fake.FakeVirtAPI(), False)
        made.name = name
        made._node = self.world.node(name)
        made._host = mock.Mock(spec=made._host)
        made._host.get_connection.return_value = FakeLibvirt()
        made._host.create_secret.side_effect = (
            made._host.get_connection().define)
        made._incoming = secrets.IncomingSecrets(made._host, made._node)
        made._live_migration_flags = fakelibvirt.VIR_MIGRATE_LIVE
        made._block_migration_flags = (
            fakelibvirt.VIR_MIGRATE_LIVE |
            fakelibvirt.VIR_MIGRATE_NON_SHARED_INC)
        return made

    @contextlib.contextmanager
    def recorded(self):
        """The errors of instance action events."""
        said = []

        class Reporter:
            def __init__(self, *args):
                pass

            def __enter__(self):
                return self

            def __exit__(self, kind, value, trace):
                said.append(str(value))
                return False
        with mock.patch('nova.compute.utils.EventReporter', Reporter):
            yield said

    def on(self, which):
        """Nova's name of the host that the next call runs on."""
        self.flags(host=which.name)
        return which

    def secrets_of(self, which):
        return which._host.get_connection().secrets

    def make_server(self, vtpm=True, **fields):
        specs = {'hw:tpm_version': '2.0'} if vtpm else {}
        values = dict(
            id=1, uuid=uuids.server, host='src', node='src',
            vm_state=vm_states.ACTIVE, task_state=task_states.MIGRATING,
            power_state=power_state.RUNNING, deleted=False,
            project_id='project', user_id='user',
            system_metadata={'vtpm_secret_uuid': uuids.secret}
            if vtpm else {},
            flavor=objects.Flavor(extra_specs=specs, memory_mb=1, vcpus=1,
                                  root_gb=0, ephemeral_gb=0, swap=0,
                                  name='f'),
            image_ref=uuids.image)
        values.update(fields)
        server = objects.Instance(self.context, **values)
        server.obj_reset_changes()
        self.stub_out('nova.objects.Instance.image_meta',
                      objects.ImageMeta.from_dict({}))
        return server

    def migrate_data(self, **fields):
        values = dict(migration=objects.Migration(uuid=uuids.migration),
                      block_migration=False, is_shared_instance_path=True,
                      is_shared_block_storage=True)
        values.update(fields)
        return objects.LibvirtLiveMigrateData(**values)

    # The steps of a migration, in the order in which Nova takes them.

    def check_destination(self, which=None, src_info=STATS):
        which = self.on(which or self.dst)
        return which.check_can_live_migrate_destination(
            self.context, self.server, src_info, {}, False, False)

    def check_source(self):
        return self.on(self.src).check_can_live_migrate_source(
            self.context, self.server, self.migrate_data(), None)

    def pre(self, which=None):
        return self.on(which or self.dst).pre_live_migration(
            self.context, self.server, {}, [], None, self.migrate_data())

    def migrate(self, post=None, recover=None, data=None, dest='dst'):
        return self.on(self.src).live_migration(
            self.context, self.server, dest, post or self.stock.post,
            recover or self.stock.recover, False,
            data or self.migrate_data())


class FakeSecret:

    def __init__(self, connection, usage, value, ephemeral=True):
        self.connection = connection
        self.usage = usage
        self._value = value
        self.ephemeral = ephemeral

    def undefine(self):
        del self.connection.secrets[self.usage]

    def usageType(self):
        return fakelibvirt.VIR_SECRET_USAGE_TYPE_VTPM

    def usageID(self):
        return self.usage

    def value(self):
        return self._value

    def UUIDString(self):
        return uuids.secret

    def XMLDesc(self, flags=0):
        return "<secret ephemeral='%s'/>" % (
            'yes' if self.ephemeral else 'no')


class FakeLibvirt:
    """A connection: secrets and domains."""

    def __init__(self):
        self.secrets = {}
        # Domains that are here, with the type of their job.
        self.domains = {}

    def define(self, usage_type, usage_id, password=None, uuid=None,
               ephemeral=True, private=True):
        assert usage_type == 'vtpm'
        made = FakeSecret(self, usage_id, password, ephemeral)
        made.uuid, made.private = uuid, private
        self.secrets[usage_id] = made
        return made

    def secretLookupByUsage(self, usage_type, usage):
        if usage not in self.secrets:
            raise fakelibvirt.make_libvirtError(
                fakelibvirt.libvirtError, 'no secret',
                error_code=fakelibvirt.VIR_ERR_NO_SECRET)
        return self.secrets[usage]

    def listAllSecrets(self):
        return list(self.secrets.values())

    def lookupByUUIDString(self, uuid):
        if uuid not in self.domains:
            raise fakelibvirt.make_libvirtError(
                fakelibvirt.libvirtError, 'no domain',
                error_code=fakelibvirt.VIR_ERR_NO_DOMAIN)
        domain = mock.Mock()
        domain.jobInfo.return_value = [self.domains[uuid]] + [0] * 11
        return domain


class _Stock:
    """Nova's own methods, which each have tests of their own, replaced by
    what a test says: a result, an exception or a function.
    """

    METHODS = (
        'check_can_live_migrate_destination', 'check_can_live_migrate_source',
        'cleanup_live_migration_destination_check', 'pre_live_migration',
        'live_migration', 'post_live_migration_at_source',
        'post_live_migration_at_destination',
        'rollback_live_migration_at_source',
        'rollback_live_migration_at_destination', 'init_host', '_cleanup',
        '_cleanup_resize', '_cleanup_lvm', '_cleanup_rbd',
        'get_available_resource',
    )

    def __init__(self, case):
        self.post = mock.Mock()
        self.recover = mock.Mock()
        for name in self.METHODS:
            patch = mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                               + name)
            setattr(self, name, patch.start())
            case.addCleanup(patch.stop)
        self.get_available_resource.return_value = {}
