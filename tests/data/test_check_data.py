"""The check of the data before a run: a right world passes, each fault is found and named."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import run_all
from evaluate.data import check, imagenet, subsets, toy_dense
from evaluate.runtime.cli import EXIT_SKIPPED, EXIT_USER
from evaluate.runtime.errors import UserError
from tests.worlds import WNIDS, write_world

IMAGENET = ("imagenet", "imagenet_1percent", "imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sets, in the layouts of the toy world, smaller."""
    root = write_world(tmp_path_factory.mktemp("world"), train=10, val=5)
    toy_dense.make(root, 0, train_images=8, val_images=4)
    (root / "world.json").write_text("{}")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_world(tmp_path / "data", train=6, val=2)


def test_a_whole_world_passes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.report(world, [*IMAGENET, "coco", "lvis", "ade20k"], samples=5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in lines} == {*IMAGENET, "coco", "lvis", "ade20k"}
    assert "imagenet: ok: train 40 images (5 read), val 20 images (5 read), 4 classes" in lines
    assert run_all.main(["--check-data", "--data-root", str(world), "--tasks", "knn,few_shot"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_demo_needs_images_of_imagenet_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--demo", "--check-data", "--data-root", str(data)]
    shutil.rmtree(data / "imagenet-r")
    assert run_all.main([part for part in command if part != "--demo"]) == EXIT_SKIPPED
    assert run_all.main(command) == 0 and "imagenet_r: absent" in capsys.readouterr().out
    shutil.rmtree(data)
    data.mkdir()
    assert run_all.main(command) == EXIT_SKIPPED and "imagenet: absent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("imagenet", f"imagenet/val/{WNIDS[1]}/{WNIDS[1]}_1.png", "cannot be read"),
        ("imagenet", f"imagenet/train/{WNIDS[3]}", "3 missing|1 missing|1 too many"),
        ("imagenet_1percent", f"imagenet/train/{WNIDS[0]}/{WNIDS[0]}_2.png", "names 1 files that imagenet/train lacks"),
        ("imagenet_r", f"imagenet-r/{WNIDS[1]}/{WNIDS[1]}_0.png", "cannot be read"),
        (
            "imagenet_c",
            f"imagenet-c/snow/4/{WNIDS[1]}/{WNIDS[1]}_0.png",
            "snow/4 should hold the same 4 images as gaussian_noise/1, but it lacks 1 of them and has 1 in addition",
        ),
        ("imagenet_c", f"imagenet-c/snow/4/{WNIDS[1]}", "should hold the"),
    ],
)
def test_a_fault_is_named(data: Path, name: str, damage: str, says: str) -> None:
    path = data / damage
    match says:
        case "cannot be read":
            path.write_bytes(path.read_bytes()[:300])
        case _ if "same" in says:
            path.rename(path.with_stem("another"))
        case _:
            path.rename(data / "away")
    findings = {finding.name: finding for finding in check.check(data, IMAGENET, samples=300)}
    assert findings[name].status == "wrong"
    assert any(part in findings[name].detail for part in says.split("|")), findings[name]
    assert "\n" not in findings[name].detail
    assert check.report(data, IMAGENET) == EXIT_USER


def test_an_absent_set_is_no_fault(data: Path) -> None:
    (data / "imagenet-r").rename(data / "away")
    assert check.report(data, IMAGENET) == EXIT_SKIPPED
    assert check.report(data, IMAGENET[:3]) == 0
    absent = {finding.name: finding.detail for finding in check.check(data, check.CHECKS) if finding.status == "absent"}
    assert absent.keys() > {"imagenet_r", "coco", "voc"}
    document = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for name in check.CHECKS:
        assert f"| `{name}` | {check.ORIGINS[name]} |" in document
        assert name not in absent or absent[name].endswith(check.ORIGINS[name])


