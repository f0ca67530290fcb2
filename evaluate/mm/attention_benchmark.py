"""Global attention of ViTDet-B at 1024 pixels on a CPU, beside the same with its bias as one tensor.

    python -m evaluate.mm.attention_benchmark

Prints rows: what, ours, peer, ratio, limit. The rate is that of the block's useful operations (its two linear layers,
and the two products of all queries with all keys), divided by the rate of the linear layers alone. Seconds are CPU
time, one thread, medians of rounds in which all take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.mm.backbones import vitdet
from evaluate.runtime.cli import at_least_one
from results.ending import leave

SIDE, WIDTH, HEADS = 64, 768, 12
LINEAR, PRODUCTS = 8 * SIDE**2 * WIDTH**2, 4 * SIDE**4 * WIDTH  # operations
RATE = 0.7  # of the linear layers', at least


def with_mask(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``attention.with_positions`` by a bias of all pairs."""
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(3)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def seconds(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


@torch.no_grad()
def rows(rounds: int) -> list[str]:
    """The table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    block = vitdet.Attention(WIDTH, HEADS, window=0, table_size=SIDE).eval()
    for table in (block.rel_pos_h, block.rel_pos_w):
        torch.nn.init.normal_(table, std=0.1)
    x, ours = torch.randn(1, SIDE, SIDE, WIDTH), vitdet.with_positions

    def masked() -> Tensor:
        vitdet.with_positions = with_mask
        try:
            return block(x)
        finally:
            vitdet.with_positions = ours

    calls: tuple[Callable[[], object], ...] = (
        lambda: block.proj(block.qkv(x)[..., :WIDTH]),
        lambda: block(x),
        masked,
    )
    error = float((block(x) - masked()).abs().max() / masked().abs().max())
    taken = [[seconds(call) for call in calls] for _ in range(rounds)]
    speed = statistics.median(theirs / own for _, own, theirs in taken)
    rate, before = (
        statistics.median((LINEAR + PRODUCTS) / LINEAR * one[0] / one[which] for one in taken) for which in (1, 2)
    )
    own, theirs = (statistics.median(one[which] for one in taken) for which in (1, 2))
    return [
        "| what | ours | peer | ratio | limit |",
        "|---|---|---|---|---|",
        f"| ViTDet's global attention: seconds | {own:.2f} | bias as a tensor {theirs:.2f} | {speed:.2f} | |",
        f"| rate beside the linear layers' | {rate:.2f} | {before:.2f} | | at least {RATE} |",
        f"| largest difference, relative | {error:.0e} | | | 1e-5 |",
    ]


def main(argv: list[str] | None = None) -> int:
    """The command; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.mm.attention_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=at_least_one, default=5, help="of which medians are taken (default: 5)")
    print("\n".join(rows(parser.parse_args(argv).rounds)))
    return 0


if __name__ == "__main__":
    leave(main)
