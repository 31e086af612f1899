"""Slides (PPTX), by python-pptx: a page for each slide, its title as heading, its notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import pptx

from embedder.readers import archive
from embedder.readers.document import Document, File, Pages, cells, one_line, said, unmarked

# Groups of shapes in groups of shapes.
_DEPTH = 20


def read(file: File) -> Document:
    """All slides in their order."""
    show = pptx.Presentation(cast("Any", archive.opened(file.data)))
    about = cast("Any", show.core_properties)
    titles: list[str] = []
    pages = Pages()
    for number, slide in enumerate(show.slides, start=1):
        shape = slide.shapes.title
        title = one_line(shape.text_frame.text) if shape is not None else ""
        titles.append(title)
        blocks = [f"## {title or f'Slide {number}'}"]
        known = shape.shape_id if shape is not None else None
        blocks += _texts((one for one in slide.shapes if one.shape_id != known), 0)
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame):
            blocks.append(unmarked(notes.text.strip()))
        written = [block for block in blocks if block]
        pages.add("\n\n".join(written) if len(written) > 1 or title else "")
    title = one_line(about.title or "") or next(filter(None, titles), "") or file.stem
    return Document(
        pages.content.replace("\0", " "),
        title,
        said(author=about.author, created=about.created) | pages.metadata,
    )


def _texts(shapes: Iterable[Any], depth: int) -> Iterator[str]:
    for shape in shapes:
        if getattr(shape, "has_text_frame", False):
            yield unmarked(str(shape.text_frame.text).replace("\v", "\n").strip())
        elif getattr(shape, "has_table", False):
            rows = [cells([str(cell.text) for cell in row.cells]) for row in shape.table.rows]
            rows.insert(1, "| " + " | ".join("---" for _ in shape.table.columns) + " |")
            yield "\n".join(rows)
        elif hasattr(shape, "shapes") and depth < _DEPTH:
            yield from _texts(shape.shapes, depth + 1)
