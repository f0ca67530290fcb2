"""One run on a real card: the product's own commands, and PASS, FAIL or a figure for each (tests/gpu/README.md).

    python -m tests.gpu.acceptance [--budget 520] [--only name,name] [--device cuda]
    python -m tests.gpu.acceptance --tiny --device cpu      checks the script itself without a GPU; figures mean nothing

Started from the project's root; needs no mm* package. All that it writes lies in the temporary folder and in $OUT
(default: gpu_acceptance there): acceptance.json, what the benchmarks wrote, and the logs.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from typing import Any

from tests.gpu.runner import ROOT, Run, settings

SMALLEST_SHARED_MEMORY = 5  # GiB of /dev/shm: below it the loading processes may die of a bus error
EAGER_PEAK, PROFILED = 32, 512  # GiB that 512 images may take; images of the profiled step
MOST_WAITS, LEAST_BUSY = 8, 0.95
QUICK_TESTS = (
    "tests/pretrain/test_train.py",
    "tests/pretrain/test_siameseim.py",
    "tests/pretrain/test_mae.py",
    "tests/classification/test_features.py",
    "tests/encoder/test_encoder.py",
    "tests/runtime/test_workers.py",
)
CHECKS: dict[str, Callable[[Run], None]] = {}


def check(function: Callable[[Run], None]) -> Callable[[Run], None]:
    """Adds a function to the run, in the order in which they stand here."""
    CHECKS[function.__name__] = function
    return function


@check
def machine(run: Run) -> None:
    """What it runs on. Without a usable GPU, or with too little shared memory, the rest would fail for that alone."""
    import timm
    import torch
    import torchvision

    if run.gpu and not torch.cuda.is_available():
        raise SystemExit("acceptance: torch finds no usable GPU; --tiny --device cpu checks the script alone")
    shared = shutil.disk_usage("/dev/shm").total / 2**30
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    name = torch.cuda.get_device_name() if run.gpu else "CPU"
    text = f"{name}, {versions}, {run.cores} cores, /dev/shm {shared:.1f} GiB"
    run.say("INFO" if shared >= SMALLEST_SHARED_MEMORY or not run.workers else "FAIL", "machine", text)


@check
def data(run: Run) -> None:
    """100 noisy photographs, linked into ImageNet's layout (25,000 and 4,000) and IN-C's; the toy world."""
    import numpy as np
    from PIL import Image

    from evaluate.data import layouts, toy
    from evaluate.data.made_photographs import make_images

    shutil.rmtree(run.work, ignore_errors=True)
    pool = sorted(make_images(run.work / "pool", 8 if run.tiny else 100))
    wnids = [f"n{number + 1:08d}" for number in range(len(pool))]
    for split, count in (("train", 2 if run.tiny else 250), ("val", 1 if run.tiny else 40)):
        for number, wnid in enumerate(wnids):
            folder = run.work / "big/imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{split}_{number}_{i}.JPEG").symlink_to(pool[(number + 7 * i) % len(pool)])
    (run.work / "crops").mkdir()
    for path in pool:
        Image.open(path).resize((224, 224)).save(run.work / "crops" / path.name, quality=85)
    for corruption in layouts.CORRUPTIONS:
        for severity in layouts.SEVERITIES:
            for path, wnid in zip(pool, wnids, strict=True):
                folder = run.work / "big" / layouts.imagenet_c(corruption, severity) / wnid
                folder.mkdir(parents=True)
                (folder / f"val_{wnid}.JPEG").symlink_to(run.work / "crops" / path.name)
    for index, wnid in enumerate(toy.WNIDS):
        for number, (split, count) in enumerate((("train", 12 if run.tiny else 200), ("val", 6 if run.tiny else 100))):
            folder = run.work / "toy/imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                picture = toy.paint(index, 32, np.random.default_rng([number, index, i]))
                Image.fromarray(picture).save(folder / f"{split}_{index}_{i}.JPEG", quality=95)
    run.say("INFO", "data", "made")


@check
def parity(run: Run) -> None:
    """The official code's numbers of one step."""
    files = sorted((ROOT / "tests/golden").glob("*_step_*.json"))
    text = run.python("parity", "-m", "pretrain.parity", *files, "--device", run.device, limit=60)
    if text:
        worst = max(map(float, re.findall(r" (\d\.\d+e[+-]\d+) ", text)))
        run.say("PASS", "parity", f"largest relative difference {worst:.1e} (bound: 1e-4, on a CPU 1e-5)")


