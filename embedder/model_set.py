"""The models that a worker embeds by: the database's, each loaded when it is first needed.

A model that cannot be used, or whose provider is away, is set aside for a while, and keeps
no other from its work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Final

from embedder.database import backoff, reason
from embedder.errors import ModelError, ProviderAwayError
from embedder.logs import fields
from embedder.models import EmbeddingModel, ModelRow

LOG = logging.getLogger(__name__)

# Between attempts with a provider that is away, doubling.
FIRST_PAUSE_SECONDS: Final = 1.0
LAST_PAUSE_SECONDS: Final = 60.0
# Between looks whether somebody has put right what is wrong with a model: its settings, its folder.
SETTINGS_SECONDS: Final = 60.0

Load = Callable[[ModelRow], EmbeddingModel]


@dataclass(slots=True)
class Patience:
    """With a model that has not worked off a claim since something went wrong with it.

    `told` is what the log says of it, empty again when it has turned out to work, and `since` the
    moment of the first failure; by time.monotonic.
    """

    pauses: Generator[float] = field(
        default_factory=lambda: backoff(FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS)
    )
    failures: int = 0
    told: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a model is set aside: moments by time.monotonic, failures since it last worked."""

    name: str
    error: ProviderAwayError | ModelError
    failures: int
    since: float
    until: float

    @property
    def is_lasting(self) -> bool:
        """Must somebody do something about it?"""
        return isinstance(self.error, ModelError)

    @property
    def is_limit(self) -> bool:
        """Does its provider work, and only asks for less?"""
        return isinstance(self.error, ProviderAwayError) and self.error.is_limit


class ModelSet:
    """Models by name; `given` is one that is loaded already."""

    def __init__(self, load: Load, given: EmbeddingModel | None = None) -> None:
        self.rows: dict[str, ModelRow] = {}
        self._load = load
        self._given = given
        self._loaded: dict[str, EmbeddingModel] = {}
        self._troubles: dict[str, Trouble] = {}
        self._patience: dict[str, Patience] = {}

    def update(self, rows: Sequence[ModelRow]) -> None:
        """Follow the database: forget what it has no more, or describes in another way."""
        before, self.rows = self.rows, {row.name: row for row in rows}
        for name in [name for name in before if self.rows.get(name) != before[name]]:
            self._close(name)
            self._troubles.pop(name, None)
            self._patience.pop(name, None)

    @property
    def loaded(self) -> dict[str, EmbeddingModel]:
        """The models in memory, by name."""
        return self._loaded

    @property
    def working(self) -> list[EmbeddingModel]:
        """Those of them that are not set aside."""
        return [model for name, model in self._loaded.items() if name not in self._troubles]

    @property
    def usable(self) -> list[str] | None:
        """Names to claim jobs for; None for all, also for those that are not known yet."""
        if not self._troubles:
            return None
        return [name for name in self.rows if name not in self._troubles]

    @property
    def troubles(self) -> list[Trouble]:
        """Of the models that are set aside."""
        return [*self._troubles.values()]

    def trouble(self, name: str) -> Trouble | None:
        """Why a model is set aside; None if it is not."""
        return self._troubles.get(name)

    def to_try(self) -> list[str]:
        """Models in memory whose pause is over: `ready` tells whether they work again.

        What could not be loaded waits no longer either, but for jobs that ask for it.
        """
        now = time.monotonic()
        over = [name for name, trouble in self._troubles.items() if trouble.until <= now]
        for name in over:
            if name not in self._loaded:
                del self._troubles[name]
        return [name for name in over if name in self._loaded]

    def ready(self, name: str) -> EmbeddingModel:
        """The model of a row, loaded if need be, and known to work.

        Takes as long as that. Raises ModelError or ProviderAwayError.
        """
        try:
            if name not in self._loaded:
                # Replaced, not changed: another thread may be looking at it.
                self._loaded = self._loaded | {name: self._checked(name)}
            self._loaded[name].check()
        except (ProviderAwayError, ModelError):
            raise
        except Exception as error:
            # Whatever is wrong with one model, others go on.
            raise ModelError(f"cannot use the model {name}: {reason(error)}") from error
        return self._loaded[name]

    def set_aside(self, name: str, error: ProviderAwayError | ModelError) -> None:
        """Leave a model alone for as long as its error asks for."""
        patience = self._patience.setdefault(name, Patience())
        patience.failures += 1
        if isinstance(error, ModelError):
            pause, level = SETTINGS_SECONDS, logging.ERROR
            event = "the model cannot be used, trying again"
        else:
            pause, level = max(next(patience.pauses), error.retry_after or 0), logging.WARNING
            event = "the provider cannot be used now, trying again"
            if error.is_limit:
                event = "the provider asks for less, waiting"
        now = time.monotonic()
        if not patience.told:
            patience.since = now
        if patience.told != str(error):
            patience.told = str(error)
            LOG.log(level, event, extra=fields(model=name, reason=patience.told))
        until = now + pause
        self._troubles[name] = Trouble(name, error, patience.failures, patience.since, until)

    def works(self, name: str) -> None:
        """A model that was set aside has turned out to work."""
        self._troubles.pop(name, None)
        if (patience := self._patience.get(name)) is not None and patience.told:
            patience.told = ""
            seconds = time.monotonic() - patience.since
            LOG.info("the provider works again", extra=fields(model=name, seconds=seconds))

    def has_worked(self, name: str) -> None:
        """A model has worked off a claim: the next pause is the first one."""
        self._patience.pop(name, None)

    def close(self) -> None:
        """Let go of all of them."""
        for name in [*self._loaded]:
            self._close(name)

    def _close(self, name: str) -> None:
        model = self._loaded.get(name)
        self._loaded = {other: kept for other, kept in self._loaded.items() if other != name}
        # What was given is its owner's.
        if model is not None and model is not self._given:
            model.close()

    def _checked(self, name: str) -> EmbeddingModel:
        row = self.rows.get(name)
        if row is None:
            raise ModelError(f"the database has no model {name}")
        if self._given is not None and self._given.name == name:
            model = self._given
        else:
            model = self._load(row)
        if model.dimensions != row.dimensions:
            raise ModelError(
                f"the database asks for {name} with {row.dimensions} dimensions and this embedder "
                f"has it with {model.dimensions}",
                hint="add the model with its dimensions by rag.add_model",
            )
        return model
