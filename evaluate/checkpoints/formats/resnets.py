"""ResNets of the Siamese and clustering methods: one format a prefix. The MLP that replaces ``fc`` never belongs to the
encoder."""

from collections.abc import Mapping
from typing import Any

from evaluate.checkpoints.formats.table import (
    RESNET_ROLES,
    SEQUENTIAL_ROLES,
    UNIT,
    Branch,
    Format,
    Rows,
    drop,
    resnet_rows,
    with_prefix,
)
from evaluate.checkpoints.reader import Checkpoint


def sequential_rows(prefix: str) -> Rows:
    """``nn.Sequential(*list(resnet.children())[:-1])`` behind a prefix: 0 conv1, 1 bn1, 4 to 7 the stages."""
    tensor = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
    rows: list[tuple[str, str | None]] = [
        (prefix + r"0\.weight", "conv1.weight"),
        (prefix + rf"1\.{tensor}", r"bn1.\1"),
    ]
    for stage in range(1, 5):
        start = prefix + rf"{stage + 3}\."
        rows += [
            (start + r"(\d+)\.conv([1-3])\.weight", rf"layer{stage}.\1.conv\2.weight"),
            (start + rf"(\d+)\.bn([1-3])\.{tensor}", rf"layer{stage}.\1.bn\2.\3"),
            (start + r"(\d+)\.downsample\.0\.weight", rf"layer{stage}.\1.downsample.0.weight"),
            (start + rf"(\d+)\.downsample\.1\.{tensor}", rf"layer{stage}.\1.downsample.1.\2"),
        ]
    return tuple(rows)


def _rows(prefix: str, *patterns: str) -> Rows:
    """torchvision's names behind a literal prefix, and what is dropped."""
    return (*resnet_rows(prefix.replace(".", r"\.")), *drop(*patterns))


def _resnet(name: str, description: str, branches: Mapping[str, Branch], **extra: Any) -> Format:
    return Format(
        name=name,
        description=description,
        family="resnet",
        branches=branches,
        pooling="mean",
        naming="timm",
        **extra,
    )


def _branch(prefix: str, *patterns: str, group: str | None = None) -> Branch:
    return Branch(_rows(prefix, *patterns), with_prefix(prefix, RESNET_ROLES), group)


def _is_own(checkpoint: Checkpoint) -> bool:
    """Whether ``pretrain/`` has written a file with solo-learn's names, which its keys alone do not tell."""
    return checkpoint.settings.get("method") in ("byol", "simclr", "mscn")


FC = r"fc\.(weight|bias)"
HEADS = r"((momentum_)?projector|predictor|(momentum_)?classifier|prototypes|(projection|prediction)_head)\..+"


