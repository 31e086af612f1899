"""Readers: what becomes of a file's bytes, title and headings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from embedder.readers import Document, Limits, UnreadableError, read_document
from embedder.readers.encodings import decode

Writes = Callable[[str, str | bytes], Path]
Reads = Callable[[str, str | bytes], Document]
Refuses = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Writes:
    """Writes a file into the test's folder; returns its path."""

    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


@pytest.fixture
def document(write: Writes) -> Reads:
    """Writes a file and reads it."""
    return lambda name, content: read_document(write(name, content), name)


@pytest.fixture
def reason(write: Writes) -> Refuses:
    """Writes a file that is refused; returns why."""

    def make(name: str, content: str | bytes) -> str:
        with pytest.raises(UnreadableError) as caught:
            read_document(write(name, content), name)
        return str(caught.value)

    return make


def test_metadata_says_where_a_document_is_from(write: Writes) -> None:
    path = write("notes.txt", "Some words")
    os.utime(path, (0, 1_700_000_000))
    assert read_document(path, "folder/notes.txt") == Document(
        "Some words",
        "notes",
        {
            "source": "folder/notes.txt",
            "modified": "2023-11-14",
            "name": "notes.txt",
            "format": "text",
            "mime": "text/plain",
            "bytes": 10,
            "sha256": "52632d276c9d111ee3dda6efa05249cc791a3844f863aca9b292125d5d2561be",
        },
    )


def test_an_unknown_ending_is_read_as_text(document: Reads) -> None:
    assert document("main.tf", "resource {}").metadata["format"] == "text"


def test_line_ends_become_line_feeds(document: Reads) -> None:
    assert document("a.txt", "one\r\ntwo\rthree\n").content == "one\ntwo\nthree\n"


# ---------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Grüße, señor, 漢字 and 🙂"),
        ("utf-8-sig", "Grüße, señor, 漢字 and 🙂"),
        ("utf-16", "Grüße, señor, 漢字 and 🙂"),
        ("utf-32", "Grüße, señor, 漢字 and 🙂"),
        ("utf-16-le", "Mostly Western text without a byte order mark, señor."),
        ("utf-16-be", "Mostly Western text without a byte order mark, señor."),
        ("latin-1", "Überraschung für Größe und Straße, schöne Grüße aus München."),
        ("latin-1", "El niño comió una manzana. ¿Dónde está la habitación? Mañana, señor."),
        ("cp1252", "“Café déjà vu”… naïve façade; élève à l'école, 5 €."),
        ("cp1250", "Zażółć gęślą jaźń. Książka została wydana w tym roku."),
        ("cp1251", "Быстрая лиса перепрыгнула через ленивую собаку."),
        ("koi8_r", "Быстрая лиса перепрыгнула через ленивую собаку."),
        ("shift_jis", "これは日本語のテキストです。文字コードの判定を行います。"),
        ("euc_jp", "これは日本語のテキストです。文字コードの判定を行います。"),
        ("gb18030", "这是一个中文文本的例子，用来测试编码的识别。"),  # noqa: RUF001
        ("big5", "這是一個中文文本的例子，用來測試編碼的識別。"),  # noqa: RUF001
        ("euc_kr", "이것은 한국어 텍스트의 예입니다. 인코딩을 감지합니다."),
    ],
)
def test_encodings_are_recognised(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize(
    "head",
    [
        '<?xml version="1.0" encoding="ISO-8859-1"?><html>',
        '<html><head><meta charset="iso-8859-1"></head>',
        '<html><meta http-equiv="Content-Type" content="text/html; charset=ISO-8859-1" />',
    ],
)
def test_html_is_read_as_it_declares(head: str, document: Reads) -> None:
    # "Çà" alone is too little to guess from.
    page = f"{head}<body><p>Çà “ok”</p></body></html>"
    assert "Çà “ok”" in document("page.html", page.encode("cp1252")).content


def test_valid_utf_8_wins_over_a_wrong_declaration(
    document: Reads,
) -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>señor</p></body></html>'
    assert "señor" in document("page.html", page).content


def test_a_declared_encoding_of_seven_bits_is_used(
    document: Reads,
) -> None:
    page = '<html><head><meta charset="iso-2022-jp"></head><body><p>日本語</p></body></html>'
    assert "日本語" in document("page.html", page.encode("iso2022_jp")).content


def test_a_lying_byte_order_mark_is_refused(reason: Refuses) -> None:
    assert reason("a.txt", b"\xef\xbb\xbfabc \xff") == "not valid utf-8"


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"\0\1", "binary: it contains NUL bytes"),
        (b"text\0text", "binary: it contains NUL bytes"),
        (bytes(range(256)), "binary: it contains NUL bytes"),
        ("a\0b".encode("utf-16"), "binary: it contains NUL characters"),
    ],
)
def test_what_is_no_text_is_refused(
    content: bytes, expected: str, reason: Callable[[str, bytes], str]
) -> None:
    assert reason("a.txt", content) == expected


