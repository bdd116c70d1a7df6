"""The way of the data: a protocol's evaluations become chunks, and chunks become rows in a store.

Each chunk is computed by a Worker, which is all that an executor needs to run somewhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from robustgen.classifiers import fingerprint_model, load_model
from robustgen.classifiers.base import Classifier, threads_for
from robustgen.config import Protocol, fingerprint
from robustgen.data import Dataset
from robustgen.environment import environment
from robustgen.errors import DiskFullError, UserError
from robustgen.evaluation import Evaluation, Plan, load_data
from robustgen.executors import Executor, LocalExecutor
from robustgen.pilot import pilot
from robustgen.plan import plan
from robustgen.registry import ModelRef, ZooModel, load_card
from robustgen.store import Chunk, RunStore
from robustgen.types import ADDED, UNLABELLED
from robustgen.worker import VERDICT_DRAWS, Worker, is_random

BATCH = 64


class Step(NamedTuple):
    """How far a model's run is: ``done`` of ``total`` chunks, the last of them ``chunk`` (None before the
    first), and how many of the ``seen`` samples of its evaluation are ``right``, as far as they were
    computed now; foreign pictures are neither."""

    model: str
    chunk: Chunk | None
    done: int
    total: int
    seen: int = 0
    right: int = 0


Progress: TypeAlias = Callable[[Step], None]


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
    precision: str = "auto",
    executor: Executor | None = None,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Run every model through a protocol on a data set; finished chunks are not computed again.

    ``source`` is a data set's name, ``imagefolder:PATH`` or an .npz; ``n`` takes the first n test
    samples; ``batch`` (default: the protocol's chunk, at most 64) is how many pictures a call of the
    model takes; ``precision`` (float32, bf16 or auto) that of attacks' gradients;
    ``progress`` is called as chunks finish. A model that fails is noted and the
    others go on. Raises UserError if none could be run.
    """
    dataset = load_data(source, "test", None, root)
    job = _Job(
        protocol, dataset, plan(protocol, dataset, root), out, n or protocol.n, root, batch,
        _device(device), precision, executor or LocalExecutor(), progress,
    )  # fmt: skip
    outcome = Outcome([], {})
    errors: list[UserError] = []
    for reference in models:
        try:
            store, failed = job.run(reference)
        except DiskFullError:
            raise
        except UserError as error:
            outcome.failures[reference.name] = str(error)
            errors.append(error)
            continue
        outcome.runs.append(store)
        if failed:
            outcome.failures[store.model] = failed
    if not outcome.runs and errors:
        raise errors[0]
    return outcome


@dataclass(frozen=True)
class _Job:
    """What is asked of every model."""

    protocol: Protocol
    dataset: Dataset
    planned: Plan
    out: Path
    n: int | None
    root: Path | None
    batch: int | None
    device: torch.device
    precision: str
    executor: Executor
    progress: Progress

    def run(self, reference: ModelRef) -> tuple[RunStore, str]:
        """One model's run, and what failed in it (nothing: ""). Raises UserError where it cannot begin."""
        dataset = self.dataset
        model = load_model(reference, class_names=dataset.class_names, input_shape=dataset.shape)
        path = self.out / "runs" / reference.name
        found = RunStore.begun(path)
        begun = found.spec if found else None
        kernels = self._call(begun)
        torch.set_num_threads(kernels["threads"])
        stochastic = self._stochastic(model, begun, kernels["batch"])
        kernels |= self._kernels(model, begun, kernels["batch"], stochastic)
        spec = _spec(reference, model, self.protocol, dataset, self.planned, kernels, stochastic)
        # pictures from elsewhere (added.py) belong to the run, whatever the protocol asks for
        spec["evaluations"] += [e for e in (begun or {}).get("evaluations", []) if ADDED in e]
        store = RunStore.open(path, spec, _environment(reference, self.root))
        worker = Worker(
            model, self.planned.evaluations, source=dataset.source, seed=self.protocol.seed,
            batch=kernels["batch"], device=self.device, root=self.root, stochastic=stochastic,
            low=kernels["precision"] == "bf16", sizes=kernels["sizes"] or None,
        )  # fmt: skip
        store.mend()
        failed = self._compute(store, worker)
        lost = store.mend(
            pictures=False
        )  # what was finished is read once more, before numbers are made of it
        return store, failed or "".join(lost[:1])

    def _compute(self, store: RunStore, worker: Worker) -> str:
        """Compute and store every chunk that is not finished; returns the last failure, if any."""
        finished, size = store.done(), self.protocol.chunk
        left = [c for e in self.planned.evaluations for c in chunks(e, finished, size, self.n)]
        failed = ""
        tally: dict[str, tuple[int, int]] = {}
        # their labels, where they have any, are of other classes
        foreign = {e.name for e in self.planned.evaluations if e.kind == "ood" or e.foreign is not None}
        self.progress(Step(store.model, None, 0, len(left)))
        for count, (chunk, result) in enumerate(self.executor.run(worker, left), start=1):
            if isinstance(result, Exception):
                known = isinstance(result, UserError)
                message = str(result) if known else f"{type(result).__name__}: {result}"
                store.fail(chunk, message)
                failed = f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {message}"
            else:
                store.write(
                    chunk, result.rows, tables=result.tables, adversarial=result.adversarial,
                    seconds=result.seconds,
                )  # fmt: skip
                if chunk.evaluation not in foreign:
                    found = zip(tally.get(chunk.evaluation, (0, 0)), _tally(result.rows), strict=True)
                    tally[chunk.evaluation] = tuple(map(sum, found))  # type: ignore[assignment]
            now = tally.get(chunk.evaluation, (0, 0))
            self.progress(Step(store.model, chunk, count, len(left), *now))
        return failed

    def _call(self, begun: dict[str, Any] | None) -> dict[str, Any]:
        """How the model is called; what a run began with is kept, since kernels are never switched midway."""
        kernels = {
            "batch": self.batch or min(BATCH, self.protocol.chunk),
            "device": str(self.device),
            "threads": threads_for(self.dataset.shape),
        }
        if begun:
            kept = begun["kernels"]
            kernels |= {"threads": kept["threads"], "batch": self.batch or kept["batch"]}
        return kernels

    def _kernels(
        self, model: Classifier, begun: dict[str, Any] | None, batch: int, stochastic: bool
    ) -> dict[str, Any]:
        """The precision of gradients and the batch sizes, by a pilot where the run has not begun."""
        kept = begun["kernels"] if begun else {}
        if kept.get("batch") == batch and "sizes" in kept and self.precision in ("auto", kept["precision"]):
            return {"precision": kept["precision"], "sizes": kept["sizes"]}
        attacked = any(evaluation.kind == "attack" for evaluation in self.planned.evaluations)
        if stochastic or not attacked:  # the bits of the first are never the same
            return {"precision": "float32", "sizes": []}
        pictures = self.dataset.images[:batch].to(self.device)
        return pilot(model.to(self.device), pictures, self.precision)._asdict()

    def _stochastic(self, model: Classifier, begun: dict[str, Any] | None, batch: int) -> bool:
        """Whether the model says that its answers are random, or is caught at it on the first batch;
        what a run began with is kept."""
        if model.stochastic:
            return True
        if begun:
            return bool(begun["model"]["stochastic"])
        return is_random(model.to(self.device), self.dataset.images[:batch].to(self.device))


