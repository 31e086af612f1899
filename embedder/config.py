"""Settings, all from the environment and each one checked.

`python -m embedder config` prints them, with passwords hidden.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedder.errors import SettingsError
from embedder.readers import Limits

if TYPE_CHECKING:
    import argparse

    from embedder.commands import Subparsers

DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
HIDDEN: Final = "***"


class Secret:
    """A text that shows only when it is asked for: not in a log, a traceback or a repr."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN if self._text else ''})"

    def __str__(self) -> str:
        return HIDDEN if self._text else ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the embedder was told; made by `from_environment`."""

    # They may hold passwords.
    database_url: str = field(repr=False)
    listen_url: str = field(repr=False)
    model: str
    batch: int
    poll_seconds: float
    lease_seconds: float
    grace_seconds: float
    device: str
    threads: int
    backend: str
    api_key: Secret
    api_hosts: tuple[str, ...]
    http_port: int
    http_address: str
    log: Literal["human", "json"]
    offline: bool
    word_vector_texts: int
    files: Limits

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings of `environment` (default: of this process).

        Raises SettingsError with one sentence that names the variable, what it must be and what
        it is; the URL of a database is never repeated, it may hold a password.
        """
        given = os.environ if environment is None else environment
        database_url = _database_url(given)
        return cls(
            database_url=database_url,
            listen_url=_connection(given, "RAGDB_LISTEN_URL") or database_url,
            model=given.get("RAGDB_MODEL", "").strip() or DEFAULT_MODEL,
            batch=_whole(given, "RAGDB_BATCH", 64, 1, 10_000),
            poll_seconds=_seconds(given, "RAGDB_POLL_SECONDS", 1.0, 0.05, 3600),
            lease_seconds=_seconds(given, "RAGDB_LEASE_SECONDS", 120.0, 1, 86_400),
            grace_seconds=_seconds(given, "RAGDB_GRACE_SECONDS", 5.0, 0, 3600),
            device=_device(given),
            threads=_whole(given, "RAGDB_THREADS", cores(), 1, 1024),
            backend=_choice(given, "RAGDB_BACKEND", "auto", "torch", "torch-bf16"),
            api_key=_key(given),
            api_hosts=tuple(given.get("RAGDB_API_HOSTS", "").lower().replace(",", " ").split()),
            http_port=_whole(given, "RAGDB_HTTP_PORT", 0, 0, 65_535),
            http_address=given.get("RAGDB_HTTP_ADDRESS", "").strip() or "127.0.0.1",
            log=cast("Literal['human', 'json']", _choice(given, "RAGDB_LOG", "human", "json")),
            offline=_choice(given, "HF_HUB_OFFLINE", "0", "1") == "1",
            word_vector_texts=_whole(given, "RAGDB_WORD_VECTOR_TEXTS", 16_000, 0, 1_000_000),
            files=file_limits(given),
        )


