"""Mutated files: each converts into the right encoder with a passing certificate, or one sentence names the fault.

    CONVERT_FUZZ=1000 uv run pytest tests/checkpoints/test_fuzz.py        a thousand mutations; 150 without the variable
    CONVERT_FUZZ_SEED=7                                       others

A mutation changes one key of a tiny file of a random format. The right encoder is that of the untouched file: what the
encoder needs may not be missing, changed in shape or type, or not finite, and whatever else happens to the file may not
change a feature.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate import encoder
from evaluate.checkpoints import conversion, formats
from evaluate.runtime.errors import UserError
from tests.checkpoints.tiny_files import GROUPS, checkpoint_of

MUTATIONS = int(os.environ.get("CONVERT_FUZZ", "150"))
SEED = int(os.environ.get("CONVERT_FUZZ_SEED", "0"))
FORMATS = (
    "siameseim",
    "mae",
    "finetuned",
    "dino",
    "ibot",
    "moco_v3_vit",
    "beit",
    "beit_blocks",
    "clip_openai",
    "open_clip_timm",
    "hf_vit",
    "hf_vit_mae",
    "hf_vit_model",
    "hf_clip",
    "mmpretrain_vit",
    "torchvision",
    "moco",
    "simsiam",
    "byol_sthalles",
    "vissl",
)
OTHER_TYPES = (torch.int64, torch.bool, torch.complex64, torch.float64, torch.uint8)
OTHER_THINGS = (
    "text",
    None,
    3,
    2.5,
    [1, 2],
    {"a": 1},
    {"weight": torch.zeros(2)},
    torch.zeros(2, 2).to_sparse(),
    torch.nn.Parameter(torch.zeros(3)),
)
State = dict[Any, Any]


def rename(state: State, key: str, pick: random.Random) -> None:
    parts = key.split(".")
    names = (
        key + "x",
        "x." + key,
        key.upper(),
        parts[-1],
        "",
        key.replace("0", "7"),
        ".".join(parts[1:]),
        "module." + key,
        "ключ." + key,
        "a\n" + key,
    )
    name = pick.choice([name for name in names if name != key and name not in state])
    state[name] = state.pop(key)


def renumber(state: State, key: str, pick: random.Random) -> None:
    """A name that is no text."""
    state[pick.choice((7, ("a", 1), None))] = state.pop(key)


def drop(state: State, key: str, pick: random.Random) -> None:
    del state[key]


def add(state: State, key: str, pick: random.Random) -> None:
    ending = pick.choice((".extra", "_2", ".weight", ".0.bias"))
    state[key + ending] = torch.randn(pick.choice(((), (3,), (128,), (0,))))


def reshape(state: State, key: str, pick: random.Random) -> None:
    tensor = state[key]
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor.repeat(3),
        lambda: tensor[None],
        lambda: tensor.flatten()[:-1],
        lambda: tensor[:0] if tensor.dim() else torch.zeros(0),
        lambda: tensor.flatten(),
        lambda: tensor.new_zeros(1).expand(10**6),
        lambda: torch.zeros(()),
    ]
    if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1]:
        changes.append(lambda: tensor.T)
    state[key] = pick.choice(changes)()


def swap(state: State, key: str, pick: random.Random) -> None:
    """Exchanged with a tensor of another shape."""
    others = sorted(name for name, tensor in state.items() if tensor.shape != state[key].shape)
    other = pick.choice(others)
    state[key], state[other] = state[other], state[key]


def retype(state: State, key: str, pick: random.Random) -> None:
    state[key] = state[key].to(pick.choice(OTHER_TYPES))


def replace(state: State, key: str, pick: random.Random) -> None:
    state[key] = pick.choice(OTHER_THINGS)


def poison(state: State, key: str, pick: random.Random) -> None:
    tensor = state[key].clone().float().reshape(-1)
    if tensor.numel():
        tensor[pick.randrange(tensor.numel())] = pick.choice((float("nan"), float("inf"), -float("inf")))
    state[key] = tensor.reshape(state[key].shape)


KINDS = (rename, renumber, drop, add, reshape, swap, retype, replace, poison)


def cut(file: Path, pick: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: pick.randrange(len(content))])


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> dict[str, tuple[dict[str, Any], str]]:
    """By format the content of a file and the fingerprint of its encoder."""
    folder = tmp_path_factory.mktemp("untouched")
    found = {}
    for name in FORMATS:
        content = checkpoint_of(formats.by_name(name))
        torch.save(content, folder / "file.pth")
        found[name] = content, conversion.convert(folder / "file.pth", folder / "encoder.safetensors").fingerprint
    return found


def group_of(name: str) -> str:
    known = formats.by_name(name)
    return next(iter(known.branches.values())).state_dict_path or GROUPS.get(name, known.state_dict_paths[0])


def mutated(content: dict[str, Any], name: str, kind: Any, pick: random.Random) -> dict[str, Any]:
    """A copy of the file's content with one key of the encoder's state dict changed."""
    copied, parts = dict(content), [part for part in group_of(name).split("/") if part]
    state = copied
    for part in parts:
        state[part] = dict(state[part])
        state = state[part]
    extras = {key: state.pop(key) for key in list(state) if not isinstance(state[key], torch.Tensor)}
    kind(state, pick.choice(sorted(state)), pick)
    state.update(extras)
    return copied


def outcome(file: Path, out: Path, right: str) -> str:
    """Says "converted" or "refused", or else what went wrong."""
    out.unlink(missing_ok=True)
    encoder.certificate_path(out).unlink(missing_ok=True)
    try:
        made = conversion.convert(file, out)
    except UserError as error:
        if str(file) not in str(error) or "\n" in str(error):
            return f"not one sentence that names the file: {error}"
        return "refused" if [path.name for path in file.parent.iterdir()] == [file.name] else "refused, but left a file"
    except Exception as error:  # whatever it is, it is what this test looks for
        return f"{type(error).__name__}: {error}"
    if not made.passed or made.fingerprint != right or encoder.load(out).fingerprint != right:
        return f"converted into another encoder ({made.source_format})"
    return "converted"


def test_mutated_files_convert_rightly_or_name_the_fault(untouched, tmp_path) -> None:
    file, out = tmp_path / "file.pth", tmp_path / "encoder.safetensors"
    counts: Counter[str] = Counter()
    faults = []
    for index in range(MUTATIONS):
        pick = random.Random(f"{SEED} {index}")
        name, kind = pick.choice(FORMATS), pick.choice((*KINDS, cut))
        content, right = untouched[name]
        torch.save(
            content if kind is cut else mutated(content, name, kind, pick),
            file,
            _use_new_zipfile_serialization=pick.random() < 0.8,
        )
        if kind is cut:
            cut(file, pick)
        came = outcome(file, out, right)
        counts[came] += 1
        if came not in ("converted", "refused"):
            faults.append(f"mutation {index} of seed {SEED}, {kind.__name__} in {name}: {came}")
    print(
        f"{MUTATIONS} mutations: {counts['converted']} converted into the right encoder, {counts['refused']} refused "
        f"by name"
    )
    assert not faults, "\n".join(faults)
    assert counts["converted"] and counts["refused"] > MUTATIONS / 2


ODD = ("text", [], [1, 2], {}, {"a": []}, None, True, -1, 10**30, 2.5, float("nan"), ["a", "b", "c"], [0, 0, 0])
NAMES = ("num_heads", "mean", "std", "layer_norm_eps", "activation", "pooling", "interpolation", "img_size", "depth")
BESIDE = {
    "hf_vit_model": ("layer_norm_eps", "hidden_act", "num_attention_heads", "vision_config", "encoder_spec"),
    "open_clip_timm": ("model_cfg", "preprocess_cfg"),
    "timm": ("pretrained_cfg", "mean", "std"),
}


def some(cases: list[Any]) -> list[Any]:
    """All of them in a long run, every seventh otherwise."""
    return cases if MUTATIONS >= 1000 else cases[::7]


@pytest.mark.parametrize("place", ["args", "config", "encoder_spec", "epoch"])
def test_odd_settings_in_the_file(place, tmp_path) -> None:
    """Whatever a file says of itself: obeyed, ignored or refused, never a traceback."""
    file, out = tmp_path / "file.pth", tmp_path / "encoder.safetensors"
    state = checkpoint_of(formats.by_name("mae"))["model"]
    for value in some([*ODD, *({name: odd} for name in NAMES for odd in ODD)]):
        torch.save({"model": state, place: value}, file)
        came = outcome(file, out, "")
        assert came == "refused" or came.startswith("converted into"), f"{place} {value!r}: {came}"


@pytest.mark.parametrize("name", BESIDE)
def test_odd_settings_beside_the_file(name, tmp_path) -> None:
    torch.save(checkpoint_of(formats.by_name(name)), tmp_path / "pytorch_model.bin")
    for content in ("[]", "3", "{", *some([json.dumps({key: value}) for key in BESIDE[name] for value in ODD])):
        (tmp_path / "config.json").write_text(content)
        try:
            conversion.convert(tmp_path, tmp_path / "encoder.safetensors")
        except UserError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
