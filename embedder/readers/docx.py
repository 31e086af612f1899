"""Word documents (DOCX), by python-docx: headings, lists and tables as Markdown."""

from __future__ import annotations

import re
from typing import Any, cast

import docx
from docx.document import Document as DocxDocument
from docx.table import Table
from docx.text.paragraph import Paragraph

from embedder.readers import archive
from embedder.readers.document import Document, File, cells, said, unmarked

_HEADING = re.compile(r"heading (\d)", re.IGNORECASE)


def read(file: File) -> Document:
    """The body in its order; headers, footers and comments are left out."""
    document = docx.Document(archive.opened(file.data))
    said_title = document.core_properties.title or ""
    styles = _styles(document)
    blocks: list[str] = []
    titles: list[str] = []
    for block in document.iter_inner_content():
        if isinstance(block, Paragraph):
            text = block.text.strip()
            if not text:
                continue
            element = cast("Any", block._p)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            level, is_item = styles.get(element.style, (0, False))
            numbered = element.pPr is not None and element.pPr.numPr is not None
            if level:
                heading = " ".join(text.split())
                blocks.append(f"\n{'#' * level} {heading}\n")
                if level == 1:
                    titles.append(heading)
            elif is_item or numbered:
                blocks.append(f"- {' '.join(text.split())}")
            else:
                blocks.append(f"\n{unmarked(text)}\n")
        else:
            blocks.append(f"\n{_table(block)}\n")
    content = re.sub(r"\n{3,}", "\n\n", "\n".join(blocks)).strip("\n") + "\n"
    title = said_title or next(iter(titles), "") or file.stem
    if said_title and not titles and content.strip():
        content = f"# {' '.join(said_title.split())}\n\n{content}"
    about = document.core_properties
    return Document(
        content.replace("\0", ""), title, said(author=about.author, created=about.created)
    )


def _styles(document: DocxDocument) -> dict[str | None, tuple[int, bool]]:
    """By the id of a style: its level as a heading, 1 to 6, otherwise 0; is it one of lists?

    Looked up once: to ask each paragraph for its style took nine tenths of the time.
    """
    return {
        style.style_id: (_level(style), (style.name or "").startswith("List"))
        for style in document.styles
    }


def _level(style: Any) -> int:  # noqa: ANN401
    """The level of a style or of what it is based on."""
    for _ in range(10):
        if style is None:
            return 0
        name = style.name or ""
        if name == "Title":
            return 1
        if found := _HEADING.fullmatch(name):
            return min(6, max(1, int(found[1])))
        style = getattr(style, "base_style", None)
    return 0


def _table(table: Table) -> str:
    rows: list[str] = []
    for row in table.rows:
        values: list[str] = []
        seen: list[object] = []
        for cell in row.cells:
            # Cells that were joined are there once for each column.
            if not any(cell._tc is other for other in seen):  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
                seen.append(cell._tc)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
                values.append(cell.text)
        rows.append(cells(values))
        if len(rows) == 1:
            rows.append("| " + " | ".join("---" for _ in values) + " |")
    return "\n".join(rows)
