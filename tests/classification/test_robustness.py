"""Robustness: whose classes are scored, ImageNet-C's arithmetic, its estimates, and what a killed run repeats."""

import csv
import io
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from imagecorruptions import corruptions
from PIL import Image

from evaluate import robustness
from evaluate.classification import cached_pass, classifier, imagenet_c
from evaluate.classification.predictions import Predictions
from evaluate.data import further_sets, imagenet, loader
from evaluate.data.layouts import CORRUPTIONS
from evaluate.data.transforms import CenterCrop, normalize
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from results import predictions
from results.predictions import Answers
from tests.factories import class_token_vit, save_classifier
from tests.worlds import in_order, write_further_sets, write_world

DEMO = robustness.PRESETS["demo"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "classifier.safetensors"
    save_classifier(path)
    return path


@pytest.fixture
def env(tmp_path: Path, tuned: Path) -> Env:
    (tmp_path / "out/robustness").mkdir(parents=True)
    return Env(write_world(tmp_path / "data"), tmp_path / "out/robustness", inputs={"classifier": tuned})


def logits_of(env: Env, images: imagenet.ImageSet) -> torch.Tensor:
    model, _, crop = classifier.load(env.inputs["classifier"], class_token_vit())
    pixels = torch.cat([part for part, _ in loader.batches(loader.Images(images, crop), in_order(len(images), 64))])
    with torch.no_grad():
        return model(normalize(pixels, (0.5,) * 3, (0.25,) * 3, "cpu"))


def test_scores_among_own_classes_over_all_and_clean(env: Env) -> None:
    result = robustness.run(class_token_vit(), DEMO, env)
    val = imagenet.val_set(env.data_root)
    clean, labels = logits_of(env, val), torch.from_numpy(val.labels)
    assert result["clean_top1"] == pytest.approx(100 * (clean.argmax(1) == labels).double().mean().item())
    for name, own in (("imagenet_a", [1, 2]), ("imagenet_r", [0, 1, 2])):
        images = imagenet.robustness_set(name, env.data_root, name.replace("_", "-"))
        logits, answers = logits_of(env, images), torch.from_numpy(images.labels)
        others = [index for index in range(4) if index not in own]
        masked, masked_clean = logits.clone(), clean.clone()
        masked[:, others], masked_clean[:, others] = -torch.inf, -torch.inf
        same = torch.isin(labels, torch.tensor(own))
        assert result[f"{name}_top1"] == pytest.approx(100 * (masked.argmax(1) == answers).double().mean().item())
        assert result[f"{name}_top1_all_classes"] == pytest.approx(
            100 * (logits.argmax(1) == answers).double().mean().item()
        )
        assert result[f"{name}_clean_top1"] == pytest.approx(
            100 * (masked_clean.argmax(1) == labels)[same].double().mean().item()
        )
    assert set(env.notes["standard_error"]) == set(result) - {"imagenet_c_mean_error"}
    kept = predictions.load(env.out_dir)  # every column is compared image by image, and verified
    means = {name: 100 * outcome.mean() for name in result if (outcome := predictions.outcome(kept, name)) is not None}
    assert means == pytest.approx({name: result[name] for name in means})
    assert set(means) == set(result) - {"imagenet_c_mce", "imagenet_c_mean_error"}


def test_a_limit_does_not_make_the_question_easier(env: Env) -> None:
    env = replace(
        env, limit=1
    )  # one image of IN-R is left; it is scored among the three classes of the set, not among its own
    robustness.run(class_token_vit(), DEMO, env)
    identity = (next(env.out_dir.glob("predictions/imagenet_r-*")) / "identity.json").read_text()
    assert '"imagenet_r": [\n   0,\n   1,\n   2\n  ]' in identity


def test_the_table_of_corruptions_and_mce(env: Env) -> None:
    result = robustness.run(class_token_vit(), DEMO, env)
    errors = {}
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            images = imagenet.robustness_set("imagenet_c", env.data_root, f"imagenet-c/{name}/{severity}")
            errors[name, severity] = 100 * (logits_of(env, images).argmax(1).numpy() != images.labels).mean()
    with (env.out_dir / "imagenet_c.csv").open() as file:
        rows = {row["corruption"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(CORRUPTIONS)
    ratios = []
    for name in CORRUPTIONS:
        own = [errors[name, severity] for severity in range(1, 6)]
        assert [float(rows[name][f"severity_{severity}"]) for severity in range(1, 6)] == pytest.approx(own, abs=1e-4)
        assert list(env.notes["protocol"]["severity_errors"][name].values()) == pytest.approx(own)
        ratios.append(np.mean(own) / (100 * imagenet_c.ALEXNET_ERROR[name]))
        assert float(rows[name]["corruption_error"]) == pytest.approx(100 * ratios[-1], abs=1e-3)
    assert (
        result["imagenet_c_mce"] == pytest.approx(100 * np.mean(ratios))
        and result["imagenet_c"] == 100 - result["imagenet_c_mce"]
    )
    assert "estimates" not in env.notes["protocol"]


def test_the_standard_error_is_the_deviation_over_draws_of_images(tmp_path: Path) -> None:
    """All versions of an image go wrong together here, as they do: a binomial over 75 n images would be several times
    too small.
    """
    rng, count = np.random.default_rng(0), 60
    images = imagenet.ImageSet("imagenet_c", (), np.zeros(0, np.int64), (), "", 0, ())
    cells = [(*cell, images, None) for cell in imagenet_c.CELLS]
    found, errors = [], []
    for _ in range(80):
        hardness = rng.uniform(0, 1, count)

        def outcome(_cell: object, _transform: object, hardness: np.ndarray = hardness) -> Predictions:
            wrong = rng.uniform(0, 1, count) <= hardness
            nothing = np.zeros(count, int)
            answers = Answers(nothing, wrong[:, None].astype(int), np.ones((count, 1)), nothing[:0])
            return Predictions(answers, {}, tuple(map(str, range(count))))

        env = Env(tmp_path, tmp_path)
        result, shares = imagenet_c.measure(cells, outcome, env)
        assert 100 * shares.mean() == pytest.approx(result["imagenet_c"])
        found.append(result["imagenet_c"])
        errors.append(env.notes["standard_error"]["imagenet_c"])
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.25)


def test_a_part_of_the_images_is_an_estimate_and_says_so(env: Env) -> None:
    result = robustness.run(class_token_vit(), replace(DEMO, corrupted_images=2), env)
    assert env.notes["images_evaluated"]["imagenet_c"] == 150 and env.notes["images_asked"]["imagenet_c"] == 300
    error = env.notes["standard_error"]["imagenet_c"]
    assert env.notes["protocol"]["estimates"]["imagenet_c"] == (
        "IN-C is an estimate (2 of 4 images of each corruption and severity; 100 - mCE, whose errors are relative to "
        f"AlexNet's on 1,000 classes), standard error {error:.2f}"
    )
    assert 0 <= result["imagenet_c_mean_error"] <= 100


def test_corrupted_here(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffle = (
        corruptions._shuffle_pixels_njit_glass_blur
    )  # compiling this loop takes longer than running it on pictures this small
    monkeypatch.setattr(corruptions, "_shuffle_pixels_njit_glass_blur", getattr(shuffle, "py_func", shuffle))
    (env.data_root / "imagenet-c").rename(env.data_root / "away")
    monkeypatch.setattr(robustness, "MADE_IMAGES", 2)
    absent = robustness.run(class_token_vit(), DEMO, env)
    assert "2 of 60 images" in env.notes["protocol"]["estimates"]["imagenet_c"]
    config = replace(DEMO, corruptions="made", corrupted_images=2)
    result = robustness.run(class_token_vit(), config, env)
    assert absent == result, "without IN-C its estimate is what is measured"
    estimate = env.notes["protocol"]["estimates"]["imagenet_c"]
    assert "corrupted here from val" in estimate and "2 of 60 images" in estimate
    assert "imagenet_c" in result and "imagenet_c" not in robustness.reads(config)
    crop, image = CenterCrop(32, 32, "bicubic"), loader.read_image(imagenet.val_set(env.data_root).files[0])
    for name in ("gaussian_noise", "impulse_noise", "glass_blur", "frost"):
        views = [
            np.asarray(imagenet_c.Corrupt(crop, name, 3, seed)(image, 0, index))
            for seed, index in ((0, 0), (0, 1), (1, 0), (0, 0))
        ]
        assert views[0].shape == (32, 32, 3) and np.array_equal(views[0], views[3])
        assert not np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])


def test_images_of_another_size_are_not_cropped_silently(env: Env) -> None:
    path = sorted((env.data_root / "imagenet-c/fog/2").glob("*/*"))[0]
    Image.open(path).resize((40, 48)).save(path)
    with pytest.raises(UserError, match="40 x 48 px, but the classifier takes 32.*corrupted_resize"):
        robustness.run(class_token_vit(), DEMO, env)
    assert "imagenet_c" in robustness.run(class_token_vit(), replace(DEMO, corrupted_resize=32), env)


def test_a_killed_run_goes_on_and_gives_the_same(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = robustness.run(class_token_vit(), DEMO, env)
    broken = replace(env, out_dir=env.out_dir.parent / "broken", notes={})
    broken.out_dir.mkdir()
    write, written = cached_pass._write_shard, []

    def die(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        written.append(1)
        if len(written) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(cached_pass, "_write_shard", die)
    with pytest.raises(KeyboardInterrupt):
        robustness.run(class_token_vit(), DEMO, broken)
    broken.notes.clear()
    assert robustness.run(class_token_vit(), DEMO, broken) == expected and broken.notes == env.notes
    assert len(written) == 4 + 75, "it began again"


def test_every_image_is_read_once_and_a_few_may_be_unreadable(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[Path] = Counter()
    read = loader.read_image
    monkeypatch.setattr(loader, "read_image", lambda path: opened.update([path]) or read(path))
    robustness.run(class_token_vit(), DEMO, env)
    assert set(opened.values()) == {1} and len(opened) == 60 + 6 + 9 + 8 + 300
    bad = [sorted((env.data_root / "imagenet-c" / name / "5").glob("*/*"))[1] for name in ("fog", "snow")]
    for path in bad:
        path.write_bytes(b"")
    env = replace(env, out_dir=env.out_dir.parent / "again")
    env.out_dir.mkdir()
    with pytest.raises(UserError, match=str(bad[1])):
        robustness.run(class_token_vit(), DEMO, env)
    with pytest.raises(UserError, match=str(bad[0])):  # snow comes first; the two are of one set
        robustness.run(class_token_vit(), replace(DEMO, max_unreadable_images=1), env)
    robustness.run(class_token_vit(), replace(DEMO, max_unreadable_images=2), env)
    assert env.notes["unreadable_images"]["imagenet_c"] == [str(bad[1]), str(bad[0])]
    assert env.notes["images_evaluated"]["imagenet_c"] == 298


def test_sets_are_read_from_the_published_archives(env: Env) -> None:
    expected = robustness.run(class_token_vit(), DEMO, env)
    root = env.data_root
    groups = {
        "noise": CORRUPTIONS[:3],
        "blur": CORRUPTIONS[3:7],
        "weather": CORRUPTIONS[7:11],
        "digital": CORRUPTIONS[11:],
    }
    archives = {name: [name] for name in ("imagenet-a", "imagenet-r", "imagenet-sketch")} | {
        f"imagenet-c/{group}": [f"imagenet-c/{name}" for name in names] for group, names in groups.items()
    }
    for archive, folders in archives.items():
        mode = "w:gz" if archive == "imagenet-r" else "w"  # some mirrors compress theirs
        with tarfile.open(root / f"{archive}.tar", mode) as tar:
            for folder in folders:
                tar.add(root / folder, folder.removeprefix("imagenet-c/"))
            text = b"terms of use"
            readme = tarfile.TarInfo(f"{archive}/README.txt")
            readme.size = len(text)
            tar.addfile(readme, io.BytesIO(text))
        for folder in folders:
            (root / folder).rename(root / f"unpacked-{folder.replace('/', '-')}")
    fresh = replace(env, out_dir=env.out_dir.parent / "archives", notes={})
    fresh.out_dir.mkdir()
    assert robustness.run(class_token_vit(), DEMO, fresh) == expected and fresh.notes == env.notes


def test_further_sets_are_measured_in_the_same_run_where_they_are(tmp_path: Path) -> None:
    root = write_further_sets(tmp_path / "data")
    classes = imagenet.class_names(root / "imagenet/train")
    classifier_file = tmp_path / "classifier.safetensors"
    save_classifier(classifier_file, classes)
    (tmp_path / "out").mkdir()
    env = Env(root, tmp_path / "out", inputs={"classifier": classifier_file})
    result = robustness.run(class_token_vit(), replace(DEMO, corruptions="made", corrupted_images=1), env)

    def best(images: imagenet.ImageSet, cut: int = 0) -> np.ndarray:
        model, _, crop = classifier.load(classifier_file, class_token_vit())
        transform = further_sets.WithoutBorder(crop) if cut else crop
        parts = loader.batches(loader.Images(images, transform), in_order(len(images), 64))
        with torch.no_grad():
            return (
                model(normalize(torch.cat([part for part, _ in parts]), (0.5,) * 3, (0.25,) * 3, "cpu"))
                .argmax(1)
                .numpy()
            )

    v2, val = further_sets.v2_set("imagenet_v2_matched", root), imagenet.val_set(root)
    objects, right = further_sets.objectnet_set(root)
    assert result["imagenet_v2_matched_top1"] == 100 * (best(v2) == v2.labels).mean()
    reassessed = further_sets.among_right(best(val), further_sets.real_labels(root, val))
    assert len(reassessed) == 3 and result["imagenet_real_top1"] == pytest.approx(100 * reassessed.mean())
    of_objects = further_sets.among_right(best(objects, cut=2), right)
    assert result["objectnet_top1"] == pytest.approx(100 * of_objects.mean())
    assert env.notes["sizes"]["imagenet_real"] == {"images": 3, "classes": 4}
    assert not any(name.startswith(("imagenet_v2_top", "imagenet_v2_threshold")) for name in result)
    assert set(env.notes["skipped"]) == {"imagenet_a", "imagenet_r", "imagenet_sketch"}, (
        "of a set beyond the paper nothing is said"
    )
    kept = predictions.load(env.out_dir)
    for name in ("imagenet_v2_matched_top1", "imagenet_real_top1", "objectnet_top1"):
        assert name in env.notes["standard_error"]
        assert 100 * predictions.outcome(kept, name).mean() == pytest.approx(result[name]), "verified image by image"


def test_a_further_set_that_cannot_be_used_costs_the_other_columns_nothing(tmp_path: Path) -> None:
    root = write_further_sets(tmp_path / "data")
    (root / "imagenet/real.json").write_text("[[1]]")
    (root / "objectnet-1.0/mappings/imagenet_to_label_2012_v2").write_text("")
    classifier_file = tmp_path / "classifier.safetensors"
    save_classifier(classifier_file, imagenet.class_names(root / "imagenet/train"))
    (tmp_path / "out").mkdir()
    env = Env(root, tmp_path / "out", inputs={"classifier": classifier_file})
    result = robustness.run(class_token_vit(), replace(DEMO, corruptions="made", corrupted_images=1), env)
    assert {"imagenet_v2_matched_top1", "imagenet_c"} <= set(result)
    assert not {"imagenet_real_top1", "objectnet_top1"} & set(result)
    assert "list of 50,000 lists" in env.notes["skipped"]["imagenet_real"]
    assert "four published mappings" in env.notes["skipped"]["objectnet"]
