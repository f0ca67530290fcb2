"""One invocation of ``run_all.py``: where each node's files and records lie, and which records already stand."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluate.data.identity import DataIdentities, fingerprint
from evaluate.encoder.spec import EncoderSpec, read_spec
from evaluate.harness import rows
from evaluate.harness.plan import Node, identities_of, is_recommended
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Settings, as_json
from results import record
from results.atomic import atomic_write, sha256


def work_folder(row_folder: Path, identity: Mapping[str, Any]) -> Path:
    """Where a measurement keeps its files: named by all that can change its number, so that none finds another's."""
    return row_folder / f"{identity['task']}-{record.key_of(identity)}"


def stale_files(out: Path, entry: Mapping[str, Any]) -> list[str]:
    """The files of a record that are missing or damaged."""
    places = {name: (out / entry["work"] / name, digest) for name, digest in entry.get("files", {}).items()}
    return [name for name, (path, digest) in places.items() if not path.is_file() or sha256(path) != digest]


@dataclass
class Suite:
    """What all nodes of one invocation share, and how to find what a node has made."""

    out: Path
    identities: DataIdentities
    nodes: Sequence[Node]
    configs: Mapping[str, tuple[str, Settings]]
    """By node: the preset's name and the resolved config, of an encoder whose method recommends nothing."""
    of_encoder: Callable[[EncoderSpec | None], Mapping[str, tuple[str, Settings]]] | None = None
    """The same for an encoder; None: ``configs`` are for all."""
    seed: int = 0
    more_seeds: tuple[int, ...] = ()
    """With which the tasks that draw something are repeated."""
    limit: int | None = None
    device: str = "auto"
    keep_models: bool = False
    compile: bool = False
    log: str | None = None
    """Where curves go besides their file (``evaluate.runtime.scalars``)."""
    workers: int = 0
    conversion: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By row: what the user says of its checkpoint (``evaluate.checkpoints.command_line``)."""
    codes: dict[str, str] = field(default_factory=dict)
    """By row, FILE.py:CLASS of a user's own encoder."""
    folders: dict[str, Path] = field(default_factory=dict)
    """By row: the folder that belongs to its encoder, once its checkpoint is known."""
    specs: dict[str, EncoderSpec | None] = field(default_factory=dict)
    """What encoders are, by their fingerprint."""
    refused: set[str] = field(default_factory=set)
    """Rows whose checkpoint could not be converted."""
    gpus: Mapping[str, int] = field(default_factory=dict)
    """By task, ROW/NODE, as many processes as it is measured by; 1 where it is not named."""
    renders: bool = True
    """Whether the table is rendered after each task; not where others run other parts of it."""
    said: set[str] = field(default_factory=set)
    """What has been told once."""

    def of_seed(self, seed: int) -> "Suite":
        """The same invocation with another seed; what is learned of rows is shared."""
        return replace(self, seed=seed, more_seeds=())

    def claim(self, row: str, checkpoint: Path) -> Path:
        """The folder of a row's encoder; another checkpoint of the same name has another one."""
        if row not in self.folders:
            source = rows.source_id(checkpoint, self.conversion.get(row, {}))
            self.folders[row] = rows.claim_folder(self.out, row, source)
        return self.folders[row]

    def encoder(self, row: str) -> Path:
        """The canonical encoder file of a row."""
        return self.folders[row] / rows.ENCODER

    def encoder_fingerprint(self, row: str) -> str | None:
        """None without a whole and certified encoder, or where the checkpoint given now could not be converted."""
        if row in self.refused or row not in self.folders:
            return None
        return rows.fingerprint_of(self.folders[row])

    def inputs(self, row: str, node: Node) -> dict[str, Path]:
        """The files that a node takes from the nodes that it needs, by name."""
        found = {}
        for name, (needed, file) in node.inputs.items():
            identity = self.identity(row, next(other for other in self.nodes if other.name == needed))
            if identity:
                found[name] = work_folder(self.folders[row], identity) / file
        return found

    def config(self, row: str, node: Node) -> tuple[str, Settings]:
        """The preset's name and the config of a node, for the encoder of a row."""
        fingerprint = self.encoder_fingerprint(row) if self.of_encoder else None
        if self.of_encoder is None or fingerprint is None:
            return self.configs[node.name]
        if fingerprint not in self.specs:
            self.specs[fingerprint] = read_spec(self.encoder(row))
        return self.of_encoder(self.specs[fingerprint])[node.name]

    def data(self, node: Node) -> dict[str, str]:
        """The identities of what a node reads, by part of the data root."""
        return identities_of(self.identities, node, self.configs[node.name][1])

    def identity(self, row: str, node: Node) -> record.Identity | None:
        """What the key of a node's record is made of, or None before there is an encoder."""
        encoder = self.encoder_fingerprint(row)
        if encoder is None:
            return None
        return record.identity(
            node.name,
            as_json(self.config(row, node)[1]),
            seed=self.seed,
            limit=self.limit,
            encoder_fingerprint=encoder,
            data_fingerprint=fingerprint(self.data(node)),
            inputs={name: sha256(path) if path.is_file() else None for name, path in self.inputs(row, node).items()},
        )

    def write_config(self, row: str, node: Node) -> Path:
        """Writes what a node runs with into its folder, as ``--config`` reads it; returns the file."""
        identity = self.identity(row, node)
        if identity is None:
            raise UserError(f"{self.encoder(row)} is missing or damaged; run the same command again")
        folder = work_folder(self.folders[row], identity)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.json"
        with atomic_write(path) as written:
            preset = self.config(row, node)[0]
            content = {"task": node.task, "preset": preset, "config": identity["config"]}
            written.write_text(json.dumps(content, indent=1))
        if preset != self.configs[node.name][0]:
            self._say(f"{row}/{is_recommended(node, preset)}")
        return path

    def find(self, row: str, node: Node) -> dict[str, Any] | None:
        """The ``ok`` record that a run could only repeat, or None; says once why an older number is not taken."""
        identity = self.identity(row, node)
        if identity is None:
            return None
        entry = record.find(self.out / "records", row, identity)
        if entry is None:
            self._say_what_changed(row, node, identity)
            return None
        gone = stale_files(self.out, entry)
        if gone:
            self._say(f"{row}/{node.name}: {self.out / entry['work'] / gone[0]} is missing or damaged: measured again")
            return None
        return entry

    def entries(self, shown_rows: Sequence[str], nodes: Sequence[Node]) -> list[dict[str, Any]]:
        """The records that this invocation's table may show: of these very encoders and, for the nodes it runs, of
        these settings.

        Another checkpoint of the same name, or an earlier run with other settings, may have left records in the same
        folder.
        """
        fingerprints = {row: self.encoder_fingerprint(row) for row in shown_rows}
        keys: dict[tuple[str, str], set[str]] = {(row, node.name): set() for row in shown_rows for node in nodes}
        for run in (self.of_seed(seed) for seed in (self.seed, *self.more_seeds)):
            for row, node in itertools.product(shown_rows, nodes):
                fields = run.identity(row, node)
                keys[row, node.name] |= {record.key_of(fields)} if fields else set()
        shown = []
        for entry in record.read_all(self.out / "records"):
            place, row = (entry["encoder"], entry["task"]), entry["encoder"]
            if place not in keys:
                continue  # of another encoder, or of a node that this invocation does not ask for
            if entry["encoder_fingerprint"] is None:
                if fingerprints[row] is None or entry.get("folder") == self.folders[row].name:
                    shown.append(entry)
            elif record.key_of(entry) in keys[place]:
                shown.append(entry)
        return shown

    def _say_what_changed(self, row: str, node: Node, identity: record.Identity) -> None:
        for entry in record.of(self.out / "records", row, node.name):
            if entry["status"] != "ok":
                continue
            if (
                entry.get("encoder_fingerprint") != identity["encoder_fingerprint"]
                or entry.get("config") != identity["config"]
            ):
                continue
            now = self.data(node)
            changed = sorted(
                part for part, value in entry.get("data", {}).items() if part in now and now[part] != value
            )
            if changed:
                self._say(f"{row}/{node.name}: {', '.join(changed)} changed since this was measured: measured again")

    def _say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            print(text, flush=True)
