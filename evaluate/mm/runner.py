"""From a recipe in mm_configs to metrics: what detection and segmentation share in calling mmengine."""

import contextlib
import hashlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from evaluate.runtime import distributed
from evaluate.runtime import precision as arithmetic
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError

RECIPES = Path(__file__).parents[2] / "mm_configs"
INSTALL = "install the mm* packages of pyproject.toml with `uv sync`"


def require_packages(*names: str) -> None:
    """Raises Skip where an mm* package cannot be imported, and says how to get it."""
    import importlib

    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Skip(f"{name} cannot be imported ({error}); {INSTALL} and run again") from error


def read_recipe(name: str) -> Any:
    """The mmengine config ``mm_configs/<name>.py``. Raises UserError listing the recipes there are."""
    from mmengine.config import Config

    path = RECIPES / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.py")))
        raise UserError(f"there is no recipe {name}; mm_configs has {known}")
    return Config.fromfile(str(path))


def shorten(cfg: Any, iterations: int | None, batch_size: int | None, learning_rate: float | None) -> None:
    """Replaces numbers of a recipe; the warm-up and the steps keep their place relative to the end."""
    if learning_rate is not None:
        cfg.optim_wrapper.optimizer.lr = learning_rate
    if batch_size is not None:
        cfg.batch_size = batch_size
    if iterations is None:
        return
    ratio = iterations / cfg.train_cfg.max_iters
    for scheduler in cfg.param_scheduler:
        if "milestones" in scheduler:
            scheduler.milestones = [round(milestone * ratio) for milestone in scheduler.milestones]
        for edge in ("begin", "end"):
            if edge in scheduler:
                scheduler[edge] = round(scheduler[edge] * ratio)
        if "end" in scheduler:
            scheduler.end = max(scheduler.end, scheduler.begin + 2)  # mmengine refuses an empty range
    cfg.train_cfg.max_iters, cfg.train_cfg.val_interval = iterations, iterations + 1


def train_and_test(
    cfg: Any, name: str, encoder: Any, env: Env, at_once: int | None = None, precision: str = "auto", multi_scale: Any = None
) -> dict[str, float]:
    """Runs a complete config from the encoder's weights in this process; mmengine's own output goes to ``out_dir/<name>.log``.

    Killed and started again, it goes on from its last state and returns the same.

    Args:
        at_once: images that a process takes at once; ``None`` is its whole share of the batch.
        precision: of the training's forward pass, as ``evaluate.runtime.precision`` names them; the test is in float32.
        multi_scale: a data loader of views (``evaluate.mm.multi_scale``) that a segmenter is tested on as well.

    Returns:
        The evaluator's metrics under its names; those of several scales with ``_ms`` at the end.
    """
    from mmengine.visualization import Visualizer

    from evaluate.mm.checkpoint import Resume
    from evaluate.mm.hooks import FiniteLoss, Progress, QuickRunner, RuntimeInfo
    from evaluate.mm.precise_bn import PreciseBN

    rank, _ = distributed.world()
    use_precision(cfg, arithmetic.resolve(precision, env.device), env.device)
    share_out(cfg, env)
    accumulate(cfg, at_once)
    work_dir = env.out_dir / "work"
    identity = identity_of(cfg, encoder, env)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f"{name}_{env.out_dir.parent.name}"
    cfg.randomness = {"seed": env.seed, "deterministic": False}
    cfg.log_level = "INFO"
    cfg.visualizer = {"type": Visualizer, "vis_backends": []}  # the log has what it would write, and it outlives the folder of a task
    cfg.default_hooks = {"runtime_info": {"type": RuntimeInfo}, "logger": {"type": "LoggerHook", "interval": 20}, "checkpoint": None}
    interval = save_interval(cfg.train_cfg.max_iters, cfg.optim_wrapper.get("accumulative_counts", 1))
    resume = {"type": Resume, "folder": str(work_dir / "state"), "identity": identity, "interval": interval}
    cfg.custom_hooks = [{"type": Progress, "name": name}, {"type": FiniteLoss}, resume]
    if cfg.get("precise_bn"):
        cfg.custom_hooks.append({"type": PreciseBN, "batches": cfg.precise_bn})
    if env.device.startswith("cuda:"):
        torch.cuda.set_device(env.device)  # mmengine takes the current one
    with quiet(env.out_dir / (f"{name}.log" if rank == 0 else f"{name}_rank{rank}.log")):
        runner = QuickRunner.from_cfg(cfg)
        load_encoder(getattr(runner.model, "module", runner.model), encoder)
        if not hasattr(runner.model, "module"):
            runner.model.to(env.device)  # mmengine takes a GPU wherever there is one
        try:
            runner.train()
            # where BatchNorm is a process's own, the processes' running statistics differ; the first's are the model's
            distributed.broadcast(list(runner.model.buffers()))
            metrics = _plain(runner.test())
            if multi_scale is not None:
                metrics |= {f"{key}_ms": value for key, value in _plain(runner.test_multi_scale(multi_scale)).items()}
        except UserError as error:
            if "Original Traceback" not in str(error):
                raise
            # a loading process wraps the sentence in its traceback
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
    distributed.barrier()
    if rank == 0:
        shutil.rmtree(work_dir)  # the record has what matters; a finished task never goes on
    return metrics


