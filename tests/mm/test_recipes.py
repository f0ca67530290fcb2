"""Every file of mm_configs builds, and holds no key that nobody reads."""

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from evaluate import detection
from evaluate.harness import plan
from evaluate.mm import detector, frozen, recipe_names, recipes, runner, segmenter
from evaluate.mm.backbones.vitdet import global_blocks
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import override
from tests.factories import encoder_for, tiny_encoder

RECIPES = recipes.names()
# of the recipes and of their bases
SOURCES = {path.stem: path.read_text() for path in sorted(recipes.RECIPES.glob("*.py"))}
# what evaluate/ and mmengine's Runner read; all else at top level must be a number that the file itself uses
READ = {
    "default_scope",
    "model",
    "optim_wrapper",
    "param_scheduler",
    "train_dataloader",
    "test_dataloader",
    "test_evaluator",
    "train_cfg",
    "test_cfg",
    "batch_size",
    "precise_bn",
}


def inherited(name: str) -> set[str]:
    """The files of mm_configs that a file imports from."""
    imports = [node for node in ast.walk(ast.parse(SOURCES[name])) if isinstance(node, ast.ImportFrom)]
    own = [node.module for node in imports if node.level or node.module.startswith("mm_configs.")]
    return {module.rpartition(".")[2] for module in own}


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_inherits_one_level_deep(name: str) -> None:
    """A base inherits nothing; a recipe inherits bases, or the one full recipe that it varies, which inherits bases."""
    parents = inherited(name)
    if name not in RECIPES:
        assert not parents, f"{name} is a base and inherits {parents}"
    elif parents & set(RECIPES):
        assert len(parents) == 1, f"{name} inherits {parents}; let it inherit bases, or one full recipe"
        (full,) = parents
        assert not inherited(full) & set(RECIPES), f"{name} inherits {full}, which inherits {inherited(full)}"
    else:
        assert parents, f"{name} inherits no base"


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_lvis")])
def test_the_detector_of_lvis_is_that_of_coco(name: str) -> None:
    """The two state the same model, each for itself; LVIS' own are the loss and how many detections are kept."""
    lvis, coco = (recipes.read_recipe(f"{name[:-5]}_{data}").to_dict()["model"] for data in ("lvis", "coco"))
    for model in (lvis, coco):
        del model["roi_head"]["bbox_head"]["loss_cls"]
        del model["test_cfg"]["rcnn"]
    assert lvis == coco


def test_the_box_branch_of_voc_is_that_of_coco() -> None:
    """C4's, stated by both; VOC has no masks and 20 classes."""
    names = ("faster_rcnn_resnet_c4_24k_voc", "mask_rcnn_resnet_c4_1x_coco")
    voc, coco = (recipes.read_recipe(name).to_dict()["model"] for name in names)
    del coco["roi_head"]["mask_roi_extractor"], coco["roi_head"]["mask_head"], coco["train_cfg"]["rcnn"]["mask_size"]
    coco["roi_head"]["bbox_head"]["num_classes"] = 20
    assert voc.pop("type") is not coco.pop("type")
    assert voc.pop("data_preprocessor") == {**coco.pop("data_preprocessor"), "pad_mask": False}
    assert voc == coco


