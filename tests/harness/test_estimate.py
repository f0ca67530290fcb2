"""The plan: what tasks cost, how many GPUs each gets, what a budget pays for, and whether the launcher keeps to it."""

import itertools
import random
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

import run_all
from evaluate.harness import cost, estimate, executor, jobs, plan, suite
from evaluate.runtime.errors import UserError
from tests.worlds import write_world

NODES = plan.choose([])
PAPER = plan.configure(NODES, "paper", {})


def paper(**options: object) -> list[estimate.Planned]:
    """The plan of one ViT-B by the paper's protocols, on assumed H100s."""
    return estimate.plan({"a": None}, NODES, PAPER, None, estimate.H100, **options)


def test_the_hours_of_a_vit_b_are_those_that_were_counted_on_a_pretended_gpu() -> None:
    """By hand: images x GFLOP of its own count, at 320 TFLOP/s (COCO 11.8 M x 4,860, ADE20k 2.6 M x 3,660, …)."""
    counted = {"detection_coco": 2.1 * 24, "detection_lvis": 1.8 * 24, "segmentation": 8.1, "finetune": 11.8}
    hours = {one.node.name: one.hours for one in paper()}
    for name, expected in counted.items():
        assert hours[name] == pytest.approx(expected, rel=0.03), name
    assert hours["linear_probe"] == pytest.approx(4.45, rel=0.03), "the loader's 7,200 images a second are slower"
    assert min(hours, key=hours.__getitem__) == "few_shot"


def test_an_encoder_of_another_size_costs_what_its_blocks_do() -> None:
    large = replace(cost.VIT_B, embed_dim=1024, depth=24, num_heads=16)
    of_base, of_large = (
        {one.node.name: one.hours for one in estimate.plan({"a": spec}, NODES, PAPER, None, estimate.H100)}
        for spec in (None, large)
    )
    assert of_large["finetune"] / of_base["finetune"] == pytest.approx(24 * 1024**2 / (12 * 768**2), rel=0.02)


