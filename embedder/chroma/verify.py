"""Verify: is everything that is in Chroma in the tenant as well, and is the same found?"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pgvector import Vector

from embedder import terminal
from embedder.chroma.source import Collection, Record, Source, cleaned, cleaned_metadata
from embedder.database import register_vector
from embedder.errors import RagdbError

if TYPE_CHECKING:
    from numpy.typing import NDArray

K: Final = 10
BATCH: Final = 500
# Half precision has 11 bits: a number is off by at most 2^-11 of itself, and the smallest by less.
_RELATIVE: Final = 2.0**-10
_ABSOLUTE: Final = 1e-6
# Two similarities nearer than that cannot be told apart in half precision.
_SAME: Final = 1e-3
# Vectors that are held in memory, to say which records are the nearest exactly.
_HELD: Final = 500_000
_NAMED: Final = 20

_RUN: Final = """
    select r.run_id, r.source, r.state, r.report
    from rag.runs as r
    where r.kind = 'chroma' and (%(run)s::bigint is null or r.run_id = %(run)s)
        and (%(run)s::bigint is not null or r.source = %(source)s)
    order by r.run_id desc
    limit 1
"""
_URIS: Final = """
    select d.uri
    from rag.documents as d
    join rag.collections as c
        on c.tenant_id = d.tenant_id and c.collection_id = d.collection_id
    join rag.run_documents as r
        on r.tenant_id = d.tenant_id and r.collection_id = d.collection_id and r.uri = d.uri
    where c.name = %s and r.run_id = %s
"""
_ROWS: Final = """
    select
        d.uri,
        d.content,
        d.metadata,
        (
            select count(*)
            from rag.chunks as h
            where
                h.partition_id = t.partition_id
                and h.tenant_id = d.tenant_id
                and h.document_id = d.document_id
        ),
        (
            select e.embedding::vector
            from rag.chunks as h
            join rag.embeddings as e
                on e.partition_id = t.partition_id
                and e.tenant_id = h.tenant_id
                and e.chunk_id = h.chunk_id
                and e.model_id = (select m.model_id from rag.models as m where m.name = %(model)s)
            where
                h.partition_id = t.partition_id
                and h.tenant_id = d.tenant_id
                and h.document_id = d.document_id
            limit 1
        )
    from rag.documents as d
    join rag.tenants as t on t.tenant_id = d.tenant_id
    join rag.collections as c
        on c.tenant_id = d.tenant_id and c.collection_id = d.collection_id
    where c.name = %(into)s and d.uri = any(%(uris)s)
"""
_ACTIVE: Final = "select m.name from rag.active_model() as m"
_SEARCH: Final = """
    select s.uri, s.similarity
    from rag.search(
        '', k => %(k)s, collection => %(into)s, embedding => %(vector)b, mode => 'semantic',
        fusion => 'linear'
    ) as s
    order by s.rank
