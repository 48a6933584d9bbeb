"""Live migrations' worth of calls, at once, under eventlet as nova-compute
has it, against two node services; and whether other greenthreads ran
meanwhile. test/nova runs it against real safeconductd.

    python3 -m nova_safeconduct.tests.load [--direct] SOURCE DESTINATION

SOURCE and DESTINATION are HOST=SOCKET. It prints figures as JSON, and exits 1
if a call failed or kept other greenthreads from running. With --direct the
calls are made as if there were no eventlet, which keeps them from it.
"""

import eventlet  # noqa: I100
eventlet.monkey_patch()  # noqa: E402

import json
import statistics
import sys
import time
import types
import uuid

from nova_safeconduct import node
from nova_safeconduct import threads

COUNT = 20


class Heart:
    """Another greenthread: it counts its turns."""

    def __init__(self):
        self.beats = 0
        self.worst = 0.0

    def run(self):
        last = time.monotonic()
        while True:
            eventlet.sleep(0)
            now = time.monotonic()
            self.worst = max(self.worst, now - last)
            self.beats += 1
            last = now


class Watched:
    """A Node whose calls note how often the heart beat meanwhile."""

    def __init__(self, client, heart, notes):
        self._client, self._heart, self._notes = client, heart, notes

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def call(*args, **kwargs):
            beats, begun = self._heart.beats, time.monotonic()
            try:
                return method(*args, **kwargs)
            finally:
                self._notes.append((name, self._heart.beats - beats,
                                    time.monotonic() - begun))
        return call


def options(socket):
    return types.SimpleNamespace(
        endpoint='unix:' + socket, request_timeout=60, establish_timeout=120,
        arm_timeout=60, max_calls=8)


def migrate(src, dst, names):
    source, destination = names
    instance, secret = str(uuid.uuid4()), str(uuid.uuid4())
    src.escrow(instance, b'passphrase', secret)
    dst.establish(instance, source, node.DESTINATION)
    accepted = src.sessions(instance, node.SOURCE)[0]
    src.status()
    incoming = dst.sessions(instance, node.DESTINATION)[0]
    released = dst.release(instance, secret, incoming.session_id)
    src.arm(instance, destination, str(uuid.uuid4()), return_path=True,
            without_vtpm=True)
    done = src.commit(accepted.session_id)
    forgotten = dst.forget(instance)
    return (released == b'passphrase' and forgotten and
            done.state == node.COMMITTED)


def main():
    direct = sys.argv[1] == '--direct'
    if direct:
        del sys.argv[1]
    (source, src), (destination, dst) = (
        a.split('=', 1) for a in sys.argv[1:3])
    heart, notes = Heart(), []
    nodes = [Watched(node.Node(options(s)), heart, notes)
             for s in (src, dst)]
    if direct:
        # From here on, so that no child makes the calls.
        threads._eventlet = lambda: None
    eventlet.spawn(heart.run)
    begun = time.monotonic()
    pool = eventlet.GreenPool(COUNT)
    good = sum(pool.imap(lambda _: migrate(*nodes, (source, destination)),
                         range(COUNT)))
    elapsed = time.monotonic() - begun
    still = [n for n in notes if n[1] == 0]
    print(json.dumps({
        'migrations': COUNT, 'good': good, 'calls': len(notes),
        'calls_without_a_beat': len(still),
        'beats': heart.beats, 'seconds': round(elapsed, 3),
        'median_call_ms': round(
            1000 * statistics.median(n[2] for n in notes), 2),
        'worst_stall_ms': round(1000 * heart.worst, 2)}, indent=1))
    return 0 if good == COUNT and not still else 1


if __name__ == '__main__':
    sys.exit(main())
