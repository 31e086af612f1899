"""Formats beyond text: real files made by other libraries, broken ones, and hostile ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import docx
import openpyxl
import pptx
import pypdfium2
import pytest
from fpdf import FPDF

from embedder.readers import Document, Limits, UnreadableError, read_bytes
from embedder.readers.process import ReaderProcess
from tests.processes import until

Reads = Callable[[str, bytes], Document]

ENGLISH = (
    "Refunds are paid within fourteen days after the parcel has come back to us. Write to the "
    "billing department and name the number of your order, and we shall see to it at once. "
    "Parcels that were damaged on their way are replaced without any further question. "
)


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderProcess]:
    """One process for the files of this module."""
    process = ReaderProcess()
    yield process
    process.close()


@pytest.fixture
def read(reader: ReaderProcess) -> Reads:
    """Reads a file that was handed over."""
    return lambda name, data: reader.read_bytes(name, data, f"files/{name}")


def saved(document: Any) -> bytes:
    """The bytes of a document of python-docx, python-pptx or openpyxl."""
    data = io.BytesIO()
    document.save(data)
    return data.getvalue()


def pdf(*pages: str, outline: bool = True, author: str = "A. Person", password: str = "") -> bytes:
    """A real PDF; the first line of a page is a heading of its outline."""
    made = FPDF()
    made.set_title("The Manual")
    made.set_author(author)
    if password:
        made.set_encryption(owner_password="owner", user_password=password)
    for text in pages:
        made.add_page()
        made.set_font("helvetica", size=11)
        head, _, body = text.partition("\n")
        if outline and head:
            made.start_section(head)
        made.multi_cell(0, 6, head + "\n" + body if text else "")
    return bytes(made.output())


# ------------------------------------------------------------------------------------------ formats


def test_pdf_has_pages_headings_and_metadata(read: Reads) -> None:
    read_one = read("manual.pdf", pdf("First part\n" + ENGLISH, "", "Second part\nThe end."))
    assert read_one.title == "The Manual"
    assert read_one.content.startswith("# First part\n\nRefunds are paid within fourteen days")
    assert read_one.content.endswith("# Second part\n\nThe end.\n\n")
    starts = read_one.metadata["page_starts"]
    assert isinstance(starts, list)
    assert len(starts) == 3
    assert starts[0] == 0
    assert starts[1] == starts[2] == read_one.content.index("# Second part")
    about = {name: read_one.metadata[name] for name in ("author", "lang", "mime", "format", "name")}
    assert about == {
        "author": "A. Person",
        "lang": "en",
        "mime": "application/pdf",
        "format": "pdf",
        "name": "manual.pdf",
    }
    assert len(str(read_one.metadata["sha256"])) == 64
    assert str(read_one.metadata["created"]).startswith("20")


def test_docx_keeps_headings_lists_and_tables(read: Reads) -> None:
    made = docx.Document()
    made.core_properties.author = "B. Person"
    made.add_heading("Refunds", 1)
    made.add_paragraph(ENGLISH)
    made.add_heading("How", 2)
    made.add_paragraph("Write to us", style="List Bullet")
    made.add_paragraph("# is no heading")
    table = made.add_table(2, 2)
    for row, values in zip(table.rows, (("Kind", "Days"), ("card | bank", "14")), strict=True):
        for cell, value in zip(row.cells, values, strict=True):
            cell.text = value
    read_one = read("refunds.docx", saved(made))
    assert (read_one.title, read_one.metadata["author"]) == ("Refunds", "B. Person")
    assert read_one.content == (
        f"# Refunds\n\n{ENGLISH.strip()}\n\n## How\n\n- Write to us\n\n\\# is no heading\n\n"
        "| Kind | Days |\n| --- | --- |\n| card \\| bank | 14 |\n"
    )


def test_pptx_has_a_page_for_each_slide_with_its_notes(read: Reads) -> None:
    made = pptx.Presentation()
    for title, body, notes in (("Plan", "Three steps", "Speak slowly"), ("End", "Thanks", "")):
        slide = made.slides.add_slide(made.slide_layouts[1])
        cast("Any", slide.shapes.title).text = title
        cast("Any", slide.placeholders[1]).text = body
        if notes:
            cast("Any", slide.notes_slide.notes_text_frame).text = notes
    read_one = read("plan.pptx", saved(made))
    assert read_one.title == "Plan"
    assert read_one.content == "## Plan\n\nThree steps\n\nSpeak slowly\n\n## End\n\nThanks\n\n"
    assert read_one.metadata["page_starts"] == [0, read_one.content.index("## End")]


def test_xlsx_repeats_the_names_of_columns(read: Reads) -> None:
    made = openpyxl.Workbook()
    sheet = cast("Any", made.active)
    sheet.title = "Prices"
    for row in (("Part", "Price", "Since"), ("bolt", 2.0, None), (None, None, None), ("nut", 1.5)):
        sheet.append(row)
    hidden = cast("Any", made.create_sheet("Secret"))
    hidden.append(("hidden",))
    hidden.sheet_state = "hidden"
    read_one = read("prices.xlsx", saved(made))
    assert read_one.content == "# Prices\n\nPart: bolt\nPrice: 2\n\nPart: nut\nPrice: 1.5\n"
    assert read_one.title == "prices"


@pytest.mark.parametrize(
    ("name", "text", "content"),
    [
        ("a.csv", "name;price\nbolt;2\n;\n", "name: bolt\nprice: 2\n"),
        (
            "a.csv",
            'name,text\nbolt,"two\nlines, quoted"\n',
            "name: bolt\ntext: two lines, quoted\n",
        ),
        ("a.csv", "name,price\nbolt,2,more\n", "name: bolt\nprice: 2\nmore\n"),
        ("a.csv", "only,names\n", "only, names\n"),
        ("a.tsv", "name\tprice\nbolt\t2\n", "name: bolt\nprice: 2\n"),
        (
            "a.jsonl",
            '{"title": "T", "text": "Words", "by": {"name": "A"}, "tags": [1, "x"], "n": null}\n\n'
            '{"text": "More", "ok": true}\n',
            "T\nWords\nby.name: A\ntags: 1, x\n\nMore\nok: true\n",
        ),
    ],
)
def test_records_repeat_the_names_of_their_fields(
    name: str, text: str, content: str, read: Reads
) -> None:
    assert read(name, text.encode()).content == content


def test_email_has_its_headers_and_its_text(read: Reads) -> None:
    message = EmailMessage()
    message["Subject"] = "Größe of the parcel"
    message["From"] = "Ann <ann@example.org>"
    message["To"] = "bob@example.org"
    message["Date"] = "Fri, 20 Nov 2026 10:00:00 +0100"
    message.set_content("It is large.\n# no heading\n")
    message.add_alternative("<p>It is <b>large</b>.</p>", subtype="html")
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename="plan.pdf")
    read_one = read("mail.eml", bytes(message))
    assert read_one.title == "Größe of the parcel"
    assert read_one.content == (
        "# Größe of the parcel\n\n- From: Ann <ann@example.org>\n- To: bob@example.org\n"
        "- Date: Fri, 20 Nov 2026 10:00:00 +0100\n- Attachments: plan.pdf\n\n"
        "It is large.\n\\# no heading\n"
    )
    assert read_one.metadata["created"] == "2026-11-20"
    only_html = EmailMessage()
    only_html["Subject"] = "Page"
    only_html.set_content("<h2>Part</h2><p>Text</p>", subtype="html")
    assert read("mail.eml", bytes(only_html)).content == "# Page\n\n\n## Part\n\nText\n"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("El plazo para devolver un paquete es de catorce días desde su llegada. " * 4, "es"),
        ("Die Rückgabe eines Pakets ist innerhalb von vierzehn Tagen möglich. " * 4, "de"),
        ("Посылку можно вернуть в течение четырнадцати дней после получения. " * 4, "ru"),
        ("Too little to tell.", None),
        ("```\nfor x in range(10): print(x)\n```\n" * 30, None),
    ],
)
def test_the_language_is_detected(text: str, language: str | None, read: Reads) -> None:
    assert read("a.md", text.encode()).metadata.get("lang") == language


def office_file(kind: str) -> bytes:
    """A Word, PowerPoint or Excel file with its properties."""
    made: Any
    if kind == "docx":
        made = docx.Document()
        made.add_paragraph(ENGLISH)
    elif kind == "pptx":
        made = pptx.Presentation()
        made.slides.add_slide(made.slide_layouts[0]).shapes.title.text = ENGLISH
    else:
        made = openpyxl.Workbook()
        made.active.append((ENGLISH,))
    about = made.properties if kind == "xlsx" else made.core_properties
    about.title, about.created = "The Manual", datetime(2024, 4, 5)  # noqa: DTZ001
    if kind == "xlsx":
        about.creator = "Ann Person"
    else:
        about.author = "Ann Person"
    return saved(made)


FRONT = "---\ntitle: The Manual\nauthor: Ann Person\ndate: 2024-04-05\n---\n"
FIELDS = "The Manual\n==========\n\n:Author: Ann Person\n:Date: 2024-04-05\n\n"
MAIL = (
    "Subject: The Manual\nFrom: Ann Person <ann@example.org>\n"
    "Date: Fri, 5 Apr 2024 10:00:00 +0000\n\n"
)
HEAD = (
    "<html><head><title>The Manual</title><meta name='author' content='Ann Person'>"
    "<meta property='article:published_time' content='2024-04-05T10:00:00Z'></head><body><p>"
)
OFFICE = "application/vnd.openxmlformats-officedocument"


@pytest.mark.parametrize(
    ("name", "data", "mime", "stated"),
    [
        ("m.pdf", pdf("Part\n" + ENGLISH, author="Ann Person"), "application/pdf", True),
        ("m.docx", office_file("docx"), f"{OFFICE}.wordprocessingml.document", True),
        ("m.pptx", office_file("pptx"), f"{OFFICE}.presentationml.presentation", True),
        ("m.xlsx", office_file("xlsx"), f"{OFFICE}.spreadsheetml.sheet", True),
        ("m.html", (HEAD + ENGLISH).encode(), "text/html", True),
        (
            "m.md",
            (FRONT + ENGLISH).encode(),
            "text/markdown",
            True,
        ),
        (
            "m.rst",
            (FIELDS + ENGLISH).encode(),
            "text/x-rst",
            True,
        ),
        ("m.eml", (MAIL + ENGLISH).encode(), "message/rfc822", True),
        ("m.csv", f"part\n{ENGLISH}\n".encode(), "text/csv", False),
        ("m.jsonl", json.dumps({"text": ENGLISH}).encode(), "application/jsonl", False),
        ("m.txt", ENGLISH.encode("utf-16"), "text/plain", False),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("m.") else "",
)
def test_every_format_has_its_metadata(
    name: str, data: bytes, mime: str, stated: bool, read: Reads
) -> None:
    read_one = read(name, data)
    known = {
        "source": f"files/{name}",
        "name": name,
        "mime": mime,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "lang": "en",
    }
    assert {key: read_one.metadata.get(key) for key in known} == known
    assert "Refunds are paid within fourteen days" in read_one.content
    if stated:
        created = read_one.metadata["created"]
        assert read_one.title == "The Manual"
        assert str(read_one.metadata["author"]).startswith("Ann Person")
        # The library that makes the PDF states today.
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(created))
        assert created == "2024-04-05" or name == "m.pdf"


def test_real_pdfs_of_this_machine_are_read(reader: ReaderProcess) -> None:
    files = [*Path("/usr/share/doc").rglob("*.pdf")]
    if not files:
        pytest.skip("there are no PDF files in /usr/share/doc")
    for path in files[:5]:
        read_one = reader.read_path(path, path.name)
        assert len(read_one.content) > 1000
        assert read_one.metadata["mime"] == "application/pdf"


# ------------------------------------------------------------------------------ broken and hostile


def zipped(**entries: bytes) -> bytes:
    """A ZIP archive; __ in a name is a slash."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return data.getvalue()


