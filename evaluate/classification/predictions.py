"""The classes a fine-tuned classifier gives an image set, from one pass that can be interrupted (``evaluate.classification.cached_pass``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evaluate.classification import cached_pass
from evaluate.classification.outcomes import BATCH
from evaluate.data.imagenet import ImageSet
from evaluate.data.transforms import Transform, normalise
from evaluate.runtime import precision
from evaluate.runtime.env import Env


@dataclass(frozen=True)
class Outcome:
    """Of the m readable images of a set: ``correct`` has bool (m,) for "all" (arg-max over all classes) and for each subset of classes."""

    correct: dict[str, np.ndarray]
    labels: np.ndarray  # (m,)
    stems: tuple[str, ...]  # names of the images without suffix

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Predictor:
    """A classifier with everything that decides what it says."""

    model: Any  # evaluate.classification.classifier.Classifier, in eval mode on env.device
    classifier: str  # its fingerprint
    arithmetic: str  # a resolved precision
    env: Env
    allowed_bad: int = 0  # images of a set that may be unreadable
    unreadable: dict[str, list[str]] = field(default_factory=dict)  # by set
    counts: dict[str, list[int]] = field(default_factory=dict)  # by set: images asked and evaluated

    def __call__(self, images: ImageSet, transform: Transform, subsets: Mapping[str, Sequence[int]] | None = None) -> Outcome:
        """What is right, from one reading of the images; counts and unreadable images go into the record, by the set's name up to a slash.

        Args:
            subsets: class indices by name; for each, the arg-max is also taken over these alone.
        """
        indices = {name: torch.tensor(list(chosen), device=self.env.device) for name, chosen in (subsets or {}).items()}
        mean, std = self.model.encoder.spec.mean, self.model.encoder.spec.std

        def compute(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            with precision.autocast(self.arithmetic, self.env.device):
                logits = self.model(normalise(pixels, mean, std, self.env.device)).float()
            found = {"all": logits.argmax(dim=1)} | {name: chosen[logits[:, chosen].argmax(dim=1)] for name, chosen in indices.items()}
            return {name: classes.to(torch.int32) for name, classes in found.items()}

        identity = {
            "classifier": self.classifier, "precision": self.arithmetic, "subsets": {name: list(map(int, c)) for name, c in (subsets or {}).items()}
        }  # fmt: skip
        whole = images.name.partition("/")[0]
        unreadable = self.unreadable.setdefault(whole, [])
        left = self.allowed_bad - len(unreadable)
        stored = cached_pass.run(self.env.out_dir / "predictions", images, transform, compute, identity, self.env, left, BATCH)
        labels = images.labels[stored.rows]
        correct = {name: stored.read(name).numpy() == labels for name in ("all", *indices)}  # type: ignore[union-attr]
        unreadable += [str(images.files[row]) for row in stored.bad]
        counts = self.counts.setdefault(whole, [0, 0])
        counts[:] = counts[0] + images.asked, counts[1] + len(labels)
        self.env.report(images_asked={whole: counts[0]}, images_evaluated={whole: counts[1]}, unreadable_images={whole: unreadable})
        return Outcome(correct, labels, tuple(images.files[row].stem for row in stored.rows))
