"""``report.html``: one file that opens anywhere, with the table, its figures, what was checked and what is missing.

Nothing is loaded from outside, and the page's policy forbids it. Every number of a figure stands in the page unrounded
(``data-value`` and the like), so that a test, or a reader, takes it from there.
"""

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from results import formats
from results.escape import plain
from results.grid import Grid
from results.report import content

HERE = Path(__file__).parent


def as_report(grid: Grid) -> str:
    """The page."""
    template, style, script = _parts()
    page = content.of(grid)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        **{name: value for name, value in page.items() if name != "data"},
        title=formats.title_of(grid),
        notes=formats.notes_of(grid),
        style=Markup(style),
        script=Markup(script),
        script_digest=digest,
        data=_in_script(page["data"]),
    )


@functools.cache
def _parts() -> tuple[jinja2.Template, str, str]:
    """The template, the style and the script; read once, since a run renders after each task."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # escaping leaves control characters and marks that turn the direction of text
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    template = environment.get_template("page.html")
    return template, (HERE / "page.css").read_text(), (HERE / "page.js").read_text()


def _in_script(data: Any) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
