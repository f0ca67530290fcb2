"""Two gloo processes compute what one does for the same global batch: every sum is of the same numbers, in another
order.

The bounds are about four times the differences measured in float32: a sum of n numbers in another order moves by some
1e-7 of its size.
"""

import json
import multiprocessing
import os
import socket
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain import distributed, methods, parity
from pretrain.data import views
from pretrain.geometry import RelativeGeometry
from pretrain.methods import configure, siameseim
from pretrain.methods.siameseim import DEMO
from pretrain.optimizer import make_optimizer, set_rate
from pretrain.vit import set_grad_checkpointing
from tests.pretrain.runs import Run, write_images

CONFIG = replace(
    DEMO,
    embed_dim=24,
    depth=1,
    decoder_embed_dim=24,
    projector_depth=1,
    predictor_depth=1,
    neg_weight=0.5,
    batch_size=8,
)
NARROW = ["block=bottleneck", "width_per_group=4"]
SMALL = {  # the settings of a method's demo
    "simsiam": NARROW,
    "moco_v3_vit": ["embed_dim=24", "num_heads=2", "depth=1", "optimizer=sgd"],  # AdamW makes steps of rounding
    "moco_v3_resnet": NARROW,
    "byol": NARROW,
    "simclr": NARROW,
    "moco_v1": [*NARROW, "bn_group=4"],
    "moco_v2": [*NARROW, "bn_group=4"],
    "swav": [*NARROW, "queue_length=16", "freeze_prototypes_iterations=1", "small_size=32"],
    "mscn": NARROW,
    "clip": ["embed_dim=24", "num_heads=2", "depth=1", "text_depth=1", "optimizer=sgd"],
}
TWO_PROCESSES = Path(__file__).parents[1] / "golden" / "methods" / "moco_v2_two_processes_step_a.json"
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["pretrain.methods.siameseim"])


def _batch(count: int) -> views.Batch:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = draw(count, CONFIG.num_patches).argsort(1) < CONFIG.num_masked
    geometry = RelativeGeometry(
        draw(count), draw(count), draw(count).exp(), draw(count).exp(), draw(count) > 0, draw(count)
    )
    return views.Batch(
        draw(count, 3, 32, 32),
        draw(count, 3, 32, 32),
        mask,
        geometry,
        torch.arange(count),
        draw(count, CONFIG.num_patches),
    )


def _part(batch: views.Batch, rows: slice) -> views.Batch:
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    whole = parts.pop("geometry")
    geometry = RelativeGeometry(*(getattr(whole, field.name)[rows] for field in fields(whole)))
    return views.Batch(
        geometry=geometry, **{name: None if value is None else value[rows] for name, value in parts.items()}
    )


def _train_frugally(accumulation: int) -> dict[str, Tensor]:
    return _train(accumulation, grad_checkpointing=True)


