"""What a method's own modules cost in a plain training loop, and what the step of ``pretrain.train`` costs beside it.

A plain step calls the modules of a method's model by the formulas of its paper, on one process and in float32: the
views, the loss, its gradient, the optimizer's step, and a moving average parameter by parameter. It looks at no fault,
measures no norm, and knows of no other process. Axes: B batch, D width.
"""

import copy
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.data import views
from pretrain.data.images import decode
from pretrain.data.loader import Step
from pretrain.methods import method_of
from pretrain.optimizer import make_optimizer
from pretrain.step import accumulate

TOTAL = 10**6  # steps of the pretended run, near whose end the timed ones lie: no prototype is frozen, queues are full
QUARTILES = (25, 50, 75)


@dataclass(frozen=True)
class Plain:
    """A method in a plain loop."""

    loss: Callable[[Any, Any], Tensor]
    """Of its model and a batch of views, which has what the method asks for."""
    averages: tuple[tuple[str, str], ...] = ()
    """The modules that are the moving average of another, and that other."""


def simsiam(model: Any, batch: Any) -> Tensor:
    """Minus the mean cosine of predictions and projections."""
    z1, z2 = model.encoder(batch.view1), model.encoder(batch.view2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    cosines = F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()
    return -cosines / 2


def byol(model: Any, batch: Any) -> Tensor:
    """2 - 2 cos of predictions and the target's projections."""
    p1, p2 = (model.predictor(model.projector(model.backbone(view))) for view in (batch.view1, batch.view2))
    with torch.no_grad():
        t1, t2 = (model.momentum_projector(model.momentum_backbone(view)) for view in (batch.view1, batch.view2))
    return 4 - 2 * F.cosine_similarity(p1, t2).mean() - 2 * F.cosine_similarity(p2, t1).mean()


def moco_v3(model: Any, batch: Any) -> Tensor:
    """InfoNCE of the batch, both ways."""
    q1, q2 = (F.normalize(model.predictor(model.base_encoder(view)), dim=1) for view in (batch.view1, batch.view2))
    with torch.no_grad():
        k1, k2 = (F.normalize(model.momentum_encoder(view), dim=1) for view in (batch.view1, batch.view2))
    own, temperature = torch.arange(len(q1), device=q1.device), model.temperature
    terms = [F.cross_entropy(q @ k.T / temperature, own) for q, k in ((q1, k2), (q2, k1))]
    return 2 * temperature * (terms[0] + terms[1])


def simclr(model: Any, batch: Any) -> Tensor:
    """InfoNCE of all views but the own one, summed over the two views."""
    z = F.normalize(model.projector(model.backbone(torch.cat([batch.view1, batch.view2]))), dim=1)
    count = len(batch.view1)
    logits = (z @ z.T / model.temperature).fill_diagonal_(-torch.inf)
    return 2 * F.cross_entropy(logits, torch.arange(2 * count, device=z.device).roll(count))


def moco(model: Any, batch: Any) -> Tensor:
    """Cross-entropy of the own key among those of the queue, which the keys join."""
    query = F.normalize(model.encoder_q(batch.view1), dim=1)
    with torch.no_grad():
        order = torch.randperm(len(query)).to(query.device)
        key = F.normalize(model.encoder_k(batch.view2[order]), dim=1)[order.argsort()]
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ model.queue.clone()], dim=1) / model.temperature
    first = int(model.queue_ptr)
    model.queue[:, first : first + len(key)] = key.T
    model.queue_ptr[0] = (first + len(key)) % model.queue.shape[1]
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def swav(model: Any, batch: Any) -> Tensor:
    """Cross-entropy of each view's scores and the assignments of each other large view."""
    config, count = model.config, len(batch.view1)
    with torch.no_grad():
        model.prototypes.weight.copy_(F.normalize(model.prototypes.weight, dim=1))
    features = [model.backbone(torch.cat([batch.view1, batch.view2]))]
    if batch.small is not None:
        features.append(model.backbone(batch.small.transpose(0, 1).flatten(0, 1)))
    embedding = F.normalize(model.projection_head(torch.cat(features)), dim=1)
    logs = F.log_softmax(model.prototypes(embedding) / config.temperature, dim=1).split(count)
    terms = []
    for number, own in enumerate(embedding.detach().split(count)[:2]):
        with torch.no_grad():
            waiting = model.queue[number] if config.queue_length and model.queue[number, -1].any() else own[:0]
            q = torch.exp(model.prototypes(torch.cat([waiting, own])) / config.epsilon)
            for _ in range(config.sinkhorn_iterations):
                q = q / q.sum(0, keepdim=True)
                q = q / q.sum(1, keepdim=True)
            q = q[-count:]
            if config.queue_length:
                model.queue[number] = torch.cat([own, model.queue[number]])[: config.queue_length]
        terms += [-(q * log).sum(1).mean() for other, log in enumerate(logs) if other != number]
    return torch.stack(terms).mean()


