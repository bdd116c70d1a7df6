"""What of a run travels to where its chunks are computed, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustgen.classifiers import fingerprint_weights, load_model
from robustgen.classifiers.base import Classifier
from robustgen.config import Protocol
from robustgen.data import Dataset
from robustgen.environment import make_exact, row_code
from robustgen.errors import UserError
from robustgen.evaluation import Evaluation, Plan, load_data
from robustgen.limits import time_limit
from robustgen.metrics.verdicts import majority
from robustgen.perturb import Attack
from robustgen.pilot import Kernels, gradient, moved_by_others, pilot
from robustgen.plan import plan
from robustgen.registry import ModelRef
from robustgen.store import Chunk, RunStore
from robustgen.types import UNLABELLED
from robustgen.worker import Worker, is_random

CONTEXT = 600 << 20  # bytes of a GPU that a process takes before it holds a tensor
SLACK = 1.5  # an attack keeps some batches more than a gradient does
PARTS = 8  # the most processes that share a GPU

KNOWN = 4
"""Clean pictures by which a model is known again."""
OTHERWISE = 0.01
"""Of a picture's spread of logits: machines and batches make them differ by less, which is rounding."""


class Done(NamedTuple):
    """A chunk that is stored: how many of its pictures have a label, and how many of those are right by
    majority; foreign pictures are neither."""

    labelled: int
    right: int


class Failed(NamedTuple):
    """A chunk that raised."""

    message: str


Result: TypeAlias = Done | Failed
Compute: TypeAlias = Callable[[Chunk], Result]


class Trial(NamedTuple):
    """What a model is like where it will run: see ``pilot`` and ``gpu_share``."""

    stochastic: bool
    mixes: bool
    """Whether a picture's answers depend on the pictures beside it."""
    kernels: Kernels
    share: float


