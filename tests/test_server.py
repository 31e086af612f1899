"""The embedded server: made, started and stopped in every way that goes wrong."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from db.server import SOCKET, SOCKET_BYTES, Server, ServerError, database_url, default_version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

PROJECT = Path(__file__).resolve().parent.parent
VERSION = default_version()
OTHER_VERSION = {16: 18, 18: 16}[VERSION]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


def short_folder() -> Iterator[Path]:
    """A folder for servers, all of which are stopped at the end.

    Not pytest's tmp_path: its parent is made private again by every other run.
    """
    path = Path(tempfile.mkdtemp(prefix="ragdb-"))
    path.chmod(0o755)
    yield path
    for data in path.rglob("data/PG_VERSION"):
        Server(data.parents[2], int(data.read_text())).stop(immediate=True)
    shutil.rmtree(path)


folder = pytest.fixture(short_folder, name="folder")
module_folder = pytest.fixture(short_folder, name="module_folder", scope="module")


@pytest.fixture(scope="module")
def made(module_folder: Path) -> Path:
    """A data folder to copy: making one takes seconds."""
    made = Server(module_folder, VERSION)
    made.start()
    made.stop()
    return made.folder


@pytest.fixture
def ready(folder: Path, made: Path) -> Server:
    """A server that was made and stopped."""
    copy(made, folder / made.name)
    return Server(folder, VERSION)


def copy(source: Path, target: Path) -> None:
    """Copy with owners, as root has to."""
    subprocess.run(["cp", "-a", source, target], check=True)


def pid_of(server: Server) -> int:
    return int((server.data / "postmaster.pid").read_text().split()[0])


def kill(server: Server) -> None:
    """As a power cut would."""
    pid = pid_of(server)
    os.kill(pid, signal.SIGKILL)
    while server.running:
        time.sleep(0.01)


def answer(server: Server, query: str = "select 1") -> object:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row and row[0]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ServerError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def call(*arguments: str, version: int = VERSION) -> subprocess.CompletedProcess[str]:
    """The command line; its pipes tell when somebody keeps them open."""
    return subprocess.run(
        [sys.executable, "-m", "db.server", *arguments],
        cwd=PROJECT,
        env={**os.environ, "PG": str(version)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Starting and stopping


def test_a_server_is_made_started_and_stopped(folder: Path) -> None:
    server = Server(folder, VERSION)
    assert not server.running
    assert not server.stop()
    assert server.start()
    assert server.running
    assert not server.start()
    assert answer(server, "show server_version_num").__str__().startswith(str(VERSION))
    assert answer(server, "select current_database()") == "ragdb"
    assert server.stop()
    assert not server.running
    assert not server.stop()
    assert not (server.data / "postmaster.pid").exists()


def test_it_is_durable_and_listens_on_its_socket_only(server: Server) -> None:
    with psycopg.connect(server.url()) as connection:
        rows = connection.execute("select name, setting from pg_settings").fetchall()
    settings = {str(name): str(setting) for name, setting in rows}
    for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
        assert settings[name] == "on"
    assert settings["listen_addresses"] == ""
    assert settings["server_encoding"] == "UTF8"
    assert stat.S_IMODE((server.folder / "run").stat().st_mode) == 0o700


def test_words_with_accents_are_words(server: Server) -> None:
    """With the C locale « and the dash would stick to the words."""
    assert answer(server, "select to_tsvector('simple', '«ÄRGER» — Café')::text") == (
        "'café':2 'ärger':1"
    )


def test_two_starts_at_once_are_one(ready: Server) -> None:
    servers = [Server(ready.root, VERSION) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(lambda server: server.start(), servers))
    assert sorted(started) == [False, False, False, True]
    assert answer(ready) == 1


def test_the_command_line(ready: Server) -> None:
    root = ("--root", str(ready.root))
    status = call("status", *root)
    assert status.returncode == 3
    assert "is not running" in status.stdout
    assert call("stop", *root).stdout == f"PostgreSQL {VERSION} is not running\n"
    url = call("url", *root)
    assert (url.stdout, url.returncode) == (ready.url() + "\n", 0), url.stderr
    assert "starting" in url.stderr
    assert call("url", *root).stderr == ""
    # The process that started it is gone.
    assert answer(ready) == 1
    assert call("start", *root).stdout == f"PostgreSQL {VERSION} is already running\n"
    status = call("status", *root)
    assert status.returncode == 0
    assert "is running (pid " in status.stdout
    assert call("stop", *root).stdout == f"PostgreSQL {VERSION} stopped\n"
    wrong = call("start", *root, version=15)
    assert wrong.returncode == 1
    assert wrong.stderr == "error: there is no embedded PostgreSQL 15, only 16 and 18\n"


def test_programs_take_the_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    assert database_url() == "postgresql://elsewhere/db"
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("PG", str(OTHER_VERSION))
    path = quote(str(PROJECT / ".ragdb" / f"pg{OTHER_VERSION}"), safe="")
    assert path in database_url() or "ragdb-" in database_url()
    monkeypatch.setenv("PG", "new")
    assert "PG=new" in refusal(database_url)


# After a crash


def test_a_killed_server_starts_again_with_what_was_committed(ready: Server) -> None:
    ready.start()
    with psycopg.connect(ready.url()) as connection:
        connection.execute("create table kept as select generate_series(1, 1000)")
        connection.commit()
        kill(ready)
    assert (ready.data / "postmaster.pid").exists()
    assert ready.start()
    assert answer(ready, "select count(*) from kept") == 1000


def test_a_pid_that_another_process_has_now_is_no_server(ready: Server) -> None:
    ready.start()
    kill(ready)
    pid_file = ready.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    # As a pid of the server's own user: that is what PostgreSQL itself would believe.
    owner = pid_file.stat()
    root = os.geteuid() == 0
    foreign = subprocess.Popen(
        ["sleep", "600"], user=owner.st_uid if root else None, group=owner.st_gid if root else None
    )
    try:
        pid_file.write_text("\n".join([str(foreign.pid), *lines[1:], ""]))
        assert not ready.running
        assert not ready.stop()
        assert ready.start()
        assert answer(ready) == 1
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


@pytest.mark.parametrize("content", ["", "\n", "99999999\n", "garbage\n"])
def test_a_broken_pid_file_is_stale(ready: Server, content: str) -> None:
    (ready.data / "postmaster.pid").write_text(content)
    assert not ready.running
    ready.start()
    assert answer(ready) == 1


def test_backends_of_a_killed_server_are_waited_for(ready: Server) -> None:
    """A busy backend outlives its postmaster until its statement ends."""
    ready.start()
    begun = threading.Event()

    def work() -> None:
        with psycopg.connect(ready.url(), autocommit=True) as connection:
            begun.set()
            connection.execute(
                "do $$ declare t timestamptz := clock_timestamp() + '2 seconds'; "
                "begin while clock_timestamp() < t loop end loop; end $$"
            )

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(work)
        begun.wait()
        time.sleep(0.2)
        kill(ready)
        assert ready.start()
        assert answer(ready) == 1
        assert isinstance(busy.exception(), (psycopg.OperationalError, type(None)))


def test_an_initdb_that_was_interrupted_is_done_again(folder: Path) -> None:
    server = Server(folder, VERSION)
    unfinished = server.folder / "data.new" / "base"
    unfinished.mkdir(parents=True)
    (server.folder / "data.new" / "PG_VERSION").write_text(f"{VERSION}\n")
    server.start()
    assert answer(server) == 1
    assert not (server.folder / "data.new").exists()


# What cannot work


def test_the_data_of_another_version_is_refused(ready: Server) -> None:
    (ready.data / "PG_VERSION").write_text(f"{OTHER_VERSION}\n")
    message = refusal(ready.start)
    assert f"PostgreSQL {OTHER_VERSION}" in message
    assert f"PG={OTHER_VERSION}" in message
    (ready.data / "PG_VERSION").write_text(f"{VERSION}\n")


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    server = Server(folder, VERSION)
    server.data.mkdir(parents=True)
    (server.data / "letter.txt").write_text("dear all")
    assert "is no data folder" in refusal(server.start)
    assert (server.data / "letter.txt").exists()


def test_broken_settings_are_told(ready: Server) -> None:
    with (ready.data / "postgresql.auto.conf").open("a") as file:
        file.write("shared_buffers = 'plenty'\n")
    message = refusal(ready.start)
    assert "did not start" in message
    assert str(ready.log) in message


@contextmanager
def disk(path: Path, megabytes: int) -> Generator[None]:
    """A small disk of its own at path."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", path]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@needs_root