def test_a_base_is_no_recipe() -> None:
    assert set(SOURCES) - set(RECIPES) == {"_coco_instances", "_mask_rcnn", "_upernet_ade20k"}
    with pytest.raises(UserError, match="there is no recipe _mask_rcnn; mm_configs has cascade_mask_rcnn_"):
        recipes.read_recipe("_mask_rcnn")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds(name: str, world: Path, tmp_path: Path) -> None:
    from mmengine.config import ConfigDict
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DATASETS, EVALUATOR, MODELS, PARAM_SCHEDULERS, DefaultScope

    cfg = recipes.read_recipe(name)
    encoder = encoder_for(name)
    env = Env(world, tmp_path)
    if name.endswith("ade20k"):
        (frozen if name.startswith("linear") else segmenter).fill_encoder(cfg, encoder)
        segmenter.fill_data(cfg, env)
    else:
        detector.fill_encoder(cfg, encoder)
        detector.fill_data(cfg, name.rpartition("_")[2], env)
    text = "\n".join(SOURCES.values())
    for key, value in cfg.items():
        if key not in READ and not isinstance(value, type) and not callable(value):
            assert text.count(key) > 1, f"{name}: nobody reads {key}"
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        runner.load_encoder(model, encoder)
        model.init_weights()
        own, theirs = model.backbone.state_dict(), encoder.model.state_dict()
        keys = {"resnet": "layer2.0.conv1.weight", "timm": "stages.1.blocks.0.mlp.fc1.weight"}
        key = keys.get(encoder.spec.family, "blocks.1.mlp.fc1.weight")
        kept = own[f"model.{key}" if encoder.spec.family in keys else key]
        assert torch.equal(kept, theirs[key]), "initialising the heads changed the encoder"
        if "_c4_" in name:
            last = model.roi_head.shared_head.layer4.state_dict()
            assert all(torch.equal(value, theirs[f"layer4.{key}"]) for key, value in last.items()) and len(last) > 5
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == len(list(model.parameters()))
        for scheduler in cfg.param_scheduler:
            PARAM_SCHEDULERS.build(ConfigDict(scheduler), default_args={"optimizer": wrapper.optimizer})
        EVALUATOR.build({"type": "Evaluator", "metrics": cfg.test_evaluator})
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            sample = DATASETS.build(loader.dataset)[(0, 0) if loader is cfg.train_dataloader else 0]
            assert sample["inputs"].dtype == torch.uint8 and "data_samples" in sample


# the numbers of mmdet's free-form settings that mmdet reads
TRAIN_KEYS = {
    "rpn": {"assigner", "sampler", "allowed_border", "pos_weight"},
    "rpn_proposal": {"nms_pre", "max_per_img", "nms", "min_bbox_size"},
    "rcnn": {"assigner", "sampler", "mask_size", "pos_weight"},
}
TEST_KEYS = {"rpn": TRAIN_KEYS["rpn_proposal"], "rcnn": {"score_thr", "nms", "max_per_img", "mask_thr_binary"}}


@pytest.mark.parametrize("name", [name for name in RECIPES if "rcnn" in name])
def test_a_detectors_free_settings_are_read(name: str) -> None:
    from evaluate.mm.heads import CascadeRoIHead

    cfg = recipes.read_recipe(name)
    for settings, known in ((cfg.model.train_cfg, TRAIN_KEYS), (cfg.model.test_cfg, TEST_KEYS)):
        assert {key: set(value) - known[key] for key, value in settings.items()} == {key: set() for key in known}
    assert (cfg.model.roi_head.type is CascadeRoIHead) == ("cascade" in name)
    assert cfg.param_scheduler[1].milestones[-1] < cfg.train_cfg.max_iters < cfg.train_cfg.val_interval


@pytest.mark.parametrize("name", [name for name in RECIPES if "demo" not in name])
def test_a_recipe_says_its_row_gpus_number_and_command(name: str) -> None:
    text = ast.get_docstring(ast.parse(SOURCES[name]))
    task = {"upernet": "segmentation", "linear": "linear_segmentation"}.get(name.partition("_")[0], "detection")
    command = re.search(rf"-m evaluate\.{task} (.*?)\n\n", text, re.DOTALL)
    assert command and re.search(r"GPU|A100|V100", text) and re.search(r"\bm?AP\b|mIoU", text)
    settings = dict(re.findall(r"--set (\w+)=(\S+)", command[1]))
    module = plan.module_of(task)
    config = override(module.PRESETS["paper"], settings)
    if task == "detection":
        family = encoder_for(name).spec.recipes
        assert recipe_names.recipe_of(config.recipe, config.dataset, family) == name, "the command is another recipe's"