def test_a_dense_set_with_a_hole(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(world), str(copy)], check=True)
    image = sorted((copy / "coco/val2017").iterdir())[2]
    image.unlink()
    label = sorted((copy / "ade20k/annotations/training").iterdir())[5]
    label.rename(label.with_stem("another"))
    findings = {finding.name: finding for finding in check.check(copy, ("coco", "lvis", "ade20k"), 3)}
    assert image.name in findings["coco"].detail and findings["coco"].status == "wrong"
    assert findings["ade20k"].status == "wrong" and "ADE_train_00000006 is not in both" in findings["ade20k"].detail
    (copy / "coco/annotations/instances_val2017.json").write_text('{"images": [')
    assert "is not an instances file" in check.check(copy, ("coco",), 3)[0].detail


def test_published_counts_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = json.loads(imagenet.OFFICIAL_CLASSES.read_text())["imagenet"]
    for split in ("train", "val"):
        for wnid in official:
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / f"{wnid}_0.png")

    def detail(*names: str) -> str:
        finding = check.check(tmp_path, names, 2)[0]
        return f"{finding.status}: {finding.detail}"

    assert detail("imagenet").startswith(
        "wrong: imagenet/train has 1000 images instead of the published 1281167; unpack it in full"
    )
    assert check.check(tmp_path, ["imagenet"], 2, subset=True)[0].detail.startswith(
        "imagenet/train has 1000 of 1281167 images, imagenet/val has 1000 of 50000 images; its cells are marked"
    )
    monkeypatch.setattr(check, "TRAIN", 1000)
    assert "imagenet/val has 1000 images instead of the published 50000" in detail("imagenet")
    monkeypatch.setattr(check, "VAL", 1000)
    assert f"imagenet/val should have 50 images a class; {official[0]} has 1" in detail("imagenet")
    monkeypatch.setattr(check, "VAL_PER_CLASS", 1)
    assert detail("imagenet").startswith("ok: train 1000 images (2 read)")
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split / official[5]).rename(tmp_path / "imagenet" / split / "n00000005")
    assert "not ImageNet-1k's, for example n00000005" in detail("imagenet")
    monkeypatch.setattr(subsets, "LISTS", {"1percent": 1})
    (tmp_path / "imagenet/1percent.txt").write_text(f"{official[0]}_0.png")
    assert "but other names" in detail("imagenet_1percent")


def test_published_imagenet_c_is_224_px(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = imagenet.robustness_set("imagenet_c", data, "imagenet-c/fog/1")
    with pytest.raises(UserError, match="is 32 x 32 px, but ImageNet-C's published images are 224 px"):
        check._read_some(images.files, 1, check.PUBLISHED_SIDE)


def test_the_command_says_bad_input_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for options, says in (
        (["--data-root", "nowhere"], "is not a folder"),
        (["--data-root", ".", "--tasks", "juggling"], "there is no task"),
    ):
        assert run_all.main(["--check-data", *options]) == EXIT_USER
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_a_set_of_other_classes_is_a_part_of_it(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = {finding.name: finding for finding in check.check(data, IMAGENET, samples=3)}
    assert {name for name, finding in findings.items() if finding.status == "part"} >= {"imagenet", "imagenet_a"}
    assert "imagenet/train has 4 of 1000 classes; its cells are marked" in findings["imagenet"].detail
    assert check.report(data, IMAGENET) == 0 and "imagenet: part: " in capsys.readouterr().out


def test_a_part_of_coco_and_ade20k_is_meant_with_subset(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(world), str(copy)], check=True)
    (copy / "world.json").unlink()
    for annotations in (copy / "coco/annotations").glob("instances_*2017.json"):
        content = json.loads(annotations.read_text())
        content["categories"] = [{**content["categories"][0], "id": 1 + n, "name": f"c{n}"} for n in range(80)]
        annotations.write_text(json.dumps(content))
    names = ("coco", "ade20k")
    assert [finding.status for finding in check.check(copy, names, 3)] == ["wrong", "wrong"]
    assert check.report(copy, names, 3) == EXIT_USER and check.report(copy, names, 3, subset=True) == 0
    command = ["--check-data", "--data-root", str(copy), "--tasks", "segmentation"]
    assert run_all.main(command) == EXIT_USER and run_all.main([*command, "--subset"]) == 0
