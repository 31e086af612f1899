"""Settings: every one checked, none of them told with its password."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.config import VARIABLES, Secret, Settings, cores, redacted
from embedder.errors import SettingsError
from embedder.readers import Limits

URL = "postgresql://worker:geheim@db.example:5432/ragdb"
DOCUMENTATION = Path(__file__).resolve().parent.parent / "docs" / "embedder.md"


def test_defaults() -> None:
    settings = Settings.from_environment({"DATABASE_URL": URL})
    assert settings.database_url == settings.listen_url == URL
    assert settings.model == "all-MiniLM-L6-v2"
    assert (settings.batch, settings.poll_seconds, settings.lease_seconds) == (64, 1, 120)
    assert settings.threads == cores()
    assert (settings.device, settings.log, settings.offline) == ("auto", "human", False)


def test_everything_can_be_set() -> None:
    settings = Settings.from_environment(
        {
            "DATABASE_URL": URL,
            "RAGDB_LISTEN_URL": "host=direct dbname=ragdb",
            "RAGDB_MODEL": "some/model",
            "RAGDB_BATCH": "256",
            "RAGDB_POLL_SECONDS": "0.5",
            "RAGDB_LEASE_SECONDS": "30",
            "RAGDB_GRACE_SECONDS": "20",
            "RAGDB_DEVICE": "cuda:1",
            "RAGDB_BACKEND": "torch-bf16",
            "RAGDB_API_KEY": "sk-1",
            "RAGDB_API_HOSTS": "Api.Example, localhost",
            "RAGDB_HTTP_PORT": "9090",
            "RAGDB_HTTP_ADDRESS": "0.0.0.0",  # noqa: S104
            "RAGDB_THREADS": "3",
            "RAGDB_WORD_VECTOR_TEXTS": "500",
            "RAGDB_FILE_MB": "20",
            "RAGDB_FILE_SECONDS": "5",
            "RAGDB_FILE_MEMORY_MB": "2000",
            "RAGDB_EXTRACTOR": "tika+http://tika:9998",
            "RAGDB_EXTRACTOR_FORMATS": "PDF, .docx",
            "RAGDB_LOG": "json",
            "HF_HUB_OFFLINE": "1",
        }
    )
    assert settings == Settings(
        database_url=URL,
        listen_url="host=direct dbname=ragdb",
        model="some/model",
        batch=256,
        poll_seconds=0.5,
        lease_seconds=30,
        grace_seconds=20,
        device="cuda:1",
        backend="torch-bf16",
        api_key=Secret("sk-1"),
        api_hosts=("api.example", "localhost"),
        http_port=9090,
        http_address="0.0.0.0",  # noqa: S104
        threads=3,
        log="json",
        offline=True,
        word_vector_texts=500,
        files=Limits(20_000_000, 5, 2_000_000_000, "tika+http://tika:9998", (".pdf", ".docx")),
    )


def test_empty_means_unset() -> None:
    given = dict.fromkeys((variable.name for variable in VARIABLES), " ")
    assert Settings.from_environment(given | {"DATABASE_URL": URL}) == Settings.from_environment(
        {"DATABASE_URL": URL}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAGDB_BATCH", "0"),
        ("RAGDB_BATCH", "10001"),
        ("RAGDB_BATCH", "many"),
        ("RAGDB_BATCH", "-1"),
        ("RAGDB_BATCH", "1.5"),
        ("RAGDB_BATCH", "1" * 5000),
        ("RAGDB_POLL_SECONDS", "0"),
        ("RAGDB_POLL_SECONDS", "nan"),
        ("RAGDB_POLL_SECONDS", "inf"),
        ("RAGDB_LEASE_SECONDS", "soon"),
        ("RAGDB_LEASE_SECONDS", "0.5"),
        ("RAGDB_GRACE_SECONDS", "-1"),
        ("RAGDB_DEVICE", "gpu"),
        ("RAGDB_BACKEND", "onnx"),
        ("RAGDB_HTTP_PORT", "65536"),
        ("RAGDB_THREADS", "0"),
        ("RAGDB_WORD_VECTOR_TEXTS", "-1"),
        ("RAGDB_FILE_MB", "51"),
        ("RAGDB_FILE_SECONDS", "0"),
        ("RAGDB_FILE_MEMORY_MB", "100"),
        ("RAGDB_EXTRACTOR", "http://tika:9998"),
        ("RAGDB_LOG", "xml"),
        ("HF_HUB_OFFLINE", "yes"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment({"DATABASE_URL": URL, name: value})
    assert str(refusal.value).startswith(f"{name} must be ")
    assert repr(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_bad_key_is_refused_without_being_told() -> None:
    with pytest.raises(SettingsError, match=r"^RAGDB_API_KEY must be ") as refusal:
        Settings.from_environment({"DATABASE_URL": URL, "RAGDB_API_KEY": "sk-geheim two"})
    assert "geheim" not in str(refusal.value)


def test_a_password_in_the_extractors_url_is_refused_without_being_told() -> None:
    given = {"DATABASE_URL": URL, "RAGDB_EXTRACTOR": "tika+http://user:geheim@tika"}
    with pytest.raises(SettingsError, match=r"^RAGDB_EXTRACTOR must be ") as refusal:
        Settings.from_environment(given)
    assert "geheim" not in str(refusal.value)


def test_nothing_secret_is_in_the_repr() -> None:
    given = {"DATABASE_URL": URL, "RAGDB_LISTEN_URL": URL, "RAGDB_API_KEY": "sk-secret"}
    settings = Settings.from_environment(given)
    assert settings.api_key.reveal() == "sk-secret"
    shown = f"{settings!r} {settings.api_key} {settings.api_key!r} {vars(type(settings.api_key))}"
    assert "sk-secret" not in shown
    assert "geheim" not in shown
    assert not Settings.from_environment({"DATABASE_URL": URL}).api_key


@pytest.mark.parametrize("name", ["DATABASE_URL", "RAGDB_LISTEN_URL"])
def test_a_bad_url_is_refused_without_being_told(name: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environment({"DATABASE_URL": URL, name: "geheim@db"})
    assert str(refusal.value).startswith(f"{name} must be ")
    assert "geheim" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "postgres://worker@db/ragdb?password=geheim",
        "postgresql://worker@db/ragdb?sslmode=require&sslpassword=geheim",
        "host=db user=worker password=geheim dbname=ragdb",
        "host=db password='geheim geheim'",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    shown = redacted(url)
    assert "geheim" not in shown
    assert "***" in shown
    assert "db" in shown


def test_a_url_without_password_is_shown_as_it_is() -> None:
    assert redacted("postgresql://postgres@/ragdb?host=%2Fsockets") == (
        "postgresql://postgres@/ragdb?host=%2Fsockets"
    )


def test_the_command_shows_all_settings_and_no_password() -> None:
    answer = _embedder("config", DATABASE_URL=URL, RAGDB_BATCH="7", RAGDB_API_KEY="sk-geheim")
    assert answer.returncode == 0
    for variable in VARIABLES:
        assert variable.name in answer.stdout
    assert "geheim" not in answer.stdout
    assert ["RAGDB_BATCH", "7"] in [line.split() for line in answer.stdout.splitlines()]


def test_the_command_says_what_is_wrong_and_nothing_else() -> None:
    answer = _embedder("config", DATABASE_URL=URL, RAGDB_BATCH="none")
    assert answer.returncode == 1
    assert answer.stderr == (
        "error: RAGDB_BATCH must be a whole number from 1 to 10000, not 'none'\n"
    )


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys\n"
        "from embedder.__main__ import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    assert not {'torch', 'sentence_transformers'} & {*sys.modules}\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for command in ("run", "wait", "config", "ingest", "search"):
        assert f"    {command} " in answer.stdout


def test_every_setting_is_documented() -> None:
    text = DOCUMENTATION.read_text("utf-8")
    for variable in VARIABLES:
        assert f"`{variable.name}`" in text


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def affinity(_pid: int) -> set[int]:
        return {*range(64)}

    monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/pod/embedder\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pod/embedder/cpu.max": "max 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n1:memory:/\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_cores_follow_the_control_group(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert cores(_tree(tmp_path, files)) == expected


def _embedder(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embedder", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    answer = subprocess.run(
        [sys.executable, "-m", "embedder", "config"],
        env=os.environ | {"DATABASE_URL": "postgresql://x@y/z"},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (141, "")


@pytest.mark.parametrize("command", ["run", "wait"])
def test_a_server_that_is_not_there_is_one_line_with_a_hint(command: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "embedder", command],
        env=os.environ | {"DATABASE_URL": "postgresql://me:geheim@127.0.0.1:1/x"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: cannot connect to the database: ")
    assert "port 1" in line
    assert "is DATABASE_URL right?" in line
    assert "geheim" not in line
