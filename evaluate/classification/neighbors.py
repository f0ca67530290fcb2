"""Exact k nearest neighbors by cosine."""

import torch

from evaluate.classification import features, metrics, search
from evaluate.classification.finite import require_finite
from evaluate.encoder import Encoder
from evaluate.runtime import distributed
from evaluate.runtime.progress import track


def unit_features(found: features.Features, encoder: Encoder, kind: str, device: str) -> torch.Tensor:
    """(m, D) what a linear head would take, over its own L2 norm, on the device."""
    tokens = found.require_tokens(kind)
    with torch.inference_mode():
        for part in tokens.split(
            65536
        ):  # in place: a second copy of the train set's features would be four gigabytes more
            part.copy_(
                torch.nn.functional.normalize(
                    require_finite(features.probe_input(encoder, kind, part.to(device))), dim=1
                )
            )
    return tokens.to(device)


def classify(
    train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, neighbors: tuple[int, ...], temperature: float
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The best classes (n_test, c) for each k, and their shares of the votes, from unit features (n_train, D) and
    (n_test, D).

    One search for the largest k serves all; where train has fewer images than k, all vote. The processes take blocks of
    search.ROWS test images in turn: what is multiplied with what does not depend on how many they are, so neither does
    a bit of the result.
    """
    most = min(max(neighbors), len(train))
    classes = int(train_labels.max()) + 1
    blocks, bank = range(0, len(test), search.ROWS), search.Bank(train)
    mine: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for begin in track(blocks[distributed.rank() :: distributed.world_size()], "neighbors"):
        cosines, indices = bank.nearest(test[begin : begin + search.ROWS], most)
        weights, labels = (cosines / temperature).exp(), train_labels[indices]
        top, shares = zip(*(_vote(weights[:, :k], labels[:, :k], classes) for k in neighbors), strict=True)
        mine[begin] = torch.stack(top).cpu(), torch.stack(shares).cpu()
    found = {begin: voted for part in distributed.gather_objects(mine) for begin, voted in part.items()}
    classes_of, shares_of = (torch.cat([found[begin][which] for begin in blocks], dim=1) for which in (0, 1))
    return {k: (classes_of[number], shares_of[number]) for number, k in enumerate(neighbors)}


def shares_of_votes(
    train: torch.Tensor, marked: torch.Tensor, test: torch.Tensor, count: int, temperature: float
) -> torch.Tensor:
    """(n_test, classes) float64: by class the weight of the nearest ``count`` train images that are marked with it, as
    a share of all their weight.

    Args:
        train, test: unit features.
        marked: (n_train, classes) bool.
    """
    found, bank = [], search.Bank(train)
    for block in track(test.split(search.ROWS // 4), "neighbors"):  # marks of all classes take memory too
        cosines, indices = bank.nearest(block, min(count, len(train)))
        weights = (cosines / temperature).exp().double()
        found.append((weights[:, None] @ marked[indices].double())[:, 0] / weights.sum(dim=1, keepdim=True))
    return torch.cat(found).cpu()


def _vote(weights: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    votes = weights.new_zeros(len(weights), classes, dtype=torch.float64).scatter_add_(1, labels, weights.double())
    top = metrics.best(votes)
    return top, (votes.gather(1, top) / votes.sum(dim=1, keepdim=True)).half()