def load_encoder(model: Any, encoder: Any) -> None:
    """Gives the encoder's tensors to the model's backbone, and to a head that holds its last stage (C4)."""
    for part in (model.backbone, *(module for name, module in model.named_modules() if name.endswith("shared_head"))):
        part.load(encoder.spec, encoder.model.state_dict())


def save_interval(iterations: int, parts: int) -> int:
    """After how many iterations a state is saved: a fifth of all, at most 1000, and only between steps of ``parts`` iterations each."""
    return -(-min(1000, max(1, iterations // 5)) // parts) * parts


def identity_of(cfg: Any, encoder: Any, env: Env) -> str:
    """A digest of all that decides a training's weights; the number of loading processes does not."""
    content = cfg.to_dict()
    for loader in (content["train_dataloader"], content["test_dataloader"]):
        del loader["num_workers"], loader["persistent_workers"]
    return hashlib.sha256(f"{encoder.fingerprint} {env.seed} {env.limit} {env.device} {content}".encode()).hexdigest()


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    """An evaluator's metrics without its prefix."""
    return {key.partition("/")[2]: float(value) for key, value in metrics.items()}


def share_out(cfg: Any, env: Env) -> None:
    """Settings for several processes, each with its part of every batch.

    Raises:
        UserError: a batch that the processes cannot share evenly.
    """
    _, size = distributed.world()
    if cfg.batch_size % size:
        raise UserError(f"a batch of {cfg.batch_size} images cannot be shared by {size} processes; set batch_size to a multiple")
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
        cfg.merge_from_dict(_replaced(cfg.to_dict()["model"], "SyncBN", "BN"))


def accumulate(cfg: Any, at_once: int | None) -> None:
    """Splits each process's share of a batch into parts of ``at_once`` images whose gradients are summed before a step.

    mmengine counts parts as iterations, so all lengths grow with their number. BatchNorm sees a part at a time.

    Raises:
        UserError: a share that is no multiple of ``at_once``.
    """
    share = cfg.train_dataloader.batch_size
    if at_once is None or at_once >= share:
        return
    if share % at_once:
        raise UserError(f"{share} images a process cannot be taken {at_once} at once; set at_once to a divisor")
    parts = share // at_once
    cfg.train_dataloader.batch_size = at_once
    cfg.optim_wrapper.accumulative_counts = parts
    for scheduler in cfg.param_scheduler:
        for edge in ("begin", "end"):
            if edge in scheduler:
                scheduler[edge] *= parts
        if "milestones" in scheduler:
            scheduler.milestones = [milestone * parts for milestone in scheduler.milestones]
    cfg.train_cfg.max_iters *= parts
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters + 1


def _replaced(value: Any, old: str, new: str, key: str = "model") -> dict[str, Any]:
    """The dotted keys below ``value`` whose text is ``old``, each with ``new``."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _replaced(part, old, new, f"{key}.{name}").items()}
    return {key: new} if value == old else {}


def use_precision(cfg: Any, precision: str, device: str) -> None:
    """Puts mixed precision into a recipe, whose own optimizer wrapper computes in float32.

    In mmseg's MAE recipe ``fp16`` stands where mmengine does not read it, so that "amp" trains in float32 there.
    """
    from evaluate.mm.mixed_precision import MixedPrecision

    if precision != "fp32":
        cfg.optim_wrapper.update(type=MixedPrecision, precision=precision, device=device)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Sends standard output, mmengine's logger and warnings to a file."""
    with log.open("w") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_, **__: file.write(f"{category.__name__}: {message}\n")  # type: ignore[assignment]
        try:
            yield
        finally:
            for logger in logging.Logger.manager.loggerDict.values():
                for handler in list(getattr(logger, "handlers", ())):
                    if getattr(handler, "stream", None) is file:
                        logger.removeHandler(handler)  # it would write to a closed file
