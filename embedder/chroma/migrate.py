"""Migrate: collection by collection into a tenant, resumable, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Final

import psycopg
from pgvector import Vector
from psycopg.types.json import Jsonb

from embedder import terminal
from embedder.chroma.source import Collection, Record, Source, cleaned, cleaned_metadata
from embedder.database import register_vector
from embedder.errors import RagdbError
from embedder.ingest import is_fatal
from embedder.readers import languages

KIND: Final = "chroma"
BATCH: Final = 500
_NAMED: Final = 1000

_OPEN_RUN: Final = """
    select r.run_id, r.details
    from rag.runs as r
    where
        r.kind = 'chroma'
        and r.source = %s
        and r.state in ('running', 'interrupted', 'failed')
    order by r.run_id desc
    limit 1
"""
_BEGIN: Final = "select rag.begin_run('chroma', %s, %s, %s)"
_END: Final = "select rag.end_run(%s, %s, %s)"
_COLLECTION: Final = "select exists (select from rag.collections as c where c.name = %s)"
_CREATE: Final = "select rag.create_collection(%s, strategy => 'none', language => %s)"
_DONE: Final = """
    select r.uri
    from rag.run_documents as r
    join rag.collections as c
        on c.tenant_id = r.tenant_id and c.collection_id = r.collection_id
    where r.run_id = %s and c.name = %s
"""
_MODELS: Final = """
    select m.name, m.dimensions, coalesce(m.settings ->> 'model', m.name)
    from rag.models as m
    where m.dropped_at is null
"""
_IMPORT: Final = """
    select i.uri, i.status
    from rag.import_documents(%(run)s, %(documents)s, %(embeddings)b, %(model)s, %(into)s) as i
"""
_IMPORT_TEXTS: Final = """
    select i.uri, i.status
    from rag.import_documents(%(run)s, %(documents)s, collection => %(into)s) as i
