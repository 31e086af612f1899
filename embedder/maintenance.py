"""`python -m embedder maintain`: what cron calls, and what a person looks at first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psycopg

from embedder import terminal
from embedder.database import translated
from embedder.queries import QUERIES

if TYPE_CHECKING:
    import argparse

    from embedder.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add `maintain` to the command line."""
    parser = subparsers.add_parser(
        "maintain", help="fold statistics, move tenants, rebuild indexes, analyze, tidy up"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")
    parser.add_argument(
        "--promote-at", type=int, default=10000, metavar="CHUNKS", help="default %(default)s"
    )
    parser.add_argument(
        "--demote-at", type=int, default=5000, metavar="CHUNKS", help="default %(default)s"
    )
    parser.add_argument(
        "--bloat", type=float, default=0.3, metavar="SHARE", help="default %(default)s"
    )
    parser.add_argument(
        "--most-partitions", type=int, default=500, metavar="N", help="default %(default)s"
    )
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    given = {
        "promote_at": options.promote_at,
        "demote_at": options.demote_at,
        "bloat": options.bloat,
        "most_partitions": options.most_partitions,
    }
    with terminal.connect("maintain") as connection, translated():
        if options.dry_run:
            rows = connection.execute(QUERIES["maintenance_plan"], given).fetchall()
        else:
            try:
                connection.execute(QUERIES["maintain"], given)
            except psycopg.errors.LockNotAvailable as error:
                # Whoever calls it by the clock meets that now and then; nothing is wrong.
                print(error.diag.message_primary, error.diag.message_detail, file=sys.stderr)
                return 0
            rows = connection.execute(QUERIES["maintenance_report"]).fetchall()
    for action, subject, text in rows:
        print(f"{action:<16} {subject:<40} {text}")
    if not rows:
        print("nothing to do")
    return 0