def scan() -> bytes:
    """A PDF without a text layer."""
    made = pypdfium2.PdfDocument.new()
    made.new_page(200, 200)
    data = io.BytesIO()
    made.save(data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.pdf", b"%PDF-1.7\n" + b"x" * 500, "broken: no valid PDF"),
        ("a.pdf", b"", "broken: no valid PDF"),
        ("a.docx", b"PK\x03\x04 cut off", "broken: no valid ZIP archive"),
        ("a.docx", zipped(a=b"x"), "broken: KeyError"),
        ("a.xlsx", zipped(a=b"x"), "broken: KeyError"),
        ("a.pptx", zipped(a=b"x"), "broken: KeyError"),
        ("a.docx", bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 600, "encrypted, or of an office"),
        ("a.jsonl", b'{"a": 1}\n{"a":\n', "line 2 is no JSON"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
        ("a.csv", b"a,b\n1,\0\n", "binary: it contains NUL bytes"),
        ("a.eml", b"\n", "empty"),
    ],
)
def test_what_is_broken_is_refused(name: str, data: bytes, reason: str, read: Reads) -> None:
    with pytest.raises(UnreadableError) as caught:
        read(name, data)
    assert str(caught.value).startswith(reason)


def test_encrypted_pdfs_and_scans_are_named_as_such(read: Reads) -> None:
    with pytest.raises(UnreadableError, match=r"^encrypted$"):
        read("a.pdf", pdf("Secret\ntext", password="secret"))
    with pytest.raises(UnreadableError, match="no text layer in 1 pages: a scan needs OCR"):
        read("a.pdf", scan())


