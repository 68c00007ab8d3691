"""`run --workers N`: a parent that keeps N processes running, each a member of its groups.

A worker that dies is started again with backoff. When that does not help, the parent stops the others softly and ends
non-zero. SIGTERM and SIGINT are passed on, and the parent waits until every worker has drained.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

__all__ = ["run_workers"]

logger = logging.getLogger("deimos_async.workers")

_RESTARTS = 5
"""Deaths in a row, each within `_SOUND` seconds of its start, after which the parent gives up."""
_SOUND = 30.0
"""Seconds after which a worker counts as having worked."""
_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0)


class _Worker:
    def __init__(self, index: int, command: Sequence[str]) -> None:
        self.index = index
        self._command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.deaths = 0
        self.due = 0.0

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, env={**os.environ, "DEIMOS_WORKER": str(self.index)})  # noqa: S603  # our own command line
        self.started = time.monotonic()
        logger.info("worker %d started as process %d", self.index, self.process.pid)


def run_workers(arguments: Sequence[str], count: int) -> int:
    """Run `deimos run` with these arguments in `count` processes; returns the exit status of the whole."""
    command = [sys.executable, "-m", "deimos_async", "run", *arguments]
    workers = [_Worker(index, command) for index in range(count)]
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    # SIGCHLD has no work of its own: being handled, it ends the wait below when a worker dies.
    handled = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    status = 0
    try:
        for worker in workers:
            _unblocked_start(worker, handled)
        while not stopping and status == 0:
            received = signal.sigtimedwait(handled, _next_wait(workers))
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                stopping = True
                break
            for worker in workers:
                status = status or _look_after(worker, handled)
    finally:
        status = _stop_all(workers) or status
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    return status


def _unblocked_start(worker: _Worker, handled: set[signal.Signals]) -> None:
    # A child inherits the mask of blocked signals: it must be able to receive SIGTERM.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
    try:
        worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)


def _next_wait(workers: Sequence[_Worker]) -> float:
    now = time.monotonic()
    due = [worker.due - now for worker in workers if worker.process is None]
    return max(0.0, min([1.0, *due]))


def _look_after(worker: _Worker, handled: set[signal.Signals]) -> int:
    """Start again what has died; returns non-zero when that does not help."""
    now = time.monotonic()
    if worker.process is None:
        if now >= worker.due:
            _unblocked_start(worker, handled)
        return 0
    code = worker.process.poll()
    if code is None:
        return 0
    worker.process = None
    worker.deaths = 1 if now - worker.started > _SOUND else worker.deaths + 1
    if code == 2:
        logger.error("worker %d found mistakes in the application or its settings", worker.index)
        return 2
    if worker.deaths > _RESTARTS:
        logger.error("worker %d died %d times in a row; giving up", worker.index, worker.deaths)
        return 1
    delay = _BACKOFF[min(worker.deaths, len(_BACKOFF)) - 1]
    logger.error("worker %d ended with status %d, started again in %.1f s", worker.index, code, delay)
    worker.due = now + delay
    return 0


def _stop_all(workers: Sequence[_Worker]) -> int:
    """SIGTERM to all, and wait: each has its own shutdown timeout. Returns the first status that is not 0."""
    running = [worker.process for worker in workers if worker.process is not None]
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    # A worker that our signal found before it had handlers of its own has stopped as asked, too.
    codes = [0 if (code := process.wait()) == -signal.SIGTERM else code for process in running]
    return next((1 if code < 0 else code for code in codes if code), 0)
