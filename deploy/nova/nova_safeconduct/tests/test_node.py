"""The client, against a gRPC server in a process of its own. test/nova runs
it against real node services.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

import grpc
from oslo_context import context

from nova_safeconduct import node
from nova_safeconduct import refusal
from nova_safeconduct.rpc import status_pb2
from nova_safeconduct import threads

AT_ONCE = 20


class Served(unittest.TestCase):

    def setUp(self):
        super().setUp()
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.socket = os.path.join(made.name, 'node.sock')

    def serve(self, seconds):
        # What eventlet has patched of this process is not in that one.
        server = subprocess.Popen(
            [sys.executable, '-m', 'nova_safeconduct.tests.slow_node',
             self.socket, str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(server.wait)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.stdin.close)
        self.addCleanup(server.kill)
        server.stdout.readline()


class Client(Served):

    def client(self, **options):
        values = dict(endpoint='unix:' + self.socket, request_timeout=60,
                      establish_timeout=60, arm_timeout=60, max_calls=8)
        values.update(options)
        return node.Node(types.SimpleNamespace(**values))

    def test_other_threads_run_during_each_of_twenty_calls(self):
        self.serve(0.05)
        client = self.client()
        beats, stop, during = [0], threading.Event(), []

        def heart():
            while not stop.is_set():
                time.sleep(0)
                beats[0] += 1

        def call():
            before = beats[0]
            client.status()
            during.append(beats[0] - before)
        heart_thread = threading.Thread(target=heart)
        callers = [threading.Thread(target=call) for _ in range(AT_ONCE)]
        heart_thread.start()
        for each in callers:
            each.start()
        for each in callers:
            each.join()
        stop.set()
        heart_thread.join()
        self.assertEqual(AT_ONCE, len(during))
        self.assertGreater(min(during), 0)

    def test_the_request_of_nova_is_named(self):
        self.serve(0)
        client = self.client()
        before = context.get_current()
        self.addCleanup(setattr, context._request_store, 'context', before)
        current = context.RequestContext(overwrite=True)
        self.assertEqual(current.request_id, client.status().version)
        context._request_store.context = None
        self.assertEqual('', client.status().version)

    def test_a_node_service_that_is_not_there(self):
        with self.assertRaises(refusal.Refusal) as caught:
            self.client().status()
        self.assertTrue(caught.exception.unavailable)
        self.assertIn('cannot be reached', str(caught.exception))

    def test_a_node_service_that_does_not_answer(self):
        self.serve(30)
        with self.assertRaises(refusal.Refusal) as caught:
            self.client(request_timeout=0.2).status()
        self.assertTrue(caught.exception.unavailable)
        self.assertIn('did not answer in time', str(caught.exception))

    def test_a_call_does_not_wait_for_its_turn_for_ever(self):
        lane = threads.Lane(1)
        with lane._slot(time.monotonic() + 60):
            with self.assertRaises(TimeoutError):
                lane.run(0.01, lambda left: self.fail('it had its turn'))
        self.assertEqual('done', lane.run(60, lambda left: 'done'))

    def test_a_turn_is_given_back_by_a_call_that_fails(self):
        lane = threads.Lane(1)
        for _ in range(3):
            with self.assertRaises(ZeroDivisionError):
                lane.run(60, lambda left: 1 / 0)

    def test_a_limit_is_waited_out(self):
        client = self.client()
        limit = refusal.Refusal('LIMIT_EXCEEDED', 'too many handshakes')
        answers = [limit, limit, 'session']

        def establish(*args):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        client._establish = establish
        slept = []
        clock = types.SimpleNamespace(monotonic=lambda: 0.0,
                                      sleep=slept.append)
        with mock.patch.object(node, 'time', clock):
            self.assertEqual('session', client.establish('i', 'p', 1))
            self.assertEqual(2, len(slept))
            answers[:] = [limit]
            client._options.establish_timeout = 0
            self.assertRaises(refusal.Refusal, client.establish, 'i', 'p', 1)


class OnNativeThreads(Served):
    """What runs under eventlet, if Nova is on it, runs here without."""

    def run_native(self, *args):
        done = subprocess.run(
            [sys.executable, '-m', 'nova_safeconduct.tests.native',
             'unix:' + self.socket] + list(args),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=60)
        self.assertEqual(0, done.returncode, done.stdout)
        return done.stdout

    def test_calls_and_forks_do_not_wait_for_each_other(self):
        self.serve(0.05)
        self.assertIn('calls answered, all forks made',
                      self.run_native('forks', '60'))

    def test_calls_that_end_by_their_deadline_keep_no_fork(self):
        self.serve(30)
        self.assertIn('calls refused, all forks made',
                      self.run_native('forks', '0.2'))

    def test_a_killed_child_is_replaced(self):
        self.serve(0)
        self.assertIn('one refused, then answered',
                      self.run_native('killed', '60'))

    def test_the_child_ends_with_its_parent(self):
        self.serve(0)
        child = int(self.run_native('orphan', '60').split()[-1])
        for _ in range(600):
            try:
                os.kill(child, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        self.fail('process %d lives on' % child)


class FakeError(grpc.RpcError):

    def __init__(self, code, details, metadata=()):
        self._all = code, details, metadata

    def code(self):
        return self._all[0]

    def details(self):
        return self._all[1]

    def trailing_metadata(self):
        return self._all[2]


class FromRPC(unittest.TestCase):

    def error(self, domain, reason='NO_SECRET', **metadata):
        status = status_pb2.Status(code=5, message='m')
        detail = status.details.add()
        detail.type_url = 'type.googleapis.com/google.rpc.ErrorInfo'
        detail.value = status_pb2.ErrorInfo(
            reason=reason, domain=domain,
            metadata=metadata).SerializeToString()
        return FakeError(grpc.StatusCode.NOT_FOUND, 'm', (
            ('other', 'x'),
            ('grpc-status-details-bin', status.SerializeToString())))

    def test_a_typed_refusal_says_all_it_has(self):
        got = refusal.from_rpc_error(self.error(
            'safeconduct.dev', message='it is not here.', item='i',
            found='f', expected='e', remedy='look for it'), 'unix:x')
        self.assertEqual('NO_SECRET', got.reason)
        self.assertEqual('NO_SECRET: it is not here (i); found f, expected '
                         'e. Look for it', str(got))

    def test_another_domains_detail_is_not_ours(self):
        got = refusal.from_rpc_error(self.error('example.org'), 'unix:x')
        self.assertEqual('INTERNAL', got.reason)

    def test_no_metadata_at_all(self):
        got = refusal.from_rpc_error(
            FakeError(grpc.StatusCode.UNAVAILABLE, 'gone', None), 'unix:x')
        self.assertTrue(got.unavailable)
