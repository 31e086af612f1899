"""The Makefile, the pinned packages and what CI runs.

Targets run in a copy whose .venv/bin/python writes down what it was asked, so nothing is installed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import embedder

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()

TARGETS = [
    "help",
    "setup",
    "demo",
    "test",
    "lint",
    "db-start",
    "db-stop",
    "url",
    "psql",
    "migrate",
    "embedder",
    "maintain",
    "ingest",
    "search",
    "clean",
]

# Its arguments, one a line, on stdout; and noise on stderr.
RECORDER = """#!/bin/sh
printf '%s\\n' "$@"
echo noise >&2
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a space in its name that holds the Makefile and a .venv that is ready."""
    folder = tmp_path / "a folder"
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER)
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "requirements.txt", folder)
    (folder / ".venv" / ".ready").touch()
    return folder


def log(folder: Path) -> None:
    """Let its python write DATABASE_URL and its arguments to the file log."""
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "[$DATABASE_URL]" "$@" >>log\n')


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder, without what an outer make has put in the environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DATABASE_URL", "PG") and not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def phony() -> set[str]:
    """All targets that are commands."""
    return {
        name for line in re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.M) for name in line.split()
    }


def test_help_is_the_default_and_lists_every_target(copy: Path) -> None:
    answer = make(copy)
    assert answer.returncode == 0
    listed = re.findall(r"^  ([a-z][a-z-]*) +\S", answer.stdout, re.M)
    assert set(listed) == phony() - {"print-url", "schema"}
    assert set(TARGETS) <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("target", sorted(phony()))
def test_every_target_has_a_recipe(copy: Path, target: str) -> None:
    answer = make(copy, "-n", target)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_url_prints_the_url_and_nothing_else(copy: Path) -> None:
    for answer in (make(copy, "url"), make(copy.parent, "-C", copy.name, "url")):
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.splitlines() == ["-m", "db.server", "url"]


@pytest.mark.parametrize("target", ["search", "ingest", "embedder"])
def test_the_local_server_is_migrated_first(copy: Path, target: str) -> None:
    log(copy)
    assert make(copy, target, "Q=why?", "DOCS=docs").returncode == 0
    first, second = (copy / "log").read_text().splitlines()
    assert first == "[] -m db.migrate"
    assert second.startswith("[] -m embedder ")


@pytest.mark.parametrize("target", ["search", "ingest", "embedder"])
def test_the_server_of_database_url_is_not_migrated_in_passing(copy: Path, target: str) -> None:
    log(copy)
    answer = make(copy, target, "Q=why?", "DOCS=docs", DATABASE_URL="postgresql://elsewhere/x")
    assert answer.returncode == 0, answer.stderr
    (line,) = (copy / "log").read_text().splitlines()
    assert line.startswith("[postgresql://elsewhere/x] -m embedder ")


def test_migrate_takes_database_url_from_the_command_line(copy: Path) -> None:
    log(copy)
    make(copy, "migrate", "DATABASE_URL=postgresql://elsewhere/x")
    assert (copy / "log").read_text() == "[postgresql://elsewhere/x] -m db.migrate\n"


def test_the_demo_leaves_database_url_alone(copy: Path) -> None:
    log(copy)
    answer = make(copy, "demo", DATABASE_URL="postgresql://elsewhere/x")
    assert answer.returncode == 0, answer.stderr
    lines = (copy / "log").read_text().splitlines()
    assert lines == ["[] -m db.migrate", "[] -m embedder demo"]


@pytest.mark.parametrize(
    ("target", "variable"), [("search", "Q"), ("ingest", "DOCS"), ("demo", "DOCS")]
)
def test_words_of_the_user_arrive_as_they_are(copy: Path, target: str, variable: str) -> None:
    words = """it's "5 $" `x` $(shell touch expanded) $HOME ¿qué? * #"""
    answer = make(copy, target, f"{variable}={words}")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == words
    assert not (copy / "expanded").exists()


@pytest.mark.parametrize("target", ["search", "ingest"])
def test_a_missing_word_is_asked_for(copy: Path, target: str) -> None:
    answer = make(copy, target)
    assert answer.returncode != 0
    assert f"make {target} " in answer.stderr


