"""Where the passphrase of a vTPM comes from, and who may delete its key."""

import unittest
from unittest import mock

from castellan.common import exception as castellan_exception
from nova.compute import task_states
from nova.compute import vm_states
from nova import exception
from nova import objects
from oslo_utils.fixture import uuidsentinel as uuids

from nova_safeconduct import driver
from nova_safeconduct.tests import base

before_33 = unittest.skipIf(driver._NOVA_33, 'Nova before 33')
since_33 = unittest.skipUnless(driver._NOVA_33, 'Nova 33 and later')


class Start(base.TestCase):
    """spawn, hard reboot and the start of the host come to _create_guest."""

    def setUp(self):
        super().setUp()
        self.seen = []
        self.key_manager = self.patch('nova.crypto.ensure_vtpm_secret')
        self.key_manager.return_value = (uuids.secret, base.PASSPHRASE)
        self.create = self.patch('nova.virt.libvirt.guest.Guest.create')
        self.create.side_effect = lambda *a: self.seen.append(
            dict(self.secrets_of(self.src))) or mock.Mock()
        self.src.cpu_api = mock.Mock()
        self.src._host.find_secret.side_effect = (
            lambda kind, usage: self.secrets_of(self.src).get(usage))

    def patch(self, name):
        patch = mock.patch(name)
        self.addCleanup(patch.stop)
        return patch.start()

    def start(self, token='token'):
        self.context.auth_token = token
        self.on(self.src)._create_guest(self.context, '<xml/>', self.server)

    def started_with(self, passphrase):
        """The secret was in libvirt while the domain was made, no longer."""
        secret = self.seen[0][uuids.server]
        self.assertEqual(passphrase, secret.value())
        self.assertEqual(uuids.secret, secret.uuid)
        self.assertTrue(secret.ephemeral and secret.private)
        self.assertEqual({}, self.secrets_of(self.src))

    def test_the_passphrase_is_escrowed(self):
        self.world.node('src').escrows.clear()
        self.start()
        self.started_with(base.PASSPHRASE)
        self.assertEqual({uuids.secret: base.PASSPHRASE},
                         self.world.node('src').escrows[uuids.server])

    def test_a_key_manager_that_gives_text_is_understood(self):
        self.world.node('src').escrows.clear()
        self.key_manager.return_value = (uuids.secret,
                                         base.PASSPHRASE.decode())
        self.start()
        self.assertEqual({uuids.secret: base.PASSPHRASE},
                         self.world.node('src').escrows[uuids.server])

    def test_when_the_host_has_booted_the_enclave_releases(self):
        self.key_manager.side_effect = exception.Unauthorized()
        self.start(token=None)
        self.started_with(base.PASSPHRASE)
        self.key_manager.assert_not_called()

    def test_an_administrator_restarts_a_server_that_is_not_his(self):
        self.key_manager.side_effect = exception.Forbidden()
        self.start()
        self.started_with(base.PASSPHRASE)

    def test_a_secret_that_its_owner_deleted_stays_deleted(self):
        self.key_manager.side_effect = (
            castellan_exception.ManagedObjectNotFoundError(uuid='x'))
        self.assertRaises(castellan_exception.ManagedObjectNotFoundError,
                          self.start)

    def test_without_the_enclave_the_key_manager_has_the_last_word(self):
        self.world.node('src').down = True
        self.start(token=None)
        self.assertEqual(base.PASSPHRASE,
                         self.seen[0][uuids.server].value())
        self.key_manager.side_effect = exception.Unauthorized()
        self.assertRaises(exception.Unauthorized, self.start)

    def test_an_escrow_that_fails_does_not_stop_the_server(self):
        self.world.node('src').down = True
        self.start()
        self.assertEqual(base.PASSPHRASE,
                         self.seen[0][uuids.server].value())

    def test_a_domain_that_does_not_start_leaves_no_secret(self):
        self.create.side_effect = ValueError
        self.assertRaises(ValueError, self.start)
        self.assertEqual({}, self.secrets_of(self.src))

    @since_33
    def test_host_security_needs_no_secret_on_disk(self):
        self.server.flavor.extra_specs['hw:tpm_secret_security'] = 'host'
        self.src._host.create_secret(
            'vtpm', uuids.server, password=base.PASSPHRASE,
            uuid=uuids.secret, ephemeral=False, private=False)
        self.world.node('src').escrows.clear()
        self.start()
        self.started_with(base.PASSPHRASE)
        self.key_manager.assert_not_called()
        self.seen.clear()
        self.start(token=None)
        self.started_with(base.PASSPHRASE)

    @since_33
    def test_host_security_is_novas_where_the_enclave_has_nothing(self):
        self.server.flavor.extra_specs['hw:tpm_secret_security'] = 'host'
        self.world.node('src').down = True
        self.start()
        self.assertFalse(self.seen[0][uuids.server].ephemeral)
        self.assertIn(uuids.server, self.secrets_of(self.src))

    @since_33
    def test_the_bus_carries_no_secret(self):
        for security in ('user', 'host', 'deployment'):
            self.server.flavor.extra_specs['hw:tpm_secret_security'] = (
                security)
            data = objects.LibvirtLiveMigrateData()
            self.src._add_vtpm_secret_to_live_migrate_data(self.server, data)
            self.assertTrue(data.has_vtpm)
            self.assertFalse(data.has_vtpm_secret_data)
            self.assertIsNone(data.vtpm_secret_value)
            self.assertIsNone(data.vtpm_secret_uuid)


