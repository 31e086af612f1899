"""A provider of embeddings by HTTP: a real server on a real socket, that behaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np

from embedder.models import EmbeddingModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY = "sk-very-secret-1234"
DIMENSIONS = 384


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Provider:
    """A server that answers like OpenAI's; `behave` may answer differently, once or always."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list[Asked])
    behave: Callable[[Asked, BaseHTTPRequestHandler], bool] = lambda _asked, _handler: False

    opened: list[EmbeddingModel] = field(default_factory=list[EmbeddingModel])

    @property
    def host(self) -> str:
        """What the embedder calls it: scheme, host and port."""
        return self.url.removesuffix("/v1")

    @property
    def texts(self) -> list[list[str]]:
        """What was sent, request by request."""
        return [asked.body["input"] for asked in self.asked]


def vector(text: str) -> list[float]:
    """Of a text, not of length 1, as a provider may give it."""
    draw = np.random.default_rng(list(text.encode()))
    return [round(float(number), 6) for number in draw.normal(size=DIMENSIONS) * 3]


def unit(text: str) -> NDArray[np.float32]:
    """The same of length 1."""
    numbers = np.array(vector(text), dtype=np.float32)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def send(handler: BaseHTTPRequestHandler, status: int, content: object, **headers: str) -> bool:
    """Answer a request."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
    return True


def right(texts: list[str]) -> dict[str, Any]:
    """The right answer."""
    data = [{"index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": 1}}


@contextmanager
def serve() -> Iterator[Provider]:
    """A provider on a port of its own."""
    played = Provider()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.path, headers, body)
            played.asked.append(asked)
            with suppress(BrokenPipeError, ConnectionResetError):
                if not played.behave(asked, self):
                    send(self, 200, right(body["input"]))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    played.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield played
    for model in played.opened:
        model.close()
    server.shutdown()
    server.server_close()
    thread.join()


def is_probe(asked: Asked) -> bool:
    return asked.body["input"] == ["ready"]


def always(status: int, content: object = None, **headers: str) -> Callable[..., bool]:
    return lambda _asked, handler: send(handler, status, content, **headers)


def for_texts(behave: Callable[[Asked, BaseHTTPRequestHandler], bool]) -> Callable[..., bool]:
    """Badly for texts, well for the probe."""
    return lambda asked, handler: not is_probe(asked) and behave(asked, handler)
