"""Code for records, columns and tables; the records themselves lie in OUT/records."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load(runs: str | Path | Iterable[str | Path]) -> "pd.DataFrame":
    """Every number that the records of one or several output folders have, a line each (``results.frame.FIELDS``)."""
    from results import frame  # pandas, which most who import this room do without

    return frame.load([runs] if isinstance(runs, str | Path) else list(runs))