class CleanUp(base.TestCase):

    def clean_up(self, which, **fields):
        for name, value in fields.items():
            setattr(self.server, name, value)
        self.on(which)._cleanup(self.context, self.server, [],
                                cleanup_instance_dir=True,
                                cleanup_instance_disks=True)
        return self.stock._cleanup.call_args.kwargs['cleanup_instance_disks']

    @before_33
    def test_a_server_that_lives_keeps_its_key(self):
        self.assertFalse(self.clean_up(self.src))
        self.assertFalse(self.clean_up(self.dst))
        self.assertFalse(self.clean_up(
            self.src, task_state=task_states.RESIZE_REVERTING))
        self.assertFalse(self.clean_up(self.src, task_state=None,
                                       host='dst'))
        self.assertIn(uuids.server, self.world.node('src').escrows)

    @before_33
    def test_its_volumes_are_cleaned_up_all_the_same(self):
        self.flags(images_type='lvm', group='libvirt')
        self.clean_up(self.src)
        self.stock._cleanup_lvm.assert_called_once()

    def test_a_server_that_is_deleted_loses_key_and_escrow(self):
        self.assertTrue(self.clean_up(self.src,
                                      task_state=task_states.DELETING))
        self.assertEqual({}, self.world.node('src').escrows)

    def test_a_server_that_was_never_built_does_too(self):
        self.assertTrue(self.clean_up(
            self.src, task_state=task_states.SPAWNING,
            vm_state=vm_states.BUILDING))
        self.assertEqual({}, self.world.node('src').escrows)

    def test_a_server_without_vtpm_is_novas_alone(self):
        self.server = self.make_server(vtpm=False)
        self.assertTrue(self.clean_up(self.src))
        self.assertEqual([], self.world.calls)

    def test_deletion_does_not_wait_for_the_enclave(self):
        self.world.node('src').down = True
        self.assertTrue(self.clean_up(self.src,
                                      task_state=task_states.DELETING))

    def test_a_server_that_was_resized_away_is_forgotten(self):
        self.server.host = 'dst'
        self.on(self.src)._cleanup_resize(self.context, self.server, [])
        self.assertEqual({}, self.world.node('src').escrows)

    def test_a_server_that_was_resized_here_is_not(self):
        self.on(self.src)._cleanup_resize(self.context, self.server, [])
        self.assertIn(uuids.server, self.world.node('src').escrows)

    @before_33
    def test_a_reboot_keeps_the_tpm(self):
        libvirt = 'nova.tests.fixtures.libvirt.'
        for name, value in (('MANAGED_SAVE', 1), ('NVRAM', 4),
                            ('KEEP_TPM', 64)):
            patch = mock.patch(libvirt + 'VIR_DOMAIN_UNDEFINE_' + name,
                               value, create=True)
            patch.start()
            self.addCleanup(patch.stop)
        self.src._host.has_min_version.return_value = True
        domain = self.src._host.get_guest.return_value._domain
        with mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                        '_undefine_domain') as stock:
            self.on(self.src)._undefine_domain(self.server)
            domain.undefineFlags.assert_called_once_with(1 | 4 | 64)
            stock.assert_not_called()
            for fields in ({'host': 'dst'},
                           {'task_state': task_states.DELETING}):
                self.on(self.src)._undefine_domain(
                    self.make_server(**fields))
            self.src._host.has_min_version.return_value = False
            self.on(self.src)._undefine_domain(self.server)
            self.assertEqual(3, stock.call_count)
        domain.undefineFlags.assert_called_once()