def file_limits(environment: Mapping[str, str] | None = None) -> Limits:
    """What reading a file may cost, as `environment` has it; raises SettingsError."""
    given = os.environ if environment is None else environment
    return Limits(
        file_bytes=_whole(given, "RAGDB_FILE_MB", 50, 1, 50) * 1_000_000,
        seconds=_seconds(given, "RAGDB_FILE_SECONDS", 60.0, 0.5, 3600),
        # Below that the libraries themselves do not fit.
        memory_bytes=_whole(given, "RAGDB_FILE_MEMORY_MB", 1000, 400, 100_000) * 1_000_000,
        extractor=_extractor(given),
        extracted=tuple(
            f".{name.lstrip('.')}"
            for name in given.get("RAGDB_EXTRACTOR_FORMATS", "").lower().replace(",", " ").split()
        ),
    )


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment, for people: its name, what it is for, how it is shown."""

    name: str
    meaning: str
    shown: Callable[[Settings], str]


VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        "DATABASE_URL",
        "the server; default: the local embedded one",
        lambda s: redacted(s.database_url),
    ),
    Variable(
        "RAGDB_LISTEN_URL",
        "a direct URL to listen on, when DATABASE_URL goes through a transaction pooler",
        lambda s: redacted(s.listen_url),
    ),
    Variable(
        "RAGDB_MODEL",
        "the model of loadtests.embedder_throughput; those of a database are in rag.models",
        lambda s: s.model,
    ),
    Variable("RAGDB_BATCH", "jobs per claim, 1 to 10000", lambda s: str(s.batch)),
    Variable(
        "RAGDB_POLL_SECONDS",
        "time between looks at the queue while idle",
        lambda s: f"{s.poll_seconds:g}",
    ),
    Variable(
        "RAGDB_LEASE_SECONDS",
        "time after which the jobs of a dead worker are taken over",
        lambda s: f"{s.lease_seconds:g}",
    ),
    Variable(
        "RAGDB_GRACE_SECONDS",
        "longest wait for the model when it is told to stop",
        lambda s: f"{s.grace_seconds:g}",
    ),
    Variable("RAGDB_DEVICE", "auto, cpu, cuda, cuda:N or mps", lambda s: s.device),
    Variable(
        "RAGDB_THREADS",
        "threads for computing; default: the cores this process may use",
        lambda s: str(s.threads),
    ),
    Variable(
        "RAGDB_BACKEND",
        "what computes on a CPU: auto (the fastest that is true to float32), torch or torch-bf16",
        lambda s: s.backend,
    ),
    Variable("RAGDB_API_KEY", "the key of a provider by HTTP", lambda s: str(s.api_key)),
    Variable(
        "RAGDB_API_HOSTS",
        "the only hosts that a model's url may name; default: any",
        lambda s: " ".join(s.api_hosts),
    ),
    Variable(
        "RAGDB_HTTP_PORT",
        "port for /metrics and /healthz; 0: none",
        lambda s: str(s.http_port),
    ),
    Variable("RAGDB_HTTP_ADDRESS", "address to serve them at", lambda s: s.http_address),
    Variable(
        "RAGDB_WORD_VECTOR_TEXTS",
        "texts that word vectors are learned from; 0: do not learn them",
        lambda s: str(s.word_vector_texts),
    ),
    Variable(
        "RAGDB_FILE_MB",
        "the largest file that is read, 1 to 50 MB",
        lambda s: f"{s.files.file_bytes / 1_000_000:g}",
    ),
    Variable(
        "RAGDB_FILE_SECONDS", "the longest time for one file", lambda s: f"{s.files.seconds:g}"
    ),
    Variable(
        "RAGDB_FILE_MEMORY_MB",
        "address space of a process that reads files (Linux)",
        lambda s: f"{s.files.memory_bytes / 1_000_000:g}",
    ),
    Variable(
        "RAGDB_EXTRACTOR",
        "who reads scans and other formats: tika+http://host:9998 or docling+http://host:5001",
        lambda s: s.files.extractor,
    ),
    Variable(
        "RAGDB_EXTRACTOR_FORMATS",
        "endings that always go there, such as pdf docx; default: only what is not read here",
        lambda s: " ".join(ending.lstrip(".") for ending in s.files.extracted),
    ),
    Variable("RAGDB_LOG", "human or json", lambda s: s.log),
    Variable(
        "HF_HUB_OFFLINE",
        "1: load models only from this machine",
        lambda s: "1" if s.offline else "0",
    ),
)


def redacted(url: str) -> str:
    """A URL or connection string with every password replaced, for logs and people."""
    parts = {key: value for key, value in conninfo_to_dict(url).items() if value is not None}
    if not any("password" in key for key in parts):
        return url
    return make_conninfo(
        "", **{key: HIDDEN if "password" in key else value for key, value in parts.items()}
    )


def cores(root: Path = Path("/")) -> int:
    """How many cores this process may keep busy, at least 1.

    That is its CPU affinity or, where lower, the quota of its control group or of a parent of it
    (v1 and v2), rounded up. torch looks at the machine instead, and a container with 2 cores of
    64 would be throttled.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """CPU quotas in cores that hold for this process, read below `root`."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount = root / "sys/fs/cgroup"
    found: list[float] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if number == "0":
            found += _quotas_upwards(mount, inside, _quota_v2)
        elif "cpu" in controllers.split(","):
            for name in {"cpu", controllers}:
                found += _quotas_upwards(mount / name, inside, _quota_v1)
    return found


def _quotas_upwards(mount: Path, inside: str, read: Callable[[Path], float | None]) -> list[float]:
    # In a container the path may be that of the host and not exist: its parents still count,
    # and the mount itself is the container's own group.
    group = mount / inside
    folders = [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return [quota for folder in folders if (quota := read(folder)) is not None]


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
    except OSError:
        return None
    return None if quota <= 0 else quota / period


def _database_url(given: Mapping[str, str]) -> str:
    if url := _connection(given, "DATABASE_URL"):
        return url
    # A container with nothing but the embedder has no embedded server.
    try:
        from db.server import ServerError, database_url
    except ModuleNotFoundError:
        raise SettingsError("DATABASE_URL is not set and there is no embedded server") from None
    try:
        return database_url()
    except ServerError as error:
        raise SettingsError(f"DATABASE_URL is not set and {error}") from error


def _connection(given: Mapping[str, str], name: str) -> str | None:
    value = given.get(name, "").strip()
    if not value:
        return None
    try:
        conninfo_to_dict(value)
    except ProgrammingError:
        raise SettingsError(
            f"{name} must be a URL like postgresql://user:password@host:5432/database "
            "(not shown here: it may hold a password)"
        ) from None
    return value


def _whole(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, "").strip()
    if not value:
        return default
    if not re.fullmatch(r"\d{1,9}", value) or not least <= int(value) <= most:
        raise SettingsError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return int(value)


def _seconds(
    given: Mapping[str, str], name: str, default: float, least: float, most: float
) -> float:
    value = given.get(name, "").strip()
    if not value:
        return default
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise SettingsError(f"{name} must be seconds from {least:g} to {most:g}, not {value!r}")
    return seconds


def _choice(given: Mapping[str, str], name: str, default: str, *others: str) -> str:
    value = given.get(name, "").strip() or default
    choices = [default, *others]
    if value not in choices:
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise SettingsError(f"{name} must be {listed}, not {value!r}")
    return value


def _key(given: Mapping[str, str]) -> Secret:
    value = given.get("RAGDB_API_KEY", "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", value):
        raise SettingsError("RAGDB_API_KEY must be ASCII without spaces (not shown here)")
    return Secret(value)


def _extractor(given: Mapping[str, str]) -> str:
    value = given.get("RAGDB_EXTRACTOR", "").strip()
    if value and not re.fullmatch(r"(tika|docling)\+https?://[^\s/@]+(/\S*)?", value):
        raise SettingsError(
            "RAGDB_EXTRACTOR must be tika+http://host:9998 or docling+http://host:5001, "
            + ("(not shown here: it may hold a password)" if "@" in value else f"not {value!r}")
        )
    return value


def _device(given: Mapping[str, str]) -> str:
    value = given.get("RAGDB_DEVICE", "").strip() or "auto"
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise SettingsError(f"RAGDB_DEVICE must be auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `config`."""
    parser = subparsers.add_parser(
        "config", help="show the settings", description="Show the settings, passwords hidden."
    )
    parser.set_defaults(func=_show)


def _show(_arguments: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    width = max(len(variable.name) for variable in VARIABLES)
    for variable in VARIABLES:
        print(f"{variable.name:<{width}}  {variable.shown(settings)}")
        print(f"{'':<{width}}    {variable.meaning}")
    return 0