def test_pg_reaches_the_programs(copy: Path) -> None:
    (copy / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "$PG"\n')
    assert make(copy, "url").stdout == "18\n"
    assert make(copy, "url", "PG=16").stdout == "16\n"
    assert make(copy, "url", PG="16").stdout == "16\n"


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n"], ids=["absent", "old"])
def test_setup_without_a_python_that_will_do_says_so(copy: Path, script: str | None) -> None:
    (copy / ".venv" / ".ready").unlink()
    python = copy / "python"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    answer = make(copy, "setup", f"PYTHON={python}")
    assert answer.returncode != 0
    assert "ragdb needs Python 3.11 or newer" in answer.stderr
    assert not (copy / ".venv" / ".ready").exists()


def test_changed_pins_are_installed_again(copy: Path) -> None:
    (copy / "python").symlink_to(copy / ".venv" / "bin" / "python")
    quiet = make(copy, "setup", f"PYTHON={copy / 'python'}")
    assert "pip" not in quiet.stderr
    ready = (copy / ".venv" / ".ready").stat().st_mtime
    os.utime(copy / "requirements.txt", (ready + 1, ready + 1))
    answer = make(copy, "setup", f"PYTHON={copy / 'python'}")
    files = re.findall(r"^requirements\S+$", answer.stderr, re.M)
    assert files == ["requirements/torch.txt", "requirements.txt"]


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^exec make .*\btest$", script.read_text(), re.M)


def test_the_readme_begins_with_demo_and_test() -> None:
    commands = [
        line.removeprefix("$ ").split("#")[0].strip()
        for block in re.findall(
            r"^```(?:sh|bash|console)\n(.*?)^```", readme(), re.MULTILINE | re.DOTALL
        )
        for line in block.splitlines()
        if line.strip()
    ]
    assert commands[:2] == ["make demo", "make test"]


def readme() -> str:
    """The text of README.md."""
    return (ROOT / "README.md").read_text()


def test_every_make_command_of_the_documentation_exists() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(
            r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL
        )
        named = re.findall(r"\bmake ([a-z][a-z-]+)", "\n".join(code))
        assert set(named) <= phony(), name


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == embedder.__version__
    images = re.findall(r"image: ragdb-\w+:(\S+)", (ROOT / "docker-compose.yml").read_text())
    assert set(images) == {project["version"]}
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# The pinned packages


def pins(file: Path) -> dict[str, str]:
    """Versions by canonical name, those of the files that this one includes among them."""
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith("-r "):
            found |= pins(file.parent / line.removeprefix("-r "))
            continue
        pin = Requirement(line)
        version = re.fullmatch(r"==([^*,]+)", str(pin.specifier))
        assert version, f"{file.name}: {line} is not pinned"
        if pin.marker is None or pin.marker.evaluate():
            found[canonicalize_name(pin.name)] = version[1]
    return found


def needs(name: str, extras: set[str]) -> list[Requirement]:
    """What an installed package requires here, with these extras."""
    requirements = [Requirement(text) for text in metadata.requires(name) or []]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements/database.txt", "requirements/embedder.txt"]
)
def test_the_pins_are_complete_and_installed(name: str) -> None:
    pinned = pins(ROOT / name)
    for package, version in pinned.items():
        # A local part (+cpu) says how it was built.
        assert metadata.version(package).split("+")[0] == version, f"run make setup: {package}"
    waiting = [(package, frozenset[str]()) for package in pinned]
    seen = set(waiting)
    missing: set[str] = set()
    while waiting:
        package, extras = waiting.pop()
        for requirement in needs(package, set(extras)):
            needed = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if needed[0] not in pinned:
                # CUDA's packages differ by platform and come with torch.
                if package != "torch":
                    missing.add(f"{needed[0]} (for {package})")
            elif needed not in seen:
                seen.add(needed)
                waiting.append(needed)
    assert not missing, f"{name} lacks {', '.join(sorted(missing))}"


def test_the_pins_are_within_the_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = pins(ROOT / "requirements.txt")
    groups: dict[str, list[str]] = project["dependency-groups"]
    ranges: list[str] = project["project"]["dependencies"] + [x for g in groups.values() for x in g]
    for requirement in map(Requirement, ranges):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


@pytest.mark.parametrize("package", ["db", "embedder"])
def test_what_the_images_import_is_pinned_for_them(package: str) -> None:
    pinned = pins(ROOT / "requirements" / {"db": "database.txt"}.get(package, f"{package}.txt"))
    distributions = metadata.packages_distributions()
    for file in (ROOT / package).glob("**/*.py"):
        for name in imported(file) - sys.stdlib_module_names - {"db", "embedder"}:
            found = {canonicalize_name(distribution) for distribution in distributions[name]}
            assert found & pinned.keys(), f"{file.name} imports {name}"


def imported(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}
