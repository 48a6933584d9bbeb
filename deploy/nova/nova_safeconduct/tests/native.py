"""The client in a process without eventlet, whatever Nova runs on.

    python3 -m nova_safeconduct.tests.native ENDPOINT WHAT TIMEOUT
"""

import os
import signal
import subprocess
import sys
import threading
import types

from nova_safeconduct import node
from nova_safeconduct import refusal

CALLERS, FORKERS, EACH = 4, 3, 25


def forks(client):
    """Calls and forks at once, as many as would hang gRPC's core."""
    answered, refused = [], []

    def call():
        for _ in range(EACH):
            try:
                answered.append(client.status())
            except refusal.Refusal as e:
                refused.append(e)

    def fork():
        for _ in range(4 * EACH):
            # With a function to run before exec, Python forks.
            subprocess.run(['true'], preexec_fn=lambda: None, check=True)
    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    threads += [threading.Thread(target=fork) for _ in range(FORKERS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if len(answered) == CALLERS * EACH:
        return 'calls answered, all forks made'
    if len(refused) == CALLERS * EACH:
        return 'calls refused, all forks made'
    raise AssertionError(refused[0])


def killed(client):
    client.status()
    os.kill(children()[0], signal.SIGKILL)
    refused = 0
    while True:
        try:
            client.status()
        except refusal.Refusal:
            refused += 1
        else:
            break
    # None, if its end was noticed before the call.
    assert refused <= 1, refused
    return 'one refused, then answered'


def orphan(client):
    client.status()
    return str(children()[0])


def children():
    with open('/proc/self/task/%d/children' % os.getpid()) as listed:
        return [int(pid) for pid in listed.read().split()]


if __name__ == '__main__':
    endpoint, what, timeout = sys.argv[1:]
    seconds = float(timeout)
    print({'forks': forks, 'killed': killed, 'orphan': orphan}[what](
        node.Node(types.SimpleNamespace(
            endpoint=endpoint, request_timeout=seconds,
            establish_timeout=seconds, arm_timeout=seconds, max_calls=8))))
