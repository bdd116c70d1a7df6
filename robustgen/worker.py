"""Computes one chunk: slice the data, perturb, enforce the budget, read out. Executors decide where."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.evaluation import Evaluation, load_data
from robustgen.limits import out_of_memory, time_limit
from robustgen.metrics.verdicts import majority
from robustgen.perturb import Attack, enforce_budget
from robustgen.pilot import Kernels
from robustgen.rowtable import row_schema
from robustgen.scores import read_scores
from robustgen.store import Chunk
from robustgen.verdict import Verdict, fresh_verdict, seeded


class ChunkOutput(NamedTuple):
    """What ``RunStore.write`` stores of a chunk: rows, tables beside them, an attack's pictures, wall time.

    ``batch``: the batch size that was used, None if it was the run's.
    """

    rows: pa.Table
    tables: dict[str, pa.Table]
    adversarial: pa.Table | None
    seconds: float
    batch: int | None = None


class Worker:
    """Computes the chunks of one model's run; data sets are cached per process by ``evaluation``."""

    def __init__(
        self,
        model: Classifier,
        evaluations: Iterable[Evaluation],
        *,
        source: str,
        seed: int,
        kernels: Kernels,
        root: Path | None = None,
        stochastic: bool = False,
        limit: float | None = None,
    ) -> None:
        self.device = torch.device(kernels.device)
        model = model.eval().requires_grad_(False).to(self.device)
        self.evaluations = {evaluation.name: evaluation for evaluation in evaluations}
        attacked = any(isinstance(e.perturbation, Attack) for e in self.evaluations.values())
        # A copy of a stochastic model would draw from a stream of its own.
        copied = attacked and not stochastic
        example = load_data(source, "test", root).images[: kernels.batch].to(self.device) if copied else None
        quick = None if example is None else quick_copy(model, example)
        self.model = FixedBatch(
            model,
            kernels.batch,
            quick=quick,
            bfloat16_gradients=kernels.precision == "bf16",
            sizes=kernels.sizes,
        )
        self.model.stochastic |= stochastic
        self.source = source
        self.seed = seed
        self.root = root
        self.limit = limit

    def __call__(self, chunk: Chunk) -> ChunkOutput:
        """Compute a chunk; when memory runs out, halve the batch size and try again.

        The next chunk starts at the run's batch size again, at which rows are the same bit for bit.
        """
        batch = self.model.batch
        try:
            while True:
                try:
                    with time_limit(self.limit):
                        output = self._compute(chunk)
                    break
                except Exception as error:
                    if self.model.batch == 1 or not out_of_memory(error):
                        raise
                # outside the except block: the error keeps alive the memory of every frame it passed
                self.model.resize(self.model.batch // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            return output._replace(batch=self.model.batch) if self.model.batch < batch else output
        finally:
            self.model.resize(batch)

    def _compute(self, chunk: Chunk) -> ChunkOutput:
        """slice > perturb > enforce_budget > read out."""
        began = time.perf_counter()
        evaluation = self.evaluations[chunk.evaluation]
        part = self._dataset(evaluation).slice(chunk.start, chunk.stop)
        draws = Draws(self.seed, evaluation.name, part.sample_ids)
        x, y = part.images.to(self.device), part.labels.to(self.device)
        self.model.begin(len(part), self.device)

        perturbation = evaluation.perturbation
        with seeded(self.model, "search", draws, self.device):
            perturbed = perturbation(self.model, x, y, draws)
        columns: dict[str, Any] = {}
        adversarial = None
        images = perturbed.images
        if isinstance(perturbation, Attack):
            images, within, distance = enforce_budget(perturbation.threat, x, images)
            if perturbed.out_of_budget is not None:
                within &= ~perturbed.out_of_budget
            columns |= {"within_budget": within.tolist(), "distance": distance.tolist()}
            adversarial = _picture_table(part.sample_ids, images)
        # A stochastic model draws for a whole batch at once, so its rows depend on their chunk.
        by_chunk = perturbation.seeded_by_chunk or self.model.stochastic
        columns["seeded_by"] = ["chunk" if by_chunk else "sample"] * len(part)
        verdict = fresh_verdict(self.model, images, y, draws)
        columns |= verdict.columns() | {"sample_id": part.sample_ids.tolist(), "label": y.tolist()}
        columns["broken_by"] = self._broken_by(perturbed.broken_by, verdict)
        with seeded(self.model, "scores", draws, self.device):
            columns["scores"] = read_scores(evaluation.scores, self.model, images)
        with seeded(self.model, "readout", draws, self.device):
            tables = {r.name: r(self.model, images, y, draws) for r in evaluation.readouts()}
        columns |= {"forwards": self.model.forwards.tolist(), "backwards": self.model.backwards.tolist()}
        schema = row_schema(self.model.num_classes)
        rows = pa.table(
            [pa.array(columns.get(f.name) or [None] * len(part), f.type) for f in schema], schema=schema
        )
        return ChunkOutput(rows, tables, adversarial, time.perf_counter() - began)

    def _dataset(self, evaluation: Evaluation) -> Dataset:
        if evaluation.foreign is not None:
            return evaluation.foreign()
        return load_data(self.source, evaluation.split, self.root)

    def _broken_by(self, stages: list[str | None] | None, verdict: Verdict) -> list[str | None] | None:
        """Which attack broke each sample; of a stochastic model, only where the verdict agrees.

        The search saw other draws than the verdict, which decides by majority.
        """
        if stages is None or not self.model.stochastic:
            return stages
        right = majority(verdict.correct.cpu().numpy(), np.asarray(verdict.draws)).tolist()
        return [None if stands else stage for stage, stands in zip(stages, right, strict=True)]


def _picture_table(sample_ids: Tensor, images: Tensor) -> pa.Table:
    flat = images.cpu().numpy().reshape(len(images), -1)
    values = pa.array(np.ascontiguousarray(flat).ravel(), pa.float32())
    pictures = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    return pa.table({"sample_id": pa.array(sample_ids.numpy()), "image": pictures})
