"""Small labelled sets as folders, as lists and as shards of the same images."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.worlds import WNIDS, paint

CLASSES = ("ant", "bee", "cat", "dog")


def write_image(path: Path, label: int = 0, seed: int = 0, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    paint(label % len(WNIDS), np.random.default_rng(seed), size).save(path)
    return path


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_everywhere(root: Path, train: int = 12, val: int = 5) -> Path:
    """``train`` and ``val`` as folders, ``train.csv`` and ``val.csv``, and two shards of each, in another order."""
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        names = [f"{name}/{index:03d}.png" for index in range(count) for name in CLASSES]
        for index, name in enumerate(names):
            write_image(root / split / name, CLASSES.index(name[:3]), seed=1000 * number + index)
        rows = [f"{split}/{name},{name[:3]}" for name in reversed(names)]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        for shard in range(2):
            members = {}
            for index, name in enumerate(names[shard::2]):
                stem = f"./{split}/{name[:-4]}"
                members[f"{stem}.png"] = (root / split / name).read_bytes()
                kind = (".cls", ".txt", ".json")[index % 3]
                label = json.dumps({"label": name[:3]}) if kind == ".json" else f"{name[:3]}\n"
                members[f"{stem}{kind}"] = label.encode()
            write_shard(root / f"{split}-{shard}.tar", members)
    (root / "sets.toml").write_text(
        '[folders]\nname = "Four"\ntrain = "train"\nval = "val"\ntask = ["knn", "linear", "few_shot", "finetune"]\n'
        '[lists]\ntrain = "train.csv"\nval = "val.csv"\ntask = ["knn", "linear", "few_shot", "finetune"]\n'
        '[shards]\ntrain = "train-*.tar"\nval = "val-*.tar"\ntask = ["knn", "linear", "few_shot", "finetune"]\n'
    )
    return root


def write_several(root: Path, train: int = 24, val: int = 12) -> Path:
    """A list of images with none to three labels each, as columns of 0 and 1; ``names.csv`` has the same as words."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        marked = rng.random((count, 3)) < 0.5
        marked[:2] = [[True, False, True], [False, True, False]]
        lines, words = ["file,red,green,blue"], ["file,labels"]
        for index, own in enumerate(marked):
            name = f"{split}-images/{index:03d}.png"
            pixels = rng.integers(0, 90, (32, 32, 3)) + 160 * own.astype(int)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name)
            lines.append(",".join([name, *("1" if mark else "0" for mark in own)]))
            labels = [color for color, mark in zip(("red", "green", "blue"), own, strict=True) if mark]
            words += [f"{name},{';'.join(labels)}"] if labels else []
        (root / f"{split}.csv").write_text("\n".join(lines))
        (root / f"{split}-words.csv").write_text("\n".join(words))
    (root / "several.toml").write_text('[colors]\ntrain = "train.csv"\nval = "val.csv"\nmetric = "map"\n')
    return root
