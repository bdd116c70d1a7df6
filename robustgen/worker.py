"""What is done with a chunk, wherever an executor runs it: slice, perturb, verify, read out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.perturb import Attack, verify
from robustgen.plan import Evaluation, load_data
from robustgen.store import Chunk, row_schema


class Reading(NamedTuple):
    """What a chunk leaves: its rows, the tables beside them, the perturbed pictures of an attack."""

    rows: pa.Table
    tables: dict[str, pa.Table]
    adversarial: pa.Table | None
    seconds: float


class Worker:
    """Computes chunks of one model's run; holds the model and the data sets that it has needed."""

    def __init__(
        self,
        model: Classifier,
        evaluations: Iterable[Evaluation],
        *,
        source: str,
        seed: int,
        batch: int,
        device: torch.device,
        root: Path | None = None,
    ) -> None:
        self.model = FixedBatch(model.eval().requires_grad_(False).to(device), batch)
        self.evaluations = {evaluation.name: evaluation for evaluation in evaluations}
        self.source = source
        self.seed = seed
        self.device = device
        self.root = root

    def __call__(self, chunk: Chunk) -> Reading:
        """slice > perturb > verify > read out."""
        began = time.perf_counter()
        evaluation = self.evaluations[chunk.evaluation]
        part = self._pictures(evaluation).slice(chunk.start, chunk.stop)
        draws = Draws(self.seed, evaluation.name, part.sample_ids)
        x, y = part.images.to(self.device), part.labels.to(self.device)
        self.model.begin(len(part))

        perturbation = evaluation.perturbation
        perturbed = perturbation(self.model, x, y, draws)
        columns: dict[str, Any] = {"broken_by": perturbed.broken_by}
        adversarial = None
        images = perturbed.images
        if isinstance(perturbation, Attack):
            images, within, distance = verify(perturbation.threat, x, images)
            columns |= {"within_budget": within.tolist(), "distance": distance.tolist()}
            adversarial = _picture_table(part.sample_ids, images)
        columns["seeded_by"] = ["chunk" if perturbation.seeded_by_chunk else "sample"] * len(part)
        columns |= self._ask(images, y, part.sample_ids)
        tables = {r.name: r(self.model, images, y, draws) for r in evaluation.readouts()}
        columns |= {"forwards": self.model.forwards.tolist(), "backwards": self.model.backwards.tolist()}
        schema = row_schema(self.model.num_classes)
        rows = pa.table(
            [pa.array(columns.get(f.name) or [None] * len(part), f.type) for f in schema], schema=schema
        )
        return Reading(rows, tables, adversarial, time.perf_counter() - began)

    def _pictures(self, evaluation: Evaluation) -> Dataset:
        if evaluation.kind == "ood":
            return load_data(evaluation.data, "test", self.model.input_shape, self.root)
        return load_data(self.source, evaluation.split, None, self.root)

    @torch.no_grad()
    def _ask(self, images: Tensor, y: Tensor, sample_ids: Tensor) -> dict[str, Any]:
        """The verdict: one fresh forward in float32, never what an attack saw."""
        logits = self.model.logits(images).float()
        expected = (len(images), self.model.num_classes)
        if tuple(logits.shape) != expected:
            raise UserError(
                "the model's output has the wrong shape", expected=expected, got=tuple(logits.shape),
                remedy="'robustgen check MODEL' says more",
            )  # fmt: skip
        finite = torch.isfinite(logits).all(1)
        if not bool(finite.all()):
            raise UserError(
                "the model returned NaN or infinite logits",
                where=f"sample ids {sample_ids[~finite.cpu()].tolist()[:8]}",
                remedy="'robustgen check MODEL' says more",
            )
        log_prob = self.model.log_prob(images).tolist() if "log_prob" in self.model.supports else None
        correct = (logits.argmax(1) == y).int().tolist()
        return {
            "sample_id": sample_ids.tolist(),
            "label": y.tolist(),
            "logits": logits.cpu().numpy().tolist(),
            "log_prob": log_prob,
            "draws": [1] * len(images),
            "draws_correct": correct,
        }


def _picture_table(sample_ids: Tensor, images: Tensor) -> pa.Table:
    flat = images.cpu().numpy().reshape(len(images), -1)
    values = pa.array(np.ascontiguousarray(flat).ravel(), pa.float32())
    pictures = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    return pa.table({"sample_id": pa.array(sample_ids.numpy()), "image": pictures})
