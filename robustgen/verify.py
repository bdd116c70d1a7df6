"""``robustgen verify DIR``: asks models again about their stored adversarial pictures, without attacking."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen import data
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.reload import reload_run
from robustgen.store import Chunk, RunStore, run_folders
from robustgen.threat import ThreatModel
from robustgen.types import ATTACKED
from robustgen.verdict import Verdict, fresh_verdict

MAX_STANDARD_ERRORS = 4.0
"""Two shares of correct draws that differ by more standard errors than this are a breach, not chance."""


class Finding(NamedTuple):
    """The result for one attack on one model: how many pictures were checked, how many of them are
    misclassified (``broken``), and each breach.

    ``asked``: whether the model was asked again; of adversarial pictures from a foreign set only the files
    are checked, since the run's data do not have their clean pictures. ``repeatable``: whether the model
    answers alike on the same draws. If not (its generator cannot be seeded), differences by chance are no
    breach.
    """

    model: str
    evaluation: str
    checked: int
    broken: int
    breaches: list[str]
    asked: bool = True
    repeatable: bool = True

    @property
    def sentence(self) -> str:
        """The finding as a line of text."""
        head = f"{self.model}, {self.evaluation}: {self.checked} pictures"
        head += f", {self.broken} misclassified" if self.asked else ", foreign, not asked again"
        head += "" if self.repeatable else ", its draws cannot be repeated, so no logits are compared"
        if not self.breaches:
            right = "all inside box and budget, every verdict confirmed" if self.asked else "files unchanged"
            return f"{head}; {right}"
        shown = "; ".join(self.breaches[:5])
        return f"{head}; {len(self.breaches)} BREACHES: {shown}{' ...' if len(self.breaches) > 5 else ''}"


def verify_report(folder: Path, *, code: Collection[Path] = ()) -> list[Finding]:
    """Check every run of a report's folder, or a single run; ``code``: see ``reload_run``."""
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
    """Ask the model of a run again, in float32, about each stored adversarial picture."""
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
    arguments = store, name, model, images, labels, torch.tensor(ids)
    verdict = _verdict_again(*arguments)
    repeatable = not model.stochastic or bool(_close(verdict.logits, _verdict_again(*arguments).logits).all())
    threat = ThreatModel(evaluation["norm"], evaluation["eps"])
    found, broken = _compare(rows, images, verdict, dataset, threat, repeatable)
    return Finding(store.model, name, len(ids), broken, breaches + found, repeatable=repeatable)


def _verdict_again(
    store: RunStore, name: str, model: FixedBatch, images: Tensor, labels: Tensor, ids: Tensor
) -> Verdict:
    """The verdict once more; of a stochastic model chunk by chunk, since its draws depend on the chunk."""
    verdicts, done = [], torch.zeros_like(ids, dtype=torch.bool)
    for start, stop in store.chunks(name) if model.stochastic else [(0, int(ids.max()) + 1)]:
        at = (ids >= start) & (ids < stop) & ~done  # chunks overlap if two runs wrote at once
        if not at.any():
            continue
        done |= at
        draws = Draws(store.spec["protocol"]["seed"], name, ids[at])
        verdicts.append(fresh_verdict(model, images[at].nan_to_num().clamp(0, 1), labels[at], draws))
    correct, logits = (torch.cat([getattr(v, part) for v in verdicts]) for part in ("correct", "logits"))
    return Verdict(verdicts[0].draws, correct, logits, None)


def _close(one: Tensor, other: Tensor) -> Tensor:
    """Which rows of logits (batch, classes) are equal up to the last bits, (batch,); NaN never is."""
    return torch.isclose(one, other, rtol=1e-4, atol=1e-4).all(1)


def _compare(
    rows: pa.Table, images: Tensor, verdict: Verdict, dataset: data.Dataset, threat: ThreatModel,
    repeatable: bool,
) -> tuple[list[str], int]:  # fmt: skip
    """The breaches, sample by sample, and how many pictures are misclassified."""
    ids = torch.tensor(rows["sample_id"].to_pylist())
    labels = dataset.labels[ids]
    stored_logits = torch.tensor(rows["logits"].to_pylist())
    draws = torch.tensor(rows["draws"].to_pylist())
    stored_share = torch.tensor(rows["draws_correct"].to_pylist()) / draws
    share = verdict.correct / verdict.draws
    stored_right, right = stored_share > 0.5, share > 0.5
    same = _close(verdict.logits, stored_logits)
    changed = stored_right != right
    if not repeatable:  # other draws give other logits, and near a half another majority
        same = torch.ones_like(same)
        changed &= (stored_share - share).abs() > MAX_STANDARD_ERRORS * (
            0.25 / draws + 0.25 / verdict.draws
        ).sqrt()
    checks = {
        "is outside the box or the budget": ~threat.contains(dataset.images[ids], images),
        "is stored as misclassified and is not": changed & right,
        "is stored as right and is misclassified": changed & ~right,
        "has other logits than are stored": ~same,
        "has another label than the data": torch.tensor(rows["label"].to_pylist()) != labels,
    }
    breaches = [f"sample {i} {what}" for what, which in checks.items() for i in ids[which].tolist()]
    return breaches, int((~right).sum())
