"""Readers: from the path of a file to a Document whose headings are Markdown headings.

Text and Markdown keep their words as they are. HTML and reStructuredText become Markdown, because
the passages of a collection are cut at headings and know the headings above them. Both go one
way: docutils turns reStructuredText into HTML, and HTML is converted by markdownify.
"""

from __future__ import annotations

import codecs
import re
import stat
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import docutils.core
import yaml
from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString, PreformattedString
from charset_normalizer import from_bytes
from docutils import nodes
from docutils.parsers.rst import Directive, directives, roles
from docutils.parsers.rst.languages import en as standard_names
from markdownify import MarkdownConverter

FORMATS: Final[Mapping[str, str]] = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".mdx": "markdown",
    ".markdown": "markdown",
    ".rst": "rst",
    ".rest": "rst",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}
"""What is read, by the ending of the file's name in lower case."""

LIMIT_BYTES: Final = 50_000_000
"""Larger files are refused; rag.put refuses what is over 50 MB too."""

TITLE_CHARACTERS: Final = 300

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """What rag.put takes from a file.

    content is the text in which passages are searched, with line feeds only; metadata has
    "source", "format", "bytes" (size of the file), "modified" (date, UTC), and "lang" where the
    file states its language.
    """

    content: str
    title: str
    metadata: dict[str, str | int] = field(default_factory=dict[str, str | int])


class UnreadableError(Exception):
    """A file that is not ingested; str() is the reason in a few words."""


def read_document(path: Path, source: str) -> Document:
    """Read a file whose ending is in FORMATS; any other ending is read as plain text.

    source is the name that people know the file by, kept in the metadata. Raises UnreadableError
    for everything that lies in the file: rights, size, bytes that are no text, nothing in it.
    """
    data, modified = _read(path)
    kind = FORMATS.get(path.suffix.lower(), "text")
    text = decode(data, kind)
    if "\0" in text:
        raise UnreadableError("binary: it contains NUL characters")
    text = re.sub(r"\r\n?", "\n", text)
    try:
        converted = _READERS[kind](text, path.stem)
    except RecursionError as error:
        raise UnreadableError("nested too deeply") from error
    if not converted.content.strip():
        raise UnreadableError("empty")
    if any(map(_SURROGATE.search, (converted.content, converted.title, source))):
        raise UnreadableError("it has characters that are no valid Unicode (lone surrogates)")
    metadata: dict[str, str | int] = {
        "source": source,
        "format": kind,
        "bytes": len(data),
        # A day, not a moment: a fresh checkout would otherwise change every document.
        "modified": modified.date().isoformat(),
        **converted.metadata,
    }
    return Document(converted.content, _one_line(converted.title)[:TITLE_CHARACTERS], metadata)