@dataclass(frozen=True)
class Work:
    """All that a worker is made of, in a form that travels: model and data are loaded where they are
    needed, once a process. Only ``loaded``, what is in memory already, stays behind."""

    reference: ModelRef
    protocol: Protocol
    source: str
    root: Path | None
    device: torch.device
    share: float = 0.0
    """How much of a GPU a worker needs."""
    limit: float | None = None
    """Seconds that a chunk may take, and so may finding out how the model is called."""
    loaded: tuple[Classifier, Plan] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.reference, self.protocol, self.source, self.root, self.device, self.share, self.limit)
        return Work, parts

    def load(self) -> tuple[Classifier, Plan, Dataset]:
        """The model on its device, the plan, and the data."""
        dataset = load_data(self.source, "test", self.root)
        if self.loaded is not None:
            model, planned = self.loaded
        else:
            model = load_model(self.reference, class_names=dataset.class_names, input_shape=dataset.shape)
            planned = plan(self.protocol, dataset, self.root)
        make_exact(self.device)
        return model.eval().requires_grad_(False).to(self.device), planned, dataset

    def trial(self, begun: dict[str, Any] | None, batch: int, threads: int, precision: str) -> Trial:
        """Try the model on a batch; what a run began with (its spec) is kept, since kernels are never
        switched midway."""
        torch.set_num_threads(threads)
        with time_limit(self.limit):
            return self._try(begun, batch, precision)

    def _try(self, begun: dict[str, Any] | None, batch: int, precision: str) -> Trial:
        model, planned, dataset = self.load()
        # a full batch, though the data be fewer: calls are padded to it
        pictures = dataset.images[torch.arange(batch) % len(dataset)].to(self.device)
        if model.stochastic or begun is None:
            stochastic = model.stochastic or is_random(model, pictures)
            mixes = not stochastic and moved_by_others(model, pictures) > 0
        else:
            stochastic, mixes = (bool(begun["model"].get(key)) for key in ("stochastic", "mixes"))
        share = gpu_share(model, pictures)
        plain = Kernels(batch, str(self.device), torch.get_num_threads())
        kept = begun["kernels"] if begun else {}
        if kept.get("batch") == batch and "sizes" in kept and precision in ("auto", kept["precision"]):
            same = plain._replace(precision=kept["precision"], sizes=kept["sizes"])
            return Trial(stochastic, mixes, same, share)
        attacked = any(isinstance(evaluation.perturbation, Attack) for evaluation in planned.evaluations)
        if stochastic or not attacked:  # the bits of the first are never the same
            return Trial(stochastic, mixes, plain, share)
        return Trial(stochastic, mixes, pilot(model, pictures, precision), share)

    def recognise(self, store: RunStore) -> None:
        """UserError where the model answers a picture of the run otherwise than it did then: what a user's
        file takes from elsewhere, as a number or a plain tensor, no fingerprint knows."""
        rows, spec = store.rows("clean", KNOWN), store.spec["model"]
        if rows is None or not len(rows) or spec["stochastic"] or spec.get("mixes"):
            return
        before, ids = torch.tensor(rows["logits"].to_pylist()), torch.tensor(rows["sample_id"].to_pylist())
        with time_limit(self.limit):
            model, _, dataset = self.load()
            try:
                with torch.no_grad():
                    now = model.logits(dataset.images[ids].to(self.device)).float().cpu()
            except UserError:
                raise
            except Exception:  # the user's code; a chunk that it fails on says so
                return
        gap, spread = (now - before).abs().amax(1), before.amax(1) - before.amin(1)
        if bool((gap > OTHERWISE * spread).any()):
            raise UserError(
                "the model does not answer as it did when this run was begun, though its code and weights "
                "are the same: its rows cannot be mixed with new ones", where=store.path,
                expected=f"logits as stored, within {OTHERWISE:.0%} of their spread",
                got=f"a logit that differs by {gap.max().item():.3g}",
                remedy=f"choose another --out, or delete {store.path}; and let the model's state_dict hold "
                "all that it has learned",
            )  # fmt: skip

    def begin(self, store: RunStore) -> Compute:
        """What computes a chunk of the run and stores it, from this process. UserError where the model or
        the data here are not those of the run."""
        spec = store.spec
        kernels = Kernels(**spec["kernels"])
        torch.set_num_threads(kernels.threads)
        with time_limit(self.limit):
            model, planned, dataset = self.load()
            if self.loaded is None:
                self._check(spec, model, planned, dataset)
            worker = Worker(
                model, planned.evaluations, source=self.source, seed=self.protocol.seed, kernels=kernels,
                root=self.root, stochastic=spec["model"]["stochastic"], limit=self.limit,
            )  # fmt: skip
        return lambda chunk: _compute(worker, store, chunk)

    def _check(self, spec: dict[str, Any], model: Classifier, planned: Plan, dataset: Dataset) -> None:
        """Another machine may have other files under the same names."""
        here = {e.name: e.describe() for e in planned.evaluations}
        wanted = {e["name"]: e for e in spec["evaluations"] if e["name"] in here}
        pairs = {
            "data": (spec["identity"]["data"], dataset.fingerprint),
            "model": (spec["identity"]["model"], fingerprint_weights(self.reference, model)),
            "evaluations": (wanted, here),
            "robustgen": (spec["identity"]["code"], row_code()),
        }
        for what, (expected, got) in pairs.items():
            if expected != got:
                raise UserError(
                    f"a worker found another {what} than the run has",
                    where=f"the machine of the worker: {self.reference} on {self.source}",
                    expected=expected,
                    got=got,
                    remedy="give all machines the same robustgen and the same files, under the same paths",
                )


def _compute(worker: Worker, store: RunStore, chunk: Chunk) -> Result:
    try:
        reading = worker(chunk)
    except Exception as error:
        # Whatever a model or an attack raises costs its chunk, never the finished work.
        known = isinstance(error, UserError)
        return Failed(str(error) if known else f"{type(error).__name__}: {error}")
    store.write(
        chunk, reading.rows, tables=reading.tables, adversarial=reading.adversarial,
        seconds=reading.seconds, batch=reading.batch,
    )  # fmt: skip
    return _tally(worker.evaluations[chunk.evaluation], reading.rows)


def _tally(evaluation: Evaluation, rows: pa.Table) -> Done:
    if evaluation.kind == "ood" or evaluation.foreign is not None:
        return Done(0, 0)  # their labels, where they have any, are of other classes
    labelled = np.asarray(rows["label"]) != UNLABELLED
    right = majority(np.asarray(rows["draws_correct"]), np.asarray(rows["draws"]))
    return Done(int(labelled.sum()), int((labelled & right).sum()))


def gpu_share(model: Classifier, pictures: Tensor) -> float:
    """How much of a GPU a worker needs: measured by one gradient of a full batch; 0 on a processor."""
    if pictures.device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    try:
        gradient(model, pictures)
    except Exception:  # a model that fails: its chunks say so, each for itself
        return 1.0
    return share_of(torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1])


def share_of(peak: int, total: int) -> float:
    """The fraction 1/k of a GPU of ``total`` bytes that holds a process whose tensors took ``peak`` bytes."""
    return 1 / max(1, min(PARTS, math.floor(total / (SLACK * peak + CONTEXT))))
