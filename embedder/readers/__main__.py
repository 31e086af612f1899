"""The process that reads files: requests come on standard input, documents go to standard output.

A frame is its length in 4 bytes, then JSON. A request is {"path", "source"} or {"name", "source",
"bytes"}, with so many bytes behind it; an answer is {"content", "title", "metadata"} or
{"refused", "later"}. The first frame is the limits, the answer to it {}.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from embedder.readers import Document, Limits, UnreadableError, read_bytes, read_document
from embedder.readers.errors import UnavailableError

# A clean "took too long" comes from the alarm; the parent never waits longer than that.
_ALARM_MARGIN = 1.0
_WRITTEN_BYTES = 256_000_000


def main() -> int:
    """Read what is asked for until standard input ends."""
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = receive(sys.stdin.buffer)
    if first is None:
        return 0
    limits = Limits(**first)
    _restrict(limits)
    send(answers, {})
    while (request := receive(sys.stdin.buffer)) is not None:
        data = sys.stdin.buffer.read(request["bytes"]) if "bytes" in request else b""
        # The default action ends the process, even in the midst of a library's C code.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + _ALARM_MARGIN)
        answer = _answer(request, data, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(answers, answer)
    return 0


def _restrict(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Enough for the temporary files of libraries, too little to fill a disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_WRITTEN_BYTES, _WRITTEN_BYTES))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))


def _answer(request: dict[str, Any], data: bytes, limits: Limits) -> dict[str, Any]:
    try:
        if "path" in request:
            path = Path(os.fsdecode(bytes.fromhex(request["path"])))
            document = read_document(path, request["source"], limits)
        else:
            document = read_bytes(request["name"], data, request["source"], limits)
    except UnreadableError as error:
        return {"refused": str(error), "later": isinstance(error, UnavailableError)}
    return answer_of(document)


def answer_of(document: Document) -> dict[str, Any]:
    """A document as an answer."""
    return {
        "content": document.content,
        "title": document.title,
        "metadata": document.metadata,
    }


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """The next frame, None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return json.loads(stream.read(int.from_bytes(head, "big")))


def send(stream: BinaryIO, value: dict[str, Any]) -> None:
    """Write a frame."""
    body = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
