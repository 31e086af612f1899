"""A real pgbouncer in transaction mode, in front of the server of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Debian puts it where only root looks.
BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
USER_CONNECTIONS = 4
START_SECONDS = 20


@contextmanager
def transaction_pool(url: str, users: Sequence[str], folder: Path) -> Iterator[str]:
    """Run pgbouncer for the database of a URL; the URL of the pool, for the first of the users.

    Each user gets a few connections of the server; folder is where its files are.
    """
    assert BINARY is not None
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    database = parts.path.lstrip("/")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "users.txt").write_text("".join(f'"{user}" ""\n' for user in users))
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
{database} = host={query["host"][0]} port={query.get("port", ["5432"])[0]} dbname={database}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder / "users.txt"}
pool_mode = transaction
default_pool_size = {USER_CONNECTIONS}
max_client_conn = 200
logfile = {folder / "pgbouncer.log"}
"""
    )
    # As root it refuses to run.
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if account:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
        for parent in folder.parents:
            mode = parent.stat().st_mode
            if not mode & 0o001:
                parent.chmod(mode | 0o001)
    process = subprocess.Popen(
        [BINARY, str(folder / "pgbouncer.ini")],
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        pool = f"postgresql://{users[0]}@127.0.0.1:{port}/{database}"
        until = time.monotonic() + START_SECONDS
        while True:
            with suppress(psycopg.OperationalError), psycopg.connect(pool, connect_timeout=2):
                break
            assert process.poll() is None, (folder / "pgbouncer.log").read_text()
            assert time.monotonic() < until, (folder / "pgbouncer.log").read_text()
            time.sleep(0.05)
        yield pool
    finally:
        process.terminate()
        process.wait(timeout=20)