def test_pages_without_text_are_refused(reason: Refuses) -> None:
    assert reason("a.html", "<html><head><title>T</title></head><body> </body></html>") == "empty"
    assert reason("a.rst", ".. a comment and nothing else\n") == "empty"
    assert reason("a.md", "---\ntitle: \n---\n\n") == "empty"


def test_lone_surrogates_are_refused(reason: Refuses) -> None:
    assert "surrogates" in reason("a.md", '---\ntitle: "\\uD800"\n---\n\nWords\n')


def test_a_large_file_is_refused_unread(write: Writes) -> None:
    path = write("large.txt", "")
    os.truncate(path, Limits().file_bytes + 1)
    with pytest.raises(UnreadableError, match="50 MB; the limit is 50 MB"):
        read_document(path, "large.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_refused(write: Writes) -> None:
    path = write("secret.txt", "words")
    path.chmod(0)
    with pytest.raises(UnreadableError, match="no permission to read it"):
        read_document(path, "secret.txt")


def test_links_to_nothing_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.md").symlink_to(tmp_path / "nowhere.md")
    with pytest.raises(UnreadableError, match="a link to nothing"):
        read_document(tmp_path / "link.md", "link.md")
    os.mkfifo(tmp_path / "pipe.md")
    with pytest.raises(UnreadableError, match="not a regular file"):
        read_document(tmp_path / "pipe.md", "pipe.md")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.html", "<div>" * 5000 + "words"),
        ("deep.rst", "".join("  " * depth + "- item\n\n" for depth in range(400))),
    ],
)
def test_bottomless_nesting_is_refused(
    name: str, content: str, reason: Callable[[str, str], str]
) -> None:
    assert reason(name, content) == "nested too deeply"


# ----------------------------------------------------------------------------------------- Markdown


def test_markdown_is_kept_as_it_is(document: Reads) -> None:
    text = "Intro\n\n# First `one`\n\n* item \n\n```sh\n# no heading {#x}\n```\n\n<Note>x</Note>\n"
    read = document("a.md", text)
    assert (read.content, read.title) == (text, "First one")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("## Second\n\n# Top\n", "Top"),
        ("## Only second\n\ntext\n", "Only second"),
        ("Title\n=====\n\ntext\n", "Title"),
        ("a rule:\n\n---\n\ntext\n", "name"),
        ("- item\n---\n", "name"),
        ("#hashtag\n\n    # code\n", "name"),
        ("# Closed ##\n", "Closed"),
        ("# C#\n", "C#"),
        (
            "# *See* the [guide](https://example.org/a_b) for `my_name`\n",
            "See the guide for my_name",
        ),
        ("```\n# code\n", "name"),
        ("#\n\ntext\n", "name"),
    ],
)
def test_the_first_heading_is_the_title(
    text: str, title: str, document: Callable[[str, str], Document]
) -> None:
    assert document("name.md", text).title == title


def test_front_matter_becomes_title_and_heading(
    document: Reads,
) -> None:
    read = document("a.mdx", "---\ntitle: 'useState: a Hook'\nlang: es\n---\n\n## Uso\n\ntexto\n")
    assert read.title == "useState: a Hook"
    assert read.content == "# useState: a Hook\n\n## Uso\n\ntexto\n"
    assert read.metadata["lang"] == "es"


def test_front_matter_adds_no_second_heading_of_level_1(
    document: Reads,
) -> None:
    read = document("a.md", "+++\ntitle = 'Short'\n+++\n# The long title\n\ntext\n")
    assert (read.title, read.content) == ("Short", "# The long title\n\ntext\n")


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule at the top.\n\n---\n\nMore.\n",
        "---\ntitle: [unclosed\n---\n\ntext\n",
        "+++\nnot toml\n+++\ntext\n",
        "---\ntitle: never closed\n",
    ],
)
def test_what_only_looks_like_front_matter_stays(
    text: str, document: Callable[[str, str], Document]
) -> None:
    assert document("a.md", text).content == text