def clip(model: Any, batch: Any) -> Tensor:
    """The mean of both cross-entropies: of each image's own caption, and of each caption's own image."""
    towers = model.towers
    image, text = (
        F.normalize(rows, dim=1) for rows in (towers.encode_image(batch.view1), towers.encode_text(batch.text))
    )
    logits, own = towers.logit_scale.exp() * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


MOCO_V3 = Plain(moco_v3, (("momentum_encoder", "base_encoder"),))
MOCO = Plain(moco, (("encoder_k", "encoder_q"),))
PLAIN = {
    "simsiam": Plain(simsiam),
    "moco_v3_vit": MOCO_V3,
    "moco_v3_resnet": MOCO_V3,
    "byol": Plain(byol, (("momentum_backbone", "backbone"), ("momentum_projector", "projector"))),
    "simclr": Plain(simclr),
    "moco_v1": MOCO,
    "moco_v2": MOCO,
    "swav": Plain(swav),
    "clip": Plain(clip),
    "mscn": Plain(simclr),  # its masks are a stage of the views
}


def crops_of(images: list[Tensor], config: PretrainConfig) -> views.Crops:
    """The crops of a step of images (3, H, W) uint8, with a caption each for a method that reads them."""
    crops = views.crop(images, np.arange(len(images)), 0, config)
    tokens = config.tokens([f"a picture of {number} things" for number in range(len(images))])
    return crops if tokens is None else crops._replace(text=torch.from_numpy(tokens))


def plain_step(model: Any, optimizer: Any, crops: views.Crops, config: PretrainConfig, device: str) -> None:
    """One step of a plain loop."""
    batch = views.augment(crops.to(device), 0, config)
    plain = PLAIN[config.method]
    plain.loss(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for target, online in plain.averages:
            pairs = zip(getattr(model, target).parameters(), getattr(model, online).parameters(), strict=True)
            for average, own in pairs:
                average.mul_(0.99).add_(own, alpha=0.01)


def our_step(model: Any, optimizer: Any, crops: views.Crops, config: PretrainConfig, device: str) -> None:
    """One step as ``pretrain.train`` makes it."""
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=False)
    statistics = [buffer.clone() for buffer in model.buffers()]
    loss = accumulate(model, scaler, Step(0, [crops], {}), config, device)
    model.before_step(TOTAL - 1)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or torch.inf)
    assert torch.isfinite(loss) and torch.isfinite(norm) and statistics
    optimizer.step()
    model.after_step(TOTAL, TOTAL)
    optimizer.zero_grad()


def compare(config: PretrainConfig, images: Path, steps: int, device: str) -> dict[str, Any]:
    """Seconds of our step and of the plain one, and the quartiles of their ratio, of ``steps`` pairs that take turns.

    On a CPU the seconds are the process's own, which other processes lengthen little.
    """
    paths = sorted(images.iterdir())
    crops = crops_of([decode(paths[number % len(paths)]) for number in range(config.batch_size)], config)
    torch.manual_seed(0)
    model = method_of(config).build(config).to(device).train()
    calls = []
    for step, own in ((our_step, model), (plain_step, copy.deepcopy(model))):
        optimizer = make_optimizer(own, config, own.constant_rate())
        calls.append(functools.partial(step, own, optimizer, crops, config, device))
    pairs = [[_seconds(call, device) for call in calls] for _ in range(2 + steps)][2:]  # after two to warm up
    ratios = np.percentile([ours / plain for ours, plain in pairs], QUARTILES)
    ours, plain = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"batch_size": config.batch_size, "ours": ours, "plain": plain, "ratio": ratios.tolist()}


def _seconds(call: Callable[[], None], device: str) -> float:
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    begun = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - begun


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = ["| a step | images | ours, ms | plain loop, ms | ours / plain (quartiles) |", "|---|---|---|---|---|"]
    for method, one in found.items():
        low, middle, high = one["ratio"]
        times = f"{1000 * one['ours']:.0f} | {1000 * one['plain']:.0f}"
        lines.append(f"| {method} | {one['batch_size']} | {times} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    return "\n".join(lines)
