"""From a recipe in mm_configs to metrics: what detection and segmentation share in calling mmengine."""

import contextlib
import copy
import gc
import hashlib
import json
import logging
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner, TestLoop
from mmengine.visualization import Visualizer
from torch import nn

from evaluate.data.thumbnails import attempt
from evaluate.encoder.model import Encoder
from evaluate.mm import artifacts, fitting, mixed_precision, operators, resampling
from evaluate.mm.hooks import Curves, FiniteLoss, PreciseBN, Progress, RuntimeInfo, StepSchedulers, points_apart
from evaluate.mm.multi_scale import MultiScale
from evaluate.mm.recipes import accumulate, normalized_together, share_out
from evaluate.mm.resume import Resume
from evaluate.runtime import distributed, shared_memory
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.precision import allow_tf32, resolve
from evaluate.runtime.training_state import DENSE_STATE

Draw = Callable[[Runner, Path], None]
PIXEL_BYTES = 11  # of a training image: three colors, and eight of a segmentation's label


class QuickRunner(Runner):
    """mmengine's runner, which writes the config once and unformatted: its formatter takes seconds."""

    model: nn.Module

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        self.logger.info(f"config: {self.cfg.to_dict()}")

    def dump_config(self) -> None:
        """The log has it."""

    def test_multi_scale(self, loader: ConfigDict) -> tuple[dict[str, float], Evaluator]:
        """The evaluator's metrics of a segmenter on a data loader of views, and the evaluator."""
        single, self.model = self.model, MultiScale(self.model)
        try:
            loop = TestLoop(self, loader, self.cfg.test_evaluator)
            return loop.run(), loop.evaluator
        finally:
            self.model = single


def train_and_test(
    cfg: Config,
    name: str,
    encoder: Encoder,
    env: Env,
    micro_batch: int | None = None,
    precision: str = "auto",
    multi_scale: ConfigDict | None = None,
    draw: Draw | None = None,
) -> dict[str, float]:
    """Trains and tests a complete config from the encoder's weights, in this process.

    mmengine's own output goes to ``out_dir/<name>.log``. Killed and started again, it goes on from its last state and
    returns the same; the states stay for the caller to clear. Where the memory does not hold a step, fewer images are
    taken at once, if that gives the same training.

    Args:
        micro_batch: images that a process takes at once; ``None``: as many as ``evaluate.mm.fitting`` chooses.
        precision: of the training's forward pass, as ``evaluate.runtime.precision`` names them; the test is in float32.
        multi_scale: a data loader of views (``evaluate.mm.multi_scale``) that a segmenter is tested on as well.
        draw: leaves pictures in a folder when all is measured (``evaluate.mm.pictures``).

    Returns:
        The evaluator's metrics under its names; those of several scales with ``_ms`` at the end.

    Raises:
        UserError: a step that does not fit, among others.
    """
    env.report(protocol={"operators": operators.try_on(env.device)})
    resolved = resolve(precision, env.device)
    mixed_precision.use(cfg, resolved, env.device)
    recipe = copy.deepcopy(cfg)
    share_out(cfg, env)
    micro_batch = fitting.choose(cfg, micro_batch, encoder.spec, env)
    while True:
        try:
            return _train_and_test(
                copy.deepcopy(cfg), recipe, name, encoder, env, micro_batch, resolved, multi_scale, draw
            )
        except torch.OutOfMemoryError:  # its traceback holds the step's tensors until this block ends
            micro_batch = fitting.after_out_of_memory(cfg, micro_batch, env)
        gc.collect()
        torch.cuda.empty_cache()


def _train_and_test(
    cfg: Config,
    recipe: Config,
    name: str,
    encoder: Encoder,
    env: Env,
    micro_batch: int | None,
    resolved: str,
    multi_scale: ConfigDict | None,
    draw: Draw | None,
) -> dict[str, float]:
    """``train_and_test`` with so many images at once; ``recipe`` is ``cfg`` before it was shared out."""
    rank = distributed.rank()
    accumulate(cfg, micro_batch)
    side = cfg.get("image_size") or cfg.crop
    shared_memory.check(PIXEL_BYTES * side**2 * cfg.train_dataloader.batch_size, cfg.train_dataloader.num_workers)
    together = normalized_together(cfg, env)
    env.report(
        protocol={
            "images at once": cfg.train_dataloader.batch_size,
            **({"normalized together": together} if together else {}),
        }
    )
    work_dir = env.out_dir / "work"
    # of the recipe alone: not of folders and hooks, nor of how many processes share a batch in how many parts
    complete(cfg, name, identity_of(recipe, encoder, env, together), work_dir, env)
    with quiet(env.out_dir / (f"{name}.log" if rank == 0 else f"{name}_rank{rank}.log")):
        runner = QuickRunner.from_cfg(cfg)
        wrapped = hasattr(runner.model, "module")  # as it is in several processes
        model = runner.model.module if wrapped else runner.model
        load_encoder(model, encoder)
        copy_without_waiting(model)
        if not wrapped:
            runner.model.to(env.device)  # mmengine takes a GPU wherever there is one
        try:
            allow_tf32(resolved == "tf32")
            runner.train()
            allow_tf32(False)
            # where BatchNorm is a process's own, the processes' running statistics differ; the first's are the model's
            distributed.broadcast(list(runner.model.buffers()))
            if env.keep_models and rank == 0:
                told = {"recipe": name, "encoder": encoder.fingerprint, "iterations": cfg.train_cfg.max_iters}
                classes = runner.test_dataloader.dataset.metainfo["classes"]
                artifacts.write_model(env.out_dir, model, classes=list(classes), **told)
            metrics = _test(runner, env, multi_scale)
            if draw is not None and rank == 0:
                with attempt(name):
                    draw(runner, env.out_dir)
        except UserError as error:
            if "Original Traceback" not in str(error):
                raise
            # a loading process wraps the sentence in its traceback
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
    distributed.barrier()
    if rank == 0:
        shutil.rmtree(work_dir)
    return metrics


