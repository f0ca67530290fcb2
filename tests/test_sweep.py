"""The sweep: its stacked heads learn as separate ones do, and its choice never sees val."""

import json

import pytest
import torch
from torch import nn

from evaluate import sweep_cost
from evaluate.stacked_heads import StackedHeads, optimiser

RATES = (1e-3, 3e-2, 0.5)


def test_stacked_heads_equal_separately_trained_ones() -> None:
    torch.manual_seed(0)
    widths, classes, steps, batch = {"a": 6, "b": 10}, 5, 30, 24
    heads = StackedHeads(widths, RATES, classes)
    alone = {}
    for name, width in widths.items():
        for index in range(len(RATES)):
            head = nn.Linear(width, classes)
            rows = slice(index * classes, (index + 1) * classes)
            head.load_state_dict({"weight": heads.weights[name][rows], "bias": heads.biases[name][rows]})
            alone[name, index] = head, torch.optim.SGD(head.parameters(), lr=RATES[index], momentum=0.9)
    together = optimiser(heads, momentum=0.9)
    for step in range(steps):
        decay = 1 - step / steps
        features = {name: torch.randn(batch, width) for name, width in widths.items()}
        labels = torch.randint(classes, (batch,))
        for (name, index), (head, single) in alone.items():
            single.param_groups[0]["lr"] = RATES[index] * decay
            single.zero_grad()
            nn.functional.cross_entropy(head(features[name]), labels).backward()
            single.step()
        together.param_groups[0]["lr"] = max(RATES) * decay
        together.zero_grad(set_to_none=False)
        for half in (slice(0, 16), slice(16, None)):  # two micro-batches
            heads.accumulate({name: value[half] for name, value in features.items()}, labels[half], batch)
        together.step()
    features = {name: torch.randn(7, width) for name, width in widths.items()}
    logits = heads(features)
    for (name, index), (head, _) in alone.items():
        torch.testing.assert_close(logits[name][:, index], head(features[name]), rtol=1e-4, atol=1e-5)
    spread = logits["a"][:, 0] - logits["a"][:, 2]
    assert spread.abs().max() > 0.5, "the rates made no difference, so the comparison shows nothing"


def test_cost_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "vit_tiny_patch16_224", "--batch", "4", "--micro-batch", "2", "--steps", "1"]
    assert sweep_cost.main(arguments) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["ratio"] > 1 and measured["all_heads"] > measured["one_head"] > 0
