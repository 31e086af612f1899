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
from contextlib import ExitStack
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
from embedder.errors import ModelError, ProviderAwayError, RagdbError, StoppedError
from embedder.health import Monitor, Vitals
from embedder.learner import Learner
from embedder.listener import Listener
from embedder.logs import fields
from embedder.model_set import Load, ModelSet, Trouble
from embedder.models import EmbeddingModel, ModelRow, token_batches
from embedder.stop import SLICE_SECONDS, Stop
from embedder.uploads import UploadLane

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from embedder.commands import Subparsers

LOG = logging.getLogger(__name__)

# What was embedded is handed in at least this often: that much work a crash can cost.
FLUSH_SECONDS: Final = 2.0
# Between looks at jobs that are due and were not given: another worker's claim is at work on them.
CONTENDED_SECONDS: Final = 0.05
# How often the worker asks which models the database has.
MODELS_SECONDS: Final = 1.0
# Queries embedded at once: a second's work, which a new job may have to wait for.
QUERIES_AT_ONCE: Final = 64
# `--once` gives up a model after so many failures of its provider in a row: about half a minute.
ONCE_FAILURES: Final = 5
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
    """A job with its vector, and how many tokens the model did not take; None: nobody knows."""

    job_id: int
    vector: NDArray[np.float32]
    truncated: int | None = None


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
        monitor: Monitor | None = None,
        *,
        load: Load | None = None,
    ) -> None:
        self._monitor = monitor or Monitor(Vitals(), settings.database_url)
        self._vitals = self._monitor.vitals
        self.totals = self._vitals.totals
        self._settings = settings
        self._models = ModelSet(load or partial(models.load, settings, measure=True), model)
        self._models_at = 0.0
        self.stop = stop or Stop()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._session = Session(settings.database_url, self.stop, name="ragdb embedder")
        self._vitals.database_trouble = lambda: self._session.trouble
        self._vitals.reconnects = lambda: self._session.reconnects
        self._listener = Listener(settings.listen_url, self.stop, name="ragdb listener")
        self._uploads = UploadLane(settings, self._name)
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
        UnreachableError, NotMigratedError or ModelError when it cannot start; later a model that
        does not work is set aside and waited for, but with `once` ModelError ends it.
        """
        try:
            self._vitals.doing = "connecting to the database"
            self._session.open()
            self._begin()
            if once:
                self._uploads.drain(self.stop)
            elif not self.stop.requested:
                self._uploads.start()
            while not self.stop.requested and (jobs := self._next_jobs(once=once)):
                self._work(jobs)
                # A share of the time even under load: else whoever loads a million passages
                # would have no word vectors before the last of them.
                self._learn()
            for learner in self._learners.values():
                learner.give_up()
        except StoppedError:
            LOG.warning("stopped while the database was away, leases run out by themselves")
        finally:
            self._uploads.close()
            self._listener.close()
            self._session.close()
            self._computer.shutdown(wait=False, cancel_futures=True)
            if not self.is_computing:
                self._models.close()
        LOG.info(
            "stopped",
            extra=fields(
                batches=self.totals.batches,
                embedded=self.totals.embedded,
                stale=self.totals.stale,
                failed=self.totals.failed,
                truncated=self.totals.truncated,
                queries=self.totals.queries,
                reconnects=self._session.reconnects,
            ),
        )
        return 1 if once and self.totals.failed else 0

    # Models

    def _begin(self) -> None:
        """Find a model to begin with, the active one if possible.

        One whose provider is away will do. Raises ModelError if there is none.
        """
        self._look_at_models()
        problem: RagdbError | None = None
        for name in self._models.rows:
            self._vitals.doing = f"loading the model {name}"
            self._use(name)
            if self.stop.requested:
                return
            model, trouble = self._models.loaded.get(name), self._models.trouble(name)
            if model is not None and (trouble is None or not trouble.is_lasting):
                self._tell_ready(model)
                return
            if problem is None and trouble is not None:
                problem = trouble.error
        raise problem or ModelError("the database has no model", hint="add one by rag.add_model")

    def _tell_ready(self, model: EmbeddingModel) -> None:
        # From now on whoever waits is alive.
        self.stop.on_slice = self._vitals.beat
        self._vitals.beat()
        LOG.info(
            "ready",
            extra=fields(
                model=model.name,
                dimensions=model.dimensions,
                backend=model.backend,
                threads=self._settings.threads,
                batch=self._settings.batch,
                database=redacted(self._settings.database_url),
            ),
        )

    def _look_at_models(self) -> None:
        if time.monotonic() < self._models_at:
            return
        self._models_at = time.monotonic() + MODELS_SECONDS
        self._models.update(self._session.rows("models", {}, ModelRow))
        for name in [name for name in self._learners if name not in self._models.loaded]:
            self._learners.pop(name).give_up()
        self._tell_models()

    def _tell_models(self) -> None:
        """Tell the monitor what is loaded, and which models have jobs and do not work."""
        self._vitals.backends = {name: model.backend for name, model in self._models.loaded.items()}
        needed = [
            trouble
            for trouble in self._models.troubles
            if self._seconds_until_due([trouble.name]) is not None
        ]
        # Who only asks for less is not ill; but who never has enough is, in the end.
        self._vitals.limited_since = min(
            (trouble.since for trouble in needed if trouble.is_limit), default=None
        )
        self._vitals.model_troubles = {
            trouble.name: str(trouble.error) for trouble in needed if not trouble.is_limit
        }

    def _use(self, name: str, keep: Callable[[], bool] = lambda: True) -> EmbeddingModel | None:
        """The model of a row, ready to work, whose word vectors are learned from now on.

        It is loaded or looked at again if need be, meanwhile `keep` is called. None if it cannot
        be used now, or there is no time to wait for it.
        """
        model = self._models.loaded.get(name)
        if model is None or self._models.trouble(name) is not None:
            try:
                if not self._compute(partial(self._models.ready, name), keep):
                    return None
            except (ProviderAwayError, ModelError) as error:
                self._set_aside(name, error)
                return None
            self._models.works(name)
            model = self._models.loaded[name]
            self._tell_models()
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

    def _set_aside(self, name: str, error: ProviderAwayError | ModelError) -> None:
        self.totals.provider_failures += 1
        self._models.set_aside(name, error)
        self._tell_models()

    def _compute(self, work: Callable[[], object], keep: Callable[[], bool]) -> bool:
        """Let the model's thread do something; raises what it raises, False as `_await` does."""
        self._future = self._computer.submit(work)
        if not self._await(keep):
            return False
        self._future.result()
        return True

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
            due = self._seconds_until_due(self._models.usable)
            if due is not None and due <= 0:
                self.stop.pause(CONTENDED_SECONDS)
            elif not self._learn():
                hoped_for = self._hoped_for()
                if not hoped_for:
                    break
                until = min(trouble.until for trouble in hoped_for)
                self.stop.pause(max(CONTENDED_SECONDS, until - time.monotonic()))
            if jobs := self._look():
                return jobs
        return []

    def _hoped_for(self) -> list[Trouble]:
        """The models that are set aside, have jobs due, and may be given up after a while.

        Raises ModelError if there are jobs due and no hope.
        """
        needed: list[Trouble] = []
        for trouble in self._models.troubles:
            due = self._seconds_until_due([trouble.name])
            if due is not None and due <= 0:
                needed.append(trouble)
        hoped_for = [
            trouble
            for trouble in needed
            if not trouble.is_lasting and trouble.failures < ONCE_FAILURES
        ]
        if needed and not hoped_for:
            raise ModelError(str(needed[0].error)) from needed[0].error
        return hoped_for

    def _look(self) -> list[Job]:
        """Embed the queries that wait, then claim jobs; uploads have a lane of their own."""
        self._uploads.wake()
        self._look_at_models()
        for name in self._models.to_try():
            self._use(name)
        for model in self._models.working:
            try:
                self._answer(model)
            except (ProviderAwayError, ModelError) as error:
                self._set_aside(model.name, error)
        return [] if self.stop.requested else self._claim()

    def _claim(self) -> list[Job]:
        parameters = {
            "worker": self._name,
            "batch": self._settings.batch,
            "lease": self._lease,
            "models": self._models.usable,
        }
        return self._session.rows("claim_jobs", parameters, Job)

    def _seconds_until_due(self, names: list[str] | None) -> float | None:
        return self._session.value("next_due", {"models": names})

    def _idle_seconds(self) -> float:
        seconds = self._settings.poll_seconds
        if (due := self._seconds_until_due(self._models.usable)) is not None:
            seconds = min(seconds, due)
        for trouble in self._models.troubles:
            seconds = min(seconds, trouble.until - time.monotonic())
        return max(CONTENDED_SECONDS, seconds)

    # Doing it

    def _work(self, jobs: list[Job]) -> None:
        """Embed the jobs of one claim and hand in the results; give back what was not done.

        Those of a model that cannot be used lose no attempt, and are for others, or for later.
        """
        lease = Lease(self._session, jobs[0].lease_token, self._settings.lease_seconds)
        started = handed_in = self._vitals.computing_since = time.monotonic()
        before = replace(self.totals)
        outcomes: list[Outcome] = []
        truncated = done = 0
        try:
            if self.stop.requested or (model := self._model(jobs[0], lease)) is None:
                return
            counted = count_tokens(jobs, model)
            lengths = counted or [len(job.text) // 4 for job in jobs]
            for places in token_batches(lengths, model):
                batch = [jobs[place] for place in places]
                if self.stop.requested or not self._attend(model, batch, lease):
                    break
                for outcome, place in zip(self._future.result(), places, strict=True):
                    if isinstance(outcome, Embedded) and model.max_tokens and counted:
                        beyond = max(0, lengths[place] - model.max_tokens)
                        truncated += beyond > 0
                        outcomes.append(replace(outcome, truncated=beyond))
                    else:
                        outcomes.append(outcome)
                done += len(batch)
                self._vitals.computing_since = time.monotonic()
                if time.monotonic() - handed_in >= FLUSH_SECONDS:
                    self._hand_in(lease, outcomes)
                    outcomes = []
                    handed_in = time.monotonic()
        except (ProviderAwayError, ModelError) as error:
            self._set_aside(jobs[0].model, error)
            return
        finally:
            self._vitals.computing_since = None
            self.totals.truncated += truncated
            self._hand_in(lease, outcomes)
            if done < len(jobs):
                LOG.info("gave jobs back", extra=fields(jobs=lease.release()))
        self.totals.batches += 1
        seconds = time.monotonic() - started
        self._monitor.batch(seconds, done)
        if done:
            self._models.has_worked(model.name)
        LOG.info(
            "embedded a batch",
            extra=fields(
                batch=len(jobs),
                embedded=self.totals.embedded - before.embedded,
                stale=self.totals.stale - before.stale,
                failed=self.totals.failed - before.failed,
                truncated=truncated,
                seconds=seconds,
                passages_per_second=done / seconds,
            ),
        )

    def _model(self, job: Job, lease: Lease) -> EmbeddingModel | None:
        """The model of a claim; None if it cannot be used, or there is no time to wait for it."""
        # As it is now: a claim may come seconds after the last look, when queries took long.
        self._look_at_models()
        row = self._models.rows.get(job.model)
        if row is None or row.dimensions != job.dimensions:
            self._models_at = 0.0
            self._look_at_models()
            if job.model not in self._models.rows:
                return None
        return self._use(job.model, partial(self._keep, lease))

    def _attend(self, model: EmbeddingModel, batch: Sequence[Job], lease: Lease) -> bool:
        """Let the model embed a batch and keep the lease alive meanwhile.

        True when it is done; False when the lease was lost, or the model is not ready
        `grace_seconds` after a stop was requested.
        """
        self._future = self._computer.submit(embed, model, batch)
        return self._await(partial(self._keep, lease), min(SLICE_SECONDS, lease.every))

    def _keep(self, lease: Lease) -> bool:
        for learner in self._learners.values():
            learner.keep()
        if lease.keep():
            return True
        LOG.warning("lost a lease, another worker may have its jobs")
        return False

    def _await(self, keep: Callable[[], bool], every: float = SLICE_SECONDS) -> bool:
        """Wait for the model and call `keep` meanwhile.

        True when it is done; False when `keep` says so, or when the model is not ready
        `grace_seconds` after a stop was requested.
        """
        stop_at: float | None = None
        while not self._future.done():
            self.stop.on_slice()
            if self.stop.requested:
                stop_at = stop_at or time.monotonic() + self._settings.grace_seconds
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
        working = {model.name for model in self._models.working}
        learners = [learner for name, learner in self._learners.items() if name in working]
        # One that is at it goes on; prepare() says so without asking the database.
        for learner in sorted(learners, key=lambda each: not each.is_learning):
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
                "truncated_tokens": [outcome.truncated for outcome in embedded],
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


def count_tokens(jobs: Sequence[Job], model: EmbeddingModel) -> list[int] | None:
    """Tokens of the text of each job, before anything is cut off; None if that cannot be known."""
    try:
        return model.count_tokens([job.text for job in jobs])
    except Exception:  # noqa: BLE001 (a text that cannot even be counted fails when embedded)
        return None


def embed(model: EmbeddingModel, jobs: Sequence[Job]) -> list[Outcome]:
    """Embed the texts of jobs; if the model refuses, halve them until the bad ones are alone."""
    try:
        vectors = model.encode_documents([job.text for job in jobs])
        if len(vectors) != len(jobs):
            raise RuntimeError(f"the model gave {len(vectors)} vectors for {len(jobs)} texts")
    except (ProviderAwayError, ModelError):
        raise
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
    return [judged(job, vector) for job, vector in zip(jobs, vectors, strict=True)]


def answer(model: EmbeddingModel, questions: Sequence[Question]) -> dict[UUID, NDArray[np.float32]]:
    """Embeddings of queries by id; one that the model refuses is left out, it is but a hint."""
    answers: dict[UUID, NDArray[np.float32]] = {}
    for question in questions:
        try:
            vector = model.encode_query(question.query_prefix + question.query)
        except (ProviderAwayError, ModelError):
            raise
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
    monitor = Monitor(Vitals(), settings.database_url)
    with ExitStack() as stack:
        if settings.http_port:
            stack.enter_context(monitor.serve(settings.http_address, settings.http_port))
        worker = Worker(settings, stop=stop, monitor=monitor)
        code = worker.run(once=arguments.once)
        if worker.is_computing:
            # The model's thread cannot be interrupted, and an orderly exit would wait for it.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(code)
    return code
