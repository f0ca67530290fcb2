"""The table of formats in docs/conversion.md is the code's."""

from pathlib import Path

from evaluate.checkpoints import formats
from evaluate.checkpoints.formats.table import CLIP, HALF, IMAGENET, UNIT

DOCUMENT = Path(__file__).parents[2] / "docs" / "conversion.md"
NORMALIZATIONS = {IMAGENET: "ImageNet", HALF: "0.5", UNIT: "none", CLIP: "CLIP"}


def row(known: formats.Format) -> str:
    """One line of the table."""
    places = ", ".join(
        f"`{group}`" if group else "top level"
        for group in dict.fromkeys(
            b.state_dict_path or g for b in known.branches.values() for g in known.state_dict_paths
        )
    )
    marks = ", ".join(f"`{pattern}`".replace("|", "\\|") for pattern in known.required_keys)
    semantics = f"{known.layer_norm_eps:g}, {known.activation}" if known.family == "vit" else "1e-05 (BatchNorm)"
    assumed = ", ".join("mean and std" if name == "mean" else name for name in known.assumes) or "–"
    return (
        f"| `{known.name}` | {known.description.replace('|', chr(92) + '|')} | {places} | {marks} | "
        f"{', '.join(known.branches)} | {known.pooling} "
        f"| {semantics} | {NORMALIZATIONS[known.normalization]} | {known.interpolation} | {assumed} |"
    )


def test_every_format_stands_in_the_table() -> None:
    lines = DOCUMENT.read_text().splitlines()
    for known in formats.FORMATS:
        assert row(known) in lines, f"docs/conversion.md lacks, or differs from:\n{row(known)}"
