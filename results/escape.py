"""Text from outside (names of rows and files, reasons, protocol texts) made safe for what it is written into.

Whoever names a file decides what a reason quotes: none of it may become markup, a formula, a command or a line of its
own.
"""

import html as standard_html
import re
import unicodedata

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line's end, a bracket or a star would belong to it
    "]": "{]}",
    "*": "{*}",
    "-": "-{}",  # two of them would become a dash
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": "'",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
}
ACCENTED = re.compile("[À-ÅÇ-ÏÑ-ÖÙ-Ýà-åç-ïñ-öù-ýÿ]")  # pdflatex has these in any font
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # a spreadsheet may compute such a cell
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")
UNPRINTABLE = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # control, invisible and unencodable characters, and line breaks


def plain(text: str) -> str:
    """One printable line: line breaks become spaces, what cannot be shown becomes ``\\x1b`` or the like."""
    joined = " ".join(str(text).splitlines())
    return "".join(repr(sign)[1:-1] if unicodedata.category(sign) in UNPRINTABLE else sign for sign in joined)


def html(text: str) -> str:
    """For the text of an element, or a quoted attribute."""
    return standard_html.escape(plain(text), quote=True)


def latex(text: str) -> str:
    """For running text or a cell; a letter that pdflatex may lack becomes its code point, as U+4E2D."""
    return "".join(
        LATEX.get(sign, sign if sign.isascii() or ACCENTED.fullmatch(sign) else f"{{[}}U+{ord(sign):04X}{{]}}")
        for sign in plain(text)
    )


def markdown(text: str) -> str:
    """For a cell or a footnote: no pipe, link, code, emphasis or HTML; an underscore inside a word stays as it is."""
    safe = standard_html.escape(plain(text), quote=False)
    safe = re.sub(r"([\\`|*\[\]~])", r"\\\1", safe)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", safe)


def csv(text: str) -> str:
    """For a cell that ``csv.writer`` quotes: a spreadsheet's formula gets an apostrophe, numbers stay numbers."""
    computes = str(text).startswith(FORMULA) and not NUMBER.fullmatch(text)
    return f"'{plain(text)}" if computes else plain(text)