def test_a_disk_that_is_too_small_is_told(folder: Path) -> None:
    with disk(folder / "disk", 16):
        full = call("start", "--root", str(folder / "disk"))
    assert full.returncode == 1
    assert full.stderr.startswith("error: PostgreSQL could not make its data folder: ")
    assert f"no space is left on the disk of {folder}/disk/pg{VERSION}" in full.stderr
    assert full.stderr.count("\n") == 1


@needs_root
def test_a_disk_that_is_full_is_told(folder: Path, made: Path) -> None:
    path = folder / "disk"
    with disk(path, 160):
        copy(made, path / made.name)
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={path}/ballast"], capture_output=True, check=False
        )
        server = Server(path, VERSION)
        assert "no space is left on the disk of" in refusal(server.start)
        assert not server.running
        (path / "ballast").unlink()
        server.start()
        assert answer(server) == 1
        server.stop()


@needs_root
def test_a_disk_that_is_read_only_is_told(folder: Path, made: Path) -> None:
    path = folder / "disk"
    with disk(path, 160):
        copy(made, path / made.name)
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        message = refusal(Server(path, VERSION).start)
        assert not Server(path, VERSION).running
    assert "read-only" in message
    assert str(path) in message


# Users and rights


# Everything is imported before: the Python of these tests may be root's alone.
AS_USER = """
import os
import sys
from pathlib import Path
from db.server import Server, ServerError

user, root, version, act = sys.argv[1:]
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
try:
    server = Server(Path(root), int(version))
    getattr(server, act)()
    print(server.running)
except ServerError as error:
    sys.exit(str(error))
"""