def complete(cfg: Config, name: str, identity: str, work_dir: Path, env: Env) -> None:
    """Puts into a recipe what mmengine's runner needs besides: folders, hooks, seed.

    Args:
        identity: that states of the same training carry.
    """
    cfg.work_dir = str(work_dir)
    # mmengine adds the time in seconds, and would give two runs of one name the same scope
    cfg.experiment_name = f"{name}_{env.out_dir.parent.name}_{uuid.uuid4().hex[:8]}"
    cfg.randomness = {"seed": env.seed, "deterministic": False}
    cfg.log_level = "INFO"
    # the log has what it would write, and it outlives the folder of a task
    cfg.visualizer = {"type": Visualizer, "vis_backends": []}
    cfg.default_hooks = {
        "runtime_info": {"type": RuntimeInfo},
        "logger": {"type": "LoggerHook", "interval": 20},
        "param_scheduler": {"type": StepSchedulers},
        "checkpoint": None,
    }
    parts = cfg.optim_wrapper.get("accumulative_counts", 1)
    resume = {"type": Resume, "folder": str(env.out_dir / DENSE_STATE), "identity": identity, "parts": parts}
    resume["interval"] = save_interval(cfg.train_cfg.max_iters, parts)
    apart = points_apart(cfg.train_cfg.max_iters, resume["interval"], parts)
    kept = {"type": Curves, "folder": str(env.out_dir), "apart": apart, "parts": parts}
    cfg.custom_hooks = [{"type": Progress, "name": name}, {"type": FiniteLoss}, kept, resume]
    if cfg.get("precise_bn"):
        cfg.custom_hooks.append({"type": PreciseBN, "batches": cfg.precise_bn})
    cfg.train_dataloader.pin_memory = cfg.test_dataloader.pin_memory = env.device.startswith("cuda")


def _test(runner: QuickRunner, env: Env, multi_scale: ConfigDict | None) -> dict[str, float]:
    """Metrics of the trained model; what the test found is kept beside the record."""
    metrics = _plain(runner.test())
    resampling.report(env, runner.test_loop.evaluator)
    artifacts.save(env.out_dir, runner.test_loop.evaluator)
    if multi_scale is not None:
        several, evaluator = runner.test_multi_scale(multi_scale)
        metrics |= {f"{key}_ms": value for key, value in _plain(several).items()}
        resampling.report(env, evaluator, "_ms")
        artifacts.save(env.out_dir, evaluator, "_ms")
    return metrics


def load_encoder(model: BaseModel, encoder: Encoder) -> None:
    """Gives the encoder's tensors to the model's backbone, and to a head that holds its last stage (C4)."""
    for part in (model.backbone, *(module for name, module in model.named_modules() if name.endswith("shared_head"))):
        part.load(encoder.spec, encoder.model.state_dict())


def copy_without_waiting(model: BaseModel) -> None:
    """Lets pictures and labels go to a GPU while it computes. Segmentation's preprocessor has no argument for it."""
    model.data_preprocessor._non_blocking = True


def save_interval(iterations: int, parts: int) -> int:
    """After how many iterations a state is saved: a fifth of all, at most 1000, whole steps of ``parts`` iterations."""
    return -(-min(1000, max(1, iterations // 5)) // parts) * parts


def identity_of(cfg: Config, encoder: Encoder, env: Env, together: int | None = None) -> str:
    """A digest of all that decides a training's weights.

    The number of loading processes does not, nor which GPU it is: each process of a group has its own.

    Args:
        cfg: the recipe, before it is shared out.
        together: how many images BatchNorm sees at once, if there is one.
    """
    settings = {name: value for name, value in cfg.to_dict().items() if not name.startswith("test_")}
    loader = settings["train_dataloader"]
    settings["train_dataloader"] = {
        name: loader[name] for name in loader if name not in ("num_workers", "persistent_workers")
    }
    whole = [encoder.fingerprint, env.seed, env.limit, env.device.partition(":")[0], together, settings]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=_qualified_name).encode()).hexdigest()


def _qualified_name(value: Any) -> str:
    """A class or function of a config by its name, which is the same in every process."""
    return f"{value.__module__}.{value.__qualname__}"


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    """An evaluator's metrics without its prefix."""
    return {key.partition("/")[2]: float(value) for key, value in metrics.items()}


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Sends standard output, mmengine's logger and warnings to a file."""
    with log.open("w") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():

        def write(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            file.write(f"{category.__name__}: {message}\n")

        warnings.showwarning = write
        try:
            yield
        finally:
            loggers = [
                entry for entry in logging.Logger.manager.loggerDict.values() if isinstance(entry, logging.Logger)
            ]
            for logger in loggers:
                for handler in list(logger.handlers):
                    if getattr(handler, "stream", None) is file:
                        logger.removeHandler(handler)  # it would write to a closed file
