"""Writes an encoder back out in the files that other programs load: MAE's, timm's, Hugging Face's, torchvision's.

    python -m evaluate.convert ENCODER_OR_CKPT --to mae|timm|hf|torchvision [--out FILE]

Every file also carries ``encoder_spec`` (``evaluate.checkpoints.fields``), so that it converts back to the same
encoder. That is proved before a file gets its name: it is converted, and every tensor and every field that can change a
feature must be equal, bit by bit.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluate.checkpoints import fields
from evaluate.checkpoints.conversion import convert
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec, read_spec
from evaluate.runtime.errors import UserError, unwritten
from results.atomic import atomic_write

State = dict[str, Tensor]
# timm name to the name that transformers' save_pretrained gives it in a ViTModel; qkv comes apart below
HUGGINGFACE = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layer.\1.attention.attention.{part}.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"encoder.layer.\1.output.dense.\2"),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
)


@dataclass(frozen=True)
class Target:
    """A format to write."""

    ending: str
    """Of the file's name; empty: a folder."""
    refuses: Callable[[EncoderSpec], str]
    """Why an encoder cannot be expressed in this format, or an empty text."""
    write: Callable[[Path, EncoderSpec, State], None]
    """Writes the state dict to a path."""
    notes: Callable[[EncoderSpec], list[str]]
    """What a program that loads the file must be told, because the format itself cannot say it."""


def export(encoder: Encoder, to: str, out: Path) -> list[str]:
    """Writes ``out`` (a file; for "hf" a folder) and returns what its reader must know.

    Raises:
        UserError: an unknown format, an encoder that it cannot express, or a place that cannot be written.
    """
    if to not in TARGETS:
        raise UserError(f"--to takes {', '.join(TARGETS)}, not {to!r}")
    target, spec = TARGETS[to], encoder.spec
    if reason := target.refuses(spec):
        raise UserError(f"{to} files cannot express this encoder ({spec.source_format}): {reason}")
    if target.ending == ".safetensors" != out.suffix:  # readers go by it
        raise UserError(f"{to} files end in {target.ending}; write --out {out.with_suffix(target.ending)}")
    if out.is_dir() and (target.ending or any(out.iterdir())):
        raise UserError(f"{out} is a folder that is there already; choose another place with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as written:
            target.write(
                written,
                spec,
                {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.model.state_dict().items()},
            )
            _prove(written, encoder, out)
    except OSError as error:
        raise unwritten(out, error) from error
    return target.notes(spec)


def default_out(path: Path, to: str) -> Path:
    """``NAME.mae.pth`` and the like beside the encoder."""
    source = path / "folder" if path.is_dir() else path
    return source.with_name(f"{path.stem}.{to}{TARGETS[to].ending if to in TARGETS else ''}")


def _prove(written: Path, encoder: Encoder, out: Path) -> None:
    """Converts the file just written and demands the same encoder; the fingerprint covers tensors and semantics."""
    with TemporaryDirectory() as folder:
        again = Path(folder) / "encoder.safetensors"
        made = convert(written, again)
        spec = read_spec(again)
    if spec is None or made.fingerprint != encoder.fingerprint or spec.pooling != encoder.spec.pooling:
        raise UserError(f"{out} was not written: read back, it is not the same encoder; please report it")


def _plain_names(spec: EncoderSpec) -> str:
    """Why an encoder is no plain ViT with class token, for formats that know nothing else."""
    if spec.family != "vit":
        return "it is a ResNet; choose torchvision or timm"
    faults = {
        "relative position bias": spec.rel_pos_bias,
        "layer scale": spec.layer_scale,
        "register tokens": spec.registers,
        "a norm before the blocks": spec.pre_norm,
        "no class token": not spec.class_token,
        "no position embedding": not spec.pos_embed,
        "a class token without position": not spec.pos_embed_prefix,
    }
    found = [fault for fault, there in faults.items() if there]
    return f"it has {' and '.join(found)}; choose timm" if found else ""


def _refused_by_mae(spec: EncoderSpec) -> str:
    if reason := _plain_names(spec):
        return reason
    if spec.activation != "gelu":
        return f"its activation is {spec.activation}, which readers of MAE's files compute as gelu; choose timm or hf"
    return "" if spec.qkv_bias else "its queries, keys and values have no bias; choose timm or hf"


def _refused_by_huggingface(spec: EncoderSpec) -> str:
    return _plain_names(spec) or (
        "its norm follows the pooling (fc_norm), which ViTModel does not have; choose mae or timm"
        if spec.fc_norm
        else ""
    )


def _refused_by_torchvision(spec: EncoderSpec) -> str:
    return (
        ""
        if spec.family == "resnet"
        else "it is a ViT, torchvision's names are those of ResNets; choose timm, mae or hf"
    )


def _refused_by_timm(spec: EncoderSpec) -> str:
    return ""


def _write_mae(path: Path, spec: EncoderSpec, state: State) -> None:
    torch.save({"model": state, fields.ENTRY: fields.to_metadata(spec)}, path)


def _write_timm(path: Path, spec: EncoderSpec, state: State) -> None:
    save_file(state, path, {"format": "pt", fields.ENTRY: json.dumps(fields.to_metadata(spec))})


def _write_torchvision(path: Path, spec: EncoderSpec, state: State) -> None:
    """A flat state dict, as ``load_state_dict`` takes it; what is no tensor goes where torch keeps module versions."""
    flat = OrderedDict(state)
    metadata = {fields.ENTRY: fields.to_metadata(spec)}
    flat._metadata = metadata  # type: ignore[attr-defined]  # torch sets it on the plain class
    torch.save(flat, path)


def _write_huggingface(folder: Path, spec: EncoderSpec, state: State) -> None:
    folder.mkdir()
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.layer_norm_eps,
        "image_size": spec.img_size,
        "patch_size": spec.patch_size,
        "num_channels": 3,
        "qkv_bias": spec.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
        fields.ENTRY: fields.to_metadata(spec),
    }
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": spec.img_size, "width": spec.img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    save_file(huggingface_names(state), folder / "model.safetensors", {"format": "pt"})


