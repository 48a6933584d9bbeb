"""nova-compute starts again, with whatever was going on before."""

import logging

import fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids

from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct.rpc import common_pb2
from nova_safeconduct.tests import base

RUNNING = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
NO_JOB = fakelibvirt.VIR_DOMAIN_JOB_NONE


class Restart(base.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger(level=logging.INFO))

    def armed(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.world.node('src').arm(uuids.server, 'dst', uuids.migration,
                                   True, False)
        self.session = self.world.session(uuids.server)

    def restart(self, name):
        """A new driver, on what the old one has left in libvirt."""
        old = {'src': self.src, 'dst': self.dst}[name]
        fresh = self.driver(name)
        fresh._host.get_connection.return_value = (
            old._host.get_connection())
        self.started = []
        self.on(fresh).init_host(name)
        return fresh

    def domains(self, which):
        return which._host.get_connection().domains

    def follow(self):
        self.stub_out('nova_safeconduct.startup.time.sleep', lambda _: None)
        for function, args in self.started:
            function(*args)

    def test_a_source_before_arm_aborts(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.domains(self.src)[uuids.server] = NO_JOB
        self.restart('src')
        self.assertIn(self.world.session(uuids.server).state, node.ENDED)

    def test_a_source_whose_job_runs_on_follows_it_to_its_commit(self):
        self.armed()
        self.domains(self.src)[uuids.server] = RUNNING
        self.restart('src')
        self.assertIn(self.session.state, node.LIVE)
        self.world.cross(uuids.server)
        del self.domains(self.src)[uuids.server]
        self.follow()
        self.assertEqual(node.COMMITTED, self.session.state)

    def test_a_source_whose_job_fails_follows_it_to_its_abort(self):
        self.armed()
        self.domains(self.src)[uuids.server] = RUNNING
        self.restart('src')
        self.domains(self.src)[uuids.server] = NO_JOB
        self.follow()
        self.assertEqual(node.ENDED[1], self.session.state)
        self.assertIn(uuids.server, self.world.node('src').escrows)

    def test_a_source_that_is_left_meanwhile_commits(self):
        self.armed()
        self.world.cross(uuids.server)
        self.restart('src')
        self.assertEqual(node.COMMITTED, self.session.state)

    def test_a_source_that_still_has_the_server_aborts(self):
        self.armed()
        self.world.cross(uuids.server)
        self.domains(self.src)[uuids.server] = NO_JOB
        self.restart('src')
        self.assertEqual(node.ENDED[1], self.session.state)

    def test_a_destination_before_arm_aborts_and_has_no_secret(self):
        self.check_destination()
        self.check_source()
        self.pre()
        self.restart('dst')
        self.assertIn(self.world.session(uuids.server).state, node.ENDED)
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_a_destination_that_is_armed_keeps_the_secret_and_watches(self):
        self.armed()
        self.restart('dst')
        self.assertIn(self.session.state, node.LIVE)
        self.assertIn(uuids.server, self.secrets_of(self.dst))
        self.world.node('src').abort(self.session.session_id, 'failed')
        self.stub_out('nova_safeconduct.secrets.POLL', 0.001)
        function, args = self.started[0]
        function(*args)
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_a_secret_of_novas_host_security_is_left_alone(self):
        self.dst._host.create_secret('vtpm', uuids.other, ephemeral=False)
        self.restart('dst')
        self.assertIn(uuids.other, self.secrets_of(self.dst))

    def test_without_a_node_service_it_starts_and_drops_secrets(self):
        self.armed()
        self.world.node('dst').down = True
        self.restart('dst')
        self.assertEqual({}, self.secrets_of(self.dst))
        self.assertIn('Safeconduct is not available', self.log.output)

    def test_a_commit_that_is_refused_does_not_stop_the_start(self):
        self.armed()
        self.world.cross(uuids.server)
        self.world.node('src').refuse['commit'] = refusal.Refusal(
            'PEER_UNAVAILABLE', 'the peer is not there')
        self.restart('src')
        self.assertIn('PEER_UNAVAILABLE', self.log.output)

    def test_a_libvirt_that_does_not_list_secrets_does_not_stop_it(self):
        self.dst._host.get_connection().listAllSecrets = None
        self.restart('dst')

    def test_what_is_wrong_is_said(self):
        self.world.node('dst').mode = common_pb2.MODE_SIMULATED
        self.world.node('dst').host = 'another'
        self.flags(live_migration_with_native_tls=True, group='libvirt')
        self.flags(live_migration_tunnelled=True, group='libvirt')
        self.restart('dst')
        for words in ('SIMULATED', 'node service is in mode simulated',
                      "'another'", 'live_migration_scheme',
                      'live_migration_tunnelled is on'):
            self.assertIn(words, self.log.output)
