"""``--grad-checkpointing`` changes memory and time alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain import checkpoint, methods, train
from pretrain.benchmark import __main__
from pretrain.data import views
from pretrain.methods import mae, siameseim
from pretrain.vit import blocks, set_grad_checkpointing
from tests.pretrain.runs import write_images

COMMON = {"depth": 2, "batch_size": 4, "drop_path_rate": 0.5}
TINY = {
    "siameseim": replace(siameseim.DEMO, **COMMON, projector_depth=1, predictor_depth=1),
    "mae": replace(mae.DEMO, **COMMON, decoder_depth=1),
}


@pytest.mark.parametrize("method", TINY)
def test_a_step_is_the_same_to_the_last_bit(method):
    config = TINY[method]
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(4)
    ]
    batch = views.augment(views.crop(images, np.arange(4), 0, config), 0, config)
    models, operations = [], []
    for frugal in (False, True):
        torch.manual_seed(0)
        model = methods.method_of(config).build(config).train()
        if frugal:
            set_grad_checkpointing(model)
        with FlopCounterMode(display=False) as counter:
            model(batch).loss.backward()
        models.append(model)
        operations.append(counter.get_total_flops())
    plain, frugal = models
    assert operations[1] > 1.1 * operations[0]  # it does compute again
    assert all(
        torch.equal(frugal.state_dict()[name], value) for name, value in plain.state_dict().items()
    )  # BatchNorm counted once
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert gradients
    assert all(torch.equal(dict(frugal.named_parameters())[name].grad, value) for name, value in gradients.items())


def test_a_block_keeps_two_fifths():
    block, tokens = blocks(1, 64, 2, mlp_ratio=4)[0].train(), torch.randn(3, 50, 64, requires_grad=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}

    def kept() -> float:
        """In units of the block's input."""
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        def keep_input(
            part: torch.nn.Module, inputs: tuple[torch.Tensor]
        ) -> None:  # a checkpoint holds its input itself
            keep(inputs[0])

        hooks = [part.register_forward_pre_hook(keep_input) for part in (block.attn, block.mlp)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            assert block(tokens).requires_grad
        for hook in hooks:
            hook.remove()
        return sum(storages.values()) / tokens.untyped_storage().nbytes()

    assert kept() == pytest.approx(10, abs=0.2)  # 12 on other devices, which keep what a LayerNorm gives
    set_grad_checkpointing(block)
    assert kept() == pytest.approx(4, abs=0.2)


def test_a_run_takes_the_option(tmp_path, monkeypatch):
    frugal = []
    monkeypatch.setattr(train, "set_grad_checkpointing", lambda model: frugal.append(set_grad_checkpointing(model)))
    sizes = {"batch_size": 4, "epochs": 1, "warmup_epochs": 1, "depth": 1, "projector_depth": 1, "predictor_depth": 1}
    common = [
        "--data",
        str(write_images(tmp_path / "images", 8)),
        "--preset",
        "demo",
        "--device",
        "cpu",
        "--monitor-epochs",
        "0",
    ]
    common += [text for name, value in sizes.items() for text in ("--set", f"{name}={value}")]
    states = []
    for options in ([], ["--grad-checkpointing"]):
        out = tmp_path / f"out{len(options)}"
        assert train.main([*common, "--out", str(out), *options]) == 0
        assert len(frugal) == len(options)
        states.append(torch.load(out / checkpoint.NAME, weights_only=True)["model"])
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_the_benchmark_takes_the_option(capsys):
    arguments = [
        "--preset",
        "demo",
        "--set",
        "batch_size=2",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--no-baseline",
        "--grad-checkpointing",
    ]
    assert __main__.main(arguments) == 0
    assert "peak memory" in capsys.readouterr().out
