"""The way of the data: a protocol's evaluations become chunks, and chunks become rows in a store.

Work (work.py) is all that an executor needs to compute a chunk somewhere else, and to store it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar, Unpack

import torch

from robustgen.chunks import Shard, left
from robustgen.classifiers import load_model
from robustgen.classifiers.base import Classifier, threads_for
from robustgen.config import Protocol
from robustgen.cost import CostEstimate, measure
from robustgen.data import Dataset
from robustgen.errors import DiskFullError, UserError
from robustgen.evaluation import Plan, load_data
from robustgen.executors import Executor, LocalExecutor
from robustgen.limits import time_limit
from robustgen.pilot import check_precision
from robustgen.plan import plan
from robustgen.registry import ModelRef
from robustgen.runspec import run_environment, run_spec
from robustgen.store import Chunk, RunStore
from robustgen.types import ADDED
from robustgen.work import Done, Failed, Trial, Work

BATCH = 64


class Step(NamedTuple):
    """How far a model's run is: ``done`` of ``total`` chunks, the last of them ``chunk`` (None before the
    first), and how many of the ``seen`` samples of its evaluation are ``right``, as far as they were
    computed now; foreign pictures are neither. ``failed``: how many of the chunks that are done have
    no rows."""

    model: str
    chunk: Chunk | None
    done: int
    total: int
    seen: int = 0
    right: int = 0
    failed: int = 0


Progress: TypeAlias = Callable[[Step], None]
T = TypeVar("T")


class Outcome(NamedTuple):
    """The runs that have rows, and what went wrong with which model."""

    runs: list[RunStore]
    failures: dict[str, str]


class Options(TypedDict, total=False):
    """How a protocol is run, beside what it says itself."""

    n: int | None
    """The first n samples, of the calibration split and foreign sets too, all where there are fewer."""
    root: Path | None
    """Where data sets lie."""
    batch: int | None
    """How many pictures a call of the model takes; by default the protocol's chunk, at most 64."""
    device: str
    precision: str
    """Of attacks' gradients: float32, bf16 or auto."""
    limit: float | None
    """Seconds that a chunk may take."""
    executor: Executor | None
    shard: Shard | None
    """The part of the chunks to compute; all by default."""
    progress: Progress
    """Called as chunks finish."""


def evaluate(
    models: Iterable[ModelRef], protocol: Protocol, source: str, out: Path, **options: Unpack[Options]
) -> Outcome:
    """Run every model through a protocol on a data set; finished chunks are not computed again.

    ``source`` is a data set's name, ``NAME:CLASSES``, ``imagefolder:PATH``, an .npz or a .parquet. A model
    that fails is noted and the others go on. Raises UserError if none could be run.
    """
    job = _Job.plan(protocol, source, out, **options)
    found, failures = _each(models, job.run)
    failures |= {store.model: failed for store, failed in found if failed}
    return Outcome([store for store, _ in found], failures)


def estimate(
    models: Iterable[ModelRef], protocol: Protocol, source: str, out: Path, **options: Unpack[Options]
) -> tuple[list[CostEstimate], dict[str, str]]:
    """What ``evaluate`` with the same arguments will take, from a few pictures, and what went wrong with
    which model; nothing is stored. Raises UserError if none could be estimated."""
    job = _Job.plan(protocol, source, out, **options)
    return _each(models, job.estimate)


def _each(models: Iterable[ModelRef], of_one: Callable[[ModelRef], T]) -> tuple[list[T], dict[str, str]]:
    """What comes of each model, and what went wrong with which; raises the first error if none could be."""
    found: list[T] = []
    errors: dict[str, UserError] = {}
    for reference in models:
        try:
            found.append(of_one(reference))
        except DiskFullError:
            raise
        except Exception as error:  # whatever loading a model raises, too, or a disk that does not answer
            known = error if isinstance(error, UserError) else _unknown(reference, error)
            errors[reference.name] = known
    if errors and not found:
        raise next(iter(errors.values()))
    return found, {name: str(error) for name, error in errors.items()}


