"""Models by HTTP, against a real server on a real socket that behaves in every way."""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from embedder import models
from embedder.config import Settings
from embedder.errors import (
    ModelError,
    ProviderAwayError,
    ProviderStumbledError,
    TextRefusedError,
)
from embedder.http_model import Endpoint, HttpModel, estimated_tokens, retry_after
from embedder.models import ModelRow
from tests.provider import (
    DIMENSIONS,
    KEY,
    Asked,
    Provider,
    always,
    for_texts,
    is_probe,
    right,
    send,
    serve,
    unit,
    vector,
)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider on a port of its own."""
    with serve() as provider:
        yield provider


def row(url: str, /, **settings: object) -> ModelRow:
    return ModelRow("remote", DIMENSIONS, "openai", settings={"url": url} | settings)


def http_model(provider: Provider, /, **settings: object) -> HttpModel:
    given = Settings.from_environment(
        {"DATABASE_URL": "postgresql://nobody@nowhere/nothing", "RAGDB_API_KEY": KEY}
    )
    model = models.load(given, row(provider.url, **settings))
    assert isinstance(model, HttpModel)
    provider.opened.append(model)
    return model


def test_vectors_come_back_in_order_and_of_length_one(provider: Provider) -> None:
    model = http_model(provider)
    texts = ["one", "two and more", "three", "x" * 300]
    vectors = model.encode_documents(texts)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - np.stack([unit(text) for text in texts])).max() < 1e-6
    assert np.abs(model.encode_query("one") - unit("one")).max() < 1e-6
    assert model.encode_documents([]).shape == (0, DIMENSIONS)


def test_how_openai_is_asked(provider: Provider) -> None:
    http_model(provider, model="text-embedding-3-small", send_dimensions=True).encode_query("a")
    assert provider.asked[0].path == "/v1/embeddings"
    assert provider.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert provider.asked[0].body == {
        "model": "text-embedding-3-small",
        "input": ["a"],
        "dimensions": DIMENSIONS,
    }


def test_how_azure_is_asked(provider: Provider) -> None:
    provider.url += "/openai/deployments/mine"
    http_model(provider, api_version="2024-10-21").encode_query("a")
    assert provider.asked[0].path == (
        "/v1/openai/deployments/mine/embeddings?api-version=2024-10-21"
    )
    assert provider.asked[0].headers["api-key"] == KEY
    assert "authorization" not in provider.asked[0].headers


def test_a_provider_without_a_key(provider: Provider) -> None:
    given = Settings.from_environment({"DATABASE_URL": "postgresql://nobody@nowhere/nothing"})
    model = models.load(given, row(provider.url))
    provider.opened.append(model)
    model.encode_query("a")
    assert "authorization" not in provider.asked[0].headers


def test_the_order_is_that_of_the_index(provider: Provider) -> None:
    def shuffled(asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
        answer = right(asked.body["input"])
        answer["data"].reverse()
        return send(handler, 200, answer)

    provider.behave = shuffled
    vectors = http_model(provider).encode_documents(["one", "two", "three"])
    assert np.abs(vectors - np.stack([unit(t) for t in ("one", "two", "three")])).max() < 1e-6


def test_base64(provider: Provider) -> None:
    def packed(asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
        assert asked.body["encoding_format"] == "base64"
        answer = right(asked.body["input"])
        for item in answer["data"]:
            numbers = np.array(item["embedding"], dtype="<f4").tobytes()
            item["embedding"] = base64.b64encode(numbers).decode()
        return send(handler, 200, answer)

    provider.behave = packed
    vectors = http_model(provider, encoding="base64").encode_documents(["one", "two"])
    assert np.abs(vectors - np.stack([unit("one"), unit("two")])).max() < 1e-6


def test_batches_are_by_tokens_and_length(provider: Provider) -> None:
    model = http_model(provider, texts_per_request=3, batch_tokens=100)
    texts = ["a" * 300, "b" * 40, "c" * 44, "d" * 36, "e" * 20]
    model.encode_documents(texts)
    assert provider.texts == [[texts[0]], [texts[2], texts[1], texts[3]], [texts[4]]]


def test_a_text_that_is_too_long_is_cut(provider: Provider) -> None:
    model = http_model(provider, max_tokens=20)
    text = "word " * 100
    assert model.count_tokens([text]) == [126]
    model.encode_documents([text])
    assert text.startswith(provider.texts[0][0])
    assert estimated_tokens(provider.texts[0][0]) == 20


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(provider: Provider, status: int) -> None:
    provider.behave = always(status, {}, Retry_After="7")
    with pytest.raises(ProviderAwayError) as away:
        http_model(provider).encode_documents(["one", "two"])
    assert away.value.retry_after == 7
    assert away.value.is_limit == (status == 429)
    assert len(provider.asked) == 1


def test_retry_after_may_be_a_date() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=90)
    found = retry_after({"retry-after": format_datetime(moment, usegmt=True)})
    assert found is not None
    assert 85 < found <= 90
    assert retry_after({"retry-after": "1e9"}) == 600
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({}) is None


def hangs_up(_asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def breaks_off(_asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
    handler.close_connection = True
    return True


def sleeps(_asked: Asked, _handler: BaseHTTPRequestHandler) -> bool:
    time.sleep(1.5)
    return False


def drips(_asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        time.sleep(0.1)
    return True


TROUBLE = {
    "500": always(500, {"error": "out of memory"}),
    "502": always(502, b"<html>Bad gateway</html>"),
    "408": always(408),
    "not JSON": always(200, b"<html>Welcome</html>"),
    "no data": always(200, {"object": "list"}),
    "no list": always(200, {"data": 3}),
    "no object": always(200, [1]),
    "nested": always(200, {"data": [{"index": 0, "embedding": [[1.0] * DIMENSIONS]}]}),
    "not base64": always(200, {"data": [{"index": 0, "embedding": "?"}]}),
    "half a number": always(200, {"data": [{"index": 0, "embedding": "AAAAAAA="}]}),
    "too few": always(200, {"data": []}),
    "too many": always(200, right(["one", "two", "three"])),
    "an index twice": always(200, {"data": [{"index": 1, "embedding": vector("one")}] * 2}),
    "hangs up": hangs_up,
    "breaks off": breaks_off,
    "sleeps": sleeps,
    "drips": drips,
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_with_everything_means_that_the_provider_is_away(
    provider: Provider, kind: str
) -> None:
    provider.behave = TROUBLE[kind]
    with pytest.raises(ProviderAwayError) as away:
        http_model(provider, timeout=0.5).encode_documents(["one", "two"])
    assert str(away.value).startswith(f"{provider.host} ")
    assert away.value.retry_after is None
    assert len(provider.asked) == 2
    assert is_probe(provider.asked[1])


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_with_some_texts_only_is_theirs(provider: Provider, kind: str) -> None:
    provider.behave = for_texts(TROUBLE[kind])
    with pytest.raises(ProviderStumbledError):
        http_model(provider, timeout=0.5).encode_documents(["one", "two"])


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        provider = Provider(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with pytest.raises(ProviderAwayError, match=f"{provider.host} cannot be reached"):
            http_model(provider).encode_query("one")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_text(provider: Provider, status: int) -> None:
    message = f"too long, says {KEY}"
    provider.behave = for_texts(always(status, {"error": {"message": message}}))
    model = http_model(provider)
    with pytest.raises(TextRefusedError, match="too long"):
        model.encode_documents(["one", "two"])
    # A batch is halved by the caller; only of a single text is it asked whether it is the text.
    assert len(provider.asked) == 1
    with pytest.raises(TextRefusedError, match="too long") as refused:
        model.encode_documents(["one"])
    assert len(provider.asked) == 3
    assert KEY not in str(refused.value)


def test_a_provider_that_refuses_everything_is_badly_set_up(provider: Provider) -> None:
    provider.behave = always(400, {"error": {"message": "unknown model"}})
    with pytest.raises(ModelError, match="refuses even the text 'ready'"):
        http_model(provider).encode_documents(["one"])


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "RAGDB_API_KEY"), (403, "RAGDB_API_KEY"), (404, "url and model"), (405, "url")],
)
def test_what_somebody_must_put_right(provider: Provider, status: int, hint: str) -> None:
    provider.behave = always(status, {"error": f"wrong key {KEY}"})
    with pytest.raises(ModelError, match=f"embeddings answers {status}.*{hint}") as error:
        http_model(provider).encode_documents(["one", "two"])
    assert KEY not in str(error.value)
    assert len(provider.asked) == 1


def test_redirects_are_not_followed(provider: Provider) -> None:
    provider.behave = always(307, {}, Location=f"{provider.url}/elsewhere/embeddings")
    with pytest.raises(ModelError, match="redirects are not followed"):
        http_model(provider).encode_query("one")
    assert len(provider.asked) == 1


def test_wrong_dimensions(provider: Provider) -> None:
    provider.behave = always(200, {"data": [{"index": 0, "embedding": [1.0] * 5}]})
    with pytest.raises(ModelError, match="of 5 dimensions and the model remote has 384"):
        http_model(provider).encode_documents(["one"])


@pytest.mark.parametrize("number", [float("nan"), None, float("inf")])
def test_what_is_no_number_is_left_for_the_worker_to_judge(
    provider: Provider, number: float | None
) -> None:
    def spoils(asked: Asked, handler: BaseHTTPRequestHandler) -> bool:
        answer = right(asked.body["input"])
        answer["data"][1]["embedding"][3] = number
        return send(handler, 200, answer)

    provider.behave = spoils
    with np.errstate(invalid="ignore"):
        vectors = http_model(provider).encode_documents(["1 long", "two", "3"])
    assert [bool(np.isfinite(one).all()) for one in vectors] == [True, False, True]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": ""}, "url"),
        ({"url": "https://user:password@x/v1"}, "url"),
        ({"url": 3}, "url must be a text"),
        ({"timeout": "long"}, "timeout must be a number"),
        ({"texts_per_request": 0}, "texts_per_request must be a number"),
        ({"texts_per_request": True}, "texts_per_request must be a number"),
        ({"key_header": "a: b"}, "key_header"),
        ({"send_dimensions": "no"}, "send_dimensions must be true or false"),
        ({"tiemout": 3}, "unknown setting: tiemout"),
    ],
)
def test_settings_that_are_not_valid(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as error:
        http_model(Provider("https://example.org/v1"), **settings)
    assert "password@" not in str(error.value)


def test_only_the_hosts_that_are_allowed() -> None:
    given = {"DATABASE_URL": "postgresql://x@y/z", "RAGDB_API_HOSTS": "a.example, B.example"}
    settings = Settings.from_environment(given)
    models.load(settings, row("https://b.example/v1"))
    with pytest.raises(ModelError, match=r"evil\.example, which RAGDB_API_HOSTS does not name"):
        models.load(settings, row("https://evil.example/v1"))


def test_an_unknown_provider() -> None:
    given = Settings.from_environment({"DATABASE_URL": "postgresql://x@y/z"})
    with pytest.raises(ModelError, match="no provider cohere"):
        models.load(given, ModelRow("remote", 8, "cohere"))


def test_the_key_shows_nowhere(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = Settings.from_environment(
        {"DATABASE_URL": "postgresql://worker:geheim@x/y", "RAGDB_API_KEY": KEY}
    )
    model = models.load(given, row(provider.url))
    provider.opened.append(model)
    model.encode_query("one")
    provider.behave = always(500)
    with pytest.raises(ProviderAwayError) as away:
        model.encode_query("one")
    shown = [repr(given), str(given.api_key), repr(model), repr(away.value), caplog.text]
    assert KEY not in " ".join(shown)
    assert "geheim" not in repr(given)
    assert "httpx" in caplog.text


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("OpenAI", "https://api.openai.com/v1/embeddings"),
        (
            "Azure",
            "https://NAME.openai.azure.com/openai/deployments/DEPLOYMENT/embeddings"
            "?api-version=2024-10-21",
        ),
        ("Ollama", "http://localhost:11434/v1/embeddings"),
        ("TEI", "http://localhost:8080/v1/embeddings"),
        ("vLLM", "http://localhost:8000/v1/embeddings"),
    ],
)
def test_the_settings_that_the_documentation_names(
    connection: psycopg.Connection[tuple[Any, ...]], place: str, address: str
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "embedder.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {place} \| `(.*)` \|$", page, re.M)
    assert found is not None
    settings = json.loads(found[1])
    assert Endpoint.of(ModelRow("m", 8, "openai", settings=settings)).address == address
    connection.execute("select rag.add_model('m', 8, 'openai', %s)", [found[1]])
