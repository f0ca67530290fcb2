"""The frozen pass: what it keeps, what it does again, and what it never mixes up."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate import knn
from evaluate.classification import cached_pass, features
from evaluate.data import imagenet, loader
from evaluate.data.transforms import CenterCrop, normalize
from evaluate.encoder.model import Encoder
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from tests.factories import class_token_vit
from tests.worlds import WNIDS, in_order, write_folder

CROP = CenterCrop(32, None, "bicubic")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data/imagenet/train", 40, seed=1)
    write_folder(tmp_path / "data/imagenet/val", 20, seed=2)
    return tmp_path / "data"


@pytest.fixture
def env(data: Path, tmp_path: Path) -> Env:
    (tmp_path / "out/knn").mkdir(parents=True)
    return Env(data, tmp_path / "out/knn")


def files_of(env: Env) -> dict[Path, tuple[int, bytes]]:
    """Time of the last change and content of every shard."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(env.out_dir.parent.glob("features/*/*.safetensors"))
    }


def test_every_block_and_token_is_what_the_encoder_gives(data: Path, env: Env) -> None:
    val, encoder = imagenet.val_set(data), class_token_vit()
    found = features.extract(encoder, val, CROP, env)
    pixels = torch.cat([part for part, _ in loader.batches(loader.Images(val, CROP), in_order(len(val), 64))])
    with torch.no_grad():
        blocks = encoder.forward_blocks(normalize(pixels, (0.5,) * 3, (0.25,) * 3, "cpu"), 2)
    assert found.labels.tolist() == val.labels.tolist() and found.unreadable == []
    for block in (-1, -2):
        torch.testing.assert_close(found.tokens("cls", block), blocks[block].cls)
        torch.testing.assert_close(found.tokens("mean", block), blocks[block].patches.mean(dim=1))
    assert found.tokens("cls", -3) is None  # the encoder has two blocks


def test_features_are_kept_and_a_damaged_shard_alone_is_made_again(
    data: Path, env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = knn.run(class_token_vit(), knn.PRESETS["demo"], env)
    before = files_of(env)
    assert len(before) == 3 + 2  # batches of 64 of 160 and of 80 images
    for place in (-3, 20, 300):  # in a tensor, in the header, in the first tensor
        damaged = sorted(before)[1]
        content = bytearray(before[damaged][1])
        content[place] ^= 1
        damaged.write_bytes(content)
        assert knn.run(class_token_vit(), knn.PRESETS["demo"], env) == first
        after = files_of(env)
        assert {path for path in before if after[path] != before[path]} == {damaged} and after[damaged][1] == before[
            damaged
        ][1]
        before = after
    sorted(before)[0].write_bytes(b"")
    assert knn.run(class_token_vit(), knn.PRESETS["demo"], env) == first
    monkeypatch.setattr(features, "frozen_tokens", lambda *_: pytest.fail("features were computed again"))
    assert knn.run(class_token_vit(), knn.PRESETS["demo"], env) == first


@pytest.mark.parametrize(
    "change",
    ["encoder", "preprocessing", "interpolation", "precision", "image", "limit"],
)
def test_what_can_change_a_feature_has_features_of_its_own(data: Path, env: Env, change: str) -> None:
    def folder(encoder: Encoder, crop: CenterCrop = CROP, precision: str = "fp32", limit: int | None = None) -> Path:
        return features.extract(encoder, imagenet.val_set(data, limit), crop, env, precision).stored.folder

    before = folder(class_token_vit())
    assert folder(class_token_vit(pooling="mean", source_format="another", epoch=3)) == before, (
        "provenance changes no feature"
    )
    match change:
        case "encoder":
            after = folder(class_token_vit(seed=1))
        case "preprocessing":
            after = folder(class_token_vit(), replace(CROP, resize=40))
        case "interpolation":
            after = folder(class_token_vit(), replace(CROP, interpolation="bilinear"))
        case "precision":
            after = folder(class_token_vit(), precision="bf16")
        case "image":
            path = data / "imagenet/val" / WNIDS[0] / f"{WNIDS[0]}_3.png"
            path.rename(path.with_name(f"{WNIDS[0]}_99.png"))
            after = folder(class_token_vit())
        case "limit":
            after = folder(class_token_vit(), limit=70)
    assert after != before
    assert json.loads((after / "identity.json").read_text()) != json.loads((before / "identity.json").read_text())


def test_a_killed_pass_goes_on_with_the_next_shard(data: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    train, encoder = imagenet.train_set(data), class_token_vit()
    whole = features.extract(encoder, train, CROP, env)
    expected = files_of(env)
    shutil.rmtree(whole.stored.folder)

    def die(folder: Path, shard: int, *rest: object) -> None:
        if shard == 2:
            raise KeyboardInterrupt
        write(folder, shard, *rest)  # type: ignore[arg-type]

    write, opened = cached_pass._write_shard, Counter()
    monkeypatch.setattr(cached_pass, "_write_shard", die)
    with pytest.raises(KeyboardInterrupt):
        features.extract(encoder, train, CROP, env)
    monkeypatch.setattr(cached_pass, "_write_shard", write)
    assert len(files_of(env)) == 2
    read = loader.read_image
    monkeypatch.setattr(loader, "read_image", lambda path: opened.update([path.name]) or read(path))
    features.extract(encoder, train, CROP, env)
    assert {path: content for path, (_, content) in files_of(env).items()} == {
        path: content for path, (_, content) in expected.items()
    }
    assert sorted(opened) == sorted(path.name for path in train.files[128:]) and set(opened.values()) == {1}


def test_each_image_is_read_from_disk_once(data: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[Path] = Counter()
    read = loader.read_image
    monkeypatch.setattr(loader, "read_image", lambda path: opened.update([path]) or read(path))
    knn.run(class_token_vit(), knn.PRESETS["demo"], env)
    knn.run(class_token_vit(), replace(knn.PRESETS["demo"], temperature=0.1), env)
    assert set(opened.values()) == {1} and len(opened) == 240


def test_an_unreadable_image_fails_the_pass_unless_allowed(data: Path, env: Env) -> None:
    path = sorted((data / "imagenet/val").glob("*/*"))[70]
    content = path.read_bytes()
    path.write_bytes(content[:700])
    strict, lenient = knn.PRESETS["demo"], replace(knn.PRESETS["demo"], max_unreadable_images=1)
    for _ in range(2):
        with pytest.raises(UserError, match=path.name):
            knn.run(class_token_vit(), strict, env)
    result = knn.run(class_token_vit(), lenient, env)
    assert env.notes["images_evaluated"] == {"train": 160, "val": 79} and env.notes["unreadable_images"] == {
        "train": [],
        "val": [str(path)],
    }
    assert (result["top1"] * 79 / 100) == pytest.approx(round(result["top1"] * 79 / 100))
    with pytest.raises(UserError, match=path.name):
        knn.run(class_token_vit(), strict, env)  # its shard is there, and knows of the hole

    other = path.with_name(sorted(file.name for file in path.parent.iterdir())[-1])
    other_content = other.read_bytes()
    other.write_bytes(b"")
    for remaining in (files_of(env), {}):  # the second bad image is noticed in a pass, not by what is kept
        if not remaining:
            shutil.rmtree(env.out_dir.parent / "features")
            with pytest.raises(UserError, match="2 unreadable images of val, 1 allowed"):
                knn.run(class_token_vit(), lenient, env)
    other.write_bytes(other_content)
    knn.run(class_token_vit(), lenient, env)
    before = files_of(env)
    path.write_bytes(content)
    knn.run(
        class_token_vit(), lenient, env
    )  # the set is another one now: it gets features of its own, and the old ones stay
    assert env.notes["unreadable_images"]["val"] == [] and env.notes["images_evaluated"]["val"] == 80
    assert all(files_of(env)[file] == before[file] for file in before) and len(files_of(env)) == len(before) + 2


