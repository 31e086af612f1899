"""The worker: claim jobs, embed their texts, hand the vectors in.

The database keeps the rules of the queue; here is only what embedding needs: texts of one length
together, a heartbeat while the model computes, and bad texts told apart from good ones. Queries
that wait for their exact embedding go before jobs, learning word vectors comes last.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import numpy as np
from pgvector import Vector

from embedder import logs, models
from embedder.config import Settings, redacted
from embedder.database import Session, reason
from embedder.errors import ModelError, StoppedError
from embedder.learner import Learner
from embedder.listener import Listener
from embedder.logs import fields
from embedder.model_set import Load, ModelSet
from embedder.models import EmbeddingModel, ModelRow
from embedder.stop import SLICE_SECONDS, Stop

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from embedder.commands import Subparsers

LOG = logging.getLogger(__name__)

# Longest wait for the texts in the model's hands when a stop is requested.
GRACE_SECONDS: Final = 5.0
# What was embedded is handed in at least this often: that much work a crash can cost.
FLUSH_SECONDS: Final = 2.0
# Between looks at jobs that are due and were not given: another worker's claim is at work on them.
CONTENDED_SECONDS: Final = 0.05
# How often the worker asks which models the database has.
MODELS_SECONDS: Final = 1.0
# Queries embedded at once: a second's work, which a new job may have to wait for.
QUERIES_AT_ONCE: Final = 64
# Unit vectors in float32 are off by 1e-6; a model that does not normalise is off by far more.
NORM_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Job:
    """A row of rag.claim_jobs."""

    job_id: int
    lease_token: UUID
    model: str
    dimensions: int
    document_prefix: str
    content: str
    attempts: int

    @property
    def text(self) -> str:
        """What the model gets."""
        return self.document_prefix + self.content


@dataclass(frozen=True, slots=True)
class Question:
    """A row of rag.claim_queries."""

    query_id: UUID
    lease_token: UUID
    query_prefix: str
    query: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A job with its vector."""

    job_id: int
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Failed:
    """A job whose text could not be embedded.

    `error` goes into the database, where those who may read the text can see it; only `kind` goes
    into the log.
    """

    job_id: int
    kind: str
    error: str
    permanent: bool


Outcome = Embedded | Failed


@dataclass(slots=True)
class Totals:
    """What a worker has done since it started."""

    batches: int = 0
    embedded: int = 0
    stale: int = 0
    failed: int = 0
    queries: int = 0


class Lease:
    """The claim of some jobs for a while."""

    def __init__(self, session: Session, token: UUID, seconds: float) -> None:
        self.token = token
        self.every = seconds / 3
        self._session = session
        self._length = timedelta(seconds=seconds)
        self._heard_at = time.monotonic()

    def keep(self) -> bool:
        """Extend it when a third of it is over; False if it holds nothing any more."""
        if time.monotonic() - self._heard_at < self.every:
            return True
        held: int = self._session.value(
            "extend_lease", {"lease_token": self.token, "lease": self._length}
        )
        self._heard_at = time.monotonic()
        return held > 0

    def release(self) -> int:
        """Give back what is left of it; how many jobs."""
        return self._session.value("release_jobs", {"lease_token": self.token})