def _read(path: Path) -> tuple[bytes, datetime]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer for ever.
            raise UnreadableError("not a regular file")
        if status.st_size > LIMIT_BYTES:
            size = status.st_size / 1_000_000
            raise UnreadableError(f"{size:.0f} MB; the limit is {LIMIT_BYTES // 1_000_000} MB")
        return path.read_bytes(), datetime.fromtimestamp(status.st_mtime, UTC)
    except FileNotFoundError as error:
        raise UnreadableError("a link to nothing" if path.is_symlink() else "gone") from error
    except PermissionError as error:
        raise UnreadableError("no permission to read it") from error
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------- encodings

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED: Final = re.compile(
    rb"""<\?xml[^>]*?\bencoding=["']([\w.:-]+)|<meta[^>]*?\bcharset=["']?\s*([\w.:-]+)""",
    re.IGNORECASE,
)
# What files without a declaration are written in; with all codecs of Python in the race, short
# Western texts come out as Turkish, Baltic or EBCDIC.
_CANDIDATES: Final = (
    "cp1252", "cp1250", "cp1251", "cp1253", "koi8_r",
    "cp932", "euc_jp", "gb18030", "big5", "euc_kr",
)  # fmt: skip
_GUESS_BYTES: Final = 262_144
# No text has these (form feeds and escapes occur).
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode(data: bytes, kind: str = "text") -> str:
    """The text of a file: by its byte order mark, as UTF-8, as it declares, else by a guess.

    Valid UTF-8 wins over a declaration: text in another encoding that happens to be valid UTF-8
    does not occur, files that were converted and kept their old declaration do.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _strictly(data, encoding)
    if b"\0" in data:
        return _decode_wide(data)
    declared = _declared_encoding(data) if kind == "html" else None
    if declared is not None and declared.startswith(("iso2022", "hz")):
        return _strictly(data, declared)
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    if declared is not None and declared != "utf-8":
        return _strictly(data, declared)
    guess = from_bytes(data[:_GUESS_BYTES], cp_isolation=list(_CANDIDATES)).best()
    if guess is None:
        raise UnreadableError("its encoding is not recognised")
    return _strictly(data, guess.encoding)


def _declared_encoding(data: bytes) -> str | None:
    found = _DECLARED.search(data[:4096])
    if found is None:
        return None
    try:
        name = codecs.lookup((found[1] or found[2]).decode("ascii")).name
    except LookupError:
        return None
    # As browsers read it: who declares ISO-8859-1 often means the quotation marks of Windows.
    return "cp1252" if name in {"iso8859-1", "ascii"} else name


def _strictly(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "cp1252":
            return data.decode("latin-1")
        raise UnreadableError(f"not valid {encoding.removesuffix('-sig')}") from error


def _decode_wide(data: bytes) -> str:
    """UTF-16 without a byte order mark: every other byte of mostly Western text is NUL."""
    sample = data[:_GUESS_BYTES]
    half = len(sample) // 2
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if half and sample[first::2].count(0) > half * 0.6 and 0 not in sample[1 - first :: 2]:
            text = _strictly(data, encoding)
            if not _CONTROL.search(text):
                return text
    raise UnreadableError("binary: it contains NUL bytes")


# -------------------------------------------------------------------------------- text and Markdown

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_HEADING: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-+)[ \t]*")
# Anchors behind a heading, as MDX and Docusaurus write them: {/*name*/} and {#name}.
_ANCHORS: Final = re.compile(r"(?:(?:\{/\*[^{}]*\*/\}|\{#[\w-]+\})[ \t]*)+$")
_FRONT_MATTER: Final = re.compile(
    r"(---|\+\+\+)[ \t]*\n(.*?)^\1[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE
)
_FRONT_MATTER_CHARACTERS: Final = 65_536


def _read_text(text: str, name: str) -> Document:
    return Document(text, name)


def _read_markdown(text: str, name: str) -> Document:
    """Markdown as it is, but for front matter and anchors.

    Front matter is metadata, not prose: its title becomes the title and, if the text has no
    heading of level 1, that heading, so that each passage knows the page it is from.
    """
    front, text = _split_front_matter(text)
    lines: list[str] = []
    headings: list[tuple[int, str]] = []
    for raw, is_code in _with_code(text.split("\n")):
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
        content = f"# {_one_line(title)}\n\n{content.lstrip()}"
    first = next((heading for _, heading in headings if heading), name)
    title = title or _plain(next(iter(tops), first)[:TITLE_CHARACTERS])
    return Document(content, title, _language(_string(front.get("lang"))))


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


def _with_code(lines: Iterable[str]) -> Iterable[tuple[str, bool]]:
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


def _language(value: str) -> dict[str, str | int]:
    return {"lang": value.lower()} if re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]+)*", value) else {}


# --------------------------------------------------------------------------------------------- HTML

# What stands around the text of a page: by element, by role, and by the names that common
# generators (Apache's manual, Sphinx, MkDocs, Docusaurus) give it. CSS selectors for the same
# took four fifths of the time of reading a page.
_NOISE_ELEMENTS: Final = frozenset((
    "button", "canvas", "dialog", "form", "head", "iframe", "nav", "noscript", "object",
    "script", "style", "svg", "template",
))  # fmt: skip
_NOISE_ROLES: Final = frozenset(("banner", "contentinfo", "navigation", "search"))
_NOISE_NAMES: Final = frozenset((
    "page-header", "path", "quickview", "footer", "up", "top", "toplang", "bottomlang",
    "outofdate",
    "permalink", "headerlink", "hash-link", "anchor-link", "skip-link", "footnote-backref",
    "sphinxsidebar", "md-sidebar", "breadcrumbs", "theme-doc-toc-desktop",
))  # fmt: skip
# Boxes have titles, not headings: as headings they would claim the text behind the box.
_BOXES: Final = frozenset((
    "note", "warning", "example", "admonition", "tip", "caution", "important",
))  # fmt: skip
_HEADINGS: Final = ("h1", "h2", "h3", "h4", "h5", "h6")
_FALSE_MARK: Final = re.compile(r"^(\s*)(#{1,6}(?:\s|$)|`{3}|~{3})")


class _Converter(MarkdownConverter):
    """markdownify, with its few ways that harm passages changed."""

    def __init__(self) -> None:
        super().__init__(
            bullets="-",
            code_language_callback=_code_language,
            escape_asterisks=False,
            escape_underscores=False,
            heading_style="atx",
            strip=["a"],
            table_infer_header=True,
            wrap=True,  # One line a paragraph ...
            wrap_width=None,  # ... however long.
        )

    def escape(self, text: str, parent_tags: set[str]) -> str:  # noqa: ARG002
        """Only what would begin a heading or a block of code; other marks do no harm."""
        return _FALSE_MARK.sub(r"\1\\\2", text)

    def convert_br(self, el: Tag, text: str, parent_tags: set[str]) -> str:  # noqa: ARG002
        return " " if "_inline" in parent_tags else "\n"

    def convert_table(self, el: Tag, text: str, parent_tags: set[str]) -> str:  # noqa: ARG002
        return "\n\n" + "\n".join(line.strip() for line in text.strip().split("\n")) + "\n\n"

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:  # noqa: ARG002
        return _attribute(el, "alt")

    def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        if "_inline" in parent_tags:
            return f" {text.strip()} "
        text = text.strip("\n").rstrip()
        if not text:
            return ""
        longest = max(map(len, re.findall("`{3,}", text)), default=2)
        fence = "`" * (longest + 1)
        return f"\n\n{fence}{_code_language(el) or ''}\n{text}\n{fence}\n\n"


def _read_html(text: str, name: str) -> Document:
    soup = _parse(text)
    head = soup.title.get_text() if soup.title else ""
    language = _attribute(soup.html, "lang") if soup.html else ""
    content, heading = _markdown(soup)
    title = heading or _one_line(head)
    if title and not heading and content.strip():
        content = f"# {title}\n\n{content}"
    return Document(content, title or name, _language(language))


def _parse(html: str) -> BeautifulSoup:
    # lxml closes what old pages leave open; Python's own parser nests <p>a<p>b<p>c ever deeper.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML is read as HTML on purpose.
        return BeautifulSoup(html, "lxml")


def _markdown(soup: BeautifulSoup) -> tuple[str, str]:
    """The Markdown of a page's main part, and its heading of level 1 ('' without one)."""
    mains = soup.find_all("main")
    root: Tag = mains[0] if len(mains) == 1 else (soup.body or soup)
    for tag in soup.find_all(_is_noise):
        tag.decompose()
    comments = soup.find(id="comments_section")  # Of Apache's manual: a call for comments.
    if section := comments and comments.find_parent("div"):
        section.decompose()
    for comment in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        comment.extract()
    for tag in root.find_all(_HEADINGS):
        if any(_is_box(parent) for parent in tag.parents):
            tag.wrap(soup.new_tag("p"))
            tag.name = "strong"
    for tag in root.find_all("table"):
        if tag.find("table"):
            _unfold(tag)
        elif not _list_pairs(soup, tag):
            _join_items(tag)
    for tag in root.find_all("br"):
        follower = tag.next_sibling
        if isinstance(follower, NavigableString) and not tag.find_parent("pre"):
            follower.replace_with(follower.lstrip())
    for tag in root.find_all("code"):
        _make_block(tag)
    top = root.find("h1")
    heading = _one_line(top.get_text()) if isinstance(top, Tag) else ""
    text = _Converter().convert_soup(root).replace("\N{NO-BREAK SPACE}", " ")
    return _tidy(text), heading


