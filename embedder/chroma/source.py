"""Chroma as a source that is only read.

Opening a folder of Chroma changes files in it, so a folder is copied first and the copy is opened.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import numpy as np

from embedder.errors import RagdbError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DATABASE: Final = "chroma.sqlite3"
# What Postgres cannot hold in a text.
_NUL: Final = "\N{SYMBOL FOR NULL}"


@dataclass(frozen=True)
class Record:
    """A record of a collection; any of its parts but the id may be missing."""

    id: str
    document: str | None
    metadata: dict[str, Any]
    uri: str | None
    embedding: NDArray[np.float32] | None

    @property
    def has_text(self) -> bool:
        """Is there anything in the document to search for?"""
        return bool(self.document and self.document.strip())

    @property
    def text(self) -> str:
        """The document; of a record without one its uri or its id stands for it."""
        return cleaned(cast("str", self.document) if self.has_text else self.uri or self.id)

    @property
    def vector(self) -> NDArray[np.float32] | None:
        """The embedding if it has a direction."""
        return self.embedding if self.embedding is not None and self.embedding.any() else None


def cleaned(text: str) -> str:
    """The text as Postgres can hold it: NUL as its symbol."""
    return text.replace("\0", _NUL)


def cleaned_metadata(value: object) -> Any:  # noqa: ANN401
    """Metadata as jsonb can hold it: NUL in keys and texts as its symbol."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {cleaned(key): cleaned_metadata(item) for key, item in items}
    if isinstance(value, list):
        return [cleaned_metadata(item) for item in cast("list[object]", value)]
    return value


class Collection:
    """A collection of Chroma."""

    def __init__(self, library_collection: Any) -> None:  # noqa: ANN401
        self._collection = library_collection
        self.name: str = library_collection.name
        self.metadata: dict[str, Any] = dict(library_collection.metadata or {})
        self.configuration: dict[str, Any] = dict(library_collection.configuration_json or {})

    def __len__(self) -> int:
        return int(self._collection.count())

    @property
    def space(self) -> str:
        """How it measures distance: l2, cosine or ip."""
        for kind in ("hnsw", "spann"):
            if settings := self.configuration.get(kind):
                return str(cast("dict[str, Any]", settings).get("space", "l2"))
        return str(self.metadata.get("hnsw:space", "l2"))

    @property
    def model(self) -> str | None:
        """The name of the model that its embedding function states, None if it states none."""
        function = cast("dict[str, Any]", self.configuration.get("embedding_function") or {})
        config = cast("dict[str, Any]", function.get("config") or {})
        if function.get("name") == "default":
            # Chroma's own is this model by ONNX.
            return "all-MiniLM-L6-v2"
        name = config.get("model_name") or config.get("model")
        return str(name).rpartition("/")[2] if name else None

    def ids(self) -> list[str]:
        """The ids of all records."""
        found: list[str] = []
        while True:
            part = self._collection.get(limit=10_000, offset=len(found), include=[])["ids"]
            found += part
            if len(part) < 10_000:
                return found

    def records(self, ids: Sequence[str]) -> list[Record]:
        """Records by their ids, in the order of the ids; those that are gone are left out."""
        if not ids:
            return []
        include = ["documents", "metadatas", "embeddings", "uris"]
        got = cast("dict[str, Any]", self._collection.get(ids=[*ids], include=include))
        by_id: dict[str, Record] = {}
        for place, one in enumerate(cast("list[str]", got["ids"])):
            vectors = got["embeddings"]
            vector = None if vectors is None else vectors[place]
            by_id[one] = Record(
                one,
                (got["documents"] or {place: None})[place],
                dict((got["metadatas"] or {place: None})[place] or {}),
                (got["uris"] or {place: None})[place],
                None if vector is None else np.asarray(vector, dtype=np.float32),
            )
        return [by_id[one] for one in ids if one in by_id]

    def batches(self, ids: Sequence[str], size: int) -> Iterator[list[Record]]:
        """Records by their ids, so many at a time."""
        for start in range(0, len(ids), size):
            yield self.records(ids[start : start + size])

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[str]:
        """The ids of the k records that Chroma finds nearest to a vector."""
        got = self._collection.query(query_embeddings=[vector.tolist()], n_results=k, include=[])
        return list(got["ids"][0])


