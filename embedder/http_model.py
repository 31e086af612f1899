"""Models behind an HTTP endpoint that answers like OpenAI's /v1/embeddings.

OpenAI, Azure OpenAI, Ollama, Text Embeddings Inference, vLLM and others. What to call stands in the
settings of the model's row; the key only in the environment, and it goes nowhere but into the
header of a request.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import httpx
import numpy as np

from embedder import __version__
from embedder.config import HIDDEN, Secret, Settings
from embedder.errors import ModelError, ProviderAwayError, ProviderStumbledError, TextRefusedError
from embedder.models import ModelRow, token_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of OpenAI's own limits (2,048 texts, 300,000 tokens) far away, and within those of TEI (32 texts
# unless it is told otherwise).
BATCH_SIZE: Final = 32
BATCH_TOKENS: Final = 16_384
TIMEOUT_SECONDS: Final = 60.0
# An answer of 2,048 vectors of 4,000 numbers in decimals has 160 MB; a loop without end has more.
MOST_BYTES: Final = 256 << 20
# What a provider may ask for at most; then it is looked at again.
MOST_RETRY_SECONDS: Final = 600.0
HARMLESS: Final = "ready"
# Characters of a provider's explanation that are kept with a failed job.
EXPLANATION: Final = 500

REFUSALS: Final = frozenset({400, 413, 422})
PASSING: Final = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the settings of a model's row say: where it is, and how it wants to be asked."""

    url: str
    model: str
    api_version: str | None = None
    key_header: str = "authorization"
    encoding: str | None = None
    send_dimensions: bool = False
    max_tokens: int = 0
    batch_tokens: int = BATCH_TOKENS
    batch_size: int = BATCH_SIZE
    timeout: float = TIMEOUT_SECONDS

    @classmethod
    def of(cls, row: ModelRow) -> Endpoint:
        """The endpoint of a row. Raises ModelError that names the setting that is wrong."""
        given = dict(row.settings)
        url = _text(given, "url", "")
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise ModelError(
                f"the setting url of the model {row.name} is not a URL of a provider",
                hint='it is like "https://api.openai.com/v1", without user and password',
            )
        version = _text(given, "api_version", "") or None
        endpoint = cls(
            url=url,
            model=_text(given, "model", row.name),
            api_version=version,
            key_header=_text(given, "key_header", "api-key" if version else "authorization"),
            encoding=_text(given, "encoding", "") or None,
            send_dimensions=_flag(given, "send_dimensions"),
            max_tokens=int(_number(given, "max_tokens", 0, least=0)),
            batch_tokens=int(_number(given, "batch_tokens", BATCH_TOKENS)),
            batch_size=int(_number(given, "texts_per_request", BATCH_SIZE)),
            timeout=_number(given, "timeout", TIMEOUT_SECONDS, least=0.1),
        )
        if given:
            raise ModelError(f"the model {row.name} has an unknown setting: {min(given)}")
        if not re.fullmatch(r"[A-Za-z0-9-]+", endpoint.key_header):
            raise ModelError(f"the setting key_header of the model {row.name} is no header")
        return endpoint

    @property
    def address(self) -> str:
        """The URL to post to."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith("/embeddings"):
            path += "/embeddings"
        query = [parts.query] if parts.query else []
        if self.api_version:
            query.append(f"api-version={self.api_version}")
        return parts._replace(path=path, query="&".join(query), fragment="").geturl()

    @property
    def host(self) -> str:
        """Its host, in lower case."""
        return (urlsplit(self.url).hostname or "").lower()


class HttpModel:
    """A model of a provider; texts go out in batches, unit vectors come back."""

    def __init__(self, row: ModelRow, endpoint: Endpoint, key: Secret) -> None:
        self.name = row.name
        self.dimensions = row.dimensions
        parts = urlsplit(endpoint.url)
        self.backend = f"{parts.scheme}://{parts.netloc}".lower()
        self.max_tokens = endpoint.max_tokens
        self.batch_tokens = endpoint.batch_tokens
        self.batch_size = endpoint.batch_size
        self._endpoint = endpoint
        self._key = key
        headers = {"user-agent": f"ragdb/{__version__}"}
        if key:
            scheme = "Bearer " if endpoint.key_header.lower() == "authorization" else ""
            headers[endpoint.key_header] = scheme + key.reveal()
        # Redirects would take texts and the key to where nobody has allowed them to go.
        self._client = httpx.Client(
            headers=headers, timeout=endpoint.timeout, follow_redirects=False
        )

    @classmethod
    def from_row(cls, row: ModelRow, settings: Settings) -> HttpModel:
        """The model of a row. Raises ModelError if its settings are not valid here."""
        endpoint = Endpoint.of(row)
        if settings.api_hosts and endpoint.host not in settings.api_hosts:
            raise ModelError(
                f"the model {row.name} is at {endpoint.host}, which RAGDB_API_HOSTS does not name"
            )
        return cls(row, endpoint, settings.api_key)

    def __repr__(self) -> str:
        return f"HttpModel({self.name!r}, {self.backend!r})"

    def close(self) -> None:
        """Close the connections to the provider."""
        self._client.close()

    def check(self) -> None:
        """Embed one word. Raises ProviderAwayError or ModelError."""
        try:
            vectors = self._post([HARMLESS])
        except ProviderStumbledError as error:
            raise ProviderAwayError(error.message) from error
        except TextRefusedError as error:
            # What it says may repeat a key, and goes where texts are, not into a log.
            raise ModelError(
                f"{self._endpoint.address} refuses even the text {HARMLESS!r}",
                hint="check the settings of the model",
            ) from error
        if len(vectors) != 1:
            raise ProviderAwayError(f"{self.backend} gave {len(vectors)} vectors for one text")
        if vectors.shape[1:] != (self.dimensions,):
            raise ModelError(
                f"{self.backend} gives vectors of {vectors[0].size} dimensions and the model "
                f"{self.name} has {self.dimensions} in the database",
                hint="add the model with its dimensions, or set send_dimensions",
            )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """About how many tokens: a quarter of the ASCII characters, all of the others."""
        return [estimated_tokens(text) for text in texts]

    def vocabulary(self) -> list[str]:
        """Unknown: the tokenizer is the provider's."""
        return []

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of passages, shape (len(texts), dimensions); see EmbeddingModel.

        What a provider cannot do with a batch of several texts is raised as trouble with these
        texts: halve them, and the one at fault will be alone.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for batch in token_batches(self.count_tokens(texts), self):
            vectors[batch] = self._embed([texts[place] for place in batch])
        return vectors

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """Unit vector of a question, shape (dimensions,)."""
        return self._embed([text])[0]

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        try:
            vectors = self._post([self._cut(text) for text in texts])
            if len(vectors) != len(texts):
                raise self._stumbled(f"gave {len(vectors)} vectors for {len(texts)} texts")
            if vectors.shape[1:] != (self.dimensions,):
                raise self._stumbled(f"gave vectors of {vectors.shape[-1]} dimensions")
        except (TextRefusedError, ProviderStumbledError) as error:
            # Is it these texts, or anything? A provider that is down or badly set up must not park
            # a million jobs. A refused batch is halved first: of one text it can be told.
            if len(texts) == 1 or isinstance(error, ProviderStumbledError):
                self.check()
            raise
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def _cut(self, text: str) -> str:
        """The text, or as much of it as the model takes by estimate."""
        if not self.max_tokens or estimated_tokens(text) <= self.max_tokens:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if estimated_tokens(text[:middle]) <= self.max_tokens:
                low = middle
            else:
                high = middle - 1
        return text[:low]

    def _post(self, texts: list[str]) -> NDArray[np.float32]:
        """One request; the vectors as they came, in the order of the texts."""
        endpoint = self._endpoint
        body: dict[str, Any] = {"model": endpoint.model, "input": texts}
        if endpoint.encoding:
            body["encoding_format"] = endpoint.encoding
        if endpoint.send_dimensions:
            body["dimensions"] = self.dimensions
        try:
            with self._client.stream("POST", endpoint.address, json=body) as response:
                content = self._read(response)
        except httpx.TimeoutException:
            raise self._stumbled(f"did not answer in {endpoint.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise self._stumbled(f"cannot be reached: {type(error).__name__}") from None
        if response.status_code != 200:
            self._raise_for(response, content)
        return self._vectors(content)

    def _stumbled(self, problem: str) -> ProviderStumbledError:
        return ProviderStumbledError(f"{self.backend} {problem}")

    def _read(self, response: httpx.Response) -> bytes:
        """The body, within a time and a size: the client's own limit is for each piece."""
        deadline = time.monotonic() + self._endpoint.timeout
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > MOST_BYTES:
                raise self._stumbled(f"answers with more than {MOST_BYTES >> 20} MB")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("too slow")
        return bytes(content)

    def _raise_for(self, response: httpx.Response, content: bytes) -> None:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code in REFUSALS:
            raise TextRefusedError(f"{self.backend} answers {status}: {self._explanation(content)}")
        if response.status_code == 429 or (
            response.status_code == 503 and "retry-after" in response.headers
        ):
            raise ProviderAwayError(
                f"{self.backend} answers {status}",
                retry_after=retry_after(response.headers),
                is_limit=response.status_code == 429,
            )
        if response.status_code in PASSING or response.status_code >= 500:
            raise self._stumbled(f"answers {status}")
        # No explanation here: what is wrong with a key is told with half of the key.
        hints = {
            401: "check RAGDB_API_KEY",
            403: "check RAGDB_API_KEY and what it may do",
            404: "check the settings url and model of the model",
        }
        raise ModelError(
            f"{self._endpoint.address} answers {status}",
            hint=hints.get(
                response.status_code,
                "redirects are not followed: set url to where it leads"
                if response.is_redirect
                else "check the setting url of the model",
            ),
        )

    def _explanation(self, content: bytes) -> str:
        text = content[: 16 * EXPLANATION].decode("utf-8", errors="replace")
        try:
            answer: Any = json.loads(content)
        except ValueError:
            pass
        else:
            for name in ("error", "message"):
                if isinstance(answer, dict) and name in answer:
                    answer = cast("dict[str, Any]", answer)[name]
                    text = str(cast("object", answer))
        if self._key:
            text = text.replace(self._key.reveal(), HIDDEN)
        return " ".join(text.split())[:EXPLANATION]

    def _vectors(self, content: bytes) -> NDArray[np.float32]:
        """The vectors of an answer, by their `index`, shape (count, their dimensions).

        A number that is none becomes NaN, for the caller to judge.
        """
        try:
            items: list[Any] = json.loads(content)["data"]
            places = [int(item.get("index", place)) for place, item in enumerate(items)]
            vectors = [_numbers(item["embedding"]) for item in items]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise self._stumbled("gives an answer that is none") from None
        if sorted(places) != [*range(len(items))]:
            raise self._stumbled("does not say which vector is whose")
        if len({vector.size for vector in vectors}) > 1:
            raise self._stumbled("gives vectors of several lengths")
        by_place = sorted(zip(places, vectors, strict=True), key=lambda pair: pair[0])
        if not by_place:
            return np.empty((0, self.dimensions), dtype=np.float32)
        return np.stack([vector for _, vector in by_place])


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, at least 1: English has 4 to 5 letters for one."""
    ascii_only = len(text.encode("ascii", errors="ignore"))
    return 1 + ascii_only // 4 + (len(text) - ascii_only)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a provider wants to be left alone, within reason; None if it does not say."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else min(max(0.0, seconds), MOST_RETRY_SECONDS)


def _numbers(embedding: Any) -> NDArray[np.float32]:  # noqa: ANN401
    if isinstance(embedding, str):
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        except binascii.Error as error:
            raise ValueError("not base64") from error
    # None, as JSON has no NaN, becomes NaN.
    vector = np.array(embedding, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError("not a vector")
    return vector


def _text(given: dict[str, Any], name: str, default: str) -> str:
    value = given.pop(name, default)
    if not isinstance(value, str):
        raise ModelError(f"the model's setting {name} must be a text")
    return value.strip()


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.pop(name, False)
    if not isinstance(value, bool):
        raise ModelError(f"the model's setting {name} must be true or false")
    return value


def _number(given: dict[str, Any], name: str, default: float, *, least: float = 1) -> float:
    value: Any = given.pop(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e7:
        raise ModelError(f"the model's setting {name} must be a number from {least:g} to 1e7")
    return value
