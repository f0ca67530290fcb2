"""What an acceptance run is made of: commands with logs and limits, verdicts, and a watch on the card."""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """One acceptance run: where it writes, how much time is left, what it has found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.began, self.budget, self.device, self.tiny = time.monotonic(), options.budget, options.device, options.tiny
        self.gpu = self.device == "cuda"
        temporary = Path(tempfile.gettempdir())
        self.out = Path(os.environ.get("OUT", temporary / "gpu_acceptance"))
        self.work = temporary / "gpu_acceptance_work"
        self.out.mkdir(parents=True, exist_ok=True)
        self.cores = len(os.sched_getaffinity(0))
        self.workers = max(1, min(16, self.cores - 1)) if self.gpu else 0
        self.preset = ["--preset", "demo"] if self.tiny else []
        self.found: list[dict[str, Any]] = []
        self.card = Card()

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.monotonic() - self.began)

    def say(self, verdict: str, name: str, text: str) -> None:
        """Prints and keeps one line."""
        seconds = time.monotonic() - self.began
        self.found.append({"verdict": verdict, "name": name, "text": text, "seconds": round(seconds, 1)})
        print(f"[{seconds:5.0f} s] {verdict:5} {name}: {text}", flush=True)

    def judge(self, good: bool, name: str, text: str) -> None:
        """PASS or FAIL."""
        self.say("PASS" if good else "FAIL", name, text)

    def python(self, name: str, *command: Any, limit: float, env: dict[str, str] | None = None) -> str | None:
        """What a Python command printed, which goes into its log; None, and a FAIL, unless it ended well in time."""
        limit, log, begun = min(limit, self.left), self.out / f"{name}.log", time.monotonic()
        if limit < 3:
            self.say("SKIP", name, "no time left")
            return None
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **(env or {})}
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
            try:
                status: int | str = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = "none"
        text = log.read_text(errors="replace")
        if status == 0:
            return text
        last = (text.strip().splitlines() or [""])[-1]
        self.say("FAIL", name, f"status {status} after {time.monotonic() - begun:.0f} s: {last[:200]}")
        return None

    def pretrain(self, name: str, data: Path, out: Path, *options: Any, limit: float, device: str = "") -> str | None:
        """``pretrain.train`` without the looks at the features, and without loading processes unless asked for."""
        common = (
            "--data",
            data,
            "--out",
            out,
            "--device",
            device or self.device,
            "--monitor-epochs",
            0,
            "--workers",
            0,
        )
        return self.python(name, "-m", "pretrain.train", *common, *options, limit=limit)

    def task(
        self, name: str, task: str, ckpt: Path, *options: Any, root: str = "big", device: str = "", limit: float = 60
    ) -> dict[str, Any] | None:
        """The record of a task of ``evaluate``; "busy" in it says what the GPU did meanwhile."""
        begun, folder = time.monotonic(), self.work / "out" / name
        common = ["--ckpt", ckpt, "--name", "x", "--data-root", self.work / root, "--out", folder]
        common += ["--device", device or self.device, "--workers", self.workers if root == "big" else 0]
        if self.python(name, "-m", f"evaluate.{task}", *common, *self.preset, *options, limit=limit) is None:
            return None
        record = json.loads(next((folder / "records").glob("*.json")).read_text())
        return {**record, "busy": self.card.since(begun)}

    def side_by_side(self, calls: list[Callable[[], Any]]) -> list[Any]:
        """What small calls return, at once on a GPU: they wait for imports more than for it."""
        with ThreadPoolExecutor(len(calls) if self.gpu else 1) as pool:
            return list(pool.map(lambda call: call(), calls))


class Card(threading.Thread):
    """nvidia-smi five times a second: what a command took of the card, and how busy it was."""

    QUERY = ("nvidia-smi", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200")
    IDLE = 2000  # MiB: below it no command of ours is on the card

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[float, float, float]] = []
        self.process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Until ``stop``."""
        self.process = subprocess.Popen(self.QUERY, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout or ():
            with contextlib.suppress(ValueError):
                memory, busy = map(float, line.split(","))
                self.rows.append((time.monotonic(), memory, busy))

    def stop(self) -> None:
        """Ends it, if it was started."""
        if self.process:
            self.process.terminate()

    def since(self, begun: float) -> str:
        """The peak of the memory and the mean load since a moment."""
        rows = [row for row in self.rows if row[0] >= begun]
        busy = [load for _, memory, load in rows if memory > self.IDLE] or [0.0]
        peak = max((memory for _, memory, _ in rows), default=0) / 1024
        return f"peak {peak:.1f} GiB, busy {statistics.mean(busy):.0f} %" if rows else "the card was not watched"


def settings(*assignments: str) -> list[str]:
    """``--set`` for each."""
    return [part for assignment in assignments for part in ("--set", assignment)]