@check
def encoder(run: Run) -> None:
    """Features of a ViT-B beside the CPU's: whole float32, and what shorter arithmetic changes."""
    model = "vit_tiny_patch16_224" if run.tiny else "vit_base_patch16_224"
    text = run.python("encoder", "-m", "tests.gpu.measures.encoder", run.device, model, limit=60)
    if text:
        found = json.loads(text.splitlines()[-1])
        bounds = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}
        good = all(value <= bounds[name] for name, value in found.items())
        run.judge(good, "encoder", ", ".join(f"{name} {found[name]:.1e} (<= {bounds[name]:g})" for name in found))


@check
def drift(run: Run) -> None:
    """The same pretraining of twelve steps of the demo's model: the CPU's fp32, and the device's three precisions."""
    values = [f"epochs={2 if run.tiny else 3}", "warmup_epochs=1", f"batch_size={32 if run.tiny else 500}"]

    def losses(device: str, precision: str) -> list[float]:
        name = f"drift_{device}_{precision}"
        options = ["--preset", "demo", *settings(*values, f"precision={precision}")]
        if (
            run.pretrain(name, run.work / "toy/imagenet/train", run.work / name, *options, limit=60, device=device)
            is None
        ):
            return []
        return [json.loads(line)["loss"] for line in (run.work / name / "log.jsonl").read_text().splitlines()]

    kinds = [("cpu", "fp32"), (run.device, "fp32"), (run.device, "bf16"), *([("cuda", "fp16")] if run.gpu else [])]
    kinds = list(dict.fromkeys(kinds))
    base, *others = run.side_by_side([lambda kind=kind: losses(*kind) for kind in kinds])
    for (_, precision), found in zip(kinds[1:], others, strict=True):
        if base and found:
            off = [abs(a - b) / abs(b) for a, b in zip(found, base, strict=False)]
            first, later = (1e-3, 2e-2) if precision == "fp32" else (1e-2, 5e-2)
            good = len(found) == len(base) and off[0] <= first and max(off) <= later
            text = f"the loss is off the CPU's fp32 by {off[0]:.1e} in the first epoch (<= {first:g})"
            text += f", {max(off):.1e} at most (<= {later:g})"
            run.judge(good, f"drift_{precision}", text)


def benchmark(run: Run, name: str, *options: Any, limit: float) -> dict[str, Any] | None:
    """What ``pretrain.benchmark`` writes."""
    file = run.out / f"{name}.json"
    if run.python(name, "-m", "pretrain.benchmark", *run.preset, *options, "--json", file, limit=limit) is None:
        return None
    return json.loads(file.read_text())


@check
def step_speed(run: Run) -> None:
    """The paper's step, plain and compiled: images/s beside a matrix product of the same precision, and memory."""
    common = ["--device", run.device, "--no-baseline", *settings(f"batch_size={8 if run.tiny else 512}")]
    eager = ["--precision", "bf16,fp16" if run.gpu else "bf16", "--steps", 4]
    compiled = ["--precision", "bf16", "--steps", 6, *(["--compile"] if run.gpu else [])]
    for name, options, limit, least in (("step_eager", eager, 90, 0.0), ("step_compiled", compiled, 170, 0.5)):
        found = benchmark(run, name, *common, *options, limit=limit)
        for variant, value in found["variants"].items() if found else ():
            peak, share = value["peak_bytes"] / 2**30, value["fraction_of_ceiling"]
            seconds = value["seconds"]
            augment, step = (1000 * seconds[part] for part in ("augment", "step"))
            text = f"{variant}: {value['images_per_second']:.0f} images/s, {100 * share:.0f} % of the ceiling"
            text += (
                f" (>= {100 * least:.0f}), peak {peak:.1f} GiB (< {EAGER_PEAK}), augment {augment:.0f} of {step:.0f} ms"
            )
            run.judge(not run.gpu or (share >= least and peak < EAGER_PEAK), name, text)


@check
def profile(run: Run) -> None:
    """One pretraining step: how often the CPU waits for the GPU, and how much of the time the GPU works."""
    preset, size = ("demo", 8) if run.tiny else ("paper", PROFILED)
    text = run.python("profile", "-m", "tests.gpu.measures.waits", run.device, preset, size, limit=60)
    if text:
        found = json.loads(text.splitlines()[-1])
        good = not run.gpu or (found["waits"] <= MOST_WAITS and found["busy"] >= LEAST_BUSY)
        told = f"{found['waits']} waits (<= {MOST_WAITS}), {found['kernels']} kernels, busy {100 * found['busy']:.0f} %"
        run.judge(good, "profile", f"{told} (>= {100 * LEAST_BUSY:.0f}) of {1000 * found['seconds']:.0f} ms")


