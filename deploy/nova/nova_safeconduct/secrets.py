"""vTPM secrets in libvirt.

libvirt takes the passphrase of a vTPM's state from a secret of usage "vtpm",
at the moment at which it starts swtpm. Ours are private and ephemeral (libvirt
neither hands them out nor writes them down) and are undefined as soon as swtpm
runs.
"""

import threading

from lxml import etree
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging

from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct import threads

LOG = logging.getLogger(__name__)

# How often a watcher asks for the state of a session, in seconds.
POLL = 2.0


class IncomingSecrets:
    """Secrets of VMs that are expected at this host.

    Nova does not always tell the destination how a migration went, so that
    each secret has a watcher: whichever comes first, libvirt's event that the
    VM's QEMU has started, Nova's call or the end of the session, the secret is
    undefined.
    """

    def __init__(self, host, client):
        self._host = host
        self._node = client
        self._watched = {}
        self._lock = threading.Lock()

    def define(self, instance_uuid, secret_uuid, passphrase, session_id):
        self._host.create_secret('vtpm', instance_uuid, password=passphrase,
                                 uuid=secret_uuid)
        self.watch(instance_uuid, session_id)

    def watch(self, instance_uuid, session_id):
        done = threading.Event()
        with self._lock:
            previous = self._watched.get(instance_uuid)
            self._watched[instance_uuid] = done
        if previous is not None:
            previous.set()
        threads.start('secret', self._watch, instance_uuid, session_id, done)

    def expects(self, instance_uuid):
        with self._lock:
            return instance_uuid in self._watched

    def drop(self, instance_uuid):
        """Undefines the VM's secret, if there is one. It does not raise."""
        with self._lock:
            done = self._watched.pop(instance_uuid, None)
        if done is not None:
            done.set()
        libvirt = libvirt_host.libvirt
        try:
            # Not Host.find_secret, which knows no vTPM before Nova 33.
            secret = self._host.get_connection().secretLookupByUsage(
                libvirt.VIR_SECRET_USAGE_TYPE_VTPM, instance_uuid)
            if secret is not None:
                secret.undefine()
                LOG.debug('The libvirt secret of the vTPM of instance %s is '
                          'undefined.', instance_uuid)
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                LOG.error('The libvirt secret of the vTPM of instance %s '
                          'could not be undefined: %s. It is private and '
                          'ephemeral; virsh secret-list shows it.',
                          instance_uuid, e)

    def _watch(self, instance_uuid, session_id, done):
        while not done.wait(POLL):
            try:
                if self._node.session(session_id).state not in node.ENDED:
                    continue
            except refusal.Refusal as e:
                if e.reason != 'NO_SESSION':
                    continue  # not a word on whether it has ended
            except Exception:
                LOG.exception('While waiting for the end of the session of '
                              'instance %s', instance_uuid)
                continue
            with self._lock:
                mine = self._watched.get(instance_uuid) is done
            if mine:
                self.drop(instance_uuid)
            return

    def drop_leftovers(self, keep):
        """Undefines what an earlier nova-compute left: every ephemeral secret
        of a vTPM, but those of the instances in keep.
        """
        libvirt = libvirt_host.libvirt
        for secret in self._host.get_connection().listAllSecrets():
            if secret.usageType() != libvirt.VIR_SECRET_USAGE_TYPE_VTPM:
                continue
            # One that is not ephemeral is Nova's, of secret security "host".
            if etree.fromstring(secret.XMLDesc(0)).get('ephemeral') != 'yes':
                continue
            instance_uuid = secret.usageID()
            if instance_uuid not in keep:
                LOG.warning('A libvirt secret of the vTPM of instance %s was '
                            'left by an earlier nova-compute and is '
                            'undefined.', instance_uuid)
                self.drop(instance_uuid)
