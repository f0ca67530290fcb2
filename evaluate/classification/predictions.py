"""The classes that a model gives an image set, image by image, from one pass that can be interrupted and shared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evaluate.classification import cached_pass, metrics
from evaluate.classification.features import report_fp32
from evaluate.classification.finite import IN_FP32, finite
from evaluate.data.imagenet import ImageSet
from evaluate.data.published_counts import size
from evaluate.data.transforms import Transform, normalize
from evaluate.encoder import EncoderSpec
from evaluate.runtime import precision as precisions
from evaluate.runtime.env import Env
from results.predictions import Answers

BATCH = 128
TOP, PROBABILITY = "top", "probability"  # what a pass keeps of each image


@dataclass(frozen=True)
class Predictions:
    """What a model says of the m readable images of a set."""

    answers: Answers
    """Over all classes."""
    among: dict[str, np.ndarray]
    """By subset of classes: whether the best class among these alone is right, bool (m,)."""
    stems: tuple[str, ...]
    """Names of the images without suffix."""

    def __len__(self) -> int:
        return len(self.stems)


@dataclass
class Predictor:
    """A model of images with everything that decides what it says."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    """From normalized images (B, 3, H, W) to (B, C)."""
    spec: EncoderSpec
    model_id: str
    """A digest of the model's weights."""
    precision: str
    """A resolved one."""
    env: Env
    max_unreadable: int = 0
    """Images of a set that may be unreadable."""
    unreadable: dict[str, list[str]] = field(default_factory=dict)
    """By set: those that were."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    """By set: images asked for and evaluated."""

    def __call__(
        self, images: ImageSet, transform: Transform, subsets: Mapping[str, Sequence[int]] | None = None
    ) -> Predictions:
        """What the model says, from one reading of the images; counts and unreadable images go into the record, by the
        set's name up to a slash.

        Args:
            subsets: class indices by name; for each, the arg-max is also taken over these alone.
        """
        indices = {name: torch.tensor(list(chosen), device=self.env.device) for name, chosen in (subsets or {}).items()}

        def compute(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            normalized = normalize(pixels, self.spec.mean, self.spec.std, self.env.device)

            def forward(precision: str) -> dict[str, torch.Tensor]:
                with precisions.autocast(precision, self.env.device):
                    return {"logits": self.logits(normalized).float()}

            values = finite(forward, self.precision)
            logits = values["logits"]
            top, probabilities = metrics.best_of_logits(logits)
            classes = {TOP: top, **{name: own[logits[:, own].argmax(dim=1)] for name, own in indices.items()}}
            found = {name: value.to(torch.int32) for name, value in classes.items()}
            return {**found, PROBABILITY: probabilities, IN_FP32: values[IN_FP32]}

        cache_key: dict[str, Any] = {
            "kept": [TOP, PROBABILITY],
            "classifier": self.model_id,
            "precision": self.precision,
            "subsets": {name: list(map(int, chosen)) for name, chosen in (subsets or {}).items()},
            **cached_pass.how(self.env),
        }
        whole_set = images.name.partition("/")[0]
        unreadable = self.unreadable.setdefault(whole_set, [])
        left = self.max_unreadable - len(unreadable)
        stored = cached_pass.compute(
            self.env.out_dir / "predictions", images, transform, compute, cache_key, self.env, left, BATCH
        )
        report_fp32(stored, whole_set, self.precision, self.env)
        answers = metrics.answers(images, stored.unreadable, stored.require(TOP), stored.require(PROBABILITY))
        among = {name: stored.require(name).numpy() == answers.labels for name in indices}
        unreadable += [str(images.files[row]) for row in stored.unreadable]
        counts = self.counts.setdefault(whole_set, [0, 0])
        counts[:] = counts[0] + images.asked, counts[1] + len(answers.labels)
        self.env.report(sizes={whole_set: size(counts[0], len(images.scored))})
        self.env.report(
            images_asked={whole_set: counts[0]},
            images_evaluated={whole_set: counts[1]},
            unreadable_images={whole_set: unreadable},
        )
        return Predictions(answers, among, tuple(images.files[row].stem for row in stored.rows))
