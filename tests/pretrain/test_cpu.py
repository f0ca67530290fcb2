"""A run on a CPU: a rule chooses the kernel of attention, freed memory is kept, and the faster precision is named."""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pretrain import attention, cpu, train
from pretrain.attention import EXPLICIT_TOKENS, attend, is_explicit
from pretrain.methods.siameseim import TokenBatchNorm
from pretrain.vit import LAYER_NORM, after, blocks
from tests.pretrain.runs import TINY, write_images

FILLS = """
import resource, sys, torch
from pretrain import cpu
assert cpu.keep_freed_memory(sys.argv[1] == "with")
for _ in range(20):  # glibc below 2.38 takes some before a hole fits
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2 ** 26, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(
    ("tokens", "dtype", "device", "expected"),
    [
        (197, torch.bfloat16, "cpu", True),
        (197, torch.float16, "cpu", True),
        (EXPLICIT_TOKENS + 1, torch.bfloat16, "cpu", False),
        (197, torch.float32, "cpu", False),
        (197, torch.float64, "cpu", False),
        (197, torch.bfloat16, "meta", False),  # any other device
    ],
)
def test_the_kernel_follows_from_shape_type_and_device(tokens, dtype, device, expected):
    assert is_explicit(torch.empty(2, tokens, 3, 3, 4, dtype=dtype, device=device)) is expected


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_both_kernels_give_the_formula(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(2, 20, 3, 3, 8, generator=generator)
    exact = F.scaled_dot_product_attention(*parts.double().permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
    found = attend(parts.to(dtype))
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.parametrize("at_once", [1, 2 * 3 * 20**2, 10**6])  # scores: of one image, of two, of all
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])  # the second as in bf16_products
def test_the_formula_has_its_gradient_and_keeps_its_input_alone(at_once, storage, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(5, 20, 3, 3, 8, generator=generator).to(storage).requires_grad_()
    gradient, kept = torch.randn(5, 20, 24, generator=generator).to(storage), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
    ):
        result = attend(parts)
    result.backward(gradient)
    exact = parts.detach().double().requires_grad_()
    attend(exact).backward(gradient.double())
    assert parts.grad.dtype == storage
    assert (parts.grad - exact.grad).norm() < 0.01 * exact.grad.norm()
    assert [tensor.data_ptr() for tensor in kept] == [parts.data_ptr()]


@pytest.mark.parametrize("norm", [LAYER_NORM, TokenBatchNorm])
def test_a_norm_that_is_computed_again_changes_memory_alone(norm):
    def step(again):
        """Result, gradients and running statistics of norm and layer, and how many tensors are kept between."""
        torch.manual_seed(0)
        normalize, layer, tokens = norm(16), torch.nn.Linear(16, 8), torch.randn(3, 5, 16, requires_grad=True)
        kept = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.add(tensor.data_ptr()) or tensor, torch.clone
        ):
            result = after(normalize, layer, tokens) if again else layer(normalize(tokens))
        result.square().sum().backward()
        gradients = [part.grad for part in (tokens, *normalize.parameters(), *layer.parameters())]
        return [result, *gradients, *normalize.buffers()], len(kept)

    (plain, all_kept), (repeated, few_kept) = step(False), step(True)
    assert all(torch.equal(*pair) for pair in zip(plain, repeated, strict=True)) and few_kept < all_kept


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_of_16_bits_calls_no_fused_kernel_on_a_cpu(fused, monkeypatch):
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *parts: calls.append(1) or kernel(*parts))
    with torch.autocast("cpu", torch.bfloat16, enabled=not fused):
        blocks(2, 32, 2, mlp_ratio=4)(torch.randn(2, 5, 32)).sum().backward()
    assert len(calls) == (2 if fused else 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is asked")
def test_freed_memory_is_kept():
    """The same 64 MiB again are no new pages of the system, which come one by one."""
    faults = {}
    for how in ("with", "without"):
        command = [sys.executable, "-c", FILLS, how]
        faults[how] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["without"] > 32 and faults["with"] < faults["without"] / 8, faults


def test_another_malloc_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(cpu.ctypes, "CDLL", None)
    assert not cpu.keep_freed_memory(True)


@pytest.mark.parametrize(
    ("able", "precision", "faster"),
    [
        ("avx512_bf16", "fp32", "bf16"),
        ("amx_bf16", "tf32", "bf16"),
        ("avx512_bf16", "bf16_products", "bf16"),
        ("avx512_bf16", "bf16", None),
        ("avx512_f", "bf16", "fp32"),
        ("avx512_f", "bf16_products", "fp32"),
        ("avx512_f", "fp32", None),
    ],
)
def test_the_faster_precision_follows_from_what_the_processor_can_do(able, precision, faster, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True, "bf16": False})
    said = cpu.faster_precision(precision)
    assert said is None if faster is None else said.startswith(f"precision {faster} would be faster than {precision} ")


def test_a_run_says_once_what_would_be_faster_and_keeps_memory_after_its_first_step(tmp_path, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(cpu, "keep_freed_memory", kept.append)
    images = write_images(tmp_path / "images")
    assert train.main([*TINY, "--set", "epochs=1", "--data", str(images), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("precision bf16 would be faster than fp32 on this CPU") == 1 and kept == [
        False,
        True,
    ]
