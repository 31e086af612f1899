"""The learner: a worker's other duty, done in slices whenever no job waits.

It sees to it that the database has word vectors of the model, by the recipe of this version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
from pgvector import Vector

from embedder import word_vectors
from embedder.database import Session
from embedder.logs import fields
from embedder.models import EmbeddingModel
from embedder.word_vectors import WordVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)

# Between looks whether there is something to learn.
LOOK_SECONDS: Final = 60.0
# After a model has failed over it.
RETRY_SECONDS: Final = 600.0
# How often the share that is done is told, for rag.status().
TELL_SECONDS: Final = 5.0
# How often it is logged.
LOG_SECONDS: Final = 30.0
# Words handed in at a time: about 1 MB.
BATCH: Final = 500


class Learner:
    """Learns a model's word vectors step by step.

    `prepare` and `hand_in` talk to the database, `compute` runs the model: a worker calls that one
    in the model's thread.
    """

    def __init__(
        self,
        session: Session,
        model: EmbeddingModel,
        *,
        worker: str,
        texts: int,
        lease_seconds: float,
    ) -> None:
        self.query_prefix = ""
        self._session = session
        self._model = model
        self._worker = worker
        self._texts = texts
        self._lease = timedelta(seconds=lease_seconds)
        self._tell_every = min(TELL_SECONDS, lease_seconds / 3)
        self._set_id: int | None = None
        self._steps: Generator[float, None, WordVectors] | None = None
        self._learned: WordVectors | None = None
        self._progress = 0.0
        self._handed_in = 0
        self._started_at = 0.0
        self._told_at = 0.0
        self._logged_at = 0.0
        self._look_at = 0.0

    @property
    def is_learning(self) -> bool:
        """Is work under way?"""
        return self._set_id is not None

    def prepare(self) -> bool:
        """True if there is a step to do: work is under way, or has just been taken on."""
        if self._set_id is not None:
            return True
        if not self._texts or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_SECONDS
        given = word_vectors.normalised(self._model.vocabulary())
        vocabulary = given or word_vectors.default_vocabulary()
        parameters = {
            "worker": self._worker,
            "model": self._model.name,
            "recipe": word_vectors.recipe(vocabulary, self._texts),
            "lease": self._lease,
        }
        self._set_id = self._session.value("begin_word_vectors", parameters)
        if self._set_id is None:
            return False
        LOG.info("learning word vectors", extra=fields(words=len(vocabulary), texts=self._texts))
        self._steps = word_vectors.learn(vocabulary, self._encode, self._texts)
        self._started_at = self._told_at = self._logged_at = time.monotonic()
        return True

    def compute(self) -> None:
        """Do a slice of the computing; what goes wrong is logged, and tried again later."""
        if self._steps is None:
            return
        try:
            self._progress = next(self._steps)
        except StopIteration as end:
            self._learned = end.value
            self._steps = None
        except Exception as error:  # noqa: BLE001 (jobs go on, whatever a model raises here)
            LOG.warning("cannot learn word vectors", extra=fields(error=type(error).__name__))
            self._steps = None

    def hand_in(self) -> None:
        """Tell how far it is, and bring what is finished."""
        if self._set_id is None:
            return
        if self._learned is not None:
            self._bring(self._set_id, self._learned)
        elif self._steps is None:
            self.give_up()
            self._look_at = time.monotonic() + RETRY_SECONDS
        else:
            self.keep()

    def keep(self) -> None:
        """Heartbeat, now and then."""
        if self._set_id is None or time.monotonic() - self._told_at < self._tell_every:
            return
        self._told_at = time.monotonic()
        if self._told_at - self._logged_at >= LOG_SECONDS:
            self._logged_at = self._told_at
            percent = int(100 * self._progress)
            LOG.info("still learning word vectors", extra=fields(percent=percent))
        if not self._tell(self._lease):
            LOG.warning("another worker learns the word vectors now")
            self._forget()

    def give_up(self) -> None:
        """Let another worker begin anew at once."""
        if self._set_id is not None:
            self._tell(timedelta(milliseconds=1))
            self._forget()

    def _tell(self, lease: timedelta) -> bool:
        parameters = {"set_id": self._set_id, "progress": self._progress, "lease": lease}
        return self._session.value("extend_word_vectors", parameters)

    def _forget(self) -> None:
        self._set_id = self._steps = self._learned = None
        self._progress = 0.0
        self._handed_in = 0

    def _bring(self, set_id: int, learned: WordVectors) -> None:
        """Hand in one batch, or put all into use when all are there."""
        batch = slice(self._handed_in, self._handed_in + BATCH)
        words = learned.words[batch]
        if words:
            parameters = {
                "set_id": set_id,
                "words": [*words],
                "embeddings": [Vector(vector) for vector in learned.vectors[batch]],
            }
            self._handed_in += len(words)
            is_ours = self._session.value("put_word_vectors", parameters) > 0
        else:
            is_ours = self._session.value("activate_word_vectors", {"set_id": set_id})
        if not is_ours:
            LOG.warning("another worker learns the word vectors now")
        elif words:
            self.keep()
            return
        else:
            seconds = time.monotonic() - self._started_at
            LOG.info(
                "word vectors are in use",
                extra=fields(words=len(learned.words), seconds=seconds),
            )
        self._forget()

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = self._model.encode_documents([self.query_prefix + text for text in texts])
        if vectors.shape != (len(texts), self._model.dimensions) or not np.isfinite(vectors).all():
            raise ValueError("the model gave no vectors")
        return vectors