@check
def beside_plain(run: Run) -> None:
    """A step beside the plain one: 3 times its speed at half its memory is the aim."""
    options = [
        "--device",
        run.device,
        "--precision",
        "bf16",
        "--steps",
        3,
        *settings(f"batch_size={8 if run.tiny else 128}"),
    ]
    found = benchmark(run, "beside_plain", *options, limit=70)
    if found:
        ours, plain = sorted(found["variants"].items(), key=lambda item: not item[0].startswith("ours"))
        speed, memory = (ours[1][name] / plain[1][name] for name in ("images_per_second", "peak_bytes"))
        run.say("INFO", "beside_plain", f"{speed:.2f} x its speed (aim 3), {memory:.2f} x its memory (aim 0.5)")


@check
def loader(run: Run) -> None:
    """Images/s of one core and of the run's own loader, which must outrun the step."""
    options = ["--device", "cpu", "--views", "--workers", run.workers or 1, "--images", run.work / "pool"]
    found = benchmark(run, "loader", *options, limit=90)
    if found:
        run.say("INFO", "loader", ", ".join(f"{name} {1 / seconds:.0f}/s" for name, seconds in found["views"].items()))


@check
def pretraining(run: Run) -> None:
    """End to end with JPEGs, loading processes, bf16 and saves: beside ``step_speed`` it tells what the rest costs."""
    begun, out = time.monotonic(), run.work / "train"
    values = settings("epochs=1", "warmup_epochs=0", f"batch_size={16 if run.tiny else 512}", "precision=bf16")
    options = [*run.preset, *values, "--workers", run.workers, "--monitor-epochs", 1, "--keep", 1]
    if run.pretrain("pretraining", run.work / "big/imagenet/train", out, *options, limit=80) is not None:
        entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        rate = max(entry.get("images_per_second", 0) for entry in entries)
        run.say(
            "INFO",
            "pretraining",
            f"{rate:.0f} images/s over the epoch, its first batch included; {run.card.since(begun)}",
        )


@check
def torchrun(run: Run) -> None:
    """One process under torchrun joins a group (gloo and, on a GPU, NCCL), trains and leaves."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1, "-m", "pretrain.train"]
    options = ["--data", run.work / "toy/imagenet/train", "--out", run.work / "torchrun", "--device", run.device]
    options += ["--preset", "demo", "--workers", 0, "--monitor-epochs", 0]
    values = settings("epochs=1", "warmup_epochs=0", "batch_size=64")
    if run.python("torchrun", *launcher, *options, *values, limit=60) is not None:
        run.say("PASS", "torchrun", "one process joined a group and trained")


@check
def tasks(run: Run) -> None:
    """Every ImageNet task at the paper's sizes on 25,000 links: images/s beside the roofline, memory, load."""
    encoder, images = run.work / "init/encoder.safetensors", 16 if run.tiny else 25_000
    run.pretrain("init", run.work, run.work / "init", *run.preset, "--init-only", limit=60, device="cpu")
    run.python("convert", "-m", "evaluate.convert", run.work / "init/checkpoint.pth", "--out", encoder, limit=60)
    size = settings("img_size=32", "resize=32") if run.tiny else []
    whole = images // 16384 * 16384 or images  # of a linear probe's epoch: its batches are whole
    short = "fp16" if run.gpu else "bf16"
    classifier = None
    for name, task, seen, options, roofline in (
        ("finetune", "finetune", 2 * images, settings("epochs=2", "warmup_epochs=1"), 3200),
        ("linear_probe", "linear_probe", 3 * whole, settings("epochs=3", "warmup_epochs=1"), 10000),
        ("knn_fp32", "knn", images, [], 1260),
        (f"knn_{short}", "knn", images, settings(f"precision={short}"), 10000),
    ):
        found = run.task(name, task, encoder, *options, *size, limit=70)
        if found:
            rate, seconds = seen / found["seconds"], found["seconds"]
            run.say(
                "INFO",
                name,
                f"{rate:.0f} images/s, evaluation included (roofline {roofline}); {seconds:.0f} s; {found['busy']}",
            )
            if task == "finetune":
                classifier = run.work / "out" / name / found["work"] / "classifier.safetensors"
    if classifier:
        resize = settings("corrupted_resize=32") if run.tiny else []
        found = run.task("robustness", "robustness", encoder, "--input", f"classifier={classifier}", *resize, limit=90)
        if found:
            run.say(
                "INFO",
                "robustness",
                f"76 sets: {found['seconds']:.0f} s, {found['seconds'] / 76:.2f} s each; {found['busy']}",
            )


