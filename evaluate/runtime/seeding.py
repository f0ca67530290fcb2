"""Seeds made from (seed, epoch, index) and the like, so that no random choice depends on the order of work."""

import hashlib
import random

import numpy as np


def seed_of(*parts: int | str) -> int:
    """63 bits that depend on every part."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def seed_global(device: str, *parts: int | str) -> None:
    """Seeds Python's, numpy's and torch's global generators, for library code that draws from them (timm, dropout)."""
    import torch  # here, since seed_of serves what does without torch

    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed would queue a call for a CUDA that is not there, with a stack trace, each time
    torch.default_generator.manual_seed(seed)
    if device.startswith("cuda"):
        torch.cuda.manual_seed(seed)
