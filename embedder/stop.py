"""The wish to stop: set by the first SIGINT or SIGTERM, looked at wherever the embedder waits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

# A signal handler cannot wake a wait of psycopg or of a lock, so every wait is cut into slices of
# this length: four wake-ups a second while idle, and a Ctrl-C is noticed at once for a person.
SLICE_SECONDS = 0.25


class Stop:
    """A flag, deliberately without locks.

    `threading.Event.set` in a signal handler can deadlock with a wait in the main thread.
    """

    requested: bool

    def __init__(self) -> None:
        self.requested = False
        # Called with every slice of a wait: whoever waits is alive.
        self.on_slice: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Take SIGINT and SIGTERM: the first asks for a stop, the second ends the process."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or until a stop is requested."""
        deadline = time.monotonic() + seconds
        while not self.requested and (left := deadline - time.monotonic()) > 0:
            self.on_slice()
            time.sleep(min(left, SLICE_SECONDS))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