@check
def sweep_cost(run: Run) -> None:
    """52 heads beside one, on the same frozen pass; its own test holds the bound."""
    marks = [] if run.tiny else ["-m", "slow"]
    command = [
        "-m",
        "pytest",
        "-s",
        "-n",
        0,
        "-p",
        "no:cacheprovider",
        *marks,
        "tests/classification/test_sweep_cost.py",
    ]
    text = run.python("sweep_cost", *command, limit=60, env={"SWEEP_COST_DEVICE": run.device})
    found = re.search(r"^\{.*\}", text or "", flags=re.MULTILINE)
    if found:
        value = json.loads(found[0])
        run.say("PASS", "sweep_cost", f"52 heads cost {value['ratio']:.2f} of one ({value['images']} images a step)")


@check
def same_number(run: Run) -> None:
    """kNN, few-shot and LIN on the toy world: the GPU's fp32 number is the CPU's to half a point."""
    ckpt, kinds = (
        run.work / "drift_cpu_fp32/checkpoint.pth",
        {"knn": [], "few_shot": ["shots=5"], "linear_probe": ["precision=fp32"]},
    )
    pairs = [(task, device) for task in kinds for device in dict.fromkeys(("cpu", run.device))]
    demo = [] if run.tiny else ["--preset", "demo"]

    def measure(task: str, device: str) -> float | None:
        options = [*demo, *settings(*kinds[task])]
        found = run.task(f"same_{task}_{device}", task, ckpt, *options, root="toy", device=device)
        return found and found["metrics"]["top1"]

    values = dict(zip(pairs, run.side_by_side([lambda pair=pair: measure(*pair) for pair in pairs]), strict=True))
    for task in kinds:
        here, there = values[task, "cpu"], values[task, run.device]
        if here is not None and there is not None:
            run.judge(
                abs(here - there) <= 0.5, f"same_{task}", f"CPU {here:.1f}, {run.device} {there:.1f} (<= 0.5 apart)"
            )


@check
def stop_and_go_on(run: Run) -> None:
    """SIGTERM in the middle saves and ends with status 75; the same command goes on to the end."""
    out = run.work / "broken"
    values = settings(f"epochs={6 if run.tiny else 40}", "warmup_epochs=1", f"batch_size={32 if run.tiny else 200}")
    options = ["--preset", "demo", *values]
    data = run.work / "toy/imagenet/train"
    command = ["-m", "pretrain.train", "--data", data, "--out", out, "--device", run.device, "--monitor-epochs", 0]
    command += ["--workers", 0, *options]
    with (run.out / "stopped.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=log, cwd=ROOT)
        until = time.monotonic() + min(60, run.left)
        while not (out / "checkpoint.pth").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        try:
            status: int | str = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            status = "none"
    if run.pretrain("going_on", data, out, *options, limit=60) is not None:
        run.judge(status == 75, "stop_and_go_on", f"stopped with status {status} (75), then went on to the end")


@check
def tests(run: Run) -> None:
    """Quick tests of the project where a GPU is visible: they must not notice."""
    chosen = QUICK_TESTS[4:5] if run.tiny else QUICK_TESTS
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-n", max(1, min(14, run.cores - 1)), *chosen]
    text = run.python("tests", *command, limit=max(20, run.left - 5))
    if text:
        run.say("PASS", "tests", next((line for line in reversed(text.splitlines()) if "passed" in line), "passed"))


def main() -> int:
    """0 if nothing failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", type=float, default=520.0, help="seconds after which nothing more is started (default: 520)"
    )
    parser.add_argument(
        "--only", default="", help=f"some of {', '.join(CHECKS)}; most need data, same_number drift too"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, which check the script alone")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name] or list(CHECKS)
    if unknown := set(chosen) - set(CHECKS):
        parser.error(f"--only knows {', '.join(CHECKS)}, not {min(unknown)}")
    run = Run(options)
    if run.gpu:
        run.card.start()
    for name in chosen:
        if run.left < 15:
            run.say("SKIP", name, "no time left")
            continue
        try:
            CHECKS[name](run)
        except Exception as error:  # one check must not take the others with it
            run.say("FAIL", name, f"{type(error).__name__}: {error}")
    run.card.stop()
    (run.out / "acceptance.json").write_text(json.dumps(run.found, indent=1))
    with tarfile.open(run.out / "logs.tgz", "w:gz") as packed:  # few files to carry
        for log in sorted(run.out.glob("*.log")):
            packed.add(log, log.name)
            log.unlink()
    failed = sum(entry["verdict"] == "FAIL" for entry in run.found)
    print(f"{failed} failed, {time.monotonic() - run.began:.0f} s; {run.out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