def test_shorter_precisions_are_near_and_stored_short(data: Path, env: Env) -> None:
    val = imagenet.val_set(data)
    exact, short = (features.extract(class_token_vit(), val, CROP, env, precision) for precision in ("fp32", "bf16"))
    assert 0 < (exact.tokens("cls") - short.tokens("cls")).abs().max() < 0.05 * exact.tokens("cls").abs().max()
    sizes = [sum(path.stat().st_size for path in found.stored.folder.glob("*.safetensors")) for found in (exact, short)]
    assert sizes[1] < 0.6 * sizes[0]
    large = class_token_vit()
    with torch.no_grad():
        large.model.pos_embed[:] = 1e6  # beyond float16
    large.fingerprint = hashlib.sha256(b"large").hexdigest()
    assert torch.isfinite(features.extract(large, val, CROP, env, "bf16").tokens("mean")).all()


def test_a_disk_too_full_is_said_before_it_is_full(data: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_pass.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match="make room, or choose --out"):
        features.extract(class_token_vit(), imagenet.train_set(data), CROP, env)


def test_the_limits_of_shards_depend_on_the_set_alone() -> None:
    assert [cached_pass.shard_size(count, 64) for count in (1, 1000, 12_811, 50_000, 3_750_000)] == [
        64,
        64,
        768,
        1024,
        1024,
    ]


def test_a_small_set_starts_no_more_processes_than_it_has_batches(
    data: Path, env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def read(dataset: loader.Images, sampler: object, workers: int = 0) -> object:
        started.append(workers)
        return loader.batches(dataset, sampler)

    monkeypatch.setattr(cached_pass, "batches", read)
    val = imagenet.val_set(data)  # 80 images: two batches
    features.extract(class_token_vit(), val, CROP, replace(env, workers=15))
    assert started == [2]
