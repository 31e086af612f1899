"""reStructuredText: docutils makes HTML of it, and that goes the way of HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any, Final, cast

import docutils.core
from docutils import nodes
from docutils.parsers.rst import Directive, directives, roles
from docutils.parsers.rst.languages import en as standard_names

from embedder.readers.document import Document, File, one_line, said
from embedder.readers.html import markdown, parse, stated

# A header like that of an e-mail, as Python's, Jabber's and other proposals have it.
_HEADER: Final = re.compile(r"(?:[A-Z][\w-]*:.*\n(?:[ \t]+\S.*\n)*)+\n")
_HEADER_FIELD: Final = re.compile(r"^([A-Z][\w-]*):[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_DIRECTIVE_NAME: Final = re.compile(r"^[ \t]*(?:[-*+][ \t]+)?\.\.[ \t]+([\w:.+-]+)::", re.MULTILINE)
_ROLE_NAME: Final = re.compile(r"(?<![\w:]):([A-Za-z][\w:.+-]*):`")
# Roles that docutils knows, but not with a label as Sphinx has it: :pep:`label <8>`.
_SERIES: Final = frozenset(("pep", "rfc"))
# `label <target>`__ in a header, of which the label is kept.
_LINK: Final = re.compile(r"`([^`<]+?)\s*<[^<>`]*>`_{0,2}")
# docutils gives up on longer lines, for the sake of its regular expressions.
_RST_LINE_CHARACTERS: Final = 10_000
_SETTINGS: Final = {
    "_disable_config": True,
    "embed_stylesheet": False,
    # A document must not read other files of this machine, nor put HTML past the converter.
    "file_insertion_enabled": False,
    "halt_level": 5,
    "output_encoding": "unicode",
    "initial_header_level": "2",
    "raw_enabled": False,
    "report_level": 5,
    "smart_quotes": False,
    "syntax_highlight": "none",
    "toc_backlinks": False,
    "warning_stream": "",
}


_publish = cast("Callable[..., str]", docutils.core.publish_string)  # pyright: ignore[reportUnknownMemberType]


class _AnyOptions(dict[str, Callable[[str], str]]):
    def __missing__(self, key: str) -> Callable[[str], str]:
        return directives.unchanged


class _Unknown(Directive):
    """A directive that docutils does not know (of Sphinx, say): its words are kept.

    Without it docutils would drop the whole block, text and all.
    """

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = _AnyOptions(name=directives.unchanged)

    def run(self) -> Sequence[nodes.Node]:
        if self.name in {"doctest", "ipython", "productionlist", "prompt", "testcode"}:
            text = "\n".join(self.content)
            return [nodes.literal_block(text, text)]
        if self.name in {"currentmodule", "index", "highlight", "toctree"}:
            return []
        block = nodes.container()
        if self.arguments:
            words, _ = self.state.inline_text(self.arguments[0], self.lineno)
            block += nodes.paragraph("", "", *words)
        self.state.nested_parse(self.content, self.content_offset, block)
        return [block]


def _unknown_role(
    name: str,
    rawtext: str,
    text: str,
    *_: object,
    **__: object,
) -> tuple[list[Any], list[Any]]:
    """The words of a role of Sphinx: of `label <target>` the label."""
    label = re.sub(r"\s*<[^<>]*>$", "", text).lstrip("~!")
    if name in _SERIES:
        return [nodes.Text(f"{name.upper()} {label}" if label == text else label)], []
    if name in {"doc", "ref", "term", "numref", "abbr", "guilabel", "menuselection"}:
        return [nodes.Text(label)], []
    return [nodes.literal(rawtext, label)], []


def read(file: File) -> Document:
    """The text with the headings, roles and directives of docutils and Sphinx."""
    text = file.text
    fields: list[tuple[str, str]] = []
    if header := _HEADER.match(text):
        fields = [(field[1], one_line(field[2])) for field in _HEADER_FIELD.finditer(header[0])]
        text = text[header.end() :]
    for directive in set(_DIRECTIVE_NAME.findall(text)) - set(standard_names.directives):
        directives.register_directive(directive, _Unknown)
    for role in set(_ROLE_NAME.findall(text)) - (set(standard_names.roles) - _SERIES):
        roles.register_local_role(role, _unknown_role)
    if max(map(len, text.split("\n"))) > _RST_LINE_CHARACTERS:
        return Document(text, file.stem)
    title = _header_title(fields)
    # Where a header has the title, a single section at the top is a section.
    settings = {**_SETTINGS, "doctitle_xform": not title}
    soup = parse(_publish(text, writer="html5", settings_overrides=settings))
    for tag in soup.find_all(class_="literal"):
        tag.name = "code"
    for tag in soup.find_all(class_="footnote"):
        label, words = tag.find(class_="label"), tag.find("p")
        if label and words:
            words.insert(0, f"{label.get_text()} ")
            label.decompose()
    # docutils makes of fields like :Author: and :Date: what the head of a page states.
    about = stated(soup)
    content, heading = markdown(soup)
    if title:
        values = [(key, _LINK.sub(r"\1", value)) for key, value in fields if key != "Title"]
        lines = [f"- {key}: {value}" for key, value in values if value]
        content = "\n".join([f"# {title}", "", *lines, "", content])
    header = dict(fields)
    about |= said(author=header.get("Author"), created=_day(header.get("Created", "")))
    return Document(content, title or heading or file.stem, about)


def _day(value: str) -> str | date:
    """The day that a header gives as 05-Apr-2024; whatever else it gives as it is."""
    try:
        return datetime.strptime(value, "%d-%b-%Y").date()  # noqa: DTZ007 (a day)
    except ValueError:
        return value


def _header_title(fields: Sequence[tuple[str, str]]) -> str:
    """The title in a header, after the series and number: "PEP 8 - Style Guide"."""
    title = dict(fields).get("Title", "")
    series, number = fields[0] if fields else ("", "")
    return f"{series} {number} \N{EN DASH} {title}" if title and number.isdigit() else title
