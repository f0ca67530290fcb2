"""How many images a dense training takes at once: by the memory of a GPU, and fewer where a step does not fit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate import detection, segmentation
from evaluate.encoder.model import Encoder
from evaluate.mm import fitting, hooks, recipes
from evaluate.mm.benchmark import random_encoder
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from tests.factories import tiny_resnet

ROOT = Path(__file__).parents[2]
CHOICE = """
import json, sys
from pathlib import Path
from evaluate.mm import detector, fitting, operators, recipes
from evaluate.mm.benchmark import random_encoder
from evaluate.runtime.env import Env
encoder, found = random_encoder(sys.argv[1]), {}
for checkpointing in (False, True):
    cfg = recipes.read_recipe("mask_rcnn_vitdet_100ep_coco")
    detector.fill_encoder(cfg, encoder)
    if checkpointing:
        recipes.checkpoint(cfg, encoder.spec)
    env = Env(Path("."), Path("."), "cuda")
    recipes.share_out(cfg, env)
    found[str(checkpointing)] = fitting.choose(cfg, None, encoder.spec, env)
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("size", "gib", "chosen", "checkpointed"),
    [("vit_base", 80, 16, 32), ("vit_base", 40, 8, 16), ("vit_large", 80, 4, 16)],
)
def test_the_most_images_that_a_gpu_is_predicted_to_hold(size, gib, chosen, checkpointed, pretended) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHOICE, size],
        cwd=ROOT,
        env={**pretended, "PRETENDED_MEMORY_GIB": str(gib)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"False": chosen, "True": checkpointed}
    assert f"takes {chosen} of its 64 images at once, for a GPU of {gib} GiB" in done.stderr


def test_a_batch_norm_keeps_the_papers_number(tmp_path: Path) -> None:
    """Chosen by nothing but the user; a ViT's detector has none."""
    env = Env(tmp_path, tmp_path, "cuda")
    for name, together in (("upernet_vit_160k_ade20k", 16), ("mask_rcnn_resnet_fpn_1x_coco", 16)):
        cfg = recipes.read_recipe(name)
        recipes.share_out(cfg, env)
        assert recipes.normalized_together(cfg, env) == together
        assert fitting.choose(cfg, None, random_encoder("vit_base").spec, env) is None
    cfg = recipes.read_recipe("mask_rcnn_vitdet_100ep_coco")
    recipes.share_out(cfg, env)
    assert recipes.normalized_together(cfg, env) is None


def run_short_of_memory(module: Any, encoder: Encoder, world: Path, out: Path, most: int, **changes: Any) -> Env:
    """A training of batches of 4 on a device that holds ``most`` images from its third step on."""

    def before_train_iter(self: hooks.FiniteLoss, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if len(data_batch["inputs"]) > most and runner.iter >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hooks.FiniteLoss.before_train_iter = before_train_iter
    env = Env(world, out, limit=4)
    out.mkdir()
    try:
        module.run(encoder, module.Config(recipe="demo", iterations=5, batch_size=4, **changes), env)
    finally:
        del hooks.FiniteLoss.before_train_iter
    return env


def test_out_of_memory_halves_what_is_taken_at_once_and_goes_on(
    encoder: Encoder, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = run_short_of_memory(detection, encoder, world, tmp_path / "a", 1)
    said = capsys.readouterr().err
    assert "does not hold a training step of 4 images at once; goes on with 2 at once, which gives the same" in said
    assert "of 2 images at once; goes on with 1 at once" in said and "goes on at iteration 2 of 5" in said
    assert env.notes["protocol"]["images at once"] == 1 and "normalized together" not in env.notes["protocol"]


@pytest.mark.parametrize(
    ("module", "resnet", "changes", "most", "says"),
    [
        (segmentation, False, {"multi_scale": False}, 2, "BatchNorm sees fewer images together, which is another"),
        (detection, True, {}, 2, "BatchNorm sees fewer images together, which is another"),
        (detection, False, {"micro_batch": 1}, 0, "of 1 images at once; set grad_checkpointing=true, or take more"),
    ],
)
def test_out_of_memory_is_an_error_where_fewer_images_are_another_protocol(
    module, resnet, changes, most, says, encoder: Encoder, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        run_short_of_memory(module, tiny_resnet() if resnet else encoder, world, tmp_path / "a", most, **changes)


def test_checkpointing_gives_the_same_numbers(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    for module, changes in ((detection, {}), (segmentation, {"multi_scale": False})):
        found = []
        for checkpointing in (False, True):
            out = tmp_path / f"{module.__name__}{checkpointing}"
            out.mkdir()
            config = module.Config(
                recipe="demo", iterations=2, batch_size=2, grad_checkpointing=checkpointing, **changes
            )
            found.append(module.run(encoder, config, Env(world, out, limit=4)))
        assert found[0] == found[1]
    with pytest.raises(UserError, match="works for ViTs only"):
        recipes.checkpoint(recipes.read_recipe("mask_rcnn_resnet_fpn_1x_coco"), tiny_resnet().spec)
