"""A reader in a process of its own, so that a hostile file costs a process and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from embedder.readers import Document, Limits, UnreadableError
from embedder.readers.errors import UnavailableError

_PACKAGES: Final = Path(__file__).resolve().parent.parent.parent
# As JSON a character of control takes six bytes.
_ANSWER_BYTES: Final = 400_000_000
# What the reader gets of our environment: neither passwords nor keys.
_ENVIRONMENT: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TMPDIR")


class ReaderProcess:
    """Reads files one after the other under limits of size, time and memory.

    The process starts with the first file and anew after one that it did not survive. Its memory
    is limited by RLIMIT_AS (Linux), its time by an alarm, and it fills no disk. Not for
    concurrent use.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The process that reads, if it was started."""
        return self._process.pid if self._process else None

    def read_path(self, path: Path, source: str) -> Document:
        """`read_document` over there; raises UnreadableError."""
        return self._read({"path": os.fsencode(path).hex(), "source": source}, b"")

    def read_bytes(self, name: str, data: bytes, source: str) -> Document:
        """`read_bytes` over there; raises UnreadableError."""
        if len(data) > self.limits.file_bytes:
            size, limit = len(data) / 1_000_000, self.limits.file_bytes / 1_000_000
            raise UnreadableError(f"{size:.0f} MB; the limit is {limit:g} MB")
        return self._read({"name": name, "source": source, "bytes": len(data)}, data)

    def close(self) -> None:
        """End the process, whatever it is doing; also from another thread, and for good."""
        self._is_closed = True
        self.end()

    def end(self) -> None:
        """End the process, whatever it is doing; the next file starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close_pipes(process)

    def _read(self, request: dict[str, Any], data: bytes) -> Document:
        started = time.monotonic()
        try:
            process = self._process or self._start()
            self._send(process, request, data)
            answer = self._receive(process)
        except (OSError, EOFError, ValueError) as error:
            raise self._last_words(time.monotonic() - started) from error
        if "refused" in answer:
            if "of memory" in answer["refused"]:
                # What is left of it may be in pieces.
                self.end()
            kind = UnavailableError if answer.get("later") else UnreadableError
            raise kind(answer["refused"])
        return Document(answer["content"], answer["title"], answer["metadata"])

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-m", "embedder.readers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment
            | {
                "PYTHONPATH": str(_PACKAGES),
                "PYTHONDONTWRITEBYTECODE": "1",
                # Each thread of a library would reserve memory that it never uses.
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
            },
            # Ctrl-C is for the parent, which ends its readers itself.
            start_new_session=True,
        )
        self._process = process
        if self._is_closed:
            self.end()
            raise EOFError
        self._send(process, asdict(self.limits), b"")
        self._receive(process)
        return process

    def _send(self, process: subprocess.Popen[bytes], value: dict[str, Any], data: bytes) -> None:
        assert process.stdin is not None
        body = json.dumps(value).encode()
        process.stdin.write(len(body).to_bytes(4, "big") + body)
        process.stdin.write(data)
        process.stdin.flush()

    def _receive(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        head = process.stdout.read(4)
        length = int.from_bytes(head, "big")
        if len(head) < 4 or length > _ANSWER_BYTES:
            raise EOFError
        body = process.stdout.read(length)
        if len(body) < length:
            raise EOFError
        return json.loads(body)

    def _last_words(self, seconds: float) -> UnreadableError:
        """Why there is no answer; ends the process."""
        process, self._process = self._process, None
        if process is None:
            return UnavailableError("the reader cannot be started")
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        _close_pipes(process)
        if code == -signal.SIGALRM or seconds >= self.limits.seconds:
            return UnreadableError(f"reading it takes more than {self.limits.seconds:g} s")
        if code < 0:
            return UnavailableError(f"the reader died of it ({signal.Signals(-code).name})")
        return UnavailableError(f"the reader ended with code {code}")


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:
            # What could not be written any more; the pipe is closed all the same.
            continue
