"""Blocking calls beside nova-compute's own scheduling.

nova-compute runs on eventlet's greenthreads, or, from Nova 33 on, on native
threads if it is told to. gRPC's core blocks in C: called in a greenthread it
stops all of them. Under eventlet a call therefore runs in eventlet's pool of
native threads, as calls of libvirt do.
"""

import contextlib
import sys
import threading
import time


def _eventlet():
    """eventlet, if it has patched this process; else None.

    It is looked for among what is loaded: where Nova runs on native threads,
    importing it fails.
    """
    eventlet = sys.modules.get('eventlet')
    if eventlet is None:
        return None
    patcher = sys.modules.get('eventlet.patcher')
    if patcher is None or not patcher.is_monkey_patched('thread'):
        return None
    return eventlet


def green():
    """Whether this process runs on eventlet's greenthreads."""
    return _eventlet() is not None


def start(name, function, *args):
    """Runs function beside the caller; a greenthread under eventlet."""
    threading.Thread(target=function, args=args, name='safeconduct-' + name,
                     daemon=True).start()


class Lane:
    """Runs blocking functions, a bounded number at once."""

    def __init__(self, width):
        # Green under eventlet, for threading is patched then.
        self._slots = threading.BoundedSemaphore(width)

    @contextlib.contextmanager
    def _slot(self, deadline):
        wait = max(0, deadline - time.monotonic())
        if not self._slots.acquire(timeout=wait):
            raise TimeoutError
        try:
            yield
        finally:
            self._slots.release()

    def run(self, timeout, function):
        """function(seconds left) off the hub; TimeoutError if there is no
        turn for it in time.
        """
        deadline = time.monotonic() + timeout
        with self._slot(deadline):
            # At least a moment: the call itself says that it is too late.
            left = max(0.001, deadline - time.monotonic())
            if _eventlet() is None:
                return function(left)
            from eventlet import tpool
            return tpool.execute(function, left)
