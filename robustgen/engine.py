"""The way of the data: evaluations become chunks, and chunks become rows in a store.

Each chunk is computed by a Worker, which is all that an executor needs to run somewhere else: slice,
perturb, verify, read out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen.classifiers import fingerprint_model, load_model
from robustgen.classifiers.base import Classifier, FixedBatch
from robustgen.config import Protocol
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.executors import Executor, LocalExecutor
from robustgen.perturb import Attack, verify
from robustgen.plan import Evaluation, Plan, load_data, plan
from robustgen.registry import ModelRef, ZooModel, load_card
from robustgen.store import Chunk, RunStore, environment, row_schema

# On pictures of a few hundred values a second thread costs more in waiting than it computes.
SMALL, SMALL_THREADS = 1024, 1
BATCH = 64


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


class Outcome(NamedTuple):
    """The runs that have rows, and what went wrong with which model."""

    runs: list[RunStore]
    failures: dict[str, str]


def evaluate(
    models: Iterable[ModelRef],
    protocol: Protocol,
    source: str,
    out: Path,
    *,
    n: int | None = None,
    root: Path | None = None,
    batch: int | None = None,
    device: str = "auto",
    executor: Executor | None = None,
    progress: Callable[[str, Chunk | None, int, int], None] = lambda *_: None,
) -> Outcome:
    """Run every model through a protocol on a data set; finished chunks are not computed again.

    ``source`` is a data set's name, ``imagefolder:PATH`` or an .npz; ``n`` takes the first n test
    samples; ``progress(model, chunk, done, all)`` is called as chunks finish. A model that fails is
    noted and the others go on. Raises UserError if none could be run.
    """
    dataset = load_data(source, "test", None, root)
    planned = plan(protocol, dataset, root)
    n = n or protocol.n
    outcome = Outcome([], {})
    errors: list[UserError] = []
    for reference in models:
        try:
            store, failed = _run_model(
                reference, protocol, dataset, planned, out, n=n, root=root, batch=batch, device=device,
                executor=executor or LocalExecutor(), progress=progress,
            )  # fmt: skip
        except UserError as error:
            if "the disk is full" in error.what:
                raise
            outcome.failures[reference.name] = str(error)
            errors.append(error)
            continue
        outcome.runs.append(store)
        if failed:
            outcome.failures[store.model] = failed
    if not outcome.runs and errors:
        raise errors[0]
    return outcome


def _run_model(
    reference: ModelRef,
    protocol: Protocol,
    dataset: Dataset,
    planned: Plan,
    out: Path,
    *,
    n: int | None,
    root: Path | None,
    batch: int | None,
    device: str,
    executor: Executor,
    progress: Callable[[str, Chunk | None, int, int], None],
) -> tuple[RunStore, str]:
    chip = _device(device)
    model = load_model(reference, num_classes=len(dataset.class_names), input_shape=dataset.shape)
    path = out / "runs" / reference.name
    batch = batch or min(BATCH, protocol.chunk)
    spec = _spec(reference, model, protocol, dataset, planned, batch, chip, path)
    store = RunStore.open(path, spec, environment() | {"reference": str(reference)})
    torch.set_num_threads(spec["kernels"]["threads"])
    finished = store.done()
    every = [chunk for e in planned.evaluations for chunk in chunks(e, finished, protocol.chunk, n)]
    worker = Worker(
        model, planned.evaluations, source=dataset.source, seed=protocol.seed,
        batch=spec["batch"], device=chip, root=root,
    )  # fmt: skip
    failed = ""
    progress(reference.name, None, 0, len(every))
    for done, (chunk, result) in enumerate(executor.run(worker, every), start=1):
        if isinstance(result, Exception):
            message = str(result) if isinstance(result, UserError) else f"{type(result).__name__}: {result}"
            store.fail(chunk, message)
            failed = f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {message}"
        else:
            store.write(
                chunk,
                result.rows,
                tables=result.tables,
                adversarial=result.adversarial,
                seconds=result.seconds,
            )
        progress(reference.name, chunk, done, len(every))
    return store, failed


def chunks(evaluation: Evaluation, finished: set[Chunk], size: int, n: int | None) -> list[Chunk]:
    """What is left to do of an evaluation's first n samples, cut at multiples of the chunk size."""
    stop = min(n or evaluation.size, evaluation.size)
    covered = np.zeros(stop, dtype=bool)
    for chunk in finished:
        if chunk.evaluation == evaluation.name:
            covered[chunk.start : chunk.stop] = True
    left: list[Chunk] = []
    for index in np.flatnonzero(~covered).tolist():
        if left and left[-1].stop == index and index % size:
            left[-1] = left[-1]._replace(stop=index + 1)
        else:
            left.append(Chunk(evaluation.name, index, index + 1))
    return left


def _spec(
    reference: ModelRef, model: Classifier, protocol: Protocol, dataset: Dataset, planned: Plan,
    batch: int, device: torch.device, path: Path,
) -> dict[str, Any]:  # fmt: skip
    """All that rows depend on: the content of run.json and, hashed, the run's identity."""
    threads = SMALL_THREADS if dataset.images[0].numel() <= SMALL else torch.get_num_threads()
    if (path / "run.json").exists():  # kernels are never switched midway
        threads = RunStore.read(path).spec["kernels"]["threads"]
    return {
        "model": {
            "name": reference.name,
            "fingerprint": fingerprint_model(reference),
            **_card_line(reference),
            "num_classes": model.num_classes,
            "input_shape": list(model.input_shape),
            "supports": sorted(model.supports),
            "density": model.density,
            "noise": repr(model.noise),
            "stochastic": model.stochastic,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "provenance": dataset.provenance,
            "class_names": list(dataset.class_names),
            "size": len(dataset),
            "shape": list(dataset.shape),
        },
        "protocol": protocol.model_dump(mode="json", exclude={"n"}),
        "evaluations": [evaluation.describe() for evaluation in planned.evaluations],
        "refused": planned.refused,
        "batch": batch,
        "precision": "float32",
        "kernels": {"device": str(device), "torch": torch.__version__, "threads": threads},
    }


def _card_line(reference: ModelRef) -> dict[str, str]:
    if not isinstance(reference, ZooModel):
        return {"family": "custom", "summary": "", "data": ""}
    card = load_card(reference.folder)
    return {"family": card.family, "summary": card.summary, "data": card.data}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            "no such device", where="--device", expected="auto, cpu, or cuda where there is one", got=name
        )
    return torch.device(name)