def _is_noise(tag: Tag) -> bool:
    if tag.name in _NOISE_ELEMENTS or tag.has_attr("hidden"):
        return True
    names = {_attribute(tag, "id"), *_attribute(tag, "class").split()}
    if tag.get("role") in _NOISE_ROLES or not _NOISE_NAMES.isdisjoint(names):
        return tag.find("h1") is None
    if tag.name in {"header", "footer"}:
        # Those of an article or a section belong to its text.
        return tag.parent is not None and tag.parent.name == "body" and tag.find("h1") is None
    return False


def _is_box(tag: Tag) -> bool:
    return tag.name == "aside" or not _BOXES.isdisjoint(_attribute(tag, "class").split())


def _unfold(table: Tag) -> None:
    """Turn a table that holds tables into plain blocks: it is there for the layout."""
    for tag in table.find_all(("tbody", "thead", "tr", "td", "th")):
        if tag.find_parent("table") is table:
            tag.name = "div"
    table.name = "div"


def _join_items(table: Tag) -> None:
    """Write lists in the cells of a table as "one, two, three": a cell has one line."""
    for item in table.find_all("li"):
        item.append(", " if item.find_next_sibling("li") else " ")
    for tag in table.find_all(("li", "ol", "ul")):
        tag.name = "span"


