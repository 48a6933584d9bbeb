"""Client of the node service of this host.

Each call opens a channel of its own: a channel that is shared by the threads
of eventlet's pool hangs. On a unix socket that costs well under a
millisecond. Every call has a deadline. Without eventlet a child makes the
calls (caller.py).
"""

import contextlib
import os
import random
import time

import grpc
from oslo_context import context

from nova_safeconduct import caller
from nova_safeconduct import refusal
from nova_safeconduct.rpc import admin_pb2
from nova_safeconduct.rpc import admin_pb2_grpc
from nova_safeconduct.rpc import common_pb2
from nova_safeconduct.rpc import migration_pb2
from nova_safeconduct.rpc import migration_pb2_grpc
from nova_safeconduct.rpc import secret_pb2
from nova_safeconduct.rpc import secret_pb2_grpc
from nova_safeconduct import threads

SOURCE = common_pb2.ROLE_SOURCE
DESTINATION = common_pb2.ROLE_DESTINATION

APPRAISED = common_pb2.SESSION_STATE_APPRAISED
LIVE = (common_pb2.SESSION_STATE_ARMED,
        common_pb2.SESSION_STATE_TRANSFERRING)
ENDED = (common_pb2.SESSION_STATE_COMMITTED,
         common_pb2.SESSION_STATE_ABORTED)
COMMITTED = common_pb2.SESSION_STATE_COMMITTED

MODES = {'intel': common_pb2.MODE_INTEL,
         'simulated': common_pb2.MODE_SIMULATED}


def _request_id():
    """Metadata that names Nova's request, for the node's audit log and traces.

    Of the thread that calls: a native thread of the pool knows no context.
    """
    current = context.get_current()
    request_id = getattr(current, 'request_id', None)
    return (('x-openstack-request-id', request_id),) if request_id else ()


def state_name(session):
    name = common_pb2.SessionState.Name(session.state)
    return name[len('SESSION_STATE_'):].lower()


def mode_name(mode):
    return common_pb2.Mode.Name(mode)[len('MODE_'):].lower()


def refused(session):
    """The Refusal that a session ended with; None if there is none."""
    if session.state not in ENDED or not session.HasField('refusal'):
        return None
    return refusal.from_message(
        session.refusal, common_pb2.Reason.Name(session.refusal.reason))


def crossed(session):
    """Whether both parts of the vTPM's state have crossed."""
    kinds = {blob.type for blob in session.blobs}
    return {common_pb2.STATE_TYPE_PERMANENT,
            common_pb2.STATE_TYPE_VOLATILE} <= kinds


