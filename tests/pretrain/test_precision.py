"""Mixed precision: the step of bf16 and fp16 beside float32's, and what stays float32."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain import checkpoint, train
from pretrain.data import views
from pretrain.data.loader import Step
from pretrain.methods import mae, siameseim
from pretrain.step import accumulate, start_model
from pretrain.vit import set_grad_checkpointing
from tests.pretrain.runs import write_images


def step(config, precision):
    """Loss, gradients and buffers after one step in a precision; float16 with a scaled loss, as on a GPU."""
    config = replace(config, precision=precision, batch_size=16)
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(16)
    ]
    crops = views.crop(images, np.arange(16), 0, config)
    torch.manual_seed(0)
    model = start_model(config, "cpu")
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad])
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    halves = [
        views.Crops(*(tensor if tensor is None else tensor[part] for tensor in crops))
        for part in (slice(0, 8), slice(8, 16))
    ]
    loss = accumulate(model, scaler, Step(0, halves, {}), config, "cpu")
    scaler.unscale_(optimizer)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss, gradients, dict(model.named_buffers())


@pytest.mark.parametrize("config", [siameseim.DEMO, mae.DEMO], ids=["siameseim", "mae"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("bf16_products", 0.02), ("fp16", 0.003)])
def test_a_step_is_float32s_to_the_bits_that_are_left(config, precision, tolerance):
    exact, short = (step(config, name) for name in ("fp32", precision))
    assert short[0].dtype == torch.float32 and short[0] != exact[0]
    torch.testing.assert_close(short[0], exact[0], rtol=tolerance, atol=0)
    assert short[1].keys() == exact[1].keys()
    whole = [torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for _, gradients, _ in (exact, short)]
    assert whole[1].dtype == torch.float32
    assert (whole[1] - whole[0]).norm() < 5 * tolerance * whole[0].norm()
    for name, value in short[2].items():
        assert value.dtype == exact[2][name].dtype
        torch.testing.assert_close(value.double(), exact[2][name].double(), rtol=5 * tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_with_bf16_products_nothing_else_is_short(grad_checkpointing):
    """Each product is that of factors rounded to bf16; what it gives is kept in float32, in the second pass too."""
    config = replace(siameseim.DEMO, precision="bf16_products", batch_size=4)
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8) for _ in range(4)]
    crops = views.crop(images, np.arange(4), 0, config)
    model, seen = start_model(config, "cpu"), []
    if grad_checkpointing:
        set_grad_checkpointing(model)

    def look(module, inputs, output):
        seen.append(output.dtype)
        if isinstance(module, torch.nn.Linear):
            product = F.linear(*(part.bfloat16() for part in (inputs[0], module.weight, module.bias)))
            assert torch.equal(output, product.float())

    for module in list(model.modules())[1:]:  # the first is the model, which gives Outputs
        module.register_forward_hook(look)
    accumulate(model, torch.amp.GradScaler("cpu", enabled=False), Step(0, [crops], {}), config, "cpu")
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "bf16_products"])
def test_a_bf16_run_resumes_to_the_same_bits(precision, tmp_path, monkeypatch):
    common = [
        "--data",
        str(write_images(tmp_path / "images")),
        "--preset",
        "demo",
        "--device",
        "cpu",
        "--set",
        f"precision={precision}",
    ]
    common += [
        text
        for name, value in {"batch_size": 8, "epochs": 2, "warmup_epochs": 1}.items()
        for text in ("--set", f"{name}={value}")
    ]
    assert train.main([*common, "--out", str(tmp_path / "unbroken")]) == 0
    told = train.Log.step

    def stop(self, number, *rest):
        told(self, number, *rest)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Log, "step", stop)
    assert train.main([*common, "--out", str(tmp_path / "broken")]) == train.EXIT_SAVED
    monkeypatch.undo()
    assert train.main([*common, "--out", str(tmp_path / "broken")]) == 0
    first, second = (
        torch.load(tmp_path / name / checkpoint.NAME, weights_only=True)["model"] for name in ("unbroken", "broken")
    )
    assert all(value.dtype == torch.float32 for value in first.values() if value.is_floating_point())
    assert all(torch.equal(first[name], value) for name, value in second.items())
