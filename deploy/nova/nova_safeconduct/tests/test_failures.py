"""What fails after the checks, on either side, and what is left then."""

import logging
import os
import threading
from unittest import mock

import fixtures
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import event as virtevent
from oslo_utils.fixture import uuidsentinel as uuids

from nova_safeconduct import driver
from nova_safeconduct import guest as protected_guest
from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct.tests import base


class Prepared(base.TestCase):
    """Both checks and pre_live_migration have passed."""

    def setUp(self):
        super().setUp()
        self.check_destination()
        self.check_source()
        self.pre()
        self.assertIn(uuids.server, self.secrets_of(self.dst))

    def state(self):
        return self.world.session(uuids.server).state

    def run_watcher(self):
        """The destination's watcher, to its end."""
        self.stub_out('nova_safeconduct.secrets.POLL', 0.001)
        target, args = self.started[-1]
        target(*args)


class AtDestination(Prepared):

    def test_the_secret_goes_as_soon_as_qemu_is_there(self):
        self.dst.emit_event(virtevent.LifecycleEvent(
            uuids.server, virtevent.EVENT_LIFECYCLE_STARTED))
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_another_servers_start_does_not_touch_it(self):
        self.dst.emit_event(virtevent.LifecycleEvent(
            uuids.other, virtevent.EVENT_LIFECYCLE_STARTED))
        self.assertIn(uuids.server, self.secrets_of(self.dst))

    def test_the_secret_goes_with_the_session_though_nova_does_not_call(self):
        """Shared storage: Nova calls no rollback at the destination."""
        self.on(self.src).rollback_live_migration_at_source(
            self.context, self.server, self.migrate_data())
        self.run_watcher()
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_the_secret_goes_when_the_node_has_forgotten_the_session(self):
        self.world.sessions.clear()
        self.run_watcher()
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_a_restart_of_the_node_service_is_waited_for(self):
        asked = []

        def session(ident):
            asked.append(ident)
            if len(asked) < 3:
                raise refusal.Refusal(refusal.UNAVAILABLE, 'restarting')
            raise refusal.Refusal('NO_SESSION', 'restarted')
        self.dst._node.session = session
        self.run_watcher()
        self.assertEqual(3, len(asked))
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_rollback_leaves_nothing(self):
        self.on(self.dst).rollback_live_migration_at_destination(
            self.context, self.server, [], {})
        self.assertEqual({}, self.secrets_of(self.dst))
        self.assertIn(self.state(), node.ENDED)
        self.assertEqual({}, self.world.node('dst').incoming)

    def test_rollback_leaves_nothing_when_novas_own_fails(self):
        self.stock.rollback_live_migration_at_destination.side_effect = (
            ValueError)
        self.assertRaises(
            ValueError, self.on(self.dst)
            .rollback_live_migration_at_destination, self.context,
            self.server, [], {})
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_a_node_service_that_is_down_does_not_stop_novas_rollback(self):
        self.world.node('dst').down = True
        self.on(self.dst).rollback_live_migration_at_destination(
            self.context, self.server, [], {})
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_post_does_not_raise_what_libvirt_says_of_the_secret(self):
        connection = self.dst._host.get_connection()
        connection.secrets[uuids.server].undefine = mock.Mock(
            side_effect=fakelibvirt.libvirtError('broken'))
        self.on(self.dst).post_live_migration_at_destination(
            self.context, self.server, [])


class Preparing(base.TestCase):

    def setUp(self):
        super().setUp()
        self.check_destination()
        self.check_source()

    def test_novas_pre_live_migration_that_fails_leaves_nothing(self):
        self.stock.pre_live_migration.side_effect = (
            exception.DestinationDiskExists(path='/x'))
        self.assertRaises(exception.DestinationDiskExists, self.pre)
        self.assertEqual({}, self.secrets_of(self.dst))
        self.assertIn(self.world.session(uuids.server).state, node.ENDED)

    def test_a_secret_that_is_not_released_fails_it(self):
        self.world.node('dst').refuse['release'] = refusal.Refusal(
            'WRONG_STATE', 'the session is over')
        e = self.assertRaises(exception.MigrationPreCheckError, self.pre)
        self.assertIn('WRONG_STATE', str(e))
        self.assertEqual({}, self.secrets_of(self.dst))

    def test_without_a_session_nothing_is_prepared(self):
        self.world.sessions.clear()
        self.assertRaises(exception.MigrationPreCheckError, self.pre)
        self.stock.pre_live_migration.assert_not_called()