def huggingface_names(state: State) -> State:
    """A plain ViT's tensors under ViTModel's names; query, key and value apart."""
    renamed: State = {}
    for name, tensor in state.items():
        pattern, template = next((row for row in HUGGINGFACE if re.fullmatch(row[0], name)), ("", ""))
        assert template, f"{name} has no Hugging Face name"
        new = re.sub(pattern, template, name)
        if "{part}" in new:
            renamed.update(
                {
                    new.format(part=part): piece.clone()
                    for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True)
                }
            )
        else:
            renamed[new] = tensor
    return renamed


def _no_notes(spec: EncoderSpec) -> list[str]:
    return []


def _mae_notes(spec: EncoderSpec) -> list[str]:
    said = [f"give its reader {spec.num_heads} heads, mean {spec.mean} and std {spec.std}; MAE's files do not say them"]
    if spec.layer_norm_eps != 1e-6:
        said.append(f"LayerNorm's eps is {spec.layer_norm_eps}; programs that read MAE's files take 1e-6 unless told")
    return said


def _timm_notes(spec: EncoderSpec) -> list[str]:
    if spec.family == "resnet":
        return [f"give timm num_classes=0; mean {spec.mean}, std {spec.std}"]
    notes = [f"give timm the arguments {timm_arguments(spec)}; mean {spec.mean}, std {spec.std}"]
    if spec.layer_norm_eps != 1e-6 or spec.activation != "gelu":
        notes.append(f"and a norm_layer with eps {spec.layer_norm_eps} and act_layer {spec.activation}")
    return notes


def timm_arguments(spec: EncoderSpec) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` for a ViT of another shape than the named one."""
    common = {
        "num_classes": 0,
        "img_size": spec.img_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
    }
    if spec.rel_pos_bias:
        return {**common, "use_abs_pos_emb": spec.pos_embed, "use_rel_pos_bias": True}
    return {
        **common,
        "global_pool": "avg" if spec.fc_norm or not spec.class_token else "token",
        "class_token": spec.class_token,
        "pre_norm": spec.pre_norm,
        "final_norm": spec.final_norm or spec.fc_norm,
        "fc_norm": spec.fc_norm,
        "reg_tokens": spec.registers,
        "qkv_bias": spec.qkv_bias,
        "init_values": 1.0 if spec.layer_scale else None,
        "no_embed_class": not spec.pos_embed_prefix,
    }


def _huggingface_notes(spec: EncoderSpec) -> list[str]:
    if spec.final_norm:
        return []
    return [
        "the encoder has no final norm: ViTModel warns that layernorm is new; take hidden_states[-1], not "
        "last_hidden_state"
    ]


TARGETS = {
    "mae": Target(".pth", _refused_by_mae, _write_mae, _mae_notes),
    "timm": Target(".safetensors", _refused_by_timm, _write_timm, _timm_notes),
    "hf": Target("", _refused_by_huggingface, _write_huggingface, _huggingface_notes),
    "torchvision": Target(".pth", _refused_by_torchvision, _write_torchvision, _no_notes),
}
