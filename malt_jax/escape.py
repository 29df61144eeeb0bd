"""Escapes text from models, files and users for the place it is printed in.

Each function returns text that shows the same characters and cannot change anything around it.
Control characters, lone surrogates and the invisible marks that reorder lines are written out as
`\\xNN` or `\\uNNNN` everywhere.
"""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls but tab and newline, bidirectional marks, line separators, lone surrogates.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def visible(text: str) -> str:
    """Text that is safe on a terminal: escape sequences are shown and have no effect."""
    return _CONTROLS.sub(_written_out, text)


def one_line(text: str) -> str:
    """`visible` text with tabs and newlines as single spaces."""
    return re.sub(r"[\t\n]+", " ", visible(text))


def markdown(text: str) -> str:
    """Text for one cell or line of Markdown: no markup, no HTML, no column separators."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
    text = re.sub(r"^(\s*)([#+=-]|\d+[.)])", r"\1&#8203;\2", text)  # no heading, no list
    # Renderers turn bare addresses into links and @names into mentions.
    text = re.sub(r"\b(www)\.", r"\1&#8203;.", text, flags=re.IGNORECASE)
    return text.replace("://", ":&#8203;//").replace("@", "&#64;&#8203;")


def latex(text: str) -> str:
    """Text for a LaTeX paragraph or table cell."""
    text = one_line(text)
    # After the `\\` that ends the row above, a bracket or star would be read as an argument.
    shield = "{}" if text.lstrip()[:1] in ("[", "*") else ""
    return shield + "".join(_LATEX.get(character, character) for character in text)


def csv(text: str) -> str:
    """One CSV field, quoted; text that a spreadsheet would run as a formula gets a leading '."""
    text = one_line(text)
    if _first_seen(text) in tuple("=+-@|%"):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def _first_seen(text: str) -> str:
    """The first visible character; a full-width one as its plain form."""
    seen = (c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cf", "Mn"))
    return unicodedata.normalize("NFKC", next(seen, ""))


def _written_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
