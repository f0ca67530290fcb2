"""Times parts of the tasks on this machine, beside the packages that do the same where they are installed.

    python -m evaluate.benchmark                     every part, some minutes of one core
    python -m evaluate.benchmark knn few_shot

Prints rows: what, ours, peer, ratio, limit. The seconds are CPU time of one thread, medians of rounds in which both
take turns. Peers: faiss-cpu (kNN), scikit-learn (1 %), timm (loading of images), pycocotools (COCO), lvis (LVIS);
attention has none but its own plain form. A peer that is not installed is said to be missing. ``pretrain.benchmark``
times the pretraining.
"""

import argparse
import os

from evaluate.runtime.cli import at_least_one
from results.ending import leave

PARTS = ("knn", "few_shot", "loading", "attention", "coco", "lvis")


def main(argv: list[str] | None = None) -> int:
    """The command; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)", choices=[*PARTS, []]
    )
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of which medians are taken (default: 3)")
    parser.add_argument("--small", action="store_true", help="small sizes, in seconds: whether it works")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it when it is imported
    import torch

    from evaluate.classification import benchmark

    torch.set_num_threads(1)
    print("\n".join(benchmark.HEAD), flush=True)
    for part in options.parts or PARTS:
        print("\n".join(rows(part, options.rounds, options.small)), flush=True)
    return 0


def rows(part: str, rounds: int, small: bool) -> list[str]:
    """The rows of one part."""
    from evaluate.classification import benchmark

    if part == "knn":
        return benchmark.neighbors(*(64, 2_000, 32, 20) if small else (1024, 256_000, 768, 200), rounds)
    if part == "few_shot":
        return benchmark.regression(*(300, 10, 16) if small else (6_400, 500, 384), 0.1, rounds)
    if part == "loading":
        from evaluate.classification import loading_benchmark

        return loading_benchmark.rows(8 if small else 128, rounds)
    from evaluate.mm import attention_benchmark, scoring_benchmark

    if part == "attention":
        found = attention_benchmark.rows(1 if small else rounds)
    else:
        found = scoring_benchmark.rows(10 if small else 500, lvis=part == "lvis")
    return found[len(benchmark.HEAD) :]


if __name__ == "__main__":
    leave(main)