def _tally(rows: pa.Table) -> tuple[int, int]:
    """How many of these rows are of labelled pictures, and how many of those right (by majority)."""
    labelled = np.asarray(rows["label"]) != UNLABELLED
    right = 2 * np.asarray(rows["draws_correct"]) > np.asarray(rows["draws"])
    return int(labelled.sum()), int((labelled & right).sum())


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
    kernels: dict[str, Any], stochastic: bool,
) -> dict[str, Any]:  # fmt: skip
    """What run.json says; its ``identity`` and the evaluations' descriptions are what rows depend on."""
    drawn = {"draws": VERDICT_DRAWS} if stochastic else {}
    declared = {"stochastic_declared": model.stochastic} if stochastic else {}
    packages = environment()
    identity = {
        "model": fingerprint_weights(reference, model),
        "data": dataset.fingerprint,
        "seed": protocol.seed,
        "chunk": protocol.chunk,
        "kernels": kernels,
        "versions": {
            name: packages.get(name) for name in ("robustgen", "torch", "scipy", *_libraries(planned))
        },
        **drawn,
    }
    return {
        "identity": identity,
        "model": {
            "name": reference.name,
            "fingerprint": identity["model"],
            **_card_line(reference),
            "num_classes": model.num_classes,
            "input_shape": list(model.input_shape),
            "supports": sorted(model.supports),
            "density": model.density,
            "noise": repr(model.noise),
            "stochastic": stochastic,
            **declared,
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
        "kernels": kernels,
    }


def _libraries(planned: Plan) -> list[str]:
    """The packages that outside attacks come from."""
    named = {str(e.detail["attack"]).partition("-")[0] for e in planned.evaluations if e.kind == "attack"}
    return sorted(named & {"pyautoattack", "torchattacks", "foolbox"})


def fingerprint_weights(reference: ModelRef, model: Classifier) -> str:
    """A loaded model's identity: where its code is from, and everything that it has learned.

    The weights are hashed as they are in memory, since a user's file may load them from anywhere.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return fingerprint([fingerprint_model(reference), digest.hexdigest()])


def _environment(reference: ModelRef, root: Path | None) -> dict[str, str]:
    where = {"data_root": str(root.resolve())} if root else {}
    return environment() | {"reference": str(reference)} | where


def _card_line(reference: ModelRef) -> dict[str, Any]:
    if not isinstance(reference, ZooModel):
        return {"family": "custom", "summary": "", "data": "", "calls": 1}
    card = load_card(reference.folder)
    return {"family": card.family, "summary": card.summary, "data": card.data, "calls": card.calls}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            "no such device", where="--device", expected="auto, cpu, or cuda where there is one", got=name
        )
    if name == "cuda":  # float32 means float32, and the same bits twice
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return torch.device(name)
