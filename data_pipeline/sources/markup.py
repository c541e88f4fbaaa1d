"""The text of marked-up files, by libraries that know the markup: selectolax, docutils, pandoc."""

import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from runtime.errors import UserError

_SECONDS = 60
_META_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_NO_TEXT = {"script", "style", "noscript", "template", "head", "svg", "iframe", "object", "-comment", "!doctype"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p",
    "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
}  # fmt: skip
_ROLE = re.compile(r":[A-Za-z][A-Za-z0-9+._:-]*:`(~|!)?([^`<]+?)\s*(?:<[^`>]*>)?`")
_BLANK_LINES = re.compile(r"\n{3,}")
_BLANKS = re.compile(r"[ \t\r\n\f]+")
_APART = {"p", "pre", "table", "blockquote", "ul", "ol", "dl", "h1", "h2", "h3", "h4", "h5", "h6"}
_KEPT_SPACE, _LINE, _PARAGRAPH = "\0", "\1", "\2"  # a parsed page holds none of these
_BREAKS = re.compile("[ \t\1\2]*[\1\2][ \t\1\2]*")
_MARKER = re.compile(r"^\.\. [\w:.+-]+::[^\n]*\n?(?:[ \t]+:[^\n]*\n?)*")


def missing(package: str, wanted_by: str) -> UserError:
    """The error for an optional library that is not installed."""
    return UserError(f"{wanted_by} needs the package {package}: install it with `pip install 'lacuna[data]'`")


def html_text(data: bytes) -> str | None:
    """What a browser would show as text: blocks on lines of their own, `pre` as it stands; None if not decodable."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise missing("selectolax", "markup: html") from None
    source = _decoded_html(data)
    if source is None:
        return None
    body = LexborHTMLParser(source).root
    if body is None:
        return ""
    return _laid_out("".join(_html_parts(body)))


def _decoded_html(data: bytes) -> str | None:
    declared = _META_CHARSET.search(data, 0, 4096)
    for encoding in ("utf-8-sig", declared[1].decode() if declared else "utf-8"):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return None


def _html_parts(root: Any) -> Iterator[str]:
    """Texts and breaks in document order; without recursion, since pages may nest without end."""
    stack: list[tuple[Any, bool, bool]] = [(root, False, False)]
    while stack:
        node, preformatted, leaving = stack.pop()
        tag = node.tag
        if tag == "-text":
            text = node.text_content or ""
            yield text.replace(" ", _KEPT_SPACE) if preformatted else _BLANKS.sub(" ", text)
            continue
        if tag in _NO_TEXT:
            continue
        if tag in _BLOCKS:
            yield _PARAGRAPH if tag in _APART else _LINE
        elif not leaving and tag == "br":
            yield "\n"
        elif leaving and tag in ("td", "th"):
            yield "\t"
        if leaving:
            continue
        preformatted = preformatted or tag in ("pre", "textarea")
        stack.append((node, preformatted, True))
        stack.extend((child, preformatted, False) for child in reversed(list(node.iter(include_text=True))))


def _laid_out(text: str) -> str:
    """Breaks as line feeds, without the blanks beside them; what was preformatted keeps its own."""
    text = _BREAKS.sub(lambda run: "\n\n" if _PARAGRAPH in run[0] else "\n", text)
    lines = (line.strip(" \t") for line in text.split("\n"))
    return "\n".join(lines).replace(_KEPT_SPACE, " ").strip("\n")


def rest_text(data: bytes) -> str | None:
    """The text of a reStructuredText file; directives that docutils does not know give their content."""
    try:
        from docutils import nodes
        from docutils.core import publish_doctree
    except ImportError:
        raise missing("docutils", "markup: rest") from None
    try:
        source = _ROLE.sub(r"\2", data.decode())
    except UnicodeDecodeError:
        return None
    quiet = {"file_insertion_enabled": False, "raw_enabled": False, "report_level": 5, "halt_level": 6,
             "_disable_config": True, "syntax_highlight": "none"}  # fmt: skip
    try:
        tree = publish_doctree(source, settings_overrides=quiet)
    except Exception:  # docutils fails in its own ways on odd input; the file is counted as undecodable
        return None
    return _BLANK_LINES.sub("\n\n", "\n\n".join(_rest_blocks(tree, nodes))).strip("\n")


def _rest_blocks(tree: Any, nodes: Any) -> Iterator[str]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, nodes.system_message):
            yield from (_content(child.astext()) for child in node.children if isinstance(child, nodes.literal_block))
        elif isinstance(node, nodes.comment | nodes.substitution_definition | nodes.target):
            continue
        elif isinstance(node, nodes.TextElement):
            yield node.astext()
        else:
            stack.extend(reversed(node.children))


def _content(directive: str) -> str:
    """The body of a directive's source, without its marker, options and indentation."""
    body = _MARKER.sub("", directive)
    return textwrap.dedent(body).strip("\n")


def man_text(data: bytes) -> str | None:
    """The text of a man page (roff with man or mdoc macros), as pandoc reads it without access to other files."""
    try:
        import pypandoc
    except ImportError:
        raise missing("pypandoc_binary", "markup: man") from None
    try:
        source = data.decode()
    except UnicodeDecodeError:
        return None
    reader = "mdoc" if re.search(r"^\.Dd\b", source, re.MULTILINE) else "man"
    command = [pypandoc.get_pandoc_path(), "--sandbox", "--from", reader, "--to", "plain", "--wrap", "none"]
    try:
        found = subprocess.run(command, input=source.encode(), capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return found.stdout.decode().strip("\n") if found.returncode == 0 else None


MARKUP: dict[str, Callable[[bytes], str | None]] = {"html": html_text, "rest": rest_text, "man": man_text}
"""How each kind of markup becomes text; None for what cannot be decoded or parsed."""