def test_a_zip_bomb_is_refused_before_it_is_unpacked(read: Reads) -> None:
    bomb = zipped(word__document_xml=bytes(410_000_000))
    assert len(bomb) < 500_000
    with pytest.raises(UnreadableError, match="unpacks to 410 MB in 1 files; the limit is 400 MB"):
        read("a.docx", bomb)


def test_a_lying_zip_bomb_unpacks_no_more_than_it_declares(read: Reads) -> None:
    data = bytearray(zipped(word__document_xml=bytes(300_000_000)))
    # The sizes that the archive declares, in its directory and before the entry, become 1,000.
    for place in range(len(data) - 4):
        if data[place : place + 4] == (300_000_000).to_bytes(4, "little"):
            data[place : place + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(UnreadableError, match=r"^broken: "):
        read("a.docx", bytes(data))


def document_of(xml: str) -> bytes:
    """A DOCX whose document is this XML."""
    whole = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved(docx.Document())))
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            is_it = entry.filename == "word/document.xml"
            archive.writestr(entry, xml if is_it else source.read(entry))
    return whole.getvalue()


def test_a_billion_laughs_are_not_laughed(read: Reads) -> None:
    levels = "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha" * 10}">' for n in range(10)
    )
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    xml = (
        f'<?xml version="1.0"?><!DOCTYPE d [{levels}]><w:document xmlns:w="{space}">'
        "<w:body><w:p><w:r><w:t>&l9;</w:t></w:r></w:p></w:body></w:document>"
    )
    with pytest.raises(UnreadableError):
        read("a.docx", document_of(xml))
    secret = (
        '<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        f'<w:document xmlns:w="{space}"><w:body><w:p><w:r><w:t>words &x;</w:t></w:r></w:p>'
        "</w:body></w:document>"
    )
    try:
        content = read("a.docx", document_of(secret)).content
    except UnreadableError:
        return
    assert "root:" not in content


