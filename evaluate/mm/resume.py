"""Training state that survives a kill at any moment, after which the training ends with the weights of an unbroken one.

mmengine's own checkpoints hold no random state, are not written atomically, delete the old file before the new one
stands, and need unpickling. These are tensors and plain values, written aside and renamed; the two newest are kept, and
an unreadable one is passed over. They stay until the record is written (``evaluate.runtime.training_state.clear``): a
task killed after its last iteration only tests again.
"""

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from evaluate.runtime import distributed
from evaluate.runtime.seeding import seed_of
from results.atomic import atomic_write, remove_partial

KEPT = 2
UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError)


def save(folder: Path, iteration: int, state: dict[str, Any]) -> None:
    """Writes ``<folder>/iter_<iteration>.pt`` whole or not at all, then removes all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"iter_{iteration}.pt"
    remove_partial(folder, "iter_*.pt")
    with atomic_write(path) as written:
        torch.save(state, written)
    for old in newest_first(folder)[KEPT:]:
        old.unlink()


def newest_first(folder: Path) -> list[Path]:
    """The states in a folder."""
    states = {
        int(match[1]): path
        for path in folder.glob("iter_*.pt")
        if (match := re.fullmatch(r"iter_(\d+)\.pt", path.name))
    }
    return [states[iteration] for iteration in sorted(states, reverse=True)]


def load(folder: Path, identity: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable state of the same training and its file, or None; says so where a newer one is passed over,
    or all are.
    """
    others = False
    for path in newest_first(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            print(f"{path} cannot be read ({type(error).__name__}); looking for an older one", file=sys.stderr)
            continue
        if state["identity"] == identity:
            return path, state
        others = True
    if others:
        print(
            f"{folder} holds states of another training (other settings, data or encoder); starting from the beginning",
            file=sys.stderr,
        )
    return None


def load_agreed(folder: Path, identity: str) -> dict[str, Any] | None:
    """What ``load`` finds in the first process, read by every process.

    Raises:
        UserError: a process that cannot read the same file.
    """
    found = load(folder, identity) if distributed.rank() == 0 else None
    place = distributed.broadcast_object((found[0], found[1]["iteration"]) if found else None)
    if place is None:
        return None
    path, iteration = place
    state = found[1] if found else _read_or_none(path)
    distributed.require_same(
        state["iteration"] if state and state["identity"] == identity else None,
        f"not every process can read the saved state {path} of iteration {iteration}; give all of them the same output "
        f"folder",
    )
    return state


def _read_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        return None


class Resume(Hook):
    """Saves every ``interval`` iterations, and at the start goes on from the newest state of the same ``identity``.

    Together with data seeded by its place in the stream (``evaluate.mm.sampler``) the model's random state is all that
    is needed: each process's own is stored. Another number of processes, or of parts that a batch is split into, goes
    on too: the batches are the same, and the random states are made anew from the iteration.

    Args:
        interval: in parts; a multiple of ``parts``.
        parts: that a process's share of a batch is split into. A state counts iterations of whole batches.

    Raises:
        UserError: processes that do not see the same folder.
    """

    priority = "VERY_LOW"  # after the schedulers' step

    def __init__(self, folder: str, identity: str, interval: int, parts: int = 1) -> None:
        self.folder, self.identity, self.interval, self.parts = Path(folder), identity, interval, parts
        self.random: dict[str, torch.Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        state = load_agreed(self.folder, self.identity)
        if state is None:
            return
        iteration = state["iteration"]
        model = getattr(runner.model, "module", runner.model)
        model.load_state_dict(state["model"], strict=True)
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, values in zip(runner.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(values)
        runner.train_loop._iter = iteration * self.parts  # as mmengine's own resume does
        runner.optim_wrapper.initialize_count_status(runner.model, runner.train_loop._iter, runner.max_iters)
        same = len(state["random"]) == distributed.world_size()
        self.random = state["random"][distributed.rank()] if same else self._made_anew(iteration)
        if distributed.rank() == 0:
            print(f"goes on at iteration {iteration} of {runner.max_iters // self.parts}", file=sys.stderr)

    def _made_anew(self, iteration: int) -> dict[str, torch.Tensor]:
        """Random states that depend on nothing but the training, the iteration and the process."""
        seed = seed_of(self.identity, iteration, distributed.rank(), distributed.world_size())
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        return {device: torch.Generator(device).manual_seed(seed).get_state() for device in devices}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        self._restore_random()  # only now: making the data loader's iterator draws from torch's generator

    def after_train(self, runner: Runner) -> None:
        self._restore_random()  # where there was no iteration left

    def _restore_random(self) -> None:
        if self.random is not None:
            torch.set_rng_state(self.random["cpu"])
            if torch.cuda.is_available() and "cuda" in self.random:
                torch.cuda.set_rng_state(self.random["cuda"])
            self.random = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, torch.Tensor]
    ) -> None:
        done = runner.iter + 1
        if done % self.interval and done != runner.max_iters:
            return
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        of_all = distributed.gather_objects(random)
        if distributed.rank() != 0:
            return
        state = {
            "identity": self.identity,
            "iteration": done // self.parts,
            "random": of_all,
            "model": getattr(runner.model, "module", runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedulers": [
                {k: v for k, v in s.state_dict().items() if not callable(v)} for s in runner.param_schedulers
            ],
        }
        save(self.folder, state["iteration"], state)