class Node:
    """The node service. Every method may raise refusal.Refusal."""

    def __init__(self, options):
        self._options = options
        self._lane = threads.Lane(options.max_calls)
        self._child = None
        if not threads.green():
            self._child = caller.Child(options.endpoint)

    def _channel(self):
        if self._child is not None:
            return caller.Channel(self._child)
        return grpc.insecure_channel(self.endpoint, options=caller.OPTIONS)

    @property
    def endpoint(self):
        return self._options.endpoint

    def _call(self, timeout, function):
        """function(channel, seconds left), off eventlet's hub."""
        def call(left):
            # The channel is made, used and closed in one native thread.
            with contextlib.closing(self._channel()) as channel:
                try:
                    return function(channel, left)
                except grpc.RpcError as e:
                    raise refusal.from_rpc_error(e, self.endpoint) from None
        try:
            return self._lane.run(timeout, call)
        except TimeoutError:
            raise refusal.Refusal(
                refusal.UNAVAILABLE,
                'no turn to call the node service at %s within %d seconds'
                % (self.endpoint, timeout),
                remedy='see [safeconduct] max_calls and the timeouts in '
                       'nova.conf') from None

    def _unary(self, stub, method, request, timeout=None):
        metadata = _request_id()
        return self._call(
            timeout or self._options.request_timeout,
            lambda channel, left: getattr(stub(channel), method)(
                request, timeout=left, metadata=metadata))

    def _migration(self, method, request, timeout=None):
        return self._unary(migration_pb2_grpc.MigrationServiceStub, method,
                           request, timeout)

    def _secret(self, method, request):
        return self._unary(secret_pb2_grpc.SecretServiceStub, method, request)

    def status(self):
        return self._unary(admin_pb2_grpc.AdminServiceStub, 'GetStatus',
                           admin_pb2.GetStatusRequest())

    def establish(self, instance, peer, role):
        """Attests the peer and appraises its host; returns the session.

        A node takes so many handshakes at once, and in a second, from one
        peer: when a host is emptied this waits for its turn.
        """
        give_up = time.monotonic() + self._options.establish_timeout
        while True:
            left = give_up - time.monotonic()
            try:
                return self._establish(instance, peer, role, left)
            except refusal.Refusal as e:
                pause = random.uniform(0.5, 1.5)
                if e.reason != 'LIMIT_EXCEEDED' or (
                        time.monotonic() + pause > give_up):
                    raise
            time.sleep(pause)

    def _establish(self, instance, peer, role, timeout):
        request = migration_pb2.EstablishRequest(
            instance_id=instance, peer_host=peer, role=role,
            attempt_id=os.urandom(16))
        metadata = _request_id()

        def call(channel, left):
            stub = migration_pb2_grpc.MigrationServiceStub(channel)
            session = None
            for event in stub.Establish(request, timeout=left,
                                        metadata=metadata):
                if event.WhichOneof('event') == 'session':
                    session = event.session
            return session

        session = self._call(timeout, call)
        if session is None:
            raise refusal.Refusal('INTERNAL', 'the node service ended the '
                                  'handshake without a session')
        return session

    def arm(self, instance, destination, migration, return_path,
            without_vtpm):
        """Binds the session of this source to a migration."""
        return self._migration('Arm', migration_pb2.ArmRequest(
            instance_id=instance, destination_host=destination,
            migration_id=migration, return_path=return_path,
            without_vtpm=without_vtpm), self._options.arm_timeout).session

    def commit(self, session_id):
        return self._migration('Commit', migration_pb2.CommitRequest(
            session_id=session_id)).session

    def abort(self, session_id, reason):
        return self._migration('Abort', migration_pb2.AbortRequest(
            session_id=session_id, reason=reason)).session

    def reconcile(self, keep):
        """Aborts every open session but those; returns them."""
        request = migration_pb2.ReconcileRequest(keep_session_ids=keep)
        return list(self._migration('Reconcile', request).aborted)

    def session(self, session_id):
        return self._migration('Get', migration_pb2.GetRequest(
            session_id=session_id)).session

    def sessions(self, instance='', role=None, ended=False):
        """Open sessions, or also those that have ended and are remembered;
        the newest first.
        """
        listed = self._migration('List', migration_pb2.ListRequest(
            instance_id=instance, include_ended=ended)).sessions
        return sorted((s for s in listed if role in (None, s.role)),
                      key=lambda s: s.created_at.ToNanoseconds(),
                      reverse=True)

    def escrow(self, instance, secret, secret_id):
        self._secret('Escrow', secret_pb2.EscrowRequest(
            instance_id=instance, secret=secret, secret_id=secret_id))

    def release(self, instance, secret_id, session_id=b''):
        """The secret, from the escrow or from a session."""
        return self._secret('Release', secret_pb2.ReleaseRequest(
            instance_id=instance, secret_id=secret_id,
            session_id=session_id)).secret

    def forget(self, instance, secret_id=''):
        return self._secret('Forget', secret_pb2.ForgetRequest(
            instance_id=instance, secret_id=secret_id)).forgotten

    def escrowed(self, instance):
        """Names of the secrets of a VM that are escrowed here."""
        return {s.secret_id for s in self._secret(
            'ListSecrets', secret_pb2.ListSecretsRequest(
                instance_id=instance)).secrets if not s.incoming}
