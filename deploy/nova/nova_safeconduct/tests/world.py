"""Node services in memory: what the driver needs to know of them.

A World has one node for each host. Sessions are the same on both their
hosts, as they are between two safeconductd; test_nodes.py holds this against
real ones.
"""

import itertools
import time

from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct.rpc import admin_pb2
from nova_safeconduct.rpc import common_pb2


class World:

    def __init__(self):
        self.clock = itertools.count(int(time.time()))
        self.nodes = {}
        self.sessions = {}
        self.used = set()
        self.calls = []

    def node(self, host):
        return self.nodes.setdefault(host, FakeNode(self, host))

    def session(self, instance):
        """The newest session of an instance, as its source sees it."""
        found = [s for s in self.sessions.values()
                 if s.instance_id == instance]
        return max(found, key=lambda s: s.created_at.ToNanoseconds())

    def cross(self, instance):
        """QEMU has sent the vTPM's state."""
        s = self.session(instance)
        s.state = common_pb2.SESSION_STATE_TRANSFERRING
        for kind in (common_pb2.STATE_TYPE_PERMANENT,
                     common_pb2.STATE_TYPE_VOLATILE):
            s.blobs.add(type=kind)


class FakeNode:
    """The methods of node.Node."""

    def __init__(self, world, host):
        self.world = world
        self.host = host
        self.mode = common_pb2.MODE_INTEL
        self.attached = []
        self.escrows = {}
        self.incoming = {}
        # Refusals to raise, by method; or for all.
        self.refuse = {}
        self.down = False
        # What it says to its own host when it refuses a peer.
        self.refuses_peer = None

    def _enter(self, method, *args):
        self.world.calls.append((self.host, method) + args)
        if self.down:
            raise refusal.Refusal(refusal.UNAVAILABLE, 'connection refused')
        if method in self.refuse:
            raise self.refuse[method]

    def status(self):
        self._enter('status')
        return admin_pb2.GetStatusResponse(
            mode=self.mode, host=self.host, version='1', policy_svn=1,
            accepted_by_own_policy=True, attached_instances=self.attached)

    def establish(self, instance, peer, role):
        self._enter('establish', instance, peer)
        if peer not in self.world.nodes or self.world.nodes[peer].down:
            raise refusal.Refusal('PEER_UNAVAILABLE', 'the peer is not there')
        if self.world.nodes[peer].mode != self.mode:
            raise refusal.Refusal('MODE_MISMATCH', 'another mode')
        source, destination = (
            (self.host, peer) if role == node.SOURCE else (peer, self.host))
        number = next(self.world.clock)
        why = self.world.nodes[peer].refuses_peer
        if why is not None:
            s = common_pb2.Session(
                session_id=number.to_bytes(16, 'big'), instance_id=instance,
                source_host=source, destination_host=destination, refusal=why,
                state=common_pb2.SESSION_STATE_ABORTED, mode=self.mode)
            s.created_at.FromSeconds(number)
            self.world.sessions[s.session_id] = s
            raise refusal.Refusal('PEER_REFUSED', 'the peer refused')
        s = common_pb2.Session(
            session_id=number.to_bytes(16, 'big'), instance_id=instance,
            source_host=source, destination_host=destination,
            state=common_pb2.SESSION_STATE_APPRAISED, mode=self.mode)
        s.created_at.FromSeconds(number)
        self.world.sessions[s.session_id] = s
        there = self.world.nodes[destination]
        for name, secret in self.world.nodes[source].escrows.get(
                instance, {}).items():
            there.incoming[s.session_id, name] = secret
        return self._view(s)

    def _view(self, s):
        seen = common_pb2.Session()
        seen.CopyFrom(s)
        seen.role = (node.SOURCE if s.source_host == self.host
                     else node.DESTINATION)
        return seen

    def arm(self, instance, destination, migration, return_path,
            without_vtpm):
        self._enter('arm', instance, destination, migration, return_path,
                    without_vtpm)
        if not return_path:
            raise refusal.Refusal('UNSAFE_MIGRATION', 'without return-path')
        for s in self.sessions(instance, node.SOURCE):
            if (s.destination_host == destination and
                    s.state == common_pb2.SESSION_STATE_APPRAISED):
                break
        else:
            raise refusal.Refusal('NO_SESSION', 'no appraised session')
        if migration in self.world.used:
            raise refusal.Refusal('ALREADY_USED', 'this migration id')
        if not without_vtpm and instance not in self.attached:
            raise refusal.Refusal('HELPER_NOT_ATTACHED', 'no helper')
        self.world.used.add(migration)
        s = self.world.sessions[s.session_id]
        s.state = common_pb2.SESSION_STATE_ARMED
        s.migration_id = migration
        return self._view(s)

    def _get(self, session_id):
        s = self.world.sessions.get(session_id)
        if s is None or self.host not in (s.source_host, s.destination_host):
            raise refusal.Refusal('NO_SESSION', 'no such session')
        return s

    def session(self, session_id):
        self._enter('session')
        return self._view(self._get(session_id))

    def sessions(self, instance='', role=None, ended=False):
        self._enter('sessions', instance)
        found = [self._view(s) for s in self.world.sessions.values()
                 if self.host in (s.source_host, s.destination_host) and
                 instance in ('', s.instance_id) and
                 (ended or s.state not in node.ENDED)]
        return sorted((s for s in found if role in (None, s.role)),
                      key=lambda s: s.created_at.ToNanoseconds(),
                      reverse=True)

    def commit(self, session_id):
        self._enter('commit', session_id)
        s = self._get(session_id)
        if s.state not in node.LIVE + (node.COMMITTED,):
            raise refusal.Refusal('WRONG_STATE', 'not armed')
        s.state = common_pb2.SESSION_STATE_COMMITTED
        there = self.world.nodes[s.destination_host]
        for (ident, name) in list(there.incoming):
            if ident == session_id:
                there.escrows.setdefault(s.instance_id, {})[name] = (
                    there.incoming.pop((ident, name))[0:])
        self.world.nodes[s.source_host].escrows.pop(s.instance_id, None)
        return self._view(s)

    def abort(self, session_id, reason):
        self._enter('abort', session_id, reason)
        s = self._get(session_id)
        if s.state == node.COMMITTED:
            raise refusal.Refusal('WRONG_STATE', 'committed')
        s.state = common_pb2.SESSION_STATE_ABORTED
        there = self.world.nodes[s.destination_host]
        for key in [k for k in there.incoming if k[0] == session_id]:
            del there.incoming[key]
        return self._view(s)

    def reconcile(self, keep):
        self._enter('reconcile', tuple(keep))
        gone = [s for s in self.sessions() if s.session_id not in keep]
        return [self.abort(s.session_id, 'reconciled') for s in gone]

    def escrow(self, instance, secret, secret_id):
        self._enter('escrow', instance, secret_id)
        self.escrows.setdefault(instance, {})[secret_id] = secret

    def release(self, instance, secret_id, session_id=b''):
        self._enter('release', instance, secret_id, session_id)
        if session_id:
            try:
                return self.incoming[session_id, secret_id]
            except KeyError:
                raise refusal.Refusal('NO_SECRET', 'none with the session')
        try:
            return self.escrows[instance][secret_id]
        except KeyError:
            raise refusal.Refusal('NO_SECRET', 'none escrowed here')

    def forget(self, instance, secret_id=''):
        self._enter('forget', instance)
        return self.escrows.pop(instance, None) is not None

    def escrowed(self, instance):
        self._enter('escrowed', instance)
        return set(self.escrows.get(instance, {}))
