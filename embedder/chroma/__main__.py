"""`python -m embedder.chroma COMMAND`: the move from Chroma into a tenant of ragdb."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from embedder import terminal
from embedder.chroma import backup, source
from embedder.chroma.migrate import Migration, Migrator, rollback
from embedder.chroma.verify import Verifier
from embedder.errors import RagdbError
from embedder.terminal import count

Step = Callable[[str, int, int], None]

# Without a terminal a line that often.
_LINE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 done, 1 failed or not verified, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    run = cast("Callable[[argparse.Namespace], int]", options.func)
    try:
        return run(options)
    except (psycopg.Error, RagdbError) as error:
        terminal.show_error(error)
        return 1
    except OSError as error:
        terminal.show_error(RagdbError(str(error)))
        return 1
    except KeyboardInterrupt:
        terminal.news().print("Interrupted; the same command goes on.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedder.chroma", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    one = commands.add_parser("backup", help="write all collections as JSON lines with checksums")
    _add_source(one)
    one.add_argument("folder", type=Path, metavar="FOLDER", help="where to; must have no backup")
    one.add_argument("--collection", action="append", default=[], help="only this one; repeatable")
    one.set_defaults(func=_backup)

    one = commands.add_parser("migrate", help="bring collections into a tenant; resumable")
    _add_source(one)
    _add_tenant(one)
    one.add_argument("--collection", action="append", default=[], help="only this one; repeatable")
    one.add_argument("--prefix", default="", help="put before the names of the collections")
    one.add_argument("--model", help="the model of the vectors; default: what Chroma states")
    one.add_argument("--language", help="text search configuration; default: as it is detected")
    one.add_argument("--batch", type=_positive, default=500, help="records a transaction")
    one.set_defaults(func=_migrate)

    one = commands.add_parser("verify", help="compare everything, and searches in both")
    _add_source(one)
    _add_tenant(one)
    one.add_argument("--run", type=int, help="which migration; default: the last of this source")
    one.add_argument("--queries", type=_positive, default=100, help="searches a collection")
    one.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write verify.md and verify.json there"
    )
    one.set_defaults(func=_verify)

    one = commands.add_parser("rollback", help="remove what a migration brought")
    _add_tenant(one)
    one.add_argument("run", type=int, help="the id that migrate printed; they are in rag.runs")
    one.set_defaults(func=_rollback)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="the folder of a Chroma, or the URL of its server"
    )
    parser.add_argument("--chroma-tenant", help="the tenant in Chroma")
    parser.add_argument("--chroma-database", help="the database in Chroma")


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", help="the tenant of ragdb; default: the caller's")


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError("a number from 1 to 10,000")
    return int(text)


def _opened(options: argparse.Namespace) -> AbstractContextManager[source.Source]:
    return source.opened(options.source, options.chroma_tenant, options.chroma_database)


def _backup(options: argparse.Namespace) -> int:
    with _opened(options) as chroma, _progress() as step:
        manifest = backup.backup(chroma, options.folder, options.collection, step)
    if problems := backup.check(options.folder):
        raise RagdbError("the backup cannot be read back", detail="; ".join(problems))
    terminal.answers().print(
        f"{count(manifest['records'], 'record')} of "
        f"{count(len(manifest['collections']), 'collection')} in {options.folder}, checksums in "
        f"{backup.MANIFEST}; {manifest['seconds']:.1f} s.",
        markup=False,
    )
    return 0


def _migrate(options: argparse.Namespace) -> int:
    started = time.monotonic()
    with _opened(options) as chroma, terminal.connect("chroma", options.tenant) as connection:
        migrator = Migrator(
            connection,
            chroma,
            prefix=options.prefix,
            model=options.model,
            language=options.language,
            batch=options.batch,
        )
        with _progress() as step:
            migration = migrator.run(options.collection, step)
    _tell(migration, time.monotonic() - started)
    return 1 if migration.left_out else 0


def _tell(migration: Migration, seconds: float) -> None:
    console = terminal.answers()
    for one in migration.collections:
        how = f"vectors of {one.model} kept" if one.model else f"to be embedded: {one.why_not_kept}"
        console.print(
            f"{one.name}: {one.inserted:,} of {count(one.records, 'record')} brought, "
            f"{one.present:,} there already; {one.vectors:,} vectors kept, {one.queued:,} queued, "
            f"{one.without_text:,} without text ({how}).",
            markup=False,
        )
    for left_out in migration.left_out[:20]:
        console.print(
            f"left out: {left_out.collection} {terminal.printable(left_out.id)}: {left_out.reason}",
            markup=False,
        )
    brought = sum(one.inserted for one in migration.collections)
    again = ", resumed" if migration.resumed else ""
    console.print(
        f"Run {migration.run_id}{again}: {count(brought, 'record')} brought, "
        f"{len(migration.left_out):,} left out; {seconds:.1f} s "
        f"({brought / max(seconds, 0.001):.0f} records/s).",
        markup=False,
    )


def _verify(options: argparse.Namespace) -> int:
    with _opened(options) as chroma, terminal.connect("chroma", options.tenant) as connection:
        verifier = Verifier(connection, chroma, run_id=options.run, queries=options.queries)
        with _progress() as step:
            report = verifier.run(step)
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "verify.md").write_text(report.as_markdown())
        (options.report / "verify.json").write_text(report.as_json())
    terminal.answers().print(report.as_markdown(), markup=False, end="")
    return 0 if report.passed else 1


def _rollback(options: argparse.Namespace) -> int:
    with terminal.connect("chroma", options.tenant) as connection:
        removed, kept = rollback(connection, options.run)
    told = f"; {count(kept, 'document')} put anew since then kept" if kept else ""
    terminal.answers().print(
        f"Run {options.run} is rolled back: {count(removed, 'document')} removed{told}."
    )
    return 0


@contextmanager
def _progress() -> Generator[Step]:
    """A bar with rate and time left; without a terminal a line now and then."""
    console = terminal.news()
    if not console.is_terminal:
        started = told = time.monotonic()

        def tell(name: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= _LINE_SECONDS:
                told = time.monotonic()
                rate = done / max(told - started, 0.001)
                console.print(f"{name}: {done:,} of {total:,}, {rate:.0f}/s", markup=False)

        yield tell
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {"": progress.add_task("", visible=False)}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield advance


if __name__ == "__main__":
    sys.exit(main())
