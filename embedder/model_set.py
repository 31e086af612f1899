"""The models that a worker embeds by: the database's, each loaded when it is first needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from embedder.errors import ModelError
from embedder.logs import fields
from embedder.models import EmbeddingModel, ModelRow

LOG = logging.getLogger(__name__)

# Before a model that could not be loaded is tried again: its folder or its server may come.
RETRY_SECONDS: Final = 60.0


Load = Callable[[ModelRow], EmbeddingModel]


class ModelSet:
    """Models by name. One that cannot be loaded does not keep others from their work."""

    def __init__(self, load: Load, given: EmbeddingModel | None = None) -> None:
        self.rows: dict[str, ModelRow] = {}
        self._load = load
        self._given = given
        self._loaded: dict[str, EmbeddingModel] = {}
        self._unusable: dict[str, float] = {}

    def update(self, rows: Sequence[ModelRow]) -> None:
        """Follow the database: forget what it has no more."""
        self.rows = {row.name: row for row in rows}
        self._loaded = {name: model for name, model in self._loaded.items() if name in self.rows}

    @property
    def loaded(self) -> list[EmbeddingModel]:
        """The models in memory."""
        return [*self._loaded.values()]

    @property
    def usable(self) -> list[str] | None:
        """Names to claim jobs for; None for all, also for those that are not known yet."""
        now = time.monotonic()
        self._unusable = {name: end for name, end in self._unusable.items() if end > now}
        if not self._unusable:
            return None
        return [name for name in self.rows if name not in self._unusable]

    def get(self, name: str) -> EmbeddingModel:
        """The model of a row, loaded if need be. Raises ModelError, and not only once."""
        if name in self._loaded:
            return self._loaded[name]
        try:
            model = self._checked(name)
        except ModelError as error:
            self._unusable[name] = time.monotonic() + RETRY_SECONDS
            LOG.warning("cannot use a model", extra=fields(model=name, reason=str(error)))
            raise
        self._loaded[name] = model
        return model

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
