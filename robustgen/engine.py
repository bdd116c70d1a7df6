"""Runs models through a protocol: its evaluations become chunks, and chunks become rows in a store.

The engine plans, and decides what is still to be computed. An executor (executors.py) sends a ``ModelJob``
(job.py) to where chunks are computed; there a ``Worker`` (worker.py) computes each, and the job stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar, Unpack

import torch

from robustgen.chunks import Shard, unfinished
from robustgen.classifiers import load_model
from robustgen.classifiers.base import Classifier
from robustgen.config import Protocol
from robustgen.cost import CostEstimate, estimate_cost
from robustgen.data import Dataset
from robustgen.environment import threads_for
from robustgen.errors import DiskFullError, UserError
from robustgen.evaluation import Plan, load_data
from robustgen.executors import Executor, LocalExecutor
from robustgen.job import Failed, ModelJob, Stored
from robustgen.limits import time_limit
from robustgen.pilot import Profile, check_precision
from robustgen.plan import plan
from robustgen.registry import ModelRef
from robustgen.runspec import run_environment, run_spec
from robustgen.store import Chunk, RunStore
from robustgen.types import ADDED

MAX_BATCH = 64
"""The batch size by default, unless a chunk is smaller."""


class Step(NamedTuple):
    """Progress of a model's run: ``done`` of ``total`` chunks, of which ``failed`` have no rows.

    ``chunk`` is the last of them, None before the first. Of the samples of its evaluation that were
    computed now and have a label, ``labelled`` in number, the model gets ``correct`` right.
    """

    model: str
    chunk: Chunk | None
    done: int
    total: int
    labelled: int = 0
    correct: int = 0
    failed: int = 0


OnStep: TypeAlias = Callable[[Step], None]
T = TypeVar("T")


class Outcome(NamedTuple):
    """The runs that have rows, and what failed: model name to message."""

    runs: list[RunStore]
    failures: dict[str, str]


class Options(TypedDict, total=False):
    """How to run a protocol; all are optional."""

    n: int | None
    """The first n samples of every split and foreign set, all if it has fewer; default: the protocol's n."""
    root: Path | None
    """The folder of the data sets."""
    batch: int | None
    """Pictures a call of the model; by default the protocol's chunk size, at most 64."""
    device: str
    """cpu, cuda, or auto, the default: a GPU if there is one."""
    precision: str
    """Of attacks' gradients: float32, bf16, or auto, the default: bf16 if it is clearly faster."""
    limit: float | None
    """Seconds that a chunk may take."""
    executor: Executor | None
    """Where chunks are computed; by default in this process."""
    shard: Shard | None
    """The part of the chunks to compute; by default all."""
    progress: OnStep
    """Called as chunks finish."""


def evaluate(
    models: Iterable[ModelRef], protocol: Protocol, source: str, out: Path, **options: Unpack[Options]
) -> Outcome:
    """Run every model through a protocol on a data set; finished chunks are not computed again.

    ``source`` is a data set's name, ``NAME:CLASSES``, ``imagefolder:PATH``, an .npz or a .parquet. A model
    that fails is reported in the outcome, and the others go on. Raises UserError if none could be run.
    """
    session = _Session.prepare(protocol, source, out, **options)
    runs, failures = _for_each(models, session.run)
    failures |= {store.model: failure for store, failure in runs if failure}
    return Outcome([store for store, _ in runs], failures)


def estimate(
    models: Iterable[ModelRef], protocol: Protocol, source: str, out: Path, **options: Unpack[Options]
) -> tuple[list[CostEstimate], dict[str, str]]:
    """Estimate from a few pictures what ``evaluate`` with the same arguments will take; nothing is stored.

    Returns the estimates and what failed: model name to message. Raises UserError if all failed.
    """
    session = _Session.prepare(protocol, source, out, **options)
    return _for_each(models, session.estimate)


def _for_each(
    models: Iterable[ModelRef], function: Callable[[ModelRef], T]
) -> tuple[list[T], dict[str, str]]:
    """The function's results, and the errors by model; if all models fail, raises the first error."""
    results: list[T] = []
    errors: dict[str, UserError] = {}
    for reference in models:
        try:
            results.append(function(reference))
        except DiskFullError:
            raise
        except UserError as error:
            errors[reference.name] = error
        except Exception as error:  # whatever loading a model raises, or a disk that does not answer
            got = f"{type(error).__name__}: {error}"
            errors[reference.name] = UserError("the model could not be run", where=reference.name, got=got)
    if errors and not results:
        raise next(iter(errors.values()))
    return results, {name: str(error) for name, error in errors.items()}


