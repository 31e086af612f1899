"""docker-compose.yml and the Dockerfiles: what they name exists, and what they run works."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
import yaml
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedder.config import VARIABLES, Settings
from embedder.health import Monitor, Vitals
from embedder.models import SentenceTransformerModel
from embedder.stop import Stop
from embedder.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer

    from db.server import Server

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILES = sorted({service["build"]["dockerfile"] for service in BUILT.values()})

LIBPQ = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
PROGRAMS = {variable.name for variable in VARIABLES}
TOOLS = {
    "PIP_NO_CACHE_DIR",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
}

PASSWORD = r"""it's \ $HOME "quoted" :password"""


@dataclass(frozen=True)
class Dockerfile:
    """The instructions of a Dockerfile in their order, each with its words as one text."""

    instructions: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        """Parse the subset that ours use: comments, continued lines, instructions."""
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        joined = re.sub(r"\\\n", "", "\n".join(lines))
        split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
        return cls(tuple((name.upper(), rest.strip()) for name, rest in split))

    def all(self, name: str) -> list[str]:
        """The arguments of every instruction of this name."""
        return [rest for found, rest in self.instructions if found == name]

    def last(self, name: str) -> str:
        """The arguments of the one that counts."""
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """What the ENV instructions set."""
        return dict(word.split("=", 1) for rest in self.all("ENV") for word in shlex.split(rest))


@pytest.fixture(params=DOCKERFILES)
def dockerfile(request: pytest.FixtureRequest) -> Dockerfile:
    """Each of the Dockerfiles in turn."""
    return Dockerfile.read(ROOT / request.param)


