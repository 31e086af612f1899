"""Structured logs: one event a line, for people or as JSON.

Never logged: texts, tenants, vectors and secrets. An event is a short sentence without values; the
values are fields:

    LOG.info("embedded a batch", extra=fields(batch=64, seconds=1.9))
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

Value = str | int | float | bool | None


def fields(**values: Value) -> dict[str, dict[str, Value]]:
    """Key fields of an event, for the `extra` of a logging call; floats are seconds or rates."""
    return {"fields": values}


def _fields_of(record: logging.LogRecord) -> dict[str, Value]:
    return getattr(record, "fields", {})


def _rounded(value: Value) -> Value:
    return round(value, 3) if isinstance(value, float) else value


class HumanFormatter(logging.Formatter):
    """`09:14:03 info embedded a batch  batch=64 seconds=1.9` in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, more for a traceback."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        line = f"{moment} {record.levelname.lower()} {record.getMessage()}"
        values = " ".join(f"{key}={_rounded(value)}" for key, value in _fields_of(record).items())
        if values:
            line = f"{line}  {values}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC, ISO 8601), `level`, `logger`, `event`, the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, a traceback inside it."""
        event: dict[str, Value] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        event.update({key: _rounded(value) for key, value in _fields_of(record).items()})
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def configure(style: Literal["human", "json"], stream: TextIO | None = None) -> None:
    """Send events to `stream` (default: standard error).

    This package's from level info; of everybody else's only warnings and worse.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("embedder").setLevel(logging.INFO)
