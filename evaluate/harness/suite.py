"""One invocation of ``run_all.py``: where each node's files and records lie, and which records already stand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluate.checkpoints.files import digests, weights_file
from evaluate.data import layouts
from evaluate.encoder import certificate_path
from evaluate.harness.plan import Node, data_sets
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Settings, as_json
from results import record
from results.atomic import atomic_write, sha256


def is_converted(checkpoint: Path, encoder: Path, branch: str | None) -> bool:
    """Whether an encoder file was made from exactly this checkpoint (a file, an index of files, a folder) and branch."""
    certificate = certificate_path(encoder)
    if not (encoder.is_file() and certificate.is_file()):
        return False
    made = json.loads(certificate.read_text())
    try:
        source = digests(weights_file(checkpoint))
        return (made["source_sha256"], made.get("source_json_sha256")) == source and branch in (None, made["branch"])
    except UserError:
        return False  # the conversion says what is wrong


def work_folder(out: Path, row: str, identity: Mapping[str, Any]) -> Path:
    """Where a measurement keeps its files: named by all that can change its number, so that none finds another's."""
    return out / row / f"{identity['task']}-{record.key_of(identity)}"


@dataclass
class Suite:
    """What all nodes of one invocation share, and how to find what a node has made."""

    out: Path
    data_root: Path
    configs: Mapping[str, tuple[str, Settings]]
    """By node: the preset's name and the resolved config."""
    seed: int = 0
    limit: int | None = None
    device: str = "auto"
    workers: int = 0
    branch: str | None = None
    refused: set[str] = field(default_factory=set)
    """Rows whose checkpoint could not be converted."""
    fingerprints: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Of data sets, each computed once."""

    def encoder(self, row: str) -> Path:
        """The canonical encoder file of a row."""
        return self.out / row / "encoder.safetensors"

    def inputs(self, row: str, node: Node) -> dict[str, Path]:
        """The files that a node takes from the nodes that it needs, by name."""
        found = {}
        for name, (needed, file) in node.inputs.items():
            identity = self.identity(row, next(other for other in self.nodes if other.name == needed))
            if identity:
                found[name] = work_folder(self.out, row, identity) / file
        return found

    @property
    def nodes(self) -> list[Node]:
        """The nodes of this invocation."""
        from evaluate.harness.plan import NODES

        return [node for node in NODES if node.name in self.configs]

    def identity(self, row: str, node: Node) -> record.Identity | None:
        """What the key of a node's record is made of, or None before there is an encoder."""
        fingerprint = self.encoder_fingerprint(row)
        if fingerprint is None:
            return None
        config = self.configs[node.name][1]
        return record.identity(
            node.name,
            as_json(config),
            seed=self.seed,
            limit=self.limit,
            encoder_fingerprint=fingerprint,
            data_fingerprint=self._data_fingerprint(data_sets(node, config)),
            inputs={name: sha256(path) if path.is_file() else None for name, path in self.inputs(row, node).items()},
        )

    def write_config(self, row: str, node: Node) -> Path:
        """Writes what a node runs with into its folder, as ``--config`` reads it; returns the file."""
        identity = self.identity(row, node)
        if identity is None:
            raise UserError(f"{self.encoder(row)} is not there any more; run the same command again")
        folder = work_folder(self.out, row, identity)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.json"
        with atomic_write(path) as written:
            written.write_text(json.dumps({"task": node.task, "preset": self.configs[node.name][0], "config": identity["config"]}, indent=1))
        return path

    def find(self, row: str, node: Node) -> dict[str, Any] | None:
        """The ``ok`` record of a node that could only be repeated, or None."""
        identity = self.identity(row, node)
        return record.find(self.out / "records", row, identity) if identity else None

    def entries(self, rows: Sequence[str], nodes: Sequence[Node]) -> list[dict[str, Any]]:
        """The records that this invocation's table may show: of these very encoders and, for the nodes it runs, of these settings.

        Another checkpoint of the same name, or an earlier run with other settings, may have left records in the same folder.
        """
        fingerprints = {row: self.encoder_fingerprint(row) for row in rows}
        wanted = {(row, node.name): self.identity(row, node) for row in rows for node in nodes}
        keys = {place: record.key_of(fields) if fields else None for place, fields in wanted.items()}
        shown = []
        for entry in record.read_all(self.out / "records"):
            place, row = (entry["encoder"], entry["task"]), entry["encoder"]
            if row not in rows or entry["encoder_fingerprint"] not in (None, fingerprints[row]):
                continue
            if entry["encoder_fingerprint"] is None or place not in keys or entry["key"] == keys[place]:
                shown.append(entry)
        return shown

    def encoder_fingerprint(self, row: str) -> str | None:
        """None where there is no certified encoder, or where the checkpoint given now could not be converted."""
        certificate = certificate_path(self.encoder(row))
        if row in self.refused or not certificate.is_file():
            return None
        return json.loads(certificate.read_text())["fingerprint"]

    def _data_fingerprint(self, names: tuple[str, ...]) -> str:
        if names not in self.fingerprints:
            self.fingerprints[names] = layouts.fingerprint(self.data_root, names)
        return self.fingerprints[names]
