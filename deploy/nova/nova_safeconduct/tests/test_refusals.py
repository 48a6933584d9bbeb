"""Who is refused, where, and with which words."""

import logging
from unittest import mock

import fixtures
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids

from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct.rpc import common_pb2
from nova_safeconduct.tests import base


class Destination(base.TestCase):

    def refused(self, reason):
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_destination)
        self.assertIn(reason, str(e))
        self.stock.cleanup_live_migration_destination_check \
            .assert_called_once()
        return str(e)

    def test_a_refusal_says_what_was_found_and_what_to_do(self):
        self.world.node('dst').refuse['establish'] = refusal.Refusal(
            'INTEGRITY_MISMATCH', 'the peer runs another swtpm',
            item='vmm/swtpm', found='sha256:aa', expected='sha256:bb',
            remedy='find out why it differs')
        said = self.refused('INTEGRITY_MISMATCH')
        for words in ('vmm/swtpm', 'found sha256:aa', 'expected sha256:bb',
                      'Find out why it differs', 'dst refuses src'):
            self.assertIn(words, said)

    def test_a_node_service_that_is_down_refuses(self):
        self.world.node('dst').down = True
        self.refused('NODE_UNAVAILABLE')

    def test_a_source_without_node_service_refuses(self):
        self.world.node('src').down = True
        self.refused('PEER_UNAVAILABLE')

    def test_a_node_service_in_another_mode_than_novas_refuses(self):
        for each in ('src', 'dst'):
            self.world.node(each).mode = common_pb2.MODE_SIMULATED
        self.refused('MODE_MISMATCH')
        self.assertEqual([], self.world.node('src').sessions(uuids.server))

    def test_nodes_of_two_modes_refuse(self):
        self.world.node('src').mode = common_pb2.MODE_SIMULATED
        self.refused('MODE_MISMATCH')

    def test_preferred_does_not_help_a_vtpm(self):
        self.flags(policy='preferred', group='safeconduct')
        self.world.node('src').down = True
        self.refused('PEER_UNAVAILABLE')


class Brief(base.TestCase):

    def test_what_novas_events_cut_off_is_not_what_matters(self):
        found, expected = '12' * 32, 'ab' * 32
        said = refusal.Refusal(
            'INTEGRITY_MISMATCH', 'the integrity log of host dst is not '
            'accepted: ' + found + ' is not ' + expected,
            item='vmm/swtpm', found=found, expected=expected,
            remedy='find out why it differs').brief()
        for words in ('INTEGRITY_MISMATCH', 'vmm/swtpm',
                      'found 1212121212121212...',
                      'expected abababababababab...'):
            self.assertIn(words, said[:120])
        self.assertIn('Find out why', said)

    def test_a_refusal_without_findings_is_its_message(self):
        self.assertEqual(
            'NO_SESSION: there is none.',
            refusal.Refusal('NO_SESSION', 'there is none.').brief())


class DestinationThatTheSourceRefuses(base.TestCase):

    def setUp(self):
        super().setUp()
        self.world.node('src').refuses_peer = common_pb2.Refusal(
            reason=common_pb2.REASON_INTEGRITY_MISMATCH,
            message='an entry differs', item='vmm/swtpm', found='aa',
            expected='bb', remedy='find out why')

    def test_the_sources_reason_reaches_nova(self):
        self.check_destination()
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_source)
        for words in ('INTEGRITY_MISMATCH', 'vmm/swtpm', 'dst is refused',
                      'found aa', 'Find out why'):
            self.assertIn(words, str(e))

    def test_a_source_that_does_not_ask_gets_no_further(self):
        self.check_destination()
        self.assertRaises(exception.MigrationPreCheckError, self.pre)

    def test_a_reason_is_reported_once(self):
        """The conductor's next host has no Safeconduct."""
        self.check_destination()
        self.assertRaises(exception.MigrationPreCheckError,
                          self.check_source)
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_source)
        self.assertIn('DESTINATION_WITHOUT_SAFECONDUCT', str(e))

    def test_an_old_reason_is_not_reported(self):
        self.check_destination()
        with mock.patch('nova_safeconduct.driver.time.time',
                        return_value=4e9):
            e = self.assertRaises(exception.MigrationPreCheckError,
                                  self.check_source)
        self.assertIn('DESTINATION_WITHOUT_SAFECONDUCT', str(e))