class Worker:
    """Works off the queue of one database, for all of its models.

    `model` is one that is loaded already; `load` loads the others when jobs for them come. `run`
    may be called once. With a `stop` of the caller's own a worker can run in a thread.
    """

    def __init__(
        self,
        settings: Settings,
        model: EmbeddingModel | None = None,
        stop: Stop | None = None,
        *,
        load: Load | None = None,
    ) -> None:
        self.totals = Totals()
        self._settings = settings
        self._models = ModelSet(load or partial(models.load, settings), model)
        self._models_at = 0.0
        self.stop = stop or Stop()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._session = Session(settings.database_url, self.stop, name="ragdb embedder")
        self._listener = Listener(settings.listen_url, self.stop, name="ragdb listener")
        # The model computes in a thread of its own, so that this one can keep the lease alive and
        # hear a signal. It is a single thread: torch takes the cores it needs itself.
        self._computer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._future: Future[Any] = Future()
        self._future.set_result(None)
        self._learners: dict[str, Learner] = {}

    @property
    def is_computing(self) -> bool:
        """True while the model works on texts that a stop has given up."""
        return not self._future.done()

    def run(self, *, once: bool = False) -> int:
        """Work until a stop is requested, or with `once` until nothing is due.

        Returns the exit code: 1 if it ran once and jobs failed, otherwise 0. Raises
        UnreachableError, NotMigratedError or ModelError when it cannot start.
        """
        try:
            self._session.open()
            first = self._first_model()
            LOG.info(
                "ready",
                extra=fields(
                    model=first.name,
                    dimensions=first.dimensions,
                    threads=self._settings.threads,
                    batch=self._settings.batch,
                    database=redacted(self._settings.database_url),
                ),
            )
            while (jobs := self._next_jobs(once=once)) and not self.stop.requested:
                self._work(jobs)
                # A share of the time even under load: else whoever loads a million passages
                # would have no word vectors before the last of them.
                self._learn()
            if jobs:
                Lease(self._session, jobs[0].lease_token, self._settings.lease_seconds).release()
            for learner in self._learners.values():
                learner.give_up()
        except StoppedError:
            LOG.warning("stopped while the database was away, leases run out by themselves")
        finally:
            self._listener.close()
            self._session.close()
            self._computer.shutdown(wait=False, cancel_futures=True)
        LOG.info(
            "stopped",
            extra=fields(
                batches=self.totals.batches,
                embedded=self.totals.embedded,
                stale=self.totals.stale,
                failed=self.totals.failed,
                queries=self.totals.queries,
                reconnects=self._session.reconnects,
            ),
        )
        return 1 if once and self.totals.failed else 0

    def _first_model(self) -> EmbeddingModel:
        """The first model that can be used, the active one if possible. Raises ModelError."""
        self._look_at_models()
        problem = ModelError("the database has no model", hint="add one by rag.add_model")
        for name in self._models.rows:
            try:
                return self._use(name)
            except ModelError as error:
                problem = error
        raise problem

    def _look_at_models(self) -> None:
        if time.monotonic() < self._models_at:
            return
        self._models_at = time.monotonic() + MODELS_SECONDS
        self._models.update(self._session.rows("models", {}, ModelRow))
        for name in [name for name in self._learners if name not in self._models.rows]:
            del self._learners[name]

    def _use(self, name: str) -> EmbeddingModel:
        """A model, whose word vectors are learned from now on. Raises ModelError."""
        model = self._models.get(name)
        if name not in self._learners:
            self._learners[name] = Learner(
                self._session,
                model,
                worker=self._name,
                texts=self._settings.word_vector_texts,
                lease_seconds=self._settings.lease_seconds,
            )
            self._learners[name].query_prefix = self._models.rows[name].query_prefix
        return model

    # Getting work

    def _next_jobs(self, *, once: bool) -> list[Job]:
        """The jobs of the next claim; none when it is time to end."""
        if jobs := self._look():
            return jobs
        if once:
            return self._drain()
        try:
            while not self.stop.requested:
                if self._learn():
                    # Who learns looks every moment and need not be woken.
                    self._listener.awake()
                    if jobs := self._look():
                        return jobs
                    continue
                # The order matters: first say that we are idle, then look, then sleep. Whatever
                # comes after the look rings. Said again each time: of several idle workers one
                # holds the doorbell, and when it goes to work the next must take it.
                self._listener.idle()
                if jobs := self._look():
                    return jobs
                self._listener.wait(self._idle_seconds())
        finally:
            self._listener.awake()
        return []

    def _drain(self) -> list[Job]:
        # A claim may give nothing although something is due: what it took was parked, or another
        # worker's claim held it.
        while not self.stop.requested:
            due = self._seconds_until_due()
            if due is not None and due <= 0:
                if jobs := self._look():
                    return jobs
                self.stop.pause(CONTENDED_SECONDS)
            elif not self._learn():
                break
        return []

    def _look(self) -> list[Job]:
        """Embed the queries that wait, then claim jobs."""
        self._look_at_models()
        for model in self._models.loaded:
            self._answer(model)
        return self._claim()

    def _claim(self) -> list[Job]:
        parameters = {
            "worker": self._name,
            "batch": self._settings.batch,
            "lease": self._lease,
            "models": self._models.usable,
        }
        return self._session.rows("claim_jobs", parameters, Job)

    def _seconds_until_due(self) -> float | None:
        return self._session.value("next_due", {"models": self._models.usable})

    def _idle_seconds(self) -> float:
        due = self._seconds_until_due()
        if due is None:
            return self._settings.poll_seconds
        return min(self._settings.poll_seconds, max(CONTENDED_SECONDS, due))

    # Doing it

    def _work(self, jobs: list[Job]) -> None:
        """Embed the jobs of one claim and hand in the results; give back what was not done."""
        lease = Lease(self._session, jobs[0].lease_token, self._settings.lease_seconds)
        started = handed_in = time.monotonic()
        before = replace(self.totals)
        outcomes: list[Outcome] = []
        done = 0
        try:
            if (model := self._model(jobs[0].model)) is None:
                return
            for batch in batches(jobs, model):
                if self.stop.requested or not self._attend(model, batch, lease):
                    break
                outcomes += self._future.result()
                done += len(batch)
                if time.monotonic() - handed_in >= FLUSH_SECONDS:
                    self._hand_in(lease, outcomes)
                    outcomes = []
                    handed_in = time.monotonic()
        finally:
            self._hand_in(lease, outcomes)
            if done < len(jobs):
                LOG.info("gave jobs back", extra=fields(jobs=lease.release()))
        self.totals.batches += 1
        seconds = time.monotonic() - started
        LOG.info(
            "embedded a batch",
            extra=fields(
                batch=len(jobs),
                embedded=self.totals.embedded - before.embedded,
                stale=self.totals.stale - before.stale,
                failed=self.totals.failed - before.failed,
                seconds=seconds,
                passages_per_second=done / seconds,
            ),
        )

    def _model(self, name: str) -> EmbeddingModel | None:
        """The model of that name; None if it cannot be used, and its jobs are for others."""
        if name not in self._models.rows:
            self._models_at = 0.0
            self._look_at_models()
        try:
            return self._use(name)
        except ModelError:
            return None

    def _attend(self, model: EmbeddingModel, batch: Sequence[Job], lease: Lease) -> bool:
        """Let the model embed a batch and keep the lease alive meanwhile.

        True when it is done; False when the lease was lost, or the model is not ready
        `GRACE_SECONDS` after a stop was requested.
        """
        self._future = self._computer.submit(embed, model, batch)

        def keep() -> bool:
            for learner in self._learners.values():
                learner.keep()
            if lease.keep():
                return True
            LOG.warning("lost a lease, another worker may have its jobs")
            return False

        return self._await(keep, min(SLICE_SECONDS, lease.every))

    def _await(self, keep: Callable[[], bool], every: float = SLICE_SECONDS) -> bool:
        """Wait for the model and call `keep` meanwhile.

        True when it is done; False when `keep` says so, or when the model is not ready
        `GRACE_SECONDS` after a stop was requested.
        """
        stop_at: float | None = None
        while not self._future.done():
            if self.stop.requested:
                stop_at = stop_at or time.monotonic() + GRACE_SECONDS
                if time.monotonic() >= stop_at:
                    return False
            if not keep():
                return False
            wait([self._future], timeout=every)
        return True

    def _answer(self, model: EmbeddingModel) -> None:
        """Embed the queries that wait, for the cache: few, short, and maybe asked again soon."""
        parameters = {
            "worker": self._name,
            "model": model.name,
            "batch": QUERIES_AT_ONCE,
            "lease": self._lease,
        }
        while questions := self._session.rows("claim_queries", parameters, Question):
            self._future = self._computer.submit(answer, model, questions)
            if not self._await(lambda: True):
                return
            answers: dict[UUID, NDArray[np.float32]] = self._future.result()
            done = {
                "lease_token": questions[0].lease_token,
                "query_ids": [*answers],
                "embeddings": [Vector(vector) for vector in answers.values()],
            }
            self.totals.queries += self._session.value("complete_queries", done)
            if self.stop.requested or len(questions) < QUERIES_AT_ONCE:
                return

    def _learn(self) -> bool:
        """Do a step of learning word vectors of some model; False if there is none to do."""
        if self.stop.requested:
            return False
        # One that is at it goes on; prepare() says so without asking the database.
        for learner in sorted(self._learners.values(), key=lambda each: not each.is_learning):
            if learner.prepare():
                self._future = self._computer.submit(learner.compute)
                if self._await(lambda: True):
                    learner.hand_in()
                return True
        return False

    def _hand_in(self, lease: Lease, outcomes: Sequence[Outcome]) -> None:
        """Complete and fail jobs of a claim."""
        embedded = [outcome for outcome in outcomes if isinstance(outcome, Embedded)]
        if embedded:
            parameters = {
                "lease_token": lease.token,
                "job_ids": [outcome.job_id for outcome in embedded],
                "embeddings": [Vector(outcome.vector) for outcome in embedded],
            }
            stored: int = self._session.value("complete_jobs", parameters)
            self.totals.embedded += stored
            self.totals.stale += len(embedded) - stored
        for failure in (outcome for outcome in outcomes if isinstance(outcome, Failed)):
            parameters = {
                "lease_token": lease.token,
                "job_ids": [failure.job_id],
                "error": failure.error,
                "permanent": failure.permanent,
            }
            self._session.value("fail_jobs", parameters)
            self.totals.failed += 1
            LOG.warning(
                "a job failed",
                extra=fields(job=failure.job_id, error=failure.kind, permanent=failure.permanent),
            )


