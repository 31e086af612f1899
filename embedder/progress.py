"""`python -m embedder wait`: until everything has its embedding."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TextIO

from embedder.config import Settings
from embedder.database import Session
from embedder.stop import Stop

if TYPE_CHECKING:
    import argparse

    from embedder.commands import Subparsers

POLL_SECONDS: Final = 0.5
# A line for every look would fill a log file.
LINE_SECONDS: Final = 10.0
# Nobody at work for so long: say so, it may be a forgotten `make embedder`.
LONELY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """rag.progress(), summed over all tenants and models that the role may see."""

    embedded: int
    waiting: int
    leased: int
    failed: int

    @property
    def left(self) -> int:
        """Passages that still get their embedding."""
        return self.waiting + self.leased


class Line:
    """One line that is written over on a terminal, and repeated now and then elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._written_at = -LINE_SECONDS
        self._pending = ""

    def show(self, text: str) -> None:
        """Show the newest state."""
        self._pending = text
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{text}")
            self._stream.flush()
        elif time.monotonic() - self._written_at >= LINE_SECONDS:
            self._write()

    def end(self) -> None:
        """Leave the last state standing."""
        if self._is_terminal:
            self._stream.write("\n")
        elif self._pending:
            self._write()

    def _write(self) -> None:
        self._stream.write(f"{self._pending}\n")
        self._stream.flush()
        self._written_at = time.monotonic()
        self._pending = ""


def wait(
    database_url: str, *, timeout: float | None = None, stream: TextIO | None = None
) -> Progress:
    """Wait until nothing waits for an embedding, at most `timeout` seconds; the last state.

    Shows one progress line on `stream` (default: standard error). Raises UnreachableError and
    NotMigratedError.
    """
    session = Session(database_url, Stop(), name="ragdb wait")
    line = Line(stream or sys.stderr)
    session.open()
    try:
        started = time.monotonic()
        at_work = started
        first = last = session.rows("progress", {}, Progress)[0]
        while True:
            now = time.monotonic()
            progress = session.rows("progress", {}, Progress)[0]
            if progress.leased or progress.embedded > last.embedded:
                at_work = now
            last = progress
            done = progress.embedded - first.embedded
            line.show(_sentence(progress, done / max(now - started, 1e-9), now - at_work))
            if not progress.left or (timeout is not None and now - started >= timeout):
                line.end()
                return progress
            time.sleep(POLL_SECONDS)
    finally:
        session.close()


def _sentence(progress: Progress, rate: float, lonely: float) -> str:
    noun = "passage" if progress.embedded == 1 else "passages"
    words = [f"{progress.embedded:,} {noun} embedded"]
    if progress.left:
        words.append(f"{progress.left:,} left")
        if rate > 0:
            left = timedelta(seconds=round(progress.left / rate))
            words.append(f"{rate:.1f} a second, about {left} to go")
        elif lonely >= LONELY_SECONDS:
            words.append("nobody is at work: is `python -m embedder run` running?")
    if progress.failed:
        words.append(f"{progress.failed:,} failed (see rag.failures())")
    return ", ".join(words)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `wait`."""
    parser = subparsers.add_parser(
        "wait",
        help="wait until everything is embedded",
        description="Wait until nothing waits for an embedding. Exit code 0: everything has one, "
        "1: the time was over or passages failed.",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="give up after so long (default: never)"
    )
    parser.set_defaults(func=_wait)


def _wait(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    progress = wait(settings.database_url, timeout=arguments.timeout)
    if progress.left:
        print(
            f"The time is up, {progress.left:,} left. Is `python -m embedder run` running? "
            "rag.status() tells what is paused.",
            file=sys.stderr,
        )
    return 1 if progress.left or progress.failed else 0
