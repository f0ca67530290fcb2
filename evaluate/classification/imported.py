"""All that the ImageNet tasks import, for a process that forks them (``evaluate.harness.fork_server``)."""

from evaluate.classification import (  # noqa: F401
    classifier,
    finetuning,
    head_sweep,
    heads,
    imagenet_c,
    metrics,
    neighbors,
    pictures,
    probe,
    setup,
    softmax_regression,
    stacked_heads,
)
