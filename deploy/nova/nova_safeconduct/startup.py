"""What is checked and put in order when nova-compute starts."""

import time

from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging

from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct import secrets
from nova_safeconduct import threads

LOG = logging.getLogger(__name__)

CAPABILITY = {'safeconduct': '1'}


def _domain(host, instance_uuid):
    libvirt = libvirt_host.libvirt
    try:
        return host.get_connection().lookupByUUIDString(instance_uuid)
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def domain_is_here(host, instance_uuid):
    return _domain(host, instance_uuid) is not None


def job_is_running(host, instance_uuid):
    """Whether a domain is here and libvirt is at work with it."""
    domain = _domain(host, instance_uuid)
    return domain is not None and domain.jobInfo()[0] in (
        libvirt_host.libvirt.VIR_DOMAIN_JOB_BOUNDED,
        libvirt_host.libvirt.VIR_DOMAIN_JOB_UNBOUNDED)


class Startup:

    def __init__(self, host, client, incoming, conf, migration_flags):
        self._host = host
        self._node = client
        self._incoming = incoming
        self._conf = conf
        self._flags = migration_flags

    def run(self, name):
        """It does not raise: nova-compute has servers to look after whether
        or not they can be migrated.
        """
        self._check_libvirt_options()
        keep = set()
        try:
            self._check_status(name, self._node.status())
            keep = self._reconcile()
        except refusal.Refusal as e:
            LOG.error('Safeconduct is not available, and no server with a '
                      'vTPM can be migrated to or from this host: %s', e)
        try:
            self._incoming.drop_leftovers(keep)
        except Exception:
            LOG.exception('libvirt secrets that an earlier nova-compute may '
                          'have left could not be looked for.')

    def _check_libvirt_options(self):
        libvirt = self._conf.libvirt
        if libvirt.live_migration_tunnelled:
            LOG.error('[libvirt] live_migration_tunnelled is on: QEMU then '
                      'has no return path, and servers with a vTPM are not '
                      'migrated from this host. Turn it off; [safeconduct] '
                      'tunnel encrypts the stream.')
        if (libvirt.live_migration_with_native_tls and
                libvirt.live_migration_scheme != 'tls'):
            # OSSN-0089
            LOG.warning('[libvirt] live_migration_with_native_tls is on and '
                        'live_migration_scheme is %s, not "tls": libvirt\'s '
                        'own connection may not be encrypted.',
                        libvirt.live_migration_scheme)
        if (not self._conf.safeconduct.tunnel and
                not libvirt.live_migration_with_native_tls):
            LOG.warning('[safeconduct] tunnel and [libvirt] '
                        'live_migration_with_native_tls are off: the state '
                        'and the secret of a vTPM cross encrypted, the '
                        'memory of the server, which may hold data of the '
                        'vTPM in transit, crosses in clear.')

    def _check_status(self, name, status):
        mode = node.mode_name(status.mode)
        LOG.info('Safeconduct: node service %s on %s, mode %s, policy %d.',
                 status.version, status.host, mode, status.policy_svn)
        if status.mode == node.MODES['simulated']:
            LOG.warning('Safeconduct is SIMULATED on this host: it protects '
                        'nothing.')
        if mode != self._conf.safeconduct.mode:
            LOG.error('The node service is in mode %s, and [safeconduct] '
                      'mode is %s: no server with a vTPM is migrated.', mode,
                      self._conf.safeconduct.mode)
        if status.host != name:
            LOG.error('The node service calls this host %r, nova-compute '
                      'calls it %r: no session would be found. Make "host" '
                      'in safeconductd\'s configuration that of nova.conf.',
                      status.host, name)
        if not status.accepted_by_own_policy:
            own = status.own_refusal
            LOG.warning('This host would not be accepted by its own policy: '
                        '%s %s', own.message, own.remedy)
        if status.draining:
            LOG.warning('The node service is draining and takes no new '
                        'migrations.')

    def _reconcile(self):
        """Ends the sessions that no migration stands behind any more; returns
        the instances whose session goes on.

        libvirt's job outlives nova-compute. Of a source's session libvirt is
        asked; a destination's that is armed is its source's to end.
        """
        outgoing, keep = [], []
        for s in self._node.sessions():
            if s.state not in node.LIVE:
                continue
            if s.role == node.DESTINATION:
                keep.append(s)
            elif job_is_running(self._host, s.instance_id):
                keep.append(s)
                outgoing.append(s)
            elif (not domain_is_here(self._host, s.instance_id) and
                  node.crossed(s)):
                LOG.warning('Session %s: instance %s has moved to %s while '
                            'nova-compute was down; the session is '
                            'committed.', s.session_id.hex(), s.instance_id,
                            s.destination_host)
                self._node.commit(s.session_id)
        for s in self._node.reconcile([s.session_id for s in keep]):
            LOG.warning('Session %s of instance %s (%s to %s) is aborted: '
                        'nova-compute was restarted and knows no migration '
                        'of it.', s.session_id.hex(), s.instance_id,
                        s.source_host, s.destination_host)
        for s in outgoing:
            threads.start('follow', self._follow, s)
        for s in keep:
            if s.role == node.DESTINATION:
                self._incoming.watch(s.instance_id, s.session_id)
        return {s.instance_id for s in keep}

    def _follow(self, session):
        """Ends the session of a migration that has outlived nova-compute."""
        instance, ident = session.instance_id, session.session_id.hex()
        while True:
            time.sleep(secrets.POLL)
            try:
                now = self._node.session(session.session_id)
                if now.state in node.ENDED:
                    return
                if job_is_running(self._host, instance):
                    continue
                if domain_is_here(self._host, instance):
                    self._node.abort(session.session_id, 'the migration '
                                     'ended and the server is on the source')
                    LOG.warning('Session %s: aborted; instance %s is still '
                                'here.', ident, instance)
                else:
                    self._node.commit(session.session_id)
                    LOG.warning('Session %s: committed; instance %s runs on '
                                '%s.', ident, instance,
                                session.destination_host)
                return
            except refusal.Refusal as e:
                if not e.unavailable:
                    LOG.error('Session %s: %s', ident, e)
                    return
            except Exception:
                LOG.exception('While following session %s', ident)