def test_anchors_of_headings_are_dropped(document: Reads) -> None:
    text = "# Uno {/*one*/}\n\n## Dos {#two}\n\ntext {#kept}\n\n```\n# code {#kept}\n```\n"
    assert document("a.md", text).content == (
        "# Uno\n\n## Dos\n\ntext {#kept}\n\n```\n# code {#kept}\n```\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "# " + " #" * 100_000,
        "# " + " " * 200_000 + "x",
        "# " + "{/*" * 50_000,
        "# " + "[" * 200_000,
    ],
)
def test_hostile_headings_take_no_time(text: str, document: Callable[[str, str], Document]) -> None:
    # With a backtracking pattern the first of these took 8 seconds; the suite would not end.
    assert document("a.md", text).content.startswith("#")


# --------------------------------------------------------------------------------------------- HTML

PAGE = """<!DOCTYPE html>
<html lang="en">
<head><title>Refunds - Shop manual</title><style>p { color: red }</style></head>
<body>
<header><a href="/">Shop</a></header>
<nav><a href="/a">Menu</a></nav>
<main>
<h1>Refunds <a class="headerlink" href="#refunds">¶</a></h1>
<!-- a comment -->
<p>We refund   in <b>14</b>
days, see <a href="/terms">the terms</a>.</p>
<h2>How</h2>
<ul><li>Write to us</li><li>Wait<ul><li>not long</li></ul></li></ul>
<pre class="language-sh">
# not a heading
refund --all
</pre>
<table><thead><tr><th>Kind</th><th>Days</th></tr></thead>
<tr><td>card</td><td>14</td></tr></table>
<div class="note"><h3>Note</h3><p>Only once.</p></div>
<p># 1 of all shops</p>
<script>alert(1)</script>
</main>
<footer>Copyright</footer>
</body></html>
"""


def test_html_becomes_markdown(document: Reads) -> None:
    read = document("page.html", PAGE)
    assert read.title == "Refunds"
    assert read.metadata["lang"] == "en"
    assert read.content == (
        "# Refunds\n\n"
        "We refund in **14** days, see the terms.\n\n"
        "## How\n\n"
        "- Write to us\n- Wait\n  - not long\n\n"
        "```sh\n# not a heading\nrefund --all\n```\n\n"
        "| Kind | Days |\n| --- | --- |\n| card | 14 |\n\n"
        "**Note**\n\nOnly once.\n\n"
        "\\# 1 of all shops\n"
    )


def test_what_old_pages_leave_open_is_closed(document: Reads) -> None:
    read = document("old.htm", "<title>Old</title><p>one<p>two<ul><li>a<li>b</ul>" + "<p>x" * 500)
    assert read.content.startswith("# Old\n\none\n\ntwo\n\n- a\n- b\n\nx\n\nx\n")


def test_code_with_fences_gets_a_longer_fence(document: Reads) -> None:
    read = document("a.html", "<pre>```\n# x\n```</pre><p>```</p><p>after</p>")
    assert read.content == "````\n```\n# x\n```\n````\n\n\\```\n\nafter\n"


def test_pairs_are_a_list_and_layout_is_no_table(
    document: Reads,
) -> None:
    pairs = "<table><tr><th>Syntax:</th><td>Alias <i>a</i></td></tr></table>"
    assert document("a.html", pairs).content == "- Syntax: Alias *a*\n"
    layout = f"<table><tr><td>left</td><td>{pairs}</td></tr></table>"
    assert document("a.html", layout).content == "left\n\n- Syntax: Alias *a*\n"


def test_code_of_several_lines_is_a_block(document: Reads) -> None:
    read = document("a.html", "<p><code>\n  one<br />\n  two  three<br /></code></p><p>end</p>")
    assert read.content == "```\none\ntwo three\n```\n\nend\n"


# --------------------------------------------------------------------------------- reStructuredText

PROPOSAL = """\
PEP: 9999
Title: A Title
Author: A. Person <a@example.org>,
        B. Person
Post-History: `01-Jan-2024 <https://example.org>`__

Abstract
========

See :pep:`8`, :pep:`the guide <8#names>`, :rfc:`2119`, :mod:`os.path`, :ref:`other words <x>`
and ``a_b`` or *this* [1]_::

  # not a heading
  x = 1

.. unknown:: With words
   :option: 1

   Content that is kept.

.. code-block:: python

   def f(): ...

Sub
---

.. note:: Mind this.

.. include:: /etc/passwd

.. [1] A footnote.
"""