def _list_pairs(soup: BeautifulSoup, table: Tag) -> bool:
    """Turn a table of names and values into a list: as a table it has no head and no meaning."""
    rows = table.find_all("tr")
    cells = [row.find_all(("th", "td"), recursive=False) for row in rows]
    if not rows or any([cell.name for cell in row] != ["th", "td"] for row in cells):
        return False
    items = soup.new_tag("ul")
    for name, value in cells:
        item = soup.new_tag("li")
        item.append(_one_line(name.get_text()).rstrip(":") + ": ")
        item.extend(list(value.children))
        items.append(item)
    table.replace_with(items)
    return True


def _make_block(code: Tag) -> None:
    """Turn a paragraph that is one piece of code of several lines into a block of code."""
    paragraph = code.parent
    if paragraph is None or paragraph.name != "p" or not code.find("br"):
        return
    if any(node is not code and str(node).strip() for node in paragraph.children):
        return
    parts: list[str] = []
    for node in code.descendants:
        if isinstance(node, NavigableString):
            parts.append(re.sub(r"\s+", " ", node))
        elif isinstance(node, Tag) and node.name == "br":
            parts.append("\n")
    block = "\n".join(line.strip() for line in "".join(parts).split("\n"))
    paragraph.name = "pre"
    paragraph.string = block


def _tidy(text: str) -> str:
    """No blanks at the ends of lines, one empty line at most, no headings but real ones."""
    lines: list[str] = []
    for line, is_code in _with_code(text.split("\n")):
        tidied = line if is_code else line.rstrip()
        if tidied or is_code or (lines and lines[-1]):
            lines.append(tidied)
    return "\n".join(lines).strip("\n") + "\n"


def _code_language(el: Tag) -> str | None:
    """The language of a block of code as its class states it."""
    inner = el.find("code", recursive=False)
    for tag in (el, inner):
        if isinstance(tag, Tag):
            names = _attribute(tag, "class").split()
            for name in names:
                if found := re.fullmatch(r"(?:lang|language|highlight|brush:)-([\w+#-]+)", name):
                    return found[1]
            if "literal-block" in names and "code" in names:
                return next((name for name in names if name not in {"code", "literal-block"}), None)
    return None


def _attribute(tag: Tag, name: str) -> str:
    value = tag.get(name)
    return value if isinstance(value, str) else " ".join(value or ())


# --------------------------------------------------------------------------------- reStructuredText

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


def _read_rst(text: str, name: str) -> Document:
    fields: list[tuple[str, str]] = []
    if header := _HEADER.match(text):
        fields = [(field[1], _one_line(field[2])) for field in _HEADER_FIELD.finditer(header[0])]
        text = text[header.end() :]
    for directive in set(_DIRECTIVE_NAME.findall(text)) - set(standard_names.directives):
        directives.register_directive(directive, _Unknown)
    for role in set(_ROLE_NAME.findall(text)) - (set(standard_names.roles) - _SERIES):
        roles.register_local_role(role, _unknown_role)
    if max(map(len, text.split("\n"))) > _RST_LINE_CHARACTERS:
        return _read_text(text, name)
    title = _header_title(fields)
    # Where a header has the title, a single section at the top is a section.
    settings = {**_SETTINGS, "doctitle_xform": not title}
    soup = _parse(_publish(text, writer="html5", settings_overrides=settings))
    for tag in soup.find_all(class_="literal"):
        tag.name = "code"
    for tag in soup.find_all(class_="footnote"):
        label, words = tag.find(class_="label"), tag.find("p")
        if label and words:
            words.insert(0, f"{label.get_text()} ")
            label.decompose()
    content, heading = _markdown(soup)
    if title:
        values = [(key, _LINK.sub(r"\1", value)) for key, value in fields if key != "Title"]
        lines = [f"- {key}: {value}" for key, value in values if value]
        content = "\n".join([f"# {title}", "", *lines, "", content])
    return Document(content, title or heading or name)


def _header_title(fields: Sequence[tuple[str, str]]) -> str:
    """The title in a header, after the series and number: "PEP 8 - Style Guide"."""
    title = dict(fields).get("Title", "")
    series, number = fields[0] if fields else ("", "")
    return f"{series} {number} \N{EN DASH} {title}" if title and number.isdigit() else title


_READERS: Final[Mapping[str, Callable[[str, str], Document]]] = {
    "text": _read_text,
    "markdown": _read_markdown,
    "rst": _read_rst,
    "html": _read_html,
}
