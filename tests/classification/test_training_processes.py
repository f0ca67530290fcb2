"""FT, LIN and the sweep by one, two and three processes: a measurement is the same to the last digit, a training to
rounding.

python -m torch.distributed.run --nproc-per-node 3 -m tests.classification.test_training_processes DATA FOLDER      what
the test below starts
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluate import finetune, linear_probe, sweep
from evaluate.classification import classifier, head_sweep, metrics, probe, setup
from evaluate.classification.stacked_heads import StackedHeads
from evaluate.data.sets import train_and_val
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.seeding import seed_global
from tests.factories import FINETUNE, PROBE, vit
from tests.worlds import write_world

HERE = Path(__file__).parents[2]
# nothing that draws by process, and no statistics of a process's own share of a batch
TUNE = replace(
    FINETUNE,
    epochs=1,
    warmup_epochs=0,
    mixup=0.0,
    cutmix=0.0,
    random_erasing_prob=0.0,
    drop_path_rate=0.0,
    batch_size=40,
    micro_batch=8,
)
LINEAR = replace(PROBE, epochs=1, warmup_epochs=0, batch_norm=False, batch_size=40, micro_batch=8)
SWEEP = replace(sweep.PRESETS["demo"], epochs=1, batch_size=40, micro_batch=8, base_lrs=(1e-3, 1e-1))


def measure(root: Path, folder: Path) -> None:
    """Writes ``measured.pt``: outcomes of fixed classifiers, and what a short training ends in."""
    env = Env(root, folder / "task")
    env.out_dir.mkdir(parents=True, exist_ok=True)
    encoder = vit()
    made = setup.make_setup(encoder, TUNE, env, *train_and_val(env))
    assert (made.sampler.batch, made.sampler.world_size) == (40, int(os.environ.get("WORLD_SIZE", "1"))), (
        "another batch than the paper's"
    )
    found = {}

    def fixed(module: nn.Module) -> nn.Module:
        seed_global("cpu", 1)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        return module

    model = classifier.Classifier(encoder, 4)
    fixed(model.head)
    weights = env.out_dir / "classifier.safetensors"
    if distributed.rank() == 0:
        classifier.save(weights, model, made.train.classes, made.crop)
    distributed.barrier()
    found["FT"] = classifier.predictor(model, weights, "fp32", env)(made.val, made.crop).answers
    head = fixed(probe.make_head(24, 4))
    val, logits = probe.FrozenInputs(encoder, "mean", made, env).logits(head)
    found["LIN"] = metrics.answers(val.images, val.stored.unreadable, *metrics.best_of_logits(logits))
    inputs = head_sweep.HeadInputs(encoder, SWEEP.blocks, SWEEP.poolings)
    heads = fixed(StackedHeads(inputs.widths(32), SWEEP.base_lrs, 4))
    found["sweep"] = head_sweep.accuracies(heads, inputs, made.train, made, env)
    for name, module, config in (
        ("finetune", finetune, TUNE),
        ("linear_probe", linear_probe, LINEAR),
        ("sweep", sweep, SWEEP),
    ):
        task = Env(root, folder / name)
        task.out_dir.mkdir(exist_ok=True)
        module.run(encoder, config, task)
        assert task.notes["protocol"]["processes"] == made.sampler.world_size and task.notes["protocol"]["batch"] == 40
    if distributed.rank() == 0:
        as_tensors = {
            task: {name: torch.from_numpy(values) for name, values in vars(found[task]).items()}
            for task in ("FT", "LIN")
        }
        torch.save({**found, **as_tensors}, folder / "measured.pt")


def leaves(state: dict) -> list[torch.Tensor]:
    """The trained tensors of a saved state, in order; without the keys' bias, whose gradient is rounding alone, which
    Adam enlarges.
    """
    parts = (state.get(part, {}) for part in ("model", "head", "heads"))
    return [value for part in parts for name, value in sorted(part.items()) if not name.endswith("qkv.bias")]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data, and what one process measured."""
    root, folder = write_world(tmp_path_factory.mktemp("data"), val=70), tmp_path_factory.mktemp("single")
    measure(root, folder)
    return root, folder


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_measures_the_same(count: int, single: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "tests.classification.test_training_processes"]
    done = subprocess.run(
        [*command, str(single[0]), str(tmp_path)], cwd=HERE, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, several = (torch.load(folder / "measured.pt", weights_only=True) for folder in (single[1], tmp_path))
    for task in ("FT", "LIN"):
        assert one[task].keys() == several[task].keys()
        assert one[task]["top"].shape == (280, 4), "three batches of 128: the last one is not full"
        for name, values in one[task].items():
            assert torch.equal(values, several[task][name]), f"{task} {name}"
    assert one["sweep"] == several["sweep"]
    for name in ("finetune", "linear_probe", "sweep"):
        trained = [
            torch.load(folder / name / "training_state.pt", weights_only=True) for folder in (single[1], tmp_path)
        ]
        for ours, theirs in zip(*map(leaves, trained), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


if __name__ == "__main__":
    distributed.start("cpu")
    measure(Path(sys.argv[1]), Path(sys.argv[2]))
    distributed.end(0)


def test_a_saved_state_serves_any_processes_that_cut_a_step_alike(single: tuple[Path, Path], monkeypatch) -> None:
    """Eight processes of one micro-batch go on from one of eight; what is mixed or normalized together stays."""

    def identity(processes: int, micro_batch: int) -> str:
        monkeypatch.setattr(distributed, "world_size", lambda: processes)
        env = Env(single[0], single[1])
        sets = train_and_val(env)
        return setup.make_setup(vit(), replace(TUNE, micro_batch=micro_batch), env, *sets).identity

    assert identity(1, 8) == identity(5, 8) != identity(1, 4)
    assert identity(1, 8) != identity(2, 8), "six micro-batches of up to 8 instead of five"
