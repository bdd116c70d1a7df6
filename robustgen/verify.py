"""``robustgen verify DIR``: the stored adversarial pictures, asked again without attacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from robustgen import data
from robustgen.classifiers import load_model
from robustgen.classifiers.base import FixedBatch
from robustgen.errors import UserError
from robustgen.registry import resolve
from robustgen.store import RunStore
from robustgen.threat import ThreatModel


class Finding(NamedTuple):
    """What was found for one attack on one model: how many pictures were checked, and each breach."""

    model: str
    evaluation: str
    checked: int
    broken: int
    breaches: list[str]

    @property
    def sentence(self) -> str:
        """The finding in words."""
        head = f"{self.model}, {self.evaluation}: {self.checked} pictures, {self.broken} misclassified"
        if not self.breaches:
            return f"{head}; all inside box and budget, every verdict confirmed"
        shown = "; ".join(self.breaches[:5])
        return f"{head}; {len(self.breaches)} BREACHES: {shown}{' ...' if len(self.breaches) > 5 else ''}"


def verify_report(folder: Path) -> list[Finding]:
    """Check every run under a report's folder (or a single run's)."""
    runs = (
        [folder]
        if (folder / "run.json").is_file()
        else sorted(p.parent for p in folder.glob("runs/*/run.json"))
    )
    if not runs:
        raise UserError("there is no run here", where=folder, expected="the --out of 'robustgen report'")
    return [finding for run in runs for finding in verify_run(RunStore.read(run))]


def verify_run(store: RunStore) -> list[Finding]:
    """Ask the model again, in float32 and without fusing, at each stored adversarial picture."""
    spec = store.spec
    attacks = [e for e in spec["evaluations"] if e["kind"] == "attack"]
    if not attacks:
        return []
    dataset = data.load(spec["data"]["source"])
    if dataset.fingerprint != spec["data"]["fingerprint"]:
        raise UserError(
            "the data are not those of the run", where=store.path,
            expected=spec["data"]["fingerprint"], got=dataset.fingerprint,
        )  # fmt: skip
    (reference,) = resolve(store.environment["reference"])
    model = load_model(
        reference, num_classes=spec["model"]["num_classes"], input_shape=tuple(spec["model"]["input_shape"])
    )
    batched = FixedBatch(model.eval().requires_grad_(False), spec["batch"])
    return [_verify_attack(store, evaluation, batched, dataset) for evaluation in attacks]


@torch.no_grad()
def _verify_attack(
    store: RunStore, evaluation: dict[str, Any], model: FixedBatch, dataset: data.Dataset
) -> Finding:
    name = evaluation["name"]
    breaches = [
        f"{damage} is not the file that was written"
        for chunk in sorted(store.done())
        if chunk.evaluation == name
        for damage in store.damaged(chunk)
    ]
    rows, stored = store.rows(name), store.adversarial(name)
    if rows is None or stored is None:
        return Finding(store.model, name, 0, 0, breaches)
    ids = np.asarray(stored["sample_id"])
    images = torch.from_numpy(np.stack(stored["image"].to_numpy(zero_copy_only=False)).astype(np.float32))
    images = images.view(-1, *dataset.shape)
    part = torch.tensor(ids)
    threat = ThreatModel(evaluation["norm"], evaluation["eps"])
    inside = threat.contains(dataset.images[part], images).numpy()
    wrong = (model.logits(images).argmax(1) != dataset.labels[part]).numpy()
    said_wrong = np.asarray(rows["draws_correct"]) * 2 <= np.asarray(rows["draws"])
    if list(ids) != rows["sample_id"].to_pylist():
        breaches.append("rows and pictures are of different samples")
    else:
        breaches += [f"sample {i} is outside the box or the budget" for i in ids[~inside]]
        breaches += [f"sample {i} is stored as misclassified and is not" for i in ids[said_wrong & ~wrong]]
        breaches += [f"sample {i} is stored as right and is misclassified" for i in ids[~said_wrong & wrong]]
    return Finding(store.model, name, len(ids), int(wrong.sum()), breaches)