@pytest.mark.parametrize("kind", ["txt", "md", "csv", "html", "jsonl", "eml"])
def test_an_endless_line_is_read(kind: str, read: Reads) -> None:
    # The longest of 20 MB: whatever backtracks would take hours.
    line = b"word, " * 3_300_000 if kind == "csv" else b"word " * 4_000_000
    whole = {"jsonl": b'{"text": "%s"}\n', "eml": b"Subject: head\n\n%s\n"}
    content = read(f"endless.{kind}", whole.get(kind, b"head\n%s\n") % line).content
    assert len(content) > 10_000_000


def test_a_sparse_file_of_2_gb_is_refused_unread(tmp_path: Path, reader: ReaderProcess) -> None:
    path = tmp_path / "sparse.pdf"
    path.touch()
    os.truncate(path, 2 << 30)
    with pytest.raises(UnreadableError, match="2147 MB; the limit is 50 MB"):
        reader.read_path(path, "sparse.pdf")


def test_pipes_and_loops_of_links_are_refused(tmp_path: Path, reader: ReaderProcess) -> None:
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "a.pdf").symlink_to(tmp_path / "b.pdf")
    (tmp_path / "b.pdf").symlink_to(tmp_path / "a.pdf")
    with pytest.raises(UnreadableError, match="not a regular file"):
        reader.read_path(tmp_path / "pipe.pdf", "pipe.pdf")
    with pytest.raises(UnreadableError, match="symbolic links"):
        reader.read_path(tmp_path / "a.pdf", "a.pdf")