@dataclass(frozen=True)
class _Session:
    """One call of ``evaluate`` or ``estimate``: data, plan and options, the same for every model."""

    protocol: Protocol
    dataset: Dataset
    plan: Plan
    out: Path
    n: int | None
    root: Path | None
    batch: int | None
    device: torch.device
    precision: str
    limit: float | None
    executor: Executor
    shard: Shard | None
    progress: OnStep

    @classmethod
    def prepare(
        cls, protocol: Protocol, source: str, out: Path, *, n: int | None = None, root: Path | None = None,
        batch: int | None = None, device: str = "auto", precision: str = "auto", limit: float | None = None,
        executor: Executor | None = None, shard: Shard | None = None, progress: OnStep = lambda _: None,
    ) -> _Session:  # fmt: skip
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

    def estimate(self, reference: ModelRef) -> CostEstimate:
        """What one model's run will take, measured where its chunks would be computed."""
        _, job = self._job(reference)
        return self.executor.call(estimate_cost, job, self._profile(job, None), self.n)

    def run(self, reference: ModelRef) -> tuple[RunStore, str]:
        """One model's run, and what failed in it ("" if nothing). Raises UserError if it cannot begin."""
        model, job = self._job(reference)
        store, profile, resumed = self._open_store(reference, model, job)
        if self.shard is None:  # damage is looked for by the run that joins the shards
            store.set_aside_damaged()
        if resumed:
            self.executor.call(job.check_answers, store)
        failure = self._compute(store, replace(job, gpu_share=profile.gpu_share))
        # read the finished chunks once more before numbers are made of them
        lost = store.set_aside_damaged(pictures=False) if self.shard is None else []
        return store, failure or "".join(lost[:1])

    def _job(self, reference: ModelRef) -> tuple[Classifier, ModelJob]:
        dataset = self.dataset
        with time_limit(self.limit):
            model = load_model(reference, class_names=dataset.class_names, input_shape=dataset.shape)
        fields = reference, self.protocol, dataset.source, self.root, self.device
        return model, ModelJob(*fields, limit=self.limit, loaded=(model, self.plan))

    def _open_store(
        self, reference: ModelRef, model: Classifier, job: ModelJob
    ) -> tuple[RunStore, Profile, bool]:
        """The run's store, the model's profile, and whether the run existed before."""
        path = self.out / "runs" / reference.name
        while True:
            existing = RunStore.find(path)
            earlier = existing.spec if existing else None
            profile = self._profile(job, earlier)
            spec = run_spec(reference, model, self.protocol, self.dataset, self.plan, profile)
            # pictures that were added (added.py) stay in the run, whatever the protocol asks for
            spec["evaluations"] += [e for e in (earlier or {}).get("evaluations", []) if ADDED in e]
            try:
                store = RunStore.open(path, spec, run_environment(reference, self.root))
            except UserError:
                if existing or not RunStore.find(path):
                    raise
                continue  # another process has just begun this run: profile again, and keep its kernels
            return store, profile, existing is not None

    def _profile(self, job: ModelJob, earlier: dict[str, Any] | None) -> Profile:
        """How to call the model: as ``earlier`` says, the specification of the run, if there is one."""
        kept = earlier["kernels"] if earlier else {}
        batch = self.batch or kept.get("batch") or min(MAX_BATCH, self.protocol.chunk)
        threads = kept.get("threads") or threads_for(self.dataset.shape)
        return self.executor.call(job.profile, earlier, batch, threads, self.precision)

    def _compute(self, store: RunStore, job: ModelJob) -> str:
        """Compute every chunk that is not finished; returns the message of the last failure, "" if none."""
        evaluations = self.plan.evaluations
        finished = {e.name: store.finished(e.name) for e in evaluations}
        chunks = unfinished(evaluations, finished, self.protocol.chunk, self.n, self.shard)
        failure, failed = "", 0
        tallies: dict[str, Stored] = {}
        self.progress(Step(store.model, None, 0, len(chunks)))
        for done, (chunk, result) in enumerate(self.executor.run(job, store, chunks), start=1):
            tally = tallies.get(chunk.evaluation, Stored(0, 0))
            if isinstance(result, Failed):
                store.log_error(result.message, chunk)
                failed += 1
                failure = f"{chunk.evaluation}, samples {chunk.start} to {chunk.stop}: {result.message}"
            else:
                tally = Stored(tally.labelled + result.labelled, tally.correct + result.correct)
            tallies[chunk.evaluation] = tally
            self.progress(Step(store.model, chunk, done, len(chunks), *tally, failed))
        return failure


def _device(name: str, executor: Executor) -> torch.device:
    has_gpu = executor.has_gpu()
    if name == "auto":
        name = "cuda" if has_gpu else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not has_gpu):
        raise UserError(
            "no such device", where="--device", expected="auto, cpu, or cuda where there is one", got=name
        )
    return torch.device(name)
