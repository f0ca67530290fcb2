"""One traced part of a step: audit, memory and roofline together, and how they are told."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tests.gpu.pretended.audit import Audit, Made
from tests.gpu.pretended.memory import Memory
from tests.gpu.pretended.roofline import Roofline

GIB = 2**30


class Trace:
    """The parts of a step that were traced, in order."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.parts: list[dict[str, Any]] = []

    def hold(self, *holders: nn.Module | Optimizer) -> None:
        """Counts the memory of what stands before the step."""
        for holder in holders:
            if isinstance(holder, nn.Module):
                self.memory.module(holder)
            else:
                self.memory.optimizer(holder)

    @contextlib.contextmanager
    def part(self, name: str, images: int = 0, scalar: float = 1.0) -> Iterator[None]:
        """Traces what is done inside, for so many images; ``scalar`` as for ``Audit``."""
        audit, roofline = Audit(scalar), Roofline()
        self.memory.peak = self.memory.now
        with self.memory, roofline, audit, Made(audit):
            yield
        seconds, found = sum(roofline.seconds.values()), audit.entries()
        to_cpu = [entry for entry in found if entry["kind"] == "to the CPU"]
        waits = to_cpu + [entry for entry in found if entry["kind"].startswith("wait")]
        self.parts.append(
            {
                "part": name,
                "operations": audit.operations,
                "waits": sum(entry["count"] for entry in waits),
                "to_cpu": to_cpu,
                "mixed": [entry for entry in found if entry["kind"].startswith("mixed")],
                "found": found,
                "peak_bytes": self.memory.peak,
                "kernels": roofline.kernels,
                "flops": sum(roofline.operations.values()),
                "seconds": seconds,
                "slowest": [[kernel, spent] for kernel, spent in roofline.seconds.most_common(6)],
                "images": images,
            }
        )

    def tell(self, details: bool) -> None:
        """Prints a line for each part and, with ``details``, where it waits and which kernels take longest."""
        for part in self.parts:
            rate = f", at most {part['images'] / part['seconds']:.0f} images/s" if part["images"] else ""
            print(
                f"{part['part']}: {part['operations']} operations, {part['waits']} waits, {len(part['mixed'])} mixed, "
                f"peak {part['peak_bytes'] / GIB:.2f} GiB, {part['kernels']} kernels of at least "
                f"{1000 * part['seconds']:.1f} ms, {part['flops'] / 1e12:.2f} TFLOP{rate}"
            )
            for entry in part["found"] if details else ():
                print(f"    {entry['kind']:45} x {entry['count']:<5} {entry['bytes']:>13} bytes  {entry['place']}")
            for kernel, spent in part["slowest"] if details else ():
                print(f"    {kernel:45} {1000 * spent:9.2f} ms")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What each command that traces knows."""
    parser.add_argument("--details", action="store_true", help="list where it waits, and the kernels that take longest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found there")


def finish(trace: Trace, options: argparse.Namespace) -> None:
    """Prints and writes a trace."""
    trace.tell(options.details)
    if options.json:
        options.json.write_text(json.dumps(trace.parts, indent=1))
