"""Backup: every collection as JSON lines, with checksums and a manifest."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from embedder.chroma.source import Collection, Record, Source
from embedder.errors import RagdbError

MANIFEST: Final = "manifest.json"
BATCH: Final = 500


def backup(
    source: Source, folder: Path, names: Sequence[str], step: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Write collections into a folder that has no backup yet; returns the manifest.

    A line is {"id", "document", "metadata", "uri", "embedding"}; numbers are written in full, so
    that what is read is what was there. The manifest comes last: without it a backup is incomplete.
    """
    if (folder / MANIFEST).exists():
        raise RagdbError(
            "there is a backup already",
            detail=f"{folder / MANIFEST} exists.",
            hint="Name another folder.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC)
    clock = time.monotonic()
    files = [
        _write(collection, folder / _file_name(number, collection.name), step)
        for number, collection in enumerate(source.collections(names), start=1)
    ]
    manifest: dict[str, Any] = {
        "source": source.name,
        "chroma": source.version,
        "started_at": started.isoformat(),
        "finished_at": datetime.now(UTC).isoformat(),
        "seconds": round(time.monotonic() - clock, 3),
        "records": sum(file["records"] for file in files),
        "collections": files,
    }
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    part.rename(folder / MANIFEST)
    return manifest


def check(folder: Path) -> list[str]:
    """What is wrong with a backup, a sentence each: files missing, of other sizes, changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    problems: list[str] = []
    for entry in manifest["collections"]:
        path = folder / entry["file"]
        if not path.is_file():
            problems.append(f"{entry['file']} is missing")
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            problems.append(f"{entry['file']} is not what was written: its checksum differs")
    return problems


def _file_name(number: int, name: str) -> str:
    return f"{number:03}-{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:60]}.jsonl"


def _write(
    collection: Collection, path: Path, step: Callable[[str, int, int], None]
) -> dict[str, Any]:
    ids = collection.ids()
    digest = hashlib.sha256()
    records = missing = 0
    dimensions: set[int] = set()
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        for batch in collection.batches(ids, BATCH):
            for record in batch:
                line = (json.dumps(as_json(record), ensure_ascii=False) + "\n").encode()
                digest.update(line)
                file.write(line)
                missing += record.document is None
                if record.embedding is not None:
                    dimensions.add(len(record.embedding))
            records += len(batch)
            step(collection.name, records, len(ids))
    part.rename(path)
    return {
        "name": collection.name,
        "file": path.name,
        "records": records,
        "without_document": missing,
        "dimensions": sorted(dimensions),
        "metadata": collection.metadata,
        "configuration": collection.configuration,
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
    }


def as_json(record: Record) -> dict[str, Any]:
    """A record as a line of a backup has it."""
    return {
        "id": record.id,
        "document": record.document,
        "metadata": record.metadata,
        "uri": record.uri,
        "embedding": None if record.embedding is None else record.embedding.tolist(),
    }
