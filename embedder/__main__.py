"""`python -m embedder COMMAND`: run the embedder, and use ragdb from the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

import psycopg

from embedder import __version__
from embedder.commands import MODULES
from embedder.database import reason
from embedder.errors import NotAllowedError, RagdbError

ERROR = 1
INTERRUPTED = 130
# 128 + SIGPIPE, as of programs that do not catch it.
BROKEN_PIPE = 141
# Whose functions a command calls, for a login that may not.
ROLES = {
    "run": "rag_worker",
    "wait": "rag_worker",
    "maintain": "rag_admin",
    "export": "rag_app",
    "import": "rag_app",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. An error of ours is one line on standard error."""
    given = sys.argv[1:] if arguments is None else [*arguments]
    options = _parser(given).parse_args(given)
    run = cast("Callable[[argparse.Namespace], int]", options.func)
    try:
        code = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough. Python would say so again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except RagdbError as error:
        if isinstance(error, NotAllowedError) and not error.hint and given[0] in ROLES:
            error.hint = f"needs a login in role {ROLES[given[0]]}"
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except psycopg.Error as error:
        print(f"error: the database refused: {reason(error)}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedder", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ragdb {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    # A command loads its own module only: the readers of `ingest` alone take half a second.
    named = [name for name in MODULES if given[:1] == [name]]
    for name in named or MODULES:
        importlib.import_module(MODULES[name]).add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
