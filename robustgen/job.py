"""One model's run as a job: what executors send to where chunks are computed, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch

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
from robustgen.pilot import Kernels, Profile, batch_dependence, choose_kernels, gpu_share, is_random
from robustgen.plan import plan
from robustgen.registry import ModelRef
from robustgen.store import Chunk, RunStore
from robustgen.types import UNLABELLED
from robustgen.worker import Worker

COMPARED = 4
"""How many stored clean pictures a model is asked about again when its run goes on."""
LOGIT_TOLERANCE = 0.01
"""Share of a picture's spread of logits: rounding on another machine or in another batch moves them less."""


class Stored(NamedTuple):
    """A chunk that is stored: how many of its pictures have a label, and how many of these the model gets
    right, by majority over draws. Foreign pictures count as neither."""

    labelled: int
    correct: int


class Failed(NamedTuple):
    """A chunk that raised."""

    message: str


Result: TypeAlias = Stored | Failed
ComputeChunk: TypeAlias = Callable[[Chunk], Result]


@dataclass(frozen=True)
class ModelJob:
    """What a process needs to compute chunks of one model's run.

    It is pickled without ``loaded``: each process loads the model and the data itself, once.
    """

    reference: ModelRef
    protocol: Protocol
    source: str
    """The data set, as ``--data`` names it."""
    root: Path | None
    device: torch.device
    gpu_share: float = 0.0
    """How much of a GPU a worker needs."""
    limit: float | None = None
    """Seconds that a chunk may take, and so may profiling the model."""
    loaded: tuple[Classifier, Plan] | None = None
    """What this process has in memory already."""

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.reference, self.protocol, self.source, self.root, self.device)
        return ModelJob, (*fields, self.gpu_share, self.limit)

    def load(self) -> tuple[Classifier, Plan, Dataset]:
        """The model on its device, the plan, and the data's test split."""
        dataset = load_data(self.source, "test", self.root)
        if self.loaded is not None:
            model, evaluations = self.loaded
        else:
            model = load_model(self.reference, class_names=dataset.class_names, input_shape=dataset.shape)
            evaluations = plan(self.protocol, dataset, self.root)
        make_exact(self.device)
        return model.eval().requires_grad_(False).to(self.device), evaluations, dataset

    def profile(self, earlier: dict[str, Any] | None, batch: int, threads: int, precision: str) -> Profile:
        """Measure on one batch how the model behaves and how to call it.

        ``earlier`` is the specification of the run if there is one already: what it says is kept, since
        kernels are never switched within a run.
        """
        torch.set_num_threads(threads)
        with time_limit(self.limit):
            model, planned, dataset = self.load()
            # calls are padded to a full batch, also if there are fewer pictures
            pictures = dataset.images[torch.arange(batch) % len(dataset)].to(self.device)
            if model.stochastic or earlier is None:
                stochastic = model.stochastic or is_random(model, pictures)
                batch_dependent = not stochastic and batch_dependence(model, pictures) > 0
            else:
                stochastic, batch_dependent = (bool(earlier["model"].get(k)) for k in ("stochastic", "mixes"))
            share = gpu_share(model, pictures)
            kernels = Kernels(batch, str(self.device), torch.get_num_threads())
            kept = earlier["kernels"] if earlier else {}
            attacked = any(isinstance(evaluation.perturbation, Attack) for evaluation in planned.evaluations)
            if kept.get("batch") == batch and "sizes" in kept and precision in ("auto", kept["precision"]):
                kernels = kernels._replace(precision=kept["precision"], sizes=kept["sizes"])
            elif attacked and not stochastic:  # a stochastic model never repeats its bits
                kernels = choose_kernels(model, pictures, precision)
            return Profile(stochastic, batch_dependent, kernels, share)

    def check_answers(self, store: RunStore) -> None:
        """Raise UserError if the model's logits on a few clean pictures are not those that the run stored.

        This catches what no fingerprint sees: numbers and plain tensors that a user's file reads from
        elsewhere.
        """
        rows, spec = store.rows("clean", COMPARED), store.spec["model"]
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
            except Exception:  # the user's code; a chunk that it fails on reports it
                return
        gap, spread = (now - before).abs().amax(1), before.amax(1) - before.amin(1)
        if bool((gap > LOGIT_TOLERANCE * spread).any()):
            raise UserError(
                "the model does not answer as it did when this run was begun, though its code and weights "
                "are the same: its rows cannot be mixed with new ones", where=store.path,
                expected=f"logits as stored, within {LOGIT_TOLERANCE:.0%} of their spread",
                got=f"a logit that differs by {gap.max().item():.3g}",
                remedy=f"choose another --out, or delete {store.path}; and let the model's state_dict hold "
                "all that it has learned",
            )  # fmt: skip

    def start_worker(self, store: RunStore) -> ComputeChunk:
        """Load everything in this process; returns a function that computes a chunk and stores it.

        Raises UserError if the model, the data or the code here are not those of the run.
        """
        spec = store.spec
        kernels = Kernels(**spec["kernels"])
        torch.set_num_threads(kernels.threads)
        with time_limit(self.limit):
            model, planned, dataset = self.load()
            if self.loaded is None:
                self._check_same(spec, model, planned, dataset)
            worker = Worker(
                model, planned.evaluations, source=self.source, seed=self.protocol.seed, kernels=kernels,
                root=self.root, stochastic=spec["model"]["stochastic"], limit=self.limit,
            )  # fmt: skip
        return lambda chunk: _compute_and_store(worker, store, chunk)

    def _check_same(self, spec: dict[str, Any], model: Classifier, planned: Plan, dataset: Dataset) -> None:
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


def _compute_and_store(worker: Worker, store: RunStore, chunk: Chunk) -> Result:
    try:
        output = worker(chunk)
    except Exception as error:  # of the model or an attack: it costs this chunk, never the finished ones
        known = isinstance(error, UserError)
        return Failed(str(error) if known else f"{type(error).__name__}: {error}")
    store.write(chunk, **output._asdict())
    return _tally(worker.evaluations[chunk.evaluation], output.rows)


def _tally(evaluation: Evaluation, rows: pa.Table) -> Stored:
    if evaluation.kind == "ood" or evaluation.foreign is not None:
        return Stored(0, 0)  # their labels, if any, are of other classes
    labelled = np.asarray(rows["label"]) != UNLABELLED
    right = majority(np.asarray(rows["draws_correct"]), np.asarray(rows["draws"]))
    return Stored(int(labelled.sum()), int((labelled & right).sum()))