class Source(base.TestCase):

    def refused(self, reason):
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_source)
        self.assertIn(reason, str(e))
        self.stock.check_can_live_migrate_source.assert_not_called()
        self.assertEqual([], self.world.node('src').sessions(uuids.server))

    def test_libvirts_own_tunnel_is_refused(self):
        self.check_destination()
        self.src._live_migration_flags |= fakelibvirt.VIR_MIGRATE_TUNNELLED
        self.refused('live_migration_tunnelled')

    def test_a_vtpm_without_helper_is_refused(self):
        self.check_destination()
        self.world.node('src').attached = []
        self.refused('HELPER_NOT_ATTACHED')

    def test_a_check_of_novas_that_fails_ends_the_session(self):
        self.check_destination()
        self.stock.check_can_live_migrate_source.side_effect = (
            exception.InvalidSharedStorage(reason='no', path='src'))
        self.assertRaises(exception.InvalidSharedStorage, self.check_source)
        self.assertEqual([], self.world.node('src').sessions(uuids.server))

    def test_each_check_needs_a_session_of_its_own(self):
        """The conductor tries a host without Safeconduct after one that has
        attested itself and was given up for another reason.
        """
        self.check_destination()
        self.check_source()
        e = self.assertRaises(exception.MigrationPreCheckError,
                              self.check_source)
        self.assertIn('DESTINATION_WITHOUT_SAFECONDUCT', str(e))

    def test_the_conductors_next_host_gets_a_session_of_its_own(self):
        third = self.driver('third')
        self.check_destination()
        first = self.world.session(uuids.server)
        self.check_source()
        self.check_destination(third)
        self.check_source()
        self.assertIn(first.state, node.ENDED)
        self.pre(third)
        self.stock.live_migration.side_effect = (
            lambda c, i, d, post, recover, b, data: post(c, i, d, b, data))
        self.migrate(dest='third')
        self.stock.post.assert_called_once()
        self.assertEqual(node.COMMITTED,
                         self.world.session(uuids.server).state)

    def test_a_destination_that_was_not_attested_is_refused_at_arm(self):
        self.check_destination()
        self.check_source()
        with self.recorded() as refusals:
            self.migrate(dest='elsewhere')
        self.assertIn('NO_SESSION', refusals[0])
        self.stock.recover.assert_called_once()
        self.stock.live_migration.assert_not_called()

    def test_the_secret_of_an_owners_old_server_is_escrowed_late(self):
        self.world.node('src').escrows.clear()
        self.check_destination()
        with mock.patch.object(
                self.src, '_ask_key_manager', autospec=True,
                return_value=(uuids.secret, base.PASSPHRASE)):
            self.check_source()
        self.pre()
        self.assertIn(uuids.server, self.secrets_of(self.dst))

    def test_an_administrator_is_told_who_can_help(self):
        self.world.node('src').escrows.clear()
        self.check_destination()
        with mock.patch.object(
                self.src, '_ask_key_manager', autospec=True,
                side_effect=exception.Forbidden()):
            self.refused('NO_SECRET')


class WithoutVTPM(base.TestCase):
    """[safeconduct] instances = all."""

    def setUp(self):
        super().setUp()
        self.flags(instances='all', group='safeconduct')
        self.server = self.make_server(vtpm=False)

    def migrates(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.migrate()
        self.stock.live_migration.assert_called_once()
        self.stock.recover.assert_not_called()

    def test_it_is_armed_as_one_without_vtpm(self):
        self.world.node('src').attached = []
        self.migrates()
        self.assertIn(('src', 'arm', uuids.server, 'dst', uuids.migration,
                       True, True), self.world.calls)
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_required_refuses_a_host_without_safeconduct(self):
        self.world.node('src').down = True
        self.assertRaises(exception.MigrationPreCheckError,
                          self.check_destination)

    def test_preferred_goes_on_and_says_so(self):
        self.flags(policy='preferred', group='safeconduct')
        log = self.useFixture(fixtures.FakeLogger(level=logging.WARNING))
        for each in ('src', 'dst'):
            self.world.node(each).down = True
        self.migrates()
        self.assertIn('without protection', log.output)
        self.assertNotIn(
            'arm', [c[1] for c in self.world.calls if c[0] == 'dst'])
