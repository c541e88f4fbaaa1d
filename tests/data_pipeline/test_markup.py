"""The text of marked-up files, whole and without what is no text; and never another file's."""

import json
import sys
from pathlib import Path

import pytest

from data_pipeline.fates import Fate
from data_pipeline.sources.config import Storage
from data_pipeline.sources.markup import MARKUP, html_text, man_text, rest_text
from data_pipeline.sources.plain_text import read_text
from data_pipeline.sources.storage import File
from runtime.errors import UserError

PAGE = """<!doctype html><html><head><title>T</title><script>var x</script></head><body><!-- c -->
<h1>Head&amp;er</h1><p>One <b>two</b>
 three</p><pre>  a\n    b </pre><ul><li>x</li><li>y</li></ul><style>p {}</style>
<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>tail<br>end <span>of</span> caf\u00e9</body></html>"""
SHOWN = "Head&er\n\nOne two three\n\n  a\n    b \n\nx\ny\n\n1\t2\n3\n\ntail\nend of caf\u00e9"

REST = """
Title
=====

Para with :func:`foo`, :ref:`text <t>` and ``code``.

* one
* two

.. function:: f(x)
   :module: a

   Body of f.

     Deeper.

.. note:: Take care.

::

   literal
     block

.. a comment

.. include:: SECRET

.. raw:: html
   :file: SECRET
"""
PLAIN = (
    "Title\n\nPara with foo, text and code.\n\none\n\ntwo\n\nBody of f.\n\n  Deeper.\n\nTake care.\n\nliteral\n  block"
)

MAN = r""".TH TEST 1
.SH NAME
test \- a test
.SH DESCRIPTION
.B bold
text\(em
.so SECRET
"""


def test_html() -> None:
    assert html_text(PAGE.encode()) == SHOWN
    assert html_text(b"") == ""
    assert html_text(b"plain \xe2\x80\xa8 text") == "plain \u2028 text"


def test_html_in_other_encodings() -> None:
    assert html_text("\ufeff<p>caf\u00e9".encode()) == "caf\u00e9"
    assert html_text("<meta charset='latin-1'><p>caf\u00e9".encode("latin-1")) == "caf\u00e9"
    assert html_text(b"<p>caf\xe9") is None
    assert html_text(b"<meta charset='nonsense'><p>caf\xe9") is None


def test_html_that_nests_without_end() -> None:
    assert html_text(b"<div>" * 20_000 + b"deep") == "deep"


def test_rest(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    assert rest_text(REST.replace("SECRET", str(tmp_path / "secret")).encode()) == PLAIN
    assert rest_text(b"\xff") is None
    assert rest_text(b"Broken\n==\n\n*no end ``and |x| [1]_\n") is not None


def test_man(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    text = man_text(MAN.replace("SECRET", str(tmp_path / "secret")).encode())
    assert text == "NAME\n\ntest - a test\n\nDESCRIPTION\n\nbold text\u2014"
    assert man_text(b"\xff") is None
    assert man_text(b".Dd today\n.Dt TEST 1\n.Os\n.Sh NAME\n.Nm test\n.Nd a test\n") == "NAME\n\ntest \u2014 a test"


@pytest.mark.parametrize(("kind", "package"), [("html", "selectolax"), ("rest", "docutils"), ("man", "pypandoc")])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"markup: {kind} needs the package {package}.*lacuna\[data\]"):
        MARKUP[kind](b"text")


def test_marked_up_files_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    file = File(str(tmp_path / "a.html"), 1, 0)
    assert [one.text for one in read_text(file, Storage(), "file", "html", 10_000)] == [SHOWN]
    assert [one.fate for one in read_text(file, Storage(), "file", "html", 10)] == [Fate.OVERSIZED]
    (tmp_path / "a.html").write_bytes(b"<p>caf\xe9")
    assert [one.fate for one in read_text(file, Storage(), "file", "html", 10_000)] == [Fate.UNDECODABLE]
    (tmp_path / "a.html").write_text("<p>one\n<p>two &lt;" + json.dumps(3))
    assert [one.text for one in read_text(file, Storage(), "line", "html", 99)] == ["one", "two <3"]
