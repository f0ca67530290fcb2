"""The table of one or several output folders, in any format, beside chosen published rows; a check of a folder; or
which columns tell what.

    python -m results OUT [OUT ...] [--baselines mae,dino] [--reference ROW] [--format tex,csv] [--to FOLDER]
    python -m results verify OUT [OUT ...]
    python -m results ranking [ARCHITECTURE]

verify checks the checksums of the records and recomputes every metric whose outcomes are kept image by image. ranking
says how kNN, 1 % and LIN rank the published pretrainings of an architecture beside the dear columns. Exit status: 0 all
well, 1 verify found a fault, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

from results import frame, published, ranking, tables
from results.ending import leave
from results.verify import verify


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        commands = {"verify": _verify, "ranking": _ranking}
        return commands[argv[0]](argv[1:]) if argv[:1] and argv[0] in commands else _tables(argv)
    except (frame.Disagreement, FileNotFoundError, published.NoSuchBaseline) as error:
        print(f"results: {error}", file=sys.stderr)
        return 2


def _tables(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("outs", type=Path, nargs="+", metavar="OUT", help="an output folder of run_all.py")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="encoders, in this order (default: all)")
    parser.add_argument(
        "--baselines",
        default="",
        metavar="NAME[@EPOCHS],…",
        help="published rows of the encoders' architectures, as mae or mocov2@800 (default: a few for each)",
    )
    parser.add_argument("--reference", metavar="ROW", help="also show every row's difference from this row")
    parser.add_argument(
        "--format",
        default=",".join(tables.FORMATS),
        metavar="NAME,…",
        help=f"the files to write, of {', '.join(f'{name} ({file})' for name, (file, _) in tables.FORMATS.items())} "
        "(default: all)",
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write them here (default: the first OUT)")
    arguments = parser.parse_args(argv)
    names = _split(arguments.format)
    unknown = [name for name in names if name not in tables.FORMATS]
    if unknown or not names:
        parser.error(f"--format {arguments.format}: the formats are {', '.join(tables.FORMATS)}")
    to = arguments.to or arguments.outs[0]
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--to {to}: the folder cannot be made ({error.strerror})")
    entries, problems = frame.records(arguments.outs)
    shown = arguments.rows or list(dict.fromkeys(entry["encoder"] for entry in entries))
    made = tables.build(to, shown, entries, problems, _split(arguments.baselines), arguments.reference)
    print(tables.write(to, made, names))
    return 0


def _verify(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m results verify", description=verify.__doc__)
    parser.add_argument("outs", type=Path, nargs="+", metavar="OUT", help="an output folder of run_all.py")
    status = 0
    for out in parser.parse_args(argv).outs:
        if not (out / "records").is_dir():
            raise FileNotFoundError(
                f"there are no records below {out / 'records'}; give an output folder of run_all.py"
            )
        checked, faults = verify(out)
        print("\n".join(checked))
        for fault in faults:
            print(f"results: {fault}", file=sys.stderr)
        print(f"{out}: {len(checked)} records checked, {len(faults)} faults")
        status = max(status, int(bool(faults)))
    return status


def _ranking(argv: list[str]) -> int:
    known = sorted({line["architecture"] for line in published.numbers()})
    parser = argparse.ArgumentParser(prog="python -m results ranking", description=ranking.__doc__)
    parser.add_argument(
        "architecture",
        nargs="?",
        default=published.PAPERS,
        metavar="ARCHITECTURE",
        help="as papers name it (default: %(default)s)",
    )
    architecture = parser.parse_args(argv).architecture
    if architecture not in known:
        parser.error(f"there are no published numbers of {architecture!r}; there are some of {', '.join(known)}")
    print(ranking.text(architecture))
    return 0


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    leave(main)