def test_limits_the_data_and_what_stands_count(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data", train=40, val=15)
    planned = {
        one.node.name: one
        for one in estimate.plan({"a": None}, NODES, PAPER, root, estimate.H100, limit=10, stands={"a/knn"})
    }
    assert planned["finetune"].work.images == 100 * 10 + 10 and planned["detection_coco"].state == "no coco"
    assert planned["knn"].state == "stands" and not planned["knn"].to_do
    whole = {one.node.name: one.work.images for one in estimate.plan({"a": None}, NODES, PAPER, root, estimate.H100)}
    assert whole["knn"] == sum(1 for path in (root / "imagenet").rglob("*") if path.suffix in (".png", ".JPEG", ".jpg"))


def test_a_task_has_only_as_many_gpus_as_leave_its_protocol_alone() -> None:
    assert cost.sharing(1024, 128) == (1, 2, 4, 8) and cost.sharing(1024, 512) == (1, 2)
    assert cost.sharing(6) == (1, 2) and cost.sharing(5) == (1,), "an odd batch is not shared"
    small = plan.configure(NODES, "paper", {"finetune": {"batch_size": "256"}})
    planned = estimate.allocate(estimate.plan({"a": None}, NODES, small, None, estimate.H100), 8)
    assert next(one for one in planned if one.node.name == "finetune").gpus <= 2


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_all_gpus_work_until_the_end(gpus: int, rows: int) -> None:
    """The makespan is at most 1.15 times the sum over the GPUs; on three, 1, 2, 4 or 8 GPUs a task cannot fill them."""
    planned = estimate.plan(dict.fromkeys("abc"[:rows]), NODES, PAPER, None, estimate.H100)
    planned = estimate.allocate(planned, gpus)
    end = cost.makespan([one.hours / one.gpus for one in planned], [one.gpus for one in planned], gpus)
    bound = sum(one.hours for one in planned) / gpus
    assert bound <= end * (1 + 1e-9) and end <= (1.15 if gpus != 3 else 1.6) * bound


def test_no_other_choice_of_gpus_ends_much_sooner() -> None:
    """Beside all choices, for small random plans; the choice is one limit for all tasks, and so not always the best."""
    ratios = []
    for seed in range(40):
        draw = random.Random(seed)
        hours = [draw.expovariate(1) for _ in range(4)]
        may = [draw.choice([(1,), (1, 2), (1, 2, 4)]) for _ in hours]
        ends = {
            counts: cost.makespan([h / n for h, n in zip(hours, counts, strict=True)], counts, 4)
            for counts in itertools.product(*may)
        }
        ratios.append(ends[tuple(cost.share_out(hours, may, 4))] / min(ends.values()))
    assert min(ratios) >= 1 and sum(ratios) / len(ratios) < 1.1 and max(ratios) < 1.6


def test_the_launcher_takes_no_longer_than_the_plan(tmp_path: Path) -> None:
    """The whole table on eight GPUs, its tasks replaced by sleeps of scaled cost."""
    planned = estimate.allocate(paper(), 8)
    scale = 8 * 6 / sum(one.hours for one in planned)  # six seconds on eight GPUs
    code = "import os, sys, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(float(sys.argv[1]))"
    work = []
    for one in planned:
        command = [sys.executable, "-S", "-c", code, str(scale * one.hours / one.gpus)]
        work.append(executor.Job(one.name, lambda command=command: command, tmp_path / f"{one.node.name}.log"))
        work[-1].slots = one.gpus
    begun = time.monotonic()
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    start = time.monotonic() - begun  # of one process on this machine, which may be busy
    begun = time.monotonic()
    executor.run(work, 8, [f"GPU-{number}" for number in range(8)])
    assert time.monotonic() - begun < 1.15 * 6 + (0.3 + 3 * start) * len(work)  # of each job: to start, and two polls
    for job in work:
        seen = job.log.read_text().strip().split(",")
        assert job.status == 0 and len(set(seen)) == job.slots


def test_jobs_side_by_side_never_share_a_gpu_and_none_overtakes(tmp_path: Path) -> None:
    code = """
import os, time, sys
with open(sys.argv[1], "a") as log:
    log.write(f"{sys.argv[2]} begins {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
    log.flush()
    time.sleep(0.6)
    log.write(f"{sys.argv[2]} ends -\\n")
"""
    told, work = tmp_path / "told", []
    for number, slots in enumerate((2, 4, 1, 1, 2)):
        command = [sys.executable, "-S", "-c", code, str(told), str(number)]
        work.append(executor.Job(str(number), lambda command=command: command, tmp_path / f"{number}.log", slots=slots))
    executor.run(work, 4, ["a", "b", "c", "d"])
    held: dict[str, set[str]] = {}
    begun = []
    for name, what, gpus in map(str.split, told.read_text().splitlines()):
        if what == "ends":
            del held[name]
            continue
        begun.append(name)
        assert not set(gpus.split(",")) & {gpu for others in held.values() for gpu in others}
        held[name] = set(gpus.split(","))
    assert begun[:2] == ["0", "1"], "job 2 would have fitted beside job 0, and job 1 would have waited for it"


def test_a_budget_takes_the_cheapest_with_what_they_need() -> None:
    planned = estimate.within(paper(), 5.0)
    assert {one.node.name for one in planned if one.to_do} == {"linear_probe", "few_shot", "knn"}
    assert all(one.state == estimate.BEYOND for one in planned if not one.to_do)
    with_tuning = {one.node.name for one in estimate.within(paper(), 26.0) if one.to_do}
    assert {"robustness", "finetune", "segmentation"} <= with_tuning, "robustness reads what fine-tuning has trained"
    alone = [one for one in paper() if one.node.name in ("finetune", "robustness")]
    assert not any(one.to_do for one in estimate.within(alone, 1.0)), "it is not cheap, since fine-tuning comes with it"
    assert "left out: a/detection_coco 50" in estimate.table(planned, 8, estimate.H100, Path("/"))


@pytest.mark.parametrize(("text", "hours"), [("8h", 8.0), ("30m", 0.5), ("2d", 48.0), ("3", 3.0)])
def test_a_budget_is_read_in_its_unit(text: str, hours: float) -> None:
    assert estimate.hours_of(text) == hours


@pytest.mark.parametrize("text", ["-1h", "0", "h", "eight", "nan", "inf", "8 hours"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="give GPU-hours above 0"):
        estimate.hours_of(text)


def test_a_dry_run_plans_for_eight_gpus_that_are_not_there(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.pth").touch()
    root = write_world(tmp_path / "data")
    command = ["--ckpt", str(tmp_path / "x.pth"), "--data-root", str(root), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run_all.main([*command, "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    assert "GPU-hours" in said and "an H100 at 320 TFLOP/s" in said and "taken for a ViT-B/16" in said
    assert "no coco" in said and not (tmp_path / "out").exists()
    assert run_all.main([*command, "--device", "cpu"]) == 0
    assert "core-hours" in (said := capsys.readouterr().out) and "--gpus N plans for" in said
    assert run_all.main([*command, "--budget", "much"]) == 2


def test_what_a_probe_measured_is_kept_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    speed = estimate.Speed(100.0, 50.0, 2.0, False, "measured")
    estimate.keep(speed, tmp_path)
    assert estimate.kept(tmp_path, 0) == speed
    assert estimate.kept(tmp_path, 8) == estimate.H100, "a core says nothing of GPUs"
    assert speed.hours(cost.Cost(gflop=3600 * 100.0, images=1)) == pytest.approx(1 + 2 / 3600)
    assert speed.hours(cost.Cost(gflop=1.0, images=3600 * 50)) == pytest.approx(1 + 2 / 3600), "it waits for its images"
    (tmp_path / estimate.SPEED).write_text("{")
    assert (estimate.kept(tmp_path, 0), estimate.kept(tmp_path, 1)) == (estimate.CORE, estimate.H100)


def test_a_probe_measures_this_machine(tmp_path: Path, monkeypatch) -> None:
    from evaluate.harness import probe

    monkeypatch.setattr(probe, "SECONDS", 0.3)
    spec = replace(cost.VIT_B, embed_dim=48, depth=2, num_heads=3, patch_size=8)
    speed = probe.measure(spec, 32, "cpu", 0, write_world(tmp_path / "data"))
    assert 0.01 < speed.gflops < 5000 and 1 < speed.images < 1e5 and 0.1 < speed.startup < 100
    assert "measured on" in speed.source and "cpu" in speed.source
    assert probe.measure(spec, 32, "cpu", 0, tmp_path).images == estimate.CORE.images, "no images to read"


def test_a_job_of_the_plan_runs_as_so_many_processes(tmp_path: Path) -> None:
    run = suite.Suite(tmp_path, None, NODES, PAPER)  # type: ignore[arg-type]  # the data are not asked for here
    knn = executor.Job("a/knn", lambda: [], tmp_path / "log")
    coco = executor.Job("a/detection_coco", lambda: [], tmp_path / "log")
    planned = estimate.allocate(estimate.within(paper(), 5.0), 8)
    assert jobs.as_planned([knn, coco], planned, run) == [knn]
    assert knn.slots == run.gpus["a/knn"] == next(one.gpus for one in planned if one.name == "a/knn")


def test_recipes_say_the_same_numbers_to_the_plan_as_to_mmengine() -> None:
    from evaluate.mm import recipe_names, recipes

    for name in recipes.names():
        cfg, numbers = recipes.read_recipe(name), recipe_names.recipe_numbers(name)
        assert numbers["batch_size"] == cfg.batch_size and numbers["max_iters"] == cfg.train_cfg.max_iters, name
        size = "crop" if name.endswith("ade20k") else "image_size"
        assert numbers[size] == cfg[size], name


def test_every_task_says_what_it_costs() -> None:
    demo = plan.configure(plan.NODES, "demo", {"detection_voc": {"preset": "paper"}})
    resnet = replace(
        cost.VIT_B, family="resnet", embed_dim=2048, depth=16, layers=(3, 4, 6, 3), block="bottleneck", num_heads=0
    )
    for spec in (cost.VIT_B, resnet):
        for node in plan.NODES:
            if node.name == "detection_voc" and spec.family == "vit":
                continue
            of_patches = node.task in ("linear_segmentation", "knn_segmentation") and spec is resnet
            work = plan.module_of(node.task).cost(demo[node.name][1], spec, lambda part: 1000)
            assert (work.gflop > 0 and work.images > 0) == (not of_patches), "what is skipped costs nothing"
            assert work.gpus[0] == 1, node.name


def test_a_setup_of_four_layers_costs_nothing_with_three() -> None:
    (node,) = (one for one in plan.NODES if one.name == "linear_segmentation_ms")
    (config,) = (settings for _, settings in plan.configure([node], "demo", {}).values())
    of_depth = [
        plan.module_of(node.task).cost(config, replace(cost.VIT_B, depth=depth), lambda part: 100) for depth in (3, 4)
    ]
    assert of_depth[0].images == 0 < of_depth[1].images


def test_further_seeds_cost_what_draws_something() -> None:
    planned = estimate.plan({"a": None}, NODES, PAPER, None, estimate.H100, more_seeds=(1, 2))
    names = [one.name for one in planned]
    assert "a/finetune seed 2" in names and "a/knn" in names
    assert not {"a/knn seed 1", "a/few_shot seed 1"} & set(names), "the list of 1 % and kNN draw nothing"
    cheap = {one.name for one in estimate.within(planned, 38.0) if one.to_do}
    assert {"a/robustness seed 1", "a/finetune seed 1"} <= cheap or "a/robustness seed 1" not in cheap


def test_memory_is_what_the_pretended_gpu_took() -> None:
    """GiB of docs/gpus.md, traced with each task's own images at once."""
    large = replace(cost.VIT_B, embed_dim=1024, depth=24, num_heads=16)
    resnet = replace(
        cost.VIT_B, family="resnet", embed_dim=2048, depth=16, layers=(3, 4, 6, 3), block="bottleneck", num_heads=0
    )
    traced = {
        "finetune": [(cost.VIT_B, 8.98), (large, 24.1), (resnet, 5.57)],
        "linear_probe": [(cost.VIT_B, 2.79), (large, 4.68), (resnet, 2.88)],
        "sweep": [(cost.VIT_B, 2.09)],
        "robustness": [(cost.VIT_B, 0.90)],
        "knn": [(cost.VIT_B, 5.77)],
        "detection": [(cost.VIT_B, 4.6), (large, 10.4)],
        "segmentation": [(cost.VIT_B, 26.1), (large, 41.7)],
    }
    for task, found in traced.items():
        module = plan.module_of(task)
        for spec, gib in found:
            needed = module.cost(module.PRESETS["paper"], spec, estimate.counter(None, None)).memory
            heads = task == "detection" and spec is large  # whose heads are counted with the encoder: too many
            assert needed == pytest.approx(gib, rel=0.31 if heads else 0.2), (task, spec.depth)


def test_the_plan_says_which_disk_it_needs_and_whether_it_is_there(tmp_path: Path, monkeypatch) -> None:
    planned = estimate.plan(dict.fromkeys("ab"), NODES, PAPER, None, estimate.H100)
    said = estimate.table(planned, 8, estimate.H100, tmp_path / "not" / "there")
    needed = float(said.split("disk: at most ")[1].split()[0])
    features = 1331167 * 8 * 768 * 4 / 2**30  # of train and val: kNN's, which few-shot's are a part of
    own = sum(one.work.disk for one in planned)
    assert needed == pytest.approx(2 * features + own, rel=0.02), "once for each row, not once for each task"
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2**40))
    assert "may be too little" not in estimate.table(planned, 8, estimate.H100, tmp_path)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2**30))
    assert "may be too little" in estimate.table(planned, 8, estimate.H100, tmp_path)


def test_images_of_imagenet_c_are_counted_where_it_is_and_made_where_it_is_not(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data", train=4, val=3)
    shutil.rmtree(root / "imagenet-c", ignore_errors=True)
    module = plan.module_of("robustness")

    def corrupted(**settings: object) -> float:
        config = replace(module.PRESETS["paper"], **settings)
        count = estimate.counter(root, None)
        others = sum(count(part) for part in ("imagenet/val", "imagenet-a", "imagenet-r", "imagenet-sketch"))
        return (module.cost(config, cost.VIT_B, count).images - others) / 75

    val = estimate.counter(root, None)("imagenet/val")
    assert corrupted() == val, "fewer than the 200 that would be taken"
    assert corrupted(corrupted_images=2) == 2
    for severity in "12345":
        (root / "imagenet-c" / "gaussian_noise" / severity / "n01440764").mkdir(parents=True)
        for number in range(int(severity) + 6):
            (root / "imagenet-c" / "gaussian_noise" / severity / "n01440764" / f"{number}.JPEG").touch()
    assert corrupted() == 7, "what the set holds, not val's"
