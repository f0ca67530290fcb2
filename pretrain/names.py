"""State dicts under the names of a method's official code, and back."""

from torch import Tensor


def from_official_names(state: dict[str, Tensor], official: dict[str, str]) -> dict[str, Tensor]:
    """A state dict under our names, from one under the official names; ``official`` maps ours to theirs.

    Raises:
        ValueError: naming keys that are absent or left over.
    """
    wanted = {theirs: ours for ours, theirs in official.items()}
    if wanted.keys() != state.keys():
        missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        raise ValueError(f"state dict does not fit this model: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return {wanted[name]: tensor for name, tensor in state.items()}


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a method whose modules carry the official names."""
    return dict(state)


def from_official(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The official state dict of such a method. Raises ValueError naming keys that are absent or left over."""
    return from_official_names(state, {name: name for name in names})