def test_the_sizes_of_vits_follow_from_the_encoder(world: Path, tmp_path: Path) -> None:
    """detectron2's ViTDet-B (and S) and -L: drop path, layer decay, global blocks."""
    for depth, drop, decay, last in ((12, 0.1, 0.7, (2, 5, 8, 11)), (24, 0.4, 0.8, (5, 11, 17, 23))):
        for name in ("mask_rcnn_vitdet_100ep_coco", "cascade_mask_rcnn_vitdet_100ep_lvis"):
            cfg = recipes.read_recipe(name)
            detector.fill_encoder(cfg, tiny_encoder(depth=depth))
            assert (cfg.model.backbone.drop_path, cfg.optim_wrapper.paramwise_cfg.layer_decay) == (drop, decay)
            assert cfg.optim_wrapper.paramwise_cfg.num_layers == depth and global_blocks(depth) == last


def detector_of(name: str, patch: int) -> torch.nn.Module:
    """A recipe's detector for a small encoder, on the meta device: the forward pass of 1024 px takes no memory."""
    cfg = recipes.read_recipe(name)
    side = 4 * patch
    detector.fill_encoder(cfg, tiny_encoder(embed_dim=12, depth=2, num_heads=2, patch_size=patch, img_size=side))
    detector.fill_classes(cfg, [1, 1])
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return MODELS.build(cfg.model).eval()


@pytest.mark.parametrize("patch", [8, 14, 16, 20, 32])
@pytest.mark.parametrize("name", ["mask_rcnn_vitdet_100ep_coco", "mask_rcnn_vitdet_demo_coco"])
def test_anchors_and_regions_lie_where_the_maps_have_them(name: str, patch: int) -> None:
    """A map's stride is the side of the padded picture over that of the map, for anchors and for RoIAlign alike."""
    model = detector_of(name, patch)
    side = model.data_preprocessor.pad_size_divisor
    assert side % patch == 0 and 0 <= side - recipes.read_recipe(name).image_size < 2 * patch
    maps = model.extract_feat(torch.zeros(1, 3, side, side, device="meta"))
    sizes = [tuple(level.shape[2:]) for level in maps]
    strides = [side / height for height, _ in sizes[:4]]
    strides.append(2 * strides[3])  # p6 has every other pixel of p5, whose number may be odd
    assert model.backbone.blocks[-1].attn.rel_pos_h.shape[0] == 2 * side // patch - 1
    generator = model.rpn_head.prior_generator
    assert [stride for stride, _ in generator.strides] == strides
    for anchors, (height, width), stride in zip(
        generator.grid_priors(sizes, device="cpu"), sizes, strides, strict=True
    ):
        centers = (anchors[:, :2] + anchors[:, 2:]).reshape(height, width, 3, 2) / 2
        last = torch.tensor([(width - 1) * stride, (height - 1) * stride])
        assert (centers[0, 0].abs().max() < 1e-3) and ((centers[-1, -1] - last).abs().max() < 1e-3)
    assert all(flags.all() for flags in generator.valid_flags(sizes, (side, side), device="cpu"))
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        # maps that hold at each cell where its middle lies in the picture
        held = [(torch.arange(width) + 0.5) * stride for (_, width), stride in zip(sizes[:4], strides[:4], strict=True)]
        grids = [x.expand(1, extractor.out_channels, len(x), len(x)) for x in held]
        for left, right in ((0.8, 0.83), (0.6, 0.75), (0.25, 0.8)):
            region = [left * side, side / 4, right * side, side / 4 + (right - left) * side]
            read = extractor(grids, torch.tensor([[0, *region]]))
            assert float(read.mean()) == pytest.approx((left + right) / 2 * side, abs=0.002 * side)


