"""``torch.compile`` changes the time alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from pretrain import checkpoint, methods, train
from pretrain.benchmark.plain import crops_of
from pretrain.data import views
from pretrain.methods import mae, siameseim
from pretrain.step import PRECISIONS, start_model
from pretrain.vit import set_grad_checkpointing

TINY = {
    "siameseim": replace(siameseim.DEMO, depth=1, projector_depth=1, predictor_depth=1, batch_size=4),
    "mae": replace(mae.DEMO, depth=1, decoder_depth=1, batch_size=4),
}


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # traced alone; made into C++
@pytest.mark.parametrize("method", TINY)
@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_a_compiled_step_gives_the_same_loss_gradients_and_state(method, backend, grad_checkpointing):
    config = TINY[method]
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(4)
    ]
    batch = views.augment(views.crop(images, np.arange(4), 0, config), 0, config)
    torch.manual_seed(0)
    plain, compiled = (methods.method_of(config).build(config).train() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    if grad_checkpointing:
        set_grad_checkpointing(compiled)
    compiled.compile(backend=backend)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    losses = []
    for model in (plain, compiled):
        losses.append(model(batch).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert gradients
    for name, parameter in compiled.named_parameters():
        if name in gradients:
            scale = gradients[name].abs().max().item()
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5 * scale, msg=name)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [*methods.METHODS, "siameseim bf16", "siameseim bf16_products"])
def test_nothing_breaks_the_graph(method):
    """The whole step is one graph: ``fullgraph`` raises where something is left to Python."""
    name, _, precision = method.partition(" ")
    settings = ["batch_size=8", f"precision={precision or 'fp32'}"]
    settings += ["bn_group=4"] if name in ("moco_v1", "moco_v2") else []
    config = methods.configure("demo" if name == "siameseim" else f"{name}_demo", settings)
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8) for _ in range(8)]
    batch = views.augment(crops_of(images, config), 0, config)
    losses, dtype = [], PRECISIONS.get(config.precision)
    torch.compiler.reset()  # else a graph of the same model without hooks would do for one with them
    for compiled in (False, True):
        torch.manual_seed(0)
        model = start_model(config, "cpu")
        if compiled:
            model.compile(backend="eager", fullgraph=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            losses.append(model(batch).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def test_swavs_full_queue_needs_no_graph_of_its_own():
    config = methods.configure("swav_demo", ["batch_size=8", "queue_length=16"])
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8) for _ in range(8)]
    batch = views.augment(crops_of(images, config), 0, config)
    torch.manual_seed(0)
    plain = start_model(config, "cpu").eval()  # else the second pass has other statistics
    compiled, counter = copy.deepcopy(plain), CompileCounter()
    compiled.compile(backend=counter, fullgraph=True)
    rows = torch.nn.functional.normalize(torch.randn(plain.queue.shape), dim=2)
    found = []
    for queue in (torch.zeros_like(rows), rows):
        for model in (plain, compiled):
            model.queue.copy_(queue)
        found.append(plain(batch).assignment1)
        torch.testing.assert_close(compiled(batch).assignment1, found[-1])
    assert counter.frame_count == 1 and not torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize(
    "stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)]
)  # the first does not make C++
def test_a_run_takes_the_option(stance, tmp_path, monkeypatch):
    compiled, compile_module = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **how: compiled.append(module) or compile_module(module, **how)
    )
    (tmp_path / "images" / "n1").mkdir(parents=True)
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "n1" / f"{i}.png")
    sizes = {"batch_size": 4, "epochs": 1, "warmup_epochs": 1, "depth": 1, "projector_depth": 1, "predictor_depth": 1}
    common = ["--data", str(tmp_path / "images"), "--preset", "demo", "--device", "cpu", "--monitor-epochs", "0"]
    common += [text for name, value in sizes.items() for text in ("--set", f"{name}={value}")]
    states = []
    with torch.compiler.set_stance(stance):
        for options in ([], ["--compile"]):
            out = tmp_path / f"out{len(options)}"
            assert train.main([*common, "--out", str(out), *options]) == 0
            assert len(compiled) == len(options)
            states.append(torch.load(out / checkpoint.NAME, weights_only=True)["model"])
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)