def test_rst_becomes_markdown(document: Reads) -> None:
    read = document("pep-9999.rst", PROPOSAL)
    assert read.title == "PEP 9999 \N{EN DASH} A Title"
    lines = read.content.split("\n")
    assert [line for line in lines if line.startswith("#")] == [
        "# PEP 9999 \N{EN DASH} A Title",
        "## Abstract",
        "# not a heading",
        "### Sub",
    ]
    assert "- Author: A. Person <a@example.org>, B. Person" in lines
    assert "- Post-History: 01-Jan-2024" in lines
    assert (
        "See PEP 8, the guide, RFC 2119, `os.path`, other words and `a_b` or *this* [1]:" in lines
    )
    assert "```\n# not a heading\nx = 1\n```" in read.content
    assert "With words\n\nContent that is kept." in read.content
    assert "```python\ndef f(): ...\n```" in read.content
    assert "Mind this." in lines
    assert "[1] A footnote." in lines
    assert "root:" not in read.content


def test_rst_takes_its_title_from_its_first_section(
    document: Reads,
) -> None:
    read = document("a.rst", "=====\nGuide\n=====\n\nIntro.\n\nPart\n----\n\nText.\n")
    assert (read.title, read.content) == ("Guide", "# Guide\n\nIntro.\n\n## Part\n\nText.\n")


def test_broken_rst_loses_no_words(document: Reads) -> None:
    read = document("a.rst", "Title\n==\n\n*open and ``open\n\n  odd indent\n\n|nothing| [9]_\n")
    for word in ("Title", "open and", "odd indent", "nothing"):
        assert word in read.content


def test_rst_with_endless_lines_is_read_as_text(document: Reads) -> None:
    text = "word " * 5000
    assert document("a.rst", text).content == text


# ----------------------------------------------------------------------------------- real documents


def read_folder(folder: Path, ending: str) -> dict[str, Document]:
    """Every document of a real collection by its relative path."""
    names = sorted(folder.rglob(f"*{ending}"))
    relative = {path: path.relative_to(folder).as_posix() for path in names}
    return {name: read_document(path, name) for path, name in relative.items()}


def headings(read: Document) -> list[str]:
    """The lines of a document that are Markdown headings."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", read.content, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.split("\n") if re.match(r"#{1,6} ", line)]


def test_the_proposals_of_python(shared_data: Path) -> None:
    peps = read_folder(shared_data / "docs-peps", ".rst")
    assert len(peps) == 62
    for name, pep in peps.items():
        assert pep.title.startswith(f"PEP {int(name[4:8])} \N{EN DASH} ")
        assert pep.metadata["author"]
        assert re.fullmatch(r"(19|20)\d\d-\d\d-\d\d", str(pep.metadata["created"])), name
        assert headings(pep)[0] == f"# {pep.title}"
        assert len(headings(pep)) > 2, name
        assert not re.search(r":(?:pep|rfc|ref|mod|class):`", pep.content), name
    assert "#### Composition" in headings(peps["pep-0013.rst"])
    assert "Martin v. Löwis" in peps["pep-0398.rst"].content


def test_the_manual_of_apache(shared_data: Path) -> None:
    manual = read_folder(shared_data / "docs-apache-httpd", ".html")
    assert len(manual) == 223
    for name, page in manual.items():
        assert page.metadata["lang"] == name[:2]
        assert headings(page)[0].startswith("# "), name
        for junk in (
            "Available Languages",
            "Permanent link",
            "comments_thread",
            "\N{PILCROW SIGN}",
        ):
            assert junk not in page.content, name
        # Mojibake: UTF-8 read as Latin-1, and the replacement character.
        assert not re.search("Ã[\x80-\xbf]|\ufffd", page.content), name
    german = manual["de/bind.html"]
    assert german.title == "An Adressen und Ports binden"
    assert "Standardmäßig lauscht er an allen Adressen" in german.content
    assert "```config\nListen 80\nListen 8000\n```" in german.content
    alias = manual["en/mod/mod_alias.html"]
    assert "## Alias Directive" in headings(alias)
    assert "- Description: Maps URLs to filesystem locations" in alias.content


def test_the_documentation_of_react(shared_data: Path) -> None:
    pages = read_folder(shared_data / "docs-react-es", ".md")
    assert len(pages) > 170
    state = pages["reference/react/useState.md"]
    assert state.title == "useState"
    assert headings(state)[:2] == ["# useState", "## Referencia"]
    assert not any("{/*" in heading for page in pages.values() for heading in headings(page))
