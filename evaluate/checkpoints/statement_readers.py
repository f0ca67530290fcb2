"""What reads the statements of a checkpoint and of the files beside it, for every program that writes such.

Read are the file's own entries (``arch``, ``args``, ``meta``, ``config``, ``hyper_parameters``) and what lies beside
it: timm's and Hugging Face's ``config.json``, ``preprocessor_config.json``, open_clip's ``open_clip_config.json``. An
architecture that is named there is read out of timm's model of that name (``timm_architectures``) and compared
with the tensors.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import timm

from evaluate.checkpoints import timm_architectures
from evaluate.checkpoints.reader import Checkpoint
from evaluate.checkpoints.statements import HALF, IMAGENET, UNIT, Statement, Statements, is_moco_v3, kind_of
from evaluate.encoder.spec import CHOICES, MAX_HEADS, is_number
from evaluate.runtime.errors import UserError

# names under which programs keep a field of EncoderSpec
ALIASES = {
    "num_heads": ("num_heads", "num_attention_heads", "n_heads", "heads"),
    "layer_norm_eps": ("layer_norm_eps", "layernorm_eps", "norm_eps", "ln_eps"),
    "activation": ("hidden_act", "act_layer", "activation"),
    "mean": ("mean", "image_mean", "img_mean", "pixel_mean"),
    "std": ("std", "image_std", "img_std", "pixel_std"),
}
# tables within settings that speak of the encoder too
INNER = (
    "model",
    "backbone",
    "encoder",
    "vision_config",
    "vision_cfg",
    "model_args",
    "model_kwargs",
    "backbone_kwargs",
    "kwargs",
    "vit",
    "data",
    "normalize",
)
NAMES_OF_ARCHITECTURE = ("architecture", "arch", "model_name", "timm_model_name", "model", "backbone", "name")
ACTIVATIONS = {
    "gelu": "gelu",
    "nn.gelu": "gelu",
    "torch.nn.gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "quick-gelu": "quick_gelu",
}
# sizes that config.json may give, by the field of the encoder that the tensors decide
SIZES = {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "patch_size": "patch_size"}


def read(checkpoint: Checkpoint, naming: str, family: str, what: str) -> Statements:
    """All statements of a file whose keys are of a naming ("timm", "hf", "open_clip" or another program's) and family
    ("vit" or "resnet").

    Raises:
        UserError: a statement that no encoder of ours can obey.
    """
    found = Statements()
    for place in ("config", "hyper_parameters", "args"):
        table = checkpoint.top_level.get(place)
        if isinstance(table, dict):
            _read_table(found, table, place, what, strict=place == "config")
    _read_openmmlab(found, checkpoint.top_level.get("meta"), what)
    if "imagenet_default_mean_and_std" in checkpoint.settings and naming == "beit":
        mean, std = IMAGENET if checkpoint.settings["imagenet_default_mean_and_std"] is True else HALF
        found.add("mean", mean, "args.imagenet_default_mean_and_std")
        found.add("std", std, "args.imagenet_default_mean_and_std")
    beside = kind_of(checkpoint.config)
    open_clip = checkpoint.open_clip or (checkpoint.config if beside == "open_clip" else {})
    if open_clip and naming == "open_clip":
        _read_open_clip(found, open_clip, what)
    elif open_clip:
        found.notes.append("open_clip's configuration beside it describes tensors of other names; it was not used")
    if beside == "hf" and naming in ("timm", "open_clip", "beit"):
        found.notes.append("config.json beside it is transformers', for tensors of other names; it was not used")
    elif beside == "timm" and naming in ("hf", "open_clip"):
        found.notes.append("config.json beside it is timm's, for tensors of other names; it was not used")
    elif beside == "hf":
        _read_huggingface(found, checkpoint.config, what)
    elif beside == "timm":
        _read_timm(found, checkpoint.config, family, what)
    elif beside == "other":
        _read_table(found, checkpoint.config, "config.json", what, strict=True)
    if naming not in ("timm", "open_clip") or beside in ("hf", "other", ""):
        _read_preprocessor(found, checkpoint.preprocessor, what)
    if beside != "timm":
        _read_named(found, checkpoint, family)
    return found


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _triple(value: Any) -> tuple[float, ...] | None:
    """Three numbers, on the 0 to 1 scale; those on the 0 to 255 scale of OpenMMLab are divided."""
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(is_number, value)):
        return None
    return tuple(round(float(v) / 255, 6) for v in value) if max(value) > 2 else tuple(map(float, value))


def _read_table(
    found: Statements,
    table: Mapping[str, Any],
    place: str,
    what: str,
    strict: bool,
    taken: set[str] | None = None,
    depth: int = 0,
) -> None:
    """Settings of any program. ``strict``: they are this encoder's own, so an odd value is an error and not another
    thing's."""
    taken = set() if taken is None else taken  # an outer table's word is meant before an inner one's
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in table and name not in taken:
                before = len(found.said.get(name, ()))
                _take(found, name, table[alias], f"{place}.{alias}", what, strict)
                if len(found.said.get(name, ())) > before:
                    taken.add(name)
    if isinstance(table.get("quick_gelu"), bool) and "activation" not in taken:
        taken.add("activation")
        found.add("activation", "quick_gelu" if table["quick_gelu"] else "gelu", f"{place}.quick_gelu")
    if strict and depth == 0:
        for name in ("img_size", "patch_size", "embed_dim", "depth"):
            if isinstance(table.get(name), int) and not isinstance(table[name], bool):
                found.shape.setdefault(name, Statement(table[name], f"{place}.{name}"))
    if depth < 2:
        for name in INNER:
            if isinstance(table.get(name), dict):
                _read_table(found, table[name], f"{place}.{name}", what, strict=False, taken=taken, depth=depth + 1)


def _take(found: Statements, name: str, value: Any, place: str, what: str, strict: bool) -> None:
    if name in ("mean", "std"):
        triple = _triple(value)
        if triple is not None and name == "std" and min(triple) <= 0:
            triple = None
        if triple is not None:
            found.add(name, triple, place)
        elif strict and isinstance(value, list):
            raise UserError(f"{what}: {place} is {value!r}; three numbers on the 0 to 1 scale are expected")
    elif name == "activation":
        known = ACTIVATIONS.get(value.lower()) if isinstance(value, str) else None
        if known:
            found.add(name, known, place)
        elif strict and isinstance(value, str):
            raise UserError(f"{what}: {place} asks for {value!r}; {', '.join(CHOICES[name])} are supported")
    elif name == "num_heads":
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_HEADS:
            found.add(name, value, place)
        elif strict and place.startswith("config"):
            raise UserError(
                f"{what}: {place} says num_heads {value!r}; a whole number from 1 to {MAX_HEADS} is expected"
            )
    elif is_number(value) and 0 < value < 1:
        found.add(name, float(value), place)
    elif strict:
        raise UserError(f"{what}: {place} says {name} {value!r}; a small positive number is expected")


def _read_openmmlab(found: Statements, meta: Any, what: str) -> None:
    """``meta.cfg`` of mmengine and mmcv: the training's configuration as Python source."""
    text = next(
        (meta[name] for name in ("cfg", "config") if isinstance(meta, dict) and isinstance(meta.get(name), str)), ""
    )[:1_000_000]
    for name in ("mean", "std"):
        match = re.search(rf"\b{name}\s*=\s*[\[(]([-\d.,\s]+)[\])]", text)
        if match:
            try:
                triple = _triple([float(part) for part in match.group(1).split(",") if part.strip()])
            except ValueError:
                triple = None
            if triple:
                found.add(name, triple, f"meta.cfg {name}")
    if re.search(r"type\s*=\s*['\"]MoCoV3ViT['\"]", text) and re.search(r"arch\s*=\s*['\"]mocov3-small['\"]", text):
        found.add("num_heads", 12, "meta.cfg arch mocov3-small")


def _read_open_clip(found: Statements, config: Mapping[str, Any], what: str) -> None:
    model, preprocess = (_table(config, name) for name in ("model_cfg", "preprocess_cfg"))
    place = "open_clip_config.json"
    for name in ("mean", "std"):
        if isinstance(preprocess.get(name), list):
            _take(found, name, preprocess[name], f"{place}: preprocess_cfg.{name}", what, strict=True)
    vision = _table(model, "vision_cfg")
    timm_name = vision.get("timm_model_name")
    if model:
        if not isinstance(timm_name, str):
            found.add(
                "activation",
                "quick_gelu" if model.get("quick_gelu") is True else "gelu",
                f"{place}: model_cfg.quick_gelu",
            )
        width, channels = vision.get("width"), vision.get("head_width", 64)
        if all(isinstance(value, int) and value > 0 for value in (width, channels)) and not width % channels:
            found.add("num_heads", width // channels, f"{place}: vision_cfg.head_width")
        extra = vision.get("norm_kwargs")
        if isinstance(extra, dict) and "eps" in extra:
            _take(found, "layer_norm_eps", extra["eps"], f"{place}: vision_cfg.norm_kwargs.eps", what, strict=True)
        elif not isinstance(timm_name, str):
            found.implied["layer_norm_eps"] = Statement(1e-5, f"{place}: open_clip's own tower")
        if vision.get("act_kwargs") or vision.get("attentional_pool") or vision.get("no_ln_pre"):
            raise UserError(
                f"{what}: {place} asks for act_kwargs, attentional_pool or no_ln_pre, which are not supported"
            )
        for name, own in (("width", "embed_dim"), ("layers", "depth"), ("patch_size", "patch_size")):
            if isinstance(vision.get(name), int) and not isinstance(vision[name], bool):
                found.shape.setdefault(own, Statement(vision[name], f"{place}: vision_cfg.{name}"))
    if isinstance(timm_name, str):
        _read_architecture(found, timm_name, {}, f"{place}: timm_model_name", "vit", what, normalization=False)


def _read_huggingface(found: Statements, config: Mapping[str, Any], what: str) -> None:
    """transformers' config.json; what it leaves out is its class's default."""
    vision = config.get("vision_config")
    own: Mapping[str, Any] = vision if isinstance(vision, dict) and vision else config
    kind = own.get("model_type") or config.get("model_type")
    clip = isinstance(kind, str) and kind.startswith("clip") or own is vision
    if "hidden_act" in own:
        value = own["hidden_act"]
        if not isinstance(value, str) or value not in CHOICES["activation"]:
            raise UserError(
                f"{what}: config.json asks for activation {value!r}; {', '.join(CHOICES['activation'])} are supported"
            )
        found.add("activation", value, "config.json: hidden_act")
    elif kind:
        found.add("activation", "quick_gelu" if clip else "gelu", "config.json: the default of its class")
    if "layer_norm_eps" in own:
        _take(found, "layer_norm_eps", own["layer_norm_eps"], "config.json: layer_norm_eps", what, strict=True)
    elif kind:
        found.add("layer_norm_eps", 1e-5 if clip else 1e-12, "config.json: the default of its class")
    if "num_attention_heads" in own:
        _take(found, "num_heads", own["num_attention_heads"], "config.json: num_attention_heads", what, strict=True)
    elif kind and "hidden_size" in own:
        found.implied["num_heads"] = Statement(12, "config.json: the default of its class")
    for name, size in SIZES.items():
        if isinstance(own.get(name), int) and not isinstance(own[name], bool):
            found.shape.setdefault(size, Statement(own[name], f"config.json: {name}"))


def _read_preprocessor(found: Statements, table: Mapping[str, Any], what: str) -> None:
    if not table:
        return
    if table.get("do_normalize") is False:
        found.add("mean", UNIT[0], "preprocessor_config.json: do_normalize")
        found.add("std", UNIT[1], "preprocessor_config.json: do_normalize")
        return
    factor = table.get("rescale_factor")
    if table.get("do_rescale") is False or is_number(factor) and not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(f"{what}: preprocessor_config.json does not scale pixels by 1/255; only that is supported")
    for name in ("mean", "std"):
        triple = table.get(f"image_{name}")
        if isinstance(triple, list) and len(triple) == 3:
            _take(found, name, triple, f"preprocessor_config.json: image_{name}", what, strict=True)


def _read_timm(found: Statements, config: Mapping[str, Any], family: str, what: str) -> None:
    """The config.json of timm's hub: an architecture, its arguments, and the pretrained weights' preprocessing."""
    cfg = config.get("pretrained_cfg")
    own: Mapping[str, Any] = cfg if isinstance(cfg, dict) else config
    for name in ("mean", "std"):
        if isinstance(own.get(name), list | tuple) and len(own[name]) == 3:
            _take(found, name, own[name], f"config.json: pretrained_cfg.{name}", what, strict=True)
    architecture = config.get("architecture") or own.get("architecture")
    if isinstance(architecture, str):
        arguments = config.get("model_args")
        arguments = dict(arguments) if isinstance(arguments, dict) else {}
        if isinstance(config.get("global_pool"), str):
            arguments.setdefault("global_pool", config["global_pool"])
        _read_architecture(
            found, architecture, arguments, "config.json: architecture", family, what, normalization=True
        )
        found.implied.setdefault("interpolation", Statement("bicubic_antialias", "config.json: timm's own resizing"))


def _read_named(found: Statements, checkpoint: Checkpoint, family: str) -> None:
    """An architecture of timm's that the file's own entries name. It says something only where its shape is that of the
    tensors."""
    for name, place in _names(checkpoint):
        if not timm.is_model(name) or is_moco_v3(checkpoint) or family == "resnet":
            continue
        named = Statements()
        try:
            _read_architecture(named, name, {}, place, family, "", normalization=True)
        except UserError:
            found.notes.append(f"{place} names {name}, which is no encoder of this kind; it was not used")
            continue
        state = max(checkpoint.state_dicts.values(), key=len)
        width = next(
            (tensor.shape[0] for key, tensor in state.items() if key.endswith("patch_embed.proj.weight")), None
        )
        blocks = {match.group(1) for key in state if (match := re.search(r"blocks\.(\d+)\.", key))}
        if width == named.shape["embed_dim"].value and len(blocks) == named.shape["depth"].value:
            found.implied.update({key: value for key, value in named.implied.items() if key not in found.implied})
        else:
            found.notes.append(
                f"{place} names {name}, whose width or depth is not that of the tensors; it was not used"
            )
        return


def _names(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    for place in (
        checkpoint.top_level,
        *(checkpoint.top_level.get(name) for name in ("config", "hyper_parameters", "args")),
    ):
        if isinstance(place, dict):
            for name in NAMES_OF_ARCHITECTURE:
                value = place.get(name)
                value = value.get("name") if isinstance(value, dict) else value
                if isinstance(value, str) and 0 < len(value) < 200:
                    yield value, name


def _read_architecture(
    found: Statements, name: str, arguments: Mapping[str, Any], place: str, family: str, what: str, normalization: bool
) -> None:
    """What follows from a named architecture; ``normalization``: mean and std too."""
    architecture = timm_architectures.read_out(name, arguments, place, family, what)
    place = f"{place} {architecture.name}"
    for key, value in architecture.implied.items():
        if normalization or key not in ("mean", "std"):
            found.implied[key] = Statement(value, place)
    if family != "resnet" or arguments or place.startswith("config"):
        found.shape.update({key: Statement(value, place) for key, value in architecture.shape.items()})
