"""The nodes of the table: which task with which settings fills which columns, and which records already stand.

The paper's table is read off ``COLUMNS``; ``NODES`` lists what must run for it, dearest first, so that two processes end together.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.data import layouts
from evaluate.harness.plan import Node, as_json, module_of
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import split_overrides
from results import record
from results.atomic import sha256


def is_converted(checkpoint: Path, encoder: Path, branch: str | None) -> bool:
    """Whether an encoder file was made from exactly this checkpoint (a file, an index of files, a folder) and branch."""
    certificate = encoder.with_name(encoder.stem + ".certificate.json")
    if not (encoder.is_file() and certificate.is_file()):
        return False
    from evaluate.checkpoints.files import digests, weights_file  # brings torch along, which a plan does without

    made = json.loads(certificate.read_text())
    try:
        source = digests(weights_file(checkpoint))
        return (made["source_sha256"], made.get("source_json_sha256")) == source and branch in (None, made["branch"])
    except UserError:
        return False  # the conversion says what is wrong


@dataclass
class Run:
    """What all nodes of one invocation share, and how to find the record of a node."""

    out: Path
    data_root: Path
    preset: str
    configs: dict[str, Any]
    assignments: list[str]  # --set, as given
    seed: int = 0
    limit: int | None = None
    device: str = "auto"
    workers: int = 0
    branch: str | None = None
    refused: set[str] = dataclasses.field(default_factory=set)  # rows whose checkpoint could not be converted
    fingerprints: dict[tuple[str, ...], str] = dataclasses.field(default_factory=dict)

    def settings(self, node: Node) -> list[str]:
        """The ``NAME=VALUE`` settings that reach one node: its own, then those given for its task or for itself."""
        given = split_overrides(self.assignments)
        values = {**dict(node.overrides), **given.get(node.task, {}), **given.get(node.name, {})}
        return [f"{name}={value}" for name, value in values.items()]

    def find(self, encoder: str, node: Node) -> dict[str, Any] | None:
        """The ``ok`` record of a node that could only be repeated, or None."""
        fields = self._fields(encoder, node)
        return record.find(self.out / "records", encoder, fields) if fields else None

    def entries(self, rows: Sequence[str], nodes: Sequence[Node]) -> list[dict[str, Any]]:
        """The records that this invocation's table may show: of these very encoders and, for the nodes it runs, of these settings.

        Another checkpoint of the same name, or an earlier run with other settings, may have left records in the same folder.
        """
        fingerprints = {row: self._encoder_fingerprint(row) for row in rows}
        wanted = {(row, node.name): self._fields(row, node) for row in rows for node in nodes}
        keys = {place: record.key(fields) if fields else None for place, fields in wanted.items()}
        shown = []
        for entry in record.read_all(self.out / "records"):
            place, row = (entry["encoder"], entry["task"]), entry["encoder"]
            if row not in rows or entry["encoder_fingerprint"] not in (None, fingerprints[row]):
                continue
            if entry["encoder_fingerprint"] is None or place not in keys or entry["key"] == keys[place]:
                shown.append(entry)
        return shown

    def _encoder_fingerprint(self, encoder: str) -> str | None:
        """None where there is no certified encoder, or where the checkpoint given now could not be converted."""
        certificate = self.out / encoder / "encoder.certificate.json"
        if encoder in self.refused or not certificate.is_file():
            return None
        return json.loads(certificate.read_text())["fingerprint"]

    def _fields(self, encoder: str, node: Node) -> dict[str, Any] | None:
        """What the key of a node's record is made of, or None before there is an encoder."""
        fingerprint = self._encoder_fingerprint(encoder)
        if fingerprint is None:
            return None
        classifier = self.out / encoder / "finetune" / "classifier.safetensors"
        return {
            "schema": record.SCHEMA,
            "task": node.name,
            "config": as_json(self.configs[node.name]),
            "seed": self.seed,
            "limit": self.limit,
            "encoder_fingerprint": fingerprint,
            "data_fingerprint": self._fingerprint(module_of(node.task).reads(self.configs[node.name])),
            "classifier": sha256(classifier) if node.needs and classifier.is_file() else None,
        }

    def _fingerprint(self, names: tuple[str, ...]) -> str:
        if names not in self.fingerprints:
            self.fingerprints[names] = layouts.fingerprint(self.data_root, names)
        return self.fingerprints[names]
