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
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from evaluate.runtime.errors import UserError
from results.atomic import atomic_write, remove_partial

KEPT = 2


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


def load(folder: Path, identity: str) -> dict[str, Any] | None:
    """The newest readable state of the same training, or None; says so where a newer one is passed over, or all are."""
    others = False
    for path in newest_first(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            print(f"{path} cannot be read ({type(error).__name__}); looking for an older one", file=sys.stderr)
            continue
        if state["identity"] == identity:
            return state
        others = True
    if others:
        print(
            f"{folder} holds states of another training (other settings, data or encoder); starting from the beginning",
            file=sys.stderr,
        )
    return None


class Resume(Hook):
    """Saves every ``interval`` iterations, and at the start goes on from the newest state of the same ``identity``.

    Together with data seeded by its place in the stream (``evaluate.mm.sampler``) the model's random state is all that
    is needed: each process's own is stored.

    Raises:
        UserError: processes that would go on from different iterations, since they do not see the same folder.
    """

    priority = "VERY_LOW"  # after the schedulers' step

    def __init__(self, folder: str, identity: str, interval: int) -> None:
        self.folder, self.identity, self.interval = Path(folder), identity, interval
        self.random: dict[str, torch.Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        state = load(self.folder, self.identity)
        if state is not None and len(state["random"]) != get_world_size():
            state = None
        iterations = all_gather_object(state["iteration"] if state else 0)
        if len(set(iterations)) > 1:
            raise UserError(
                f"the processes found saved states of different iterations {iterations}; give all of them the same "
                f"output folder"
            )
        if state is None:
            return
        model = getattr(runner.model, "module", runner.model)
        model.load_state_dict(state["model"], strict=True)
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, values in zip(runner.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(values)
        runner.train_loop._iter = state["iteration"]  # as mmengine's own resume does
        runner.optim_wrapper.initialize_count_status(runner.model, state["iteration"], runner.max_iters)
        self.random = state["random"][get_rank()]
        print(f"goes on at iteration {state['iteration']} of {runner.max_iters}", file=sys.stderr)

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
        of_all = all_gather_object(random)
        if get_rank() != 0:
            return
        state = {
            "identity": self.identity,
            "iteration": done,
            "random": of_all,
            "model": getattr(runner.model, "module", runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedulers": [
                {k: v for k, v in s.state_dict().items() if not callable(v)} for s in runner.param_schedulers
            ],
        }
        save(self.folder, done, state)
