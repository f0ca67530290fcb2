"""What a run on a CPU does with its machine: it keeps freed memory, and says which precision would be faster."""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
LARGE = 2**20  # bytes of a block that has memory of its own until the first step is over
DEFAULT_TRIM, DEFAULT_MMAPS = 2**17, 2**16  # glibc's
BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # what processors with fast bf16 products have; the last is ARM's


def keep_freed_memory(keep: bool) -> bool:
    """Lets malloc keep what is freed for what is asked for next, or give each large block memory of its own, which goes
    back to the system; whether it does. Only glibc is asked.

    Every step frees and asks for the same gigabytes. glibc gives large blocks back to the system at once, and takes
    them again a page at a time, each filled with zeros. What outlives the steps (weights, the optimizer's moments) is
    better made before: between the blocks of a step it would part the free memory into holes that fit nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {
        M_MMAP_THRESHOLD: LARGE,
        M_MMAP_MAX: 0 if keep else DEFAULT_MMAPS,
        M_TRIM_THRESHOLD: -1 if keep else DEFAULT_TRIM,
    }
    return all([mallopt(name, value) for name, value in wanted.items()])


def faster_precision(precision: str) -> str | None:
    """A sentence that names the precision that would be faster than this one, by what the processor can do; None: this
    one is the fastest."""
    able = [name for name in BF16 if torch.cpu.get_capabilities().get(name)]
    if able and precision != "bf16":
        between = ", bf16_products nearly as fast" if precision != "bf16_products" else ""
        return f"precision bf16 would be faster than {precision} on this CPU (it has {able[0]}){between}"
    if not able and precision in ("bf16", "bf16_products"):
        return f"precision fp32 would be faster than {precision} on this CPU (it has none of {', '.join(BF16)})"
    return None
