"""The driver through a live migration, step by step."""

from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids

from nova_safeconduct import driver
from nova_safeconduct import node
from nova_safeconduct.tests import base

COMPLETED = fakelibvirt.VIR_DOMAIN_JOB_COMPLETED
FAILED = fakelibvirt.VIR_DOMAIN_JOB_FAILED


class Migration(base.TestCase):

    def libvirt(self, outcome):
        """libvirt's part, at the end of Nova's live_migration."""
        def run(context, instance, dest, post, recover, block, data):
            self.armed = self.world.session(instance.uuid).state
            if outcome == COMPLETED:
                self.world.cross(instance.uuid)
                post(context, instance, dest, block, data)
            else:
                recover(context, instance, dest, data)
        self.stock.live_migration.side_effect = run

    def test_a_server_with_a_vtpm_migrates_under_one_session(self):
        self.check_destination()
        self.check_source()
        self.pre()
        secret = self.secrets_of(self.dst)[uuids.server]
        self.assertEqual(base.PASSPHRASE, secret.value())
        self.assertEqual(uuids.secret, secret.uuid)
        self.assertTrue(secret.private and secret.ephemeral)
        self.libvirt(COMPLETED)
        self.migrate()
        self.assertEqual(node.LIVE[0], self.armed)
        self.stock.post.assert_called_once()
        self.stock.recover.assert_not_called()
        self.on(self.dst).post_live_migration_at_destination(
            self.context, self.server, [])
        self.assertEqual(node.COMMITTED,
                         self.world.session(uuids.server).state)
        self.assertEqual({}, self.secrets_of(self.dst))
        self.assertEqual({}, self.world.node('src').escrows)
        self.assertEqual(
            {uuids.secret: base.PASSPHRASE},
            self.world.node('dst').escrows[uuids.server])

    def test_the_session_is_armed_with_novas_migration(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.libvirt(COMPLETED)
        self.migrate()
        self.assertIn(('src', 'arm', uuids.server, 'dst', uuids.migration,
                       True, False), self.world.calls)

    def test_a_failed_migration_aborts_before_nova_recovers(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.libvirt(FAILED)

        def recover(*args):
            self.assertNotIn(self.world.session(uuids.server).state,
                             node.LIVE)
        self.migrate(recover=recover)
        self.assertIn(uuids.server, self.world.node('src').escrows)
        self.assertEqual({}, self.world.node('dst').escrows)

    def test_a_refusal_at_arm_leaves_the_server_to_recover_method(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.world.node('src').attached = []
        with self.recorded() as refusals:
            self.migrate()
        self.stock.live_migration.assert_not_called()
        self.stock.recover.assert_called_once()
        self.assertIn('HELPER_NOT_ATTACHED', refusals[0])
        self.assertEqual([], self.world.node('src').sessions(uuids.server))

    def test_another_compute_driver_at_the_source_is_refused(self):
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_destination, src_info={'stats': {}})
        self.assertIn('SOURCE_WITHOUT_SAFECONDUCT', str(e))
        self.stock.cleanup_live_migration_destination_check \
            .assert_called_once()
        self.assertEqual({}, self.world.sessions)

    def test_another_compute_driver_at_the_destination_is_refused(self):
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_source)
        self.assertIn('DESTINATION_WITHOUT_SAFECONDUCT', str(e))
        self.stock.check_can_live_migrate_source.assert_not_called()

    def test_a_server_without_vtpm_is_novas_alone(self):
        self.server = self.make_server(vtpm=False)
        self.check_destination(src_info={'stats': {}})
        self.check_source()
        self.pre()
        self.migrate()
        self.on(self.dst).post_live_migration_at_destination(
            self.context, self.server, [])
        self.assertEqual([], self.world.calls)
        self.stock.live_migration.assert_called_once()

    def test_hosts_report_the_driver(self):
        stats = self.src.get_available_resource('src')['stats']
        self.assertEqual(driver.CAPABILITY, stats)