FORMATS = (
    _resnet(
        "torchvision",
        "torchvision ResNet, also Barlow Twins' and VICReg's backbone files",
        {"encoder": _branch("", FC)},
        state_dict_paths=("", "model"),
        required_keys=(r"conv1\.weight", r"layer4\.0\.conv1\.weight"),
        forbidden_keys=(r"(projection_head|prototypes)\..+",),
        assumes=("mean",),
    ),
    _resnet(
        "torchvision_training",
        "training checkpoint of torchvision names",
        {"encoder": _branch("", r"fc\..+")},
        state_dict_paths=("state_dict",),
        required_keys=(r"conv1\.weight", r"layer4\.0\.conv1\.weight"),
        forbidden_keys=(r"(projection_head|prototypes)\..+",),
        assumes=("mean",),
    ),
    _resnet(
        "simclr_converted",
        "SimCLR converted from TensorFlow; its pictures are in [0, 1] without mean and std",
        {"encoder": _branch("", FC)},
        state_dict_paths=("state_dict",),
        required_keys=(r"conv1\.weight", r"layer4\.0\.conv1\.weight"),
        matches=lambda checkpoint, path: False,  # nothing in the file tells it: --format simclr_converted
        normalization=UNIT,
        forbidden_keys=(r"(projection_head|prototypes)\..+",),
    ),
    _resnet(
        "moco",
        "MoCo v1 or v2 training checkpoint; the query encoder is evaluated",
        {
            "query": _branch("encoder_q.", r"encoder_q\.fc\..+", r"encoder_k\..+", "queue", "queue_ptr"),
            "key": _branch("encoder_k.", r"encoder_k\.fc\..+", r"encoder_q\..+", "queue", "queue_ptr"),
        },
        state_dict_paths=("state_dict", "model"),
        required_keys=(r"encoder_q\.conv1\.weight",),
    ),
    _resnet(
        "simsiam",
        "SimSiam training checkpoint",
        {"encoder": _branch("encoder.", r"encoder\.fc\..+", r"predictor\..+")},
        state_dict_paths=("state_dict", "model"),
        required_keys=(r"encoder\.conv1\.weight", r"encoder\.fc\..+", r"predictor\..+"),
        forbidden_keys=(r"momentum_.+",),
    ),
    _resnet(
        "swav",
        "SwAV or DeepCluster-v2",
        {"encoder": _branch("", r"projection_head\..+", r"prototypes\..+", "queue", FC)},
        state_dict_paths=("", "state_dict", "model"),
        required_keys=(r"conv1\.weight", r"layer4\.0\.conv1\.weight", r"(projection_head|prototypes)\..+"),
    ),
    _resnet(
        "solo_learn",
        "solo-learn, a Lightning checkpoint; BYOL, SimCLR and MSCN of our own, in `model`",
        {
            "online": _branch("backbone.", r"backbone\.fc\..+", r"momentum_(backbone|encoder)\..+", HEADS, r"queue.*"),
            "momentum": _branch("momentum_backbone.", r"momentum_backbone\.fc\..+", r"backbone\..+", HEADS, r"queue.*"),
        },
        state_dict_paths=("state_dict", "model"),
        matches=lambda checkpoint, path: path == "state_dict" or _is_own(checkpoint),
        required_keys=(r"backbone\.conv1\.weight", r"(classifier|projector|momentum_backbone)\..+"),
        forbidden_keys=(r"(neck|head)\..+",),
    ),
    _resnet(
        "solo_learn_early",
        "solo-learn of an early release, a Lightning checkpoint",
        {
            "online": _branch("encoder.", r"encoder\.fc\..+", r"momentum_encoder\..+", HEADS, r"queue.*"),
            "momentum": _branch("momentum_encoder.", r"momentum_encoder\.fc\..+", r"encoder\..+", HEADS, r"queue.*"),
        },
        state_dict_paths=("state_dict",),
        required_keys=(r"encoder\.conv1\.weight", r"(classifier|projector|momentum_encoder)\..+"),
        forbidden_keys=(r"encoder\.fc\.\d+\..+",),
    ),
    _resnet(
        "simclr_sthalles",
        "SimCLR of sthalles, and other files with nothing but a backbone and its fc",
        {"encoder": _branch("backbone.", r"backbone\.fc\..+")},
        state_dict_paths=("state_dict", ""),
        required_keys=(r"backbone\.conv1\.weight",),
        forbidden_keys=(r"(neck|head|data_preprocessor|classifier|projector|momentum_backbone)\..+",),
        assumes=("mean",),
    ),
    _resnet(
        "barlow_twins",
        "Barlow Twins or VICReg training checkpoint",
        {"encoder": _branch("backbone.", r"backbone\.fc\..+", r"(projector|bn)\..+")},
        state_dict_paths=("model",),
        matches=lambda checkpoint, path: not _is_own(checkpoint),
        required_keys=(r"backbone\.conv1\.weight", r"projector\..+"),
    ),
    _resnet(
        "byol_sthalles",
        "BYOL of sthalles",
        {
            name: Branch(
                (*sequential_rows(r"encoder\."), *drop(r"proj[e]?c?tion\..+")),
                with_prefix("encoder.", SEQUENTIAL_ROLES),
                f"{name}_network_state_dict",
            )
            for name in ("online", "target")
        },
        required_keys=(r"encoder\.0\.weight",),
    ),
    _resnet(
        "lightly",
        "lightly's examples",
        {
            "online": Branch(
                (*sequential_rows(r"backbone\."), *drop(r"(backbone_momentum|projection_head_momentum)\..+", HEADS)),
                with_prefix("backbone.", SEQUENTIAL_ROLES),
            ),
            "momentum": Branch(
                (*sequential_rows(r"backbone_momentum\."), *drop(r"(backbone|projection_head_momentum)\..+", HEADS)),
                with_prefix("backbone_momentum.", SEQUENTIAL_ROLES),
            ),
        },
        state_dict_paths=("state_dict", ""),
        required_keys=(r"backbone\.0\.weight", r"backbone\.4\.0\.conv1\.weight"),
    ),
    _resnet(
        "vissl",
        "VISSL trunk",
        {"trunk": _branch("_feature_blocks.", r"_feature_blocks\.fc\..+")},
        state_dict_paths=("classy_state_dict/base_model/model/trunk", "model_state_dict", "trunk", "state_dict", ""),
        required_keys=(r"_feature_blocks\.conv1\.weight",),
    ),
    _resnet(
        "dino_resnet",
        "DINO ResNet-50 training checkpoint; the teacher is evaluated",
        {name: _branch("backbone.", r"backbone\.fc\..+", r"head\..+", group=name) for name in ("teacher", "student")},
        required_keys=(r"backbone\.conv1\.weight",),
    ),
)
