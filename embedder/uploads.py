"""Files handed over by rag.upload: claimed, read in a process of their own, and put.

A lane beside the embedding, in a thread and over a connection of its own: reading a file takes as
long as embedding its passages, and neither waits for the other.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from embedder.database import Session, is_transient, reason
from embedder.errors import RagdbError, StoppedError
from embedder.logs import fields
from embedder.readers import Document, UnreadableError
from embedder.readers.errors import UnavailableError
from embedder.readers.languages import CONFIGURATIONS
from embedder.readers.process import ReaderProcess
from embedder.stop import SLICE_SECONDS, Stop

if TYPE_CHECKING:
    from embedder.config import Settings

LOG = logging.getLogger(__name__)

# After an error that no repetition cures at once, such as a schema without rag.upload.
_TROUBLE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A row of rag.claim_uploads."""

    lease_token: UUID
    upload_id: int
    filename: str
    uri: str
    body: bytes
    attempts: int


class UploadLane:
    """Works off rag.uploads.

    `start` does so until `close`, in a thread; `drain` does it here and now, until nothing is due.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._name = name
        self._poll_seconds = settings.poll_seconds
        self._lease = timedelta(seconds=settings.lease_seconds)
        # Of its own: what waits here does not prove that the worker is alive.
        self._stop = Stop()
        self._session = Session(settings.database_url, self._stop, name="ragdb uploads", quiet=True)
        self._reader = ReaderProcess(settings.files)
        self._hands = ThreadPoolExecutor(max_workers=1, thread_name_prefix="file")
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def start(self) -> None:
        """Begin to work in a thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once, not when the next look is due."""
        self._woken.set()

    def drain(self, stop: Stop) -> None:
        """Work until nothing is due, or a stop is requested. Raises UnreachableError."""
        self._session.open()
        while not stop.requested and self._work():
            pass

    def close(self) -> None:
        """Stop, and give back what is being read; it is read anew by another."""
        self._stop.requested = True
        self._woken.set()
        self._reader.close()
        if self._thread.is_alive():
            self._thread.join(10)
        self._hands.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _run(self) -> None:
        while not self._stop.requested:
            seconds = self._poll_seconds
            try:
                if self._work():
                    continue
            except StoppedError:
                return
            except (psycopg.Error, RagdbError) as error:
                LOG.warning("cannot read uploads", extra=fields(reason=reason(error)))
                if not (isinstance(error, psycopg.Error) and is_transient(error)):
                    seconds = _TROUBLE_SECONDS
            self._woken.wait(seconds)
            self._woken.clear()

    def _work(self) -> bool:
        """Claim an upload, read it and put it; False if none was due."""
        claim = {"worker": self._name, "lease": self._lease}
        uploads = self._session.rows("claim_uploads", claim, Upload)
        for upload in uploads:
            started = time.monotonic()
            outcome = self._finish(upload)
            LOG.info(
                "read an upload",
                extra=fields(
                    upload=upload.upload_id,
                    outcome=outcome,
                    bytes=len(upload.body),
                    seconds=time.monotonic() - started,
                ),
            )
        return bool(uploads)

    def _finish(self, upload: Upload) -> str:
        """Read an upload and put it; what became of it."""
        token = {"lease_token": upload.lease_token}
        future = self._hands.submit(
            self._reader.read_bytes, upload.filename, upload.body, upload.uri
        )
        if not self._await(future, upload):
            # To another it went already, and what is read here is for nobody.
            self._reader.end()
            return "lost"
        try:
            document = future.result()
        except UnreadableError as error:
            if self._stop.requested:
                self._session.value("release_upload", token)
                return "given back"
            permanent = not isinstance(error, UnavailableError)
            return self._fail(upload, str(error), permanent=permanent)
        return self._put(upload, document)

    def _await(self, future: Future[Document], upload: Upload) -> bool:
        """Wait for the reader and keep the lease alive meanwhile; False if it was lost."""
        heard_at = time.monotonic()
        while not future.done():
            wait([future], timeout=SLICE_SECONDS)
            if time.monotonic() - heard_at >= self._lease.total_seconds() / 3:
                parameters = {"lease_token": upload.lease_token, "lease": self._lease}
                if not self._session.value("extend_upload", parameters):
                    return False
                heard_at = time.monotonic()
        return True

    def _put(self, upload: Upload, document: Document) -> str:
        language = CONFIGURATIONS.get(str(document.metadata.get("lang", ""))[:2])
        parameters = {
            "lease_token": upload.lease_token,
            "content": document.content,
            "title": document.title,
            "metadata": Jsonb(document.metadata),
            "language": language,
        }
        try:
            put = self._session.value("complete_upload", parameters)
        except StoppedError:
            raise
        except (psycopg.Error, RagdbError) as error:
            # The database answers and refuses: another time it would, too.
            return self._fail(upload, f"refused: {reason(error)}", permanent=True)
        return "lost" if put is None else "completed"

    def _fail(self, upload: Upload, error: str, *, permanent: bool) -> str:
        parameters = {
            "lease_token": upload.lease_token,
            "error": error,
            "permanent": permanent,
        }
        self._session.value("fail_upload", parameters)
        # The error is for those who may see the file: not for the log.
        return "failed" if permanent or upload.attempts >= 5 else "put back"
