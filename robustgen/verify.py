"""``robustgen verify DIR``: the stored adversarial pictures, asked again without attacking."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen import data
from robustgen.classifiers.base import FixedBatch
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.reload import reload_run
from robustgen.store import Chunk, RunStore, run_folders
from robustgen.threat import ThreatModel
from robustgen.types import ATTACKED
from robustgen.verdict import Verdict, fresh_verdict

CHANCE = 4.0
"""Standard errors: two shares of draws that are further apart than this are not taken for chance."""


class Finding(NamedTuple):
    """What was found for one attack on one model: how many pictures were checked, and each breach.

    ``asked``: whether the model was asked again. Pictures made of a foreign set have no clean ones in
    the run's data, so of these the files alone are checked. ``repeats``: whether it answers alike on the
    same draws; where a model draws from a generator that nobody can seed, chance is no breach.
    """

    model: str
    evaluation: str
    checked: int
    broken: int
    breaches: list[str]
    asked: bool = True
    repeats: bool = True

    @property
    def sentence(self) -> str:
        """The finding in words."""
        head = f"{self.model}, {self.evaluation}: {self.checked} pictures"
        head += f", {self.broken} misclassified" if self.asked else ", foreign, not asked again"
        head += "" if self.repeats else ", its draws cannot be repeated, so no logits are compared"
        if not self.breaches:
            right = "all inside box and budget, every verdict confirmed" if self.asked else "files unchanged"
            return f"{head}; {right}"
        shown = "; ".join(self.breaches[:5])
        return f"{head}; {len(self.breaches)} BREACHES: {shown}{' ...' if len(self.breaches) > 5 else ''}"


def verify_report(folder: Path, *, code: Collection[Path] = ()) -> list[Finding]:
    """Check every run under a report's folder (or a single run's); ``code``: see ``reload_run``."""
    runs = run_folders(folder)
    if not runs:
        raise UserError("there is no run here", where=folder, expected="the --out of 'robustgen report'")
    findings = [finding for run in runs for finding in verify_run(RunStore.read(run), code=code)]
    if not findings:
        raise UserError(
            "there is nothing to verify", where=folder, expected="pictures that an attack has made",
            got="runs without an attack", remedy="report with a protocol that attacks, such as quick",
        )  # fmt: skip
    return findings


def verify_run(store: RunStore, *, code: Collection[Path] = ()) -> list[Finding]:
    """Ask the model again, in float32, at each stored adversarial picture."""
    attacked = [e for e in store.spec["evaluations"] if e["kind"] in ATTACKED]
    if not attacked:
        return []
    batched, dataset = reload_run(store, code=code)
    return [_verify_attack(store, evaluation, batched, dataset) for evaluation in attacked]


def _verify_attack(
    store: RunStore, evaluation: dict[str, Any], model: FixedBatch, dataset: data.Dataset
) -> Finding:
    name = evaluation["name"]
    try:
        breaches = [
            f"{file} is not the file that was written"
            for start, stop in store.chunks(name)
            for file in store.damaged_files(Chunk(name, start, stop))
        ]
        rows, stored, clean = store.rows(name), store.adversarial(name), store.rows("clean")
    except UserError as error:
        return Finding(store.model, name, 0, 0, [f"{error.what}: {error.details['where']}"])
    if evaluation.get("of", "clean") != "clean":
        breaches += [] if stored is not None else ["nothing is stored"]
        return Finding(store.model, name, len(stored or ()), 0, breaches, asked=False)
    if rows is None or stored is None:
        return Finding(store.model, name, 0, 0, [*breaches, "nothing is stored"])
    ids = rows["sample_id"].to_pylist()
    if stored["sample_id"].to_pylist() != ids:
        return Finding(store.model, name, 0, 0, [*breaches, "rows and pictures are of different samples"])
    if max(ids, default=0) >= len(dataset):
        return Finding(store.model, name, 0, 0, [*breaches, "rows are of samples that the data do not have"])
    missing = set() if clean is None else set(clean["sample_id"].to_pylist()) - set(ids)
    if missing:
        breaches.append(f"{len(missing)} samples have a clean row and none here")
    images = torch.from_numpy(np.stack(stored["image"].to_numpy(zero_copy_only=False)).astype(np.float32))
    images = images.view(-1, *dataset.shape)
    labels = dataset.labels[torch.tensor(ids)]
    asked = store, name, model, images, labels, torch.tensor(ids)
    verdict = _ask_again(*asked)
    repeats = not model.stochastic or bool(_alike(verdict.logits, _ask_again(*asked).logits).all())
    threat = ThreatModel(evaluation["norm"], evaluation["eps"])
    found, broken = _compare(rows, images, verdict, dataset, threat, repeats)
    return Finding(store.model, name, len(ids), broken, breaches + found, repeats=repeats)


def _ask_again(
    store: RunStore, name: str, model: FixedBatch, images: Tensor, labels: Tensor, ids: Tensor
) -> Verdict:
    """The verdict once more; of a stochastic model on the same draws, which belong to a chunk."""
    found, asked = [], torch.zeros_like(ids, dtype=torch.bool)
    for start, stop in store.chunks(name) if model.stochastic else [(0, int(ids.max()) + 1)]:
        at = (ids >= start) & (ids < stop) & ~asked  # chunks overlap where two runs wrote at once
        if not at.any():
            continue
        asked |= at
        draws = Draws(store.spec["protocol"]["seed"], name, ids[at])
        found.append(fresh_verdict(model, images[at].nan_to_num().clamp(0, 1), labels[at], draws))
    correct, logits = (torch.cat([getattr(v, part) for v in found]) for part in ("correct", "logits"))
    return Verdict(found[0].draws, correct, logits, None)


def _alike(some: Tensor, others: Tensor) -> Tensor:
    """Which rows of logits are the same, (batch,)."""
    # Other kernels move the last bits of a logit, no more; NaN is close to nothing.
    return torch.isclose(some, others, rtol=1e-4, atol=1e-4).all(1)


def _compare(
    rows: pa.Table, images: Tensor, verdict: Verdict, dataset: data.Dataset, threat: ThreatModel,
    repeats: bool,
) -> tuple[list[str], int]:  # fmt: skip
    """What is wrong with the pictures, sample by sample, and how many are misclassified."""
    ids = torch.tensor(rows["sample_id"].to_pylist())
    labels = dataset.labels[ids]
    said = torch.tensor(rows["logits"].to_pylist())
    draws = torch.tensor(rows["draws"].to_pylist())
    said_share = torch.tensor(rows["draws_correct"].to_pylist()) / draws
    share = verdict.correct / verdict.draws
    said_right, right = said_share > 0.5, share > 0.5
    same = _alike(verdict.logits, said)
    changed = said_right != right
    if not repeats:  # other draws have other logits, and a verdict is one of chance near a half
        same = torch.ones_like(same)
        changed &= (said_share - share).abs() > CHANCE * (0.25 / draws + 0.25 / verdict.draws).sqrt()
    doubts = {
        "is outside the box or the budget": ~threat.contains(dataset.images[ids], images),
        "is stored as misclassified and is not": changed & right,
        "is stored as right and is misclassified": changed & ~right,
        "has other logits than are stored": ~same,
        "has another label than the data": torch.tensor(rows["label"].to_pylist()) != labels,
    }
    breaches = [f"sample {i} {what}" for what, which in doubts.items() for i in ids[which].tolist()]
    return breaches, int((~right).sum())
