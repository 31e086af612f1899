"""Markdown, as it is, but for front matter and anchors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Final, cast

import yaml

from embedder.readers.document import TITLE_CHARACTERS, Document, File, Metadata, one_line, said

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_HEADING: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-+)[ \t]*")
# Anchors behind a heading, as MDX and Docusaurus write them: {/*name*/} and {#name}.
_ANCHORS: Final = re.compile(r"(?:(?:\{/\*[^{}]*\*/\}|\{#[\w-]+\})[ \t]*)+$")
_FRONT_MATTER: Final = re.compile(
    r"(---|\+\+\+)[ \t]*\n(.*?)^\1[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE
)
_FRONT_MATTER_CHARACTERS: Final = 65_536


def read(file: File) -> Document:
    """Markdown as it is, but for front matter and anchors.

    Front matter is metadata, not prose: its title becomes the title and, if the text has no
    heading of level 1, that heading, so that each passage knows the page it is from.
    """
    front, text = _split_front_matter(file.text)
    lines: list[str] = []
    headings: list[tuple[int, str]] = []
    for raw, is_code in with_code(text.split("\n")):
        found = None if is_code else _HEADING.match(raw)
        line = _ANCHORS.sub("", raw.rstrip()).rstrip() if found else raw
        if found:
            headings.append((len(found[1]), _heading_text(line[found.end() :])))
        elif not is_code and lines and _UNDERLINE.fullmatch(line) and _is_paragraph(lines[-1]):
            headings.append((1 if "=" in line else 2, lines[-1].strip()))
        lines.append(line)
    content = "\n".join(lines)
    tops = [heading for level, heading in headings if level == 1 and heading]
    title = _string(front.get("title"))
    if title and not tops:
        content = f"# {one_line(title)}\n\n{content.lstrip()}"
    first = next((heading for _, heading in headings if heading), file.stem)
    title = title or _plain(next(iter(tops), first)[:TITLE_CHARACTERS])
    metadata = stated_language(_string(front.get("lang")))
    metadata |= said(author=front.get("author"), created=front.get("date"))
    return Document(content, title, metadata)


def _split_front_matter(text: str) -> tuple[Mapping[str, object], str]:
    """The values of a YAML or TOML block at the very start, and the text behind it."""
    found = _FRONT_MATTER.match(text, 0, _FRONT_MATTER_CHARACTERS)
    if found is None:
        return {}, text
    try:
        values: object = tomllib.loads(found[2]) if found[1] == "+++" else yaml.safe_load(found[2])
    except (yaml.YAMLError, tomllib.TOMLDecodeError, ValueError):
        return {}, text
    if not isinstance(values, dict):
        # A rule at the top of a page, not front matter.
        return {}, text
    return cast("dict[str, object]", values), text[found.end() :]


def with_code(lines: Iterable[str]) -> Iterable[tuple[str, bool]]:
    """Each line, and whether it belongs to a fenced block of code."""
    fence = ""
    for line in lines:
        found = _FENCE.fullmatch(line)
        if fence:
            yield line, True
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
        elif found and not (found[1][0] == "`" and "`" in found[2]):
            fence = found[1]
            yield line, True
        else:
            yield line, False


def _heading_text(text: str) -> str:
    """A heading without the number signs that may close it: "Title ##"."""
    text = text.strip()
    opened = text.rstrip("#")
    return opened.rstrip() if opened != text and opened[-1:] in {"", " ", "\t"} else text


def _is_paragraph(line: str) -> bool:
    return bool(line.strip()) and not re.match(r" {4}|\t| {0,3}(?:[-*+>#|<]|\d+[.)])", line)


def _plain(heading: str) -> str:
    """A heading without its marks: code, emphasis, links."""
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"`|\*\*|(?<!\w)[*_]|[*_](?!\w)", "", heading)


def _string(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def stated_language(value: str) -> Metadata:
    """{"lang": …} of a language tag such as "es" or "pt-BR"; nothing of anything else."""
    return {"lang": value.lower()} if re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]+)*", value) else {}