def _train(accumulation: int, steps: int = 3, grad_checkpointing: bool = False) -> dict[str, Tensor]:
    """Steps on one global batch, in as many processes as there are: loss, C, gradients of the first, and all weights in
    the end."""
    world, rank = distributed.world_size(), distributed.rank()
    torch.manual_seed(0)
    model = siameseim.build(CONFIG)
    with torch.no_grad():  # a target that is not the online branch
        for parameter in model.target.parameters():
            parameter.mul_(1.1)
    if grad_checkpointing:
        set_grad_checkpointing(model)
    parallel = distributed.DataParallel(model) if world > 1 else model
    # Not AdamW, whose first steps are of one size whatever the gradient's: of one that is 0 but for rounding it would
    # make a step.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch, found, average = _batch(CONFIG.batch_size), {}, distributed.mean_over_ranks
    size = CONFIG.batch_size // accumulation // world

    def recorded(tensor: Tensor) -> Tensor:
        found[f"C/{len(found)}"] = average(tensor)
        return average(tensor)

    for step in range(steps):
        siameseim.distributed.mean_over_ranks = recorded if step == 0 else average
        loss = torch.zeros(())
        for number in range(accumulation):
            begin = (number * world + rank) * size
            with parallel.no_sync() if world > 1 and number + 1 < accumulation else torch.enable_grad():
                part = parallel(_part(batch, slice(begin, begin + size))).loss / accumulation
                part.backward()
            loss += part.detach()
        found[f"loss/{step}"] = average(loss)
        if step == 0:
            found |= {f"gradient/{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        model.update_target(0.9)
    kinds = {"target.": "EMA/", "online.": "weights/"}
    for name, value in model.state_dict().items():
        kind = "statistics/" if "running" in name else kinds.get(name[:7], "weights/")
        found[kind + name] = value.float()
    return found


def _method(name: str) -> dict[str, Tensor]:
    """Steps of a method in float64, its optimizer's included, in as many processes as there are: losses, gradients of
    the first and all tensors in the end."""
    world, rank = distributed.world_size(), distributed.rank()
    config = replace(configure(f"{name}_demo", SMALL[name]), batch_size=8)
    torch.manual_seed(0)
    model = methods.method_of(config).build(config).double()
    with torch.no_grad():  # residual branches that start at 0 would say nothing
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    parallel = distributed.DataParallel(model) if world > 1 else model
    optimizer = make_optimizer(model, config, model.constant_rate())
    size = config.batch_size // world
    views_of_all = torch.randn(2 + config.small_views, config.batch_size, 3, 32, 32, dtype=torch.float64)
    mine = slice(rank * size, (rank + 1) * size)
    view1, view2, *small = views_of_all[:, mine]
    tokens = config.tokens([f"a picture of {number} things" for number in range(config.batch_size)])
    text = None if tokens is None else torch.from_numpy(tokens)[mine]
    found = {}
    for step in range(3):
        set_rate(optimizer, 0.01)
        torch.manual_seed(100 * step + rank)  # random choices that all processes share are the first's
        others = torch.stack(small, dim=1) if small else None
        loss = parallel(views.Batch(view1, view2, None, None, torch.arange(size), small=others, text=text)).loss
        loss.backward()
        model.before_step(step)
        found[f"loss/{step}"] = distributed.mean_over_ranks(loss)
        if step == 0:
            found |= {f"gradient/{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(step + 1, 3)
    return found | {f"state/{name}": value.double() for name, value in model.state_dict().items()}


def _golden(path: str) -> dict[str, Tensor]:
    """The step of a file in as many processes as there are: loss, outputs of all images, gradients and state."""
    golden = json.loads(Path(path).read_text())
    prepared, rank, world = parity.prepare(golden), distributed.rank(), distributed.world_size()
    model, size = prepared.model, prepared.config.batch_size // world
    model.update_target(golden["config"]["momentum"])
    view1, view2 = (prepared.inputs[name][rank * size : (rank + 1) * size] for name in ("view1", "view2"))
    parallel = distributed.DataParallel(model)
    out = parallel(views.Batch(view1, view2, None, None, torch.arange(size)))
    out.loss.backward()
    found = {"loss": distributed.mean_over_ranks(out.loss)}
    found |= {name: distributed.gather_rows(getattr(out, name).detach())[0] for name in ("logits", "key_normalised")}
    found |= {f"gradient/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {f"state/{name}": value for name, value in model.state_dict().items()}


def _norm(accumulation: int) -> dict[str, Tensor]:
    """One BatchNorm of tokens: output, gradients, running statistics."""
    world, rank = distributed.world_size(), distributed.rank()
    generator = torch.Generator().manual_seed(0)
    tokens = 3 * torch.randn(8, 5, 6, generator=generator) + 7
    gradient = torch.randn(8, 5, 6, generator=generator)
    norm = siameseim.TokenBatchNorm(6)
    nn.init.normal_(norm.bn.weight, generator=generator)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    mine = tokens[share].clone().requires_grad_()
    output = norm(mine)
    output.backward(gradient[share])
    whole = {"output": torch.zeros_like(tokens), "gradient": torch.zeros_like(tokens)}
    whole["output"][share], whole["gradient"][share] = output.detach(), mine.grad
    whole |= {"weight": norm.bn.weight.grad, "bias": norm.bn.bias.grad}
    summed = {name: distributed.differentiable_sum_over_ranks(value) for name, value in whole.items()}
    return summed | {name: value.float() for name, value in norm.bn.named_buffers()}


def _process(rank: int, port: int, action: str, argument: int | str, path: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)
    )
    distributed.start("cpu")
    found = globals()[action](argument)
    torch.save(found, path.with_suffix(f".{rank}"))
    distributed.end(0)


def _in_two(action: str, argument: int | str, folder: Path) -> list[dict[str, Tensor]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = folder / "found"
    processes = [SPAWN.Process(target=_process, args=(rank, port, action, argument, path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(path.with_suffix(f".{rank}"), weights_only=True) for rank in range(2)]


def _differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each kind, as a share of the largest number of its tensor."""
    assert first.keys() == second.keys()
    found: dict[str, float] = {}
    for name, value in first.items():
        difference = (second[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
        kind = name.split("/")[0]
        found[kind] = max(found.get(kind, 0.0), difference.item())
    return found


BOUNDS = {"loss": 1e-6, "C": 1e-6, "statistics": 1e-6, "EMA": 2e-6, "weights": 2e-6, "gradient": 1e-5}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_correlation_gradient_and_moving_average_of_two_processes(tmp_path, accumulation):
    one = _train(accumulation)
    two = _in_two("_train", accumulation, tmp_path)
    assert all(torch.equal(two[0][name], two[1][name]) for name in two[0]), "the processes differ"
    found = _differences(one, two[0])
    print(found)
    assert found.keys() == BOUNDS.keys()
    assert all(found[kind] <= bound for kind, bound in BOUNDS.items()), found


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_a_method_that_normalizes_over_all(tmp_path, name):
    """The gradient of a shift before a norm is 0 but for rounding, so differences are shares of the largest number of
    all tensors of a kind."""
    one = _method(name)
    two = _in_two("_method", name, tmp_path)
    own = name.startswith(("moco_v1", "moco_v2"))  # each process has running statistics of its own
    same = [key for key in two[0] if not (own and "running" in key)]
    assert all(torch.equal(two[0][key], two[1][key]) for key in same), "the processes differ"
    assert one.keys() == two[0].keys()
    for kind in ("loss", "gradient", "state"):
        names = [key for key in one if key.startswith(kind)]
        gap = max((two[0][key] - one[key]).abs().max().item() for key in names)
        found = gap / max(one[key].abs().max().item() for key in names)
        print(f"{name} {kind} {found:.1e}")
        assert found <= 1e-10


def test_moco_in_two_processes_equals_the_reference_in_two(tmp_path):
    """Which gathers, shuffles and puts back; each process has the running statistics of its own part."""
    expected = json.loads(TWO_PROCESSES.read_text())["expected"]
    for rank, found in enumerate(_in_two("_golden", str(TWO_PROCESSES), tmp_path)):
        wanted = {name: expected[name] for name in ("loss", "logits", "key_normalised")}
        wanted |= {f"gradient/{name}": value for name, value in expected["grads"].items()}
        state = expected["after"] | expected[f"after_process_{rank}"]
        wanted |= {f"state/{name}": value for name, value in state.items()}
        gap = parity.worst(found, wanted)
        print(f"process {rank} {gap:.1e}")
        assert len(state) == 125 and gap <= 1e-6


def test_every_new_method_is_here():
    assert {*SMALL, "siameseim", "mae"} == {*methods.METHODS}


def test_checkpointed_blocks_give_the_same_bits_in_two_processes(tmp_path):
    plain, frugal = (_in_two(action, 2, tmp_path)[0] for action in ("_train", "_train_frugally"))
    assert plain.keys() == frugal.keys() and all(torch.equal(frugal[name], value) for name, value in plain.items())


def test_batch_norm_over_two_processes(tmp_path):
    two = _in_two("_norm", 1, tmp_path)
    found = _differences(_norm(1), two[0])
    print(found)
    assert max(found.values()) <= 5e-6, found


def test_micro_batches_are_split_over_the_processes(tmp_path):
    """What is normalized together is processes x micro-batch: 1 x 4 is 2 x 2, but not 1 x 8."""
    images = write_images(tmp_path / "images")

    def losses(processes: int, micro_batch: int) -> list[float]:
        out = tmp_path / f"{processes} {micro_batch}"
        assert Run(images, out, "--micro-batch", str(micro_batch), processes=processes).statuses() == [0] * processes
        return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]

    one = losses(1, 4)
    assert losses(2, 2) == pytest.approx(one, rel=1e-4)
    assert losses(1, 8) != pytest.approx(one, rel=1e-3)
    again = Run(images, tmp_path / "1 4", "--micro-batch", "8")
    assert again.statuses() == [0] and "8 images are normalized together from here on, not 4 as before" in again.said()