def batches(jobs: Sequence[Job], model: EmbeddingModel) -> list[list[Job]]:
    """Jobs in batches of the model's size, the longest texts first.

    Sorted by tokens a window of 64 wastes 6 % on padding, by characters 30 %, unsorted 41 %. The
    longest come first so that what does not fit into memory shows at once.
    """
    texts = [job.text for job in jobs]
    try:
        lengths = model.count_tokens(texts)
    except Exception:  # noqa: BLE001 (a text that cannot even be counted fails when embedded)
        lengths = [len(text) for text in texts]
    order = sorted(range(len(jobs)), key=lambda i: -min(lengths[i], model.max_tokens))
    size = model.batch_size
    return [[jobs[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def embed(model: EmbeddingModel, jobs: Sequence[Job]) -> list[Outcome]:
    """Embed the texts of jobs; if the model refuses, halve them until the bad ones are alone."""
    try:
        vectors = model.encode_documents([job.text for job in jobs])
    except Exception as error:  # noqa: BLE001 (whatever a model raises belongs to one text)
        if len(jobs) > 1:
            half = len(jobs) // 2
            return embed(model, jobs[:half]) + embed(model, jobs[half:])
        return [
            Failed(
                jobs[0].job_id,
                kind=type(error).__name__,
                error=f"{type(error).__name__}: {reason(error)}",
                permanent=isinstance(error, ValueError | TypeError),
            )
        ]
    if len(vectors) != len(jobs):
        problem = f"the model gave {len(vectors)} vectors for {len(jobs)} texts"
        return [Failed(job.job_id, "WrongCount", problem, permanent=False) for job in jobs]
    return [judged(job, vector) for job, vector in zip(jobs, vectors, strict=True)]


def answer(model: EmbeddingModel, questions: Sequence[Question]) -> dict[UUID, NDArray[np.float32]]:
    """Embeddings of queries by id; one that the model refuses is left out, it is but a hint."""
    answers: dict[UUID, NDArray[np.float32]] = {}
    for question in questions:
        try:
            vector = model.encode_query(question.query_prefix + question.query)
        except Exception as error:  # noqa: BLE001 (whatever a model raises belongs to one text)
            LOG.warning("cannot embed a query", extra=fields(error=type(error).__name__))
            continue
        if flaw(vector, model.dimensions) is None:
            answers[question.query_id] = vector
    return answers


def judged(job: Job, vector: NDArray[np.float32]) -> Outcome:
    """The job with its vector, or failed for good if that is none."""
    if found := flaw(vector, job.dimensions):
        return Failed(job.job_id, found[0], found[1], permanent=True)
    return Embedded(job.job_id, vector)


def flaw(vector: NDArray[np.float32], dimensions: int) -> tuple[str, str] | None:
    """Kind and description of what is wrong with a vector, or None.

    One that is not finite or has no direction would poison every search that meets it.
    """
    if vector.shape != (dimensions,):
        problem = f"the model gave a vector of shape {vector.shape}, not {dimensions}"
        return "WrongDimensions", problem
    if not np.isfinite(vector).all():
        return "NotFinite", "the model gave a vector that is not finite"
    length = float(np.linalg.norm(vector))
    if abs(length - 1) > NORM_TOLERANCE:
        return "NotNormalised", f"the model gave a vector of length {length:.3g}, not 1"
    return None


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `run`."""
    parser = subparsers.add_parser(
        "run",
        help="embed what waits, until stopped",
        description="Embed what waits in the queue. The first Ctrl-C finishes or returns the "
        "batch, the second ends at once.",
    )
    parser.add_argument(
        "--once", action="store_true", help="end when nothing is due; exit code 1 if jobs failed"
    )
    parser.set_defaults(func=_run)


def _run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    logs.configure(settings.log)
    stop = Stop()
    stop.install()
    worker = Worker(settings, stop=stop)
    code = worker.run(once=arguments.once)
    if worker.is_computing:
        # The model's thread cannot be interrupted, and an orderly exit would wait for it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code
