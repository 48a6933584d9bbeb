"""gRPC in a process of its own, for a nova-compute on native threads.

gRPC's core does not bear forks: 1.51, as newer Debians build it, waits for
ever before one, with Python's own lock held, or ends the process; no setting
keeps it from that. nova-compute forks for each command that it runs. So a
child makes the calls, and forks nothing. It ends with its parent.

Run as a program, this is the child.
"""

import contextlib
import itertools
from multiprocessing import connection
import os
import resource
import socket
import subprocess
import sys
import threading

import grpc
import grpc.experimental

OPTIONS = (
    # Streams are read in the thread that calls: otherwise gRPC starts another
    # with what eventlet has made of threading, and waits for it for ever.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    # Nothing is shared with another channel.
    ('grpc.use_local_subchannel_pool', 1),
    ('grpc.enable_retries', 0),
    ('grpc.max_receive_message_length', 64 << 20),
    ('grpc.enable_http_proxy', 0),
)

# Seconds after a call's deadline until the child is no longer waited for.
PATIENCE = 2


class CallFailed(grpc.RpcError):
    """As gRPC's own errors."""

    def __init__(self, code, details, trailing=()):
        super().__init__(code, details)
        self._code = grpc.StatusCode[code]
        self._details = details
        self._trailing = trailing

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailing


class _Reply:

    def __init__(self):
        self.there = threading.Event()
        self.messages = None
        self.error = None

    def set(self, messages, error):
        self.messages, self.error = messages, error
        self.there.set()


class Child:
    """The process that makes the calls: started by the first, and again by
    the next if it has ended.
    """

    def __init__(self, endpoint):
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting = {}
        self._to = None

    def call(self, path, request, timeout, metadata, stream):
        """The serialized answers; CallFailed."""
        number, reply = next(self._numbers), _Reply()
        with self._lock:
            if self._to is None:
                self._start()
            self._waiting[number] = reply
            try:
                self._to.send((number, path, request, timeout, metadata,
                               stream))
            except OSError:
                pass  # whoever reads its answers notices as well
        if not reply.there.wait(timeout + PATIENCE):
            with self._lock:
                self._waiting.pop(number, None)
            raise CallFailed('DEADLINE_EXCEEDED', 'no answer in time')
        if reply.error is not None:
            raise CallFailed(*reply.error)
        return reply.messages

    def _start(self):
        ours, its = socket.socketpair()
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        paths = [package] + [p for p in os.environ.get(
            'PYTHONPATH', '').split(os.pathsep) if p]
        with its:
            try:
                process = subprocess.Popen(
                    [sys.executable, '-m', __name__, self._endpoint],
                    stdin=its, cwd='/', start_new_session=True,
                    env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)))
            except OSError as e:
                ours.close()
                raise CallFailed('UNAVAILABLE', 'the process that makes the '
                                 'calls does not start: %s' % e) from None
        self._to = connection.Connection(ours.detach())
        threading.Thread(target=self._read, args=(self._to, process),
                         name='safeconduct-answers', daemon=True).start()

    def _read(self, answers, process):
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, messages, error = answers.recv()
                with self._lock:
                    reply = self._waiting.pop(number, None)
                if reply is not None:
                    reply.set(messages, error)
        with self._lock:
            self._to = None
            left, self._waiting = self._waiting, {}
            answers.close()
        process.kill()
        process.wait()
        for reply in left.values():
            reply.set(None, ('UNAVAILABLE', 'the process that makes the '
                             'calls has ended'))


class Channel:
    """What generated stubs need of a channel."""

    def __init__(self, child):
        self._child = child

    def close(self):
        pass

    def unary_unary(self, path, request_serializer, response_deserializer,
                    **_):
        def call(request, timeout, metadata=()):
            answers = self._child.call(path, request_serializer(request),
                                       timeout, metadata, False)
            return response_deserializer(answers[0])
        return call

    def unary_stream(self, path, request_serializer, response_deserializer,
                     **_):
        def call(request, timeout, metadata=()):
            answers = self._child.call(path, request_serializer(request),
                                       timeout, metadata, True)
            return [response_deserializer(a) for a in answers]
        return call

    def stream_unary(self, *_, **__):
        """Nobody here calls such a method."""

    stream_stream = stream_unary


def _serve(endpoint, send, number, path, request, timeout, metadata, stream):
    messages, error = None, None
    try:
        with contextlib.closing(grpc.insecure_channel(
                endpoint, options=OPTIONS)) as channel:
            if stream:
                messages = list(channel.unary_stream(path)(
                    request, timeout=timeout, metadata=metadata))
            else:
                messages = [channel.unary_unary(path)(
                    request, timeout=timeout, metadata=metadata)]
    except grpc.RpcError as e:
        error = (e.code().name, e.details(),
                 tuple((k, v) for k, v in e.trailing_metadata() or ()))
    send((number, messages, error))


def main(endpoint):
    # What passes through here is in no core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = connection.Connection(sys.stdin.fileno())
    lock = threading.Lock()

    def send(answer):
        with lock, contextlib.suppress(OSError):
            parent.send(answer)
    with contextlib.suppress(EOFError, OSError):
        while True:
            # As many at once as the parent lets there be.
            threading.Thread(target=_serve, daemon=True, args=(
                endpoint, send) + parent.recv()).start()
    # No thread is waited for: nobody is there to hear.
    os._exit(0)


if __name__ == '__main__':
    main(sys.argv[1])
