"""The libvirt driver with Safeconduct at each step of a live migration.

What runs where, in Nova's order:

    destination  check_can_live_migrate_destination      Establish
    source       check_can_live_migrate_source           an appraised session
    destination  pre_live_migration                      Release, secret
    source       live_migration                          Arm, tunnel, libvirt
    source       (libvirt's job has ended)               Commit or Abort
    both         the post and rollback methods           what is left to undo

The sessions are the node service's; of its own this driver remembers nothing
that a restart of nova-compute may lose. Up to the moment at which libvirt
migrates, whatever fails refuses the migration. After it, errors of ours are
logged and never raised: Nova has a server to account for.
"""

import contextlib
import os
import threading
import time

from castellan.common import exception as castellan_exception
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
import nova.conf
from nova import crypto
from nova import exception
from nova.virt import event as virtevent
from nova.virt import hardware
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging
from oslo_utils import excutils

from nova_safeconduct import conf
from nova_safeconduct import guest as protected_guest
from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct import secrets
from nova_safeconduct import startup

LOG = logging.getLogger(__name__)

CONF = nova.conf.CONF
conf.register_opts(CONF)

# Key and value in ComputeNode.stats: this host's driver is Safeconduct's. The
# API reads it, and the destination of a migration.
CAPABILITY = startup.CAPABILITY

# Seconds that libvirt may be too busy with a migration to say how it is.
BUSY_LIBVIRT = 900

# In nova.virt.libvirt.driver from Nova 33 on: it has the vTPM's secret in
# libvirt by _get_or_create_secret_for_vtpm, and _cleanup deletes no key.
_NOVA_33 = hasattr(libvirt_driver.LibvirtDriver,
                   '_get_or_create_secret_for_vtpm')

# libvirt with VIR_DOMAIN_UNDEFINE_KEEP_TPM.
_KEEPS_TPM = (8, 9, 0)

# States in which a server is being deleted, or was never there.
_GOING_TASKS = (task_states.DELETING, task_states.SOFT_DELETING)
_GOING_STATES = (vm_states.BUILDING, vm_states.DELETED, vm_states.SOFT_DELETED)


def has_vtpm(instance):
    return bool(hardware.get_vtpm_constraint(instance.flavor,
                                             instance.image_meta))


def is_going(instance):
    """Whether the server is being deleted, so that its key may be."""
    return bool(instance.deleted or instance.task_state in _GOING_TASKS or
                instance.vm_state in _GOING_STATES)


def _bytes(passphrase):
    """Not every key manager gives bytes."""
    if isinstance(passphrase, str):
        return passphrase.encode()
    return passphrase


