"""Which columns tell what: how a cheap column ranks the published pretrainings beside each dear one.

Numbers are compared within one protocol a column, since a protocol alone moves a number by points (``PROTOCOLS`` of
``results.published``). Pretrainings of one method with several lengths count each, so they are not independent; and
papers choose what they print. The interval speaks of neither.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results import published
from results.comparison import Z

CHEAP = ("kNN", "1%", "LIN")
DEAR = ("FT", "ADE20k mIoU", "COCO box", "LVIS box", "VOC AP")
FEWEST = 5  # pretrainings of which a rank correlation is given; of four the interval says next to nothing


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two columns over the pretrainings that have a number in both."""

    cheap: str
    dear: str
    pretrainings: tuple[str, ...]
    protocols: tuple[str, str]
    """The keys of ``published.PROTOCOLS`` that were compared."""
    correlation: float
    interval: tuple[float, float]
    """95 %."""

    @property
    def is_told_from_chance(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def words(self) -> str:
        """What it means, in one clause."""
        if not self.is_told_from_chance:
            return f"from {self.cheap}, nothing can be said of {self.dear}"
        return f"{self.cheap} ranks {'as' if self.correlation > 0 else 'against'} {self.dear}"


def agreements(architecture: str) -> list[Agreement]:
    """One for each cheap and dear column with at least FEWEST pretrainings of an architecture in both."""
    numbers = _numbers(architecture)
    return [
        found
        for cheap in CHEAP
        for dear in DEAR
        if (found := _agreement(numbers.get(cheap, {}), numbers.get(dear, {}), cheap, dear))
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's coefficient of two lists of n numbers; equal numbers share their mean rank.

    Raises ValueError where the numbers of a list are all equal: they have no order.
    """
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    if any(np.ptp(one) == 0 for one in ranks):
        raise ValueError("numbers that are all equal have no order")
    return float(np.corrcoef(*ranks)[0, 1])


def interval(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval of a rank correlation of ``count`` pairs, at least 4.

    Fisher's transformation with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright (Psychometrika 65, 2000). A
    perfect order, of which the transformation is infinite, is taken as one that lacks half an exchange of neighbors.
    """
    largest = 1 - 6 / (count * (count**2 - 1))
    inside = min(max(correlation, -largest), largest)
    half = Z * math.sqrt((1 + inside**2 / 2) / (count - 3))
    return math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)


def text(architecture: str) -> str:
    """The agreements of an architecture, a line each."""
    found = agreements(architecture)
    if not found:
        return f"{architecture}: no two columns have {FEWEST} published pretrainings in common"
    return "\n".join(
        [
            f"{architecture}, rank correlation over published pretrainings [95 % interval]:",
            *(
                f"  {one.cheap} and {one.dear}: {one.correlation:+.2f} [{one.interval[0]:+.2f}, {one.interval[1]:+.2f}]"
                f" over {len(one.pretrainings)} ({', '.join(one.pretrainings)}): {one.words}"
                for one in found
            ),
        ]
    )


def _numbers(architecture: str) -> dict[str, dict[str, dict[str, float]]]:
    """The numbers of an architecture by column, protocol and pretraining."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in published.numbers():
        if line["architecture"] == architecture and line["pretrain_epochs"] != "0":  # an untrained network is no method
            name = f"{line['row']}@{line['pretrain_epochs']}".removesuffix("@")
            known = ("", "IN-1K", "IN-1K labels")
            name += f" on {line['pretrain_data']}" if line["pretrain_data"] not in known else ""
            of_protocol = found.setdefault(line["column"], {}).setdefault(line["group"], {})
            of_protocol.setdefault(name, float(line["value"]))
    return found


def _agreement(
    cheap: Mapping[str, Mapping[str, float]], dear: Mapping[str, Mapping[str, float]], *headings: str
) -> Agreement | None:
    """Of all pairs of protocols the one with the most pretrainings, of equal ones the nearest to what is measured."""
    order = list(published.PROTOCOLS)

    def preferred(pair: tuple[str, str, list[str]]) -> tuple[int, int]:
        return len(pair[2]), -order.index(pair[0]) - order.index(pair[1])

    one, other, shared = max(_pairs(cheap, dear), key=preferred, default=("", "", []))
    if len(shared) < FEWEST:
        return None
    try:
        found = rank_correlation([cheap[one][name] for name in shared], [dear[other][name] for name in shared])
    except ValueError:
        return None
    return Agreement(headings[0], headings[1], tuple(shared), (one, other), found, interval(found, len(shared)))


def _pairs(
    cheap: Mapping[str, Mapping[str, float]], dear: Mapping[str, Mapping[str, float]]
) -> Iterator[tuple[str, str, list[str]]]:
    for one, own in cheap.items():
        for other, others in dear.items():
            yield one, other, sorted(own.keys() & others.keys())