"""
_TENANT: Final = "select rag.current_tenant()"


@dataclass
class Check:
    """A check: passed is None where there is nothing to be compared."""

    name: str
    passed: bool | None
    detail: str


@dataclass
class Verified:
    """What was found of a collection."""

    name: str
    into: str
    checks: list[Check] = field(default_factory=list[Check])
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def passed(self) -> bool:
        """Has every check that could be made passed?"""
        return all(check.passed is not False for check in self.checks)


@dataclass
class Report:
    """The verification of a run."""

    run_id: int
    source: str
    chroma: str
    tenant: str
    at: str
    collections: list[Verified] = field(default_factory=list[Verified])

    @property
    def passed(self) -> bool:
        """Have all collections passed?"""
        return bool(self.collections) and all(one.passed for one in self.collections)

    def as_json(self) -> str:
        """The report for programs."""
        parts = [{**asdict(one), "passed": one.passed} for one in self.collections]
        whole = {**asdict(self), "passed": self.passed, "collections": parts}
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """The report for people."""
        lines = [
            f"# Migration {self.run_id}: {_word(self.passed)}",
            "",
            f"- Source: {self.source} (Chroma {self.chroma}, only read)",
            f"- Tenant: {self.tenant}",
            f"- Verified at: {self.at}",
        ]
        for one in self.collections:
            lines += [
                "",
                f"## {one.name}: {_word(one.passed)}",
                "",
                "| Check | Result | Detail |",
                "| --- | --- | --- |",
            ]
            for check in one.checks:
                detail = check.detail.replace("|", "\\|").replace("\n", " ")
                lines.append(f"| {check.name} | {_word(check.passed)} | {detail} |")
        return "\n".join(lines) + "\n"


def _word(passed: bool | None) -> str:
    return "not compared" if passed is None else "pass" if passed else "FAIL"


@dataclass
class _Rows:
    """What the comparison of all rows found."""

    text: list[str] = field(default_factory=list[str])
    metadata: list[str] = field(default_factory=list[str])
    vectors: list[str] = field(default_factory=list[str])
    parts: list[str] = field(default_factory=list[str])
    compared: int = 0
    compared_vectors: int = 0
    without_vector: int = 0
    largest: float = 0.0
    lowest_cosine: float = 1.0
    ids: list[str] = field(default_factory=list[str])
    kept: list[NDArray[np.float32]] = field(default_factory=list["NDArray[np.float32]"])
    unit_length: bool = True


class Verifier:
    """Compares a source with what a run made of it in the tenant of a connection."""

    def __init__(
        self,
        connection: terminal.Connection,
        source: Source,
        *,
        run_id: int | None = None,
        queries: int = 100,
        seed: int = 0,
    ) -> None:
        self._connection = connection
        self._source = source
        self._queries = queries
        self._random = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        register_vector(connection)
        row = connection.execute(_RUN, {"run": run_id, "source": source.name}).fetchone()
        if row is None:
            raise RagdbError(
                "there is no migration of this source",
                detail=f"The tenant has no run with source {source.name}.",
                hint="Migrate first, or name the run by --run.",
            )
        self._run: int = row[0]
        self._moved: list[dict[str, Any]] = row[3].get("collections", [])
        self._left_out: list[dict[str, Any]] = row[3].get("reasons", [])
        if row[2] != "completed":
            raise RagdbError(
                "the migration is not complete",
                detail=f"Run {self._run} is {row[2]}.",
                hint="The same migrate command goes on with it.",
            )

    def run(self, step: Callable[[str, int, int], None]) -> Report:
        """Verify all collections that the run brought."""
        row = self._connection.execute(_TENANT).fetchone()
        report = Report(
            self._run,
            self._source.name,
            self._source.version,
            row[0] if row else "",
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        there = self._source.collections([moved["name"] for moved in self._moved])
        by_name = {one.name: one for one in there}
        for moved in self._moved:
            report.collections.append(self._verify(by_name[moved["name"]], moved, step))
        return report

    def _verify(
        self, collection: Collection, moved: dict[str, Any], step: Callable[[str, int, int], None]
    ) -> Verified:
        found = Verified(collection.name, moved["into"])
        ids = collection.ids()
        uris = {
            uri for (uri,) in self._connection.execute(_URIS, [found.into, self._run]).fetchall()
        }
        missing = [one for one in ids if cleaned(one) not in uris]
        extra = uris - {cleaned(one) for one in ids}
        count = len(collection)
        found.checks.append(
            Check(
                "count", count == len(uris), f"{count:,} records in Chroma, {len(uris):,} documents"
            )
        )
        reasons = "; ".join(
            f"{one['id']}: {one['reason']}"
            for one in self._left_out[:_NAMED]
            if one["collection"] == collection.name
        )
        found.checks.append(
            Check(
                "ids",
                not missing and not extra,
                f"{len(missing):,} missing{_examples(missing)}, {len(extra):,} too many"
                f"{_examples(sorted(extra))}{f' ({reasons})' if reasons else ''}",
            )
        )
        rows = self._compare_rows(collection, moved, ids, step)
        found.checks += _checks_of_rows(rows, moved)
        found.numbers = {
            "records": count,
            "documents": len(uris),
            "rows_compared": rows.compared,
            "vectors_compared": rows.compared_vectors,
            "largest_difference": rows.largest,
            "lowest_cosine": rows.lowest_cosine,
        }
        found.checks += self._compare_searches(collection, moved, rows, found.numbers)
        return found

    def _compare_rows(
        self,
        collection: Collection,
        moved: dict[str, Any],
        ids: Sequence[str],
        step: Callable[[str, int, int], None],
    ) -> _Rows:
        rows = _Rows()
        done = 0
        for records in collection.batches(ids, BATCH):
            parameters = {
                "into": moved["into"],
                "model": moved["model"],
                "uris": [cleaned(one.id) for one in records],
            }
            fetched = self._connection.execute(_ROWS, parameters).fetchall()
            by_uri = {row[0]: row[1:] for row in fetched}
            for record in records:
                if (row := by_uri.get(cleaned(record.id))) is not None:
                    _compare(record, row, rows, kept=moved["model"] is not None)
            done += len(records)
            step(collection.name, done, len(ids))
        return rows

    def _compare_searches(
        self,
        collection: Collection,
        moved: dict[str, Any],
        rows: _Rows,
        numbers: dict[str, Any],
    ) -> list[Check]:
        active = self._connection.execute(_ACTIVE).fetchone()
        why = ""
        if moved["model"] is None:
            why = f"the vectors are made anew: {moved['why_not_kept']}"
        elif active is None or active[0] != moved["model"]:
            why = f"searches use {active[0] if active else 'no model'}, not {moved['model']}"
        elif not rows.kept:
            why = "there are no vectors"
        if why:
            return [Check(f"top {K}", None, why), Check("search times", None, why)]
        matrix = np.stack(rows.kept)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        places = self._random.sample(range(len(matrix)), min(self._queries, len(matrix)))
        answers = [self._ask(collection, moved["into"], matrix[place]) for place in places]
        comparable = rows.unit_length or collection.space == "cosine"
        judged = [_judge(answer, matrix, rows.ids, comparable=comparable) for answer in answers]
        chroma = sorted(answer.chroma_ms for answer in answers)
        ours = sorted(answer.ours_ms for answer in answers)
        same = statistics.mean(one.overlap for one in judged)
        exact = statistics.mean(one.exact for one in judged)
        numbers |= {
            "queries": len(answers),
            "overlap_with_chroma": same,
            "overlap_with_exact": exact,
            "chroma_exact": statistics.mean(one.chroma_exact for one in judged),
            "chroma_ms": {"p50": _share(chroma, 0.5), "p95": _share(chroma, 0.95)},
            "ragdb_ms": {"p50": _share(ours, 0.5), "p95": _share(ours, 0.95)},
        }
        missed = sum(one.missed for one in judged)
        detail = (
            f"{len(answers)} queries: {same:.1%} of Chroma's top {K} are in ours; of the truly "
            f"nearest {K} ours has {exact:.1%}, Chroma's {numbers['chroma_exact']:.1%}; "
            f"{missed} that are nearer than our last are missing"
        )
        if not comparable:
            detail += f" (Chroma ranks by {collection.space} of vectors that differ in length)"
        return [
            Check(f"top {K}", missed == 0 and exact > 1 - 1e-9, detail),
            Check(
                "search times",
                None,
                f"p50 / p95 in ms: Chroma {numbers['chroma_ms']['p50']:.2f} / "
                f"{numbers['chroma_ms']['p95']:.2f}, ragdb {numbers['ragdb_ms']['p50']:.2f} / "
                f"{numbers['ragdb_ms']['p95']:.2f}",
            ),
        ]

    def _ask(self, collection: Collection, into: str, vector: NDArray[np.float32]) -> _Answer:
        # Beside the record, not on it: who only finds the record itself finds nothing.
        noise = self._noise.standard_normal(len(vector)).astype(np.float32)
        mixed = vector + 0.3 * noise / np.linalg.norm(noise)
        query = (mixed / np.linalg.norm(mixed)).astype(np.float32)
        started = time.perf_counter()
        theirs = collection.nearest(query, K)
        between = time.perf_counter()
        parameters = {"k": K, "into": into, "vector": Vector(query)}
        found = self._connection.execute(_SEARCH, parameters).fetchall()
        ended = time.perf_counter()
        return _Answer(
            query,
            [cleaned(one) for one in theirs],
            [uri for uri, _ in found],
            (between - started) * 1000,
            (ended - between) * 1000,
        )


@dataclass(frozen=True)
class _Answer:
    query: NDArray[np.float32]
    chroma: list[str]
    ours: list[str]
    chroma_ms: float
    ours_ms: float


@dataclass(frozen=True)
class _Judged:
    """Shares of the top 10, and how many that should be in ours are not."""

    overlap: float
    exact: float
    chroma_exact: float
    missed: int


def _judge(
    answer: _Answer, matrix: NDArray[np.float32], ids: Sequence[str], *, comparable: bool
) -> _Judged:
    """Compare both answers with each other and with the truth, which all vectors tell.

    What is as near as the last of the ten, as far as half precision can tell, is as right as that.
    """
    similarities = matrix @ answer.query
    k = min(K, len(ids))
    by_id = dict(zip(ids, similarities.tolist(), strict=True))
    nearest = float(np.partition(similarities, -k)[-k])
    ours = [by_id.get(one, -2.0) for one in answer.ours]
    last = min(ours) if len(ours) >= k else -2.0
    right = sum(one >= nearest - _SAME for one in ours)
    chroma_right = sum(by_id.get(one, -2.0) >= nearest - _SAME for one in answer.chroma)
    missed = sum(
        one not in answer.ours and by_id.get(one, -2.0) > last + _SAME for one in answer.chroma
    )
    overlap = sum(one in answer.ours for one in answer.chroma) / max(1, len(answer.chroma))
    return _Judged(overlap, right / k, chroma_right / k, missed if comparable else 0)


def _compare(record: Record, row: Sequence[Any], rows: _Rows, *, kept: bool) -> None:
    content, metadata, parts, stored = row
    rows.compared += 1
    if content != record.text:
        rows.text.append(record.id)
    expected = cleaned_metadata(record.metadata)
    if _canonical(metadata) != _canonical(expected):
        rows.metadata.append(record.id)
    if parts != 1:
        rows.parts.append(record.id)
    if not kept or (vector := record.vector) is None:
        rows.without_vector += record.embedding is None or not kept
        return
    if len(rows.kept) < _HELD:
        rows.ids.append(cleaned(record.id))
        rows.kept.append(vector)
    rows.compared_vectors += 1
    length = float(np.linalg.norm(vector))
    rows.unit_length = rows.unit_length and abs(length - 1) < 1e-3
    if stored is None:
        rows.vectors.append(record.id)
        return
    unit = vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
    there = np.asarray(stored.to_list() if hasattr(stored, "to_list") else stored, np.float64)
    if there.shape != unit.shape:
        rows.vectors.append(record.id)
        return
    difference = np.abs(there - unit)
    rows.largest = max(rows.largest, float(difference.max()))
    cosine = float(there @ unit / np.linalg.norm(there))
    rows.lowest_cosine = min(rows.lowest_cosine, cosine)
    if (difference > np.abs(unit) * _RELATIVE + _ABSOLUTE).any():
        rows.vectors.append(record.id)


def _canonical(value: object) -> str:
    """JSON with sorted keys: 1, 1.0 and true are three things there."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _checks_of_rows(rows: _Rows, moved: dict[str, Any]) -> list[Check]:
    def check(name: str, wrong: Sequence[str], what: str) -> Check:
        return Check(
            name, not wrong, f"{rows.compared:,} compared, {len(wrong):,} {what}{_examples(wrong)}"
        )

    checks = [
        check("text", rows.text, "differ"),
        check("metadata", rows.metadata, "differ"),
        check("one passage a record", rows.parts, "have none or several"),
    ]
    if moved["model"] is None:
        why = f"made anew by the embedder: {moved['why_not_kept']}"
        return [*checks, Check("vectors", None, why)]
    detail = (
        f"{rows.compared_vectors:,} compared, {len(rows.vectors):,} differ"
        f"{_examples(rows.vectors)}; largest difference {rows.largest:.2g}, lowest cosine "
        f"{rows.lowest_cosine:.7f} (half precision)"
    )
    return [*checks, Check("vectors", not rows.vectors, detail)]


def _examples(ids: Sequence[str]) -> str:
    if not ids:
        return ""
    named = ", ".join(terminal.printable(one) for one in ids[:3])
    return f" ({named}{', …' if len(ids) > 3 else ''})"


def _share(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