def huge_sheet() -> bytes:
    """A workbook of some kilobytes whose one cell says that it has 300 MB of text."""
    made = openpyxl.Workbook()
    cast("Any", made.active).append(("x",))
    whole = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved(made)))
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename == "xl/worksheets/sheet1.xml":
                row = b'<row r="1"><c r="A1" t="inlineStr"><is><t>' + b"a" * 300_000_000
                data = data.replace(b"<sheetData>", b"<sheetData>" + row + b"</t></is></c></row>")
            archive.writestr(entry, data)
    return whole.getvalue()


def test_memory_is_limited_and_the_next_file_is_read() -> None:
    process = ReaderProcess(Limits(memory_bytes=500_000_000))
    try:
        with pytest.raises(UnreadableError) as caught:
            process.read_bytes("a.xlsx", huge_sheet(), "a.xlsx")
        said = str(caught.value)
        assert "memory" in said or "died" in said or "broken" in said
        assert process.read_bytes("a.txt", b"words", "a.txt").content == "words"
    finally:
        process.close()


def test_time_is_limited_and_the_next_file_is_read() -> None:
    process = ReaderProcess(Limits(seconds=0.5))
    rows = b"a,b,c,d\n" + b"1,2,3,4\n" * 5_000_000
    try:
        assert process.read_bytes("a.txt", b"words", "a.txt").content == "words"
        first = process.pid
        with pytest.raises(UnreadableError, match=r"reading it takes more than 0\.5 s"):
            process.read_bytes("a.csv", rows, "a.csv")
        assert process.read_bytes("a.txt", b"words", "a.txt").content == "words"
        assert process.pid != first
    finally:
        process.close()


def test_a_reader_that_is_killed_costs_one_file() -> None:
    process = ReaderProcess()
    rows = b"a,b,c,d\n" + b"1,2,3,4\n" * 5_000_000
    reasons: list[str] = []

    def read() -> None:
        try:
            process.read_bytes("a.csv", rows, "a.csv")
        except UnreadableError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=read)
    try:
        thread.start()
        until(lambda: process.pid is not None)
        assert process.pid is not None
        # Once it is reading it has taken up CPU time.
        status = Path(f"/proc/{process.pid}/stat")
        until(lambda: int(status.read_text().rpartition(")")[2].split()[11]) > 30)
        os.kill(process.pid, signal.SIGKILL)
        thread.join(60)
        assert reasons == ["the reader died of it (SIGKILL)"]
        assert process.read_bytes("a.txt", b"words", "a.txt").content == "words"
    finally:
        process.close()


