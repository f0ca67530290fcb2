"""What is done to a recipe of mm_configs before it runs.

mmengine is imported inside a function here: this module says what to install where the mm* packages are missing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from evaluate.mm import operators, recipe_names
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError

if TYPE_CHECKING:
    from mmengine.config import Config

    from evaluate.encoder.spec import EncoderSpec

RECIPES = recipe_names.FOLDER
INSTALL = "install the mm* packages of pyproject.toml with `uv sync`"


def require_packages(*names: str) -> None:
    """Raises Skip where an mm* package cannot be imported, and says how to get it."""
    operators.provide()
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Skip(f"{name} cannot be imported ({error}); {INSTALL} and run again") from error


def require_maps(spec: "EncoderSpec") -> None:
    """Raises Skip for an encoder that is neither a ViT nor gives the maps that a pyramid is made of."""
    if spec.recipes == "pyramid" and not spec.maps:
        raise Skip(f"the encoder {spec.model} gives no maps at strides 4, 8, 16 and 32")


def names() -> list[str]:
    """The recipes of mm_configs; a file there whose name begins with ``_`` is a base of them."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.py"))


def read_recipe(name: str) -> "Config":
    """The mmengine config ``mm_configs/<name>.py``. Raises UserError listing the recipes there are."""
    from mmengine.config import Config

    operators.provide()  # a recipe names classes of mmdet and mmseg
    known = names()
    if name not in known:
        raise UserError(f"there is no recipe {name}; mm_configs has {', '.join(known)}")
    return Config.fromfile(str(RECIPES / f"{name}.py"))


def of_the_encoder(task: str, spec: "EncoderSpec", side: int, padded: int) -> dict[str, Any]:
    """What a record's protocol says where an encoder needs what the published protocol does not have.

    Args:
        side: of the recipe's pictures in pixels.
        padded: the side that they are padded to, a multiple of two patches.
    """
    said: dict[str, Any] = {}
    marks = []
    if padded != side:
        said["padded_to"] = padded
        marks.append(
            f"pictures padded to {padded} px, a multiple of two patches of {spec.patch_size} px; paper: as they are"
        )
    if spec.registers:
        said["registers"] = spec.registers
        if task == "detection":  # segmentation has them where the encoder has, beside the class token
            tokens = f"{'class token and ' if spec.class_token else ''}{spec.registers} registers"
            marks.append(f"{tokens}, which every window sees; paper: no such tokens")
    if marks:
        said["other_protocol"] = f"{task}: {' · '.join(marks)}"
    return said


def shorten(cfg: "Config", iterations: int | None, batch_size: int | None, lr: float | None) -> None:
    """Replaces those numbers of a recipe that are given; warm-up and steps keep their place relative to the end."""
    if lr is not None:
        cfg.optim_wrapper.optimizer.lr = lr
    if batch_size is not None:
        cfg.batch_size = batch_size
    if iterations is not None:
        _set_length(cfg, iterations)
        for scheduler in cfg.param_scheduler:
            if "end" in scheduler:
                scheduler.end = max(scheduler.end, scheduler.begin + 2)  # mmengine refuses an empty range


def _set_length(cfg: "Config", iterations: int) -> None:
    """Sets the number of iterations; every place in the schedule moves with it."""
    ratio = iterations / cfg.train_cfg.max_iters
    for scheduler in cfg.param_scheduler:
        for edge in {"begin", "end"} & set(scheduler):
            scheduler[edge] = round(scheduler[edge] * ratio)
        if "milestones" in scheduler:
            scheduler.milestones = [round(milestone * ratio) for milestone in scheduler.milestones]
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations + 1)


def as_it_stands(
    cfg: "Config", iterations: int | None, batch_size: int | None, lr: float | None, micro_batch: int | None
) -> list[str]:
    """The names of those settings that ask for what a recipe says anyway, as a micro-batch of a whole share does."""
    share = (batch_size or cfg.batch_size) // distributed.world_size()
    same = {
        "iterations": iterations == cfg.train_cfg.max_iters,
        "batch_size": batch_size == cfg.batch_size,
        "lr": lr == cfg.optim_wrapper.optimizer.lr,
        "micro_batch": micro_batch is not None and micro_batch >= share,
    }
    return [name for name, is_same in same.items() if is_same]


def share_out(cfg: "Config", env: Env) -> None:
    """Settings for several processes, each with its part of every batch.

    Raises:
        UserError: a batch that the processes cannot share evenly.
    """
    size = distributed.world_size()
    if cfg.batch_size % size:
        raise UserError(
            f"a batch of {cfg.batch_size} images cannot be divided evenly among {size} processes; set batch_size to a "
            f"multiple of {size}"
        )
    cfg.train_dataloader.batch_size = cfg.batch_size // size
    if size == 1:
        return
    cfg.test_evaluator.collect_dir = str(env.out_dir / "work" / "collected")
    cfg.launcher = "pytorch"
    cfg.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "find_unused_parameters": False}
    if env.device.startswith("cuda"):
        cfg.sync_bn = "torch"
    else:  # mmengine would ask for a GPU of this rank, and SyncBN for any
        cfg.model_wrapper_cfg["device_ids"] = None
        cfg.merge_from_dict(_replaced(cfg.to_dict()["model"], "SyncBN", "BN", "model"))


def accumulate(cfg: "Config", micro_batch: int | None) -> None:
    """Splits each process's share of a batch into parts of ``micro_batch`` images; a step sums their gradients.

    mmengine counts parts as iterations, so their number grows; the schedule goes by steps
    (``evaluate.mm.hooks.StepSchedulers``). BatchNorm sees a part at a time.

    Raises:
        UserError: a share that is no multiple of ``micro_batch``.
    """
    share = cfg.train_dataloader.batch_size
    if micro_batch is None or micro_batch >= share:
        return
    if share % micro_batch:
        raise UserError(
            f"each process takes {share} images of a batch, which is not a multiple of micro_batch {micro_batch}; set "
            f"micro_batch to a divisor of {share}"
        )
    parts = share // micro_batch
    cfg.train_dataloader.batch_size = micro_batch
    cfg.optim_wrapper.accumulative_counts = parts
    iterations = parts * cfg.train_cfg.max_iters
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations + 1)


def checkpoint(cfg: "Config", spec: "EncoderSpec") -> None:
    """Lets a ViT's blocks be computed again in the backward pass. Raises UserError for another encoder."""
    if spec.family != "vit":
        raise UserError("grad_checkpointing works for ViTs only; leave it false for this encoder")
    cfg.model.backbone.checkpointing = True


def normalized_together(cfg: "Config", env: Env) -> int | None:
    """How many images a BatchNorm that is trained sees at once; None where the model has none.

    Asked after ``share_out`` and ``accumulate``: GPUs synchronize BatchNorm over the processes, CPUs do not.
    """
    model = cfg.to_dict()["model"]
    norms = [key for name in ("BN", "SyncBN") for key in _replaced(model, name, name, "model")]
    if not norms and not any(name in str(cfg.model.backbone.type) for name in ("ResNet", "Pyramid")):
        return None
    size = distributed.world_size() if env.device.startswith("cuda") else 1
    return cfg.train_dataloader.batch_size * size


def _replaced(value: Any, old: str, new: str, key: str) -> dict[str, str]:
    """The dotted keys from ``key`` on whose text is ``old``, each with ``new``."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _replaced(part, old, new, f"{key}.{name}").items()}
    return {key: new} if value == old else {}
