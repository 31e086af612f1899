"""The errors of ragdb: class RG of the database mirrored by SQLSTATE, and those of the embedder.

The docstring of a class, without its full stop, is its message when the database gives none.
"""

from __future__ import annotations

from typing import ClassVar

import psycopg


class RagdbError(Exception):
    """something in ragdb went wrong."""

    sqlstate: ClassVar[str | None] = None
    message: str
    detail: str | None
    hint: str | None

    def __init__(
        self, message: str | None = None, *, detail: str | None = None, hint: str | None = None
    ) -> None:
        self.message = message or (type(self).__doc__ or "").rstrip(".")
        self.detail = detail
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return "; ".join(part for part in (self.message, self.detail, self.hint) if part)


class TenantNotSetError(RagdbError):
    """no tenant is set."""

    sqlstate: ClassVar[str | None] = "RG001"


class UnknownTenantError(RagdbError):
    """there is no such tenant."""

    sqlstate: ClassVar[str | None] = "RG002"


class UnknownCollectionError(RagdbError):
    """there is no such collection."""

    sqlstate: ClassVar[str | None] = "RG003"


class DocumentTooLargeError(RagdbError):
    """the document is too large."""

    sqlstate: ClassVar[str | None] = "RG004"


class UnknownModelError(RagdbError):
    """there is no such model."""

    sqlstate: ClassVar[str | None] = "RG005"


class QueryEmbeddingMissingError(RagdbError):
    """a semantic search needs the embedding of the query."""

    sqlstate: ClassVar[str | None] = "RG006"


class UnsupportedPgvectorError(RagdbError):
    """this version of pgvector is not supported."""

    sqlstate: ClassVar[str | None] = "RG007"


class InvalidParameterError(RagdbError):
    """a parameter is not valid."""

    sqlstate: ClassVar[str | None] = "22023"


class NotAllowedError(RagdbError):
    """this role is not allowed to do that."""

    sqlstate: ClassVar[str | None] = "42501"


class NoDataError(RagdbError):
    """nothing was found."""

    sqlstate: ClassVar[str | None] = "P0002"


class SettingsError(RagdbError):
    """a setting is not valid."""


class NotMigratedError(RagdbError):
    """the database has no ragdb in it."""


class UnreachableError(RagdbError):
    """the database cannot be reached."""


class ModelError(RagdbError):
    """the embedding model cannot be used."""


class StoppedError(RagdbError):
    """asked to stop while waiting for the database."""


BY_SQLSTATE: dict[str, type[RagdbError]] = {
    kind.sqlstate: kind for kind in RagdbError.__subclasses__() if kind.sqlstate is not None
}


def from_database(error: psycopg.Error) -> RagdbError | None:
    """The error of ragdb that a database error stands for.

    It has the server's message, detail and hint. None when its SQLSTATE is not one of ours.
    """
    kind = BY_SQLSTATE.get(error.sqlstate or "")
    if kind is None:
        return None
    diagnosis = error.diag
    return kind(
        diagnosis.message_primary, detail=diagnosis.message_detail, hint=diagnosis.message_hint
    )
