"""The worker's SQL, by name, from queries.sql."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final, LiteralString, cast


def parse(text: LiteralString) -> dict[str, LiteralString]:
    """Statements by name: `-- name: x`, comment lines that describe it, the statement.

    Raises ValueError for a name given twice or without a statement.
    """
    statements: dict[str, LiteralString] = {}
    for part in re.split(r"^-- name: ", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        statement = re.sub(r"^--.*\n", "", body, flags=re.MULTILINE).strip()
        if name in statements or not statement:
            raise ValueError(f"queries.sql: {name} is given twice or has no statement")
        statements[name] = cast("LiteralString", statement)
    return statements


# A file of this package is as literal as a string in its source.
QUERIES: Final = parse(
    cast("LiteralString", files("embedder").joinpath("queries.sql").read_text("utf-8"))
)