class AtSource(Prepared):

    def test_an_error_of_novas_aborts_if_the_server_is_here(self):
        self.src._host.get_connection().domains[uuids.server] = 0
        self.stock.live_migration.side_effect = ValueError
        self.assertRaises(ValueError, self.migrate)
        self.assertEqual(node.ENDED[1], self.state())
        self.assertIn(uuids.server, self.world.node('src').escrows)

    def test_an_error_of_novas_commits_if_the_server_has_left(self):
        def fail(*args):
            self.world.cross(uuids.server)
            raise ValueError
        self.stock.live_migration.side_effect = fail
        self.assertRaises(ValueError, self.migrate)
        self.assertEqual(node.COMMITTED, self.state())

    def test_novas_post_method_runs_though_commit_fails(self):
        def finish(c, i, d, post, recover, b, data):
            self.world.cross(uuids.server)
            self.world.node('src').refuse['commit'] = refusal.Refusal(
                'PEER_UNAVAILABLE', 'the peer is not there')
            post(c, i, d, b, data)
        self.stock.live_migration.side_effect = finish
        self.migrate()
        self.stock.post.assert_called_once()
        del self.world.node('src').refuse['commit']
        self.on(self.src).post_live_migration_at_source(
            self.context, self.server, [])
        self.assertEqual(node.COMMITTED, self.state())

    def test_novas_recovery_runs_though_the_node_service_is_down(self):
        def fail(c, i, d, post, recover, b, data):
            self.world.node('src').down = True
            recover(c, i, d, data, migration_status='cancelled')
        self.stock.live_migration.side_effect = fail
        self.migrate()
        self.stock.recover.assert_called_once_with(
            self.context, self.server, 'dst', mock.ANY,
            migration_status='cancelled')

    def test_a_state_that_crossed_outside_of_the_session_is_an_alarm(self):
        log = self.useFixture(fixtures.FakeLogger(level=logging.CRITICAL))
        self.stock.live_migration.side_effect = (
            lambda c, i, d, post, recover, b, data: post(c, i, d, b, data))
        self.migrate()
        self.assertIn('did not cross in the session', log.output)

    def test_the_same_migration_is_not_armed_twice(self):
        self.world.used.add(uuids.migration)
        with self.recorded() as refusals:
            self.migrate()
        self.assertIn('ALREADY_USED', refusals[0])
        self.stock.recover.assert_called_once()

    def test_a_refusal_that_cannot_be_recorded_is_still_recovered(self):
        self.world.node('src').attached = []
        with mock.patch('nova.compute.utils.EventReporter',
                        side_effect=ValueError):
            self.migrate()
        self.stock.recover.assert_called_once()

    def test_two_servers_migrate_at_once(self):
        first = self.server
        self.server = self.make_server(uuid=uuids.second, id=2)
        for each in ('src', 'dst'):
            self.world.node(each).attached = [uuids.server, uuids.second]
        self.world.node('src').escrows[uuids.second] = {
            uuids.secret: b'another'}
        self.check_destination()
        self.check_source()
        self.pre()
        self.assertEqual(
            [base.PASSPHRASE, b'another'],
            [self.secrets_of(self.dst)[u].value()
             for u in (uuids.server, uuids.second)])

        def cross(c, i, d, post, recover, b, data):
            self.world.cross(i.uuid)
            if i.uuid == uuids.second:
                recover(c, i, d, data)
            else:
                # The other runs from its start to its end meanwhile.
                self.server = self.make_server(uuid=uuids.second, id=2)
                self.migrate(data=self.migrate_data(
                    migration=objects.Migration(uuid=uuids.migration2)))
                post(c, i, d, b, data)
        self.stock.live_migration.side_effect = cross
        self.server = first
        self.migrate()
        self.assertEqual(node.COMMITTED, self.state())
        self.assertEqual(node.ENDED[1],
                         self.world.session(uuids.second).state)
        self.assertIn(uuids.second, self.world.node('src').escrows)