@pytest.mark.parametrize("patch", [8, 14, 16, 20, 32])
def test_logits_lie_where_the_picture_has_them(patch: int) -> None:
    """Each map of the pyramid covers the padded crop; a picture of any size gets logits that are not stretched."""
    cfg = recipes.read_recipe("upernet_vit_demo_ade20k")
    encoder = tiny_encoder(embed_dim=12, depth=4, num_heads=2, patch_size=patch, img_size=4 * patch)
    segmenter.fill_encoder(cfg, encoder)
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 3
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    model.backbone.load(encoder.spec, encoder.model.state_dict())
    crop = torch.full((3, cfg.crop, cfg.crop), 128.0)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, cfg.crop, cfg.crop, dtype=torch.long)))
    batch = model.data_preprocessor({"inputs": [crop, crop], "data_samples": [sample, sample.clone()]}, True)
    side, labels = batch["inputs"].shape[-1], batch["data_samples"][0].gt_sem_seg.data
    assert labels.shape == (1, side, side)  # what is padded is no class
    assert (labels[:, : cfg.crop, : cfg.crop] == 1).all() and (labels == 255).sum() == side**2 - cfg.crop**2
    maps = model.extract_feat(batch["inputs"])
    assert [side / level.shape[-1] for level in maps] == [patch / 4, patch / 2, patch, 2 * patch]
    assert model.backbone.base == (side // patch, side // patch)

    def pooled(pictures: torch.Tensor) -> tuple[torch.Tensor]:  # as a perfect backbone and head: the picture itself
        return (functional.interpolate(pictures, scale_factor=4 / patch, mode="area"),)

    model.extract_feat, model.decode_head.forward = pooled, lambda maps: maps[0]
    height, width = 3 * patch + 5, 4 * patch + 3
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    picture = torch.stack([rows, columns, rows + columns])[None]
    logits = model.encode_decode(picture, [{"img_shape": picture.shape[2:]}])
    assert logits.shape == picture.shape
    inner = (..., slice(patch, height - patch), slice(patch, width - patch))  # no cell beside the padding
    assert (logits[inner] - picture[inner]).abs().max() < (1e-3 if patch % 4 == 0 else 1.5)  # a cell of 3.5 px: 3 or 4


def test_a_recipe_is_chosen_by_name() -> None:
    chosen = override(detection.PRESETS["paper"], {"recipe": "mask_rcnn_resnet_c4_2x_coco"})
    assert recipe_names.recipe_of(chosen.recipe, chosen.dataset, "resnet") == "mask_rcnn_resnet_c4_2x_coco"
    with pytest.raises(UserError, match="not for a vit encoder"):
        recipe_names.recipe_of(chosen.recipe, chosen.dataset, "vit")
    with pytest.raises(UserError, match="is not for lvis"):
        override(detection.PRESETS["paper"], {"dataset": "lvis", "recipe": "mask_rcnn_resnet_c4_2x_coco"})
    with pytest.raises(UserError, match="no paper recipe of voc for a vit encoder; choose .*paper of coco"):
        recipe_names.recipe_of("paper", "voc", "vit")
    assert recipe_names.recipe_of("mask_rcnn_resnet_fpn_2x_coco", "coco", "pyramid") == "mask_rcnn_resnet_fpn_2x_coco"
    with pytest.raises(UserError, match="not for a pyramid encoder; choose one with pyramid or resnet_fpn in its name"):
        recipe_names.recipe_of(chosen.recipe, chosen.dataset, "pyramid")
    assert all(name in RECIPES for name in recipe_names.RECIPES.values())


def test_the_papers_numbers() -> None:
    coco, lvis = (recipes.read_recipe(f"mask_rcnn_vitdet_100ep_{name}") for name in ("coco", "lvis"))
    assert (coco.train_cfg.max_iters, lvis.train_cfg.max_iters) == (184_375, 156_250)
    assert (coco.optim_wrapper.optimizer.lr, lvis.optim_wrapper.optimizer.lr) == (1e-4, 2e-4)
    assert (coco.batch_size, lvis.model.test_cfg.rcnn.max_per_img, lvis.model.test_cfg.rcnn.score_thr) == (
        64,
        300,
        0.02,
    )
    assert coco.model.train_cfg.rcnn.assigner.low_quality is False
    fpn, c4, voc = (
        recipes.read_recipe(n)
        for n in ("mask_rcnn_resnet_fpn_1x_coco", "mask_rcnn_resnet_c4_2x_coco", "faster_rcnn_resnet_c4_24k_voc")
    )
    assert [x.train_cfg.max_iters for x in (fpn, c4, voc)] == [90_000, 180_000, 24_000]
    assert (
        voc.param_scheduler[1].milestones == [18_000, 22_000]
        and voc.batch_size == 16
        and voc.optim_wrapper.optimizer.lr == 0.02
    )
    assert voc.train_dataloader.dataset.pipeline[1].shortest == list(range(480, 801, 32))
    assert c4.train_dataloader.dataset.pipeline[1].shortest == list(range(640, 801, 32)) and c4.precise_bn == 200
    ade = recipes.read_recipe("upernet_vit_160k_ade20k")
    assert (ade.train_cfg.max_iters, ade.batch_size, tuple(ade.model.test_cfg.stride)) == (160_000, 16, (341, 341))


def test_a_shortened_recipe_keeps_its_shape() -> None:
    cfg = recipes.read_recipe("mask_rcnn_vitdet_100ep_coco")
    recipes.shorten(cfg, 1000, 16, 5e-5)
    assert cfg.train_cfg.max_iters == 1000 and cfg.batch_size == 16 and cfg.optim_wrapper.optimizer.lr == 5e-5
    assert cfg.param_scheduler[1].milestones == [889, 963]
    recipes.shorten(cfg, 2, None, None)
    assert cfg.param_scheduler[0].end > cfg.param_scheduler[0].begin
    cfg.train_dataloader.batch_size = 16
    recipes.accumulate(cfg, 4)
    assert (
        cfg.train_cfg.max_iters == 8
        and cfg.param_scheduler[1].milestones == [2, 2]  # it counts steps
        and cfg.train_dataloader.batch_size == 4
        and cfg.optim_wrapper.accumulative_counts == 4
    )
    with pytest.raises(UserError, match="divisor"):
        recipes.accumulate(cfg, 3)
    with pytest.raises(UserError, match="upernet_vit_demo_ade20k"):
        recipes.read_recipe("nothing")


@pytest.mark.parametrize(
    ("name", "written", "setter"),
    [
        ("mask_rcnn_vitdet_100ep_coco", "image_size = 1024", detector.set_image_size),
        ("mask_rcnn_vitdet_demo_lvis", "image_size = 96", detector.set_image_size),
        ("upernet_vit_160k_ade20k", "crop = 512", segmenter.set_crop),
        ("upernet_resnet_160k_ade20k", "crop = 512", segmenter.set_crop),
    ],
)
def test_another_size_is_the_recipe_with_that_size_written_in(
    name: str, written: str, setter: Callable[[Config, int], None], tmp_path: Path
) -> None:
    folder = shutil.copytree(recipes.RECIPES, tmp_path / "mm_configs")
    for path in folder.glob("*.py"):
        if path.stem in (name, "_upernet_ade20k"):
            text = path.read_text().replace(written, f"{written.split()[0]} = 256")
            path.write_text(text.replace("longest = 2048", "longest = 1024"))  # four crops
    expected, cfg = Config.fromfile(str(folder / f"{name}.py")), recipes.read_recipe(name)
    setter(cfg, 256)
    if cfg.model.data_preprocessor.get("size") and "img_size" in cfg.model.backbone:
        cfg.model.data_preprocessor.size = None  # fill_encoder puts it in
    assert cfg.to_dict() == expected.to_dict()


def test_an_image_size_is_for_square_pictures() -> None:
    with pytest.raises(UserError, match="image_size 512 is a setting of the recipes with square pictures"):
        detector.set_image_size(recipes.read_recipe("mask_rcnn_resnet_fpn_1x_coco"), 512)
