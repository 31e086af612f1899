"""pgTAP 1.3.5, fetched from npm once and loaded without being installed on the server.

`python -m tests.pgtap` fetches it ahead of a run without network.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import Connection

PACKAGE = "@electric-sql/pglite-pgtap@0.0.15"
TARBALL = "electric-sql-pglite-pgtap-0.0.15.tgz"
TARBALL_SHA256 = "ac214c27e10987c6623bef2100f98fc8a9977ed7026ddaf4b763d159c3c1ea01"
SCRIPT = "share/postgresql/extension/pgtap--1.3.5.sql"
SCRIPT_SHA256 = "92ee8ada9672e6201105a78614be8d07b8a76e5c17c85b42c279f6e48c84da68"

CACHE = Path(__file__).resolve().parent.parent / ".ragdb" / "pgtap"


class PgTapError(Exception):
    """pgTAP cannot be had; the message is one sentence for people."""


def script(cache: Path = CACHE) -> str:
    """The SQL that makes pgTAP's functions in the current schema, downloaded at the first call."""
    tarball = cache / TARBALL
    if not tarball.exists():
        _download(tarball)
    packed = tarball.read_bytes()
    if hashlib.sha256(packed).hexdigest() != TARBALL_SHA256:
        raise PgTapError(f"{tarball} is not what it should be: remove it and try again")
    with tarfile.open(fileobj=io.BytesIO(packed)) as package:
        inner = _member(package, "package/dist/pgtap.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as extension:
        text = _member(extension, SCRIPT)
    if hashlib.sha256(text).hexdigest() != SCRIPT_SHA256:
        raise PgTapError(f"{SCRIPT} in {tarball} is not what it should be")
    return text.decode()


def load(connection: Connection[Any], schema: str = "tap") -> None:
    """Make pgTAP in a schema of its own and put that first in the session's search path."""
    text = script()
    connection.execute(f"create schema {schema}".encode())
    connection.execute(f"set search_path = {schema}, public".encode())
    connection.execute("set client_min_messages = warning")
    connection.execute(text.encode())
    connection.execute("reset client_min_messages")


def _download(tarball: Path) -> None:
    """Fetch the package with npm; the file appears only when it is complete."""
    npm = shutil.which("npm")
    if npm is None:
        raise PgTapError(
            f"the SQL tests need pgTAP, which comes by npm, and npm is absent: {PACKAGE}"
        )
    tarball.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tarball.parent) as folder:
        answer = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", f"--pack-destination={folder}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        fetched = Path(folder) / TARBALL
        if answer.returncode != 0 or not fetched.exists():
            lines = (answer.stderr or answer.stdout).strip().splitlines() or ["npm said nothing"]
            raise PgTapError(f"pgTAP could not be fetched by npm pack {PACKAGE}: {lines[-1]}")
        fetched.replace(tarball)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise PgTapError(f"{name} is no file")
    return file.read()


if __name__ == "__main__":
    try:
        size = len(script())
    except PgTapError as error:
        sys.exit(f"error: {error}")
    print(f"pgTAP 1.3.5 is in {CACHE} ({size // 1000} kB of SQL)")