# PostgreSQL wants to know its user's name: an account that every system has.
STRANGER = pwd.getpwnam("daemon").pw_uid


def as_stranger(root: Path, act: str) -> subprocess.CompletedProcess[str]:
    """Do something as an ordinary user."""
    return subprocess.run(
        [sys.executable, "-c", AS_USER, str(STRANGER), str(root), str(VERSION), act],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_root
def test_an_ordinary_user_runs_it_and_root_then_does_it_as_that_user(folder: Path) -> None:
    os.chown(folder, STRANGER, STRANGER)
    started = as_stranger(folder, "start")
    assert (started.stdout, started.stderr) == ("True\n", "")
    server = Server(folder, VERSION)
    assert Path(f"/proc/{pid_of(server)}").stat().st_uid == STRANGER
    assert server.stop()
    assert server.start()
    assert server.data.stat().st_uid == STRANGER
    assert Path(f"/proc/{pid_of(server)}").stat().st_uid == STRANGER
    assert as_stranger(folder, "stop").stdout == "False\n"
    assert as_stranger(folder, "start").stdout == "True\n"


@needs_root
def test_the_server_of_somebody_else_is_left_alone(ready: Server) -> None:
    ready.start()
    for act in ("start", "stop", "url", "status"):
        message = as_stranger(ready.root, act).stderr
        assert message.startswith(f"{ready.folder}/"), act
        assert "user" in message
        assert message.count("\n") == 1
    assert answer(ready) == 1


@needs_root
def test_a_folder_that_may_not_be_written_is_told(folder: Path) -> None:
    message = as_stranger(folder, "start").stderr
    assert message == f"{folder}/pg{VERSION} may not be read or written by user daemon\n"


@needs_root
def test_root_runs_it_as_nobody_and_opens_only_what_is_closed(folder: Path, made: Path) -> None:
    private = folder / "private"
    inner = private / "inner"
    (inner / "root").mkdir(parents=True)
    copy(made, inner / "root" / made.name)
    private.chmod(0o700)
    inner.chmod(0o700)
    told = call("start", "--root", str(inner / "root"))
    assert told.returncode == 0
    [line] = told.stderr.splitlines()
    assert line.startswith("opened to user nobody")
    assert line.endswith(f": {private}, {inner}")
    for opened in (private, inner):
        assert stat.S_IMODE(opened.stat().st_mode) == 0o701
    server = Server(inner / "root", VERSION)
    assert Path(f"/proc/{pid_of(server)}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert answer(server) == 1
    assert call("start", "--root", str(inner / "root")).stderr == ""


@needs_root
def test_data_that_root_copied_is_given_back(folder: Path, made: Path) -> None:
    subprocess.run(["cp", "-r", made, folder / made.name], check=True)
    server = Server(folder, VERSION)
    server.start()
    assert answer(server) == 1


# Paths


@pytest.mark.parametrize("name", ["x" * 120, "with, comma", "wäre 'schön' & \"gut\" $HOME %41"])
def test_every_path_will_do(folder: Path, made: Path, name: str) -> None:
    root = folder / name
    root.mkdir()
    copy(made, root / made.name)
    server = Server(root, VERSION)
    assert server.start()
    assert answer(server) == 1
    sockets = Path(str(conninfo_to_dict(server.url())["host"]))
    assert len(os.fsencode(sockets / SOCKET)) <= SOCKET_BYTES
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert answer(server, "show data_directory") == str(server.data)
    assert server.stop()
    if sockets.parent != server.folder:
        sockets.rmdir()


@needs_root
def test_a_socket_folder_that_somebody_else_made_is_refused(folder: Path, made: Path) -> None:
    root = folder / ("x" * 120)
    root.mkdir()
    copy(made, root / made.name)
    server = Server(root, VERSION)
    sockets = Path(str(conninfo_to_dict(server.url())["host"]))
    sockets.mkdir()
    os.chown(sockets, STRANGER, STRANGER)
    try:
        assert "belongs to user daemon" in refusal(server.start)
    finally:
        sockets.rmdir()
