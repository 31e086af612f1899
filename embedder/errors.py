"""The errors of ragdb: class RG of the database mirrored by SQLSTATE, and those of the embedder.

The first line of a class's docstring, without its full stop, is its message when the database gives
none.
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
        self.message = message or (type(self).__doc__ or "").partition("\n")[0].rstrip(".")
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


class QuotaReachedError(RagdbError):
    """the tenant has as much as its quota allows."""

    sqlstate: ClassVar[str | None] = "RG020"


class TooManyRequestsError(RagdbError):
    """the tenant asks for more in a minute than its quota allows."""

    sqlstate: ClassVar[str | None] = "RG021"


class TenantSuspendedError(RagdbError):
    """the tenant is suspended."""

    sqlstate: ClassVar[str | None] = "RG022"


class TokenRefusedError(RagdbError):
    """the token is refused."""

    sqlstate: ClassVar[str | None] = "28000"


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


class ProviderAwayError(RagdbError):
    """the provider of the model cannot be used now.

    `retry_after` is the number of seconds that it wants to be left alone, if it said so;
    `is_limit` tells that it works and only asks for less.
    """

    retry_after: float | None
    is_limit: bool

    def __init__(
        self, message: str, *, retry_after: float | None = None, is_limit: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_limit = is_limit


class ProviderStumbledError(RagdbError):
    """the provider of the model fails over these texts, and works for others."""


class TextRefusedError(RagdbError, ValueError):
    """the provider of the model refuses this text."""


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
