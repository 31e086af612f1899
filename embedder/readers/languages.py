"""The language of a text: as py3langid recognises it, and what Postgres calls it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

CONFIGURATIONS: Final[Mapping[str, str]] = {
    "ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek",
    "en": "english", "es": "spanish", "eu": "basque", "fi": "finnish", "fr": "french",
    "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian",
    "it": "italian", "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch",
    "nn": "norwegian", "no": "norwegian", "pt": "portuguese", "ro": "romanian",
    "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish",
    "yi": "yiddish",
}  # fmt: skip
"""Text search configurations of Postgres by language."""

# Less than that is too little to tell Spanish from Portuguese.
_LETTERS: Final = 200
_SAMPLE: Final = 4_000
_CERTAIN: Final = 0.95
_CODE: Final = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.DOTALL | re.MULTILINE)


def detected(content: str) -> str | None:
    """The language of a text, such as "es"; None of little text, and when it is not certain."""
    # From behind the beginning: that is names, dates and tables of contents.
    start = min(len(content) // 4, 20_000) if len(content) > 4 * _SAMPLE else 0
    sample = _CODE.sub(" ", content[start : start + 2 * _SAMPLE])
    words = " ".join(re.findall(r"[^\W\d_]+", sample))[:_SAMPLE]
    if len(words) < _LETTERS:
        return None
    identifier = _identifier()
    if identifier is None:
        return None
    language, probability = identifier.classify(words)
    return str(language) if probability >= _CERTAIN else None


@cache
def _identifier() -> Any | None:  # noqa: ANN401
    try:
        from py3langid import langid  # pyright: ignore[reportMissingTypeStubs]
    except ModuleNotFoundError:
        return None
    kind = cast("Any", langid).LanguageIdentifier
    try:
        return kind.from_model_file(cast("Any", langid).MODEL_FILE, norm_probs=True)
    except OSError:
        # It unpacks its model into a temporary file, and there is no room for one.
        return None
