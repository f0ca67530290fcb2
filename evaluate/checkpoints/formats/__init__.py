"""Every checkpoint format that is known, and which one a file is of."""

from importlib import import_module

from evaluate.checkpoints.formats.table import Branch, Format
from evaluate.checkpoints.reader import Checkpoint
from evaluate.runtime.errors import UserError

# a format is a file of this folder that defines FORMATS, and its name here
MODULES = ("siameseim", "plain_vit", "moco_v3", "beit", "clip", "huggingface", "mmpretrain", "resnets")
FORMATS: tuple[Format, ...] = tuple(
    known for module in MODULES for known in import_module(f"{__name__}.{module}").FORMATS
)
# what different methods call the two branches
ALIASES = (("online", "student", "base", "query", "encoder"), ("target", "ema", "teacher", "momentum", "key"))
STEMS = ("patch_embed.proj.weight", "conv1.weight")


def by_name(name: str) -> Format:
    """The format called so; raises UserError listing the legal names."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise UserError(f"there is no format {name!r}; the formats are {', '.join(known.name for known in FORMATS)}")


def recognize(checkpoint: Checkpoint, asked: str | None = None) -> tuple[Format, str]:
    """The format of a file and the path of its state dict, by keys and shapes, or as asked.

    Raises:
        UserError: no format fits (the keys seen are listed), or several do.
    """
    if asked is not None:
        known = by_name(asked)
        group = known.path_in(checkpoint)
        if group is None:  # the signature does not hold, but the state dict may lie where the format has it
            places = [branch.state_dict_path for branch in known.branches.values() if branch.state_dict_path] or list(
                known.state_dict_paths
            )
            group = next((place for place in places if place in checkpoint.state_dicts), None)
        if group is None:
            raise UserError(
                f"{checkpoint.path} is not of format {asked}: it has no state dict at "
                f"{' or '.join(map(repr, known.state_dict_paths))}"
            )
        return known, group
    fitting = [(known, group) for known in FORMATS if (group := known.path_in(checkpoint)) is not None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(known.name for known, _ in fitting)
        raise UserError(f"{checkpoint.path} fits several formats ({names}); choose one with --format")
    prefixes = sorted(
        {
            key.removesuffix(stem)
            for state in checkpoint.state_dicts.values()
            for key in state
            for stem in STEMS
            if key.endswith(stem)
        }
    )
    if len(prefixes) > 1:
        raise UserError(
            f"{checkpoint.path} is of no known format and holds several encoders ({', '.join(map(repr, prefixes))}): "
            f"the branch is ambiguous"
        )
    raise UserError(
        f"{checkpoint.path} is of no known format; keys seen: {_seen(checkpoint)}; choose one with --format if it is "
        f"one of them"
    )


def choose_branch(known: Format, checkpoint: Checkpoint, group: str, asked: str | None) -> tuple[str, Branch]:
    """The branch asked for, under its own name or another method's, or the default one.

    Raises:
        UserError: no such branch (the legal ones are listed).
    """
    there = {
        name: branch
        for name, branch in known.branches.items()
        if branch.state_dict_path is None or branch.state_dict_path in checkpoint.state_dicts
    }
    if asked is None:
        return next(iter(there.items()))
    names = next((names for names in ALIASES if asked in names), (asked,))
    for name in (asked, *names):
        if name in there:
            return name, there[name]
    raise UserError(f"{checkpoint.path} ({known.name}) has no branch {asked!r}; its branches are {', '.join(there)}")


def _seen(checkpoint: Checkpoint, most: int = 12) -> str:
    keys = [f"{group}: {key}" if group else key for group, state in checkpoint.state_dicts.items() for key in state]
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
