"""HTML: the main part of a page as Markdown, converted by markdownify."""

from __future__ import annotations

import re
import warnings
from typing import Final

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString, PreformattedString
from markdownify import MarkdownConverter

from embedder.readers.document import Document, File, Metadata, one_line, said
from embedder.readers.markdown import stated_language, with_code

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
# Where pages state the day on which they were published.
_DATES: Final = ("article:published_time", "dcterms.created", "dcterms.date", "DC.date", "date")
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


def read(file: File) -> Document:
    """The main part of a page, without what stands around it."""
    soup = parse(file.text)
    head = soup.title.get_text() if soup.title else ""
    language = _attribute(soup.html, "lang") if soup.html else ""
    about = stated(soup)
    content, heading = markdown(soup)
    title = heading or one_line(head)
    if title and not heading and content.strip():
        content = f"# {title}\n\n{content}"
    metadata = stated_language(language) | about
    return Document(content, title or file.stem, metadata)


def meta(soup: BeautifulSoup, name: str) -> str:
    """The content of a page's `<meta name=…>` or `<meta property=…>`, '' without one."""
    tag = soup.find("meta", attrs={"name": name}) or soup.find("meta", attrs={"property": name})
    return _attribute(tag, "content") if isinstance(tag, Tag) else ""


def stated(soup: BeautifulSoup) -> Metadata:
    """The author and the day that a page's head states."""
    dates = (meta(soup, name) for name in _DATES)
    return said(author=meta(soup, "author"), created=next(filter(None, dates), ""))


def parse(html: str) -> BeautifulSoup:
    """A page as a tree."""
    # lxml closes what old pages leave open; Python's own parser nests <p>a<p>b<p>c ever deeper.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML is read as HTML on purpose.
        return BeautifulSoup(html, "lxml")


def markdown(soup: BeautifulSoup) -> tuple[str, str]:
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
    heading = one_line(top.get_text()) if isinstance(top, Tag) else ""
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
        item.append(one_line(name.get_text()).rstrip(":") + ": ")
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
    for line, is_code in with_code(text.split("\n")):
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