"""
_ROLLBACK: Final = "select b.removed, b.kept from rag.rollback_run(%s, 1000) as b"
_STATE: Final = "select r.state from rag.runs as r where r.run_id = %s and r.kind = 'chroma'"


@dataclass(frozen=True)
class LeftOut:
    """A record that was not brought, and why."""

    collection: str
    id: str
    reason: str


@dataclass
class Moved:
    """What became of a collection."""

    name: str
    into: str
    model: str | None
    dimensions: int | None
    why_not_kept: str = ""
    records: int = 0
    inserted: int = 0
    present: int = 0
    vectors: int = 0
    queued: int = 0
    without_text: int = 0


@dataclass
class Migration:
    """A run: where it comes from and what it has done."""

    run_id: int
    resumed: bool
    collections: list[Moved] = field(default_factory=list[Moved])
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])

    def report(self) -> dict[str, Any]:
        """As JSON, for the record of the run."""
        return {
            "collections": [asdict(one) for one in self.collections],
            "left_out": len(self.left_out),
            "reasons": [asdict(one) for one in islice(self.left_out, _NAMED)],
        }


class Migrator:
    """Brings collections of Chroma into the tenant of a connection.

    Each batch is a transaction with its note in the run's record, so a migration that was killed
    goes on where it was. prefix stands before the names of collections; model is the name of the
    model that made the embeddings, None for what Chroma states.
    """

    def __init__(
        self,
        connection: terminal.Connection,
        source: Source,
        *,
        prefix: str = "",
        model: str | None = None,
        language: str | None = None,
        batch: int = BATCH,
    ) -> None:
        self._connection = connection
        self._source = source
        self._prefix = prefix
        self._model = model
        self._language = language
        self._batch = batch
        register_vector(connection)
        rows = connection.execute(_MODELS).fetchall()
        self._models = {name: (dimensions, known_as) for name, dimensions, known_as in rows}
        if model is not None and model not in self._models:
            raise RagdbError(
                "there is no such model",
                detail=f"rag.models has {', '.join(sorted(self._models))}.",
                hint="Add it by rag.add_model, or leave --model out.",
            )

    def run(self, names: Sequence[str], step: Callable[[str, int, int], None]) -> Migration:
        """Bring the collections of these names, or all; goes on with a run that was broken off."""
        row = self._connection.execute(_OPEN_RUN, [self._source.name]).fetchone()
        settings = {"prefix": self._prefix, "model": self._model}
        if row is not None and row[1].get("prefix", "") != self._prefix:
            row = None
        made: list[str] = list(row[1].get("made", [])) if row else []
        run_id = self._begin(row[0] if row else None, {**settings, "made": made})
        migration = Migration(run_id, resumed=row is not None)
        state = "failed"
        try:
            for collection in self._source.collections(names):
                self._bring(collection, migration, made, step)
            state = "completed"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            if not self._connection.closed:
                self._connection.execute(_END, [run_id, state, Jsonb(migration.report())])
        return migration

    def _begin(self, run_id: int | None, details: dict[str, Any]) -> int:
        row = self._connection.execute(
            _BEGIN, [self._source.name, Jsonb(details), run_id]
        ).fetchone()
        assert row is not None
        return row[0]

    def _bring(
        self,
        collection: Collection,
        migration: Migration,
        made: list[str],
        step: Callable[[str, int, int], None],
    ) -> None:
        into = f"{self._prefix}{collection.name}"
        ids = collection.ids()
        sample = collection.records(ids[:200])
        self._make(into, sample, migration.run_id, made)
        done = {
            uri for (uri,) in self._connection.execute(_DONE, [migration.run_id, into]).fetchall()
        }
        dimensions = next((len(one.embedding) for one in sample if one.embedding is not None), None)
        model, why = self._choose(collection, dimensions)
        moved = Moved(collection.name, into, model, dimensions, why, records=len(ids))
        moved.present = sum(cleaned(one) in done for one in ids)
        migration.collections.append(moved)
        left = [one for one in ids if cleaned(one) not in done]
        brought = moved.present
        for records in collection.batches(left, self._batch):
            self._import(records, moved, migration)
            brought += len(records)
            step(collection.name, brought, len(ids))

    def _make(self, into: str, sample: Sequence[Record], run_id: int, made: list[str]) -> None:
        row = self._connection.execute(_COLLECTION, [into]).fetchone()
        if row and row[0]:
            return
        text = "\n".join(one.text for one in sample if one.has_text)
        found = languages.CONFIGURATIONS.get(languages.detected(text) or "", "english")
        with self._connection.transaction():
            made.append(into)
            self._begin(run_id, {"made": made})
            self._connection.execute(_CREATE, [into, self._language or found])

    def _choose(self, collection: Collection, dimensions: int | None) -> tuple[str | None, str]:
        """The model whose vectors are kept, or why they are made anew."""
        name, stated = self._model, collection.model
        if name is None and stated is not None:
            name = next(
                (
                    one
                    for one, (_, known_as) in self._models.items()
                    if stated in {one, known_as.rpartition("/")[2]}
                ),
                None,
            )
        if dimensions is None:
            why = "there are no embeddings"
        elif name is not None:
            size, _ = self._models[name]
            why = "" if size == dimensions else f"{name} has {size} dimensions, not {dimensions}"
        elif stated is None:
            why = "Chroma does not state by which model they are; --model does"
        else:
            why = f"they are by {stated}, which is not in rag.models"
        return (None, why) if why else (name, "")

    def _import(self, records: Sequence[Record], moved: Moved, migration: Migration) -> None:
        try:
            self._import_batch(records, moved, migration)
        except psycopg.Error as error:
            if is_fatal(self._connection, error):
                raise
            if len(records) == 1:
                reason = error.diag.message_primary or str(error)
                left_out = LeftOut(moved.name, records[0].id, f"refused: {reason}")
                migration.left_out.append(left_out)
                return
            # Halved until the one at fault is alone.
            half = len(records) // 2
            self._import(records[:half], moved, migration)
            self._import(records[half:], moved, migration)

    def _import_batch(self, records: Sequence[Record], moved: Moved, migration: Migration) -> None:
        documents = [
            {
                "uri": cleaned(one.id),
                "content": one.text,
                "metadata": cleaned_metadata(one.metadata),
            }
            for one in records
        ]
        parameters: dict[str, Any] = {
            "run": migration.run_id,
            "documents": Jsonb(documents),
            "into": moved.into,
        }
        vectors = [one.vector for one in records]
        if moved.model is None or all(one is None for one in vectors):
            rows = self._connection.execute(_IMPORT_TEXTS, parameters).fetchall()
            vectors = [None] * len(records)
        else:
            parameters["model"] = moved.model
            parameters["embeddings"] = [None if one is None else Vector(one) for one in vectors]
            rows = self._connection.execute(_IMPORT, parameters).fetchall()
        for record, vector, (_, status) in zip(records, vectors, rows, strict=True):
            if status == "taken":
                reason = "the collection has another document of that uri"
                migration.left_out.append(LeftOut(moved.name, record.id, reason))
                continue
            moved.inserted += status == "inserted"
            moved.present += status == "present"
            moved.vectors += vector is not None
            moved.queued += vector is None
            moved.without_text += not record.has_text


def rollback(connection: terminal.Connection, run_id: int) -> tuple[int, int]:
    """Remove what a migration brought; documents removed, and those kept because put anew since."""
    row = connection.execute(_STATE, [run_id]).fetchone()
    if row is None:
        raise RagdbError(
            f"run {run_id} is no migration of this tenant",
            hint="Those that are: select run_id, source from rag.runs where kind = 'chroma'.",
        )
    removed = kept = 0
    while row is not None and row[0] != "rolled back":
        counts = connection.execute(_ROLLBACK, [run_id]).fetchone()
        assert counts is not None
        removed += counts[0]
        kept += counts[1]
        row = connection.execute(_STATE, [run_id]).fetchone()
    return removed, kept