def default(text: str) -> str:
    """A value with its ${NAME:-default} replaced by the defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def is_one_shot(service: dict[str, Any]) -> bool:
    """True if the service does its work and ends."""
    return service["restart"] == "no"


def assert_pinned(image: str) -> None:
    name, _, tag = image.partition(":")
    assert re.fullmatch(r"[a-z][a-z0-9./-]*", name), image
    assert re.fullmatch(r"\d+\.\d+\.\d+[\w.-]*", tag), f"{image} is not pinned"


def test_the_services_are_the_whole_of_ragdb() -> None:
    assert set(SERVICES) == {"postgres", "migrate", "login", "embedder"}
    assert default(SERVICES["postgres"]["image"]).endswith("-pg18")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    assert_pinned(default(SERVICES[name]["image"]))


def test_base_images_are_pinned(dockerfile: Dockerfile) -> None:
    for image in dockerfile.all("FROM"):
        assert_pinned(image)


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_exists(name: str) -> None:
    build = BUILT[name]["build"]
    path = ROOT / build["context"] / build["dockerfile"]
    assert path.is_file()
    arguments = {rest.split("=")[0] for rest in Dockerfile.read(path).all("ARG")}
    assert set(build.get("args", {})) <= arguments


def test_what_is_copied_exists_and_is_not_ignored(dockerfile: Dockerfile) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*", "everything is ignored but for the exceptions"
    kept = {line.removeprefix("!").strip("/") for line in lines if line.startswith("!")}
    for rest in dockerfile.all("COPY"):
        *sources, _target = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, f"{source} is ignored"


def test_requirement_files_are_copied_with_what_they_include(dockerfile: Dockerfile) -> None:
    copied: set[str] = set()
    for name, rest in dockerfile.instructions:
        if name == "COPY":
            copied |= set(rest.split()[:-1])
        for file in re.findall(r"-r (\S+)", rest) if name == "RUN" else ():
            included = re.findall(r"^-r (\S+)", (ROOT / file).read_text(), re.M)
            assert {file, *(f"requirements/{other}" for other in included)} <= copied


def test_containers_run_as_an_ordinary_user(dockerfile: Dockerfile) -> None:
    assert int(dockerfile.last("USER").split(":")[0]) >= 10_000
    names = [name for name, _ in dockerfile.instructions]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("name", SERVICES)
def test_what_keeps_running_has_a_healthcheck(name: str) -> None:
    service = SERVICES[name]
    if is_one_shot(service):
        return
    assert service["restart"] == "unless-stopped"
    if name in BUILT:
        path = ROOT / service["build"]["dockerfile"]
        assert "CMD [" in Dockerfile.read(path).last("HEALTHCHECK")
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_wait_for_what_they_need(name: str) -> None:
    for other, wish in SERVICES[name].get("depends_on", {}).items():
        expected = "service_healthy"
        if is_one_shot(SERVICES[other]):
            expected = "service_completed_successfully"
        assert wish["condition"] == expected


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_come_from_the_environment(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY", variable):
            # A key is for those whose model is at a provider; a password nobody does without.
            optional = r"|:-" if variable.endswith("_KEY") else ""
            pattern = rf"\$\{{[A-Z_]+(:\?[^}}]+{optional})\}}"
            assert re.fullmatch(pattern, value), f"{variable} must be required"
        assert not re.search(r"://[^@/]*:[^@/]*@", str(value)), f"{variable} holds a password"


def test_the_example_of_env_names_every_variable() -> None:
    example = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M)
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT))
    required = set(re.findall(r"(?<!\$)\$\{([A-Z_]+):\?", TEXT))
    assert required <= set(example) <= used


def test_passwords_are_kept_out_of_git() -> None:
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", BUILT)
def test_variables_are_ones_that_the_programs_know(name: str) -> None:
    assert set(BUILT[name]["environment"]) <= PROGRAMS | LIBPQ


def test_variables_of_the_images_are_known(dockerfile: Dockerfile) -> None:
    assert set(dockerfile.environment) <= PROGRAMS | TOOLS


def test_ports_are_published_on_this_machine_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_data_of_postgres_18_is_on_a_volume() -> None:
    mounts = dict(mount.split(":") for mount in SERVICES["postgres"]["volumes"])
    assert set(mounts) <= set(COMPOSE["volumes"])
    # Up to 17 it was /var/lib/postgresql/data; the images of 18 refuse a volume there.
    assert set(mounts.values()) == {"/var/lib/postgresql"}


# What they run


def test_the_entrypoints_are_modules(dockerfile: Dockerfile) -> None:
    python, option, module = json.loads(dockerfile.last("ENTRYPOINT"))
    assert (python, option) == ("python", "-m")
    assert importlib.util.find_spec(module)
    command = json.loads(dockerfile.last("CMD")) if dockerfile.all("CMD") else []
    answer = subprocess.run(
        [sys.executable, "-m", module, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


@pytest.fixture
def login(server: Server, database: str) -> Iterator[str]:
    """URL of the role that the service login makes; the service is run twice."""
    service = SERVICES["login"]
    parameters = conninfo_to_dict(database)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment |= {
        "PATH": f"{server.binaries}:{environment['PATH']}",
        "PGHOST": str(parameters["host"]),
        "PGUSER": "postgres",
        "PGDATABASE": str(parameters["dbname"]),
        "EMBEDDER_PASSWORD": PASSWORD,
    }
    assert set(service["environment"]) <= environment.keys() | {"PGPASSWORD"}
    for _ in range(2):
        subprocess.run([*service["entrypoint"], *service["command"]], env=environment, check=True)
    user = re.findall(r"://(\w+)@", SERVICES["embedder"]["environment"]["DATABASE_URL"])[0]
    yield make_conninfo(database, user=user)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"drop role {user}".encode())


def test_the_login_may_work_on_the_queue_and_nothing_else(login: str) -> None:
    with psycopg.connect(login, autocommit=True) as connection:
        assert connection.execute("select from rag.claim_jobs('test')").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select from rag.documents")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create table t ()")


def test_the_password_of_the_login_is_the_one_given(
    login: str, connection: psycopg.Connection[tuple[str]]
) -> None:
    user = conninfo_to_dict(login)["user"]
    row = connection.execute(
        "select a.rolpassword from pg_authid as a where a.rolname = %s", [user]
    ).fetchone()
    assert row
    # SCRAM-SHA-256$iterations:salt$stored key:server key, as RFC 5803 has it.
    _, work, keys = row[0].split("$")
    iterations, salt = work.split(":")
    salted = hashlib.pbkdf2_hmac(
        "sha256", PASSWORD.encode(), base64.b64decode(salt), int(iterations)
    )
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    assert keys.split(":")[0] == base64.b64encode(stored).decode()


def test_the_healthcheck_tells_an_embedder_at_work_from_none(
    login: str, connection: psycopg.Connection[tuple[Any]], model: SentenceTransformer
) -> None:
    file = Dockerfile.read(ROOT / SERVICES["embedder"]["build"]["dockerfile"])
    _, command = file.last("HEALTHCHECK").split("CMD ", 1)
    _, *arguments = json.loads(command)
    port = file.environment["RAGDB_HTTP_PORT"]
    assert file.last("EXPOSE") == port
    assert SERVICES["embedder"]["ports"][0].endswith(f":{port}")

    # The login's rights are all that the embedder needs.
    settings = Settings.from_environment({"DATABASE_URL": login, "RAGDB_BACKEND": "torch"})
    stop = Stop()
    monitor = Monitor(Vitals(), login)
    worker = Worker(
        settings, SentenceTransformerModel(settings.model, cast("Any", model)), stop, monitor
    )
    with monitor.serve("127.0.0.1", 0) as served, ThreadPoolExecutor() as threads:

        def health() -> tuple[int, str]:
            answer = subprocess.run(
                [sys.executable, *arguments],
                env=os.environ | {"RAGDB_HTTP_PORT": str(served)},
                capture_output=True,
                text=True,
                check=False,
            )
            return answer.returncode, answer.stdout.strip()

        assert health() == (1, "not ready yet: starting")
        running = threads.submit(worker.run)
        try:
            row = connection.execute("select rag.put('Water boils at 100 degrees.')").fetchone()
            assert row
            done = connection.execute("select rag.wait_for(%s)", row).fetchone()
            assert done == (True,)
            assert health() == (0, "ok")
        finally:
            stop.requested = True
        assert running.result() == 0
    assert health()[0] == 1