def _unknown(reference: ModelRef, error: Exception) -> UserError:
    got = f"{type(error).__name__}: {error}"
    return UserError("the model could not be run", where=reference.name, got=got)


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
    limit: float | None
    executor: Executor
    shard: Shard | None
    progress: Progress

    @classmethod
    def plan(
        cls, protocol: Protocol, source: str, out: Path, *, n: int | None = None, root: Path | None = None,
        batch: int | None = None, device: str = "auto", precision: str = "auto", limit: float | None = None,
        executor: Executor | None = None, shard: Shard | None = None, progress: Progress = lambda _: None,
    ) -> _Job:  # fmt: skip
        executor = executor or LocalExecutor()
        check_precision(precision)
        try:
            dataset = load_data(source, "test", root)
            planned = plan(protocol, dataset, root)
        except OSError as error:
            raise UserError(
                "the data could not be read", where=source, got=error.strerror or error,
                remedy="see to the disk, and run the same command again: what is finished is kept",
            ) from None  # fmt: skip
        return cls(
            protocol, dataset, planned, out, n or protocol.n, root, batch, _device(device, executor),
            precision, limit, executor, shard, progress,
        )  # fmt: skip

    def work(self, reference: ModelRef) -> tuple[Classifier, Work]:
        """The model, and what a worker is made of."""
        dataset = self.dataset
        with time_limit(self.limit):
            model = load_model(reference, class_names=dataset.class_names, input_shape=dataset.shape)
        parts = reference, self.protocol, dataset.source, self.root, self.device
        return model, Work(*parts, limit=self.limit, loaded=(model, self.planned))

    def estimate(self, reference: ModelRef) -> CostEstimate:
        """What one model's run will take, measured where its chunks would be computed."""
        _, work = self.work(reference)
        return self.executor.call(measure, work, self._trial(work, None), self.n)

    def run(self, reference: ModelRef) -> tuple[RunStore, str]:
        """One model's run, and what failed in it (nothing: ""). Raises UserError where it cannot begin."""
        model, work = self.work(reference)
        path = self.out / "runs" / reference.name
        found = RunStore.find(path)
        begun = found.spec if found else None
        trial = self._trial(work, begun)
        spec = run_spec(reference, model, self.protocol, self.dataset, self.planned, trial)
        # pictures from elsewhere (added.py) belong to the run, whatever the protocol asks for
        spec["evaluations"] += [e for e in (begun or {}).get("evaluations", []) if ADDED in e]
        try:
            store = RunStore.open(path, spec, run_environment(reference, self.root))
        except UserError:
            if begun is None and RunStore.find(path):
                return self.run(reference)  # another process began it meanwhile, and its kernels are kept
            raise
        if self.shard is None:  # else the run that joins the shards reads what is finished
            store.set_aside_damaged()
        if found is not None:
            self.executor.call(work.recognise, store)
        failed = self._compute(store, replace(work, share=trial.share))
        # what was finished is read once more, before numbers are made of it
        lost = store.set_aside_damaged(pictures=False) if self.shard is None else []
        return store, failed or "".join(lost[:1])

    def _compute(self, store: RunStore, work: Work) -> str:
        """Have every chunk computed that is not finished; returns the last failure, if any."""
        evaluations = self.planned.evaluations
        finished = {e.name: store.finished(e.name) for e in evaluations}
        todo = left(evaluations, finished, self.protocol.chunk, self.n, self.shard)
        failed, failures = "", 0
        tally: dict[str, Done] = {}
        self.progress(Step(store.model, None, 0, len(todo)))
        for count, (chunk, result) in enumerate(self.executor.run(work, store, todo), start=1):
            before = tally.get(chunk.evaluation, Done(0, 0))
            if isinstance(result, Failed):
                store.log_error(result.message, chunk)
                failures += 1
                failed = f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {result.message}"
            else:
                before = Done(before.labelled + result.labelled, before.right + result.right)
            tally[chunk.evaluation] = before
            self.progress(Step(store.model, chunk, count, len(todo), *before, failures))
        return failed

    def _trial(self, work: Work, begun: dict[str, Any] | None) -> Trial:
        """How the model is called; what a run began with is kept, since kernels are never switched midway."""
        kept = begun["kernels"] if begun else {}
        batch = self.batch or kept.get("batch") or min(BATCH, self.protocol.chunk)
        threads = kept.get("threads") or threads_for(self.dataset.shape)
        return self.executor.call(work.trial, begun, batch, threads, self.precision)


def _device(name: str, executor: Executor) -> torch.device:
    there = executor.has_gpu()
    if name == "auto":
        name = "cuda" if there else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not there):
        raise UserError(
            "no such device", where="--device", expected="auto, cpu, or cuda where there is one", got=name
        )
    return torch.device(name)
