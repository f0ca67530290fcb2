"""BatchNorm statistics estimated anew after the training, as detectron2's "precise BN" in MoCo's C4 recipes."""

from itertools import islice
from typing import Any

import torch
from mmengine.hooks import Hook
from torch.nn.modules.batchnorm import _BatchNorm


class PreciseBN(Hook):
    """After the training, sets each running mean and variance to the plain average over some training batches with the final weights.

    Running averages follow weights that are still moving.

    Args:
        batches: how many, on each process.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def after_train(self, runner: Any) -> None:
        model = getattr(runner.model, "module", runner.model)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        totals = [(torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)) for norm in norms]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # the running values are then the last batch's
        model.train()
        count = 0
        with torch.no_grad():
            for batch in islice(runner.train_dataloader, self.batches):
                model(**model.data_preprocessor(batch, True), mode="loss")
                count += 1
                for norm, (mean, variance) in zip(norms, totals, strict=True):
                    mean += norm.running_mean
                    variance += norm.running_var
        for norm, momentum, (mean, variance) in zip(norms, momenta, totals, strict=True):
            norm.momentum = momentum
            norm.running_mean.copy_(mean / count)
            norm.running_var.copy_(variance / count)
        runner.logger.info(f"statistics of {len(norms)} norms anew from {count} batches")