def test_a_reader_has_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@host/db")
    process = ReaderProcess()
    try:
        process.read_bytes("a.txt", b"words", "a.txt")
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"PYTHONPATH" in environment
        assert b"secret" not in environment
    finally:
        process.close()


def test_a_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "embedder.readers.pdf", raising=False)
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(UnreadableError) as caught:
        read_bytes("a.pdf", pdf("Words"), "a.pdf")
    assert str(caught.value) == (
        "reading .pdf needs the package pypdfium2: pip install 'ragdb[files]'"
    )


# --------------------------------------------------------------------------------------- extractors


class Extractor(BaseHTTPRequestHandler):
    """Tika and docling-serve as far as their answers go."""

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        assert len(self.rfile.read(length)) == length
        self._say(
            "text/html",
            '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>A Scan</title>'
            '<meta name="dc:creator" content="C. Person"/>'
            '<meta name="dcterms:created" content="2020-02-03T04:05:06Z"/></head><body>'
            '<div class="page"><p>Words of page one.</p></div>'
            '<div class="page"><p>Words of page two.</p></div></body></html>',
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert b'name="files"; filename="scan.png"' in body
        mark = body.partition(b'name="md_page_break_placeholder"\r\n\r\n')[2].partition(b"\r\n")[0]
        text = f"# Scan\n\nPage one.\n\n{mark.decode()}\n\nPage two.\n"
        self._say("application/json", json.dumps({"document": {"md_content": text}}))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""

    def _say(self, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(503 if self.path.startswith("/busy") else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def extractor() -> Iterator[str]:
    """An HTTP server that answers as Tika and docling-serve do; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Extractor)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def read_by(extractor: str, name: str, data: bytes, *extracted: str) -> Document:
    """Read a file with an extractor at hand."""
    process = ReaderProcess(Limits(extractor=extractor, extracted=extracted))
    try:
        return process.read_bytes(name, data, name)
    finally:
        process.close()


def test_a_scan_is_read_by_tika(extractor: str) -> None:
    read_one = read_by(f"tika+{extractor}", "scan.pdf", scan())
    assert read_one.content == "Words of page one.\n\nWords of page two.\n\n"
    assert (read_one.title, read_one.metadata["author"]) == ("A Scan", "C. Person")
    assert read_one.metadata["page_starts"] == [0, 20]
    assert read_one.metadata["created"] == "2020-02-03"
    text_layer = read_by(f"tika+{extractor}", "a.pdf", pdf("Words\nof the text layer"))
    assert "text layer" in text_layer.content
    always = read_by(f"tika+{extractor}", "a.pdf", pdf("Words\nof the text layer"), ".pdf")
    assert always.content.startswith("Words of page one.")


def test_a_picture_is_read_by_docling(extractor: str) -> None:
    read_one = read_by(f"docling+{extractor}", "scan.png", b"\x89PNG\r\n")
    assert read_one.content == "# Scan\n\nPage one.\n\nPage two.\n\n"
    assert (read_one.title, read_one.metadata["format"]) == ("Scan", "png")
    assert read_one.metadata["mime"] == "image/png"
    assert read_one.metadata["page_starts"] == [0, 19]


def test_an_extractor_that_is_away_is_named(extractor: str) -> None:
    with pytest.raises(UnreadableError, match="tika answers 503"):
        read_by(f"tika+{extractor}/busy", "scan.pdf", scan())
    with pytest.raises(UnreadableError, match="docling does not answer: ConnectError"):
        read_by("docling+http://127.0.0.1:1", "scan.pdf", scan())