class HowLibvirtIsAsked(Prepared):

    def asked(self, flags, block=False):
        """(parameters, flags) of libvirt's migrateToURI3."""
        domain = mock.Mock()
        stock = mock.Mock(_domain=domain)

        def operation(context, instance, dest, block, data, guest, names):
            guest.migrate('qemu+tcp://dst/system', migrate_uri='tcp://dst',
                          migrate_disks=['vda'] if block else None,
                          flags=flags)

        def run(context, instance, dest, post, recover, block_, data):
            self.src._live_migration_operation(
                context, instance, dest, block, data, stock, [])
        self.stock.live_migration.side_effect = run
        with mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                        '_live_migration_operation', side_effect=operation):
            self.migrate(data=self.migrate_data(block_migration=block))
        call = domain.migrateToURI3.call_args
        return call.kwargs['params'], call.kwargs['flags']

    def tunnel(self, *names):
        made = self.useFixture(fixtures.TempDir()).path
        self.flags(tunnel=True, tunnel_directory=made, request_timeout=1,
                   group='safeconduct')
        for name in names:
            open(os.path.join(made, uuids.server + name), 'w').close()
        return 'unix://' + os.path.join(made, uuids.server)

    def test_post_copy_is_off(self):
        _, flags = self.asked(fakelibvirt.VIR_MIGRATE_LIVE |
                              fakelibvirt.VIR_MIGRATE_POSTCOPY)
        self.assertEqual(fakelibvirt.VIR_MIGRATE_LIVE, flags)

    def test_without_the_tunnel_the_address_is_novas(self):
        params, _ = self.asked(0)
        self.assertEqual('tcp://dst', params['migrate_uri'])

    def test_the_tunnel_takes_the_stream(self):
        sockets = self.tunnel('.sock')
        params, _ = self.asked(0)
        self.assertEqual(sockets + '.sock', params['migrate_uri'])
        self.assertNotIn('disks_uri', params)

    def test_the_tunnel_takes_the_disks(self):
        sockets = self.tunnel('.sock', '-disks.sock')
        params, _ = self.asked(fakelibvirt.VIR_MIGRATE_NON_SHARED_INC,
                               block=True)
        self.assertEqual(sockets + '.sock', params['migrate_uri'])
        self.assertEqual(sockets + '-disks.sock', params['disks_uri'])

    def test_tls_inside_the_tunnel_is_told_the_name(self):
        self.tunnel('.sock')
        params, _ = self.asked(fakelibvirt.VIR_MIGRATE_TLS)
        self.assertEqual('dst', params['tls.destination'])

    def test_a_tunnel_that_makes_no_socket_refuses(self):
        self.tunnel()
        with self.recorded() as refusals, mock.patch(
                'nova_safeconduct.driver.time.monotonic',
                side_effect=range(100)), mock.patch(
                'nova_safeconduct.driver.time.sleep'):
            self.migrate()
        self.assertIn('TUNNEL_UNAVAILABLE', refusals[0])
        self.stock.live_migration.assert_not_called()
        self.assertIn(self.state(), node.ENDED)

    def test_force_complete_pauses_a_protected_server(self):
        """Nova asks for post-copy or a pause by _is_post_copy_enabled."""
        flags = fakelibvirt.VIR_MIGRATE_POSTCOPY
        seen = []

        def monitor(*args):
            seen.append(self.src._is_post_copy_enabled(flags))
            # Another server's monitor, in a thread of its own.
            other = threading.Thread(target=lambda: seen.append(
                self.src._is_post_copy_enabled(flags)))
            other.start()
            other.join()

        def run(context, instance, *args):
            self.src._live_migration_monitor(context, instance, *[None] * 8)
        self.stock.live_migration.side_effect = run
        with mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                        '_live_migration_monitor', side_effect=monitor):
            self.migrate()
        self.assertEqual([False, True], seen)
        self.assertTrue(self.src._is_post_copy_enabled(flags))

    def test_what_is_raised_after_recovery_leaves_the_server_alone(self):
        """As Nova 33 and later do, which puts it into ERROR."""
        def run(context, instance, dest, post, recover, block, data):
            recover(context, instance, dest, data)
            raise ValueError('what libvirt said')
        self.stock.live_migration.side_effect = run
        self.migrate()
        self.stock.recover.assert_called_once()
        self.assertIn(self.state(), node.ENDED)

    def test_a_recovery_that_fails_is_novas_to_know(self):
        def run(context, instance, dest, post, recover, block, data):
            recover(context, instance, dest, data)
        self.stock.live_migration.side_effect = run
        self.assertRaises(ValueError, self.migrate,
                          recover=mock.Mock(side_effect=ValueError))

    def monitored(self, *outcomes):
        """What the monitor does with these outcomes of Nova's, one by one."""
        said = []

        def run(context, instance, *args):
            said.append(self.src._live_migration_monitor(
                context, instance, *[None] * 8))
        self.stock.live_migration.side_effect = run
        with mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                        '_live_migration_monitor', side_effect=outcomes):
            self.migrate()
        return said

    def libvirt_error(self, code):
        return fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'cannot acquire state change lock',
            error_code=code)

    def test_a_libvirt_that_is_busy_is_asked_again(self):
        busy = self.libvirt_error(fakelibvirt.VIR_ERR_OPERATION_TIMEOUT)
        self.assertEqual(['the end'], self.monitored(busy, busy, 'the end'))

    def test_a_libvirt_that_is_busy_for_ever_is_given_up(self):
        busy = self.libvirt_error(fakelibvirt.VIR_ERR_OPERATION_TIMEOUT)
        with mock.patch('nova_safeconduct.driver.time.monotonic',
                        side_effect=[0, driver.BUSY_LIBVIRT + 1]):
            self.assertRaises(fakelibvirt.libvirtError, self.monitored, busy)

    def test_another_error_of_libvirts_is_not_asked_about_again(self):
        gone = self.libvirt_error(fakelibvirt.VIR_ERR_SYSTEM_ERROR)
        self.assertRaises(fakelibvirt.libvirtError, self.monitored, gone,
                          'the end')

    def test_other_guests_are_novas_own(self):
        stock = mock.sentinel.guest
        with mock.patch('nova.virt.libvirt.driver.LibvirtDriver.'
                        '_live_migration_operation') as operation:
            self.src._live_migration_operation(
                self.context, self.make_server(uuid=uuids.other), 'dst',
                False, None, stock, [])
        self.assertIs(stock, operation.call_args.args[5])

    def test_the_domain_is_otherwise_the_same(self):
        domain = mock.Mock()
        guest = protected_guest.protected(mock.Mock(_domain=domain))
        guest.abort_job()
        domain.abortJob.assert_called_once_with()


class Secrecy(base.TestCase):

    def test_no_log_line_has_the_passphrase(self):
        log = self.useFixture(fixtures.FakeLogger(level=logging.DEBUG))
        self.check_destination()
        self.check_source()
        self.pre()
        self.stock.live_migration.side_effect = (
            lambda c, i, d, post, recover, b, data: recover(c, i, d, data))
        self.migrate()
        self.on(self.dst).rollback_live_migration_at_destination(
            self.context, self.server, [], {})
        self.assertIn('armed for migration', log.output)
        self.assertNotIn(base.PASSPHRASE.decode(), log.output)