class SafeconductDriver(libvirt_driver.LibvirtDriver):

    def __init__(self, virtapi, read_only=False):
        super().__init__(virtapi, read_only)
        self._node = node.Node(CONF.safeconduct)
        self._incoming = secrets.IncomingSecrets(self._host, self._node)
        # By instance: the session that check_can_live_migrate_source accepted
        # last. Each check needs a session of its own.
        self._accepted = {}
        # By instance: the beginning of the session whose refusal was reported.
        self._reported = {}
        # By instance: how its outgoing migration is asked of libvirt.
        self._outgoing = {}
        self._thread = threading.local()

    # Start of nova-compute

    def init_host(self, host):
        super().init_host(host)
        startup.Startup(self._host, self._node, self._incoming,
                        CONF, self._all_flags()).run(host)

    def _all_flags(self):
        return self._live_migration_flags | self._block_migration_flags

    def get_available_resource(self, nodename):
        data = super().get_available_resource(nodename)
        stats = dict(data.get('stats') or {})
        stats.update(CAPABILITY)
        data['stats'] = stats
        return data

    # What is protected

    def _protects(self, instance):
        return CONF.safeconduct.instances == 'all' or has_vtpm(instance)

    def _may_go_unprotected(self, instance):
        return (CONF.safeconduct.policy == 'preferred' and
                not has_vtpm(instance))

    def _refuse(self, instance, doing, e):
        """Raises, or returns if policy lets the server go unprotected."""
        if self._may_go_unprotected(instance):
            LOG.warning('%s: %s. The server has no vTPM and [safeconduct] '
                        'policy is "preferred": it is migrated without '
                        'protection.', doing, e, instance=instance)
            return
        LOG.warning('%s: %s', doing, e, instance=instance)
        raise exception.MigrationPreCheckError(
            reason='%s: %s' % (doing, e.brief())) from None

    # Checks

    def check_can_live_migrate_destination(self, context, instance,
                                           src_compute_info, dst_compute_info,
                                           *args, **kwargs):
        data = super().check_can_live_migrate_destination(
            context, instance, src_compute_info, dst_compute_info,
            *args, **kwargs)
        if not self._protects(instance):
            return data
        try:
            self._establish(instance, src_compute_info)
        except refusal.Refusal as e:
            if e.reason == 'PEER_REFUSED':
                # The source's enclave does not tell a stranger why; it tells
                # its own host. Nova asks that one next, where this attempt
                # has no session, so that it goes no further.
                LOG.warning('%s refuses this host as a destination: its own '
                            'check says why.', instance.host,
                            instance=instance)
                return data
            try:
                self._refuse(instance, 'Safeconduct on %s refuses %s as the '
                             'source of a live migration'
                             % (CONF.host, instance.host), e)
            except exception.MigrationPreCheckError:
                # Nova does so only after a check that did not raise.
                self.cleanup_live_migration_destination_check(context, data)
                raise
        return data

    def _establish(self, instance, src_compute_info):
        stats = src_compute_info.get('stats') or {}
        if not set(CAPABILITY) <= set(stats):
            raise refusal.Refusal(
                'SOURCE_WITHOUT_SAFECONDUCT',
                'nova-compute on %s does not report the Safeconduct driver'
                % instance.host,
                found='another compute_driver, or one that has just started',
                expected='compute_driver = safeconduct.SafeconductDriver',
                remedy='upgrade nova-compute on that host; it reports its '
                       'driver within update_resources_interval')
        # Before, too: the source is not told of a session that is aborted
        # here.
        self._check_mode(self._node.status())
        session = self._node.establish(instance.uuid, instance.host,
                                       node.DESTINATION)
        self._check_mode(session)
        LOG.info('Session %s: %s is attested and appraised as the source of '
                 'a live migration to this host (%s).',
                 session.session_id.hex(), instance.host,
                 node.mode_name(session.mode), instance=instance)

    def _check_mode(self, status):
        """Of the node service, or of a session."""
        if status.mode != node.MODES[CONF.safeconduct.mode]:
            raise refusal.Refusal(
                'MODE_MISMATCH', 'the node service of %s is in another mode '
                'than nova.conf asks for' % CONF.host,
                found=node.mode_name(status.mode),
                expected=CONF.safeconduct.mode,
                remedy='set [safeconduct] mode to the mode of safeconductd')

    def check_can_live_migrate_source(self, context, instance,
                                      dest_check_data,
                                      block_device_info=None):
        session = None
        if self._protects(instance):
            try:
                session = self._accept(context, instance)
            except refusal.Refusal as e:
                self._refuse(instance, 'Safeconduct on %s, the source, '
                             'refuses' % CONF.host, e)
        try:
            return super().check_can_live_migrate_source(
                context, instance, dest_check_data, block_device_info)
        except Exception as e:
            with excutils.save_and_reraise_exception():
                if session is not None:
                    self._abort(instance, session, 'a check of Nova\'s: %s'
                                % type(e).__name__)

    def _accept(self, context, instance):
        """The session that the destination has established for this check.

        Nova does not say who the destination is. Each check is preceded by
        the destination's own, so the newest session that no check has
        accepted yet is this one's; a destination without Safeconduct has made
        none.
        """
        every = self._node.sessions(instance.uuid, node.SOURCE, ended=True)
        found = [s for s in every if s.state == node.APPRAISED]
        newest = found[0] if found else None
        if newest is None or (
                self._accepted.get(instance.uuid) == newest.session_id):
            why = self._refused_just_now(instance, every)
            if why is not None:
                raise why
            raise refusal.Refusal(
                'DESTINATION_WITHOUT_SAFECONDUCT',
                'the destination has not attested itself to this host for '
                'this migration', expected='an appraised session',
                found='none for this attempt',
                remedy='see that nova-compute on the destination has '
                       'compute_driver = safeconduct.SafeconductDriver')
        for stale in found[1:]:
            self._abort(instance, stale, 'Nova has chosen another '
                        'destination, %s' % newest.destination_host)
        try:
            self._check_mode(newest)
            self._check_flags()
            if has_vtpm(instance):
                self._check_helper(instance)
                newest = self._escrow_late(context, instance, newest)
        except refusal.Refusal as e:
            self._abort(instance, newest, str(e))
            raise
        self._accepted[instance.uuid] = newest.session_id
        return newest

    def _refused_just_now(self, instance, sessions):
        """Why this host's enclave has refused the destination, if it has."""
        if not sessions:
            return None
        last = sessions[0]
        began = last.created_at.ToNanoseconds()
        age = time.time() - began / 1e9
        if (age > CONF.safeconduct.establish_timeout or
                self._reported.get(instance.uuid) == began):
            return None
        self._reported[instance.uuid] = began
        why = node.refused(last)
        if why is not None:
            why.message = '%s is refused as the destination: %s' % (
                last.destination_host, why.message)
        return why

    def _check_flags(self):
        if self._tunnelled_by_libvirt():
            raise refusal.Refusal(
                'UNSAFE_MIGRATION',
                'libvirt is told to tunnel migrations, and does without '
                'QEMU\'s return-path then: a destination that cannot restore '
                'the vTPM would lose the server',
                found='[libvirt] live_migration_tunnelled = True',
                expected='False',
                remedy='turn it off; [safeconduct] tunnel encrypts the '
                       'stream')

    def _tunnelled_by_libvirt(self):
        return bool(self._all_flags() &
                    libvirt_driver.libvirt.VIR_MIGRATE_TUNNELLED)

    def _check_helper(self, instance):
        if instance.uuid not in self._node.status().attached_instances:
            raise refusal.Refusal(
                'HELPER_NOT_ATTACHED',
                'the vTPM of the server runs without safeconduct-swtpm',
                remedy='see that the helper is installed on this host, then '
                       'hard-reboot the server')

    def _escrow_late(self, context, instance, session):
        """Escrows the secret of a server that started without Safeconduct.

        The destination was sent the secrets with the session, so one that
        comes later needs a new session.
        """
        secret_uuid = instance.system_metadata.get('vtpm_secret_uuid')
        if not secret_uuid:
            raise refusal.Refusal(
                'NO_SECRET', 'the server has a vTPM and no vtpm_secret_uuid '
                'in its system metadata',
                remedy='hard-reboot the server, as its owner')
        if secret_uuid in self._node.escrowed(instance.uuid):
            return session
        try:
            known, passphrase = self._ask_key_manager(context, instance)
            self._node.escrow(instance.uuid, _bytes(passphrase), known)
        except refusal.Refusal:
            raise
        except Exception as e:
            LOG.warning('The secret of the vTPM could not be had to escrow '
                        'it: %s', type(e).__name__, instance=instance)
            raise refusal.Refusal(
                'NO_SECRET', 'the secret of the vTPM is not escrowed on %s, '
                'and the key manager does not give it for this request'
                % CONF.host,
                remedy='let the owner hard-reboot the server, or migrate it '
                       'once') from None
        self._abort(instance, session, 'the secret was escrowed after it')
        return self._node.establish(instance.uuid, session.destination_host,
                                    node.SOURCE)

    def _add_vtpm_secret_to_live_migrate_data(self, instance,
                                              dest_check_data):
        """From Nova 33 on: the secret stays out of what the bus carries."""
        if has_vtpm(instance):
            # None, not absent: Nova then knows of the vTPM when it cleans up.
            dest_check_data.vtpm_secret_uuid = None
            dest_check_data.vtpm_secret_value = None

    # Destination

    def pre_live_migration(self, context, instance, block_device_info,
                           network_info, disk_info, migrate_data):
        session = None
        if self._protects(instance):
            try:
                session = self._incoming_session(instance)
            except refusal.Refusal as e:
                self._refuse(instance, 'Safeconduct on %s refuses to prepare '
                             'for a server' % CONF.host, e)
        if session is None or not has_vtpm(instance):
            return super().pre_live_migration(
                context, instance, block_device_info, network_info, disk_info,
                migrate_data)
        try:
            data = super().pre_live_migration(
                context, instance, block_device_info, network_info, disk_info,
                migrate_data)
            try:
                self._define_incoming(instance, session)
            except refusal.Refusal as e:
                self._refuse(instance, 'Safeconduct on %s does not release '
                             'the secret of the vTPM' % CONF.host, e)
            return data
        except Exception as e:
            # With shared storage Nova calls nobody here to clean up.
            with excutils.save_and_reraise_exception():
                self._incoming.drop(instance.uuid)
                self._abort(instance, session, 'pre_live_migration: %s'
                            % type(e).__name__)

    def _incoming_session(self, instance):
        for s in self._node.sessions(instance.uuid, node.DESTINATION):
            if s.state == node.APPRAISED:
                self._check_mode(s)
                return s
        raise refusal.Refusal(
            'NO_SESSION', 'there is no appraised session of the server here',
            remedy='start the migration again: the session was aborted, or '
                   'its time is up')

    def _define_incoming(self, instance, session):
        secret_uuid = instance.system_metadata.get('vtpm_secret_uuid')
        if not secret_uuid:
            raise refusal.Refusal('NO_SECRET', 'the server has no '
                                  'vtpm_secret_uuid in its system metadata')
        passphrase = self._node.release(instance.uuid, secret_uuid,
                                        session.session_id)
        self._incoming.define(instance.uuid, secret_uuid, passphrase,
                              session.session_id)
        LOG.info('Session %s: the secret of the vTPM is released to libvirt.',
                 session.session_id.hex(), instance=instance)

    def emit_event(self, event):
        if (isinstance(event, virtevent.LifecycleEvent) and
                event.get_transition() == virtevent.EVENT_LIFECYCLE_STARTED
                and self._incoming.expects(event.get_instance_uuid())):
            # swtpm has it.
            self._incoming.drop(event.get_instance_uuid())
        super().emit_event(event)

    def post_live_migration_at_destination(self, context, instance,
                                           *args, **kwargs):
        if has_vtpm(instance):
            self._incoming.drop(instance.uuid)
        return super().post_live_migration_at_destination(
            context, instance, *args, **kwargs)

    def rollback_live_migration_at_destination(self, context, instance,
                                               *args, **kwargs):
        try:
            return super().rollback_live_migration_at_destination(
                context, instance, *args, **kwargs)
        finally:
            if has_vtpm(instance):
                self._incoming.drop(instance.uuid)
            self._abort_open(instance, node.DESTINATION, 'rolled back')

    # Source

    def live_migration(self, context, instance, dest, post_method,
                       recover_method, block_migration=False,
                       migrate_data=None):
        if not self._protects(instance):
            return super().live_migration(
                context, instance, dest, post_method, recover_method,
                block_migration, migrate_data)
        try:
            session = self._arm(context, instance, dest, migrate_data)
        except refusal.Refusal as e:
            self._abort_open(instance, node.SOURCE, str(e))
            if not self._may_go_unprotected(instance):
                # Raising would put a server that runs into ERROR.
                self._record_refusal(context, instance, dest, e)
                recover_method(context, instance, dest, migrate_data)
                return
            LOG.warning('The server has no vTPM and is migrated to %s '
                        'without protection: %s', dest, e, instance=instance)
            return super().live_migration(
                context, instance, dest, post_method, recover_method,
                block_migration, migrate_data)

        ended = []

        def post(*args, **kwargs):
            self._commit(instance, session)
            post_method(*args, **kwargs)
            ended.append('with the server moved')

        def recover(*args, **kwargs):
            self._abort(instance, session, 'the migration failed or was '
                        'cancelled')
            recover_method(*args, **kwargs)
            ended.append('with the server here')

        try:
            super().live_migration(context, instance, dest, post, recover,
                                   block_migration, migrate_data)
        except Exception as e:
            with excutils.save_and_reraise_exception() as raising:
                if ended:
                    # Newer Novas raise what libvirt said after they have
                    # cleaned up for it, and so put a server that runs into
                    # ERROR.
                    raising.reraise = False
                    LOG.warning('The migration to %s has ended, %s: %s', dest,
                                ended[-1], e, instance=instance)
                else:
                    # Whether the server has moved is for libvirt to say.
                    self._conclude(instance, session)
        finally:
            self._outgoing.pop(instance.uuid, None)
            self._accepted.pop(instance.uuid, None)

    def _arm(self, context, instance, dest, migrate_data):
        self._check_flags()
        session = self._node.arm(
            instance.uuid, dest, migrate_data.migration.uuid,
            return_path=not self._tunnelled_by_libvirt(),
            without_vtpm=not has_vtpm(instance))
        self._check_mode(session)
        sockets = None
        if CONF.safeconduct.tunnel:
            sockets = self._tunnel_sockets(
                instance, bool(migrate_data.block_migration))
        self._outgoing[instance.uuid] = (sockets, dest)
        LOG.info('Session %s: armed for migration %s to %s (%s, %s).',
                 session.session_id.hex(), migrate_data.migration.uuid, dest,
                 node.mode_name(session.mode),
                 'in the tunnel' if sockets else 'without the tunnel',
                 instance=instance)
        return session

    def _tunnel_sockets(self, instance, with_disks):
        """Paths of the tunnel's sockets, which it makes when the session is
        armed.
        """
        stream, disks = (
            os.path.join(CONF.safeconduct.tunnel_directory, instance.uuid + s)
            for s in ('.sock', '-disks.sock'))
        wanted = [stream, disks] if with_disks else [stream]
        give_up = time.monotonic() + CONF.safeconduct.request_timeout
        while True:
            missing = [path for path in wanted if not os.path.exists(path)]
            if not missing:
                return stream, disks
            if time.monotonic() > give_up:
                raise refusal.Refusal(
                    'TUNNEL_UNAVAILABLE', 'safeconduct-tunnel on %s has made '
                    'no socket for the server' % CONF.host,
                    found='no %s' % ', '.join(missing),
                    remedy='see that safeconduct-tunnel runs, and that its '
                           '"dir" is [safeconduct] tunnel_directory')
            time.sleep(0.05)

    def _record_refusal(self, context, instance, dest, e):
        """Makes the reason readable: openstack server event show."""
        LOG.error('The live migration to %s is refused, and the server stays '
                  'here: %s', dest, e, instance=instance)
        error = exception.MigrationPreCheckError(
            reason='Safeconduct on %s refuses the live migration to %s: %s'
            % (CONF.host, dest, e.brief()))
        try:
            with compute_utils.EventReporter(
                    context, 'compute_safeconduct_arm', CONF.host,
                    instance.uuid):
                raise error
        except exception.MigrationPreCheckError:
            pass
        except Exception:
            LOG.exception('The refusal could not be recorded.',
                          instance=instance)

    def _live_migration_operation(self, context, instance, dest,
                                  block_migration, migrate_data, guest,
                                  device_names):
        how = self._outgoing.get(instance.uuid)
        if how is not None:
            guest = protected_guest.protected(guest, *how)
        return super()._live_migration_operation(
            context, instance, dest, block_migration, migrate_data, guest,
            device_names)

    def _live_migration_monitor(self, context, instance, *args, **kwargs):
        protected = instance.uuid in self._outgoing
        give_up = time.monotonic() + BUSY_LIBVIRT
        while True:
            try:
                with self._without_post_copy(protected):
                    return super()._live_migration_monitor(
                        context, instance, *args, **kwargs)
            except libvirt_driver.libvirt.libvirtError as e:
                if (not protected or time.monotonic() > give_up or
                        e.get_error_code() !=
                        libvirt_driver.libvirt.VIR_ERR_OPERATION_TIMEOUT):
                    raise
                # A network that is cut holds libvirt up, and the server would
                # go into ERROR while it runs on.
                LOG.warning('libvirt is busy with the migration and does not '
                            'say how it is (%s): asking again.', e,
                            instance=instance)

    @contextlib.contextmanager
    def _without_post_copy(self, on):
        self._thread.no_post_copy = on
        try:
            yield
        finally:
            self._thread.no_post_copy = False

    def _is_post_copy_enabled(self, migration_flags):
        return (not getattr(self._thread, 'no_post_copy', False) and
                super()._is_post_copy_enabled(migration_flags))

    def post_live_migration_at_source(self, context, instance, network_info):
        super().post_live_migration_at_source(context, instance, network_info)
        # A Commit that did not get through is tried once more.
        for s in self._open_sessions(instance, node.SOURCE):
            if s.state in node.LIVE:
                self._conclude(instance, s)

    def rollback_live_migration_at_source(self, context, instance,
                                          migrate_data):
        self._abort_open(instance, node.SOURCE, 'rolled back')
        return super().rollback_live_migration_at_source(context, instance,
                                                         migrate_data)

    # The end of sessions: none of these raises.

    def _open_sessions(self, instance, role):
        try:
            return self._node.sessions(instance.uuid, role)
        except refusal.Refusal as e:
            LOG.error('The sessions of the server are not known: %s. Those '
                      'that are open expire by themselves.', e,
                      instance=instance)
            return []

    def _commit(self, instance, session):
        try:
            done = self._node.commit(session.session_id)
        except refusal.Refusal as e:
            LOG.error('Session %s: the server has moved to %s, and the '
                      'session could not be committed: %s',
                      session.session_id.hex(), session.destination_host, e,
                      instance=instance)
            return
        if has_vtpm(instance) and not node.crossed(done):
            LOG.critical('Session %s: the server has moved to %s and the '
                         'state of its vTPM did not cross in the session.',
                         session.session_id.hex(), session.destination_host,
                         instance=instance)
        LOG.info('Session %s: committed; the server runs on %s.',
                 session.session_id.hex(), session.destination_host,
                 instance=instance)

    def _abort(self, instance, session, why):
        try:
            self._node.abort(session.session_id, why)
        except refusal.Refusal as e:
            if e.reason not in ('NO_SESSION', 'WRONG_STATE'):
                LOG.error('Session %s could not be aborted: %s. It expires by '
                          'itself.', session.session_id.hex(), e,
                          instance=instance)
            return
        LOG.info('Session %s: aborted (%s).', session.session_id.hex(), why,
                 instance=instance)

    def _abort_open(self, instance, role, why):
        for s in self._open_sessions(instance, role):
            self._abort(instance, s, why)

    def _conclude(self, instance, session):
        """Commits if the server has left this host, aborts if it is here."""
        try:
            here = startup.domain_is_here(self._host, instance.uuid)
        except Exception:
            LOG.exception('Session %s is left open: libvirt does not say '
                          'whether the server is here.',
                          session.session_id.hex(), instance=instance)
            return
        if here:
            self._abort(instance, session, 'the server is on the source')
        else:
            self._commit(instance, session)

    # The passphrase of the vTPM's state

    def _create_guest(self, context, xml, instance, power_on=True,
                      pause=False, post_xml_callback=None):
        if _NOVA_33:
            return super()._create_guest(
                context, xml, instance, power_on=power_on, pause=pause,
                post_xml_callback=post_xml_callback)
        # The same as in Nova 26 to 32, but for where the passphrase is from.
        secret = None
        if CONF.libvirt.swtpm_enabled and has_vtpm(instance):
            secret_uuid, passphrase = self._passphrase(context, instance)
            secret = self._host.create_secret(
                'vtpm', instance.uuid, password=passphrase, uuid=secret_uuid)
        try:
            guest = libvirt_guest.Guest.create(xml, self._host)
            if post_xml_callback is not None:
                post_xml_callback()
            if power_on or pause:
                if hasattr(self, 'cpu_api'):
                    self.cpu_api.power_up_for_instance(instance)
                guest.launch(pause=pause)
            return guest
        finally:
            if secret is not None:
                secret.undefine()

    def _get_or_create_secret_for_vtpm(self, context, instance):
        """From Nova 33 on.

        Also for "host" security the secret is private, ephemeral and
        undefined once swtpm runs, if the enclave has it: what restarts the
        server when its host boots is the escrow.
        """
        secret_uuid, passphrase = self._passphrase(context, instance)
        if not self._is_escrowed(instance, secret_uuid):
            return super()._get_or_create_secret_for_vtpm(context, instance)
        return self._host.create_secret(
            'vtpm', instance.uuid, password=passphrase,
            uuid=secret_uuid), 'user'

    def _is_escrowed(self, instance, secret_uuid):
        try:
            return secret_uuid in self._node.escrowed(instance.uuid)
        except refusal.Refusal:
            return False

    def _ask_key_manager(self, context, instance):
        """(UUID, passphrase) from where Nova has it."""
        if not _NOVA_33:
            return crypto.ensure_vtpm_secret(context, instance)
        from nova import vtpm
        if vtpm.get_instance_tpm_secret_security(instance.flavor) == 'host':
            secret = self._host.find_secret('vtpm', instance.uuid)
            if secret is not None:
                return secret.UUIDString(), secret.value()
        return vtpm.get_or_create_secret(context, instance)

    def _passphrase(self, context, instance):
        """(UUID, passphrase), which the escrow has from then on.

        Without a token, when the host has booted, there is nobody to ask but
        the enclave. With one the key manager is asked, so that its owner can
        revoke the secret; where it refuses or does not answer, the enclave is
        asked: an administrator may then restart a server that is not his.
        """
        known = instance.system_metadata.get('vtpm_secret_uuid')
        if known and not context.auth_token:
            released = self._release_local(instance, known)
            if released is not None:
                return known, released
        try:
            secret_uuid, passphrase = self._ask_key_manager(context, instance)
        except castellan_exception.ManagedObjectNotFoundError:
            raise
        except Exception as e:
            with excutils.save_and_reraise_exception() as ctxt:
                released = self._release_local(instance, known)
                if released is not None:
                    LOG.warning('The key manager did not give the secret of '
                                'the vTPM (%s), the enclave of this host did.',
                                type(e).__name__, instance=instance)
                    ctxt.reraise = False
            return known, released
        self._escrow(instance, secret_uuid, passphrase)
        return secret_uuid, passphrase

    def _escrow(self, instance, secret_uuid, passphrase):
        try:
            self._node.escrow(instance.uuid, _bytes(passphrase), secret_uuid)
        except refusal.Refusal as e:
            LOG.error('The secret of the vTPM is not escrowed: %s. The '
                      'server runs; before it can be live-migrated, its '
                      'owner has to migrate or hard-reboot it.', e,
                      instance=instance)

    def _release_local(self, instance, secret_uuid):
        if not secret_uuid:
            return None
        try:
            return self._node.release(instance.uuid, secret_uuid)
        except refusal.Refusal as e:
            LOG.warning('The enclave does not release the secret of the '
                        'vTPM: %s', e, instance=instance)
            return None

    # The key in the key manager, and the escrow, as long as the server lives

    def _cleanup(self, context, instance, network_info,
                 block_device_info=None, *args, **kwargs):
        if not (kwargs.get('cleanup_instance_disks') and has_vtpm(instance)):
            return super()._cleanup(context, instance, network_info,
                                    block_device_info, *args, **kwargs)
        going = is_going(instance)
        if not going and not _NOVA_33:
            # Before Nova 33 this would delete the key in the key manager of a
            # server that lives on elsewhere. What else it would do:
            if CONF.libvirt.images_type == 'lvm':
                self._cleanup_lvm(instance, block_device_info)
            if CONF.libvirt.images_type == 'rbd':
                self._cleanup_rbd(instance)
            kwargs['cleanup_instance_disks'] = False
        result = super()._cleanup(context, instance, network_info,
                                  block_device_info, *args, **kwargs)
        if going:
            self._forget(instance)
        return result

    def _undefine_domain(self, instance, *args, **kwargs):
        libvirt = libvirt_driver.libvirt
        if (_NOVA_33 or not has_vtpm(instance) or is_going(instance) or
                instance.host != CONF.host or
                not self._host.has_min_version(lv_ver=_KEEPS_TPM)):
            return super()._undefine_domain(instance, *args, **kwargs)
        # Before Nova 33 the vTPM's state is deleted whenever a server is
        # stopped or rebooted: what the escrow then restarts would have a new
        # TPM.
        try:
            domain = self._host.get_guest(instance)._domain
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
                                 libvirt.VIR_DOMAIN_UNDEFINE_NVRAM |
                                 libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
        except exception.InstanceNotFound:
            pass
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise

    def _cleanup_resize(self, context, instance, network_info):
        super()._cleanup_resize(context, instance, network_info)
        if has_vtpm(instance) and instance.host != CONF.host:
            self._forget(instance)

    def _forget(self, instance):
        try:
            self._node.forget(instance.uuid)
        except refusal.Refusal as e:
            LOG.warning('The escrowed secret of the vTPM stays sealed on this '
                        'host: %s', e, instance=instance)