class Source:
    """A Chroma database."""

    def __init__(self, client: Any, name: str) -> None:  # noqa: ANN401
        self._client = client
        self.name = name

    @property
    def version(self) -> str:
        """The version of Chroma."""
        return str(self._client.get_version())

    def collections(self, names: Sequence[str] = ()) -> list[Collection]:
        """The collections of these names, or all, by name. Raises RagdbError for an unknown one."""
        found: dict[str, Collection] = {}
        while part := self._client.list_collections(limit=1000, offset=len(found)):
            found |= {one.name: Collection(one) for one in part}
        if missing := sorted({*names} - found.keys()):
            raise RagdbError(
                "there is no such collection in Chroma",
                detail=f"{', '.join(missing)} not found; there are {', '.join(sorted(found))}.",
            )
        return [found[name] for name in sorted(names or found)]


@contextmanager
def opened(place: str, tenant: str | None = None, database: str | None = None) -> Generator[Source]:
    """A Chroma by its folder or by the URL of its server.

    tenant and database are Chroma's own. A token for the server comes from CHROMA_TOKEN. Raises
    RagdbError: chromadb is not installed, nothing there, no answer.
    """
    try:
        chromadb: Any = importlib.import_module("chromadb")
        settings: Any = importlib.import_module("chromadb.config").Settings
    except ModuleNotFoundError as error:
        raise RagdbError(
            "the package chromadb is not installed", hint="pip install 'ragdb[chroma]'"
        ) from error
    chosen = {"tenant": tenant or "default_tenant", "database": database or "default_database"}
    quiet = settings(anonymized_telemetry=False)
    with contextlib.ExitStack() as stack:
        try:
            if place.startswith(("http://", "https://")):
                url = urlsplit(place)
                token = os.environ.get("CHROMA_TOKEN", "")
                client = chromadb.HttpClient(
                    host=url.hostname,
                    port=url.port or (443 if url.scheme == "https" else 8000),
                    ssl=url.scheme == "https",
                    headers={"x-chroma-token": token} if token else None,
                    settings=quiet,
                    **chosen,
                )
                source = Source(client, place.rstrip("/"))
            else:
                copy = stack.enter_context(_copied(Path(place)))
                client = chromadb.PersistentClient(str(copy), settings=quiet, **chosen)
                source = Source(client, str(Path(place).resolve()))
        except (RagdbError, OSError, sqlite3.Error):
            raise
        except Exception as error:
            # Its errors have no class in common.
            raise RagdbError(
                "Chroma cannot be opened", detail=f"{place}: {type(error).__name__}: {error}"
            ) from error
        yield source


@contextmanager
def _copied(folder: Path) -> Generator[Path]:
    """A copy of a folder of Chroma, beside other temporary files, for as long as it is needed."""
    if not (folder / _DATABASE).is_file():
        raise RagdbError(
            "there is no Chroma in this folder",
            detail=f"{folder} has no {_DATABASE}.",
            hint="Name the folder of a PersistentClient, or the URL of a server.",
        )
    with tempfile.TemporaryDirectory(prefix="ragdb-chroma-") as made:
        copy = Path(made) / "chroma"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(f"{_DATABASE}*"))
        # As of one moment, even if somebody writes meanwhile; read-only, so no file is made there.
        uri = f"{(folder / _DATABASE).resolve().as_uri()}?mode=ro"
        with (
            contextlib.closing(sqlite3.connect(uri, uri=True)) as there,
            contextlib.closing(sqlite3.connect(copy / _DATABASE)) as here,
        ):
            there.backup(here)
        yield copy
